//! Types of a VM: the specification that is stored with it, and the state that a host observes.

use crate::boot::{AfterBoot, Crashes};
use crate::disk::DiskSerial;
use crate::error::Finding;
use crate::guest::GuestObserved;
use crate::host::Formats;
use crate::machine::MachineSettings;
use crate::network::NicObserved;
use crate::secure_boot::{CertificateState, FormerCertificates, LoaderRefused, SecureBootObserved};
use crate::spec::{self, Unknown};
pub use crate::spec::{
    Description, DiskSpec, DriveSpec, Medium, NewerSpec, NicModel, NicSpec, VmSpec,
};
use crate::{
    ByteSize, DeviceId, ErrorCode, Failure, GuardianId, HostName, ImageName, JobId, KeyId,
    PoolName, VmId, VmName,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use strum::VariantArray;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// Set of hardware defaults and requirements. See [`crate::profile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::IntoStaticStr, strum::Display, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Profile {
    #[serde(rename = "windows-11")]
    #[strum(serialize = "windows-11")]
    Windows11,
    /// Windows Server 2022 and later.
    WindowsServer,
    #[default]
    Linux,
}

impl std::str::FromStr for Profile {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::VARIANTS
            .iter()
            .copied()
            .find(|p| p.into_str() == text)
            .ok_or_else(|| {
                let known: Vec<&str> = Self::VARIANTS.iter().map(|p| p.into_str()).collect();
                format!("unknown profile {text:?}; there are {}", known.join(", "))
            })
    }
}

/// How a VM's state looks from outside.
///
/// `Migrating` and `Unknown` are only ever shown by the controller: while a migration job holds the VM, and while its host does
/// not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum VmState {
    Running,
    Stopped,
    /// Its memory lies on the disk, and the next start goes on with it (libvirt's *managed save*; libvirt-guests makes it
    /// when a host is shut down). Disks, TPM and place belong to that memory until then.
    Saved,
    Paused,
    Migrating,
    Failed,
    Unknown,
}

impl VmState {
    /// Whether it has no process: it takes no memory, and moves as files.
    #[must_use]
    pub const fn stands_still(self) -> bool {
        match self {
            Self::Stopped | Self::Saved => true,
            Self::Running | Self::Paused | Self::Migrating | Self::Failed | Self::Unknown => false,
        }
    }

    /// How a VM that was last seen in `self` is shown: what its host said counts for as long as that host answers.
    #[must_use]
    pub const fn shown(self, host_answers: bool, migrating: bool) -> Self {
        match (host_answers, migrating) {
            (false, _) => Self::Unknown,
            (true, true) => Self::Migrating,
            (true, false) => self,
        }
    }
}

/// What ended a VM that was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display)]
#[strum(const_into_str, serialize_all = "snake_case")]
pub enum StoppedBy {
    /// Its guest agent shut the guest down.
    GuestAgent,
    /// The guest heard the power button.
    Acpi,
    /// Its power was cut.
    PowerOff,
}

/// Where the content of a new volume comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum VolumeSource {
    /// A new, empty qcow2 volume.
    Empty,
    /// A full copy of an image of the library, grown to the volume's size.
    Image { image: ImageName, sha256: String },
}

/// The bus of a disk: VirtIO for Linux, SATA if an installer has no other driver, SCSI for many disks or guests that give
/// unused blocks back only there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum DiskBus {
    Virtio,
    Sata,
    /// On a `virtio-scsi` controller.
    Scsi,
}

/// The firmware a VM starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Firmware {
    /// Always `uefi`.
    #[serde(rename = "type")]
    pub kind: FirmwareKind,
    /// Secure Boot with Microsoft's keys enrolled.
    pub secure_boot: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FirmwareKind {
    Uefi,
}

/// Our part of the domain's metadata. Everything a lost controller database is rebuilt from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmMetadata {
    pub spec: VmSpec,
    /// Fencing: raised by every job that changes the VM; older requests are refused.
    pub generation: u64,
    /// Base64 of the key protector's DER; none without a TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_protector: Option<String>,
    /// Base64 of the EK certificate's DER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ek_certificate: Option<String>,
    /// Set on the destination's copy until the migration is committed, and on the source's after it:
    /// such a copy never starts and is not the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transit: Option<Transit>,
    /// Whom the key was taken away from by name: nothing grants it to them again by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<Revocation>,
    /// What Secure Boot trusted before certificates were enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_certificates: Option<FormerCertificates>,
    /// Fields that this program does not know: written again as they were read.
    #[serde(flatten)]
    #[schema(ignore)]
    pub unknown: Unknown,
}

impl VmMetadata {
    /// Reads the record of a domain. None when it is damaged; [`NewerSpec`] when a newer program wrote it.
    pub fn from_json(record: &str) -> Option<Result<Self, NewerSpec>> {
        let record: serde_json::Value = serde_json::from_str(record).ok()?;
        let version = spec::version_of(record.get("spec")?);
        if version > spec::KNOWN {
            return Some(Err(NewerSpec { version }));
        }
        match serde_json::from_value(record) {
            Ok(metadata) => Some(Ok(metadata)),
            // Version 1 is frozen: what does not read as it is damaged. In the newest version it is a value that a
            // later program of the same version wrote.
            Err(_) if version == 1 => None,
            Err(_) => Some(Err(NewerSpec { version })),
        }
    }

    /// Whether the key was taken away from that guardian by name, and not given back since.
    pub fn is_revoked(&self, guardian: &GuardianId) -> bool {
        self.revoked.iter().any(|r| r.guardian == *guardian)
    }
}

/// What the controller stores of a VM's metadata: everything but the [`Custody`], of which [`TpmObserved`] has digests.
///
/// It can be read from whole metadata, and drops the custody then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "VmMetadata")]
pub struct VmSummary {
    pub spec: VmSpec,
    pub generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transit: Option<Transit>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<Revocation>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl VmSummary {
    /// With what its host has in custody, for the host that needs it.
    pub fn with_custody(self, custody: Custody) -> VmMetadata {
        VmMetadata {
            spec: self.spec,
            generation: self.generation,
            key_protector: custody.key_protector,
            ek_certificate: custody.ek_certificate,
            transit: self.transit,
            revoked: self.revoked,
            former_certificates: custody.former_certificates,
            unknown: self.unknown,
        }
    }

    /// Whether the key was taken away from that guardian by name, and not given back since.
    pub fn is_revoked(&self, guardian: &GuardianId) -> bool {
        self.revoked.iter().any(|r| r.guardian == *guardian)
    }
}

impl From<VmMetadata> for VmSummary {
    fn from(metadata: VmMetadata) -> Self {
        Self {
            spec: metadata.spec,
            generation: metadata.generation,
            transit: metadata.transit,
            revoked: metadata.revoked,
            unknown: metadata.unknown,
        }
    }
}

/// What stays on a VM's host. The controller passes it from one host to another and stores none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Custody {
    /// Base64 of the key protector's DER; none without a TPM.
    pub key_protector: Option<String>,
    /// Base64 of the EK certificate's DER.
    pub ek_certificate: Option<String>,
    /// Some kB that no job needs.
    pub former_certificates: Option<FormerCertificates>,
}

impl From<&VmMetadata> for Custody {
    fn from(metadata: &VmMetadata) -> Self {
        Self {
            key_protector: metadata.key_protector.clone(),
            ek_certificate: metadata.ek_certificate.clone(),
            former_certificates: metadata.former_certificates.clone(),
        }
    }
}

/// The digest that tells key protectors apart: SHA-256 of the base64 text, hex.
pub fn protector_sha256(base64: &str) -> String {
    hex::encode(Sha256::digest(base64))
}

/// A guardian that lost a VM's key, and the key it knew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Revocation {
    pub guardian: GuardianId,
    /// The TPM key it could open. While the VM still has that one, a roll is due.
    pub key_id: KeyId,
}

/// Which half of a migration a copy of a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Transit {
    pub job: JobId,
    pub side: TransitSide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransitSide {
    /// Arriving: not yet the VM.
    Incoming,
    /// Left: no longer the VM, waits to be cleaned up.
    Departed,
}

/// Whether a running VM has a device, or only its definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    #[default]
    Here,
    /// With its next start.
    Comes,
    /// With its next start.
    Goes,
}

impl Presence {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    fn is_here(&self) -> bool {
        *self == Self::Here
    }

    /// What waits for the next start, of a device that `named` names; none: nothing.
    pub(crate) fn now_and_next(
        self,
        named: impl FnOnce() -> serde_json::Value,
    ) -> Option<(serde_json::Value, serde_json::Value)> {
        match self {
            Self::Here => None,
            Self::Comes => Some((serde_json::Value::Null, named())),
            Self::Goes => Some((named(), serde_json::Value::Null)),
        }
    }
}

/// A drive as the host sees it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DriveObserved {
    /// None: it is none of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<DeviceId>,
    pub target: String,
    /// The image in it; none: it is empty, or holds something else.
    #[serde(default)]
    pub image: Option<ImageName>,
    /// What is in it; none: it is empty, or an older agent does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<DriveContent>,
    /// The file of its medium; none: it is empty.
    #[serde(default)]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Presence::is_here")]
    pub presence: Presence,
}

/// What is in a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriveContent {
    /// An image of the library.
    Image,
    /// What the guest is to find at its first boot.
    FirstBoot,
    /// A file that Fleetward did not put there.
    #[serde(other)]
    Other,
}

/// A disk as the host sees it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskObserved {
    /// None: it is none of ours, or its host does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<DeviceId>,
    pub target: String,
    /// What the guest knows it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<DiskSerial>,
    #[serde(default, skip_serializing_if = "Presence::is_here")]
    pub presence: Presence,
    pub bus: DiskBus,
    pub pool: PoolName,
    /// Id of the directory the pool lies in; equal on two hosts when they share it.
    pub pool_id: String,
    pub path: String,
    pub format: String,
    /// Virtual size.
    pub size: ByteSize,
    /// Bytes taken in the file system.
    pub allocated: ByteSize,
    /// Paths of the volumes that it builds on, nearest first; other VMs may build on them too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<String>,
    /// Bytes that those take.
    #[serde(default)]
    pub bases_allocated: ByteSize,
}

impl DiskObserved {
    /// Bytes that it would take in one piece, at most.
    pub fn whole(&self) -> ByteSize {
        ByteSize(self.allocated.0.saturating_add(self.bases_allocated.0))
    }
}

/// A VM's TPM as the host sees it now, without opening anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TpmObserved {
    pub enabled: bool,
    /// `2.0`.
    pub version: String,
    /// `tpm-crb`.
    pub model: String,
    pub state_present: bool,
    /// SHA-256 of the encrypted state, hex: tells whether the controller's copy is the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_sha256: Option<String>,
    pub key_id: Option<KeyId>,
    /// The guardian that owns the key protector.
    pub owner: Option<GuardianId>,
    /// Every guardian the key is wrapped for, the owner included.
    pub guardians: Vec<GuardianId>,
    /// SHA-256 of the EK certificate, hex.
    pub ek_certificate: Option<String>,
    /// SHA-256 of the key protector's base64, hex: tells whether it is another one than before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protector_sha256: Option<String>,
    /// What it counts of wrong guesses. Only of a stopped VM, and of the state that was last tried on its host; none before
    /// that, and from an agent that does not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lockout: Option<TpmLockout>,
    /// What is wrong with the process of a running VM's TPM. None where nothing is, and from an agent that does not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<TpmProcess>,
}

/// Why a running VM stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum QemuProcess {
    /// Its process was stopped, by a signal or a debugger. It goes on where it was when it is continued.
    Stopped { pid: u32 },
}

impl QemuProcess {
    /// What is said of a VM on a host.
    pub fn finding(self, vm: &VmName, host: &HostName) -> Finding {
        let Self::Stopped { pid } = self;
        Finding::blocking(
            ErrorCode::QemuNotAnswering,
            format!("VM {vm} stands still: its process, QEMU, was stopped on host {host}"),
            format!("on host {host}: kill -CONT {pid}"),
        )
    }
}

/// A running VM whose QEMU answers nothing, although its process was not stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuHangs {
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Of its process; none where it is not found.
    pub pid: Option<u32>,
    /// It waits in the kernel, where nothing interrupts it, as for storage that is gone. Else it does not answer libvirt.
    pub in_kernel: bool,
    /// When libvirt last told its definition: what is shown of its devices is as of then. None where libvirt still tells it.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub shown_as_of: Option<OffsetDateTime>,
}

impl QemuHangs {
    /// What is said of a VM on a host.
    pub fn finding(&self, vm: &VmName, host: &HostName) -> Finding {
        let process = match self.pid {
            Some(pid) => format!("QEMU (process {pid} on host {host})"),
            None => format!("QEMU on host {host}"),
        };
        let does = match self.in_kernel {
            true => "waits in the kernel, as when its storage is gone,",
            false => "does not answer libvirt",
        };
        let shown = self.shown_as_of.map(|then| {
            let then = moment(then);
            format!("; its devices are shown as they were at {then}")
        });
        let what = format!(
            "VM {vm} stands still: {process} {does} since {}{}",
            moment(self.since),
            shown.unwrap_or_default()
        );
        let fix = match self.pid {
            Some(pid) => format!(
                "on host {host}, see what it waits for: cat /proc/{pid}/stack; it goes on when that is back. Or cut its \
                 power: fleetward vm stop {vm} --force"
            ),
            None => format!("cut its power: fleetward vm stop {vm} --force"),
        };
        Finding::blocking(ErrorCode::QemuNotAnswering, what, fix)
    }
}

/// `2026-11-27 12:52:26Z`.
fn moment(at: OffsetDateTime) -> String {
    let (date, time) = (at.date(), at.time());
    let (hour, minute, second) = time.as_hms();
    format!("{date} {hour:02}:{minute:02}:{second:02}Z")
}

/// Why a running VM's TPM answers nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TpmProcess {
    /// Its process was stopped, by a signal or a debugger. It goes on where it was when it is continued.
    Stopped { pid: u32 },
    /// Its process has ended under the guest, which gets a TPM again when it is started anew. Its state is on the disk.
    Gone,
}

impl TpmProcess {
    /// What `check` and a refusal say of a VM on a host.
    pub fn finding(self, vm: &VmName, host: &HostName) -> Finding {
        let (what, fix) = match self {
            Self::Stopped { pid } => (
                format!(
                    "the TPM of VM {vm} answers nothing: its process, swtpm, was stopped on host {host}"
                ),
                format!("on host {host}: kill -CONT {pid}"),
            ),
            Self::Gone => (
                format!(
                    "the TPM of VM {vm} answers nothing: its process, swtpm, has ended on host {host}"
                ),
                format!("fleetward vm restart {vm} --force"),
            ),
        };
        Finding::blocking(ErrorCode::TpmNotAnswering, what, fix)
    }
}

/// How near a TPM is to refusing every password: what the guest finds at its next start.
///
/// Source: TPM 2.0 Library, part 1, section 19.8; part 2, section 6.13, `TPM_PT_LOCKOUT_COUNTER` and its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TpmLockout {
    /// Wrong guesses, and starts after an end without `TPM2_Shutdown`.
    pub counted: u32,
    /// At so many it is locked.
    pub limit: u32,
    /// After so many seconds one of them is forgotten.
    pub interval_seconds: u32,
    /// The guest has set a password for clearing the counter, so only the guest can.
    pub guarded: bool,
}

impl TpmLockout {
    /// Whether it refuses every object that has a password.
    pub const fn is_locked(&self) -> bool {
        self.limit > 0 && self.counted >= self.limit
    }
}

/// `1 of 3`, `3 of 3: locked`.
impl fmt::Display for TpmLockout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.counted, self.limit)?;
        match self.is_locked() {
            true => f.write_str(": locked"),
            false => Ok(()),
        }
    }
}

/// What the agent of a VM's host knows of it beyond what the hypervisor tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Its guest, while it runs and once it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestObserved>,
    /// Set while it has not come back with its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_boot: Option<AfterBoot>,
    /// Of one that is started again when it crashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crashes: Option<Crashes>,
    /// What its UEFI variables say; none before its first start, of a VM without Secure Boot that never had any, and from an
    /// agent that does not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<SecureBootObserved>,
    /// Set while its firmware refuses to start its guest's loader, and from an agent that listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader_refused: Option<LoaderRefused>,
    /// Set while its QEMU was stopped, and from an agent that looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuProcess>,
    /// Set while its QEMU answers nothing for another reason, and from an agent that looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hangs: Option<QemuHangs>,
}

impl Noted {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a VM's definition gives it at the next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmDefined {
    pub cpus: u32,
    pub memory: ByteSize,
    /// None: its host's agent is older than networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicObserved>>,
    #[serde(flatten)]
    pub settings: MachineSettings,
}

/// A VM on a host, observed: as the controller keeps it, or with `VmMetadata` as its host reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmObserved<M = VmSummary> {
    pub id: VmId,
    /// The name Fleetward knows it by; of a domain that Fleetward did not make, the domain's as far as it can be one.
    pub name: VmName,
    /// The domain's own name, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_name: Option<String>,
    pub host: HostName,
    pub state: VmState,
    /// Why it is in that state, libvirt's word: `booted`, `migrated`, `crashed`, `shutdown`, ...
    pub reason: String,
    /// None for a domain that Fleetward did not make: shown, never touched. None, too, where `newer` says why.
    pub metadata: Option<M>,
    /// Its metadata is newer than the program that read it: the VM is one of ours, shown, and never changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer: Option<NewerSpec>,
    /// What it has now.
    pub cpus: u32,
    pub memory: ByteSize,
    /// What its definition gives it at the next start; none when its host does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defined: Option<VmDefined>,
    pub firmware: Option<Firmware>,
    /// What it has now.
    #[serde(flatten)]
    pub settings: MachineSettings,
    /// Canonical machine type, `pc-q35-10.0`.
    pub machine: String,
    /// `kvm` or `qemu` (TCG).
    pub accelerator: String,
    pub disks: Vec<DiskObserved>,
    /// Its network cards as they are now; none: its host's agent is older than networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicObserved>>,
    #[serde(default)]
    pub drives: Vec<DriveObserved>,
    pub tpm: TpmObserved,
    /// What its host's agent adds.
    #[serde(default, skip_serializing_if = "Noted::is_empty")]
    pub noted: Noted,
    #[serde(with = "time::serde::rfc3339")]
    pub observed: OffsetDateTime,
}

/// What a host reports of a VM. It holds key protector and EK certificate only for a reader that does not know digests, or
/// that asked for them.
pub type VmReport = VmObserved<VmMetadata>;

impl VmReport {
    /// As a reader that knows `formats` can take it.
    #[must_use]
    pub fn readable_with(mut self, formats: Formats) -> Self {
        let version = self.metadata.as_ref().map(|m| m.spec.version());
        if let Some(version) = version.filter(|version| *version > formats.spec) {
            self.metadata = None;
            self.newer = Some(NewerSpec { version });
        }
        if formats.operations < Formats::SAVED && self.state == VmState::Saved {
            self.state = VmState::Stopped;
        }
        if formats.custody > 1
            && let Some(metadata) = &mut self.metadata
        {
            metadata.key_protector = None;
            metadata.ek_certificate = None;
            metadata.former_certificates = None;
        }
        self
    }

    /// As the controller keeps it. An agent that does not know digests sends the key protector itself, which ends here.
    pub fn digested(mut self) -> VmObserved {
        let metadata = self.metadata.take();
        let text = metadata.as_ref().and_then(|m| m.key_protector.as_deref());
        let mut tpm = self.tpm;
        tpm.protector_sha256 = tpm.protector_sha256.or_else(|| text.map(protector_sha256));
        VmObserved {
            metadata: metadata.map(VmSummary::from),
            tpm,
            id: self.id,
            name: self.name,
            domain_name: self.domain_name,
            host: self.host,
            state: self.state,
            reason: self.reason,
            newer: self.newer,
            cpus: self.cpus,
            memory: self.memory,
            defined: self.defined,
            firmware: self.firmware,
            settings: self.settings,
            machine: self.machine,
            accelerator: self.accelerator,
            disks: self.disks,
            nics: self.nics,
            noted: self.noted,
            drives: self.drives,
            observed: self.observed,
        }
        .by_its_specification()
    }
}

impl<M> VmObserved<M> {
    /// Whether Fleetward made it, also where this program cannot read what it is.
    pub fn is_managed(&self) -> bool {
        self.metadata.is_some() || self.newer.is_some()
    }
}

impl VmObserved {
    /// The guardians that still know the VM's TPM key although it was taken away from them: the key is to be rolled. They
    /// knew this very key when they lost it, or it is wrapped for them again because an older TPM was brought back. Who was
    /// granted it by name since is not among the revoked any more.
    pub fn roll_due(&self) -> impl Iterator<Item = &GuardianId> {
        let revoked = self.metadata.iter().flat_map(|m| &m.revoked);
        let tpm = &self.tpm;
        revoked
            .filter(|r| {
                tpm.enabled && (Some(r.key_id) == tpm.key_id || tpm.guardians.contains(&r.guardian))
            })
            .map(|r| &r.guardian)
    }

    /// Whether its firmware trusts certificates that have run out, and not their successors.
    pub fn has_old_certificates(&self) -> bool {
        let found = self.noted.secure_boot.as_ref();
        self.is_managed() && found.is_some_and(|f| f.state == CertificateState::UpdateAvailable)
    }

    /// That its QEMU does not answer, if it does not.
    pub fn not_answering(&self) -> Option<Finding> {
        let stopped = self
            .noted
            .qemu
            .map(|qemu| qemu.finding(&self.name, &self.host));
        let hangs = || Some(self.noted.hangs.as_ref()?.finding(&self.name, &self.host));
        stopped.or_else(hangs)
    }

    /// That its firmware refuses to start its guest, if it does.
    pub fn loader_refused(&self) -> Option<Finding> {
        let refused = self.noted.loader_refused.as_ref()?;
        Some(refused.finding(&self.name, self.noted.secure_boot.as_ref()))
    }

    /// Under the name that Fleetward gave it: agents that are older tell the domain's.
    #[must_use]
    pub fn by_its_specification(mut self) -> Self {
        if let Some(metadata) = &self.metadata
            && metadata.spec.name != self.name
        {
            let domain = std::mem::replace(&mut self.name, metadata.spec.name.clone());
            self.domain_name.get_or_insert(domain.into());
        }
        self
    }

    /// What it is, for everything that changes it.
    ///
    /// # Errors
    /// [`ErrorCode::VmNotManaged`] for a domain that Fleetward did not make, [`ErrorCode::SpecNewer`] for a VM that a newer
    /// program wrote.
    pub fn require_metadata(&self) -> Result<&VmSummary, Failure> {
        if let Some(newer) = &self.newer {
            return Err(newer.refusal(&self.name, &self.host));
        }
        self.metadata.as_ref().ok_or_else(|| {
            let what = format!("domain {} was not made by Fleetward", self.name);
            Failure::new(ErrorCode::VmNotManaged, what)
                .fix(format!("manage it with virsh on host {}", self.host))
        })
    }

    /// Whether this copy is the VM itself and not half of a migration.
    pub fn is_the_vm(&self) -> bool {
        self.metadata.as_ref().is_none_or(|m| m.transit.is_none())
    }
}
