//! The networks that this host offers: what `agent.toml` names, whether it is there, and what VMs' cards are connected to.
//!
//! `nat` is always there and is never configured. What a bridge is and can do is read from the kernel (`/sys/class/net`).

use crate::config::{NetworkConfig, NetworkKind};
use crate::failure::Result;
use fleetward_hypervisor::{DomainObserved, HypervisorFacts, NicSeen};
use fleetward_model::host::Version;
use fleetward_model::network::{NetworkFacts, NetworkPlace, NicObserved};
use fleetward_model::vm::{NicSpec, VmSpec};
use fleetward_model::{DeviceId, ErrorCode, Failure, HostName, NetworkName};
use std::path::{Path, PathBuf};

/// The first libvirt that gives VLANs to cards on Linux bridges.
const BRIDGE_VLANS: Version = Version::new(11, 0, 0);

/// The host's networks beside `nat`.
#[derive(Debug, Clone)]
pub(crate) struct Networks {
    networks: Vec<NetworkConfig>,
    pub(crate) default: NetworkName,
    /// `/sys/class/net`.
    devices: PathBuf,
}

impl Networks {
    pub(crate) fn new(networks: Vec<NetworkConfig>, default: NetworkName) -> Self {
        Self {
            networks,
            default,
            devices: "/sys/class/net".into(),
        }
    }

    /// Each network with what it can do; and what an administrator should know.
    pub(crate) fn facts(&self, hypervisor: &HypervisorFacts) -> (Vec<NetworkFacts>, Vec<String>) {
        let facts: Vec<NetworkFacts> = self
            .networks
            .iter()
            .map(|network| self.facts_of(network, hypervisor))
            .collect();
        let warnings = facts.iter().filter_map(|network| {
            let problem = network.problem.as_ref()?;
            Some(format!(
                "network {} cannot be used: {problem}",
                network.name
            ))
        });
        let warnings = warnings.collect();
        (facts, warnings)
    }

    fn facts_of(&self, network: &NetworkConfig, hypervisor: &HypervisorFacts) -> NetworkFacts {
        let device = self.devices.join(&network.bridge);
        let linux = device.join("bridge");
        let there = device.exists();
        let problem = match network.kind {
            _ if !there => Some(format!("there is no bridge {}", network.bridge)),
            NetworkKind::Bridge if !linux.exists() => Some(format!(
                "{} is no Linux bridge; a bridge of Open vSwitch needs kind = \"openvswitch\"",
                network.bridge
            )),
            NetworkKind::Openvswitch if linux.exists() => Some(format!(
                "{} is a Linux bridge; leave out kind = \"openvswitch\"",
                network.bridge
            )),
            NetworkKind::Bridge | NetworkKind::Openvswitch => None,
        };
        NetworkFacts {
            name: network.name.clone(),
            place: network.place(),
            vlans: match network.kind {
                NetworkKind::Openvswitch => true,
                NetworkKind::Bridge => {
                    hypervisor.libvirt >= BRIDGE_VLANS && is_on(&linux.join("vlan_filtering"))
                }
            },
            // libvirt's filters are rules of the kernel's bridge; Open vSwitch passes it by.
            filters: network.kind == NetworkKind::Bridge && hypervisor.filters,
            problem,
        }
    }

    /// What a card is connected to here.
    pub(crate) fn place(&self, network: &NetworkName, host: &HostName) -> Result<NetworkPlace> {
        if network.is_nat() {
            return Ok(NetworkPlace::Nat);
        }
        match self.networks.iter().find(|known| known.name == *network) {
            Some(known) => Ok(known.place()),
            None => Err(Failure::new(
                ErrorCode::NetworkMissing,
                format!("host {host} has no network {network}"),
            )
            .fix(format!(
                "add network {network} to /etc/fleetward/agent.toml on host {host} and restart its agent"
            ))
            .into()),
        }
    }

    /// The same for all cards of a VM, in the specification's order.
    pub(crate) fn places(&self, spec: &VmSpec, host: &HostName) -> Result<Vec<NetworkPlace>> {
        let nics = spec.nics.iter();
        nics.map(|nic| self.place(&nic.network, host)).collect()
    }

    /// The network that a card is in, none where this host offers no such.
    fn network_of(&self, place: &NetworkPlace, nic: Option<&NicSpec>) -> Option<NetworkName> {
        if *place == NetworkPlace::Nat {
            return Some(NetworkName::default());
        }
        let here = |known: &&NetworkConfig| known.place() == *place;
        let mut matching = self.networks.iter().filter(here);
        // One bridge may be two networks; the specification says which.
        let specified = matching
            .clone()
            .find(|known| nic.is_some_and(|nic| nic.network == known.name));
        specified
            .or_else(|| matching.next())
            .map(|known| known.name.clone())
    }

    /// The addresses of cards that have, on this host, the connection that their network has here. Where somebody connected
    /// a card otherwise, it keeps that when it moves.
    pub(crate) fn as_specified<'a>(
        &'a self,
        domain: &'a DomainObserved,
        spec: &'a VmSpec,
    ) -> impl Iterator<Item = &'a NicSpec> {
        spec.nics.iter().filter(|nic| {
            let here = self.networks.iter().find(|known| known.name == nic.network);
            let seen = domain
                .nics
                .iter()
                .find(|seen| seen.mac.eq_ignore_ascii_case(&nic.mac));
            seen.and_then(|seen| seen.place.clone()) == here.map(NetworkConfig::place)
        })
    }

    /// Cards as they are shown.
    pub(crate) fn describe(&self, seen: &[NicSeen], spec: Option<&VmSpec>) -> Vec<NicObserved> {
        seen.iter()
            .map(|seen| self.describe_one(seen, spec))
            .collect()
    }

    fn describe_one(&self, seen: &NicSeen, spec: Option<&VmSpec>) -> NicObserved {
        let nics = spec.map(|spec| spec.nics.as_slice()).unwrap_or_default();
        let by_mac = || {
            nics.iter()
                .find(|nic| nic.mac.eq_ignore_ascii_case(&seen.mac))
        };
        let nic = match &seen.id {
            Some(id) => nics.iter().find(|nic| nic.id == *id),
            None => by_mac(),
        };
        let id = seen.id.clone().or_else(|| nic.map(|nic| nic.id.clone()));
        NicObserved {
            id: id.unwrap_or_else(|| named_after(&seen.mac)),
            network: seen
                .place
                .as_ref()
                .and_then(|place| self.network_of(place, nic)),
            bridge: seen
                .place
                .as_ref()
                .and_then(|place| place.bridge().map(str::to_owned)),
            mac: seen.mac.clone(),
            model: seen.model.clone(),
            vlan: seen.vlan,
            link: seen.link,
            filter: seen.filter.clone(),
            addresses: Vec::new(),
        }
    }
}

/// `mac-525400123456`.
fn named_after(mac: &str) -> DeviceId {
    let digits: String = mac.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("mac-{digits}")
        .parse()
        .expect("made of permitted characters")
}

fn is_on(file: &Path) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
}
