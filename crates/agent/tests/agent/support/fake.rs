//! A hypervisor that is none: domains, secrets, volumes and TPM state in memory and in plain files.
//!
//! Migration really goes through the three sockets: the source's fake speaks to the destination's through whatever
//! forwards them, one JSON line each way.

use async_trait::async_trait;
use fleetward_hypervisor::*;
use fleetward_model::host::{Accelerator, Confinement, DiskIo, Version};
use fleetward_model::machine::MachineSettings;
use fleetward_model::network::NetworkPlace;
use fleetward_model::vm::{NewerSpec, NicSpec, TpmLockout, VmMetadata};
use fleetward_model::{ByteSize, VmId};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
pub struct Domain {
    /// Its TPM was let shut down since its last start.
    pub tpm_ended: bool,
    /// Its TPM does not answer.
    pub tpm_hangs: bool,
    pub metadata: Option<VmMetadata>,
    /// Set: a newer program wrote the metadata.
    pub newer: Option<NewerSpec>,
    pub name: String,
    pub state: DomainState,
    pub disks: Vec<(String, PathBuf)>,
    /// What it starts with next.
    pub next_disks: Vec<(String, PathBuf)>,
    pub drives: Vec<(String, Option<PathBuf>)>,
    pub next_drives: Vec<(String, Option<PathBuf>)>,
    pub nvram: PathBuf,
    /// The TPM device.
    pub tpm: bool,
    pub cpus: u32,
    pub memory: ByteSize,
    pub settings: MachineSettings,
    /// What somebody wrote into the definition by hand.
    pub foreign: String,
    /// As they are now, and as they are defined.
    pub nics: Vec<NicSeen>,
    pub next_nics: Vec<NicSeen>,
}

#[derive(Default)]
pub struct State {
    pub domains: BTreeMap<VmId, Domain>,
    pub secrets: BTreeMap<VmId, String>,
    pub started: Vec<VmId>,
    /// The variables of every VM that has started or arrived.
    pub firmware_writes: Option<Vec<u8>>,
    pub ignore_shutdown: bool,
    pub away: bool,
    /// Running guests keep their devices as they are.
    pub guests_hold_on: bool,
    /// This host has no program for conversions.
    pub cannot_convert: bool,
    /// QEMU hangs: a guest is not suspended before it is cut off.
    pub hangs: bool,
    /// Somebody waits for that.
    pub waits: bool,
    /// Machines that do not answer, as a look sees them.
    pub silent_machines: std::collections::HashMap<VmId, fleetward_hypervisor::MachineSeen>,
    /// The processes of TPMs that were stopped.
    pub stopped_tpms: std::collections::HashMap<VmId, u32>,
    /// What the processes of TPMs do about what they are asked. A migration ends when QEMU does not wait for them any more.
    pub attention: std::collections::HashMap<VmId, TpmAttention>,
    /// TPMs whose processes were ended.
    pub cut_off: Vec<VmId>,
    /// States that were tried with a key, each as often as that was done.
    pub proved: Vec<Vec<u8>>,
    /// There is no swtpm that could try one.
    pub proves_nothing: bool,
    /// A migration takes this long before it ends.
    pub migration_takes: std::time::Duration,
    /// Modes of the directory of the latest migration and of its sockets: for libvirt, memory and disks.
    pub socket_modes: Option<(u32, [u32; 3])>,
    /// The migration arrives, and its report is lost on the way back.
    pub lose_report: bool,
    /// Volumes that have grown.
    pub sizes: BTreeMap<PathBuf, ByteSize>,
    /// Disks that are mirrored: VM, target, and where to.
    pub mirrors: Vec<(VmId, String, PathBuf)>,
    /// Mirrors break off.
    pub mirrors_break: bool,
    /// Targets that guests hold on to.
    pub held: Vec<String>,
    /// Guests asked to shut down, migrations begun.
    pub shutdowns: usize,
    /// VMs with an agent in the guest; what all of them say; whether they take a shutdown and do nothing.
    pub agents: std::collections::BTreeSet<VmId>,
    pub told: GuestTold,
    pub agent_ignores_shutdown: bool,
    /// What the host sees of guests without asking them.
    pub neighbours: Vec<NicAddresses>,
    /// Guests that were frozen (true) and thawed, in order.
    pub frozen: Vec<(VmId, bool)>,
    pub migrations: usize,
    /// Chords that were pressed.
    pub typed: Vec<Vec<u16>>,
}

pub struct Fake {
    pub root: PathBuf,
    pub state: Mutex<State>,
    events: broadcast::Sender<HypervisorEvent>,
}

impl Fake {
    pub fn new(root: PathBuf) -> Arc<Self> {
        for name in ["nvram", "swtpm", "pool"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        let fake = Arc::new(Self {
            root,
            state: Mutex::default(),
            events: broadcast::channel(64).0,
        });
        tokio::spawn(fake.clone().listen());
        fake
    }

    /// Waits until it has come so far.
    pub async fn until(&self, what: &str, so_far: impl Fn(&State) -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !self.with(|s| so_far(s)) {
            assert!(std::time::Instant::now() < deadline, "no {what}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub fn libvirt_socket(&self) -> PathBuf {
        self.root.join("libvirt-sock")
    }

    async fn listen(self: Arc<Self>) {
        let _ = std::fs::remove_file(self.libvirt_socket());
        let listener = UnixListener::bind(self.libvirt_socket()).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let fake = self.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                    return;
                }
                let metadata: VmMetadata = serde_json::from_str(&line).unwrap();
                let id = metadata.spec.id;
                let answer = {
                    let mut state = fake.state.lock().unwrap();
                    if metadata.spec.tpm && !state.secrets.contains_key(&id) {
                        "Secret not found\n"
                    } else {
                        if metadata.spec.tpm {
                            std::fs::write(fake.tpm(id), tpm_state("arrived")).unwrap();
                        }
                        let domain = fake.domain(metadata, DomainState::Paused { incoming: false });
                        if let Some(variables) = &state.firmware_writes {
                            std::fs::write(&domain.nvram, variables).unwrap();
                        }
                        state.domains.insert(id, domain);
                        "ok\n"
                    }
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    }

    fn domain(&self, metadata: VmMetadata, state: DomainState) -> Domain {
        let disks: Vec<(String, PathBuf)> = metadata
            .spec
            .disks
            .iter()
            .map(|d| (d.target.clone(), self.root.join("pool").join(&d.volume)))
            .collect();
        let drives: Vec<(String, Option<PathBuf>)> = metadata
            .spec
            .drives
            .iter()
            .map(|d| (d.target.clone(), None))
            .collect();
        Domain {
            tpm_ended: false,
            tpm_hangs: false,
            newer: None,
            name: metadata.spec.name.to_string(),
            next_disks: disks.clone(),
            disks,
            next_drives: drives.clone(),
            drives,
            nvram: self
                .root
                .join("nvram")
                .join(format!("{}_VARS.fd", metadata.spec.id)),
            tpm: metadata.spec.tpm,
            cpus: metadata.spec.cpus,
            memory: metadata.spec.memory,
            settings: MachineSettings {
                boot: Some(metadata.spec.boot),
                clock: Some(metadata.spec.clock()),
            },
            foreign: String::new(),
            nics: Vec::new(),
            next_nics: Vec::new(),
            metadata: Some(metadata),
            state,
        }
    }

    /// A domain that is there already, in that state.
    pub fn define_as_it_was(&self, metadata: VmMetadata, state: DomainState) {
        let domain = self.domain(metadata, state);
        for (_, disk) in &domain.disks {
            std::fs::write(disk, b"disk").unwrap();
        }
        let id = domain.metadata.as_ref().unwrap().spec.id;
        self.with(|s| s.domains.insert(id, domain));
    }

    pub fn tpm(&self, vm: VmId) -> PathBuf {
        self.root.join("swtpm").join(vm.to_string())
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Everything a VM can leave behind on a host.
    pub fn rests(&self) -> Vec<String> {
        let mut rests: Vec<String> = ["nvram", "swtpm", "pool"]
            .iter()
            .flat_map(|name| std::fs::read_dir(self.root.join(name)).unwrap())
            .map(|entry| entry.unwrap().path().display().to_string())
            .filter(|path| !path.ends_with(".fleetward-pool"))
            .collect();
        self.with(|s| {
            rests.extend(s.domains.keys().map(|id| format!("domain {id}")));
            rests.extend(s.secrets.keys().map(|id| format!("secret {id}")));
        });
        rests
    }

    fn check(&self) -> Result<()> {
        if self.with(|s| s.away) {
            return Err(Error::Unavailable("away".into()));
        }
        Ok(())
    }

    fn change<T>(&self, id: VmId, change: impl FnOnce(&mut Domain) -> Result<T>) -> Result<T> {
        self.check()?;
        let result = self.with(|s| change(s.domains.get_mut(&id).ok_or(Error::NoDomain(id))?));
        let _ = self.events.send(HypervisorEvent::Changed(id));
        result
    }

    fn guest(&self, id: VmId) -> Result<()> {
        self.check()?;
        match self.with(|s| s.agents.contains(&id)) {
            true => Ok(()),
            false => Err(Error::NoGuestAgent {
                id,
                because: "not connected".into(),
            }),
        }
    }

    /// Whether a domain has a screen now.
    fn shown(&self, id: VmId) -> Result<()> {
        self.check()?;
        self.with(|s| match s.domains.get(&id) {
            Some(domain) if domain.state == DomainState::Running => Ok(()),
            Some(_) => Err(Error::WrongState {
                id,
                state: "stopped".into(),
                attempt: "be seen",
            }),
            None => Err(Error::NoDomain(id)),
        })
    }

    pub fn stop_by_itself(&self, id: VmId) {
        self.stop_because(id, StopReason::Ordinary);
    }

    pub fn stop_because(&self, id: VmId, reason: StopReason) {
        self.with(|s| s.domains.get_mut(&id).unwrap().state = DomainState::Stopped(reason));
        let _ = self.events.send(HypervisorEvent::Stopped(id));
    }

    fn observed(&self, id: VmId, d: &Domain) -> DomainObserved {
        DomainObserved {
            id,
            name: d.name.parse().unwrap(),
            domain_name: d.name.clone(),
            state: d.state,
            reason: "booted",
            persistent: true,
            cpus: d.cpus,
            memory: d.memory,
            as_of: None,
            defined: Some(DomainDefined {
                cpus: d.cpus,
                memory: d.memory,
                settings: d.settings,
                tpm: d.tpm,
                nics: d.next_nics.clone(),
                disks: d.next_disks.clone(),
                drives: d.next_drives.clone(),
            }),
            firmware: d.metadata.as_ref().map(|metadata| metadata.spec.firmware),
            settings: d.settings,
            machine: "pc-q35-10.0".into(),
            accelerator: Accelerator::Tcg,
            disks: d.disks.clone(),
            nics: d.nics.clone(),
            drives: d.drives.clone(),
            nvram_path: Some(d.nvram.clone()),
            nvram_template: self
                .root
                .join("template_VARS.fd")
                .exists()
                .then(|| self.root.join("template_VARS.fd")),
            tpm: d.tpm,
            guest_agent: self.with(|s| s.agents.contains(&id)) && d.state == DomainState::Running,
            cpu_xml: None,
            loader: None,
            console: None,
            metadata: d.metadata.clone(),
            newer: d.newer.clone(),
        }
    }
}

fn card(nic: &NicSpec, place: &NetworkPlace) -> NicSeen {
    NicSeen {
        id: Some(nic.id.clone()),
        mac: nic.mac.clone(),
        model: nic.model.into_str().to_owned(),
        place: Some(place.clone()),
        vlan: nic.vlan,
        link: nic.link,
        filter: nic.filter.map(|filter| filter.to_string()),
    }
}

fn change_card(cards: &mut Vec<NicSeen>, change: &NicDeviceChange) {
    let at = cards
        .iter()
        .position(|card| card.id.as_ref() == Some(&change.id));
    match (at, change.to.as_ref().map(|to| card(&to.spec, &to.place))) {
        (Some(at), Some(card)) => cards[at] = card,
        (Some(at), None) => drop(cards.remove(at)),
        (None, Some(card)) => cards.push(card),
        (None, None) => {}
    }
}

impl Domain {
    /// Its machine is the one of its definition.
    fn restarts(&mut self) {
        self.disks.clone_from(&self.next_disks);
        self.drives.clone_from(&self.next_drives);
    }
}

/// As libvirt and QEMU do: disks named `sd` and drives come and go with the next start.
fn change_storage(id: VmId, d: &mut Domain, change: &StorageChange, held: &[String]) -> Result<()> {
    fn has<P>(devices: &[(String, P)], target: &str) -> bool {
        devices.iter().any(|device| device.0 == target)
    }
    match change {
        StorageChange::AddDisk(disk) => {
            let added = (disk.spec.target.clone(), disk.path.clone());
            let at_once = disk.spec.target.starts_with("vd");
            if at_once && !has(&d.disks, &added.0) {
                d.disks.push(added.clone());
            }
            if !has(&d.next_disks, &added.0) {
                d.next_disks.push(added);
            }
        }
        StorageChange::RemoveDisk { target } => {
            d.next_disks.retain(|disk| disk.0 != *target);
            let runs = !matches!(d.state, DomainState::Stopped(_));
            if runs && has(&d.disks, target) && held.contains(target) {
                let device = format!("disk {target}");
                return Err(Error::DeviceHeld { id, device });
            }
            d.disks.retain(|disk| disk.0 != *target);
        }
        StorageChange::AddDrive(drive) => {
            if !has(&d.next_drives, &drive.spec.target) {
                let added = (drive.spec.target.clone(), drive.path.clone());
                d.next_drives.push(added);
            }
        }
        StorageChange::RemoveDrive { target } => {
            d.next_drives.retain(|drive| drive.0 != *target);
            for drive in d.drives.iter_mut().filter(|drive| drive.0 == *target) {
                drive.1 = None;
            }
        }
        StorageChange::SetMedium { target, path, .. } => {
            let runs = !matches!(d.state, DomainState::Stopped(_));
            if runs && held.contains(target) {
                let device = format!("the medium in drive {target}");
                return Err(Error::DeviceHeld { id, device });
            }
            for drives in [&mut d.drives, &mut d.next_drives] {
                for drive in drives.iter_mut().filter(|drive| drive.0 == *target) {
                    drive.1.clone_from(path);
                }
            }
        }
    }
    Ok(())
}

/// What has the header of whole, encrypted TPM state (see `fleetward_model::tpm_state`).
pub fn tpm_state(content: &str) -> Vec<u8> {
    let length = 10 + u32::try_from(content.len()).unwrap();
    let header = [&[2, 1, 0, 10, 0, 1][..], &length.to_be_bytes()].concat();
    [&header, content.as_bytes()].concat()
}

fn refuse_newer(id: VmId, domain: &Domain) -> Result<()> {
    match &domain.newer {
        Some(newer) => Err(Error::NewerSpec(id, newer.clone())),
        None => Ok(()),
    }
}

/// Somebody waits for QEMU, until this is dropped.
struct Waiting<'a>(&'a Fake);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.with(|s| s.waits = false);
    }
}

#[async_trait]
impl Hypervisor for Fake {
    async fn facts(&self) -> Result<HypervisorFacts> {
        self.check()?;
        Ok(HypervisorFacts {
            libvirt: Version::new(11, 3, 0),
            qemu: Version::new(10, 0, 2),
            swtpm: Some(Version::new(0, 7, 1)),
            libtpms: Some(Version::new(0, 9, 2)),
            accelerator: Accelerator::Tcg,
            cpus: 2,
            arch: "x86_64".into(),
            cpu_model: "fake".into(),
            memory: ByteSize::gib(4),
            memory_available: ByteSize::gib(4),
            machines: vec!["pc-q35-10.0".into()],
            secure_boot: true,
            confinement: Confinement::None,
            filters: true,
        })
    }
    async fn list(&self) -> Result<Vec<DomainObserved>> {
        self.check()?;
        let domains = self.with(|s| s.domains.clone());
        Ok(domains
            .iter()
            .map(|(id, d)| self.observed(*id, d))
            .collect())
    }
    async fn inspect(&self, id: VmId) -> Result<DomainObserved> {
        self.check()?;
        // As libvirt: it gives no definition while somebody waits for QEMU.
        while self.with(|s| s.waits) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let domain = self.with(|s| s.domains.get(&id).cloned());
        domain
            .map(|d| self.observed(id, &d))
            .ok_or(Error::NoDomain(id))
    }
    async fn is_paused(&self, id: VmId) -> Result<bool> {
        let domain = Hypervisor::inspect(self, id).await?;
        Ok(matches!(domain.state, DomainState::Paused { .. }))
    }
    async fn is_ours(&self, id: VmId) -> Result<bool> {
        self.check()?;
        self.with(|s| s.domains.get(&id).map(|d| d.metadata.is_some()))
            .ok_or(Error::NoDomain(id))
    }
    async fn define(&self, definition: &DomainDefinition) -> Result<()> {
        self.check()?;
        let id = definition.metadata.spec.id;
        let mut domain = self.domain(
            definition.metadata.clone(),
            DomainState::Stopped(StopReason::Ordinary),
        );
        domain.nvram = definition.nvram_path.clone();
        let nics = definition.metadata.spec.nics.iter();
        let nics = nics.zip(&definition.nic_places);
        domain.nics = nics.map(|(nic, place)| card(nic, place)).collect();
        domain.next_nics = domain.nics.clone();
        domain.foreign = definition.carried.clone().unwrap_or_default();
        self.with(|s| {
            match s.domains.get_mut(&id) {
                Some(known) => {
                    refuse_newer(id, known)?;
                    known.metadata = domain.metadata;
                }
                None => {
                    s.domains.insert(id, domain);
                }
            }
            Ok(())
        })?;
        let _ = self.events.send(HypervisorEvent::Changed(id));
        Ok(())
    }
    async fn redefine(&self, id: VmId, metadata: &VmMetadata, change: &DomainChange) -> Result<()> {
        let holds_on = self.with(|s| s.guests_hold_on);
        let held = self.with(|s| s.held.clone());
        self.change(id, |d| {
            refuse_newer(id, d)?;
            d.metadata = Some(metadata.clone());
            d.cpus = change.machine.cpus.unwrap_or(d.cpus);
            d.memory = change.machine.memory.unwrap_or(d.memory);
            d.settings.boot = change.machine.boot.or(d.settings.boot);
            d.settings.clock = change.machine.clock.or(d.settings.clock);
            d.tpm = change.tpm.unwrap_or(d.tpm);
            for (target, path) in &change.disks {
                for disks in [&mut d.disks, &mut d.next_disks] {
                    let disk = disks.iter_mut().find(|disk| disk.0 == *target);
                    disk.expect("a disk of the domain").1.clone_from(path);
                }
            }
            for change in &change.storage {
                change_storage(id, d, change, &held)?;
            }
            if matches!(d.state, DomainState::Stopped(_)) {
                d.restarts();
            }
            let runs = !matches!(d.state, DomainState::Stopped(_));
            for DeviceChange::Nic(change) in &change.devices {
                change_card(&mut d.next_nics, change);
                if !(runs && holds_on) {
                    change_card(&mut d.nics, change);
                }
            }
            Ok(())
        })
    }
    async fn rename(&self, id: VmId, name: &str) -> Result<()> {
        let taken = self.with(|s| {
            let mut others = s.domains.iter().filter(|(other, _)| **other != id);
            others.any(|(_, d)| d.name == name)
        });
        if taken {
            return Err(Error::NameTaken {
                name: name.to_string(),
            });
        }
        self.change(id, |d| match d.state {
            DomainState::Stopped(_) => {
                d.name = name.to_string();
                Ok(())
            }
            DomainState::Running | DomainState::Paused { .. } => Err(Error::WrongState {
                id,
                state: "running".into(),
                attempt: "be renamed",
            }),
        })
    }
    async fn portable_definition(&self, id: VmId) -> Result<String> {
        self.change(id, |d| Ok(d.foreign.clone()))
    }
    async fn write_metadata(&self, id: VmId, metadata: &VmMetadata) -> Result<()> {
        self.change(id, |d| {
            refuse_newer(id, d)?;
            d.metadata = Some(metadata.clone());
            Ok(())
        })
    }
    async fn start(&self, id: VmId) -> Result<()> {
        self.check()?;
        let tpm = self.tpm(id).exists();
        let result = self.with(|s| {
            let secret = s.secrets.contains_key(&id);
            let domain = s.domains.get_mut(&id).ok_or(Error::NoDomain(id))?;
            if domain.metadata.as_ref().is_some_and(|m| m.spec.tpm) && !(secret && tpm) {
                return Err(Error::Libvirt {
                    attempt: "start",
                    source: "Secret not found".into(),
                });
            }
            let variables = s.firmware_writes.as_deref().unwrap_or(b"vars");
            std::fs::write(&domain.nvram, variables).unwrap();
            domain.restarts();
            domain.state = DomainState::Running;
            s.started.push(id);
            Ok(())
        });
        let _ = self.events.send(HypervisorEvent::Changed(id));
        result
    }
    async fn ask_guest(&self, id: VmId) -> Result<GuestTold> {
        self.guest(id)?;
        Ok(self.with(|s| s.told.clone()))
    }
    async fn neighbours(&self, _id: VmId) -> Result<Vec<NicAddresses>> {
        Ok(self.with(|s| s.neighbours.clone()))
    }
    async fn freeze_guest(&self, id: VmId) -> Result<()> {
        self.guest(id)?;
        self.with(|s| s.frozen.push((id, true)));
        Ok(())
    }
    async fn thaw_guest(&self, id: VmId) -> Result<()> {
        self.guest(id)?;
        let runs = self.with(|s| s.domains[&id].state == DomainState::Running);
        assert!(runs, "a guest that stands still cannot thaw its disks");
        self.with(|s| s.frozen.push((id, false)));
        Ok(())
    }
    async fn look_at_machines(
        &self,
    ) -> Result<std::collections::HashMap<VmId, fleetward_hypervisor::MachineSeen>> {
        Ok(self.with(|s| s.silent_machines.clone()))
    }
    async fn usage(&self) -> Result<Vec<DomainUsage>> {
        self.with(|state| {
            let runs = |domain: &Domain| {
                matches!(
                    domain.state,
                    DomainState::Running | DomainState::Paused { .. }
                )
            };
            let running = state.domains.iter().filter(|(_, domain)| runs(domain));
            let usage = running.map(|(id, domain)| DomainUsage {
                id: *id,
                run: 1,
                cpus: domain.cpus,
                cpu_time: std::time::Duration::ZERO,
                memory: Some(ByteSize::mib(64)),
                disks: Some(DiskCounters::default()),
                nics: Some(NetCounters::default()),
            });
            Ok(usage.collect())
        })
    }
    async fn request_shutdown(&self, id: VmId, by: Shutdown) -> Result<()> {
        if by == Shutdown::GuestAgent {
            self.guest(id)?;
            if self.with(|s| s.agent_ignores_shutdown) {
                return Ok(());
            }
        }
        let ignore = self.with(|s| {
            s.shutdowns += 1;
            s.ignore_shutdown
        });
        self.change(id, |d| {
            if !ignore {
                d.state = DomainState::Stopped(StopReason::Ordinary);
            }
            Ok(())
        })
    }
    async fn discard_saved(&self, id: VmId) -> Result<()> {
        self.change(id, |d| {
            if d.state == DomainState::Stopped(StopReason::Saved) {
                d.state = DomainState::Stopped(StopReason::Ordinary);
            }
            Ok(())
        })
    }
    async fn end_tpm(&self, id: VmId) -> Result<()> {
        self.change(id, |d| match d.state {
            DomainState::Paused { .. } if d.tpm_hangs => Err(Error::Tpm("no answer".into())),
            DomainState::Paused { .. } => {
                d.tpm_ended = true;
                Ok(())
            }
            DomainState::Running | DomainState::Stopped(_) => panic!("it stands not still"),
        })
    }
    async fn destroy(&self, id: VmId) -> Result<()> {
        self.change(id, |d| {
            if !matches!(d.state, DomainState::Stopped(_)) {
                d.state = DomainState::Stopped(StopReason::Ordinary);
            }
            Ok(())
        })
    }
    async fn resume(&self, id: VmId) -> Result<()> {
        self.change(id, |d| match d.state {
            DomainState::Stopped(_) => Err(Error::WrongState {
                id,
                state: "stopped".into(),
                attempt: "resume",
            }),
            DomainState::Running | DomainState::Paused { .. } => {
                d.state = DomainState::Running;
                Ok(())
            }
        })
    }
    async fn suspend(&self, id: VmId) -> Result<()> {
        // Whoever does not wait any longer keeps nobody from asking.
        let _waiting = Waiting(self);
        while self.with(|s| {
            let runs = s
                .domains
                .get(&id)
                .is_some_and(|d| d.state == DomainState::Running);
            s.waits = s.hangs && runs;
            s.waits
        }) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        if self.with(|s| s.hangs) {
            return Err(Error::Unavailable("the monitor was closed".into()));
        }
        self.change(id, |d| {
            d.state = DomainState::Paused { incoming: false };
            Ok(())
        })
    }
    async fn begin_copy(&self, id: VmId, disks: &[(String, PathBuf)]) -> Result<()> {
        self.change(id, |d| {
            assert_eq!(
                d.state,
                DomainState::Paused { incoming: false },
                "a copy of no moment"
            );
            for ((_, from), (_, to)) in d.disks.iter().zip(disks) {
                std::fs::copy(from, to).unwrap();
            }
            Ok(())
        })
    }
    async fn switch_to_overlays(&self, id: VmId, disks: &[(String, PathBuf)]) -> Result<()> {
        self.change(id, |d| {
            assert_eq!(d.state, DomainState::Paused { incoming: false });
            d.disks = disks.to_vec();
            d.next_disks = disks.to_vec();
            Ok(())
        })
    }
    async fn copy_state(&self, _id: VmId) -> Result<CopyState> {
        Ok(CopyState::Done)
    }
    async fn abort_copy(&self, _id: VmId) -> Result<()> {
        self.check()
    }
    async fn grow_disk(&self, id: VmId, target: &str, size: ByteSize) -> Result<()> {
        let path = self.change(id, |d| {
            let disk = d.disks.iter().find(|disk| disk.0 == target);
            Ok(disk.expect("a disk of the domain").1.clone())
        })?;
        self.grow(&path, size).await
    }
    async fn begin_move(&self, id: VmId, target: &str, path: &Path) -> Result<()> {
        self.check()?;
        assert!(path.exists(), "mirrored to nowhere");
        let mirror = (id, target.to_owned(), path.to_owned());
        self.with(|s| s.mirrors.push(mirror));
        Ok(())
    }
    async fn move_state(&self, id: VmId, target: &str) -> Result<MoveState> {
        self.check()?;
        Ok(self.with(|s| {
            if s.mirrors_break {
                s.mirrors.clear();
            }
            let mirrored = s.mirrors.iter().any(|m| m.0 == id && m.1 == target);
            match mirrored {
                true => MoveState::Mirrored,
                false => MoveState::Still,
            }
        }))
    }
    async fn finish_move(&self, id: VmId, target: &str) -> Result<()> {
        let found = self.with(|s| {
            let at = s.mirrors.iter().position(|m| m.0 == id && m.1 == target);
            s.mirrors.remove(at.expect("a mirror"))
        });
        self.change(id, |d| {
            let disk = d.disks.iter_mut().find(|disk| disk.0 == target);
            disk.expect("a disk of the domain").1 = found.2;
            Ok(())
        })
    }
    async fn abort_move(&self, id: VmId, target: &str) -> Result<()> {
        self.check()?;
        self.with(|s| s.mirrors.retain(|m| m.0 != id || m.1 != target));
        Ok(())
    }
    async fn undefine(&self, id: VmId) -> Result<()> {
        self.check()?;
        if let Some(domain) = self.with(|s| s.domains.remove(&id)) {
            assert!(
                matches!(domain.state, DomainState::Stopped(_)),
                "undefined while it runs"
            );
            let _ = std::fs::remove_file(domain.nvram);
        }
        let _ = self.events.send(HypervisorEvent::Removed(id));
        Ok(())
    }
    async fn load_secret(&self, id: VmId, text: &SecretText) -> Result<()> {
        self.check()?;
        self.with(|s| s.secrets.insert(id, text.expose().to_owned()));
        Ok(())
    }
    async fn drop_secret(&self, id: VmId) -> Result<()> {
        self.check()?;
        self.with(|s| s.secrets.remove(&id));
        Ok(())
    }
    async fn loaded_secrets(&self) -> Result<Vec<VmId>> {
        self.check()?;
        Ok(self.with(|s| s.secrets.keys().copied().collect()))
    }
    async fn check_cpu(&self, _cpu_xml: &str) -> Result<CpuVerdict> {
        Ok(CpuVerdict::Compatible)
    }
    async fn migrate(
        &self,
        id: VmId,
        request: &MigrationRequest,
        progress: watch::Sender<MigrationProgress>,
        cancel: CancellationToken,
    ) -> Result<MigrationOutcome> {
        let (takes, lose) = self.with(|s| {
            s.migrations += 1;
            (s.migration_takes, s.lose_report)
        });
        progress.send_replace(MigrationProgress {
            memory_done: 1,
            memory_total: 2,
            ..Default::default()
        });
        tokio::select! {
            () = cancel.cancelled() => {
                // QEMU ends nothing while it waits for its TPM.
                while self.with(|s| s.attention.contains_key(&id)) {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                return Err(Error::Cancelled);
            }
            () = tokio::time::sleep(takes) => {}
        }
        let failed = |e: std::io::Error| Error::Migration(e.into());
        let sockets = [
            &request.libvirt_socket,
            &request.memory_socket,
            &request.disk_socket,
        ];
        let of = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let directory = of(request.libvirt_socket.parent().unwrap());
        self.with(|s| s.socket_modes = Some((directory, sockets.map(|path| of(path)))));
        let stream = UnixStream::connect(&request.libvirt_socket)
            .await
            .map_err(failed)?;
        let mut stream = BufReader::new(stream);
        let mut line = serde_json::to_string(&request.arriving).unwrap();
        line.push('\n');
        stream.write_all(line.as_bytes()).await.map_err(failed)?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await.map_err(failed)?;
        if answer.trim() != "ok" {
            return Err(Error::Migration(
                format!("the destination said {:?}", answer.trim()).into(),
            ));
        }
        if lose {
            return Err(Error::Migration("the report was lost".into()));
        }
        self.change(id, |d| {
            d.state = DomainState::Stopped(StopReason::Migrated);
            Ok(())
        })?;
        Ok(MigrationOutcome {
            total_ms: 7,
            downtime_ms: Some(3),
            transferred: 99,
        })
    }
    async fn abort_leftover_migration(&self, id: VmId) -> Result<()> {
        self.change(id, |d| {
            if d.state == (DomainState::Paused { incoming: false }) {
                d.state = DomainState::Running;
            }
            Ok(())
        })
    }
    fn events(&self) -> broadcast::Receiver<HypervisorEvent> {
        self.events.subscribe()
    }
}

/// A screen that echoes, is black, and counts what is typed.
#[async_trait]
impl Screens for Fake {
    async fn open_screen(&self, id: VmId) -> Result<std::os::fd::OwnedFd> {
        self.shown(id)?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        std::thread::spawn(move || std::io::copy(&mut &ours, &mut &ours));
        Ok(theirs.into())
    }
    async fn screenshot(&self, id: VmId) -> Result<Picture> {
        self.shown(id)?;
        let (width, height) = (8, 4);
        let rgb = vec![0; 8 * 4 * 3];
        Ok(Picture { width, height, rgb })
    }
    async fn press(
        &self,
        id: VmId,
        chord: &fleetward_model::keys::Chord,
        _hold: std::time::Duration,
    ) -> Result<()> {
        self.shown(id)?;
        self.with(|s| s.typed.push(chord.codes().to_vec()));
        Ok(())
    }
}

/// Knows one format: `foreign:CONTENT` becomes `CONTENT`; `slow` never ends.
#[async_trait]
impl Converter for Fake {
    async fn ready(&self) -> Result<(), ConversionError> {
        match self.with(|state| state.cannot_convert) {
            true => Err(ConversionError::Unable("bwrap is not installed".into())),
            false => Ok(()),
        }
    }

    async fn convert(
        &self,
        conversion: Conversion<'_>,
        progress: &(dyn Fn(ConversionProgress) + Send + Sync),
    ) -> Result<Converted, ConversionError> {
        let content = tokio::fs::read(conversion.source).await.unwrap();
        let step = "convert";
        progress(ConversionProgress {
            step,
            permille: 500,
        });
        if content == b"slow" {
            std::future::pending::<()>().await;
        }
        let Some(disk) = content.strip_prefix(b"foreign:") else {
            return Err(ConversionError::Unusable("it is damaged".into()));
        };
        let path = conversion.directory.join("made");
        tokio::fs::write(&path, disk).await.unwrap();
        progress(ConversionProgress {
            step,
            permille: 1000,
        });
        let found = vec!["vhdx"];
        Ok(Converted { path, found })
    }
}

#[async_trait]
impl Volumes for Fake {
    async fn inspect(&self, path: &Path, format: Option<&str>) -> Result<VolumeInfo> {
        let content = std::fs::read(path).unwrap();
        if !content.starts_with(b"disk") {
            return Err(Error::BadImage {
                path: path.into(),
                because: "not a disk".into(),
            });
        }
        Ok(VolumeInfo {
            format: format.unwrap_or("raw").into(),
            virtual_size: ByteSize(content.len() as u64),
            allocated: ByteSize(content.len() as u64),
            bases: Vec::new(),
        })
    }
    async fn inspect_volume(&self, path: &Path) -> Result<VolumeInfo> {
        let bases = self.bases(path).await?;
        let info = Volumes::inspect(self, path, Some("qcow2")).await?;
        let grown = self.with(|s| s.sizes.get(path).copied());
        Ok(VolumeInfo {
            bases,
            virtual_size: grown.unwrap_or(info.virtual_size),
            ..info
        })
    }
    /// An overlay is a file that says `disk over NAME`.
    async fn bases(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let content = std::fs::read_to_string(path).unwrap_or_default();
        let Some(name) = content.strip_prefix("disk over ") else {
            return Ok(Vec::new());
        };
        let base = path.with_file_name(name);
        let below = self.bases(&base).await?;
        Ok([vec![base], below].concat())
    }
    async fn create_overlay(&self, base: &Path, path: &Path) -> Result<()> {
        let name = base.file_name().unwrap().to_str().unwrap();
        std::fs::write(path, format!("disk over {name}")).unwrap();
        Ok(())
    }
    async fn is_unwritten(&self, path: &Path) -> Result<bool> {
        Ok(std::fs::read_to_string(path)
            .unwrap()
            .starts_with("disk over "))
    }
    async fn freeze(&self, path: &Path) -> Result<()> {
        let mut frozen = std::fs::metadata(path).unwrap().permissions();
        frozen.set_readonly(true);
        std::fs::set_permissions(path, frozen).unwrap();
        Ok(())
    }
    async fn is_frozen(&self, path: &Path) -> Result<bool> {
        Ok(std::fs::metadata(path).unwrap().permissions().readonly())
    }
    async fn create_empty(&self, path: &Path, _size: ByteSize) -> Result<()> {
        if !path.exists() {
            std::fs::write(path, b"disk empty").unwrap();
        }
        Ok(())
    }
    async fn create_from_image(
        &self,
        image: &Path,
        _format: &str,
        path: &Path,
        size: ByteSize,
    ) -> Result<()> {
        if size > ByteSize::gib(1000) {
            return Err(Error::NoSpace { path: path.into() });
        }
        std::fs::copy(image, path).unwrap();
        Ok(())
    }
    async fn grow(&self, path: &Path, size: ByteSize) -> Result<()> {
        let found = self.inspect_volume(path).await?;
        if found.virtual_size < size {
            self.with(|s| s.sizes.insert(path.to_owned(), size));
        }
        Ok(())
    }
    async fn disk_io(&self, _directory: &Path) -> DiskIo {
        DiskIo::default()
    }
    async fn copy(&self, source: &Path, path: &Path) -> Result<()> {
        std::fs::copy(source, path).unwrap();
        Ok(())
    }
    fn owner(&self) -> (u32, u32) {
        let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        (user.as_raw(), group.as_raw())
    }
    async fn adopt(&self, _path: &Path) -> Result<()> {
        Ok(())
    }
    async fn in_use(&self, _path: &Path) -> Result<bool> {
        Ok(false)
    }
    async fn delete(&self, path: &Path) -> Result<()> {
        let _ = std::fs::remove_file(path);
        Ok(())
    }
}

#[async_trait]
impl TpmFactory for Fake {
    fn states_below(&self) -> Option<PathBuf> {
        None
    }

    async fn manufacture(
        &self,
        directory: &Path,
        key: &SecretText,
        issuer: &dyn EkIssuer,
    ) -> Result<MadeTpm> {
        std::fs::create_dir_all(directory).unwrap();
        let state = format!(
            "encrypted with {} bytes of key, {}",
            key.expose().len(),
            directory.display()
        );
        std::fs::write(directory.join("tpm2-00.permall"), tpm_state(&state)).unwrap();
        let modulus: Vec<u8> = std::iter::once(0xc1)
            .chain((1..256).map(|n| n as u8 | 1))
            .collect();
        let ek_certificate = issuer
            .issue(&EkPublic::Rsa { modulus })
            .map_err(|because| Error::Tpm(because.into()))?;
        Ok(MadeTpm {
            directory: directory.into(),
            ek_certificate,
        })
    }
    async fn install(&self, vm: VmId, made: &Path) -> Result<()> {
        assert!(!self.tpm(vm).exists(), "TPM state replaced");
        std::fs::rename(made.join("tpm2-00.permall"), self.tpm(vm)).unwrap();
        Ok(())
    }
    async fn state(&self, vm: VmId) -> Result<Option<PathBuf>> {
        Ok(self.tpm(vm).exists().then(|| self.tpm(vm)))
    }
    async fn write_state(&self, vm: VmId, state: &[u8]) -> Result<()> {
        assert!(!self.tpm(vm).exists(), "TPM state replaced");
        std::fs::write(self.tpm(vm), state).unwrap();
        Ok(())
    }
    async fn reencrypt_state(
        &self,
        state: &[u8],
        old: &SecretText,
        new: &SecretText,
    ) -> Result<Vec<u8>> {
        self.prove_state(state, old).await?;
        let content = String::from_utf8_lossy(&state[10..]);
        Ok(tpm_state(&format!("{content}, rolled to {}", new.expose())))
    }
    async fn prove_state(&self, state: &[u8], key: &SecretText) -> Result<Option<TpmLockout>> {
        if self.with(|s| s.proves_nothing) {
            return Err(Error::Tpm("swtpm does not start".into()));
        }
        self.with(|s| s.proved.push(state.to_vec()));
        // The last key it was encrypted under; what was only made here opens with any.
        let text = String::from_utf8_lossy(state);
        match text.rsplit_once(", rolled to ") {
            Some((_, now)) if now != key.expose() => {
                Err(Error::TpmStateUnreadable("another key".into()))
            }
            Some(_) | None => Ok(Some(TpmLockout {
                counted: if text.contains(", locked") { 3 } else { 0 },
                limit: 3,
                interval_seconds: 1000,
                guarded: text.contains(", guarded"),
            })),
        }
    }
    async fn clear_lockout(&self, state: &[u8], key: &SecretText) -> Result<Vec<u8>> {
        match self.prove_state(state, key).await? {
            Some(TpmLockout { guarded: true, .. }) => Err(Error::TpmLockoutGuarded),
            Some(_) | None => {
                let content = String::from_utf8_lossy(&state[10..]);
                Ok(tpm_state(&content.replace(", locked", "")))
            }
        }
    }
    async fn replace_state(&self, vm: VmId, state: &[u8]) -> Result<()> {
        std::fs::write(self.tpm(vm), state).unwrap();
        Ok(())
    }
    async fn read_state(&self, vm: VmId) -> Result<Vec<u8>> {
        let path = self.tpm(vm);
        let state = std::fs::read(&path).map_err(|source| Error::File {
            attempt: "read",
            path,
            source,
        })?;
        if state.is_empty() {
            return Err(Error::Tpm(
                "the file is no TPM state: it has 0 bytes".into(),
            ));
        }
        Ok(state)
    }
    async fn processes(&self) -> Result<std::collections::HashMap<VmId, Option<u32>>> {
        Ok(self.with(|s| {
            let with_tpm = s.domains.iter().filter(|(_, domain)| domain.tpm);
            with_tpm
                .map(|(vm, _)| (*vm, s.stopped_tpms.get(vm).copied()))
                .collect()
        }))
    }
    async fn wake(&self, vm: VmId, process: u32) -> Result<()> {
        self.with(|s| assert_eq!(s.stopped_tpms.remove(&vm), Some(process)));
        Ok(())
    }
    async fn attention(&self, vm: VmId) -> Result<TpmAttention> {
        let found = self.with(|s| s.attention.get(&vm).copied());
        Ok(found.unwrap_or(TpmAttention::Idle))
    }
    async fn take_back(&self, vm: VmId) -> Result<TpmAttention> {
        let found = self.attention(vm).await?;
        if matches!(found, TpmAttention::Unread { .. }) {
            self.with(|s| s.attention.remove(&vm));
        }
        Ok(found)
    }
    async fn cut_off(&self, vm: VmId) -> Result<()> {
        self.with(|s| {
            s.attention.remove(&vm);
            s.cut_off.push(vm);
        });
        Ok(())
    }
    async fn remove_strays(&self, _vm: VmId) -> Result<()> {
        Ok(())
    }
    async fn sync_state(&self, _vm: VmId) -> Result<()> {
        Ok(())
    }
    async fn read_damaged_state(&self, vm: VmId) -> Result<Vec<u8>> {
        Ok(std::fs::read(self.tpm(vm)).unwrap())
    }
    async fn remove(&self, vm: VmId) -> Result<()> {
        let _ = std::fs::remove_file(self.tpm(vm));
        Ok(())
    }
}
