//! Whether a host can take a VM: what the VM needs, against what the host has and what jobs under way will take of it.
//!
//! The one answer for whoever puts a VM on a host: create, clone, the deployment of a template, migrate, recover, drain,
//! check. All reasons are given, not the first alone. Whether the VM's key opens there, and whether its name and CPU go
//! with that host, is for [`crate::preflight`], which asks here for the rest.

use crate::error::Finding;
use crate::host::{Accelerator, Formats, HostFacts, HostState, Version};
use crate::vm::{NicSpec, VmObserved, VmSpec};
use crate::{ByteSize, ErrorCode, GroupName, HostName, Names, NetworkName, PoolName, VmId, VmName};
use std::collections::BTreeMap;

/// The oldest libvirt that moves a VM with an encrypted TPM as we need it.
pub const MIN_LIBVIRT: Version = Version::new(9, 0, 0);
/// The oldest QEMU tried.
pub const MIN_QEMU: Version = Version::new(7, 2, 0);
/// The oldest swtpm tried.
pub const MIN_SWTPM: Version = Version::new(0, 7, 1);

/// What a VM needs of a host.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// Whose jobs do not count against it: they are the ones that bring it. None for a VM that is yet to be made.
    pub vm: Option<VmId>,
    pub name: Option<VmName>,
    /// Only hosts of this group.
    pub group: Option<GroupName>,
    pub disks: Vec<DiskNeed>,
    pub networks: Vec<NetworkNeed>,
    pub memory: ByteSize,
    /// It runs right away, so the memory must be free and not only there.
    pub runs: bool,
    pub tpm: bool,
    /// What wrote its TPM last, where it has one and that is known.
    pub tpm_written: Option<TpmWriter>,
    pub secure_boot: bool,
    /// A running VM stays with its accelerator.
    pub accelerator: Option<Accelerator>,
    /// Its machine type, once it has one.
    pub machine: Option<String>,
    /// Versions that the host's agent must know.
    pub formats: Formats,
}

/// The programs that a TPM was last written by. Older ones do not read it: swtpm has its own header, and the rest has the format
/// of its library, libtpms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmWriter {
    pub host: HostName,
    pub swtpm: Option<Version>,
    pub libtpms: Option<Version>,
}

impl TpmWriter {
    /// A host that has the TPM, or had it.
    pub fn of(host: &HostName, facts: Option<&HostFacts>) -> Self {
        Self {
            host: host.clone(),
            swtpm: facts.and_then(|facts| facts.versions.swtpm),
            libtpms: facts.and_then(|facts| facts.versions.libtpms),
        }
    }

    /// Why the TPM would go back on a host that has these; what is not known of either is no reason. The library first: it is
    /// what cannot read the state.
    pub fn goes_back(&self, host: &HostName, facts: &HostFacts) -> Option<Finding> {
        let programs = [
            ("libtpms", facts.versions.libtpms, self.libtpms),
            ("swtpm", facts.versions.swtpm, self.swtpm),
        ];
        let mut known = programs
            .into_iter()
            .filter_map(|(program, has, wrote)| Some((program, has?, wrote?)));
        let (program, has, wrote) = known.find(|(_, has, wrote)| has < wrote)?;
        let from = &self.host;
        let what = format!(
            "host {host} has {program} {has}, the TPM was last written by {program} {wrote} on host {from}: an older one does not \
             read what a newer one wrote"
        );
        let fix = format!("on host {host}: apt-get install --only-upgrade swtpm libtpms0");
        Some(Finding::blocking(ErrorCode::SwtpmTooOld, what, fix))
    }
}

/// A disk that is to lie on a host.
#[derive(Debug, Clone, Default)]
pub struct DiskNeed {
    pub target: String,
    pub pool: PoolName,
    /// Nothing is written where the host's pool is this very directory.
    pub lies_in: Option<String>,
    /// Bytes that are certainly written.
    pub written: ByteSize,
    /// Bytes that it may grow to; none where nobody asks.
    pub whole: Option<ByteSize>,
    /// Where the pool is on the VM's host: a running VM's disks keep their paths.
    pub path: Option<(HostName, String)>,
}

/// A network that a card is to be connected to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkNeed {
    pub network: NetworkName,
    pub vlan: bool,
    pub filter: bool,
}

impl From<&NicSpec> for NetworkNeed {
    fn from(nic: &NicSpec) -> Self {
        Self {
            network: nic.network.clone(),
            vlan: nic.vlan.is_some(),
            filter: nic.filter.is_some(),
        }
    }
}

/// What jobs under way will take of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reserved {
    pub memory: ByteSize,
    pub space: BTreeMap<PoolName, ByteSize>,
}

/// A host, as far as it can take a VM.
#[derive(Debug, Clone)]
pub struct HostOffer<'a> {
    pub name: &'a HostName,
    pub group: &'a GroupName,
    pub state: HostState,
    pub facts: Option<&'a HostFacts>,
    pub reserved: Reserved,
}

impl HostOffer<'_> {
    /// Memory that is free and that nothing under way will take.
    pub fn memory_left(&self) -> ByteSize {
        let free = self.facts.map_or(ByteSize(0), |f| f.memory_available);
        ByteSize(free.0.saturating_sub(self.reserved.memory.0))
    }

    fn space_left(&self, pool: &PoolName) -> Option<ByteSize> {
        let available = self.facts?.pool(pool)?.available;
        let reserved = self.reserved.space.get(pool).map_or(0, |size| size.0);
        Some(ByteSize(available.0.saturating_sub(reserved)))
    }
}

impl Needs {
    /// What a VM that exists needs of another host: `live`, in order to go on running there.
    pub fn of(vm: &VmObserved, live: bool, from: Option<&HostFacts>) -> Self {
        let spec = vm.metadata.as_ref().map(|metadata| &metadata.spec);
        let path = |pool: &PoolName| {
            let here = from.filter(|_| live)?.pool(pool)?;
            Some((vm.host.clone(), here.path.clone()))
        };
        let disks = vm.disks.iter().map(|disk| DiskNeed {
            target: disk.target.clone(),
            pool: disk.pool.clone(),
            lies_in: Some(disk.pool_id.clone()),
            written: disk.whole(),
            whole: Some(disk.size),
            path: path(&disk.pool),
        });
        Self {
            vm: Some(vm.id),
            name: Some(vm.name.clone()),
            group: spec.map(|spec| spec.group.clone()),
            disks: disks.collect(),
            networks: spec.map(networks_of).unwrap_or_default(),
            memory: vm.memory,
            runs: live,
            tpm: vm.tpm.enabled,
            tpm_written: from
                .filter(|_| vm.tpm.enabled)
                .map(|facts| TpmWriter::of(&vm.host, Some(facts))),
            secure_boot: vm.firmware.is_some_and(|firmware| firmware.secure_boot),
            accelerator: live.then_some(match vm.accelerator.as_str() {
                "kvm" => Accelerator::Kvm,
                _ => Accelerator::Tcg,
            }),
            machine: Some(vm.machine.clone()),
            formats: spec.map_or_else(Formats::default, Formats::of_spec),
        }
    }

    /// What a VM that is to be rebuilt needs: its disks lie there already.
    pub fn of_rebuilt(spec: &VmSpec) -> Self {
        let disks = spec.disks.iter().map(|disk| DiskNeed {
            target: disk.target.clone(),
            pool: disk.pool.clone(),
            ..DiskNeed::default()
        });
        Self {
            vm: Some(spec.id),
            name: Some(spec.name.clone()),
            group: Some(spec.group.clone()),
            disks: disks.collect(),
            networks: networks_of(spec),
            memory: spec.memory,
            tpm: spec.tpm,
            secure_boot: spec.firmware.secure_boot,
            formats: Formats::of_spec(spec),
            ..Self::default()
        }
    }

    /// What it will take of a host that has these facts.
    pub fn takes(&self, facts: Option<&HostFacts>) -> Reserved {
        let mut space: BTreeMap<PoolName, ByteSize> = BTreeMap::new();
        for disk in &self.disks {
            let pool = facts.and_then(|facts| facts.pool(&disk.pool));
            let lies_there = pool.is_some_and(|pool| disk.lies_in.as_ref() == Some(&pool.id));
            if !lies_there {
                space.entry(disk.pool.clone()).or_default().0 += disk.written.0;
            }
        }
        Reserved {
            memory: match self.runs {
                true => self.memory,
                false => ByteSize(0),
            },
            space,
        }
    }

    /// The same for a VM as it is: live where it does not stand still.
    pub fn as_it_is(vm: &VmObserved, from: Option<&HostFacts>) -> Self {
        Self::of(vm, !vm.state.stands_still(), from)
    }
}

/// Everything that speaks against `host` taking the VM, and remarks; it can where nothing is blocking.
pub fn host_fits(needs: &Needs, host: &HostOffer<'_>) -> Vec<Finding> {
    let mut found = presence(needs, host);
    found.extend(agent(needs, host));
    found.extend(equipment(needs, host));
    found
}

/// Whether its agent knows what the VM needs, also where the VM stays on that host and only changes.
pub fn agent(needs: &Needs, host: &HostOffer<'_>) -> Option<Finding> {
    agent_knows(host.facts?.formats, needs.formats, host.name)
}

/// The refusal of an agent that knows `known`, where it must know `needed`.
pub fn agent_knows(known: Formats, needed: Formats, host: &HostName) -> Option<Finding> {
    let surfaces = [
        ("a specification", known.spec, needed.spec),
        ("operations", known.operations, needed.operations),
    ];
    let (what, has, wants) = surfaces.into_iter().find(|(_, has, wants)| has < wants)?;
    let what = format!(
        "the agent of host {host} knows {what} of version {has}, version {wants} is needed"
    );
    let names = Names::default().host(host);
    Some(Finding::usual(ErrorCode::AgentTooOld, what).about(&names))
}

/// The same for a VM that is there already and is to change: it needs no place, so neither the host's group nor whether the
/// host is drained counts.
pub fn host_still_fits(needs: &Needs, host: &HostOffer<'_>) -> Vec<Finding> {
    let mut found = Vec::from_iter(agent(needs, host));
    found.extend(equipment(needs, host));
    found
}

/// Whether it takes VMs of that group at all.
pub(crate) fn presence(needs: &Needs, host: &HostOffer<'_>) -> Vec<Finding> {
    let name = host.name;
    let names = Names::default().host(name);
    let mut found = Vec::new();
    if let Some(group) = &needs.group
        && group != host.group
    {
        let whose = needs.name.as_ref();
        let whose = whose.map_or("the VM".to_owned(), |vm| format!("VM {vm}"));
        let what = format!(
            "{whose} belongs to group {group}, host {name} to group {}",
            host.group
        );
        found.push(Finding::usual(ErrorCode::GroupForbids, what));
    }
    match host.state {
        HostState::Online => {}
        HostState::Drained => {
            let what = format!("host {name} is drained");
            found.push(Finding::usual(ErrorCode::HostDrained, what).about(&names));
        }
        HostState::Invited => {
            let what = format!("host {name} has not joined yet");
            found.push(Finding::usual(ErrorCode::HostUnreachable, what).about(&names));
        }
        HostState::Unreachable => {
            let what = format!("host {name} does not answer");
            found.push(Finding::usual(ErrorCode::HostUnreachable, what).about(&names));
        }
    }
    if host.facts.is_none() && matches!(host.state, HostState::Online | HostState::Drained) {
        let what = format!("host {name} did not tell its facts");
        found.push(Finding::usual(ErrorCode::CheckUnavailable, what));
    }
    found
}

/// Whether it has what the VM needs.
pub(crate) fn equipment(needs: &Needs, host: &HostOffer<'_>) -> Vec<Finding> {
    let Some(facts) = host.facts else {
        return Vec::new(); // said by `presence`
    };
    let mut found = programs(needs.tpm, host.name, facts);
    let written = needs.tpm_written.as_ref().filter(|_| needs.tpm);
    found.extend(written.and_then(|written| written.goes_back(host.name, facts)));
    found.extend(machine(needs, host.name, facts));
    found.extend(accelerator(needs, host.name, facts));
    if needs.secure_boot && !facts.secure_boot {
        let what = format!("host {} has no firmware with Secure Boot", host.name);
        found.push(Finding::usual(ErrorCode::SecureBootMissing, what));
    }
    found.extend(pools(needs, host, facts));
    found.extend(networks(needs, host.name, facts));
    found.extend(memory(needs, host, facts));
    found
}

/// Programs that are missing, or too old by themselves.
pub(crate) fn programs(tpm: bool, host: &HostName, facts: &HostFacts) -> Vec<Finding> {
    let versions = &facts.versions;
    let mut found = Vec::new();
    for (code, program, has, least) in [
        (
            ErrorCode::LibvirtTooOld,
            "libvirt",
            versions.libvirt,
            MIN_LIBVIRT,
        ),
        (ErrorCode::QemuTooOld, "QEMU", versions.qemu, MIN_QEMU),
    ] {
        if has < least {
            let what = format!("host {host} has {program} {has}, at least {least} is needed");
            found.push(Finding::usual(code, what));
        }
    }
    match versions.swtpm {
        _ if !tpm => {}
        None => {
            let what = format!("host {host} has no swtpm");
            let fix = format!("on host {host}: apt-get install swtpm swtpm-tools");
            found.push(Finding::blocking(ErrorCode::SwtpmMissing, what, fix));
        }
        Some(has) if has < MIN_SWTPM => {
            let what = format!("host {host} has swtpm {has}, at least {MIN_SWTPM} is needed");
            found.push(Finding::usual(ErrorCode::SwtpmTooOld, what));
        }
        Some(_) => {}
    }
    found
}

fn machine(needs: &Needs, host: &HostName, facts: &HostFacts) -> Option<Finding> {
    let machine = needs.machine.as_ref()?;
    (!facts.machines.contains(machine)).then(|| {
        let what = match &needs.name {
            Some(vm) => format!("host {host} has no machine type {machine}, which VM {vm} uses"),
            None => format!("host {host} has no machine type {machine}"),
        };
        Finding::usual(ErrorCode::MachineMissing, what)
    })
}

fn accelerator(needs: &Needs, host: &HostName, facts: &HostFacts) -> Option<Finding> {
    let wanted = needs.accelerator?;
    (wanted != facts.accelerator).then(|| {
        let (has, wants) = (facts.accelerator.into_str(), wanted.into_str());
        let vm = needs.name.as_ref();
        let vm = vm.map_or("the VM".to_owned(), |vm| format!("VM {vm}"));
        let what = format!("{vm} runs with {wants}, host {host} runs VMs with {has}");
        Finding::usual(ErrorCode::AcceleratorDiffers, what)
    })
}

fn pools(needs: &Needs, host: &HostOffer<'_>, facts: &HostFacts) -> Vec<Finding> {
    let name = host.name;
    let mut found = Vec::new();
    let mut sums: BTreeMap<&PoolName, (u64, u64)> = BTreeMap::new();
    for disk in &needs.disks {
        let Some(pool) = facts.pool(&disk.pool) else {
            let what = format!(
                "host {name} has no pool {}, where disk {} lies",
                disk.pool, disk.target
            );
            let fix = format!(
                "add pool {} to /etc/fleetward/agent.toml on host {name} and restart its agent",
                disk.pool
            );
            found.push(Finding::blocking(ErrorCode::PoolMissing, what, fix));
            continue;
        };
        if let Some((from, here)) = &disk.path
            && *here != pool.path
        {
            let what = format!(
                "pool {} is {} on host {name}, {here} on host {from}",
                disk.pool, pool.path
            );
            found.push(Finding::usual(ErrorCode::PoolPathDiffers, what));
        }
        if disk.lies_in.as_ref() != Some(&pool.id) {
            let (written, whole) = sums.entry(&disk.pool).or_default();
            *written += disk.written.0;
            *whole += disk.whole.unwrap_or(disk.written).0;
        }
    }
    for (pool, (written, whole)) in sums {
        let Some(left) = host.space_left(pool) else {
            continue;
        };
        if left.0 < written {
            let what = format!(
                "pool {pool} of host {name} has {left} left, {} are needed",
                ByteSize(written)
            );
            found.push(Finding::usual(ErrorCode::NoSpace, what));
        } else if left.0 < whole {
            let what = format!(
                "pool {pool} of host {name} has {left} left; the disks may grow to {}",
                ByteSize(whole)
            );
            found.push(Finding::warning(ErrorCode::NoSpace, what));
        }
    }
    found
}

/// What a VM's cards are connected to.
pub fn networks_of(spec: &VmSpec) -> Vec<NetworkNeed> {
    spec.nics.iter().map(NetworkNeed::from).collect()
}

/// Every host has `nat`, without VLANs and filters; [`crate::change::nic`] refuses those.
fn networks(needs: &Needs, host: &HostName, facts: &HostFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut missing = |what: String, fix: String| {
        let finding = Finding::blocking(ErrorCode::NetworkMissing, what, fix);
        // Two cards in one network miss the same.
        if !found.contains(&finding) {
            found.push(finding);
        }
    };
    for need in needs.networks.iter().filter(|need| !need.network.is_nat()) {
        let network = &need.network;
        let Some(offer) = facts.network(network) else {
            missing(
                format!("host {host} has no network {network}"),
                format!(
                    "add network {network} to /etc/fleetward/agent.toml on host {host} and restart its agent; fleetward network list tells which hosts have it"
                ),
            );
            continue;
        };
        if let Some(problem) = &offer.problem {
            missing(
                format!("network {network} of host {host} cannot be used: {problem}"),
                format!("see what host {host} says: fleetward host show {host}"),
            );
        }
        if need.vlan && !offer.vlans {
            missing(
                format!("network {network} of host {host} cannot tell VLANs apart"),
                format!(
                    "on host {host}: ip link set {} type bridge vlan_filtering 1, with libvirt 11 or later; or make it a bridge of Open vSwitch",
                    offer.place.bridge().unwrap_or_default()
                ),
            );
        }
        if need.filter && !offer.filters {
            missing(
                format!("host {host} has no filter clean-traffic for network {network}"),
                format!(
                    "on host {host}: apt-get install libvirt-daemon-config-nwfilter iptables, for a Linux bridge"
                ),
            );
        }
    }
    found
}

fn memory(needs: &Needs, host: &HostOffer<'_>, facts: &HostFacts) -> Option<Finding> {
    let (has, word) = if needs.runs {
        (host.memory_left(), "free")
    } else {
        (facts.memory, "in all")
    };
    (has < needs.memory).then(|| {
        let what = format!(
            "host {} has {has} of memory {word}, the VM needs {}",
            host.name, needs.memory
        );
        Finding::usual(ErrorCode::NoMemory, what)
    })
}
