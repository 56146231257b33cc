//! One request for several VMs or hosts: which of them, what is asked of each, and the lines of the answer.
//!
//! ```text
//!   dry run:  planned, for each ─► summary
//!   run:      begun ─► selected ─┬─► (submitted ─► progress*)? ─► ended, for each, side by side ─┬─► summary
//!                                └─► stopped, too many failures: ended as skipped, for the rest ─┘
//! ```
//! Each VM has a job of its own, which goes on whatever becomes of the answer. An answer without [`BulkEvent::Summary`] was
//! cut off: nothing more is begun. To take it up again, send the request with [`Selection::Planned`] for what has not ended,
//! and with the jobs that were submitted.

mod action;

pub use action::VmAction;

use crate::controller::{JobView, Outcome};
use crate::following;
use fleetward_model::{ErrorCode, Failure, HostName, JobId, VmName};
use serde::{Deserialize, Serialize};
use std::fmt;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

/// How many are worked on at once where a request does not say it.
pub const PARALLEL: u32 = 16;

/// The most that are worked on at once.
pub const MOST_PARALLEL: u32 = 256;

/// `POST /v1/bulk`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BulkRequest {
    /// What is asked of each VM.
    pub action: VmAction,
    pub vms: Selection,
    /// Only says what would become of each VM.
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub how: How,
}

/// `POST /v1/guardian-rotations/expiring`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateExpiringRequest {
    /// Hosts whose own guardian expires within that time, and hosts of which that is not known.
    pub within_seconds: u64,
    /// Of these only those that an earlier answer named and that have not ended.
    #[serde(default)]
    pub only: Option<Vec<HostName>>,
    /// Only says which hosts these are.
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub how: How,
}

/// Which VMs. Domains that Fleetward did not make are only ever named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Each of these, once.
    Named(Vec<VmName>),
    All,
    /// Those that fit all of it.
    Matching(Matching),
    /// Those that a dry run, or an earlier answer, showed for a choice.
    Planned(Vec<VmName>),
}

impl Selection {
    /// Whether VMs are meant for what they have in common. A VM that the action does not concern is skipped then; a VM that
    /// is named must take it.
    pub const fn is_chosen(&self) -> bool {
        match self {
            Self::Named(_) => false,
            Self::All | Self::Matching(_) | Self::Planned(_) => true,
        }
    }
}

/// What VMs have in common; at least one of it is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Matching {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// `key=value`; each must fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// How the jobs are begun and followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct How {
    /// Whether jobs are followed to their ends; if not, the answer ends when all are submitted.
    #[serde(default = "yes")]
    pub wait: bool,
    /// How many are worked on at once, 1 to 256; without it 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
    /// After so many failures nothing more is begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<u32>,
    /// Jobs that an earlier request submitted: they are followed, and nothing is asked of their VMs again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<Submitted>,
}

const fn yes() -> bool {
    true
}

impl Default for How {
    fn default() -> Self {
        Self {
            wait: true,
            parallel: None,
            max_failures: None,
            jobs: Vec::new(),
        }
    }
}

/// One of those that a request is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    Vm(VmName),
    Host(HostName),
}

impl Target {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Vm(name) => name.as_str(),
            Self::Host(name) => name.as_str(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A line of the answer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum BulkEvent {
    /// What would become of one of them.
    Planned(Plan),
    /// The first line of a run.
    Begun {
        /// For `POST /v1/bulk/{bulk}/stop`.
        #[schema(value_type = String)]
        bulk: Uuid,
    },
    /// Which are meant, in their order; several lines where there are many.
    Selected {
        targets: Vec<Target>,
    },
    /// A job does it.
    Submitted(Submitted),
    /// The job has changed.
    Progress {
        #[serde(flatten)]
        target: Target,
        view: Box<JobView>,
    },
    Ended(Box<BulkEntry>),
    /// The last line.
    Summary(BulkSummary),
}

/// What an action would do to a VM, or to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    #[serde(flatten)]
    pub target: Target,
    pub would: Would,
    pub message: String,
    /// Why it would fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The end of a host's own guardian; none of a host that has not told it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub expires: Option<OffsetDateTime>,
    /// What a person should know, and answer, before this is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<Question>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Would {
    Change,
    Nothing,
    Fail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// The guest loses its TPM; what the TPM has sealed stays closed.
    TpmIsLost,
    /// A new TPM does not open what the VM's former TPM has sealed.
    NewTpmOpensNothing,
    /// A kept version takes the place of the TPM that the VM has.
    TpmIsReplaced,
    /// PCR 7 of the TPM changes, and what is sealed to it stays closed once.
    Pcr7Changes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Submitted {
    #[serde(flatten)]
    pub target: Target,
    pub job: JobId,
}

/// What became of a VM, or of a host.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BulkEntry {
    #[serde(flatten)]
    pub target: Target,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    pub message: String,
    /// In full, where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// What the job reports: a migration's `downtime_ms`, `total_ms`, `transferred`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
    /// Its job goes on, and is no longer followed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goes_on: bool,
}

impl BulkEntry {
    pub fn new(target: Target, outcome: Outcome, message: impl Into<String>) -> Self {
        Self {
            target,
            outcome,
            code: None,
            message: message.into(),
            failure: None,
            job: None,
            result: None,
            goes_on: false,
        }
    }

    /// Its job is done; `message` says what that means.
    pub fn done(target: Target, message: impl Into<String>, job: &JobView) -> Self {
        Self {
            job: Some(job.id),
            result: job.result.clone(),
            ..Self::new(target, Outcome::Succeeded, message)
        }
    }

    pub fn failed(target: Target, failure: &Failure, job: Option<JobId>) -> Self {
        Self {
            code: Some(failure.code),
            failure: Some(failure.clone()),
            job,
            ..Self::new(target, Outcome::Failed, short(failure))
        }
    }

    /// Nothing was asked of it.
    pub fn not_begun(target: Target, why: NotBegun) -> Self {
        let why = match why {
            NotBegun::Interrupted => "not begun: interrupted",
            NotBegun::TooManyFailures => "not begun: too many failures",
        };
        Self::new(target, Outcome::Skipped, why)
    }

    /// A job was asked to do it, and is not followed.
    pub fn submitted(target: Target, job: JobId) -> Self {
        Self {
            outcome: Outcome::Succeeded,
            ..Self::left(target, job)
        }
    }

    /// Its job is no longer followed.
    pub fn left(target: Target, job: JobId) -> Self {
        Self {
            job: Some(job),
            goes_on: true,
            ..Self::new(target, Outcome::Skipped, following::goes_on(job))
        }
    }
}

/// Why nothing was asked of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotBegun {
    Interrupted,
    TooManyFailures,
}

/// A failure on one line.
pub fn short(failure: &Failure) -> String {
    match failure.because.as_str() {
        "" => failure.what.clone(),
        because => format!("{}: {because}", failure.what),
    }
}

/// How many of each; in a dry run all are skipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BulkSummary {
    pub succeeded: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl BulkSummary {
    pub fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Succeeded => self.succeeded += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::Skipped => self.skipped += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_says_in_plain_json_what_is_asked_of_which_vms() {
        let request = json!({
            "action": { "verb": "tpm_disable", "stop_and_restart": true },
            "vms": { "matching": { "labels": ["tier=front"] } },
            "how": { "max_failures": 3 },
        });
        let request: BulkRequest = serde_json::from_value(request).expect("a request");
        assert!(request.how.wait && request.vms.is_chosen() && !request.dry_run);
        let VmAction::TpmDisable(tpm) = &request.action else {
            panic!("{request:?}");
        };
        assert!(tpm.stop_and_restart);
        for wrong in [
            json!({ "action": { "verb": "start" } }),
            json!({ "action": { "verb": "explode" }, "vms": "all" }),
            json!({ "action": { "verb": "stop", "hard": true }, "vms": "all" }),
            json!({ "action": { "verb": "start" }, "vms": { "matching": { "name": "x" } } }),
        ] {
            assert!(
                serde_json::from_value::<BulkRequest>(wrong.clone()).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn an_entry_names_its_vm_or_its_host_and_survives_the_wire() {
        let host = Target::Host("a".parse().expect("a name"));
        let job = JobId(Uuid::nil());
        for entry in [
            BulkEntry::not_begun(
                Target::Vm("web".parse().expect("a name")),
                NotBegun::Interrupted,
            ),
            BulkEntry::left(host, job),
        ] {
            let line = serde_json::to_value(BulkEvent::Ended(Box::new(entry.clone())));
            let line = line.expect("a line");
            let key = if entry.goes_on { "host" } else { "vm" };
            assert_eq!(line[key], entry.target.as_str(), "{line}");
            let BulkEvent::Ended(back) = serde_json::from_value(line).expect("an event") else {
                panic!("another event");
            };
            assert_eq!((back.target, back.job), (entry.target, entry.job));
        }
    }
}
