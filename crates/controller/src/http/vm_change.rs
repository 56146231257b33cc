//! Changes of a VM: planned at once, done by one job.

use super::Answer;
use super::body::Asked;
use crate::admission::admit;
use crate::app::App;
use crate::creation::{EMPTY_VOLUME, installer, medium_of, new_mark};
use crate::networks::{changed_macs, mac_in_use, new_mac};
use crate::work;
use crate::work::ChangeInput;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use fleetward_api::controller::ChangeAnswer;
use fleetward_api::verbs;
use fleetward_jobs::JobError;
use fleetward_link::Peer;
use fleetward_model::admission::{Request, busy};
use fleetward_model::change::{self, Direction, DiskAct, DiskChange, DriveChange, Plan, Wanted};
use fleetward_model::fit::{DiskNeed, Needs, NetworkNeed};
use fleetward_model::host::Formats;
use fleetward_model::vm::{DiskObserved, DiskSpec, VmObserved};
use fleetward_model::{ErrorCode, Failure, JobId};
use http::StatusCode;

serves! {
    VmChange => vm_change,
}

async fn vm_change(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(mut request): Asked<verbs::VmChange>,
) -> Answer<Response> {
    let world = &app.world;
    let vm = world.inventory.find(&vm)?;
    let dry_run = request.dry_run;
    for nic in &mut request.nics {
        nic.with_address(new_mac);
    }
    let wanted = known(&app, request.wanted())?;
    let plan = change::plan(&vm, &wanted)?;
    refuse_one_directory(&app, &vm, &plan)?;
    if plan.steps.is_empty() {
        return Ok(answered(None, plan));
    }
    admit(&app, &vm, Request::Change).await?;
    let what = format!("VM {} cannot be changed", vm.name);
    world.require_still_fit(what, &needs(&vm, &plan), &vm.host)?;
    if let Some(name) = plan.name() {
        world.require_name_for(name, Some(vm.id)).await?;
    }
    world.require_macs(
        changed_macs(plan.steps.iter().map(|planned| &planned.step)),
        Some(vm.id),
    )?;
    if dry_run {
        return Ok(answered(None, plan));
    }
    let group = vm
        .metadata
        .as_ref()
        .map(|metadata| metadata.spec.group.clone());
    let input = ChangeInput {
        vm: vm.id,
        name: vm.name.clone(),
        host: vm.host.clone(),
        group: group.expect("what is planned is ours"),
        plan: plan.clone(),
    };
    match app
        .submit::<work::VmChange>(&input, &peer.to_string())
        .await
    {
        Ok(job) => Ok(answered(Some(job), plan)),
        Err(error) if let Some(failure) = mac_in_use(&error) => Err(failure.into()),
        Err(JobError::Busy { by, .. }) => Err(busy(&vm.name, by).into()),
        Err(error) => Err(error.into()),
    }
}

/// With what only the controller knows: new names of volumes, and the content of images.
fn known(app: &App, mut wanted: Wanted) -> Result<Wanted, Failure> {
    for change in &mut wanted.disks {
        match change {
            DiskChange::Add(asked) => asked.mark = Some(new_mark()),
            DiskChange::Move(moving) => moving.mark = Some(new_mark()),
            DiskChange::Resize(_) | DiskChange::Remove(_) => {}
        }
    }
    for image in wanted.drives.iter().filter_map(DriveChange::image) {
        let found = installer(&app.world.images, image)?;
        wanted.media.insert(image.clone(), medium_of(&found));
    }
    Ok(wanted)
}

/// Two pools of a host can be one directory, where there is nothing to move.
fn refuse_one_directory(app: &App, vm: &VmObserved, plan: &Plan) -> Result<(), Failure> {
    let facts = app.world.inventory.seen(&vm.host).facts;
    for (from, to) in moves(plan) {
        let id = |pool| {
            let facts = facts.as_ref()?;
            Some(facts.pool(pool)?.id.clone())
        };
        if let (Some(here), Some(there)) = (id(&from.pool), id(&to.pool))
            && here == there
        {
            let what = format!(
                "pools {} and {} of host {} are one directory",
                from.pool, to.pool, vm.host
            );
            return Err(Failure::new(ErrorCode::InvalidArgument, what).fix(format!(
                "choose another pool of: fleetward host show {}",
                vm.host
            )));
        }
    }
    Ok(())
}

fn moves(plan: &Plan) -> impl Iterator<Item = (&DiskSpec, &DiskSpec)> {
    plan.disks().filter_map(|step| match step.act()? {
        DiskAct::Move { from, to } => Some((from, to)),
        DiskAct::Come(_) | DiskAct::Go(_) | DiskAct::Grow { .. } => None,
    })
}

/// The room that disks take which come or move.
fn disk_needs(vm: &VmObserved, plan: &Plan) -> Vec<DiskNeed> {
    let need = |disk: &DiskSpec, written| DiskNeed {
        target: disk.target.clone(),
        pool: disk.pool.clone(),
        written,
        whole: Some(disk.size),
        ..DiskNeed::default()
    };
    let whole = |target: &str| {
        let seen = vm.disks.iter().find(|seen| seen.target == target);
        seen.map(DiskObserved::whole).unwrap_or_default()
    };
    let needs = plan.disks().filter_map(|step| match step.act()? {
        DiskAct::Come(disk) => Some(need(disk, EMPTY_VOLUME)),
        DiskAct::Move { to, .. } => Some(need(to, whole(&to.target))),
        DiskAct::Go(_) | DiskAct::Grow { .. } => None,
    });
    needs.collect()
}

fn answered(job: Option<JobId>, plan: Plan) -> Response {
    let status = match job {
        Some(_) => StatusCode::ACCEPTED,
        None => StatusCode::OK,
    };
    let steps = plan.steps;
    (status, Json(ChangeAnswer { job, steps })).into_response()
}

/// What the VM will need of its host beyond what it has there. A larger memory counts at its next start.
fn needs(vm: &VmObserved, plan: &Plan) -> Needs {
    Needs {
        vm: Some(vm.id),
        name: Some(vm.name.clone()),
        disks: disk_needs(vm, plan),
        memory: plan.memory().unwrap_or_default(),
        tpm: plan.tpm() == Some(true),
        networks: plan.nics().map(NetworkNeed::from).collect(),
        formats: needed_formats(vm, plan),
        ..Needs::default()
    }
}

/// What the host's agent must know: the operation, and the specification that it leaves. The TPM has older operations.
fn needed_formats(vm: &VmObserved, plan: &Plan) -> Formats {
    let steps = plan.of_the_definition();
    let Some(metadata) = vm.metadata.as_ref().filter(|_| !steps.is_empty()) else {
        return Formats::default();
    };
    Formats {
        operations: Formats::of_steps(&steps).operations,
        ..Formats::of_spec(&change::apply(&metadata.spec, &steps, Direction::Forward))
    }
}
