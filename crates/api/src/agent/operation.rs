//! What an agent can be asked to do with a VM: a type for each operation, with the type of its answer.
//!
//! On the wire an operation is an [`Operation`] and its answer an [`OperationResult`], tagged with their names; nobody but
//! this file turns one into the other.

use super::{IncomingDisk, KeyRewrap, Peer};
use crate::tpm::TpmBundle;
use fleetward_model::change::{ChangeStep, Direction};
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::host::Formats;
use fleetward_model::network::NetworkPlace;
use fleetward_model::vm::{DiskSpec, StoppedBy, VmMetadata, VmSpec, VolumeSource};
use fleetward_model::{KeyId, NetworkName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One thing that an agent can be asked to do. Each type's documentation names the operation that undoes it.
pub trait HostOperation: Into<Operation> + Send {
    /// Name in failpoints, logs and audit records.
    const NAME: &'static str;

    type Answer: Answer;
}

/// What an operation answers.
pub trait Answer: Into<OperationResult> + Sized {
    /// The answer in `result`.
    ///
    /// # Errors
    ///
    /// `result` itself, where it is the answer of another operation.
    fn from_result(result: OperationResult) -> Result<Self, Box<OperationResult>>;
}

/// The wire's side of all operations: the tagged enum, and each type's name and answer.
macro_rules! operations {
    ($($operation:ident, $name:literal => $answer:ty;)*) => {
        /// Any operation, as it is sent.
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(tag = "do", rename_all = "snake_case")]
        pub enum Operation {
            $($operation($operation),)*
        }

        impl Operation {
            /// Name in failpoints, logs and audit records.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$operation(_) => $operation::NAME,)*
                }
            }
        }

        $(
            impl HostOperation for $operation {
                const NAME: &'static str = $name;
                type Answer = $answer;
            }

            impl From<$operation> for Operation {
                fn from(operation: $operation) -> Self {
                    Self::$operation(operation)
                }
            }
        )*
    };
}

impl Operation {
    /// The versions that an agent must know to carry it out.
    pub fn formats(&self) -> Formats {
        let specs = self.specs();
        let versions = specs.iter().flatten().map(|spec| spec.version());
        Formats {
            spec: versions.max().unwrap_or(1),
            operations: match self {
                Self::Pause(_) | Self::Resume(_) => Formats::POWER,
                Self::ChangeVm(ChangeVm { steps, .. }) => Formats::of_steps(steps).operations,
                Self::DropVolumes(_) => Formats::DEVICES,
                Self::EnrollCertificates(_) | Self::RestoreCertificates(_) => Formats::SECURE_BOOT,
                Self::PrepareUnlock(_) => Formats::UNLOCK,
                _ => 1,
            },
            ..Formats::default()
        }
    }

    /// Those that it carries: a kept TPM has the specification of its time.
    fn specs(&self) -> [Option<&VmSpec>; 2] {
        let one: Option<&VmSpec> = match self {
            Self::CreateVolumes(CreateVolumes { spec, .. })
            | Self::DeleteVolumes(DeleteVolumes { spec })
            | Self::AbandonIncoming(AbandonIncoming { spec, .. })
            | Self::CleanUpDeparted(CleanUpDeparted { spec, .. }) => Some(spec),
            Self::CopyVm(CopyVm { to, .. }) | Self::UncopyVm(UncopyVm { to }) => Some(to),
            Self::Define(Define { metadata, .. })
            | Self::PrepareIncoming(PrepareIncoming { metadata, .. }) => Some(&metadata.spec),
            Self::RebuildIncoming(RebuildIncoming {
                metadata, bundle, ..
            }) => {
                let kept = bundle.as_ref().map(|bundle| &bundle.metadata.spec);
                return [Some(&metadata.spec), kept];
            }
            Self::PrepareRestore(PrepareRestore { bundle }) => Some(&bundle.metadata.spec),
            Self::CopyTpm(_)
            | Self::PlaceVariables(_)
            | Self::MakeTpm(_)
            | Self::RemoveTpm(_)
            | Self::AttachTpm(_)
            | Self::DetachTpm(_)
            | Self::SetAsideTpm(_)
            | Self::PrepareRoll(_)
            | Self::PrepareUnlock(_)
            | Self::CommitTpm(_)
            | Self::AbandonTpm(_)
            | Self::ChangeVm(_)
            | Self::DropVolumes(_)
            | Self::Undefine(_)
            | Self::Start(_)
            | Self::Stop(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Grant(_)
            | Self::Rewrap(_)
            | Self::PutProtector(_)
            | Self::EnrollCertificates(_)
            | Self::RestoreCertificates(_)
            | Self::Supersede(_)
            | Self::MigrateLive(_)
            | Self::SendStopped(_)
            | Self::MigrationState(_)
            | Self::Depart(_)
            | Self::CommitIncoming(_) => None,
        };
        [one, None]
    }
}

operations! {
    CreateVolumes, "create-volumes" => ();
    DeleteVolumes, "delete-volumes" => ();
    CopyVm, "copy-vm" => Copied;
    UncopyVm, "uncopy-vm" => ();
    CopyTpm, "copy-tpm" => TpmMade;
    PlaceVariables, "place-variables" => ();
    MakeTpm, "make-tpm" => TpmMade;
    RemoveTpm, "remove-tpm" => ();
    AttachTpm, "attach-tpm" => ();
    DetachTpm, "detach-tpm" => ();
    SetAsideTpm, "set-aside-tpm" => ();
    PrepareRoll, "prepare-roll" => Protector;
    PrepareRestore, "prepare-restore" => Protector;
    PrepareUnlock, "prepare-unlock" => Protector;
    CommitTpm, "commit-tpm" => ();
    AbandonTpm, "abandon-tpm" => ();
    Define, "define" => ();
    ChangeVm, "change-vm" => ();
    DropVolumes, "drop-volumes" => ();
    Undefine, "undefine" => ();
    Start, "start" => ();
    Stop, "stop" => Stopped;
    Pause, "pause" => ();
    Resume, "resume" => ();
    Grant, "grant" => Protector;
    Rewrap, "rewrap" => Protector;
    PutProtector, "put-protector" => ();
    EnrollCertificates, "enroll-certificates" => ();
    RestoreCertificates, "restore-certificates" => ();
    PrepareIncoming, "prepare-incoming" => ();
    AbandonIncoming, "abandon-incoming" => ();
    RebuildIncoming, "rebuild-incoming" => ();
    Supersede, "supersede" => ();
    MigrateLive, "migrate-live" => Migrated;
    SendStopped, "send-stopped" => Migrated;
    MigrationState, "migration-state" => SourceState;
    Depart, "depart" => ();
    CommitIncoming, "commit-incoming" => Committed;
    CleanUpDeparted, "clean-up-departed" => ();
}

/// Makes the disks of the specification; images are present already. `sources` has one entry for each disk, same
/// order; missing ones mean empty disks. Undone by `DeleteVolumes`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateVolumes {
    pub spec: VmSpec,
    #[serde(default)]
    pub sources: Vec<VolumeSource>,
}

/// Removes the files of the specification's disks. Refused while the VM is defined and not stopped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeleteVolumes {
    pub spec: VmSpec,
}

/// On the VM that is copied, running or stopped: makes what another one, `to`, begins with. Its volumes are full copies,
/// disk by disk, or with `linked`, where they can be, overlays over the disks, which the VM then goes on over too; with `variables` it gets the UEFI variables, with `tpm_state` the encrypted TPM state and key
/// protector are kept aside for `CopyTpm`. Of a running VM all of it is of one moment, at which the guest is paused. Undone by `UncopyVm`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CopyVm {
    pub to: Box<VmSpec>,
    pub variables: bool,
    pub tpm_state: bool,
    #[serde(default)]
    pub linked: bool,
}

/// Removes what `CopyVm` made, ends a copy under way, lets the VM run on. Refused once `to` is defined.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UncopyVm {
    pub to: Box<VmSpec>,
}

/// Makes the copied TPM state this VM's own: encrypted anew under a key of its own, with its own key protector. Undone by `RemoveTpm`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CopyTpm {
    pub recipients: Vec<EndorsedGuardian>,
}

/// Puts UEFI variables from the image cache in place, before the VM is defined. Undone by `Undefine`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlaceVariables {
    pub sha256: String,
}

/// Makes a TPM for a VM that has none: state in place, key protector for this host's own guardian and the
/// recipients. The same one when repeated. Undone by `RemoveTpm`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MakeTpm {
    pub recipients: Vec<EndorsedGuardian>,
}

/// Removes the TPM state; with `keep`, moves it to the agent's history with its key protector. With `history`, the VM is
/// gone for good, and its history goes too.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemoveTpm {
    pub keep: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub history: bool,
}

/// Defines a stopped VM with the TPM that was made for it. Undone by `DetachTpm`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttachTpm {}

/// Defines a stopped VM without its TPM, which stays on the disk. Undone by `AttachTpm`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DetachTpm {}

/// Moves the TPM of a VM that is defined without one into the agent's history; none is fine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SetAsideTpm {}

/// Encrypts a stopped VM's TPM under a new key for this host and `to`, beside the one there is.
/// Undone by `AbandonTpm`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrepareRoll {
    pub to: Vec<EndorsedGuardian>,
}

/// Proves that a kept version is the VM's and opens here, and lays it ready. Undone by `AbandonTpm`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrepareRestore {
    pub bundle: Box<TpmBundle>,
}

/// Clears the lockout counter of a copy of a stopped VM's TPM, under the same key, and lays it ready. Undone by `AbandonTpm`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrepareUnlock {}

/// From here on forward only: puts what was prepared, with that key protector, in place; what was there goes into the
/// history.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommitTpm {
    pub key_protector: String,
}

/// Drops what was prepared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AbandonTpm {}

/// Defines the domain. Undone by `Undefine`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Define {
    pub metadata: Box<VmMetadata>,
}

/// Changes what the steps are about in specification and definition, and nothing else: forward to the new values, in the
/// order given; back to the former ones, where the new ones still stand. A running VM has some of it at its next start.
/// Undone by itself, back. Agents from before it answer `INVALID_REQUEST`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangeVm {
    pub steps: Vec<ChangeStep>,
    pub direction: Direction,
}

/// Removes volumes that the VM had, and that neither its specification nor its definition has any more. Not undone: asked for
/// only when the change that left them over is certain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DropVolumes {
    pub disks: Vec<DiskSpec>,
}

/// Removes the definition and the UEFI variables of a stopped VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Undefine {}

/// Opens the key protector, loads the secret, starts. Refused when it cannot be opened. Undone by `Stop` with force.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {}

/// Asks the guest to shut down, through its guest agent, else with the power button, and waits; or cuts the power.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stop {
    pub force: bool,
    pub deadline_seconds: u32,
    /// Whether the answer is to be [`Stopped`]; an older controller reads only an answer without content.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tell: bool,
}

/// Stops a running VM's processors; its memory stays. Undone by `Resume`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pause {}

/// Lets a paused VM run on. Refused where it is stopped. Undone by `Pause`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resume {}

/// Source of a migration: wraps the key for endorsed guardians too, keeping it.
/// Undone by `PutProtector` with the former one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Grant {
    pub to: Vec<EndorsedGuardian>,
}

/// Wraps the key for endorsed guardians too and takes wrappings away, in one step; the key and all other wrappings stay. Not undone: what it grants is allowed, and what it takes away is given back by granting.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rewrap {
    pub change: KeyRewrap,
}

/// Adds Microsoft's certificates of 2023 to the UEFI variables of a stopped VM, and keeps those it trusted before with its
/// definition. Nothing where none is missing. Undone by `RestoreCertificates` of the same job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrollCertificates {}

/// Puts the certificates from before an enrolment back; nothing where none are kept. With `of_this_job` only what this very job
/// enrolled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreCertificates {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_this_job: bool,
}

/// Puts back a key protector for the same key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PutProtector {
    pub key_protector: String,
}

/// Destination: opens the key protector, loads the secret, makes volumes for what is copied, listens.
/// Undone by `AbandonIncoming`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrepareIncoming {
    pub metadata: Box<VmMetadata>,
    pub disks: Vec<IncomingDisk>,
    pub live: bool,
    pub from: Peer,
    /// States of its TPM from before, as SHA-256 in hex: one of them that is put in place afterwards is told as such. An older
    /// controller knows none, an older agent looks at none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_states: Vec<String>,
}

/// Destination: removes everything of an arrival that will not be completed. Refused once it is committed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AbandonIncoming {
    pub spec: VmSpec,
    pub disks: Vec<IncomingDisk>,
}

/// Rebuilds a VM whose host is lost: TPM and UEFI variables from a copy, disks as they lie in their pools here. Then
/// `CommitIncoming`, not live. Undone by `AbandonIncoming`, which leaves the disks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RebuildIncoming {
    pub metadata: Box<VmMetadata>,
    /// None for a VM without a TPM.
    pub bundle: Option<Box<TpmBundle>>,
    /// Its TPM's other states, as SHA-256 in hex: as in [`PrepareIncoming`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_states: Vec<String>,
}

/// A host that was lost and is back: the VM has been rebuilt elsewhere. From here on forward only: ends the copy here,
/// keeps its TPM in the history, marks it as departed. Then `CleanUpDeparted`, without disks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Supersede {}

/// Source: moves the running VM; it arrives paused. A repeat after success answers again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MigrateLive {
    pub to: Peer,
    pub disks: Vec<IncomingDisk>,
    /// What networks are at the destination; one that is not named is the same there as here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<NetworkName, NetworkPlace>,
}

/// Source: sends disks, UEFI variables and TPM state of a stopped VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SendStopped {
    pub to: Peer,
    pub disks: Vec<IncomingDisk>,
}

/// Source: whether the VM's memory has left for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MigrationState {}

/// Source, from here on forward only: marks the copy here as departed, so that nothing starts it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Depart {}

/// Destination: it is the VM now; lets it run when it came running.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommitIncoming {
    pub live: bool,
}

/// Source: removes what stayed behind (definition, variables, copied volumes, TPM state, secret).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CleanUpDeparted {
    pub spec: VmSpec,
    pub disks: Vec<IncomingDisk>,
}

/// Any operation's answer, as it is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum OperationResult {
    Nothing,
    Stopped(Stopped),
    TpmMade(TpmMade),
    Protector(Protector),
    Copied(Copied),
    Migrated(Migrated),
    MigrationState {
        state: SourceState,
    },
    /// The VM is committed at its destination; a live one runs again.
    Committed,
}

/// How a VM was stopped. An older agent does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<StoppedBy>,
}

/// A VM's new TPM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TpmMade {
    /// Base64 of the DER.
    pub key_protector: String,
    pub key_id: KeyId,
    /// Base64 of the DER.
    pub ek_certificate: String,
}

/// A VM's key protector as the operation left it, or prepared it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protector {
    /// Base64 of the DER.
    pub key_protector: String,
}

/// What a copy took of the VM that was copied.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copied {
    /// How long the guest stood still; none when it was stopped.
    pub paused_ms: Option<u64>,
    /// Whether there are UEFI variables: a VM that never started has none.
    pub variables: bool,
    /// Whether both build on what were the VM's disks.
    #[serde(default)]
    pub linked: bool,
    /// Whether the guest had written everything to its disks, by its agent's word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
}

/// What a transfer took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Migrated {
    pub total_ms: u64,
    /// Pause of the guest so far, as the hypervisor measured it; the controller adds the hand-over.
    pub downtime_ms: Option<u64>,
    pub transferred: u64,
}

/// The VM is committed at its destination; a live one runs again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed;

/// Where a VM's memory is, as its source sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// It runs here, is paused here, or has ended by itself here: this copy is the VM, the migration is undone.
    Here,
    /// It has left: the destination's copy is the VM's only memory, from here on it goes forward.
    NotHere,
}

macro_rules! answers {
    ($($answer:ident),*) => {
        $(
            impl From<$answer> for OperationResult {
                fn from(answer: $answer) -> Self {
                    Self::$answer(answer)
                }
            }

            impl Answer for $answer {
                fn from_result(result: OperationResult) -> Result<Self, Box<OperationResult>> {
                    match result {
                        OperationResult::$answer(answer) => Ok(answer),
                        other => Err(Box::new(other)),
                    }
                }
            }
        )*
    };
}

impl From<Stopped> for OperationResult {
    fn from(stopped: Stopped) -> Self {
        match stopped.by {
            Some(_) => Self::Stopped(stopped),
            None => Self::Nothing,
        }
    }
}

impl Answer for Stopped {
    fn from_result(result: OperationResult) -> Result<Self, Box<OperationResult>> {
        match result {
            OperationResult::Stopped(stopped) => Ok(stopped),
            OperationResult::Nothing => Ok(Self::default()),
            other => Err(Box::new(other)),
        }
    }
}

answers!(TpmMade, Protector, Copied, Migrated);

impl From<()> for OperationResult {
    fn from((): ()) -> Self {
        Self::Nothing
    }
}

impl Answer for () {
    fn from_result(result: OperationResult) -> Result<Self, Box<OperationResult>> {
        match result {
            OperationResult::Nothing => Ok(()),
            other => Err(Box::new(other)),
        }
    }
}

impl From<SourceState> for OperationResult {
    fn from(state: SourceState) -> Self {
        Self::MigrationState { state }
    }
}

impl Answer for SourceState {
    fn from_result(result: OperationResult) -> Result<Self, Box<OperationResult>> {
        match result {
            OperationResult::MigrationState { state } => Ok(state),
            other => Err(Box::new(other)),
        }
    }
}

impl From<Committed> for OperationResult {
    fn from(Committed: Committed) -> Self {
        Self::Committed
    }
}

impl Answer for Committed {
    fn from_result(result: OperationResult) -> Result<Self, Box<OperationResult>> {
        match result {
            OperationResult::Committed => Ok(Self),
            other => Err(Box::new(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_wire_is_the_one_that_agents_of_before_the_types_speak() {
        let operations: [(Operation, serde_json::Value); 3] = [
            (Start {}.into(), json!({"do": "start"})),
            (
                Stop {
                    force: true,
                    deadline_seconds: 7,
                    tell: false,
                }
                .into(),
                json!({"do": "stop", "force": true, "deadline_seconds": 7}),
            ),
            (
                RemoveTpm {
                    keep: true,
                    history: false,
                }
                .into(),
                json!({"do": "remove_tpm", "keep": true}),
            ),
        ];
        for (operation, wire) in operations {
            assert_eq!(serde_json::to_value(&operation).unwrap(), wire);
            let read: Operation = serde_json::from_value(wire).unwrap();
            assert_eq!(read.name(), operation.name());
        }
        // What a newer controller says beside it is passed over, also by an operation that is asked with nothing.
        let newer: Operation =
            serde_json::from_value(json!({"do": "undefine", "more": 1})).unwrap();
        assert_eq!(newer.name(), "undefine");

        let results: [(OperationResult, serde_json::Value); 5] = [
            (().into(), json!({"result": "nothing"})),
            (Committed.into(), json!({"result": "committed"})),
            (
                SourceState::NotHere.into(),
                json!({"result": "migration_state", "state": "not_here"}),
            ),
            (
                Protector {
                    key_protector: "cA==".into(),
                }
                .into(),
                json!({"result": "protector", "key_protector": "cA=="}),
            ),
            (
                Copied {
                    paused_ms: None,
                    variables: true,
                    linked: false,
                    frozen: false,
                }
                .into(),
                json!({"result": "copied", "paused_ms": null, "variables": true, "linked": false}),
            ),
        ];
        for (result, wire) in results {
            assert_eq!(serde_json::to_value(&result).unwrap(), wire);
        }
    }

    #[test]
    fn the_answer_of_another_operation_is_named_and_not_taken() {
        let other = <() as Answer>::from_result(Committed.into()).unwrap_err();
        assert!(matches!(*other, OperationResult::Committed));
        let other = Protector::from_result(OperationResult::Nothing).unwrap_err();
        assert!(matches!(*other, OperationResult::Nothing));
    }
}
