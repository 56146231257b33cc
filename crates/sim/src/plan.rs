//! What a simulated fleet looks like: names, addresses, groups and VMs. The same plan gives the same fleet.
//!
//! Keys and certificates are not part of it: those are random in every fleet.

use crate::agent::{FakeVm, SimulatedTpm};
use fleetward_model::guardian::MANY_GUARDIANS;
use fleetward_model::spec::{DiskSpec, NicSpec, Unknown, VmSpec};
use fleetward_model::vm::{DiskBus, Profile, VmMetadata, VmState};
use fleetward_model::{ByteSize, GroupName, GuardianId, HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use time::OffsetDateTime;
use time::macros::datetime;
use uuid::Uuid;

/// Every VM was made at this time: a fleet of the same plan is the same, whenever it is made.
pub const MADE: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

/// One loopback address a host: so many are there, from the first one on.
pub const MOST_HOSTS: u32 = 50_000;

/// A fleet that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetPlan {
    pub hosts: u32,
    /// VMs of each host.
    pub vms: u32,
    /// Hosts of each group; the last group may have fewer.
    pub hosts_per_group: u32,
    /// Names and sizes follow from it.
    pub random_seed: u64,
    /// The address of the first host, in 127.0.0.0/8; the others follow it.
    pub first_address: Ipv4Addr,
    /// The port of every agent.
    pub port: u16,
}

impl FleetPlan {
    /// Every VM of the fleet.
    pub fn all_vms(&self) -> u32 {
        self.hosts * self.vms
    }

    pub fn host(&self, host: u32) -> HostName {
        let name = format!("sim-{:05}", host + 1);
        name.parse().expect("letters and digits")
    }

    pub fn group(&self, host: u32) -> GroupName {
        let name = format!("group-{:05}", self.group_number(host) + 1);
        name.parse().expect("letters and digits")
    }

    pub fn address(&self, host: u32) -> SocketAddr {
        let address = Ipv4Addr::from_bits(self.first_address.to_bits() + host);
        SocketAddr::new(IpAddr::V4(address), self.port)
    }

    fn group_number(&self, host: u32) -> u32 {
        host / self.hosts_per_group
    }

    /// The hosts of a host's group.
    pub fn group_of(&self, host: u32) -> Range<u32> {
        let first = self.group_number(host) * self.hosts_per_group;
        first..(first + self.hosts_per_group).min(self.hosts)
    }

    /// Whose guardians a host's VMs are wrapped for, the host first: as many as a controller would grant by itself, so that
    /// it has nothing to do when the fleet appears.
    pub fn guardian_hosts(&self, host: u32) -> impl Iterator<Item = u32> {
        let others = self.group_of(host).filter(move |other| *other != host);
        std::iter::once(host).chain(others).take(MANY_GUARDIANS)
    }

    /// The VM with that number of all.
    pub fn vm_name(&self, number: u32) -> VmName {
        let name = format!("vm-{number:06}");
        name.parse().expect("letters and digits")
    }

    pub fn vm_id(&self, number: u32) -> VmId {
        let name = format!("fleetward-sim {} {number}", self.random_seed);
        VmId(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
    }

    /// The VMs of a host, all of them running, each with a disk, a card, three labels and a TPM.
    pub fn vms_of(&self, host: u32) -> impl Iterator<Item = (VmId, FakeVm)> {
        let first = host * self.vms;
        (first..first + self.vms).map(move |number| {
            let spec = self.spec(host, number);
            let id = spec.id;
            let metadata = VmMetadata {
                spec,
                generation: 1,
                key_protector: Some(format!("unsealed {id}")),
                ek_certificate: None,
                transit: None,
                revoked: Vec::new(),
                former_certificates: None,
                unknown: Unknown::new(),
            };
            let mut vm = FakeVm::new(metadata, VmState::Running);
            vm.simulated_tpm = Some(SimulatedTpm::default());
            (id, vm)
        })
    }

    fn spec(&self, host: u32, number: u32) -> VmSpec {
        let mut random = fastrand::Rng::with_seed(self.random_seed ^ (u64::from(number) << 20));
        let id = self.vm_id(number);
        let mut spec = VmSpec::bare(id, self.vm_name(number), Profile::Linux, MADE);
        spec.group = self.group(host);
        spec.cpus = 1 << random.u32(0..4);
        spec.memory = ByteSize::gib(1 << random.u32(0..4));
        let pool = "default".parse().expect("a name");
        let (volume, size) = (
            format!("{id}-vda.qcow2"),
            ByteSize::gib(random.u64(20..200)),
        );
        spec.disks = vec![DiskSpec::new("vda", DiskBus::Virtio, pool, volume, size)];
        let [_, a, b, c] = number.to_be_bytes();
        let mac = format!("52:54:00:{a:02x}:{b:02x}:{c:02x}");
        spec.nics = vec![NicSpec::first(Profile::Linux, mac)];
        for (label, values) in [
            ("site", ["tokyo", "osaka", "kyoto", "nagoya"]),
            ("tier", ["front", "middle", "back", "batch"]),
            ("owner", ["sales", "research", "finance", "support"]),
        ] {
            let value = random.choice(values).expect("some");
            spec.labels
                .insert(label.parse().expect("a label"), value.to_owned());
        }
        spec
    }

    /// The guardians of a host's VMs, where `guardian` says whose a host's own is.
    pub fn guardians_of(&self, host: u32, guardian: impl Fn(u32) -> GuardianId) -> Vec<GuardianId> {
        self.guardian_hosts(host).map(guardian).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn plan() -> FleetPlan {
        FleetPlan {
            hosts: 7,
            vms: 3,
            hosts_per_group: 3,
            random_seed: 1,
            first_address: Ipv4Addr::new(127, 64, 0, 254),
            port: 7443,
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_vms_and_another_one_others() {
        let specs = |plan: &FleetPlan| -> Vec<_> {
            let vms = (0..plan.hosts).flat_map(|host| plan.vms_of(host));
            vms.map(|(_, vm)| vm.metadata.spec).collect()
        };
        let other = FleetPlan {
            random_seed: 2,
            ..plan()
        };
        assert_eq!(specs(&plan()), specs(&plan()));
        assert_ne!(specs(&plan()), specs(&other));
    }

    #[test]
    fn no_two_vms_or_hosts_share_a_name_an_id_an_address_or_a_card() {
        let plan = plan();
        let vms: Vec<_> = (0..plan.hosts).flat_map(|host| plan.vms_of(host)).collect();
        let names: BTreeSet<_> = vms.iter().map(|(_, vm)| &vm.metadata.spec.name).collect();
        let ids: BTreeSet<_> = vms.iter().map(|(id, _)| id).collect();
        let cards: BTreeSet<_> = (vms.iter())
            .map(|(_, vm)| &vm.metadata.spec.nics[0].mac)
            .collect();
        assert_eq!([names.len(), ids.len(), cards.len()], [21; 3]);
        let hosts: BTreeSet<_> = (0..plan.hosts).map(|host| plan.host(host)).collect();
        let addresses: BTreeSet<_> = (0..plan.hosts).map(|host| plan.address(host)).collect();
        assert_eq!([hosts.len(), addresses.len()], [7; 2]);
    }

    #[test]
    fn a_vm_is_wrapped_for_its_own_host_and_the_others_of_the_group() {
        let hosts = |host| plan().guardian_hosts(host).collect::<Vec<_>>();
        assert_eq!(hosts(4), [4, 3, 5]);
        assert_eq!(hosts(6), [6]);
        let large = FleetPlan {
            hosts: 200,
            hosts_per_group: 200,
            ..plan()
        };
        assert_eq!(large.guardian_hosts(120).count(), MANY_GUARDIANS);
    }
}
