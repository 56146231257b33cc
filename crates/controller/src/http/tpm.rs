//! TPMs of existing VMs: enable, disable, restore, roll; and the list of versions.

use super::Answer;
use super::actions::act;
use super::body::Asked;
use crate::app::App;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_api::bulk::VmAction;
use fleetward_api::tpm::TpmVersion;
use fleetward_api::verbs;
use fleetward_link::Peer;

serves! {
    TpmEnable => tpm_enable,
    TpmDisable => tpm_disable,
    TpmRestore => tpm_restore,
    TpmRoll => tpm_roll,
    TpmHistory => tpm_history,
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
