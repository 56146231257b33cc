//! The kinds of jobs, one file each, and what they share.
//!
//! Steps hold only the [`World`]. They act through requests to agents, which carry the job's id and generation.

mod custody;
mod guardian_grant;
mod guardian_revoke;
mod guardian_rotate;
mod host_drain;
mod kind;
mod place_images;
mod secure_boot;
mod take_escrow;
mod template_create;
mod tpm;
mod vm_change;
mod vm_clone;
mod vm_create;
mod vm_delete;
mod vm_migrate;
mod vm_pause;
mod vm_power;
mod vm_recover;

pub(crate) use custody::ProtectorDigest;
pub(crate) use guardian_grant::{GrantInput, GuardianGrant, GuardianRewrap, plan as plan_grant};
pub(crate) use guardian_revoke::{GuardianRevoke, RevokeInput};
pub(crate) use guardian_rotate::{
    GuardianRotate, GuardianSettle, RotateInput, depending, may_rotate,
};
pub(crate) use host_drain::{DrainInput, HostDrain, Planned as PlannedMove, plan as plan_drain};
pub(crate) use kind::{
    About, FleetJob, NoReport, ReportSchema, about_job, report_of, report_schemas, role_of,
    warnings_of,
};
pub(crate) use secure_boot::{SecureBootEnroll, SecureBootRestore};
pub(crate) use take_escrow::TakeEscrow;
pub(crate) use template_create::{TemplateCreate, TemplateInput};
pub(crate) use tpm::{TpmDisable, TpmEnable, TpmInput, TpmRestore, TpmRoll, TpmUnlock};
pub(crate) use vm_change::{ChangeInput, VmChange};
pub(crate) use vm_clone::{CloneInput, VmClone};
pub(crate) use vm_create::{CreateInput, VmCreate};
pub(crate) use vm_delete::{DeleteInput, VmDelete};
pub(crate) use vm_migrate::{MigrateInput, VmMigrate, VmMigrateStopped};
pub(crate) use vm_pause::{PauseInput, VmPause, VmResume};
pub(crate) use vm_power::{RestartInput, StartInput, StopInput, VmRestart, VmStart, VmStop};
pub(crate) use vm_recover::{RecoverInput, SupersedeInput, VmRecover, VmSupersede};

use crate::debts::subject;
use crate::world::World;
use fleetward_api::controller::{Outcome, VmOutcome};
use fleetward_api::reports::GrantReport;
use fleetward_jobs::{Data, Job, Registry};
use fleetward_model::fit::Needs;
use fleetward_model::{ByteSize, HostName, PoolName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every kind of job, once: what the engine runs, and what each kind says of itself.
macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        /// What the engine runs.
        pub(crate) fn registry(world: &Arc<World>) -> Registry {
            Registry::new()$(.with($kind(world.clone())))*
        }

        static DESCRIPTIONS: &[kind::Description] = &[$(kind::Description::of::<$kind>()),*];
    };
}

kinds! {
    VmCreate,
    VmStart,
    VmStop,
    VmRestart,
    VmPause,
    VmResume,
    VmDelete,
    VmMigrate,
    VmMigrateStopped,
    HostDrain,
    GuardianGrant,
    GuardianRewrap,
    GuardianRevoke,
    GuardianRotate,
    GuardianSettle,
    TpmEnable,
    TpmDisable,
    TpmRestore,
    TpmRoll,
    TpmUnlock,
    SecureBootEnroll,
    SecureBootRestore,
    VmChange,
    VmClone,
    TemplateCreate,
    VmRecover,
    VmSupersede,
}

/// Input of a job on one VM at one host.
pub(crate) trait OnVm: Data {
    fn vm(&self) -> VmId;
    fn host(&self) -> &HostName;

    /// False: it had memory before the job began, which no undo may throw away.
    fn was_stopped(&self) -> bool {
        true
    }
}

/// The locks of a job on one VM.
pub(crate) fn vm_locks(vm: VmId, name: &VmName) -> Vec<String> {
    vec![subject(vm), name_lock(name)]
}

/// The lock of a name that VMs have.
pub(crate) fn name_lock(name: &VmName) -> String {
    format!("vm-name/{name}")
}

/// What a job under way will take of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reservation {
    pub(crate) host: HostName,
    pub(crate) memory: ByteSize,
    pub(crate) space: BTreeMap<PoolName, ByteSize>,
    /// The VM that comes there: its own jobs do not count against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vm: Option<VmId>,
}

impl Reservation {
    /// What a VM with these needs takes of `host`.
    pub(crate) fn of(world: &World, needs: &Needs, host: &HostName) -> Self {
        let taken = needs.takes(world.inventory.seen(host).facts.as_deref());
        Self {
            host: host.clone(),
            memory: taken.memory,
            space: taken.space,
            vm: needs.vm,
        }
    }
}

/// What became of several VMs, as a job keeps it: its record is one value in the store, so beyond some size VMs are only
/// counted, those that went well first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Outcomes {
    results: Vec<VmOutcome>,
    summary: BTreeMap<Outcome, usize>,
    /// Counted, and not among the results.
    #[serde(default)]
    not_listed: usize,
}

/// Bytes of results; a step's output has at most 64 KiB.
const RESULTS_BUDGET: usize = 56 * 1024;

impl Outcomes {
    fn of(all: Vec<VmOutcome>) -> Self {
        let mut summary = BTreeMap::from([
            (Outcome::Succeeded, 0),
            (Outcome::Failed, 0),
            (Outcome::Skipped, 0),
        ]);
        for one in &all {
            *summary.entry(one.outcome).or_default() += 1;
        }
        let size = |one: &VmOutcome| serde_json::to_string(one).map_or(0, |text| text.len() + 1);
        let mut left = RESULTS_BUDGET;
        let mut listed = vec![false; all.len()];
        for which in [Outcome::Failed, Outcome::Skipped, Outcome::Succeeded] {
            for (one, listed) in all.iter().zip(&mut listed) {
                if one.outcome == which {
                    let rest = left.checked_sub(size(one));
                    *listed = rest.is_some();
                    left = rest.unwrap_or(0);
                }
            }
        }
        let not_listed = listed.iter().filter(|listed| !**listed).count();
        let results = all.into_iter().zip(listed);
        Self {
            results: results
                .filter_map(|(one, keep)| keep.then_some(one))
                .collect(),
            summary,
            not_listed,
        }
    }

    /// Of a step of an ended job; a record of an earlier version lists all of them.
    fn recorded(job: &Job, step: &str) -> Option<Self> {
        job.output(step)
            .or_else(|| job.output::<Vec<VmOutcome>>(step).map(Self::of))
    }

    /// With what became of others, which are not in the step's record.
    fn and(mut self, others: &[VmOutcome]) -> Self {
        for one in others {
            *self.summary.entry(one.outcome).or_default() += 1;
            self.results.push(one.clone());
        }
        self
    }

    /// As bulk commands tell it.
    fn of_host(self, host: &HostName) -> GrantReport {
        GrantReport {
            host: host.clone(),
            results: self.results,
            summary: self.summary,
            not_listed: self.not_listed,
        }
    }
}
