//! What a job that is done reports: one type for each kind, the `result` of its [`JobView`](crate::controller::JobView).

use crate::controller::{Outcome, VmOutcome};
use fleetward_model::change::ChangeKind;
use fleetward_model::clone::CloneTpm;
use fleetward_model::vm::StoppedBy;
use fleetward_model::{ErrorCode, Failure, GuardianId, HostName, TemplateName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// `vm-create`: the new VM.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreateReport {
    pub vm: VmName,
    pub id: VmId,
    pub host: HostName,
}

/// `vm-migrate`, `vm-migrate-stopped`: how long it took, how long the guest stood still, how much went over the wire.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MigrateReport {
    pub vm: VmName,
    pub from: HostName,
    pub to: HostName,
    pub live: bool,
    pub total_ms: u64,
    /// None of a VM that was stopped.
    pub downtime_ms: Option<u64>,
    pub hand_over_ms: u64,
    pub transferred_bytes: u64,
}

/// `vm-clone`: the clone, and what it cost the source's guest.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CloneReport {
    pub vm: VmName,
    pub id: VmId,
    pub host: HostName,
    /// The source.
    pub from: VmName,
    pub tpm: CloneTpm,
    /// How long the source's guest stood still; none when it was stopped.
    pub paused_ms: Option<u64>,
    /// Whether both build on what were the source's disks.
    pub linked: bool,
}

/// `template-create`: the template, and what it cost the source's guest.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateReport {
    pub template: TemplateName,
    /// The source.
    pub from: VmName,
    /// How long the source's guest stood still; none when it was stopped.
    pub paused_ms: Option<u64>,
}

/// `tpm-enable`, `tpm-disable`, `tpm-restore`, `tpm-roll`, `tpm-unlock`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TpmReport {
    pub vm: VmName,
    pub host: HostName,
    /// What a restore brought back.
    pub version: Option<u64>,
}

/// `vm-stop` and `vm-restart`: what ended the guest.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StopReport {
    /// None where the VM was stopped already, and where the host's agent is too old to tell.
    pub by: Option<StoppedBy>,
}

/// `vm-recover`: where the VM is now, and from when its TPM is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RecoverReport {
    pub vm: VmName,
    /// The hosts that are lost.
    pub from: Vec<HostName>,
    pub to: HostName,
    /// Of the TPM; none without one.
    pub version: Option<u64>,
    /// The version is not of the state that the lost host last reported.
    pub outdated: bool,
    #[serde(with = "time::serde::rfc3339::option")]
    pub made: Option<OffsetDateTime>,
}

/// `host-drain`: where each VM went.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DrainReport {
    pub host: HostName,
    pub moved: Vec<DrainedVm>,
}

/// What became of one VM of a drained host.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DrainedVm {
    pub vm: VmName,
    /// None where no host could take it.
    pub to: Option<HostName>,
    pub failure: Option<Failure>,
}

/// `guardian-grant`: what became of each VM.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GrantReport {
    pub host: HostName,
    pub results: Vec<VmOutcome>,
    pub summary: BTreeMap<Outcome, usize>,
    /// Counted, and not among the results.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_listed: usize,
}

/// `guardian-rotate`, `guardian-settle`: what became of each VM, and of the pairs.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RotateReport {
    #[serde(flatten)]
    pub vms: GrantReport,
    /// The host's own guardian from now on; none where a rotation is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guardian: Option<GuardianId>,
    pub retired: Vec<GuardianId>,
    /// VMs that keep a former guardian in use.
    pub still_needed_by: usize,
}

/// `guardian-revoke`: whether the key was rolled, and why not yet.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RevokeReport {
    pub vm: VmName,
    /// As it was asked for: a host or a guardian.
    pub from: String,
    pub guardians: Vec<GuardianId>,
    pub rolled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// What the roll waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<String>,
}

/// `vm-change`: what was changed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChangeReport {
    /// Its name now.
    pub vm: VmName,
    pub host: HostName,
    /// What the VM has already.
    pub now: BTreeSet<ChangeKind>,
    /// What it has after its next start.
    pub next_start: BTreeSet<ChangeKind>,
    /// Volumes that it does not have any more and that were kept: where they lie on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}
