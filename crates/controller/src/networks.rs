//! Networks of the fleet: which hosts offer them, and that no two network cards have one address.

use crate::world::World;
use fleetward_api::controller::{NetworkOnHost, NetworkView};
use fleetward_jobs::JobError;
use fleetward_model::change::ChangeStep;
use fleetward_model::network::NetworkPlace;
use fleetward_model::vm::{NicSpec, VmObserved};
use fleetward_model::{ErrorCode, Failure, HostName, Mac, NetworkName, VmId};
use std::collections::BTreeMap;
use uuid::Uuid;

/// An address that no other card has, as far as chance goes; the job that uses it looks.
pub(crate) fn new_mac() -> Mac {
    let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
    let text = format!("52:54:00:{a:02x}:{b:02x}:{c:02x}");
    text.parse().expect("an address of one card")
}

/// The lock of an address: two jobs cannot give it at the same time.
fn mac_lock(mac: &str) -> String {
    format!("mac/{}", mac.to_ascii_lowercase())
}

/// The locks of cards that a job makes.
pub(crate) fn nic_locks(nics: &[NicSpec]) -> Vec<String> {
    nics.iter().map(|nic| mac_lock(&nic.mac)).collect()
}

/// The addresses that a plan gives to cards, and those that it takes away: a step back gives them again.
pub(crate) fn changed_macs<'a>(steps: impl Iterator<Item = &'a ChangeStep>) -> Vec<&'a str> {
    let mut macs = Vec::new();
    for step in steps {
        if let ChangeStep::Nic { from, to, .. } = step {
            let from = from.as_ref().map(|nic| nic.mac.as_str());
            let to = to.as_ref().map(|nic| nic.mac.as_str());
            if from != to {
                macs.extend(from.into_iter().chain(to));
            }
        }
    }
    macs
}

/// The locks of addresses that a plan gives or takes away.
pub(crate) fn changed_mac_locks<'a>(steps: impl Iterator<Item = &'a ChangeStep>) -> Vec<String> {
    changed_macs(steps).into_iter().map(mac_lock).collect()
}

/// The refusal, where what is in use is the address of a card.
pub(crate) fn mac_in_use(error: &JobError) -> Option<Failure> {
    let JobError::Busy { resource, by } = error else {
        return None;
    };
    let mac = resource.strip_prefix("mac/")?;
    let what = format!("address {mac} is being given to a network card by job {by}");
    Some(Failure::new(ErrorCode::MacTaken, what))
}

impl World {
    /// Refuses addresses that cards of other VMs have, now or at their next start.
    pub(crate) fn require_macs<'a>(
        &self,
        macs: impl IntoIterator<Item = &'a str>,
        own: Option<VmId>,
    ) -> Result<(), Failure> {
        let wanted: Vec<String> = macs.into_iter().map(str::to_ascii_lowercase).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        for vm in self.inventory.vms() {
            if Some(vm.id) == own {
                continue;
            }
            if let Some(mac) = wanted.iter().find(|mac| has_mac(&vm, mac)) {
                let what = format!(
                    "a network card of VM {} on host {} has address {mac}",
                    vm.name, vm.host
                );
                return Err(Failure::new(ErrorCode::MacTaken, what));
            }
        }
        Ok(())
    }

    /// What a host's networks are there.
    pub(crate) fn places_on(&self, host: &HostName) -> BTreeMap<NetworkName, NetworkPlace> {
        let facts = self.inventory.seen(host).facts;
        let networks = facts.iter().flat_map(|facts| &facts.networks);
        networks
            .map(|network| (network.name.clone(), network.place.clone()))
            .collect()
    }

    /// The network of cards of which nothing else is said.
    pub(crate) fn default_network(&self, host: &HostName) -> NetworkName {
        let facts = self.inventory.seen(host).facts;
        facts.map_or_else(NetworkName::default, |facts| facts.default_network.clone())
    }

    /// Every network, with the hosts that have it.
    pub(crate) fn networks(&self) -> Vec<NetworkView> {
        let mut all: BTreeMap<NetworkName, Vec<NetworkOnHost>> = BTreeMap::new();
        for host in self.hosts.all() {
            let Some(facts) = self.inventory.seen(&host.name).facts else {
                continue;
            };
            let offered = facts.networks.iter().map(|network| {
                let on_host = NetworkOnHost {
                    host: host.name.clone(),
                    place: network.place.clone(),
                    vlans: network.vlans,
                    filters: network.filters,
                    default: network.name == facts.default_network,
                    problem: network.problem.clone(),
                };
                (network.name.clone(), on_host)
            });
            let nat = NetworkName::default();
            let user_mode = NetworkOnHost {
                host: host.name.clone(),
                place: NetworkPlace::Nat,
                vlans: false,
                filters: false,
                default: facts.default_network == nat,
                problem: None,
            };
            for (name, on_host) in offered.chain([(nat, user_mode)]) {
                all.entry(name).or_default().push(on_host);
            }
        }
        let view = |(name, hosts)| NetworkView { name, hosts };
        all.into_iter().map(view).collect()
    }
}

fn has_mac(vm: &VmObserved, mac: &str) -> bool {
    let specified = vm.metadata.iter().flat_map(|metadata| &metadata.spec.nics);
    let defined = vm
        .defined
        .iter()
        .filter_map(|defined| defined.nics.as_ref());
    let seen = vm.nics.iter().chain(defined).flatten();
    let mut macs = specified
        .map(|nic| nic.mac.as_str())
        .chain(seen.map(|nic| nic.mac.as_str()));
    macs.any(|has| has.eq_ignore_ascii_case(mac))
}
