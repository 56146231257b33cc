//! What is said between the controller and those who call it: bodies and queries. Which verb takes which is declared in
//! [`crate::verbs`].

mod keys;

pub use keys::*;

use crate::bulk::Plan;
use crate::seed::Seed;
use fleetward_model::NetworkName;
use fleetward_model::boot::{AfterBoot, Crashes};
use fleetward_model::change::{self, NicAsked, Pending, PlannedStep};
use fleetward_model::clone::CloneTpm;
use fleetward_model::error::Finding;
use fleetward_model::guardian::{CertificateRole, GuardianFacts, TrustMode};
use fleetward_model::guest::GuestObserved;
use fleetward_model::host::{HostFacts, HostState};
pub use fleetward_model::job::JobState;
use fleetward_model::keys::KeyInput;
use fleetward_model::machine::{BootFirst, Clock, MachineSettings};
use fleetward_model::network::{NetworkPlace, NicObserved};
pub use fleetward_model::role::Role;
use fleetward_model::spec::Description;
use fleetward_model::vm::{
    DiskBus, DiskObserved, DriveObserved, Firmware, NewerSpec, Profile, TpmObserved, VmState,
};
use fleetward_model::{
    ByteSize, ErrorCode, Failure, GroupName, GuardianId, HostName, ImageName, JobId, LabelKey,
    Labels, PoolName, TemplateName, VmId, VmName,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    /// The fleet's id.
    pub fleet: String,
    /// SHA-256 of the fleet authority's certificate, hex.
    pub authority: String,
    /// Who grants keys inside a group: jobs (`auto`), or only people (`manual`).
    #[serde(default)]
    pub trust: TrustMode,
    pub hosts: u32,
    pub hosts_online: u32,
    pub vms: u32,
    pub jobs_running: u32,
}

/// A host in lists and on its own.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    pub name: HostName,
    pub group: GroupName,
    pub state: HostState,
    /// `address:port` of its agent; none until it has joined.
    pub address: Option<String>,
    /// Last reported facts.
    pub facts: Option<HostFacts>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_seen: Option<OffsetDateTime>,
    pub vms: u32,
    pub warnings: Vec<String>,
    /// What it still has to do of jobs that ended while it was away; it is asked for nothing else before.
    #[serde(default)]
    pub debts: Vec<DebtView>,
}

/// A step of a job that a host owes: it was away when the job needed it, and the job ended without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DebtView {
    pub job: JobId,
    /// `vm-migrate`, ...
    pub kind: String,
    pub step: String,
    /// Whether the step is to be undone, rather than done.
    pub undo: bool,
    /// The VM it is about; none for the host's own guardian.
    pub vm: Option<VmId>,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Why it failed although the host answered: waiting does not cure it.
    pub failure: Option<Failure>,
}

/// `POST /v1/host-tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    pub host: HostName,
    #[serde(default)]
    pub group: GroupName,
    /// Seconds, 1 to 604,800 (a week); default one hour.
    #[serde(default = "one_hour")]
    pub ttl_seconds: u32,
    /// The host has joined before, does not answer, and comes back with nothing of what it had: installed anew.
    #[serde(default)]
    pub reinstalled: bool,
}

fn one_hour() -> u32 {
    3600
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    pub host: HostName,
    pub group: GroupName,
    /// Shown once.
    pub token: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires: OffsetDateTime,
}

/// `POST /v1/join`, from an agent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub token: String,
    /// PEM certificate request for the host's identity.
    pub host_csr: String,
    /// PEM certificate request for the host's EK issuing authority.
    pub ek_csr: String,
    pub guardian: GuardianFacts,
    /// `address:port` on which the controller and other agents reach this one.
    pub address: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JoinReply {
    pub host: HostName,
    pub group: GroupName,
    /// The fleet's id.
    pub fleet: String,
    /// PEM.
    pub host_certificate: String,
    /// PEM; to be pinned.
    pub authority_certificate: String,
    /// PEM, this host's issuing certificate.
    pub ek_certificate: String,
    /// PEM, the fleet's EK root.
    pub ek_root_certificate: String,
}

/// `POST /v1/admins`: a client certificate for somebody not on the controller's machine.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminRequest {
    /// Letters, digits, `.`, `_`, `-`, at most 63.
    pub name: HostName,
    pub role: Role,
    /// PEM certificate request; the private key stays with the caller.
    pub csr: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AdminReply {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub authority_certificate: String,
}

/// An image of the library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    pub name: ImageName,
    /// `qcow2`, `raw` or `iso`.
    pub format: String,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Bytes of the disk.
    pub virtual_size_bytes: u64,
    /// Hex.
    pub sha256: String,
    #[serde(with = "time::serde::rfc3339")]
    pub imported: OffsetDateTime,
    /// What it was made of; none: the file is as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ImageSource>,
}

/// The file that an image was converted from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSource {
    /// What was found, from outside to inside: `["xz", "vhdx"]`.
    pub found: Vec<String>,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Hex.
    pub sha256: String,
    /// Where it was converted.
    pub host: HostName,
}

/// How far an import is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImportView {
    pub stage: ImportStage,
    /// The host that converts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// Of the stage, in bytes or in tenths of a per cent.
    pub done: u64,
    /// 0: unknown.
    pub total: u64,
}

/// What an import does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportStage {
    /// The controller takes the file in.
    Receiving,
    /// A host gets it.
    Sending,
    /// The host does other conversions first.
    Waiting,
    Unpacking,
    Converting,
    /// The disk comes back.
    Fetching,
}

/// `POST /v1/vms`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreateRequest {
    pub name: VmName,
    #[serde(default)]
    pub profile: Profile,
    /// Content of the system disk; none: an empty disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageName>,
    /// Template to make it from, instead of an image; profile, size and firmware are the template's where not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateName>,
    /// Size of the system disk, bytes; not smaller than the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<ByteSize>,
    /// Installer medium: the first drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iso: Option<ImageName>,
    /// Media of more drives, such as drivers beside the installer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_isos: Vec<ImageName>,
    /// Medium with drivers for virtio, for an installer that has none: one more drive, and the disks and cards are virtio
    /// unless something else is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drivers: Option<ImageName>,
    /// What its firmware tries first.
    #[serde(default, skip_serializing_if = "BootFirst::is_default")]
    pub boot: BootFirst,
    /// Disks beside the system disk, empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_disks: Vec<change::DiskAsked>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<ByteSize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    #[serde(default)]
    pub pool: PoolName,
    #[serde(default = "yes")]
    pub tpm: bool,
    #[serde(default = "yes")]
    pub secure_boot: bool,
    #[serde(default)]
    pub start: bool,
    #[serde(default)]
    pub labels: Labels,
    /// Its network cards; none: the template's, or one in its host's default network. An empty list: no card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicAsked>>,
    #[serde(default, skip_serializing_if = "Description::is_empty")]
    pub description: Description,
    /// Whether its host starts it after a boot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub autostart: bool,
    /// What the guest finds at its first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// Only says whether it could be done, by a refusal or by an answer without a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

fn yes() -> bool {
    true
}

/// A VM, as `vm show` gives it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    pub name: VmName,
    pub id: VmId,
    pub host: HostName,
    pub group: Option<GroupName>,
    /// `unknown` while its host does not answer.
    pub state: VmState,
    /// What was seen of it before its host fell silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<LastSeen>,
    /// Since when it has been in that state, as far as the controller saw it; while it is unknown, since its host was last heard.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub state_since: Option<OffsetDateTime>,
    /// What is thought of its host; none for a host that left the fleet.
    #[serde(default)]
    pub host_state: Option<HostState>,
    /// libvirt's word for why.
    pub reason: String,
    /// False for a domain Fleetward did not make.
    pub managed: bool,
    /// A newer program wrote its specification: it is shown, and nothing is changed about it (`SPEC_NEWER`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer: Option<NewerSpec>,
    pub cpus: u32,
    pub memory_bytes: ByteSize,
    pub firmware: Option<Firmware>,
    #[serde(flatten)]
    pub settings: MachineSettings,
    pub disks: Vec<DiskObserved>,
    #[serde(default)]
    pub nics: Vec<NicObserved>,
    #[serde(default)]
    pub drives: Vec<DriveObserved>,
    pub tpm: TpmObserved,
    /// The controller's copy of its TPM; none without one.
    #[serde(default)]
    pub escrow: Option<EscrowView>,
    /// Seconds since the controller's copy was certainly what the host has.
    #[serde(default)]
    pub escrow_age: Option<u64>,
    #[serde(default)]
    pub description: Description,
    /// Whether its host starts it after a boot.
    #[serde(default)]
    pub autostart: bool,
    /// Set while it has not come back with its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_boot: Option<AfterBoot>,
    /// Whether its host starts it again when its guest crashes.
    #[serde(default)]
    pub restart_on_crash: bool,
    /// Its crashes of the last hour, where it is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crashes: Option<Crashes>,
    /// Its guest, by the guest's own word; none while it does not run, and before it was asked.
    #[serde(default)]
    pub guest: Option<GuestObserved>,
    /// What waits for its next start.
    #[serde(default)]
    pub pending: Vec<Pending>,
    /// The domain's own name, where somebody renamed it on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_name: Option<String>,
    /// What somebody changed past Fleetward.
    #[serde(default)]
    pub findings: Vec<Finding>,
    pub labels: Labels,
    pub profile: Option<Profile>,
    /// The job that holds it.
    pub job: Option<JobId>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub created: Option<OffsetDateTime>,
    /// When the host last reported it; old when the host is unreachable.
    #[serde(with = "time::serde::rfc3339")]
    pub observed: OffsetDateTime,
}

/// A VM when its host last answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastSeen {
    pub state: VmState,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

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

/// The controller's newest copy of a VM's TPM, in `vm show`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EscrowView {
    /// None: there is no copy yet.
    pub version: Option<u64>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub made: Option<OffsetDateTime>,
    /// Whether it is what the host last reported.
    pub current: bool,
    /// Why the last try to take a copy failed, when it did.
    pub failure: Option<Failure>,
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

/// Codes of the last frame of a screen's WebSocket; its reason is a sentence.
pub mod screen_end {
    /// The VM does not run any more.
    pub const STOPPED: u16 = 4001;
    /// It can be opened again: the VM has moved to another host, or its host was interrupted.
    pub const INTERRUPTED: u16 = 4002;
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

/// `POST /v1/templates`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateRequest {
    pub name: TemplateName,
    /// The VM it is made of; running or stopped, and unchanged by it.
    pub from: VmName,
    /// Keeps the machine's UEFI variables: boot entries, and changes of the Secure Boot keys.
    #[serde(default)]
    pub uefi_variables: bool,
    /// Only says whether it could be done, by a refusal or by an answer without a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateView {
    pub name: TemplateName,
    /// The VM it was made of; it may be gone.
    pub from: VmName,
    pub profile: Profile,
    pub cpus: u32,
    pub memory_bytes: ByteSize,
    pub secure_boot: bool,
    /// Whether its source had a TPM, whose sealed secrets no deployment can open.
    pub source_had_tpm: bool,
    pub disks: Vec<TemplateDisk>,
    /// SHA-256 of the kept UEFI variables; none: deployments begin with the firmware's own.
    pub uefi_variables: Option<String>,
    /// Which time their clocks keep; none: the profile's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    /// Network cards of its deployments, each with an address of its own; none: one in the default network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicAsked>>,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
}

/// A network that hosts offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    pub name: NetworkName,
    /// The hosts that have it, by name.
    pub hosts: Vec<NetworkOnHost>,
}

/// What a network is on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkOnHost {
    pub host: HostName,
    #[serde(flatten)]
    pub place: NetworkPlace,
    /// Whether a card in it can have a VLAN.
    pub vlans: bool,
    /// Whether a card in it can have a filter.
    pub filters: bool,
    /// Whether it is the network of cards of which nothing else is said.
    pub default: bool,
    /// Why nothing can be connected to it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A disk of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateDisk {
    pub target: String,
    pub bus: DiskBus,
    /// Virtual size.
    pub size: ByteSize,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Of the content, hex.
    pub sha256: String,
}

/// Query of `DELETE /v1/vms/{vm}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub keep_tpm_state: bool,
}

/// Query of `POST /v1/hosts/{host}/drain`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DrainQuery {
    /// only says where each VM would go
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub dry_run: bool,
}

/// Answer of `POST /v1/hosts/{host}/drain`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DrainAnswer {
    /// None: it was a dry run.
    pub job: Option<JobId>,
    /// What would become of each VM, in a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<Plan>,
}

/// Query of `PUT /v1/images/{image}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImportQuery {
    /// what the file must be: qcow2, raw, iso, vhdx, vhd, vmdk, vdi or ova
    pub format: Option<String>,
    /// the disk of an archive that has several, by the name of its file
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// hex; another file is refused
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Query of `GET /v1/vms`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VmQuery {
    #[param(value_type = Option<String>)]
    pub host: Option<HostName>,
    /// `key=value`; of several, a VM has all
    #[serde(rename = "label", default)]
    pub labels: Vec<String>,
    pub tpm: Option<bool>,
    #[param(value_type = Option<String>)]
    pub state: Option<VmState>,
    #[param(value_type = Option<String>)]
    pub group: Option<GroupName>,
    /// at most so many rows, 1 to 1,000; without it all
    pub limit: Option<u32>,
    /// only what follows: a VM's name, or NAME/HOST
    pub after: Option<String>,
}

/// Query of `GET /v1/check`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CheckQuery {
    #[param(value_type = Option<String>)]
    pub vm: Option<VmName>,
    #[param(value_type = Option<String>)]
    pub to: Option<HostName>,
    /// check a move of the stopped VM
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[param(value_type = Option<bool>)]
    pub offline: bool,
}

/// Whether one VM can move to (or, on its own host, start on) one host.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CheckView {
    pub vm: VmName,
    pub from: HostName,
    pub to: HostName,
    pub possible: bool,
    /// The first blocking finding's code.
    pub code: Option<ErrorCode>,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    pub id: JobId,
    /// `vm-create`, `vm-migrate`, ...
    pub kind: String,
    /// What it works on.
    pub target: String,
    pub state: JobState,
    pub created_by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended: Option<OffsetDateTime>,
    pub steps: Vec<StepView>,
    /// Name of the step that runs or waits.
    pub current: Option<String>,
    pub progress: Option<ProgressView>,
    /// Why it waits, when it does: a host that does not answer.
    pub waiting: Option<String>,
    /// The code of what it waits for.
    #[serde(default)]
    pub waiting_code: Option<ErrorCode>,
    /// What it waits for does not come by itself within seconds: its host stays away, or somebody must act.
    #[serde(default)]
    pub held_up: bool,
    pub cancellable: bool,
    pub failure: Option<Failure>,
    /// What went less well than its state says: a copy of a TPM that could not be taken.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What it reports, by kind: a migration's downtime, a created VM's name.
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
}

/// A kind of job with its steps, in order: `GET /v1/job-kinds`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobKindView {
    pub kind: String,
    pub steps: Vec<StepKindView>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StepKindView {
    pub name: String,
    /// Whether it leaves something behind that is undone when the job turns back.
    pub undoable: bool,
    /// Once it is done the job only goes forward.
    pub point_of_no_return: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    pub name: String,
    /// `pending`, `running`, `done`, `skipped` (nothing to do), `undoing`, `undone`, `failed`, `owed` (by a host that is away).
    pub state: String,
    pub attempts: u32,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended: Option<OffsetDateTime>,
    /// The host that owes it, or owed it until it was back.
    #[serde(default)]
    pub owed_by: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgressView {
    /// Bytes.
    pub done: u64,
    /// Bytes.
    pub total: u64,
    pub text: String,
}

/// Query of `GET /v1/audit`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// name or id, also of a VM that is gone
    #[param(value_type = Option<String>)]
    pub vm: Option<VmName>,
    /// RFC 3339
    pub since: Option<String>,
    /// at most so many rows, 1 to 1,000; without it all
    pub limit: Option<u32>,
    /// only what follows: HOST/SEQ of a record
    pub after: Option<String>,
}

/// Answer of `GET /v1/audit/verify`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditVerdict {
    /// Every chain holds, and every host's own log was compared.
    pub intact: bool,
    pub records: u64,
    /// The first record that does not fit, and why.
    pub broken: Option<String>,
    /// Everything that does not fit, the first of each chain.
    #[serde(default)]
    pub breaks: Vec<AuditBreakView>,
    /// Hosts whose own log could not be compared with the copy here, because they did not answer.
    #[serde(default)]
    pub not_compared: Vec<HostName>,
}

/// A place where an audit chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditBreakView {
    /// Whose records: a host's name, or `controller`.
    pub chain: String,
    /// Where the records lie that do not fit: `controller` for the copy in its store, else the host.
    pub kept_by: String,
    /// Number of the record that was changed, is missing or is out of place.
    pub seq: Option<u64>,
    pub what: String,
}

/// Answer of `POST /v1/rebuild`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RebuildView {
    pub hosts_asked: u32,
    pub hosts_answered: u32,
    pub vms: u32,
    /// Hosts that did not answer, names that clash.
    pub warnings: Vec<String>,
}
