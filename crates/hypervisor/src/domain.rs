//! Domains: define, run, watch, move.

use crate::{Error, Result};
use async_trait::async_trait;
use fleetward_model::host::{Accelerator, Version};
use fleetward_model::vm::{Firmware, VmMetadata};
use fleetward_model::{ByteSize, VmId, VmName};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// The text that swtpm takes as its passphrase: base64 of a VM's TPM key. Zeroed after use, never shown.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The text itself, for the one call that hands it on.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(redacted)")
    }
}

/// Everything libvirt needs to define a domain that is not there: the specification with its paths resolved.
#[derive(Debug, Clone)]
pub struct DomainDefinition {
    /// Specification and key protector, kept in the domain's metadata.
    pub metadata: VmMetadata,
    /// One path for each of `metadata.spec.disks`, same order. Always qcow2.
    pub disk_paths: Vec<PathBuf>,
    /// The installer medium's file, when the specification has one. Raw.
    pub cdrom_path: Option<PathBuf>,
    /// File that gets all serial output, appended; none: no log.
    pub serial_log: Option<PathBuf>,
    /// UEFI variables file; made from the firmware's template at first start.
    pub nvram_path: PathBuf,
    /// The definition that the domain had on the host it comes from, from [`Hypervisor::portable_definition`]: kept but
    /// for metadata and paths. None: the specification says everything.
    pub carried: Option<String>,
}

/// What is changed of a definition that exists, beside our metadata. The default changes nothing else. Everything that is
/// not named stays as it is in the definition, whoever put it there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainChange {
    pub cpus: Option<u32>,
    pub memory: Option<ByteSize>,
    /// Whether it has the TPM device with the VM's secret.
    pub tpm: Option<bool>,
    /// `(target, path)` of the disks that lie in another file now.
    pub disks: Vec<(String, PathBuf)>,
    /// Where serial output goes now, if it is kept at all.
    pub serial_log: Option<PathBuf>,
}

/// What a definition says about the next start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDefined {
    pub cpus: u32,
    pub memory: ByteSize,
    pub tpm: bool,
}

/// The hypervisor's own view of a domain's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainState {
    Running,
    /// Not executing, memory present. `incoming`: the memory is still arriving; afterwards the copy at the destination
    /// is paused and not incoming, and so is the copy at the source for the moment of the switch-over.
    Paused {
        incoming: bool,
    },
    Stopped(StopReason),
}

/// Why a domain is stopped, as far as it is known (it is forgotten when libvirtd restarts).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// Never started, shut down by the guest, destroyed, or not known.
    Ordinary,
    Crashed,
    /// Its memory has moved away completely. Stays `Ordinary` after libvirtd has restarted.
    Migrated,
    /// It could not start or its incoming memory was lost.
    Failed,
}

/// A domain as the hypervisor reports it.
///
/// While memory is arriving ([`DomainState::Paused`] with `incoming`) or the domain is just being started, libvirt does
/// not tell the definition: then `firmware`, `machine`, `disks`, `nvram_path`, `tpm`, `cpu_xml` and `console` are empty.
#[derive(Debug, Clone)]
pub struct DomainObserved {
    pub id: VmId,
    pub name: VmName,
    /// The domain's own name, which need not be one of ours.
    pub domain_name: String,
    pub state: DomainState,
    /// libvirt's word for why it is in this state.
    pub reason: &'static str,
    /// Defined on this host, not only running.
    pub persistent: bool,
    /// None when Fleetward did not make it or its metadata cannot be read.
    pub metadata: Option<VmMetadata>,
    pub cpus: u32,
    pub memory: ByteSize,
    pub firmware: Option<Firmware>,
    pub machine: String,
    pub accelerator: Accelerator,
    /// `(target, path)` of every disk that is not a CD-ROM.
    pub disks: Vec<(String, PathBuf)>,
    pub nvram_path: Option<PathBuf>,
    /// Whether the definition has a TPM device.
    pub tpm: bool,
    /// The CPU as defined (running: as expanded by libvirt), XML; what [`Hypervisor::check_cpu`] takes.
    pub cpu_xml: Option<String>,
    /// The serial console's pty, while it runs.
    pub console: Option<PathBuf>,
    /// What it starts with next. None while libvirt does not tell, or when nothing of it stays after it stops.
    pub defined: Option<DomainDefined>,
}

/// What the hypervisor can do here.
#[derive(Debug, Clone)]
pub struct HypervisorFacts {
    pub libvirt: Version,
    pub qemu: Version,
    pub swtpm: Option<Version>,
    pub accelerator: Accelerator,
    pub cpus: u32,
    pub arch: String,
    pub cpu_model: String,
    pub memory: ByteSize,
    pub memory_available: ByteSize,
    /// Canonical q35 machine types.
    pub machines: Vec<String>,
    pub secure_boot: bool,
}

/// Something happened to a domain. Readers that lag get a `Lagged` error and list anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HypervisorEvent {
    /// Defined, started, stopped, suspended, changed: look at it.
    Changed(VmId),
    /// Its process ended: the secret is no longer needed.
    Stopped(VmId),
    /// Undefined: gone.
    Removed(VmId),
    /// The connection to libvirt broke; events may have been missed until `Connected`.
    Disconnected,
    /// libvirt answers (again). When it restarted, every secret is gone: running domains do without, but a start or an
    /// arriving migration needs it loaded again.
    Connected,
}

/// Answer to "could this CPU run here".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuVerdict {
    Compatible,
    /// Features that are missing, or libvirt's reason.
    Incompatible(String),
}

/// Which disks a migration copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationDisks {
    /// All lie in directories that both hosts share.
    Shared,
    /// These targets are copied; the destination has volumes of the same size at the same paths.
    Copy(Vec<String>),
}

/// A live migration through Unix sockets that somebody forwards to the destination.
#[derive(Debug, Clone)]
pub struct MigrationRequest {
    /// Leads to the destination's libvirt.
    pub libvirt_socket: PathBuf,
    /// QEMU's memory stream; the destination's QEMU listens on the same path.
    pub memory_socket: PathBuf,
    /// NBD for disks; the destination's QEMU listens on the same path.
    pub disk_socket: PathBuf,
    pub disks: MigrationDisks,
    /// Metadata of the copy there, from its first moment on; the copy here keeps its own.
    pub arriving: VmMetadata,
}

/// Bytes moved so far; memory may grow while the guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MigrationProgress {
    pub memory_done: u64,
    pub memory_total: u64,
    pub disk_done: u64,
    pub disk_total: u64,
}

/// What a finished migration reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrationOutcome {
    pub total_ms: u64,
    /// The guest's pause as libvirt measured it, without the hand-over that follows.
    pub downtime_ms: Option<u64>,
    pub transferred: u64,
}

/// How far a copy of a domain's disks is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyState {
    /// None is known.
    None,
    /// Bytes.
    Running { done: u64, total: u64 },
    /// The last one ended well.
    Done,
    /// The last one failed, and why.
    Failed(String),
}

/// One host's domains.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    async fn facts(&self) -> Result<HypervisorFacts>;

    /// Every domain of the host, ours or not.
    async fn list(&self) -> Result<Vec<DomainObserved>>;

    /// One domain.
    ///
    /// # Errors
    /// [`Error::NoDomain`].
    async fn inspect(&self, id: VmId) -> Result<DomainObserved>;

    /// Defines a domain. Of one that is defined already only our metadata is replaced.
    async fn define(&self, definition: &DomainDefinition) -> Result<()>;

    /// Replaces our metadata and what `change` names in the definition, all of it or nothing; the domain stays in the state
    /// it is in. A running domain keeps its devices until it stops. Makes a domain that only runs a defined one.
    ///
    /// # Errors
    /// [`Error::NoDomain`]; [`Error::CannotChange`] when the definition has been edited in a way that stands against it.
    async fn redefine(&self, id: VmId, metadata: &VmMetadata, change: &DomainChange) -> Result<()>;

    /// Gives a stopped domain another name, and changes nothing else. One that has it already is left alone.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::WrongState`].
    async fn rename(&self, id: VmId, name: &str) -> Result<()>;

    /// The definition as another host may take it over, in the hypervisor's own form, without our metadata.
    async fn portable_definition(&self, id: VmId) -> Result<String>;

    /// Replaces our metadata, on the running and on the persistent definition.
    async fn write_metadata(&self, id: VmId, metadata: &VmMetadata) -> Result<()>;

    /// Starts a stopped domain; a running one is left alone. The secret must be loaded before when it has a TPM.
    async fn start(&self, id: VmId) -> Result<()>;

    /// Asks the guest to shut down (ACPI); returns at once.
    async fn request_shutdown(&self, id: VmId) -> Result<()>;

    /// Cuts the power; a stopped domain is left alone.
    async fn destroy(&self, id: VmId) -> Result<()>;

    /// Lets a paused domain run; a running one is left alone.
    async fn resume(&self, id: VmId) -> Result<()>;

    /// Pauses a running domain; a paused one is left alone.
    async fn suspend(&self, id: VmId) -> Result<()>;

    /// Begins to write the disks of a running or paused domain, as they are at this moment, to new qcow2 files without
    /// a backing file, and returns at once. The guest may write on: what it overwrites is copied before. The domain's
    /// own disks stay as they are, whatever becomes of the copy. `(target, path)` of each disk; a path must not exist.
    async fn begin_copy(&self, id: VmId, disks: &[(String, PathBuf)]) -> Result<()>;

    /// Lets a running or paused domain write on to overlays that exist already, each over the disk's present volume:
    /// `(target, path)` of each disk. All of them at one moment, or none. What the volumes below hold is that moment's.
    async fn switch_to_overlays(&self, id: VmId, disks: &[(String, PathBuf)]) -> Result<()>;

    /// How far a copy is.
    async fn copy_state(&self, id: VmId) -> Result<CopyState>;

    /// Ends a copy that is not wanted any more, and waits until it has ended. None is fine; its files stay.
    async fn abort_copy(&self, id: VmId) -> Result<()>;

    /// Removes a stopped domain's definition and its UEFI variables; keeps disks and TPM state. A missing one is fine.
    async fn undefine(&self, id: VmId) -> Result<()>;

    /// Keeps the text as an ephemeral, private libvirt secret whose uuid is the VM's. Replaces an earlier value.
    async fn load_secret(&self, id: VmId, text: &SecretText) -> Result<()>;

    /// Forgets the secret; a missing one is fine.
    async fn drop_secret(&self, id: VmId) -> Result<()>;

    /// VMs whose secret is loaded (only secrets of our kind).
    async fn loaded_secrets(&self) -> Result<Vec<VmId>>;

    /// Whether this host could run a guest with that CPU, live.
    async fn check_cpu(&self, cpu_xml: &str) -> Result<CpuVerdict>;

    /// Moves a running domain's memory, devices, TPM and disks to the destination, where it arrives *paused*; here it
    /// ends stopped ([`StopReason::Migrated`]) and stays defined. When this fails the domain runs here as before, but
    /// when the link broke at the very end a paused, persistent copy may stay at the destination: such a copy is no
    /// proof that the domain has left. Only this function's success, or a source seen stopped, is.
    ///
    /// Not idempotent. Progress is reported at least once a second.
    ///
    /// # Errors
    /// [`Error::Cancelled`] after `cancel`, [`Error::WrongState`] when it does not run, [`Error::Migration`]; all of them
    /// mean that it is still here. [`Error::Unavailable`]: libvirt went away meanwhile, and how it ended must be looked up.
    async fn migrate(
        &self,
        id: VmId,
        request: &MigrationRequest,
        progress: watch::Sender<MigrationProgress>,
        cancel: CancellationToken,
    ) -> Result<MigrationOutcome>;

    /// Stops a migration of this domain that an earlier agent process left behind, and waits until the domain is
    /// itself again: a copy that was left behind paused in the switch-over runs on. Only while the destination's copy
    /// has not been resumed. Nothing to do is fine.
    async fn abort_leftover_migration(&self, id: VmId) -> Result<()>;

    /// What happens from now on.
    fn events(&self) -> broadcast::Receiver<HypervisorEvent>;
}

/// A shared handle, as services hold it.
pub type SharedHypervisor = Arc<dyn Hypervisor>;

impl Error {
    /// Whether trying again later may help without anybody acting.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
