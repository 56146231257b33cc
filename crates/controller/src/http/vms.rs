//! VMs: list, show, and requests for changes. Long operations become jobs; requests that can be refused at once are
//! refused here.

use super::actions::act;
use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use super::{Answer, Refusal, scope, view};
use crate::admission::{Disputes, admit, shown_state};
use crate::app::App;
use crate::load;
use crate::networks::mac_in_use;
use crate::seed;
use crate::work::{PauseInput, VmCreate, VmPause, VmResume};
use crate::world::World;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use fleetward_api::bulk::VmAction;
use fleetward_api::controller::{Accepted, VmCreateRequest, VmQuery, VmView};
use fleetward_api::verbs;
use fleetward_jobs::{JobError, JobKind};
use fleetward_link::Peer;
use fleetward_model::admission::{Admission, Request, busy};
use fleetward_model::host::Formats;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, GroupName, JobId, VmName};
use http::StatusCode;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

serves! {
    VmList => vm_list,
    VmShow => vm_show,
    VmCreate => vm_create,
    VmDelete => vm_delete,
    VmStart => vm_start,
    VmStop => vm_stop,
    VmRestart => vm_restart,
    VmPause => vm_pause,
    VmResume => vm_resume,
    VmMigrate => vm_migrate,
}

/// VMs that are looked at before others get their turn.
const SLICE: usize = 500;

async fn vm_list(
    State(app): State<App>,
    peer: Peer,
    Asked(query): Asked<verbs::VmList>,
) -> Answer<Rows<VmView>> {
    let labels = query.labels.iter().map(|text| {
        text.split_once('=').ok_or_else(|| {
            Failure::new(ErrorCode::InvalidArgument, "a label is KEY=VALUE")
                .fix("write a label like --label tier=front")
        })
    });
    let labels: Vec<(&str, &str)> = labels.collect::<Result<_, _>>()?;
    let page = Page::new(query.limit, query.after.clone())?;
    let world = &app.world;
    // Asked of the VM itself: only what is shown is worth a view.
    let wanted = |vm: &VmObserved| {
        let spec = vm.metadata.as_ref().map(|metadata| &metadata.spec);
        let has = |(key, value): &(&str, &str)| {
            let mut own = spec.into_iter().flat_map(|spec| &spec.labels);
            own.any(|(k, v)| k.as_str() == *key && v == value)
        };
        let group = spec.map(|spec| &spec.group);
        page.is_after(&[vm.name.as_str(), vm.host.as_str(), &vm.id.to_string()])
            && scope::sees_vm(world, &peer, vm)
            && query.host.as_ref().is_none_or(|host| vm.host == *host)
            && query.tpm.is_none_or(|tpm| vm.tpm.enabled == tpm)
            && (query.group.as_ref()).is_none_or(|wanted| group == Some(wanted))
            && labels.iter().all(has)
            && query
                .state
                .is_none_or(|state| shown_state(world, vm) == state)
    };
    let mut views = Vec::new();
    let mut vms = Listed::of(world, &query, &page);
    while views.len() < page.limit() {
        let some = vms.next(world);
        if some.is_empty() {
            break;
        }
        let disputes = Disputes::now(world);
        let room = page.limit() - views.len();
        let shown = some.iter().filter(|vm| wanted(vm)).take(room);
        views.extend(shown.map(|vm| VmView {
            usage: query.usage.then(|| load::of_vm(world, vm)).flatten(),
            ..view::vm(&disputes, vm)
        }));
        tokio::task::yield_now().await;
    }
    Ok(Rows(views))
}

/// VMs that a list may show, in its order, some at a time, so that no list holds up anybody else.
enum Listed {
    These(VecDeque<Arc<VmObserved>>),
    Following(Option<Arc<VmObserved>>),
    From(VmName),
}

impl Listed {
    fn of(world: &World, query: &VmQuery, page: &Page) -> Self {
        if let Some(host) = &query.host {
            return Self::These(world.inventory.vms_on(host).into());
        }
        if let Some(group) = &query.group {
            let mut vms = world.inventory.vms_of(group);
            vms.sort_by(|a, b| (&a.name, &a.host, a.id).cmp(&(&b.name, &b.host, b.id)));
            return Self::These(vms.into());
        }
        match page.after_name().map(str::parse) {
            Some(Ok(name)) => Self::From(name),
            Some(Err(_)) | None => Self::Following(None),
        }
    }

    /// Some more; none at the end.
    fn next(&mut self, world: &World) -> Vec<Arc<VmObserved>> {
        let some = match self {
            Self::These(vms) => return vms.drain(..vms.len().min(SLICE)).collect(),
            Self::Following(after) => world.inventory.some_after(after.as_deref(), SLICE),
            Self::From(name) => world.inventory.some_from(name, SLICE),
        };
        *self = match some.last() {
            Some(last) => Self::Following(Some(Arc::clone(last))),
            None => Self::These(VecDeque::new()),
        };
        some
    }
}

/// After a start, waits for the hosts on which the VM may be. One that nobody knows may have been made while the controller
/// was away, and one with which a job is at work, or that its host has no longer, may be on any host.
async fn heard_of(app: &App, vm: &str) {
    let world = &app.world;
    let known = world.inventory.find(vm).ok();
    if let Some(vm) = known.filter(|vm| !world.holders.hold(vm.id)) {
        app.heard(&world.inventory.hosts_with(vm.id)).await;
        if world.inventory.vm(vm.id).is_some() {
            return;
        }
    }
    app.first_call.over().await;
}

async fn vm_show(State(app): State<App>, Path(vm): Path<String>) -> Answer<Json<VmView>> {
    let inventory = &app.world.inventory;
    if !app.first_call.is_over() {
        heard_of(&app, &vm).await;
    }
    let vm = inventory.find(&vm)?;
    Ok(Json(VmView {
        usage: load::of_vm(&app.world, &vm),
        ..view::vm(&Disputes::now(&app.world), &vm)
    }))
}

async fn vm_create(
    State(app): State<App>,
    peer: Peer,
    Asked(mut request): Asked<verbs::VmCreate>,
) -> Answer<Response> {
    let world = &app.world;
    if let Some(groups) = peer.groups() {
        choose_group(world, &peer, groups, &mut request)?;
    }
    let dry_run = request.dry_run;
    let wanted = crate::creation::plan(&world.images, &world.templates, &world.hosts, request)?;
    world.require_name(&wanted.name).await?;
    world.require_macs(wanted.macs(), None)?;
    let _turn = app.placing.lock().await;
    let host = world.place(&wanted.needs, &wanted.choice, &[])?;
    let network = world.default_network(&host);
    let what = format!("VM {} cannot be made on host {host}", wanted.name);
    world.require_fit(what, &wanted.needs_with(&network), &host)?;
    let group = world.hosts.of(&host)?.group.clone();
    let input = wanted.on(host, group, &network, time::OffsetDateTime::now_utc());
    let medium = wanted.seed().map(|seed| seed::medium(seed, &input.spec));
    let medium = medium.transpose()?;
    if dry_run {
        return Ok(accepted(None));
    }
    let agent = world.agents.of(&input.host)?;
    if let Some(medium) = &medium {
        medium.place(&agent, input.vm).await?;
    }
    let submitted = app.submit::<VmCreate>(&input, &peer.to_string()).await;
    if submitted.is_err() && medium.is_some() {
        // The host removes what belongs to no VM by itself, if it is away now.
        let _ = agent.delete_seed(input.vm).await;
    }
    match submitted {
        Ok(job) => Ok(accepted(Some(job))),
        Err(error) if let Some(failure) = mac_in_use(&error) => Err(failure.into()),
        Err(JobError::Busy { by, .. }) => {
            let name = &wanted.name;
            let what = format!("a VM {name} is being made or changed by job {by}");
            Err(Failure::new(ErrorCode::NameTaken, what).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Someone whose role holds in some groups makes VMs in these: in the one, or in the one that is named.
fn choose_group(
    world: &World,
    peer: &Peer,
    groups: &BTreeSet<GroupName>,
    request: &mut VmCreateRequest,
) -> Result<(), Failure> {
    if let Some(host) = &request.host {
        scope::require_host(world, peer, host)?;
    }
    match (&request.group, &request.host, groups.first()) {
        (Some(group), _, _) if groups.contains(group) => Ok(()),
        (Some(group), _, _) => Err(scope::beyond(peer, &format!("group {group} is another"))),
        (None, Some(_), _) => Ok(()),
        (None, None, Some(only)) if groups.len() == 1 => {
            request.group = Some(only.clone());
            Ok(())
        }
        (None, None, _) => Err(Failure::new(
            ErrorCode::InvalidArgument,
            "it is not said in which group the VM is made",
        )
        .because(format!("the role of {peer} holds in several"))
        .fix("--group or --host")),
    }
}

async fn vm_delete(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(query): Asked<verbs::VmDelete>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::Delete(query)).await
}

async fn vm_start(State(app): State<App>, peer: Peer, Path(vm): Path<String>) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::Start).await
}

async fn vm_stop(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::VmStop>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::Stop(request)).await
}

async fn vm_restart(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::VmRestart>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::Restart(request)).await
}

async fn vm_pause(State(app): State<App>, peer: Peer, Path(vm): Path<String>) -> Answer<Response> {
    let vm = app.world.inventory.find(&vm)?;
    hold::<VmPause>(&app, &peer, &vm, Request::Pause).await
}

async fn vm_resume(State(app): State<App>, peer: Peer, Path(vm): Path<String>) -> Answer<Response> {
    let vm = app.world.inventory.find(&vm)?;
    hold::<VmResume>(&app, &peer, &vm, Request::Resume).await
}

/// Pauses or resumes.
async fn hold<K: JobKind<Input = PauseInput>>(
    app: &App,
    peer: &Peer,
    vm: &VmObserved,
    request: Request,
) -> Answer<Response> {
    if let Some(answer) = decide(app, vm, request).await? {
        return Ok(answer);
    }
    let needs = Formats {
        operations: Formats::POWER,
        ..Formats::default()
    };
    app.world.require_formats(&vm.host, needs)?;
    let input = PauseInput {
        vm: vm.id,
        name: vm.name.clone(),
        host: vm.host.clone(),
    };
    let submitted = submit::<K>(app, vm, &peer.to_string(), &input).await?;
    Ok(accepted(submitted.job))
}

async fn vm_migrate(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::VmMigrate>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::Migrate(request)).await
}

/// Whether the request can be made now. Some: there is nothing to do, or a job does it already.
pub(super) async fn decide(
    app: &App,
    vm: &VmObserved,
    request: Request,
) -> Result<Option<Response>, Refusal> {
    Ok(match admit(app, vm, request).await? {
        Admission::Accepted => None,
        Admission::Done => Some(accepted(None)),
        Admission::UnderWay(job) => Some(accepted(Some(job))),
    })
}

/// Submits a job on the VM for `by`.
pub(super) async fn submit<K: JobKind>(
    app: &App,
    vm: &VmObserved,
    by: &str,
    input: &K::Input,
) -> Result<Accepted, Failure> {
    match app.submit::<K>(input, by).await {
        Ok(job) => Ok(Accepted { job: Some(job) }),
        Err(JobError::Busy { by, .. }) => Err(busy(&vm.name, by)),
        Err(error) => Err(error.to_failure()),
    }
}

pub(super) fn accepted(job: Option<JobId>) -> Response {
    let status = if job.is_some() {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    (status, Json(Accepted { job })).into_response()
}
