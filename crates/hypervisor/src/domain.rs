//! Domains: defining, running, observing and migrating them.

use crate::{
    DomainUsage, Error, GuestTold, MoveState, NicAddresses, Result, Screens, Shutdown,
    StorageChange,
};
use async_trait::async_trait;
use fleetward_model::change::{MachineChange, NicPart};
use fleetward_model::host::{Accelerator, Confinement, DiskIo, Version};
use fleetward_model::machine::MachineSettings;
use fleetward_model::network::NetworkPlace;
use fleetward_model::vm::{Firmware, NewerSpec, NicSpec, VmMetadata};
use fleetward_model::{ByteSize, DeviceId, NicLink, VlanId, VmId, VmName};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
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
    /// One entry for each of `metadata.spec.drives`, same order: the medium's file, raw; none: the drive is empty.
    pub drive_paths: Vec<Option<PathBuf>>,
    /// What each of `metadata.spec.nics` is connected to on this host, same order.
    pub nic_places: Vec<NetworkPlace>,
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
    /// The machine itself. For what its firmware tries first, the order of all its disks, drives and cards is made anew.
    pub machine: MachineChange,
    /// Whether it has the TPM device with the VM's secret.
    pub tpm: Option<bool>,
    /// `(target, path)` of the disks that lie in another file now.
    pub disks: Vec<(String, PathBuf)>,
    /// Where serial output goes now, if it is kept at all.
    pub serial_log: Option<PathBuf>,
    /// Network cards that come, change or go, in this order.
    pub devices: Vec<DeviceChange>,
    /// Disks and drives that come, go or change, in this order.
    pub storage: Vec<StorageChange>,
}

/// One device that comes, changes or goes. Repeating it is harmless: it says what is to be, not how to get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceChange {
    Nic(NicDeviceChange),
}

/// A network card that is to be there in a certain way, or not to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicDeviceChange {
    /// What a definition of ours names it by.
    pub id: DeviceId,
    /// Hardware addresses that it has or had: it is found by them where the definition does not name it.
    pub macs: Vec<String>,
    /// None: it goes.
    pub to: Option<NicDefinition>,
    /// Of a card that is there already, what is changed; everything else of it stays.
    pub parts: Vec<NicPart>,
}

/// A network card, and what it is connected to on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicDefinition {
    pub spec: NicSpec,
    pub place: NetworkPlace,
}

/// A network card in a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicSeen {
    /// The id that our definition gives it; none where it has none.
    pub id: Option<DeviceId>,
    pub mac: String,
    pub model: String,
    /// None: it is connected to something else than user mode or a bridge.
    pub place: Option<NetworkPlace>,
    pub vlan: Option<VlanId>,
    pub link: NicLink,
    pub filter: Option<String>,
}

/// What a definition says about the next start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDefined {
    pub cpus: u32,
    pub memory: ByteSize,
    pub settings: MachineSettings,
    pub tpm: bool,
    pub nics: Vec<NicSeen>,
    /// `(target, path)` of every disk that is not a CD-ROM.
    pub disks: Vec<(String, PathBuf)>,
    /// `(target, path of the medium)` of every CD-ROM.
    pub drives: Vec<(String, Option<PathBuf>)>,
}

/// The hypervisor's own view of a domain's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainState {
    Running,
    /// Not executing, memory present. `incoming`: the memory is still arriving. When it has arrived, the copy at the
    /// destination is paused and not incoming; the copy at the source is also paused for the moment of the
    /// switch-over.
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
    /// Its memory is saved on the disk, and the next start goes on with it.
    Saved,
    /// Its memory has completely moved to another host. libvirtd reports `Ordinary` instead after a restart.
    Migrated,
    /// It could not start or its incoming memory was lost.
    Failed,
}

/// A domain as the hypervisor reports it.
///
/// While memory is arriving ([`DomainState::Paused`] with `incoming`) or the domain is starting, libvirt does not
/// return the definition: then `firmware`, `loader`, `machine`, `disks`, `nics`, `nvram_path`, `tpm`, `cpu_xml` and `console` are empty.
#[derive(Debug, Clone)]
pub struct DomainObserved {
    /// The file that libvirt makes its UEFI variables of; none where it tells none.
    pub nvram_template: Option<PathBuf>,
    pub id: VmId,
    pub name: VmName,
    /// The domain's own name, which need not be one of ours.
    pub domain_name: String,
    pub state: DomainState,
    /// libvirt's name for the reason of this state.
    pub reason: &'static str,
    /// Whether it is defined on this host, not only running.
    pub persistent: bool,
    /// None if Fleetward did not make the domain, or its metadata cannot be read.
    pub metadata: Option<VmMetadata>,
    /// A newer program wrote its metadata: the domain is one of ours, shown, and never changed.
    pub newer: Option<NewerSpec>,
    pub cpus: u32,
    pub memory: ByteSize,
    pub firmware: Option<Firmware>,
    /// The file of its firmware, which is its flash memory while it runs.
    pub loader: Option<PathBuf>,
    pub settings: MachineSettings,
    pub machine: String,
    pub accelerator: Accelerator,
    /// `(target, path)` of every disk that is not a CD-ROM.
    pub disks: Vec<(String, PathBuf)>,
    /// Its network cards as they are now.
    pub nics: Vec<NicSeen>,
    /// `(target, path of the medium)` of every CD-ROM.
    pub drives: Vec<(String, Option<PathBuf>)>,
    pub nvram_path: Option<PathBuf>,
    /// Whether the definition has a TPM device.
    pub tpm: bool,
    /// The CPU as defined (running: as expanded by libvirt), XML; what [`Hypervisor::check_cpu`] takes.
    pub cpu_xml: Option<String>,
    /// Whether an agent in the guest has opened its channel.
    pub guest_agent: bool,
    /// The serial console's pty, while it runs.
    pub console: Option<PathBuf>,
    /// What it starts with next. None while libvirt does not tell, or when nothing of it stays after it stops.
    pub defined: Option<DomainDefined>,
    /// Set while its machine does not answer: its devices are as the hypervisor told them then.
    pub as_of: Option<SystemTime>,
}

/// What one look sees of a running domain's machine that may not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineSeen {
    /// Its process, QEMU.
    pub pid: Option<u32>,
    /// The process was stopped, by a signal or a debugger.
    pub stopped: bool,
    /// The process waits in the kernel, where nothing interrupts it; how often it has waited before. Two looks with the same
    /// number saw the same wait.
    pub in_kernel: Option<u64>,
    /// For how long it has not answered what it was asked last.
    pub unanswered: Option<Duration>,
}

/// Capabilities of the hypervisor on this host.
#[derive(Debug, Clone)]
pub struct HypervisorFacts {
    pub libvirt: Version,
    pub qemu: Version,
    pub swtpm: Option<Version>,
    /// The library that swtpm emulates TPMs with; none where it could not be told.
    pub libtpms: Option<Version>,
    pub accelerator: Accelerator,
    pub cpus: u32,
    pub arch: String,
    pub cpu_model: String,
    pub memory: ByteSize,
    pub memory_available: ByteSize,
    /// Canonical q35 machine types.
    pub machines: Vec<String>,
    pub secure_boot: bool,
    /// What confines the processes of VMs.
    pub confinement: Confinement,
    /// Whether network cards on Linux bridges can have [`NicFilter::CleanTraffic`](fleetward_model::NicFilter).
    pub filters: bool,
}

/// An event of a domain. A reader that is too slow gets a `Lagged` error and must list the domains again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HypervisorEvent {
    /// Defined, started, stopped, suspended or changed: inspect it again.
    Changed(VmId),
    /// Its firmware begins: it was started here, or has started anew by itself. `Changed` tells of a start, too.
    Booted(VmId),
    /// Its process ended: the secret is no longer needed.
    Stopped(VmId),
    /// Undefined: gone.
    Removed(VmId),
    /// The connection to libvirt broke; events may have been missed until `Connected`.
    Disconnected,
    /// libvirt answers (again). If it has restarted, every secret is gone. Running domains do not need it, but a start
    /// or an arriving migration needs it loaded again.
    Connected,
}

/// Whether this host can run a given CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuVerdict {
    Compatible,
    /// Features that are missing, or libvirt's reason.
    Incompatible(String),
}

/// Which disks a migration copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationDisks {
    /// All disks are in directories that both hosts share.
    Shared,
    /// These targets are copied; the destination has volumes of the same size at the same paths.
    Copy(Vec<String>),
}

/// A live migration through Unix sockets that the agent forwards to the destination.
#[derive(Debug, Clone)]
pub struct MigrationRequest {
    /// Leads to the destination's libvirt.
    pub libvirt_socket: PathBuf,
    /// QEMU's memory stream; the destination's QEMU listens on the same path.
    pub memory_socket: PathBuf,
    /// NBD for disks; the destination's QEMU listens on the same path.
    pub disk_socket: PathBuf,
    pub disks: MigrationDisks,
    /// Metadata of the copy at the destination; the copy on this host keeps its own.
    pub arriving: VmMetadata,
    /// What network cards are connected to at the destination, by the address of the card. Those that are not named keep
    /// what they have here.
    pub nic_places: Vec<(String, NetworkPlace)>,
    /// How the destination reads and writes the disks, by target.
    pub disk_io: BTreeMap<String, DiskIo>,
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
    /// The guest's pause as measured by libvirt, without the hand-over that follows.
    pub downtime_ms: Option<u64>,
    pub transferred: u64,
}

/// State of a copy of a domain's disks.
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
    /// The last one failed because there was no room for it.
    Full(String),
}

/// One host's domains.
#[async_trait]
pub trait Hypervisor: Screens {
    async fn facts(&self) -> Result<HypervisorFacts>;

    /// Every domain of the host, also those that Fleetward did not make.
    async fn list(&self) -> Result<Vec<DomainObserved>>;

    /// One domain.
    ///
    /// # Errors
    /// [`Error::NoDomain`].
    async fn inspect(&self, id: VmId) -> Result<DomainObserved>;

    /// Whether a domain is paused, for whatever reason: told at once, also while its machine answers nothing.
    async fn is_paused(&self, id: VmId) -> Result<bool>;

    /// Defines a domain. Of one that is defined already only our metadata is replaced.
    ///
    /// # Errors
    /// [`Error::NewerSpec`] where a newer program wrote the domain's metadata: what this one does not know would be lost.
    async fn define(&self, definition: &DomainDefinition) -> Result<()>;

    /// Replaces our metadata and what `change` names in the definition, all of it or nothing; the domain stays in the state
    /// it is in. A running domain then gets the changes of devices as far as the hypervisor and the guest allow; whatever
    /// they do not allow it has after its next start, as the difference between the domain and its definition shows. Makes a
    /// domain that only runs a defined one.
    ///
    /// # Errors
    /// [`Error::NoDomain`]; [`Error::CannotChange`] when the definition has been edited in a way that stands against it;
    /// [`Error::NewerSpec`], as for `define`.
    async fn redefine(&self, id: VmId, metadata: &VmMetadata, change: &DomainChange) -> Result<()>;

    /// Gives a stopped domain another name, and changes nothing else. One that has it already is left alone.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::WrongState`].
    async fn rename(&self, id: VmId, name: &str) -> Result<()>;

    /// The definition as another host may take it over, in the hypervisor's own form, without our metadata.
    async fn portable_definition(&self, id: VmId) -> Result<String>;

    /// Replaces our metadata, on the running and on the persistent definition.
    ///
    /// # Errors
    /// [`Error::NewerSpec`], as for `define`.
    async fn write_metadata(&self, id: VmId, metadata: &VmMetadata) -> Result<()>;

    /// Starts a stopped domain; does nothing if it runs. If the domain has a TPM, its secret must be loaded first.
    async fn start(&self, id: VmId) -> Result<()>;

    /// Running domains whose machine may not answer, as one look sees them. Asks the machines nothing.
    async fn look_at_machines(&self) -> Result<HashMap<VmId, MachineSeen>>;

    /// What every running domain has used since it runs here. A machine that does not answer keeps it no longer than some seconds,
    /// and has no figures then that only it knows.
    async fn usage(&self) -> Result<Vec<DomainUsage>>;

    /// Asks the guest to shut down; returns when it has been asked.
    ///
    /// # Errors
    /// [`Error::NoGuestAgent`] when its agent was to be asked and does not answer.
    async fn request_shutdown(&self, id: VmId, by: Shutdown) -> Result<()>;

    /// What the agent in the guest says of it, within some seconds.
    ///
    /// # Errors
    /// [`Error::NoGuestAgent`].
    async fn ask_guest(&self, id: VmId) -> Result<GuestTold>;

    /// What this host knows of the guest's addresses without asking it: leases of its own networks, its neighbours.
    async fn neighbours(&self, id: VmId) -> Result<Vec<NicAddresses>>;

    /// Has the agent in the guest write everything to its disks, and hold back whatever writes there, until
    /// [`thaw_guest`](Self::thaw_guest).
    ///
    /// # Errors
    /// [`Error::NoGuestAgent`]; it may be frozen all the same.
    async fn freeze_guest(&self, id: VmId) -> Result<()>;

    /// Lets the guest write to its disks again. One that is not frozen is left alone.
    ///
    /// # Errors
    /// [`Error::NoGuestAgent`].
    async fn thaw_guest(&self, id: VmId) -> Result<()>;

    /// Lets the TPM of a domain whose processors stand still shut down, so that it does not count the end that follows as a
    /// wrong guess. Only before [`destroy`](Self::destroy); bounded in time.
    ///
    /// # Errors
    /// The TPM was not reached, or does not answer: the power can be cut all the same.
    async fn end_tpm(&self, id: VmId) -> Result<()>;

    /// Whether this is a domain of ours. Answers although its QEMU hangs and somebody waits for it, which
    /// [`inspect`](Self::inspect) does not.
    async fn is_ours(&self, id: VmId) -> Result<bool>;

    /// Cuts the power; does nothing if the domain is stopped. Also of a QEMU that hangs.
    async fn destroy(&self, id: VmId) -> Result<()>;

    /// Gives up the memory that a stopped domain has saved ([`StopReason::Saved`]); its next start is a boot. Nothing
    /// saved is success.
    async fn discard_saved(&self, id: VmId) -> Result<()>;

    /// Resumes a paused domain; does nothing if it runs.
    async fn resume(&self, id: VmId) -> Result<()>;

    /// Pauses a running domain; does nothing if it is paused.
    async fn suspend(&self, id: VmId) -> Result<()>;

    /// Begins to copy the disks of a running or paused domain, as of this moment, to new qcow2 files without a backing
    /// file, and returns at once. The guest can continue to write: blocks are copied before they are overwritten. The
    /// domain's own disks are unchanged, whether or not the copy succeeds. `(target, path)` of each disk; a path must
    /// not exist.
    async fn begin_copy(&self, id: VmId, disks: &[(String, PathBuf)]) -> Result<()>;

    /// Switches a running or paused domain to existing overlays, each over the disk's present volume: `(target, path)`
    /// of each disk. All disks switch at one moment, or none. The volumes below hold the content of that moment.
    async fn switch_to_overlays(&self, id: VmId, disks: &[(String, PathBuf)]) -> Result<()>;

    /// The state of the present copy.
    async fn copy_state(&self, id: VmId) -> Result<CopyState>;

    /// Cancels a copy and waits until it has ended. Does nothing if there is none. Its files stay.
    async fn abort_copy(&self, id: VmId) -> Result<()>;

    /// Makes a disk of a running or paused domain larger, volume and device; one of that size or larger is left alone.
    async fn grow_disk(&self, id: VmId, target: &str, size: ByteSize) -> Result<()>;

    /// Begins to copy a disk of a running or paused domain to `path`, an empty volume of its size, and returns at once. The
    /// guest goes on, and goes on over its present volume until [`finish_move`](Self::finish_move). A crash of the
    /// domain leaves the present volume as the disk.
    async fn begin_move(&self, id: VmId, target: &str, path: &Path) -> Result<()>;

    /// How far the copy is.
    async fn move_state(&self, id: VmId, target: &str) -> Result<MoveState>;

    /// Lets the domain go on over the new volume only, once it is [`MoveState::Mirrored`].
    async fn finish_move(&self, id: VmId, target: &str) -> Result<()>;

    /// Ends a copy under way and waits until it has ended; the domain goes on over its present volume. Does nothing if
    /// there is none.
    async fn abort_move(&self, id: VmId, target: &str) -> Result<()>;

    /// Removes a stopped domain's definition and its UEFI variables; keeps disks and TPM state. A missing domain is no
    /// error.
    async fn undefine(&self, id: VmId) -> Result<()>;

    /// Stores the text as an ephemeral, private libvirt secret whose uuid is the VM's. Replaces an earlier value.
    async fn load_secret(&self, id: VmId, text: &SecretText) -> Result<()>;

    /// Removes the secret; a missing one is no error.
    async fn drop_secret(&self, id: VmId) -> Result<()>;

    /// VMs whose secret is loaded; ignores secrets that Fleetward did not make.
    async fn loaded_secrets(&self) -> Result<Vec<VmId>>;

    /// Whether this host could run a guest with that CPU, live.
    async fn check_cpu(&self, cpu_xml: &str) -> Result<CpuVerdict>;

    /// Moves a running domain's memory, devices, TPM and disks to the destination, where it arrives *paused*. On this
    /// host it ends stopped ([`StopReason::Migrated`]) and stays defined. On failure the domain runs on this host as
    /// before. If the link broke at the very end, a paused, persistent copy may stay at the destination: such a copy
    /// does not prove that the domain has left. Only the success of this function, or a stopped source, does.
    ///
    /// Not idempotent. Progress is reported at least once a second.
    ///
    /// # Errors
    /// [`Error::Cancelled`] after `cancel`, [`Error::WrongState`] if it does not run, [`Error::Migration`]; after each
    /// of them the domain is still on this host. [`Error::Unavailable`]: libvirt went away, and the caller must
    /// inspect how the migration ended.
    async fn migrate(
        &self,
        id: VmId,
        request: &MigrationRequest,
        progress: watch::Sender<MigrationProgress>,
        cancel: CancellationToken,
    ) -> Result<MigrationOutcome>;

    /// Aborts a migration of this domain that an earlier agent process left, and waits until the domain runs: a copy
    /// that was left paused in the switch-over is resumed. Call it only while the destination's copy has not been
    /// resumed. Does nothing if there is no migration.
    async fn abort_leftover_migration(&self, id: VmId) -> Result<()>;

    /// Events from now on.
    fn events(&self) -> broadcast::Receiver<HypervisorEvent>;
}

/// A shared handle.
pub type SharedHypervisor = Arc<dyn Hypervisor>;

impl Error {
    /// Whether trying again later may help without anybody acting.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
