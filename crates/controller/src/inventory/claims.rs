//! Whose word counts. A host speaks for itself alone: two that say they have the same VM are a dispute, which
//! an administrator ends.

use super::Inventory;
use fleetward_model::host::HostFacts;
use fleetward_model::vm::{TransitSide, VmObserved, VmState};
use fleetward_model::{ErrorCode, Failure, HostName, VmId, VmName};
use std::collections::BTreeSet;
use std::sync::Arc;
use time::OffsetDateTime;

impl Inventory {
    /// The hosts that say they have this VM, if they are more than one. Each speaks for itself alone, so none of them is
    /// believed before an administrator has said which is right.
    pub(crate) fn claimants(&self, id: VmId) -> Vec<HostName> {
        let claims = self.claims(id);
        claims.iter().map(|vm| vm.host.clone()).collect()
    }

    /// What each host that claims the VM has of it; empty unless they are more than one.
    pub(crate) fn claims(&self, id: VmId) -> Vec<Arc<VmObserved>> {
        let state = self.read();
        if !state.catalogue.disputed().contains(&id) {
            return Vec::new();
        }
        let copies = state.catalogue.counting(id).iter();
        let mut claims: Vec<_> = copies.filter(|vm| vm.is_the_vm()).cloned().collect();
        claims.sort_by(|a, b| a.host.cmp(&b.host));
        claims
    }

    /// Every VM that more than one host says it has.
    pub(crate) fn disputed(&self) -> BTreeSet<VmId> {
        self.read().catalogue.disputed().clone()
    }

    /// VMs that two hosts both claim, and names that two VMs have.
    pub(crate) fn contradictions(&self, host: &HostName) -> Vec<String> {
        let state = self.read();
        let Some(reported) = state.hosts.get(host) else {
            return Vec::new();
        };
        let mut warnings = Vec::new();
        let owes = |id| state.owed.contains(&(host.clone(), id));
        let vms = reported.vms.values().map(|held| &held.vm);
        let ours = vms.filter(|vm| vm.is_managed());
        for vm in ours.filter(|vm| !owes(vm.id)) {
            let copies = state.catalogue.counting(vm.id).iter();
            for other in copies.filter(|other| other.host != *host) {
                if vm.is_the_vm() && other.is_the_vm() {
                    warnings.push(format!("VM {} is also on host {}", vm.name, other.host));
                }
            }
            let same_name = state.catalogue.named(vm.name.as_str());
            for other in same_name.filter(|other| other.host != *host && other.id != vm.id) {
                if other.name == vm.name && other.is_managed() {
                    warnings.push(format!(
                        "host {} has another VM called {}",
                        other.host, vm.name
                    ));
                }
            }
        }
        warnings
    }
}

/// A host speaks only for itself, and of what it has seen until now: what it reports is its copy, under its name.
pub(super) fn own_word(host: &HostName, vm: VmObserved, now: OffsetDateTime) -> VmObserved {
    VmObserved {
        host: host.clone(),
        observed: vm.observed.min(now),
        ..vm
    }
}

/// The same of what it says of itself.
pub(super) fn own_facts(host: &HostName, facts: HostFacts) -> HostFacts {
    HostFacts {
        host: host.clone(),
        ..facts
    }
}

/// A host could call a VM of its own like another's, so that a name leads to the wrong one.
pub(super) fn same_name(name: &VmName, one: &VmObserved, other: &VmObserved) -> Failure {
    let what = format!(
        "hosts {} and {} each have a VM {name}",
        one.host, other.host
    );
    Failure::new(ErrorCode::VmDisputed, what)
        .because("a name is to lead to one VM")
        .fix(format!(
            "use the id: fleetward vm show {}; or fleetward vm show {}",
            one.id, other.id
        ))
}

/// Whether copy `a` is the VM rather than copy `b`.
pub(super) fn wins(a_online: bool, a: &VmObserved, b_online: bool, b: &VmObserved) -> bool {
    let rank = |online: bool, vm: &VmObserved| {
        let side = match vm.metadata.as_ref().and_then(|m| m.transit) {
            None => 2,
            Some(transit) => u8::from(transit.side == TransitSide::Incoming),
        };
        (side, online, vm.state == VmState::Running, vm.observed)
    };
    rank(a_online, a) > rank(b_online, b)
}
