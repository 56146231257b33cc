//! Reports to the controller: facts every few seconds, VMs as soon as they change.
//!
//! One task follows the hypervisor's events and inspects the domains that they name; all streams share its results. A
//! reader that is too slow gets a new snapshot, and so do all readers after libvirt was away.

use crate::confinement::{self, APPARMOR};
use crate::failure::{HypervisorResult, Result};
use crate::history;
use crate::host::Host;
use crate::{arrivals, certificate, crash, firmware, tpm_judge, tpm_process, variables};
use fleetward_api::agent::{AgentEvent, Telling};
use fleetward_hypervisor::{
    DomainDefined, DomainObserved, DomainState, Error as HypervisorError, HypervisorEvent,
    StopReason,
};
use fleetward_model::host::{
    Accelerator, Confinement, Formats, HostFacts, HypervisorVersions, PoolFacts,
};
use fleetward_model::network::NicObserved;
use fleetward_model::secure_boot::SecureBootObserved;
use fleetward_model::vm::{
    DiskBus, DiskObserved, DriveContent, DriveObserved, Noted, Presence, QemuHangs, TpmObserved,
    VmDefined, VmMetadata, VmReport, VmState, protector_sha256,
};
use fleetward_model::{ByteSize, VmId};
use fleetward_protector::KeyProtector;
use futures_util::Stream;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often facts are sent: also the sign of life.
const FACTS: Duration = Duration::from_secs(3);

/// How long facts are waited for: without a sign of life the host counts as unreachable.
const FACTS_PATIENCE: Duration = Duration::from_secs(4);

/// How often a hypervisor that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Events kept for a slow reader.
const BACKLOG: usize = 256;

/// Where changes are announced.
#[derive(Debug)]
pub(crate) struct Observer {
    events: broadcast::Sender<Arc<AgentEvent>>,
    look: mpsc::UnboundedSender<VmId>,
    looks: std::sync::Mutex<Option<mpsc::UnboundedReceiver<VmId>>>,
}

impl Observer {
    pub(crate) fn new() -> Self {
        let (look, looks) = mpsc::unbounded_channel();
        Self {
            events: broadcast::channel(BACKLOG).0,
            look,
            looks: std::sync::Mutex::new(Some(looks)),
        }
    }

    /// Asks for a look at a VM: an operation has ended.
    pub(crate) fn look_at(&self, vm: VmId) {
        // Without a watcher there are no streams, so no message is needed.
        let _ = self.look.send(vm);
    }

    /// Whether the controller listens.
    pub(crate) fn has_reader(&self) -> bool {
        self.events.receiver_count() > 0
    }

    pub(crate) fn announce(&self, event: AgentEvent) {
        // There is no reader now; a later one starts with a snapshot.
        let _ = self.events.send(Arc::new(event));
    }
}

/// Follows the hypervisor until `stop`. A look at a VM that takes long holds up no sign of life.
pub(crate) async fn watch(host: Arc<Host>, stop: CancellationToken) {
    tokio::join!(follow(&host, &stop), tell_facts(&host, &stop));
}

async fn tell_facts(host: &Host, stop: &CancellationToken) {
    let mut due = tokio::time::interval(FACTS);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = due.tick() => {}
        }
        if host.observer.has_reader() {
            announce_facts(host, &mut last).await;
        }
    }
}

async fn follow(host: &Arc<Host>, stop: &CancellationToken) {
    let mut events = host.hypervisor.events();
    let mut looks = host
        .observer
        .looks
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take()
        .expect("there is one watcher");
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = events.recv() => match event {
                Ok(HypervisorEvent::Changed(vm)) => look(host, vm).await,
                Ok(HypervisorEvent::Booted(vm)) => firmware::booted(host, vm),
                Ok(HypervisorEvent::Stopped(vm)) => {
                    host.consoles.forget(vm);
                    if !host.operations.is_busy(vm) {
                        host.tidy_after(vm).await;
                    }
                    crash::stopped(host, vm);
                    look(host, vm).await;
                }
                Ok(HypervisorEvent::Removed(vm)) => look(host, vm).await,
                Ok(HypervisorEvent::Disconnected) => tracing::warn!("libvirt does not answer"),
                Ok(HypervisorEvent::Connected) => {
                    tracing::info!("libvirt answers");
                    tell_confinement(host).await;
                    crate::operation::copy::settle_all(host).await;
                    host.drop_unneeded_secrets().await;
                    arrivals::load_secrets_again(host).await;
                    crash::look_at_all(host).await;
                    announce_snapshot(host).await;
                }
                Err(RecvError::Lagged(_)) => announce_snapshot(host).await,
                Err(RecvError::Closed) => return,
            },
            Some(vm) = looks.recv() => look(host, vm).await,
        }
    }
}

async fn look(host: &Host, vm: VmId) {
    if host.observer.events.receiver_count() == 0 {
        return;
    }
    let event = match observe(host, vm).await {
        Ok(Some(vm)) => AgentEvent::VmChanged { vm: Box::new(vm) },
        Ok(None) => AgentEvent::VmRemoved { id: vm },
        // The hypervisor is away: a snapshot follows when it is back.
        Err(_) => return,
    };
    host.observer.announce(event);
}

/// Facts are also the sign of life: while libvirt is away, the last ones are sent again, with a note that it is away.
async fn announce_facts(host: &Host, last: &mut Option<HostFacts>) {
    let asked = tokio::time::timeout(FACTS_PATIENCE, facts(host)).await;
    let because = match asked {
        Ok(Ok(facts)) => {
            *last = Some(facts.clone());
            None
        }
        Ok(Err(trouble)) => Some(trouble.failure.because),
        Err(_) => Some("libvirt takes long to answer".to_owned()),
    };
    let Some(mut facts) = last.clone() else {
        return;
    };
    if let Some(because) = because {
        facts.clock = OffsetDateTime::now_utc();
        facts.warnings.push(because);
    }
    let log = host.audit.clone();
    let audit = tokio::task::spawn_blocking(move || log.head())
        .await
        .expect("reading the audit log does not panic");
    host.observer.announce(AgentEvent::Facts {
        facts: Box::new(facts),
        // Whoever asks for the records is told why they cannot be read.
        audit: audit.ok(),
    });
}

async fn announce_snapshot(host: &Host) {
    if host.observer.events.receiver_count() == 0 {
        return;
    }
    match snapshot(host).await {
        Ok(snapshot) => host.observer.announce(snapshot),
        Err(trouble) => tracing::warn!(because = trouble.failure.because, "no snapshot"),
    }
}

/// The events of one reader, in the versions that it knows: a snapshot, then everything that changes.
pub(crate) fn events(host: Arc<Host>, formats: Formats) -> impl Stream<Item = AgentEvent> {
    use futures_util::StreamExt;
    let mut telling = Telling::to_reader_of(formats);
    all_events(host)
        .flat_map(move |event| futures_util::stream::iter(telling.tell(AgentEvent::clone(&event))))
}

fn all_events(host: Arc<Host>) -> impl Stream<Item = Arc<AgentEvent>> {
    let receiver = host.observer.events.subscribe();
    futures_util::stream::unfold(
        (host, receiver, true),
        |(host, mut receiver, mut anew)| async move {
            loop {
                if anew {
                    match snapshot(&host).await {
                        Ok(snapshot) => return Some((Arc::new(snapshot), (host, receiver, false))),
                        Err(_) => tokio::time::sleep(ASK_AGAIN).await,
                    }
                    continue;
                }
                match receiver.recv().await {
                    Ok(event) => return Some((event, (host, receiver, false))),
                    Err(RecvError::Lagged(_)) => anew = true,
                    Err(RecvError::Closed) => return None,
                }
            }
        },
    )
}

async fn snapshot(host: &Host) -> Result<AgentEvent> {
    let facts = facts(host).await?;
    let domains = host
        .hypervisor
        .list()
        .await
        .attempt(|| "listing the VMs".to_owned())?;
    let mut vms = Vec::with_capacity(domains.len());
    for domain in domains {
        vms.push(describe(host, domain, &facts.pools).await);
    }
    Ok(AgentEvent::Snapshot {
        facts: Box::new(facts),
        vms,
        more: false,
    })
}

/// What this host is and has now.
pub(crate) async fn facts(host: &Host) -> Result<HostFacts> {
    let found = host
        .hypervisor
        .facts()
        .await
        .attempt(|| format!("asking the hypervisor of host {}", host.member.host))?;
    let (mut pools, pool_warnings) = host.pools.facts();
    for pool in &mut pools {
        pool.io = host.volumes.disk_io(Path::new(&pool.path)).await;
    }
    let (networks, network_warnings) = host.networks.facts(&found);
    let missing_rule = match found.confinement {
        Confinement::Apparmor => {
            confinement::missing_rule(Path::new(APPARMOR), &host.layout.migrations())
        }
        Confinement::Selinux | Confinement::None => None,
    };
    Ok(HostFacts {
        host: host.member.host.clone(),
        group: host.member.group.clone(),
        versions: HypervisorVersions {
            libvirt: found.libvirt,
            qemu: found.qemu,
            swtpm: found.swtpm,
            libtpms: found.libtpms,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
        },
        accelerator: found.accelerator,
        cpus: found.cpus,
        arch: found.arch,
        cpu_model: found.cpu_model,
        memory: found.memory,
        memory_available: found.memory_available,
        machines: found.machines,
        secure_boot: found.secure_boot,
        confinement: Some(found.confinement),
        pools,
        networks,
        default_network: host.networks.default.clone(),
        guardians: host.keyring.facts(),
        clock: OffsetDateTime::now_utc(),
        tpm_pool: host.tpm_pool.ready(),
        tpm_pool_most: Some(host.tpm_pool.most()),
        boot: host.boot.facts(),
        histories: history::vms(&host.layout.history()),
        formats: Formats::KNOWN,
        warnings: host
            .warnings
            .iter()
            .cloned()
            .chain(pool_warnings)
            .chain(certificate::warning(host, OffsetDateTime::now_utc()))
            .chain(network_warnings)
            .chain(missing_rule)
            .collect(),
    })
}

/// For the log: a host without a security driver works, and whoever set it up may not know.
async fn tell_confinement(host: &Host) {
    match host.hypervisor.facts().await.map(|facts| facts.confinement) {
        Ok(Confinement::None) => tracing::warn!(
            "libvirt has no security driver (AppArmor, SELinux): nothing but their user confines the processes of VMs"
        ),
        Ok(confinement @ (Confinement::Apparmor | Confinement::Selinux)) => {
            tracing::info!(?confinement, "libvirt confines VMs");
        }
        Err(_) => {} // the next connection tells
    }
}

/// One VM as it is now, none when this host has none of that id.
pub(crate) async fn observe(host: &Host, vm: VmId) -> Result<Option<VmReport>> {
    match host.hypervisor.inspect(vm).await {
        Ok(domain) => {
            let (pools, _) = host.pools.facts();
            Ok(Some(describe(host, domain, &pools).await))
        }
        Err(HypervisorError::NoDomain(_)) => Ok(None),
        Err(error) => Err(crate::failure::Trouble::hypervisor(
            format!("looking at VM {vm}"),
            &error,
        )),
    }
}

async fn describe(host: &Host, domain: DomainObserved, pools: &[PoolFacts]) -> VmReport {
    let mut metadata = domain.metadata.clone();
    if let Some(metadata) = &mut metadata {
        // Our own record decides: a live migration brings the source's metadata along.
        metadata.transit = match host.record(domain.id).transit() {
            Ok(transit) => transit.map(|record| record.transit()),
            Err(_) => metadata.transit,
        };
    }
    let state_present = matches!(host.tpms.state(domain.id).await, Ok(Some(_)));
    let state_sha256 = match state_present {
        true => host.tpms.read_state(domain.id).await.ok().map(sha256),
        false => None,
    };
    let runs = matches!(
        domain.state,
        DomainState::Running | DomainState::Paused { .. }
    );
    if let (Some(digest), true, Some(_)) = (&state_sha256, runs, &metadata) {
        tpm_judge::saw(host, domain.id, digest).await;
    }
    // Of a guest that runs, the state says what it counts after a power cut, and not what it counts now.
    let lockout = match (&state_sha256, runs) {
        (Some(digest), false) => {
            let known = host.record(domain.id).lockout().ok().flatten();
            let known = known.filter(|known| known.state_sha256 == *digest);
            known.map(|known| known.lockout)
        }
        (Some(_) | None, _) => None,
    };
    let crashes = crash::of(host, &domain);
    let former = metadata
        .as_ref()
        .and_then(|metadata| metadata.former_certificates.as_ref());
    let secure_boot = variables::secure_boot(host, domain.id)
        .filter(|_| metadata.is_some())
        .map(|found| SecureBootObserved {
            former_kept: former.is_some(),
            ..found
        });
    // A domain that somebody renamed is still the VM that Fleetward knows.
    let name = match &metadata {
        Some(metadata) => metadata.spec.name.clone(),
        None => domain.name.clone(),
    };
    let spec = metadata.as_ref().map(|metadata| &metadata.spec);
    VmReport {
        id: domain.id,
        host: host.member.host.clone(),
        state: state_of(domain.state),
        reason: domain.reason.to_owned(),
        cpus: domain.cpus,
        memory: domain.memory,
        firmware: domain.firmware,
        settings: domain.settings,
        machine: domain.machine.clone(),
        accelerator: match domain.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "qemu",
        }
        .to_owned(),
        disks: describe_disks(host, &domain, metadata.as_ref(), pools).await,
        nics: known_nics(host, &domain, metadata.as_ref()),
        drives: describe_drives(&domain, metadata.as_ref()),
        tpm: TpmObserved {
            state_present,
            state_sha256,
            lockout,
            process: match runs && domain.tpm && metadata.is_some() {
                true => tpm_process::of(host, domain.id).await,
                false => None,
            },
            ..describe_tpm(domain.tpm, metadata.as_ref())
        },
        defined: domain.defined.as_ref().map(|defined| VmDefined {
            cpus: defined.cpus,
            memory: defined.memory,
            settings: defined.settings,
            nics: Some(host.networks.describe(&defined.nics, spec)),
        }),
        domain_name: (domain.domain_name != name.as_str()).then_some(domain.domain_name),
        noted: Noted {
            guest: host.guests.of(domain.id).filter(|_| runs),
            after_boot: host.boot.of(domain.id).filter(|_| !runs),
            crashes,
            secure_boot,
            loader_refused: host.consoles.refused(domain.id).filter(|_| runs),
            qemu: host.machines.stopped(domain.id).filter(|_| runs),
            hangs: host
                .machines
                .hangs(domain.id)
                .filter(|_| runs)
                .map(|hangs| QemuHangs {
                    shown_as_of: domain.as_of.map(OffsetDateTime::from),
                    ..hangs
                }),
        },
        name,
        metadata,
        newer: domain.newer,
        observed: OffsetDateTime::now_utc(),
    }
}

/// While libvirt does not tell the definition, nothing is known of the cards.
fn known_nics(
    host: &Host,
    domain: &DomainObserved,
    metadata: Option<&VmMetadata>,
) -> Option<Vec<NicObserved>> {
    let spec = metadata.map(|metadata| &metadata.spec);
    (!domain.machine.is_empty()).then(|| host.networks.describe(&domain.nics, spec))
}

/// Of why it stopped, only whether its memory is saved makes another state.
fn state_of(state: DomainState) -> VmState {
    match state {
        DomainState::Running => VmState::Running,
        DomainState::Paused { .. } => VmState::Paused,
        DomainState::Stopped(
            StopReason::Ordinary | StopReason::Crashed | StopReason::Migrated | StopReason::Failed,
        ) => VmState::Stopped,
        DomainState::Stopped(StopReason::Saved) => VmState::Saved,
    }
}

/// Disks that lie in pools; others are none of ours.
async fn describe_disks(
    host: &Host,
    domain: &DomainObserved,
    metadata: Option<&VmMetadata>,
    pools: &[PoolFacts],
) -> Vec<DiskObserved> {
    let next = next_start(domain).map(|defined| defined.disks.as_slice());
    let mut disks = Vec::new();
    for (target, path, presence) in with_presence(&domain.disks, next) {
        let Some(pool) = host.pools.holding(pools, path) else {
            continue;
        };
        let spec = metadata.and_then(|m| m.spec.disks.iter().find(|d| d.target == *target));
        let (length, allocated) = size_of(path);
        // An unreadable chain is not shown; operations that need it read it again and fail.
        let bases = host.volumes.bases(path).await.unwrap_or_default();
        disks.push(DiskObserved {
            id: spec.map(|spec| spec.id.clone()),
            target: target.clone(),
            serial: spec.and_then(|spec| spec.serial.clone()),
            presence,
            bus: spec.map_or_else(|| bus_of(target), |spec| spec.bus),
            pool: pool.name.clone(),
            pool_id: pool.id.clone(),
            path: path.display().to_string(),
            format: "qcow2".to_owned(),
            size: spec.map_or(ByteSize(length), |spec| spec.size),
            allocated: ByteSize(allocated),
            bases_allocated: ByteSize(bases.iter().map(|base| size_of(base).1).sum()),
            bases: bases
                .iter()
                .map(|base| base.display().to_string())
                .collect(),
        });
    }
    disks
}

/// Drives with what is in them.
fn describe_drives(domain: &DomainObserved, metadata: Option<&VmMetadata>) -> Vec<DriveObserved> {
    let next = next_start(domain).map(|defined| defined.drives.as_slice());
    let describe = |(target, path, presence): (&String, &Option<PathBuf>, Presence)| {
        let known = metadata.map(|metadata| &metadata.spec);
        let spec = known.and_then(|spec| spec.drives.iter().find(|d| d.target == *target));
        // Files of the image cache are named after the content.
        let content = path.as_deref().and_then(Path::file_stem);
        let mut media = known.into_iter().flat_map(|spec| spec.media());
        let medium = media.find(|medium| content == Some(OsStr::new(&medium.sha256)));
        // The medium for a first boot has its time; the definition of a stopped VM names it all the same.
        let seed = spec.is_some_and(|spec| spec.seed);
        let path = path.as_ref().filter(|path| !seed || path.exists());
        DriveObserved {
            id: spec.map(|spec| spec.id.clone()),
            target: target.clone(),
            image: medium.map(|medium| medium.image.clone()),
            holds: path.map(|_| match (seed, medium) {
                (true, _) => DriveContent::FirstBoot,
                (false, Some(_)) => DriveContent::Image,
                (false, None) => DriveContent::Other,
            }),
            path: path.map(|path| path.display().to_string()),
            presence,
        }
    };
    with_presence(&domain.drives, next).map(describe).collect()
}

/// What a machine that runs starts with next, as far as it is another thing than what it has.
fn next_start(domain: &DomainObserved) -> Option<&DomainDefined> {
    match domain.state {
        DomainState::Running | DomainState::Paused { incoming: false } => domain.defined.as_ref(),
        DomainState::Paused { incoming: true } | DomainState::Stopped(_) => None,
    }
}

/// The devices of a machine, and those of its definition, by target.
fn with_presence<'a, P>(
    now: &'a [(String, P)],
    next: Option<&'a [(String, P)]>,
) -> impl Iterator<Item = (&'a String, &'a P, Presence)> {
    let is_in = |devices: &[(String, P)], target: &str| devices.iter().any(|d| d.0 == target);
    let here = now.iter().map(move |(target, place)| {
        let stays = next.is_none_or(|next| is_in(next, target));
        let presence = if stays {
            Presence::Here
        } else {
            Presence::Goes
        };
        (target, place, presence)
    });
    let comes = next.into_iter().flatten();
    let comes = comes.filter(move |device| !is_in(now, &device.0));
    here.chain(comes.map(|(target, place)| (target, place, Presence::Comes)))
}

fn bus_of(target: &str) -> DiskBus {
    if target.starts_with("sd") {
        DiskBus::Sata
    } else {
        DiskBus::Virtio
    }
}

/// Length and bytes taken of a file, zero when it is not there.
fn size_of(path: &Path) -> (u64, u64) {
    std::fs::metadata(path).map_or((0, 0), |found| (found.len(), found.blocks() * 512))
}

/// What definition and key protector say; the state is the caller's to add.
fn describe_tpm(enabled: bool, metadata: Option<&VmMetadata>) -> TpmObserved {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let protector = metadata
        .and_then(|m| m.key_protector.as_deref())
        .and_then(|text| KeyProtector::from_base64(text).ok());
    let inspection = protector.as_ref().map(KeyProtector::inspect);
    TpmObserved {
        enabled,
        version: "2.0".to_owned(),
        model: "tpm-crb".to_owned(),
        state_present: false,
        state_sha256: None,
        key_id: inspection.map(|i| i.binding.key_id),
        owner: inspection.map(|i| i.owner.id().clone()),
        guardians: inspection.map(|i| i.guardian_ids()).unwrap_or_default(),
        ek_certificate: metadata
            .and_then(|m| m.ek_certificate.as_deref())
            .and_then(|text| STANDARD.decode(text).ok())
            .map(sha256),
        protector_sha256: metadata
            .and_then(|m| m.key_protector.as_deref())
            .map(protector_sha256),
        lockout: None,
        process: None,
    }
}

fn sha256(bytes: Vec<u8>) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(bytes))
}
