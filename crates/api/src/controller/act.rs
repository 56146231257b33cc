//! What a VM is asked to do or to become, and the answers.

use fleetward_model::change::PlannedStep;
use fleetward_model::clone::CloneTpm;
use fleetward_model::error::Finding;
use fleetward_model::keys::KeyInput;
use fleetward_model::machine::{BootFirst, Clock};
use fleetward_model::spec::Description;
use fleetward_model::{HostName, JobId, LabelKey, VmName, change};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// `PATCH /v1/vms/{vm}`. What is not named stays as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// A new name; only while the VM is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VmName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<change::Cpus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<change::Memory>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Description>,
    /// Labels that get a value; those with null go.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, Option<change::LabelValue>>,
    /// Whether its host starts it after a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// Whether its host starts it again when its guest crashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_on_crash: Option<bool>,
    /// What its firmware tries first; a running VM has it after its next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootFirst>,
    /// Which time its clock keeps; a running VM has it after its next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    /// On: a new TPM. Off: the TPM goes into the history. Only while the VM is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<bool>,
    /// Network cards that are added, changed or removed, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<change::NicChange>,
    /// Disks that come, grow, move or go, in this order. A running VM has a SATA disk after its next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<change::DiskChange>,
    /// Drives and media that come and go, in this order. A running VM has another drive after its next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<change::DriveChange>,
    /// Say what would be done, and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

impl ChangeRequest {
    /// What is wanted of the VM, without what only the controller knows.
    pub fn wanted(self) -> change::Wanted {
        change::Wanted {
            tpm: self.tpm,
            cpus: self.cpus,
            memory: self.memory_bytes,
            description: self.description,
            labels: self.labels,
            autostart: self.autostart,
            restart_on_crash: self.restart_on_crash,
            boot: self.boot,
            clock: self.clock,
            name: self.name,
            nics: self.nics,
            disks: self.disks,
            drives: self.drives,
            media: BTreeMap::new(),
        }
    }
}

/// Answer to `PATCH /v1/vms/{vm}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChangeAnswer {
    /// None: there is nothing to do, or it was only asked what would be done.
    pub job: Option<JobId>,
    /// What is changed, in this order; empty when the VM is as wanted.
    pub steps: Vec<PlannedStep>,
}

/// `POST /v1/vms/{vm}/stop`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Cut the power instead of asking the guest.
    #[serde(default)]
    pub force: bool,
    /// Seconds to wait for the guest, 1 to 3,600.
    #[serde(default = "two_minutes")]
    pub deadline_seconds: u32,
}

fn two_minutes() -> u32 {
    120
}

/// `POST /v1/vms/{vm}/keys`. Text may be a password: it is passed on, and nobody keeps or logs it.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmKeysRequest {
    /// One after the other; together at most 1,000 keystrokes.
    pub keys: Vec<KeyInput>,
}

/// What was typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeysTyped {
    /// Number of keystrokes; keys that are pressed together count as one.
    pub keystrokes: usize,
}

/// `POST /v1/vms/{vm}/tpm/enable`, `disable`, `restore` and `roll`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TpmRequest {
    /// A running VM is asked to shut down, and started again afterwards. Its power is never cut.
    #[serde(default)]
    pub stop_and_restart: bool,
    /// Seconds the guest gets for that, 1 to 3,600.
    #[serde(default = "two_minutes")]
    pub deadline_seconds: u32,
    /// `restore` only: the version of `tpm history`; none: the newest, for a VM whose TPM is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// `POST /v1/vms/{vm}/secure-boot/enroll` and `restore`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecureBootRequest {
    /// A running VM is asked to shut down, and started again afterwards. Its power is never cut.
    #[serde(default)]
    pub stop_and_restart: bool,
    /// Seconds the guest gets for that, 1 to 3,600.
    #[serde(default = "two_minutes")]
    pub deadline_seconds: u32,
}

/// `POST /v1/vms/{vm}/migrate`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    pub to: HostName,
    /// The VM is stopped and stays so.
    #[serde(default)]
    pub offline: bool,
}

/// `POST /v1/vms/{vm}/recover`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecoverRequest {
    pub to: HostName,
    /// A version of the TPM's history; none: the newest.
    #[serde(default)]
    pub version: Option<u64>,
    /// Also from a newest copy that is not of the state which the VM's host last reported. A version that is named is taken
    /// as it is.
    #[serde(default)]
    pub outdated: bool,
    /// Only says whether it could be done, by a refusal or by an answer without a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// `POST /v1/vms/{vm}/settle`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettleRequest {
    /// The host whose VM is the right one.
    pub host: HostName,
}

/// What a settled dispute means.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SettleAnswer {
    /// The host that has the VM.
    pub host: HostName,
    /// Hosts whose claim counts for nothing now. What they have is ended as soon as they can be asked.
    pub ended: Vec<HostName>,
}

/// Answer of everything that takes long (HTTP 202), and of what turned out to be done already.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// None: nothing had to be done.
    pub job: Option<JobId>,
}

/// `POST /v1/vms/{vm}/clone`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneRequest {
    /// The new VM.
    pub name: VmName,
    /// None: a new TPM where the source has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<CloneTpm>,
    /// Another host of the source's group; none: the source's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// A full copy of the disks. Else the clone builds on the source's disks where both lie in one pool: it takes no room
    /// and no time, and the source goes on over what were its disks, too.
    #[serde(default)]
    pub full: bool,
    /// Only says whether it could be done, by a refusal or by an answer without a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// Answer of a clone and of a new template: the job, and what to know before relying on the result.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AcceptedWithWarnings {
    /// None: it was a dry run.
    pub job: Option<JobId>,
    pub warnings: Vec<Finding>,
}

/// Codes of the last frame of a screen's WebSocket; its reason is a sentence.
pub mod screen_end {
    /// The VM does not run any more.
    pub const STOPPED: u16 = 4001;
    /// It can be opened again: the VM has moved to another host, or its host was interrupted.
    pub const INTERRUPTED: u16 = 4002;
}
