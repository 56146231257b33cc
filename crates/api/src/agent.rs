//! The agent's API: spoken by the controller over mutual TLS, and by nobody else.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /v1/events` | | stream of [`AgentEvent`], a snapshot first |
//! | `POST /v1/operations` | [`OperationRequest`] | stream of [`OperationLine`], the last one `Done` or `Failed` |
//! | `POST /v1/operations/cancel` | [`CancelRequest`] | 204 |
//! | `POST /v1/questions` | [`Question`] | [`IncomingAnswer`] |
//! | `GET /v1/vms/{id}` | | [`VmDetail`] |
//! | `GET /v1/vms/{id}/tpm` | | [`crate::tpm::TpmBundle`], read consistently, of a copy that is the VM |
//! | `GET /v1/vms/{id}/console` | | upgrade to raw bytes (`Upgrade: fleetward-console`) |
//! | `GET /v1/images/{sha256}` | | 204 when present, 404 |
//! | `PUT /v1/images/{sha256}?format=` | the file | 204 |
//! | `DELETE /v1/images/{sha256}` | | 204 |
//! | `POST /v1/guardians` | [`GuardianChange`] | [`GuardianFacts`](fleetward_model::guardian::GuardianFacts) |
//! | `GET /v1/copies/{id}/{item}` | | a file that `CopyVm` made for that id: a disk by its target, or `variables` |
//! | `GET /v1/audit?after=N` | | list of audit records, oldest first |
//! | `POST /v1/audit/witness` | [`AuditHead`], or null to ask only | [`AuditHead`] or null |
//!
//! An operation runs on when the connection that started it breaks: asking for the same (job, VM, operation) again
//! attaches to it, or starts it again where a restarted agent has forgotten it. Each operation is safe to repeat.

use crate::tpm::TpmBundle;
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::host::HostFacts;
use fleetward_model::vm::{VmMetadata, VmObserved, VmSpec, VolumeSource};
use fleetward_model::{Failure, GuardianId, HostName, JobId, KeyId, VmId};
use serde::{Deserialize, Serialize};

pub const EVENTS: &str = "/v1/events";
pub const OPERATIONS: &str = "/v1/operations";
pub const OPERATIONS_CANCEL: &str = "/v1/operations/cancel";
pub const QUESTIONS: &str = "/v1/questions";
pub const VM: &str = "/v1/vms/{id}";
pub const VM_TPM: &str = "/v1/vms/{id}/tpm";
pub const VM_CONSOLE: &str = "/v1/vms/{id}/console";
pub const IMAGE: &str = "/v1/images/{sha256}";
pub const GUARDIANS: &str = "/v1/guardians";
pub const COPY: &str = "/v1/copies/{id}/{item}";
pub const AUDIT: &str = "/v1/audit";
pub const AUDIT_WITNESS: &str = "/v1/audit/witness";

/// Token of the console's HTTP upgrade.
pub const CONSOLE_PROTOCOL: &str = "fleetward-console";

/// Something the controller should know, in the order it happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AgentEvent {
    /// Everything; the first line of every stream, and again after libvirt was away.
    Snapshot {
        facts: Box<HostFacts>,
        vms: Vec<VmObserved>,
    },
    /// The host's facts, every few seconds: also the sign of life.
    Facts {
        facts: Box<HostFacts>,
    },
    VmChanged {
        vm: Box<VmObserved>,
    },
    VmRemoved {
        id: VmId,
    },
}

/// One operation on one VM, for one job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OperationRequest {
    pub job: JobId,
    /// Fencing: refused with `STALE_GENERATION` when older than what the host has done for this VM.
    pub generation: u64,
    pub vm: VmId,
    pub operation: Operation,
}

/// A disk that is to arrive by migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingDisk {
    pub target: String,
    /// False: it lies in a directory that both hosts share.
    pub copy: bool,
}

/// What is to change about who can open a VM's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRewrap {
    #[serde(default)]
    pub add: Vec<EndorsedGuardian>,
    #[serde(default)]
    pub drop: Vec<GuardianId>,
    /// Guardians that may be wrapped for, or sign, although they have expired: the administrator named them.
    #[serde(default)]
    pub expired: Vec<GuardianId>,
    /// What the guardians in `add` were before: a grant by name lifts these revocations too, unless a roll is due for them.
    #[serde(default)]
    pub former: Vec<GuardianId>,
    pub why: RewrapReason,
}

/// Why, which decides what becomes of earlier revocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewrapReason {
    /// The fleet grants by itself inside a group: never to whom the key was taken away from by name.
    Automatic,
    /// An administrator granted by name, which lifts an earlier revocation.
    Granted,
    /// An administrator revoked by name, which is remembered.
    Revoked,
    /// A guardian's pair is exchanged for its successor's.
    Rotated,
}

/// What the host's own guardian goes through when it is rotated: `POST /v1/guardians`, answered with the
/// [`GuardianFacts`](fleetward_model::guardian::GuardianFacts) of the guardian that is meant. Each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum GuardianChange {
    /// Makes a new pair beside the host's own, once for each job. Undone by `DiscardSuccessor`.
    MakeSuccessor { job: JobId },
    /// Forgets a successor that never became the host's own. Answer: the host's own.
    DiscardSuccessor { job: JobId },
    /// The successor becomes the host's own; the former own still opens.
    Adopt { guardian: GuardianId, job: JobId },
    /// Nothing depends on a former own any more. Refused while a VM of this host does.
    Retire { guardian: GuardianId, job: JobId },
}

/// How far somebody has seen a chain of audit records: `POST /v1/audit/witness` gives the controller's to a host,
/// which keeps the newest and answers with the one it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    pub seq: u64,
    /// Hash of that record.
    pub hash: String,
}

/// The other host of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub host: HostName,
    /// `address:port` of its agent.
    pub address: String,
}

/// What an agent can be asked to do. Each variant's documentation names the operation that undoes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Operation {
    /// Makes the disks of the specification; images are present already. `sources` has one entry for each disk, same
    /// order; missing ones mean empty disks. Undone by `DeleteVolumes`.
    CreateVolumes {
        spec: VmSpec,
        #[serde(default)]
        sources: Vec<VolumeSource>,
    },
    /// Removes the files of the specification's disks. Refused while the VM is defined and not stopped.
    DeleteVolumes { spec: VmSpec },
    /// On the VM that is copied, running or stopped: makes what another one, `to`, begins with. Its volumes are full copies,
    /// disk by disk, or with `linked`, where they can be, overlays over the disks, which the VM then goes on over too; with `variables` it gets the UEFI variables, with `tpm_state` the encrypted TPM state and key
    /// protector are kept aside for `CopyTpm`. Of a running VM all of it is of one moment, at which the guest is paused.
    /// Answer `Copied`. Undone by `UncopyVm`.
    CopyVm {
        to: Box<VmSpec>,
        variables: bool,
        tpm_state: bool,
        #[serde(default)]
        linked: bool,
    },
    /// Removes what `CopyVm` made, ends a copy under way, lets the VM run on. Refused once `to` is defined.
    UncopyVm { to: Box<VmSpec> },
    /// Makes the copied TPM state this VM's own: encrypted anew under a key of its own, with its own key protector. Answer
    /// `TpmMade`. Undone by `RemoveTpm`.
    CopyTpm { recipients: Vec<EndorsedGuardian> },
    /// Puts UEFI variables from the image cache in place, before the VM is defined. Undone by `Undefine`.
    PlaceVariables { sha256: String },
    /// Makes a TPM for a VM that has none: state in place, key protector for this host's own guardian and the
    /// recipients. Answer `TpmMade`, the same one when repeated. Undone by `RemoveTpm`.
    MakeTpm { recipients: Vec<EndorsedGuardian> },
    /// Removes the TPM state; with `keep`, moves it to the agent's history with its key protector. With `history`, the VM is
    /// gone for good, and its history goes too.
    RemoveTpm {
        keep: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        history: bool,
    },
    /// Defines a stopped VM with the TPM that was made for it. Undone by `DetachTpm`.
    AttachTpm,
    /// Defines a stopped VM without its TPM, which stays on the disk. Undone by `AttachTpm`.
    DetachTpm,
    /// Moves the TPM of a VM that is defined without one into the agent's history; none is fine.
    SetAsideTpm,
    /// Encrypts a stopped VM's TPM under a new key for this host and `to`, beside the one there is. Answer `Protector`.
    /// Undone by `AbandonTpm`.
    PrepareRoll { to: Vec<EndorsedGuardian> },
    /// Proves that a kept version is the VM's and opens here, and lays it ready. Answer `Protector`. Undone by `AbandonTpm`.
    PrepareRestore { bundle: Box<TpmBundle> },
    /// From here on forward only: puts what was prepared, with that key protector, in place; what was there goes into the
    /// history.
    CommitTpm { key_protector: String },
    /// Drops what was prepared.
    AbandonTpm,
    /// Defines the domain. Undone by `Undefine`.
    Define { metadata: Box<VmMetadata> },
    /// Removes the definition and the UEFI variables of a stopped VM.
    Undefine,
    /// Opens the key protector, loads the secret, starts. Refused when it cannot be opened. Undone by `Stop` with force.
    Start,
    /// Asks the guest to shut down and waits; or cuts the power.
    Stop { force: bool, deadline_seconds: u32 },
    /// Source of a migration: wraps the key for endorsed guardians too, keeping it. Answer `Protector`.
    /// Undone by `PutProtector` with the former one.
    Grant { to: Vec<EndorsedGuardian> },
    /// Wraps the key for endorsed guardians too and takes wrappings away, in one step; the key and all other wrappings stay.
    /// Answer `Protector`. Not undone: what it grants is allowed, and what it takes away is given back by granting.
    Rewrap { change: KeyRewrap },
    /// Puts back a key protector for the same key.
    PutProtector { key_protector: String },
    /// Destination: opens the key protector, loads the secret, makes volumes for what is copied, listens.
    /// Undone by `AbandonIncoming`.
    PrepareIncoming {
        metadata: Box<VmMetadata>,
        disks: Vec<IncomingDisk>,
        live: bool,
        from: Peer,
    },
    /// Destination: removes everything of an arrival that will not be completed. Refused once it is committed.
    AbandonIncoming {
        spec: VmSpec,
        disks: Vec<IncomingDisk>,
    },
    /// Rebuilds a VM whose host is lost: TPM and UEFI variables from a copy, disks as they lie in their pools here. Then
    /// `CommitIncoming`, not live. Undone by `AbandonIncoming`, which leaves the disks.
    RebuildIncoming {
        metadata: Box<VmMetadata>,
        /// None for a VM without a TPM.
        bundle: Option<Box<TpmBundle>>,
    },
    /// A host that was lost and is back: the VM has been rebuilt elsewhere. From here on forward only: ends the copy here,
    /// keeps its TPM in the history, marks it as departed. Then `CleanUpDeparted`, without disks.
    Supersede,
    /// Source: moves the running VM; it arrives paused. Answer `Migrated`. A repeat after success answers again.
    MigrateLive { to: Peer, disks: Vec<IncomingDisk> },
    /// Source: sends disks, UEFI variables and TPM state of a stopped VM. Answer `Migrated`.
    SendStopped { to: Peer, disks: Vec<IncomingDisk> },
    /// Source: whether the VM's memory has left for good. Answer `MigrationState`.
    MigrationState,
    /// Source, from here on forward only: marks the copy here as departed, so that nothing starts it again.
    Depart,
    /// Destination: it is the VM now; lets it run when it came running.
    CommitIncoming { live: bool },
    /// Source: removes what stayed behind (definition, variables, copied volumes, TPM state, secret).
    CleanUpDeparted {
        spec: VmSpec,
        disks: Vec<IncomingDisk>,
    },
}

impl Operation {
    /// Name in failpoints, logs and audit records.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CreateVolumes { .. } => "create-volumes",
            Self::DeleteVolumes { .. } => "delete-volumes",
            Self::CopyVm { .. } => "copy-vm",
            Self::UncopyVm { .. } => "uncopy-vm",
            Self::CopyTpm { .. } => "copy-tpm",
            Self::PlaceVariables { .. } => "place-variables",
            Self::MakeTpm { .. } => "make-tpm",
            Self::RemoveTpm { .. } => "remove-tpm",
            Self::AttachTpm => "attach-tpm",
            Self::DetachTpm => "detach-tpm",
            Self::SetAsideTpm => "set-aside-tpm",
            Self::PrepareRoll { .. } => "prepare-roll",
            Self::PrepareRestore { .. } => "prepare-restore",
            Self::CommitTpm { .. } => "commit-tpm",
            Self::AbandonTpm => "abandon-tpm",
            Self::Define { .. } => "define",
            Self::Undefine => "undefine",
            Self::Start => "start",
            Self::Stop { .. } => "stop",
            Self::Grant { .. } => "grant",
            Self::Rewrap { .. } => "rewrap",
            Self::PutProtector { .. } => "put-protector",
            Self::PrepareIncoming { .. } => "prepare-incoming",
            Self::AbandonIncoming { .. } => "abandon-incoming",
            Self::RebuildIncoming { .. } => "rebuild-incoming",
            Self::Supersede => "supersede",
            Self::MigrateLive { .. } => "migrate-live",
            Self::SendStopped { .. } => "send-stopped",
            Self::MigrationState => "migration-state",
            Self::Depart => "depart",
            Self::CommitIncoming { .. } => "commit-incoming",
            Self::CleanUpDeparted { .. } => "clean-up-departed",
        }
    }
}

/// What an operation answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum OperationResult {
    Nothing,
    TpmMade {
        /// Base64 of the DER.
        key_protector: String,
        key_id: KeyId,
        /// Base64 of the DER.
        ek_certificate: String,
    },
    Protector {
        key_protector: String,
    },
    Copied {
        /// How long the guest stood still; none when it was stopped.
        paused_ms: Option<u64>,
        /// Whether there are UEFI variables: a VM that never started has none.
        variables: bool,
        /// Whether both build on what were the VM's disks.
        #[serde(default)]
        linked: bool,
    },
    Migrated {
        total_ms: u64,
        /// Pause of the guest so far, as libvirt measured it; the controller adds the hand-over.
        downtime_ms: Option<u64>,
        transferred: u64,
    },
    MigrationState {
        state: SourceState,
    },
    /// After `CommitIncoming` of a live migration: how long after the source's stop the guest ran again.
    Committed,
}

/// Where a VM's memory is, as its source sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// It runs here, is paused here, or has ended by itself here: this copy is the VM, the migration is undone.
    Here,
    /// It has left: the destination's copy is the VM's only memory, from here on it goes forward.
    NotHere,
}

/// A line of an operation's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum OperationLine {
    Progress {
        /// Bytes.
        done: u64,
        /// Bytes; may grow.
        total: u64,
        text: String,
    },
    Done {
        result: OperationResult,
    },
    Failed {
        failure: Failure,
        /// Trying the same again later may help without anybody acting.
        transient: bool,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CancelRequest {
    pub job: JobId,
    pub vm: VmId,
}

/// What preflight asks a possible destination, beyond its facts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Question {
    pub metadata: VmMetadata,
    /// The running guest's CPU; none when it is stopped.
    pub cpu_xml: Option<String>,
}

/// The destination's answer. Each is none when it could not be found out, which counts as failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IncomingAnswer {
    pub uuid_taken: Option<bool>,
    pub name_taken: Option<bool>,
    /// None when the CPU fits; else what is missing.
    pub cpu_problem: Option<String>,
    pub can_open: CanOpen,
}

/// Whether a host can open a key protector now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "can_open", rename_all = "snake_case")]
pub enum CanOpen {
    /// The VM has no TPM.
    NoTpm,
    Yes,
    /// No guardian of this host is among its recipients.
    NotGranted,
    /// It is, but it does not open.
    Unreadable {
        because: String,
    },
}

/// One VM with what only its host knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmDetail {
    pub vm: VmObserved,
    pub cpu_xml: Option<String>,
    /// Whether the host can open the key protector.
    pub can_open: CanOpen,
}
