//! Bulk requests for VMs: which VMs are meant, what would become of each, and the run.

mod run;

pub(super) use run::{Each, run};

use super::actions::{begin, is_spared, plan};
use super::body::Asked;
use super::lines::lines;
use super::{Answer, allowed, parsed, scope};
use crate::app::App;
use crate::world::World;
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_api::bulk::{
    BulkEvent, BulkRequest, BulkSummary, MOST_PARALLEL, Matching, Plan, Selection, Target,
    VmAction, Would, short,
};
use fleetward_api::controller::{Accepted, JobView, Role};
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::admission::Request;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, VmId, VmName};
use futures_util::{Stream, StreamExt, stream};
use http::StatusCode;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

serves! {
    VmBulk => vm_bulk,
    BulkStop => bulk_stop,
}

/// VMs whose plans are made side by side: that of a move asks two hosts.
const PLANNED_AT_ONCE: usize = 16;

async fn vm_bulk(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::VmBulk>,
) -> Answer<Response> {
    if !request.dry_run {
        allowed(&peer, Role::Operator)?;
    }
    let BulkRequest {
        action, vms, how, ..
    } = request;
    action.check()?;
    scope::require_hosts_of(&app.world, &peer, &action)?;
    check(how.parallel)?;
    let targets = selected(&app.world, &peer, &vms, &action)?;
    let each = EachVm {
        ids: ids(&app.world, &targets),
        app: app.clone(),
        peer,
        action,
        chosen: vms.is_chosen(),
    };
    Ok(match request.dry_run {
        true => lines(&app, each.plans(targets)),
        false => run(
            &app,
            each,
            targets.into_iter().map(Target::Vm).collect(),
            how,
        ),
    })
}

async fn bulk_stop(State(app): State<App>, Path(bulk): Path<String>) -> Answer<StatusCode> {
    let id: Uuid = parsed("id of a bulk request", &bulk)?;
    match app.bulks.stop(id) {
        true => Ok(StatusCode::NO_CONTENT),
        false => {
            let what = format!("there is no bulk request {id} under way");
            Err(Failure::new(ErrorCode::NotFound, what).into())
        }
    }
}

/// Refuses numbers of VMs at once that nobody means.
pub(super) fn check(parallel: Option<u32>) -> Result<(), Failure> {
    match parallel {
        None | Some(1..=MOST_PARALLEL) => Ok(()),
        Some(parallel) => {
            let what = format!("1 to {MOST_PARALLEL} are worked on at once, not {parallel}");
            Err(Failure::new(ErrorCode::InvalidArgument, what))
        }
    }
}

/// The names of the VMs that are meant, each once.
///
/// # Errors
/// Nothing is selected by anything; a VM whose TPM is to be changed is named and does not exist: the question about what is
/// lost is asked once for all.
fn selected(
    world: &World,
    peer: &Peer,
    vms: &Selection,
    action: &VmAction,
) -> Result<Vec<VmName>, Failure> {
    let wrong = |what: &str| Failure::new(ErrorCode::InvalidArgument, what);
    match vms {
        Selection::Named(names) if names.is_empty() => Err(wrong("no VM is named")),
        Selection::Named(names) => {
            if matches!(
                action.request(),
                Request::Tpm { .. } | Request::Certificates { .. }
            ) {
                for name in names {
                    scope::find_vm(world, peer, name.as_str())?;
                }
            }
            Ok(once(names))
        }
        Selection::Planned(names) => Ok(once(names)),
        Selection::All => Ok(matching(world, peer, &Matching::default())),
        Selection::Matching(wanted) => {
            if wanted.host.is_none() && wanted.labels.is_empty() {
                return Err(wrong("a choice of VMs is by a host, by labels, or both"));
            }
            if let Some(label) = wanted.labels.iter().find(|label| !label.contains('=')) {
                return Err(wrong(&format!("a label is KEY=VALUE, not {label:?}")));
            }
            Ok(matching(world, peer, wanted))
        }
    }
}

fn once(names: &[VmName]) -> Vec<VmName> {
    let mut seen = BTreeSet::new();
    let first = names.iter().filter(|name| seen.insert((*name).clone()));
    first.cloned().collect()
}

/// Our VMs that fit all of it. Domains that Fleetward did not make are never chosen.
fn matching(world: &World, peer: &Peer, wanted: &Matching) -> Vec<VmName> {
    let has = |vm: &VmObserved, label: &String| {
        let labels = vm.metadata.as_ref().map(|metadata| &metadata.spec.labels);
        let mut own = labels.into_iter().flatten();
        own.any(|(key, value)| *label == format!("{key}={value}"))
    };
    let fits = |vm: &VmObserved| {
        vm.is_managed()
            && scope::sees_vm(world, peer, vm)
            && wanted.host.as_ref().is_none_or(|host| vm.host == *host)
            && wanted.labels.iter().all(|label| has(vm, label))
    };
    let vms = world.inventory.vms();
    let vms = vms.iter().filter(|vm| fits(vm));
    vms.map(|vm| vm.name.clone()).collect()
}

/// The ids behind names, in one pass over the inventory: looking names up one by one costs a pass for each.
fn ids(world: &World, names: &[VmName]) -> HashMap<VmName, VmId> {
    let wanted: HashSet<_> = names.iter().collect();
    let vms = world.inventory.vms();
    let ours = vms.iter().filter(|vm| vm.is_managed());
    ours.filter(|vm| wanted.contains(&vm.name))
        .map(|vm| (vm.name.clone(), vm.id))
        .collect()
}

/// An action for each of several VMs.
struct EachVm {
    app: App,
    /// Of VMs that were there when the request came.
    ids: HashMap<VmName, VmId>,
    /// Who asks.
    peer: Peer,
    action: VmAction,
    /// Not named one by one.
    chosen: bool,
}

impl EachVm {
    fn plans(self, vms: Vec<VmName>) -> impl Stream<Item = BulkEvent> + Send + 'static {
        let summary = BulkSummary {
            skipped: vms.len(),
            ..BulkSummary::default()
        };
        let each = Arc::new(self);
        let plans = stream::iter(vms).map(move |name| {
            let each = each.clone();
            async move { BulkEvent::Planned(each.plan(name).await) }
        });
        plans
            .buffered(PLANNED_AT_ONCE)
            .chain(stream::iter([BulkEvent::Summary(summary)]))
    }

    /// The VM as it is now.
    fn find(&self, name: &VmName) -> Result<Arc<VmObserved>, Failure> {
        let inventory = &self.app.world.inventory;
        let known = self.ids.get(name).and_then(|id| inventory.vm(*id));
        let theirs = |vm: &Arc<VmObserved>| scope::sees_vm(&self.app.world, &self.peer, vm);
        match known.filter(|vm| vm.name == *name && theirs(vm)) {
            Some(vm) => Ok(vm),
            None => scope::find_vm(&self.app.world, &self.peer, name.as_str()),
        }
    }

    async fn plan(&self, name: VmName) -> Plan {
        match self.find(&name) {
            Ok(vm) => {
                let spared = is_spared(&vm, &self.action, self.chosen);
                plan(&self.app, &vm, &self.action, spared).await
            }
            Err(failure) => Plan {
                target: Target::Vm(name),
                would: Would::Fail,
                message: short(&failure),
                failure: Some(failure),
                expires: None,
                question: None,
            },
        }
    }
}

impl Each for EachVm {
    async fn begin(&self, target: &Target) -> Result<Accepted, Failure> {
        let Target::Vm(name) = target else {
            let what = format!("{target} is no VM");
            return Err(Failure::new(ErrorCode::InvalidArgument, what));
        };
        let vm = self.find(name)?;
        if is_spared(&vm, &self.action, self.chosen) {
            return Ok(Accepted { job: None });
        }
        begin(&self.app, &self.peer.to_string(), &vm, &self.action).await
    }

    fn done(&self, job: &JobView) -> String {
        self.action.done(job)
    }

    fn already(&self) -> &'static str {
        self.action.already()
    }
}
