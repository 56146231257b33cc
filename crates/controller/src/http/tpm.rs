//! TPMs of existing VMs: enable, disable, restore, roll; and the list of versions.

use super::Answer;
use super::actions::act;
use super::body::Asked;
use crate::app::App;
use crate::audit::Act;
use crate::world::World;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_api::bulk::VmAction;
use fleetward_api::tpm::TpmVersion;
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::audit::AuditAction;
use fleetward_model::{ErrorCode, Failure, VmId};
use http::StatusCode;

serves! {
    TpmEnable => tpm_enable,
    TpmDisable => tpm_disable,
    TpmRestore => tpm_restore,
    TpmRoll => tpm_roll,
    TpmUnlock => tpm_unlock,
    TpmHistory => tpm_history,
    TpmKept => tpm_kept,
    TpmForget => tpm_forget,
}

async fn tpm_enable(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::TpmEnable>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::TpmEnable(request)).await
}

async fn tpm_disable(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::TpmDisable>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::TpmDisable(request)).await
}

async fn tpm_restore(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::TpmRestore>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::TpmRestore(request)).await
}

async fn tpm_roll(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::TpmRoll>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::TpmRoll(request)).await
}

async fn tpm_unlock(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::TpmUnlock>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::TpmUnlock(request)).await
}

async fn tpm_history(
    State(app): State<App>,
    Path(vm): Path<String>,
) -> Answer<Json<Vec<TpmVersion>>> {
    let escrow = &app.world.escrow;
    match app.world.inventory.find(&vm) {
        Ok(vm) => Ok(Json(escrow.list(vm.id))),
        // Its versions outlive a VM.
        Err(failure) => {
            let kept: Vec<_> = escrow.named(&vm).into_iter().collect();
            if kept.is_empty() {
                return Err(failure.into());
            }
            Ok(Json(
                kept.into_iter().flat_map(|vm| escrow.list(vm)).collect(),
            ))
        }
    }
}

async fn tpm_kept(State(app): State<App>) -> Json<Vec<TpmVersion>> {
    let world = &app.world;
    Json(world.escrow.without_vm(|vm| is_there(world, vm)))
}

/// Whether a host has the VM, or had it when it was last heard, or a job works on it.
fn is_there(world: &World, vm: VmId) -> bool {
    world.inventory.vm(vm).is_some() || world.holders.hold(vm)
}

async fn tpm_forget(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
) -> Answer<StatusCode> {
    let world = &app.world;
    let id: VmId = vm.parse().map_err(|error| {
        Failure::new(ErrorCode::InvalidArgument, format!("{vm} is no VM's id"))
            .because(format!("{error}; a name may be another VM's by now"))
            .fix("fleetward tpm kept")
    })?;
    if is_there(world, id) {
        let what = format!("VM {id} is still there, so its copies are kept");
        return Err(Failure::new(ErrorCode::VmStateWrong, what)
            .fix(format!("fleetward vm show {id}"))
            .into());
    }
    let Some(newest) = world.escrow.newest(id) else {
        let what = format!("nothing is kept of a VM {id}");
        return Err(Failure::new(ErrorCode::VmNotFound, what)
            .fix("fleetward tpm kept")
            .into());
    };
    let reason = format!(
        "TPM of VM {}, which was on host {}",
        newest.vm_name, newest.host
    );
    app.record(Act {
        vm: Some(id),
        ..Act::new(&peer, AuditAction::ForgetTpm, reason)
    })
    .await?;
    world.escrow.forget(id).await?;
    // Hosts that keep something of it are asked to remove it.
    world.inventory.touch();
    Ok(StatusCode::NO_CONTENT)
}
