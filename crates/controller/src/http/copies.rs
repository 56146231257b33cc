//! Clones and templates: create, list, delete.

use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use super::vms::decide;
use super::{Answer, parsed, scope};
use crate::app::App;
use crate::networks::new_mac;
use crate::work::{CloneInput, Reservation, TemplateCreate, TemplateInput, VmClone};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use fleetward_api::controller::{AcceptedWithWarnings, TemplateView};
use fleetward_api::verbs;
use fleetward_jobs::{JobError, JobKind};
use fleetward_link::Peer;
use fleetward_model::admission::{Request, busy};
use fleetward_model::clone::{self, CloneTpm};
use fleetward_model::error::Finding;
use fleetward_model::fit::Needs;
use fleetward_model::vm::{VmObserved, VmSpec};
use fleetward_model::{ErrorCode, Failure, HostName, PoolName, TemplateName, VmId, VmName};
use http::StatusCode;
use time::OffsetDateTime;
use uuid::Uuid;

serves! {
    VmClone => vm_clone,
    TemplateCreate => template_create,
    TemplateList => template_list,
    TemplateShow => template_show,
    TemplateDelete => template_delete,
}

async fn vm_clone(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::VmClone>,
) -> Answer<Response> {
    let world = &app.world;
    if let Some(host) = &request.host {
        scope::require_host(world, &peer, host)?;
    }
    let vm = world.inventory.find(&vm)?;
    if let Some(done) = decide(&app, &vm, Request::Clone).await? {
        return Ok(done);
    }
    world.require_name(&request.name).await?;
    let to = request.host.clone().unwrap_or_else(|| vm.host.clone());
    let choice = CloneTpm::or_default(request.tpm, vm.tpm.enabled);
    if choice == CloneTpm::Copy && !vm.tpm.enabled {
        let what = format!("VM {} has no TPM that could be copied", vm.name);
        return Err(Failure::new(ErrorCode::VmHasNoTpm, what).into());
    }
    let linked = !request.full && shares_disks(&app, &vm, &to);
    let needs = Needs {
        tpm_written: world.tpm_writer(&vm).filter(|_| choice == CloneTpm::Copy),
        ..clone_needs(
            &vm,
            &request.name,
            choice != CloneTpm::None,
            linked || to != vm.host,
        )
    };
    let what = format!("VM {} cannot be cloned to host {to}", vm.name);
    // Held until the job counts as under way, so that two requests do not count on the same room.
    let _turn = app.placing.lock().await;
    world.require_fit(what, &needs, &to)?;
    let spec = VmSpec {
        tpm: choice != CloneTpm::None,
        ..copied_spec(&vm, request.name.clone())
    };
    let warnings = clone::warnings(&vm.name, vm.tpm.enabled, choice);
    if request.dry_run {
        return Ok(dry_run(warnings));
    }
    let input = CloneInput {
        vm: vm.id,
        source: vm.name.clone(),
        host: vm.host.clone(),
        name: request.name,
        tpm: choice,
        linked,
        revoked: vm
            .metadata
            .as_ref()
            .map(|m| m.revoked.clone())
            .unwrap_or_default(),
        reservation: Some(Reservation {
            vm: Some(spec.id),
            ..Reservation::of(world, &needs, &to)
        }),
        spec,
        to,
    };
    submit::<VmClone>(&app, &vm, &peer, &input, warnings).await
}

/// Whether a clone on that host could build on the VM's disks where they are.
fn shares_disks(app: &App, vm: &VmObserved, to: &HostName) -> bool {
    let seen = app.world.inventory.seen(to);
    let shared = |pool: &PoolName, id: &str| {
        let there = seen.facts.as_ref().and_then(|facts| facts.pool(pool));
        there.is_some_and(|there| there.id == id)
    };
    *to == vm.host
        || vm
            .disks
            .iter()
            .all(|disk| shared(&disk.pool, &disk.pool_id))
}

/// What the clone needs of the host that it is to be on, stopped. With `shares`, nothing is written where that host has the
/// disks' directories: the clone builds on them, or was made there by the VM's own host.
fn clone_needs(vm: &VmObserved, name: &VmName, tpm: bool, shares: bool) -> Needs {
    let mut needs = Needs {
        vm: None,
        name: Some(name.clone()),
        tpm,
        ..Needs::of(vm, false, None)
    };
    for disk in needs.disks.iter_mut().filter(|_| !shares) {
        disk.lies_in = None;
    }
    needs
}

/// The same machine under another identity: uuid (and with it the generation id), MAC address, volumes. It comes without
/// drives: they held the installer medium.
fn copied_spec(vm: &VmObserved, name: VmName) -> VmSpec {
    let metadata = vm.metadata.as_ref();
    let known = metadata
        .expect("decide refuses what is not ours")
        .spec
        .clone();
    let id = Uuid::new_v4();
    let mut disks = known.disks;
    for disk in &mut disks {
        disk.volume = format!("{id}-{}.qcow2", disk.target);
    }
    let mut nics = known.nics;
    for nic in &mut nics {
        nic.mac = new_mac().into();
    }
    VmSpec {
        id: VmId(id),
        name,
        disks,
        nics,
        drives: Vec::new(),
        created: OffsetDateTime::now_utc(),
        ..known
    }
}

async fn template_create(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::TemplateCreate>,
) -> Answer<Response> {
    let world = &app.world;
    let vm = world.inventory.find(request.from.as_str())?;
    if let Some(done) = decide(&app, &vm, Request::Template).await? {
        return Ok(done);
    }
    world.templates.require_name(&request.name)?;
    let spec = VmSpec {
        tpm: false,
        ..copied_spec(&vm, vm.name.clone())
    };
    let warnings = if vm.tpm.enabled {
        vec![clone::deployment_warning(request.name.as_str())]
    } else {
        Vec::new()
    };
    if request.dry_run {
        return Ok(dry_run(warnings));
    }
    let input = TemplateInput {
        vm: vm.id,
        source: vm.name.clone(),
        host: vm.host.clone(),
        name: request.name,
        spec,
        source_had_tpm: vm.tpm.enabled,
        uefi_variables: request.uefi_variables,
    };
    submit::<TemplateCreate>(&app, &vm, &peer, &input, warnings).await
}

async fn template_list(
    State(app): State<App>,
    Asked(query): Asked<verbs::TemplateList>,
) -> Answer<Rows<TemplateView>> {
    let page = Page::new(query.limit, query.after)?;
    Ok(Rows(page.of_named(app.world.templates.all())))
}

async fn template_show(
    State(app): State<App>,
    Path(template): Path<String>,
) -> Answer<Json<TemplateView>> {
    let name: TemplateName = parsed("template's name", &template)?;
    Ok(Json(app.world.templates.of(&name)?))
}

async fn template_delete(
    State(app): State<App>,
    Path(template): Path<String>,
) -> Answer<StatusCode> {
    let name: TemplateName = parsed("template's name", &template)?;
    let world = &app.world;
    world.templates.of(&name)?;
    let contents = world.templates.remove(&name).await?;
    world.drop_content(contents).await;
    Ok(StatusCode::NO_CONTENT)
}

/// It could be done; what a person should know before.
fn dry_run(warnings: Vec<Finding>) -> Response {
    let answer = AcceptedWithWarnings {
        job: None,
        warnings,
    };
    Json(answer).into_response()
}

async fn submit<K: JobKind>(
    app: &App,
    vm: &VmObserved,
    peer: &Peer,
    input: &K::Input,
    warnings: Vec<Finding>,
) -> Answer<Response> {
    match app.submit::<K>(input, &peer.to_string()).await {
        Ok(job) => {
            let job = Some(job);
            let answer = AcceptedWithWarnings { job, warnings };
            Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
        }
        Err(JobError::Busy { by, .. }) => Err(busy(&vm.name, by).into()),
        Err(error) => Err(error.into()),
    }
}
