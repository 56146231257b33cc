//! Answers agents whose host has booted: starts the VMs that they ask for.
//!
//! ```text
//!   an agent asks for a VM ─┬─ it is the VM, stopped, and nothing works on it ──► vm-start
//!                           └─ else: no answer; the agent goes on with others and asks again
//! ```
//! A copy that was rebuilt on another host must not start. What says so is in the store: the record of superseded copies, and
//! the locks of jobs. A recovery holds its VM until its copies are recorded, so a job that starts the VM begins before it, and
//! the recovery finds the host back; or after it, and finds the copy superseded, here and once more in its step.

use crate::admission::shown_state;
use crate::app::App;
use crate::work::{StartInput, VmStart};
use crate::world::World;
use fleetward_jobs::JobError;
use fleetward_model::admission::{Answer, Request, answer};
use fleetward_model::vm::VmObserved;
use fleetward_model::{HostName, VmId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Who appears in the audit trail as the one who asked.
const AUTOSTART: &str = "autostart";
/// Hosts and VMs change together: one look for all of it.
const SETTLE: Duration = Duration::from_millis(500);
/// The same VM is not tried again sooner.
const AGAIN: Duration = Duration::from_secs(10);

/// Answers until `stop`.
pub(crate) async fn answer_agents(app: App, stop: CancellationToken) {
    let mut changes = app.world.inventory.changes();
    let mut tried: BTreeMap<(HostName, VmId), Instant> = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            // What kept a VM off may end without anybody telling.
            () = tokio::time::sleep(AGAIN) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SETTLE) => {}
        }
        changes.mark_unchanged();
        tried.retain(|_, at| at.elapsed() < AGAIN);
        for (host, vms) in app.world.inventory.asking() {
            for vm in vms {
                let key = (host.clone(), vm);
                if tried.contains_key(&key) {
                    continue;
                }
                if let Some(vm) = to_start(&app.world, &host, vm) {
                    tried.insert(key, Instant::now());
                    start(&app, &vm).await;
                }
            }
        }
    }
}

/// The VM, if the copy on `host` is it and can start.
fn to_start(world: &World, host: &HostName, id: VmId) -> Option<Arc<VmObserved>> {
    if world.inventory.is_superseded(host, id) || world.holders.hold(id) {
        return None;
    }
    let vm = world.inventory.vm(id)?;
    let wanted = vm.metadata.as_ref().is_some_and(|m| m.spec.autostart);
    let only_here = world.inventory.hosts_with(id).iter().all(|one| one == host);
    let starts = answer(shown_state(world, &vm), Request::Start) == Answer::Accept;
    let is_it = vm.host == *host && vm.is_the_vm() && vm.state.stands_still();
    (wanted && only_here && is_it && starts).then_some(vm)
}

async fn start(app: &App, vm: &VmObserved) {
    let input = StartInput {
        vm: vm.id,
        name: vm.name.clone(),
        host: vm.host.clone(),
        was_stopped: true,
    };
    let (name, host) = (&vm.name, &vm.host);
    match app.submit::<VmStart>(&input, AUTOSTART).await {
        Ok(job) => tracing::info!(%job, vm = %name, %host, "a VM comes back with its host"),
        Err(JobError::Busy { .. }) => {}
        Err(error) => {
            tracing::warn!(vm = %name, %host, %error, "a VM does not come back with its host")
        }
    }
}
