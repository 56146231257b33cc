//! The matrix: all VMs against all hosts, from what hosts have reported.
//!
//! All answers except CPU compatibility come from reports that are at most seconds old. Hosts are asked only about VMs
//! that run under KVM on another CPU model than the destination's. No key protector is opened for the matrix, so a
//! granted but damaged one shows only in the check of a single VM, or in its migration.

use crate::admission::Disputes;
use crate::check::{AtHome, against, in_the_way, judge};
use crate::world::{HostFactsNow, World};
use fleetward_api::controller::CheckView;
use fleetward_model::host::HostFacts;
use fleetward_model::preflight::{Incoming, Mode, Opening};
use fleetward_model::vm::VmObserved;
use fleetward_model::{Failure, HostName};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::HashMap;
use std::sync::Arc;

/// Questions to hosts at once.
const ASKED_AT_ONCE: usize = 16;

/// Checks VMs against hosts, in the order given; stopped VMs for a move while stopped.
pub(crate) async fn survey(
    world: &World,
    vms: &[Arc<VmObserved>],
    hosts: &[HostName],
    offline: bool,
) -> Result<Vec<CheckView>, Failure> {
    let mut facts = HashMap::new();
    for host in hosts.iter().chain(vms.iter().map(|vm| &vm.host)) {
        if !facts.contains_key(host) {
            facts.insert(host.clone(), HostFactsNow::of(world, host)?);
        }
    }
    let copies: HashMap<_, _> = hosts
        .iter()
        .map(|host| (host, world.inventory.copies_on(host)))
        .collect();
    let disputes = Disputes::now(world);
    let disputes = &disputes;
    let pairs = vms
        .iter()
        .flat_map(|vm| hosts.iter().map(move |to| (vm, to)));
    let checks = pairs.map(|(vm, to)| {
        let (source, destination) = (&facts[&vm.host], &facts[to]);
        let offline = offline || vm.state.stands_still();
        let there = &copies[to];
        async move {
            let mode = match (offline, vm.host == *to) {
                (_, true) => Mode::Start,
                (true, false) => Mode::Stopped,
                (false, false) => Mode::Live,
            };
            if mode == Mode::Live && must_ask(vm, source.facts(), destination.facts()) {
                let home = AtHome::ask(world, vm).await;
                return against(world, &home, to, offline).await;
            }
            let reachable = destination.online();
            let incoming = reachable.then(|| Incoming {
                uuid_taken: Some(there.iter().any(|other| other.id == vm.id)),
                name_taken: Some(
                    there
                        .iter()
                        .any(|other| other.name == vm.name && other.id != vm.id),
                ),
                cpu_problem: None,
                flash_problem: None,
                opening: opening(vm, destination.facts()),
            });
            let at_home = source.facts().map(|facts| opening(vm, Some(facts)));
            let checked = judge(world, mode, vm, source, destination, at_home, incoming);
            Ok(match disputes.refusal(vm) {
                Some(failure) => in_the_way(checked, failure),
                None => checked,
            })
        }
    });
    let checks: Vec<_> = checks.collect();
    stream::iter(checks)
        .buffered(ASKED_AT_ONCE)
        .try_collect()
        .await
}

/// Under translation every CPU is the same; under KVM one of the same model is.
fn must_ask(vm: &VmObserved, here: Option<&HostFacts>, there: Option<&HostFacts>) -> bool {
    let (Some(here), Some(there)) = (here, there) else {
        return false; // said by the rules
    };
    vm.accelerator == "kvm" && here.cpu_model != there.cpu_model
}

/// Whether a host holds a private key that the VM's key is wrapped for.
fn opening(vm: &VmObserved, facts: Option<&HostFacts>) -> Opening {
    if !vm.tpm.enabled {
        return Opening::NoTpm;
    }
    let guardians = facts.map(|facts| facts.guardians.as_slice());
    let held = guardians
        .unwrap_or_default()
        .iter()
        .filter(|g| g.has_private_key);
    let mut held = held.filter(|g| vm.tpm.guardians.contains(&g.id));
    if held.next().is_some() {
        Opening::Yes
    } else {
        Opening::NotGranted
    }
}
