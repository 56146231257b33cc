//! The agent's API. Only the controller calls it, over mutual TLS.
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
//! | `GET /v1/vms/{id}/screen` | | upgrade to RFB, RFC 6143 (`Upgrade: fleetward-screen`) |
//! | `GET /v1/vms/{id}/screenshot` | | the picture, `image/png` |
//! | `POST /v1/vms/{id}/keys` | [`KeysRequest`] | 204, when the last key is up |
//! | `GET /v1/images/{sha256}` | | 204 when present, 404 |
//! | `PUT /v1/images/{sha256}?format=` | the file | 204 |
//! | `DELETE /v1/images/{sha256}` | | 204 |
//! | `GET /v1/conversions` | | [`ConverterState`] |
//! | `POST /v1/conversions?format=&disk=` | the file | stream of [`ConversionLine`], after `Done` the disk |
//! | `POST /v1/guardians` | [`GuardianChange`] | [`GuardianFacts`](fleetward_model::guardian::GuardianFacts) |
//! | `GET /v1/copies/{id}/{item}` | | a file that `CopyVm` made for that id: a disk by its target, or `variables` |
//! | `GET /v1/audit?after=N` | | list of audit records, oldest first |
//! | `POST /v1/audit/witness` | [`AuditHead`], or null to ask only | [`AuditHead`] or null |
//! | `GET /v1/certificate` | | [`CertificateFacts`](fleetward_model::certificate::CertificateFacts) of the host's own |
//! | `POST /v1/certificate` | | [`CertificateRequest`], for a new key pair; replaces an earlier request |
//! | `PUT /v1/certificate` | [`CertificateAnswer`] | the same, presented from now on |
//! | `PUT /v1/refused-certificates` | [`RefusedCertificates`](fleetward_model::certificate::RefusedCertificates) | [`RefusedHeld`]; entries are only added |
//! | `GET /v1/ek-authority` | | [`EkAuthorityHeld`]: what the host issues EK certificates with |
//!
//! An operation continues when the connection that started it breaks. A request with the same job, VM and operation
//! attaches to it, or starts it again if a restarted agent has forgotten it. Each operation can be repeated safely.

pub mod operation;
mod telling;

use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::host::{DiskIo, Formats, HostFacts, Measurements};
use fleetward_model::keys::Chord;
use fleetward_model::load::Load;
use fleetward_model::vm::{VmMetadata, VmReport};
use fleetward_model::{ByteSize, Failure, GuardianId, HostName, JobId, VmId};
use operation::{Operation, OperationResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
pub use telling::Telling;

pub const EVENTS: &str = "/v1/events";
pub const OPERATIONS: &str = "/v1/operations";
pub const OPERATIONS_CANCEL: &str = "/v1/operations/cancel";
pub const QUESTIONS: &str = "/v1/questions";
pub const VM: &str = "/v1/vms/{id}";
pub const VM_TPM: &str = "/v1/vms/{id}/tpm";
pub const VM_CONSOLE: &str = "/v1/vms/{id}/console";
/// What a host keeps of the TPMs that a VM once had there.
pub const VM_HISTORY: &str = "/v1/vms/{id}/history";
pub const VM_SEED: &str = "/v1/vms/{id}/seed";
pub const VM_SCREEN: &str = "/v1/vms/{id}/screen";
pub const VM_SCREENSHOT: &str = "/v1/vms/{id}/screenshot";
pub const VM_KEYS: &str = "/v1/vms/{id}/keys";
pub const IMAGE: &str = "/v1/images/{sha256}";
pub const CONVERSIONS: &str = "/v1/conversions";
pub const GUARDIANS: &str = "/v1/guardians";
pub const COPY: &str = "/v1/copies/{id}/{item}";
pub const AUDIT: &str = "/v1/audit";
pub const AUDIT_WITNESS: &str = "/v1/audit/witness";
pub const CERTIFICATE: &str = "/v1/certificate";
pub const REFUSED_CERTIFICATES: &str = "/v1/refused-certificates";
pub const EK_AUTHORITY: &str = "/v1/ek-authority";

/// Token of the console's HTTP upgrade.
pub const CONSOLE_PROTOCOL: &str = "fleetward-console";

/// Token of the screen's HTTP upgrade.
pub const SCREEN_PROTOCOL: &str = "fleetward-screen";

/// Content type of a screenshot.
pub const PNG: &str = "image/png";

/// Largest screenshot that is taken over, bytes.
pub const MAX_PICTURE: usize = 64 << 20;

/// Keystrokes of one [`KeysRequest`]: under translation these take some ten seconds.
pub const MAX_STROKES: usize = 64;

/// Largest report of one VM, or of a host itself, that is taken, bytes of JSON. A report of a VM has a few thousand. The
/// store takes values of a mebibyte.
pub const MAX_REPORT: usize = 768 << 10;

/// Size of a part of a snapshot, bytes of JSON; one VM can be more.
pub const PART: usize = 1 << 20;

/// Domains of one host that are taken.
pub const MAX_DOMAINS: usize = 10_000;

/// Header of a request: what its sender knows, as [`Formats`](fleetward_model::host::Formats) writes it. `GET /v1/events`
/// and `GET /v1/vms/{id}` answer in those versions; without it, as agents answered before there were versions.
pub const FORMATS: &str = "fleetward-formats";

/// What is to be typed into a VM, already parsed: text may be a password, so nobody keeps or logs it.
#[derive(Clone, Serialize, Deserialize)]
pub struct KeysRequest {
    /// One after the other; 1 to [`MAX_STROKES`].
    pub strokes: Vec<Chord>,
}

/// Something the controller should know, in the order it happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AgentEvent {
    /// Everything; the first line of every stream, and again after libvirt was away.
    Snapshot {
        facts: Box<HostFacts>,
        vms: Vec<VmReport>,
        /// A [`AgentEvent::SnapshotPart`] follows.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// Further VMs of the snapshot before it, for readers that know [`Formats::PARTS`].
    SnapshotPart {
        vms: Vec<VmReport>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// The host's facts, every few seconds: also the sign of life.
    Facts {
        facts: Box<HostFacts>,
        /// How far its audit log goes, so that it is asked for records only when there are new ones. None from agents of before,
        /// and where the log cannot be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        audit: Option<AuditHead>,
    },
    /// A sign of life of a host whose facts are as it told them last but for what is measured, for readers that know
    /// [`Formats::SIGNS`].
    Alive {
        measured: Measurements,
        /// As in [`AgentEvent::Facts`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        audit: Option<AuditHead>,
    },
    VmChanged {
        vm: Box<VmReport>,
    },
    VmRemoved {
        id: VmId,
    },
    /// What the host and its running VMs use, about once a minute, for readers that know [`Formats::LOAD`].
    Load {
        load: Box<LoadReport>,
    },
}

/// What a host and its running VMs use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    pub host: Load,
    #[serde(default)]
    pub vms: Vec<VmLoad>,
}

/// What one VM uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmLoad {
    pub id: VmId,
    #[serde(flatten)]
    pub load: Load,
}

/// One operation on one VM, for one job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OperationRequest {
    pub job: JobId,
    /// Fencing: refused with `STALE_GENERATION` when older than what the host has done for this VM.
    pub generation: u64,
    pub vm: VmId,
    pub operation: Operation,
    /// Whose signature on a key protector counts: the authority's signed text (`protector::owners`), opaque here. None from a
    /// controller of a former version, which cannot say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owners: Option<String>,
    /// What is known of the EK certificate that the operation brings. None where it brings none; where the controller cannot
    /// say, as one of a former version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ek: Option<EkWord>,
}

/// What judges an EK certificate, beside the EK root that each host has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EkWord {
    /// EK authorities of hosts that have the name and the key of the certificate's issuer: base64 of DER. They prove
    /// themselves, being issued by the EK root.
    #[serde(default)]
    pub authorities: Vec<String>,
    /// SHA-256, hex, of certificates that go with a TPM whoever issued them: an administrator has accepted them, or the fleet
    /// had them before any was judged.
    #[serde(default)]
    pub accepted: BTreeSet<String>,
}

/// A disk that is to arrive by migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingDisk {
    pub target: String,
    /// False: it lies in a directory that both hosts share.
    pub copy: bool,
    /// How the destination reads and writes it.
    #[serde(default)]
    pub io: DiskIo,
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

/// The reason, which decides whether earlier revocations still apply.
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
/// which keeps the newest and answers with the one it had. A host says its own with its facts; an empty log ends with 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    pub seq: u64,
    /// Hash of that record.
    pub hash: String,
}

/// What a host asks to be certified: `POST /v1/certificate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// PEM, PKCS #10. The private key stays on the host.
    pub csr: String,
}

/// The host's new certificate: `PUT /v1/certificate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateAnswer {
    /// PEM: its own, then the authority's.
    pub chain: String,
}

/// How many entries of refused certificates a host holds, those included that it learned before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedHeld {
    pub entries: u32,
}

/// What a host issues EK certificates with: `GET /v1/ek-authority`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EkAuthorityHeld {
    /// Base64 of the authority's certificate, DER, which the fleet's EK root has issued.
    pub certificate: String,
}

/// The other host of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub host: HostName,
    /// `address:port` of its agent.
    pub address: String,
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

/// Whether a host converts images now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConverterState {
    /// Why it cannot; none: it can.
    pub unable: Option<String>,
    /// Bytes that files may take there.
    pub room: u64,
    /// Conversions under way; it does one after the other.
    pub busy: u32,
}

/// What is asked of a conversion.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ConversionQuery {
    /// The format that the file must have, one of [`FORMATS`](fleetward_model::foreign::FORMATS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The disk of an archive that has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

/// A line of a conversion's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum ConversionLine {
    Progress {
        /// `wait`, `unpack` or `convert`.
        step: String,
        /// 1,000 is the end of the step.
        permille: u32,
    },
    /// The disk follows: so many bytes.
    Done {
        size: u64,
        /// What was found, from outside to inside: `["xz", "vhdx"]`.
        found: Vec<String>,
    },
    Failed {
        failure: Failure,
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
    /// The running guest's flash; none when it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flash: Option<Flash>,
}

/// The file that a running VM's firmware was read from: it needs one of the same size where it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flash {
    pub path: String,
    pub size: ByteSize,
}

/// The destination's answer. Each is none when it could not be found out, which counts as failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IncomingAnswer {
    pub uuid_taken: Option<bool>,
    pub name_taken: Option<bool>,
    /// None when the CPU fits; else what is missing.
    pub cpu_problem: Option<String>,
    /// None when its flash fits, and from agents that do not look; else what is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flash_problem: Option<String>,
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

impl AgentEvent {
    /// As a reader that knows `formats` can take it.
    fn readable_with(self, formats: Formats) -> Self {
        match self {
            Self::Snapshot { facts, vms, more } => Self::Snapshot {
                facts,
                vms: readable(vms, formats),
                more,
            },
            Self::SnapshotPart { vms, more } => Self::SnapshotPart {
                vms: readable(vms, formats),
                more,
            },
            Self::VmChanged { vm } => Self::VmChanged {
                vm: Box::new(vm.readable_with(formats)),
            },
            Self::Facts { .. }
            | Self::Alive { .. }
            | Self::VmRemoved { .. }
            | Self::Load { .. } => self,
        }
    }

    /// The event as lines for a reader that knows `formats`: a snapshot of many VMs in parts of about [`PART`] bytes.
    fn in_parts(self, formats: Formats) -> Vec<Self> {
        let (facts, vms) = match self {
            Self::Snapshot { facts, vms, .. } if formats.events >= Formats::PARTS => (facts, vms),
            other => return vec![other],
        };
        let mut parts: Vec<Vec<VmReport>> = vec![Vec::new()];
        let mut size = 0;
        for vm in vms {
            let length = size_of(&vm);
            if size > 0 && size + length > PART {
                parts.push(Vec::new());
                size = 0;
            }
            size += length;
            parts.last_mut().expect("one at least").push(vm);
        }
        let count = parts.len();
        let mut facts = Some(facts);
        let parts = parts.into_iter().enumerate().map(|(at, vms)| {
            let more = at + 1 < count;
            match facts.take() {
                Some(facts) => Self::Snapshot { facts, vms, more },
                None => Self::SnapshotPart { vms, more },
            }
        });
        parts.collect()
    }
}

fn readable(vms: Vec<VmReport>, formats: Formats) -> Vec<VmReport> {
    vms.into_iter()
        .map(|vm| vm.readable_with(formats))
        .collect()
}

/// Bytes of a report, as JSON.
pub fn size_of(report: &impl Serialize) -> usize {
    serde_json::to_vec(report).map_or(usize::MAX, |text| text.len())
}

/// One VM with what only its host knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmDetail {
    pub vm: VmReport,
    pub cpu_xml: Option<String>,
    /// Of one that runs; none from agents that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flash: Option<Flash>,
    /// Whether the host can open the key protector.
    pub can_open: CanOpen,
    /// None where a running guest may write it or there is no TPM, and from agents that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm_state: Option<TpmStateJudged>,
    /// The states of its TPM that the host has seen, as SHA-256 in hex, for the host that the VM goes to: only where custody is
    /// asked for, too. Empty from agents that do not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tpm_states: Vec<String>,
}

/// What a host says of the TPM state in the place of a VM that stands still, without using its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TpmStateJudged {
    /// It has opened with the VM's key on this host.
    Opened,
    /// It is whole by its own account, and its key has not been tried on it.
    Untried,
    /// Nothing may use it.
    Refused { failure: Failure },
}
