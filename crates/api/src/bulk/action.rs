//! What can be asked of many VMs at once: the request of each, the question to admission, and what is said of a VM that it
//! went well for.

use super::Question;
use crate::controller::{
    DeleteQuery, JobView, MigrateRequest, SecureBootRequest, StopRequest, TpmRequest,
};
use fleetward_model::admission::{CertificateChange, Request, TpmChange};
use fleetward_model::vm::StoppedBy;
use fleetward_model::{ErrorCode, Failure};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A verb of one VM, with its request.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum VmAction {
    Start,
    Stop(StopRequest),
    Restart(StopRequest),
    Delete(DeleteQuery),
    Migrate(MigrateRequest),
    TpmEnable(TpmRequest),
    TpmDisable(TpmRequest),
    TpmRestore(TpmRequest),
    TpmRoll(TpmRequest),
    TpmUnlock(TpmRequest),
    SecureBootEnroll(SecureBootRequest),
    SecureBootRestore(SecureBootRequest),
}

impl VmAction {
    /// What admission is asked.
    pub const fn request(&self) -> Request {
        match self {
            Self::Start => Request::Start,
            Self::Stop(StopRequest { force: true, .. }) => Request::ForceStop,
            Self::Stop(StopRequest { force: false, .. }) => Request::Stop,
            Self::Restart(StopRequest { force, .. }) => Request::Restart { force: *force },
            Self::Delete(_) => Request::Delete,
            Self::Migrate(MigrateRequest { offline: true, .. }) => Request::MigrateOffline,
            Self::Migrate(MigrateRequest { offline: false, .. }) => Request::MigrateLive,
            Self::TpmEnable(request) => tpm(TpmChange::Enable, request),
            Self::TpmDisable(request) => tpm(TpmChange::Disable, request),
            Self::TpmRestore(request) => tpm(TpmChange::Restore, request),
            Self::TpmRoll(request) => tpm(TpmChange::Roll, request),
            Self::TpmUnlock(request) => tpm(TpmChange::Unlock, request),
            Self::SecureBootEnroll(request) => certificates(CertificateChange::Enroll, request),
            Self::SecureBootRestore(request) => certificates(CertificateChange::Restore, request),
        }
    }

    /// Whether the request makes sense at all, whichever VM it is made of.
    ///
    /// # Errors
    /// A guest gets no time, or more than an hour.
    pub fn check(&self) -> Result<(), Failure> {
        let seconds = match self {
            Self::Start | Self::Delete(_) | Self::Migrate(_) => return Ok(()),
            Self::Stop(request) | Self::Restart(request) => request.deadline_seconds,
            Self::TpmEnable(request)
            | Self::TpmDisable(request)
            | Self::TpmRestore(request)
            | Self::TpmRoll(request)
            | Self::TpmUnlock(request) => request.deadline_seconds,
            Self::SecureBootEnroll(request) | Self::SecureBootRestore(request) => {
                request.deadline_seconds
            }
        };
        if (1..=3600).contains(&seconds) {
            return Ok(());
        }
        let what = format!("a guest gets 1 to 3600 seconds, not {seconds}");
        Err(Failure::new(ErrorCode::InvalidArgument, what))
    }

    /// What the guest of a VM may lose by it. The VM decides whether there is anything to lose.
    pub const fn question(&self) -> Option<Question> {
        match self {
            Self::TpmDisable(_) => Some(Question::TpmIsLost),
            Self::TpmEnable(_) => Some(Question::NewTpmOpensNothing),
            Self::SecureBootEnroll(_) | Self::SecureBootRestore(_) => Some(Question::Pcr7Changes),
            Self::TpmRestore(TpmRequest {
                version: Some(_), ..
            }) => Some(Question::TpmIsReplaced),
            // Without a version only a VM that has no TPM gets one back.
            Self::TpmRestore(TpmRequest { version: None, .. })
            | Self::TpmRoll(_)
            | Self::TpmUnlock(_)
            | Self::Start
            | Self::Stop(_)
            | Self::Restart(_)
            | Self::Delete(_)
            | Self::Migrate(_) => None,
        }
    }

    /// Said of a VM whose job is done.
    pub fn done(&self, job: &JobView) -> String {
        let number = |key: &str| job.result.as_ref()?.get(key)?.as_u64();
        let mut text = match self {
            Self::Start => "started".to_owned(),
            Self::Stop(_) => stopped(job, "stopped"),
            Self::Restart(_) => stopped(job, "restarted"),
            Self::Delete(_) => "deleted".to_owned(),
            Self::Migrate(MigrateRequest { to, .. }) => match number("downtime_ms") {
                Some(milliseconds) => format!("moved to {to}, downtime {milliseconds} ms"),
                None => format!("moved to {to}"),
            },
            Self::TpmEnable(_) => "TPM enabled".to_owned(),
            Self::TpmDisable(_) => "TPM disabled, and kept in the history".to_owned(),
            Self::TpmRestore(_) => match number("version") {
                Some(version) => format!("version {version} of the TPM brought back"),
                None => "TPM brought back".to_owned(),
            },
            Self::TpmRoll(_) => "TPM key replaced".to_owned(),
            Self::TpmUnlock(_) => "lockout of the TPM cleared".to_owned(),
            Self::SecureBootEnroll(_) => "certificates of 2023 added".to_owned(),
            Self::SecureBootRestore(_) => "former certificates brought back".to_owned(),
        };
        if self.tells_warnings() {
            for warning in &job.warnings {
                text.push_str("; warning: ");
                text.push_str(warning);
            }
        }
        text
    }

    /// Said of a VM that is as it should be already.
    pub const fn already(&self) -> &'static str {
        match self {
            Self::Start => "runs already",
            Self::Stop(_) => "is stopped already",
            Self::Restart(_) => "runs already",
            Self::Delete(_) => "is gone already",
            Self::Migrate(_) => "is there already",
            Self::TpmEnable(_) => "has a TPM already",
            Self::TpmDisable(_) | Self::TpmRestore(_) | Self::TpmRoll(_) | Self::TpmUnlock(_) => {
                "has no TPM"
            }
            Self::SecureBootEnroll(_) => "lacks no certificate",
            Self::SecureBootRestore(_) => "has no former certificates",
        }
    }

    const fn tells_warnings(&self) -> bool {
        match self {
            Self::Start | Self::Stop(_) | Self::Restart(_) | Self::Delete(_) | Self::Migrate(_) => {
                false
            }
            Self::TpmEnable(_)
            | Self::TpmDisable(_)
            | Self::TpmRestore(_)
            | Self::TpmRoll(_)
            | Self::TpmUnlock(_)
            | Self::SecureBootEnroll(_)
            | Self::SecureBootRestore(_) => true,
        }
    }
}

/// With what ended the guest, where its host told.
fn stopped(job: &JobView, done: &str) -> String {
    let by = job.result.as_ref().and_then(|result| result.get("by"));
    match by.and_then(|by| serde_json::from_value(by.clone()).ok()) {
        Some(StoppedBy::GuestAgent) => format!("{done}, by its guest agent"),
        Some(StoppedBy::Acpi) => format!("{done}, by its power button"),
        Some(StoppedBy::PowerOff) => format!("{done}, its power cut"),
        None => done.to_owned(),
    }
}

const fn tpm(change: TpmChange, request: &TpmRequest) -> Request {
    Request::Tpm {
        change,
        restart: request.stop_and_restart,
    }
}

const fn certificates(change: CertificateChange, request: &SecureBootRequest) -> Request {
    Request::Certificates {
        change,
        restart: request.stop_and_restart,
    }
}
