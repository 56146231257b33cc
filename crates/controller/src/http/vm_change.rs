//! Changes of a VM: planned at once, done by one job.

use super::Answer;
use super::body::Asked;
use crate::admission::admit;
use crate::app::App;
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
use fleetward_model::JobId;
use fleetward_model::admission::{Request, busy};
use fleetward_model::change::{self, Direction, Plan};
use fleetward_model::fit::{Needs, NetworkNeed};
use fleetward_model::host::Formats;
use fleetward_model::vm::VmObserved;
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
    let plan = change::plan(&vm, &request.wanted())?;
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
