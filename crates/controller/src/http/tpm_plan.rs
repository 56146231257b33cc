//! What a change of TPMs would do to each of several VMs. Admission decides, as for the changes themselves.

use super::Answer;
use super::body::Body;
use crate::admission::admit;
use crate::app::App;
use crate::world::World;
use axum::Json;
use axum::extract::State;
use fleetward_api::plans::{
    Question, QuestionAbout, TpmChange, TpmPlan, TpmPlanRequest, VmPlan, Would,
};
use fleetward_model::admission::{self, Admission, Request};
use fleetward_model::vm::{VmObserved, VmState};
use fleetward_model::{ErrorCode, Failure};
use std::sync::Arc;

serves! {
    TpmPlan => tpm_plan,
}

async fn tpm_plan(
    State(app): State<App>,
    Body(request): Body<TpmPlanRequest>,
) -> Answer<Json<TpmPlan>> {
    let vms = selected(&app.world, &request)?;
    let mut plans = Vec::new();
    for vm in &vms {
        plans.push(planned(&app, &request, vm).await);
    }
    Ok(Json(TpmPlan {
        question: question(&app.world, &request, &vms),
        vms: plans,
    }))
}

/// The VMs that are named, each once, or those that fit. Domains that Fleetward did not make are never chosen.
fn selected(world: &World, request: &TpmPlanRequest) -> Result<Vec<Arc<VmObserved>>, Failure> {
    let chosen = request.all || request.host.is_some() || !request.labels.is_empty();
    if chosen != request.names.is_empty() {
        let what = "name VMs, or choose them by a host, by labels, or all of them";
        return Err(Failure::new(ErrorCode::InvalidArgument, what));
    }
    let mut vms: Vec<Arc<VmObserved>> = Vec::new();
    for name in &request.names {
        let vm = world.inventory.find(name.as_str())?;
        if vms.iter().all(|known| known.id != vm.id) {
            vms.push(vm);
        }
    }
    if !chosen {
        return Ok(vms);
    }
    let mut vms = world.inventory.vms();
    vms.retain(|vm| {
        let labels = vm.metadata.as_ref().map(|metadata| &metadata.spec.labels);
        let has = |label: &String| {
            let mut own = labels.into_iter().flatten();
            own.any(|(key, value)| *label == format!("{key}={value}"))
        };
        let ours = vm.metadata.is_some() || vm.newer.is_some();
        ours && request.host.as_ref().is_none_or(|host| vm.host == *host)
            && request.labels.iter().all(has)
    });
    Ok(vms)
}

async fn planned(app: &App, request: &TpmPlanRequest, vm: &VmObserved) -> VmPlan {
    // Choosing VMs by what they have in common does not say that each has a TPM to roll.
    let spared = request.names.is_empty() && request.change == TpmChange::Roll && !vm.tpm.enabled;
    let wanted = Request::Tpm {
        change: match request.change {
            TpmChange::Enable => admission::TpmChange::Enable,
            TpmChange::Disable => admission::TpmChange::Disable,
            TpmChange::Restore => admission::TpmChange::Restore,
            TpmChange::Roll => admission::TpmChange::Roll,
        },
        restart: request.stop_and_restart,
    };
    let nothing = |already: &str| (Would::Nothing, None, format!("nothing to do: {already}"));
    let (would, code, message) = match admit(app, vm, wanted).await {
        Ok(Admission::UnderWay(job)) => {
            let message =
                format!("a job is already doing that; follow it with: fleetward job watch {job}");
            (Would::Nothing, None, message)
        }
        _ if spared => nothing("has no TPM"),
        Ok(Admission::Done) if vm.tpm.enabled => nothing("has a TPM already"),
        Ok(Admission::Done) => nothing("has no TPM"),
        Ok(Admission::Accepted) => (Would::Change, None, change_of(&app.world, request, vm)),
        Err(failure) => (Would::Fail, Some(failure.code), short(failure)),
    };
    VmPlan {
        vm: vm.name.clone(),
        would,
        code,
        message,
        spared,
    }
}

fn short(failure: Failure) -> String {
    match failure.because.as_str() {
        "" => failure.what,
        // It says the same in other words.
        _ if failure.code == ErrorCode::HostUnreachable => failure.what,
        because => format!("{}: {because}", failure.what),
    }
}

fn change_of(world: &World, request: &TpmPlanRequest, vm: &VmObserved) -> String {
    let host = &vm.host;
    let restarts = match vm.state == VmState::Stopped {
        true => "",
        false => ", after an orderly shutdown, and start it again",
    };
    match request.change {
        TpmChange::Enable if has_former(world, vm) => format!(
            "would get a new TPM on host {host}{restarts}; what its former TPM had sealed would be lost to it"
        ),
        TpmChange::Enable => format!("would get a TPM on host {host}{restarts}"),
        TpmChange::Disable => {
            format!("would lose its TPM on host {host}{restarts}; the TPM is kept")
        }
        TpmChange::Restore => format!("would get a former TPM back on host {host}{restarts}"),
        TpmChange::Roll => format!("would get a new TPM key on host {host}{restarts}"),
    }
}

/// Whether a TPM is kept that the VM had.
fn has_former(world: &World, vm: &VmObserved) -> bool {
    !world.escrow.list(vm.id).is_empty()
}

/// What somebody loses by the change.
fn question(world: &World, request: &TpmPlanRequest, vms: &[Arc<VmObserved>]) -> Option<Question> {
    let loses = |vm: &VmObserved| match request.change {
        TpmChange::Disable => vm.tpm.enabled,
        TpmChange::Enable => !vm.tpm.enabled && has_former(world, vm),
        TpmChange::Restore => vm.tpm.enabled && request.version.is_some(),
        TpmChange::Roll => false,
    };
    let about = match request.change {
        TpmChange::Disable => QuestionAbout::TpmIsLost,
        TpmChange::Enable => QuestionAbout::NewTpmOpensNothing,
        TpmChange::Restore => QuestionAbout::TpmIsReplaced,
        TpmChange::Roll => return None,
    };
    let affected = vms.iter().filter(|vm| loses(vm));
    let vms: Vec<_> = affected.map(|vm| vm.name.clone()).collect();
    (!vms.is_empty()).then_some(Question { about, vms })
}
