//! Asks the table of [`fleetward_model::admission`] with what the controller knows of a VM: its host, the job that holds
//! it, where it could be rebuilt.

use crate::app::App;
use crate::world::World;
use fleetward_model::admission::{self, Admission, Request, Subject, disputed};
use fleetward_model::vm::{VmObserved, VmState};
use fleetward_model::{Failure, HostName, VmId};
use std::collections::BTreeSet;

/// Whether `request` can be made of the VM now.
pub(crate) async fn admit(
    app: &App,
    vm: &VmObserved,
    request: Request,
) -> Result<Admission, Failure> {
    let world = &app.world;
    // First: it forgets a job that has ended, by which the VM would still be shown as migrating.
    let holder = app.holder_of(vm.id).await;
    let claimants = claimants(world, vm.id);
    let state = shown_state(world, vm);
    let refuge = (state == VmState::Unknown)
        .then(|| refuge(world, vm))
        .flatten();
    // A VM whose host answers is not lost, whatever job works on it.
    let holder = match (request, state) {
        (Request::Recover, state) if state != VmState::Unknown => None,
        _ => holder,
    };
    let subject = Subject {
        name: &vm.name,
        host: &vm.host,
        managed: vm.is_managed(),
        newer: vm.newer.as_ref(),
        claimants: &claimants,
        state,
        tpm: vm.tpm.enabled,
        holder,
        refuge: refuge.as_ref(),
    };
    admission::admit(&subject, request)
}

/// The hosts that say they have the VM, if they are more than one. While a job works on it, there may be a moment at which
/// two have it: of that the job takes care.
pub(crate) fn claimants(world: &World, vm: VmId) -> Vec<HostName> {
    match world.holders.of(vm) {
        Some(_) => Vec::new(),
        None => world.inventory.claimants(vm),
    }
}

/// The VMs that more than one host says it has, looked at once for many.
pub(crate) struct Disputes<'a> {
    world: &'a World,
    vms: BTreeSet<VmId>,
}

impl<'a> Disputes<'a> {
    pub(crate) fn now(world: &'a World) -> Self {
        let vms = world.inventory.disputed();
        Self { world, vms }
    }

    pub(crate) fn world(&self) -> &'a World {
        self.world
    }

    /// Whether this VM is one of them.
    pub(crate) fn has(&self, vm: VmId) -> bool {
        self.vms.contains(&vm) && !claimants(self.world, vm).is_empty()
    }

    /// Why nothing is done with this VM, if it is one of them.
    pub(crate) fn refusal(&self, vm: &VmObserved) -> Option<Failure> {
        self.has(vm.id)
            .then(|| disputed(&vm.name, &claimants(self.world, vm.id)))
    }
}

/// The VM's state as people see it.
pub(crate) fn shown_state(world: &World, vm: &VmObserved) -> VmState {
    let holder = world.holders.of(vm.id);
    let moves = holder.is_some_and(|(holder, _)| {
        matches!(
            holder.request,
            Some(Request::MigrateLive | Request::MigrateOffline)
        )
    });
    let answers = world.inventory.online(&vm.host);
    vm.state.shown(answers, moves)
}

/// A host that has the VM's disks and takes VMs, should the VM's own be lost for good.
fn refuge(world: &World, vm: &VmObserved) -> Option<HostName> {
    let group = &vm.metadata.as_ref()?.spec.group;
    let hosts = world.hosts.all().into_iter();
    let mut hosts = hosts.filter(|host| {
        let seen = world.inventory.seen(&host.name);
        let has_disks = seen.facts.is_some_and(|facts| {
            vm.disks.iter().all(|disk| {
                let pool = facts.pool(&disk.pool);
                pool.is_some_and(|pool| pool.id == disk.pool_id)
            })
        });
        host.name != vm.host && host.group == *group && !host.drained && seen.online && has_disks
    });
    hosts.next().map(|host| host.name.clone())
}
