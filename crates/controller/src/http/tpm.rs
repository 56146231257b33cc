//! TPMs of existing VMs: enable, disable, restore, roll; and the list of versions.

use super::body::Body;
use super::vms::{decide, submit};
use super::{Answer, Refusal};
use crate::app::App;
use crate::work::{TpmDisable, TpmEnable, TpmInput, TpmRestore, TpmRoll};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_api::controller::TpmRequest;
use fleetward_api::tpm::TpmVersion;
use fleetward_link::Peer;
use fleetward_model::admission::{Request, TpmChange};
use fleetward_model::vm::{VmObserved, VmState};
use fleetward_model::{ErrorCode, Failure, Names};

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
    Body(request): Body<TpmRequest>,
) -> Answer<Response> {
    let vm = app.world.inventory.find(&vm)?;
    if let Some(done) = begin(&app, &vm, TpmChange::Enable, &request).await? {
        return Ok(done);
    }
    let input = input(&vm, &request);
    submit::<TpmEnable>(&app, &vm, &peer, &input).await
}

async fn tpm_disable(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Body(request): Body<TpmRequest>,
) -> Answer<Response> {
    let vm = app.world.inventory.find(&vm)?;
    if let Some(done) = begin(&app, &vm, TpmChange::Disable, &request).await? {
        return Ok(done);
    }
    let input = input(&vm, &request);
    submit::<TpmDisable>(&app, &vm, &peer, &input).await
}

async fn tpm_restore(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Body(request): Body<TpmRequest>,
) -> Answer<Response> {
    let vm = app.world.inventory.find(&vm)?;
    if let Some(done) = begin(&app, &vm, TpmChange::Restore, &request).await? {
        return Ok(done);
    }
    let none = || {
        let what = format!("there is no kept version of the TPM of VM {}", vm.name);
        Failure::new(ErrorCode::TpmVersionNotFound, what).about(&Names::default().vm(&vm.name))
    };
    let version = match request.version {
        Some(version) => version,
        None if vm.tpm.enabled => {
            let what = format!("VM {} has a TPM: which version is to replace it?", vm.name);
            return Err(Failure::new(ErrorCode::InvalidArgument, what)
                .fix(match app.world.escrow.newest(vm.id) {
                    Some(newest) => format!(
                        "this lists the versions: fleetward tpm history {0}; this restores the newest: fleetward tpm restore {0} \
                         --version {1}",
                        vm.name, newest.version
                    ),
                    None => format!("fleetward tpm history {}", vm.name),
                })
                .into());
        }
        None => app.world.escrow.newest(vm.id).ok_or_else(none)?.version,
    };
    let known = app.world.escrow.list(vm.id);
    if !known.iter().any(|kept| kept.version == version) {
        return Err(none()
            .because(format!("there is no version {version}"))
            .into());
    }
    let input = TpmInput {
        version: Some(version),
        ..input(&vm, &request)
    };
    submit::<TpmRestore>(&app, &vm, &peer, &input).await
}

async fn tpm_roll(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Body(request): Body<TpmRequest>,
) -> Answer<Response> {
    let vm = app.world.inventory.find(&vm)?;
    if let Some(done) = begin(&app, &vm, TpmChange::Roll, &request).await? {
        return Ok(done);
    }
    let input = input(&vm, &request);
    submit::<TpmRoll>(&app, &vm, &peer, &input).await
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

/// Makes retries idempotent: the answer is the running job of the same kind if there is one, or nothing to do if the TPM is
/// already as wanted.
async fn begin(
    app: &App,
    vm: &VmObserved,
    change: TpmChange,
    request: &TpmRequest,
) -> Result<Option<Response>, Refusal> {
    if !(1..=3600).contains(&request.deadline_seconds) {
        let what = format!(
            "a guest gets 1 to 3600 seconds, not {}",
            request.deadline_seconds
        );
        return Err(Failure::new(ErrorCode::InvalidArgument, what).into());
    }
    let restart = request.stop_and_restart;
    decide(app, vm, Request::Tpm { change, restart }).await
}

fn input(vm: &VmObserved, request: &TpmRequest) -> TpmInput {
    let metadata = vm.metadata.as_ref();
    let metadata = metadata.expect("admission refuses what is not ours");
    TpmInput {
        vm: vm.id,
        name: vm.name.clone(),
        host: vm.host.clone(),
        group: metadata.spec.group.clone(),
        runs: vm.state != VmState::Stopped,
        deadline_seconds: request.deadline_seconds,
        version: None,
        guardians: vm.tpm.guardians.clone(),
    }
}
