//! TPMs of existing VMs: enable, disable, restore, roll; and the list of versions.

use super::body::Body;
use super::vms::{accepted, busy, submit};
use super::{Answer, Refusal};
use crate::app::App;
use crate::work::{TpmDisable, TpmEnable, TpmInput, TpmRestore, TpmRoll};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_api::controller::TpmRequest;
use fleetward_api::tpm::TpmVersion;
use fleetward_jobs::JobKind;
use fleetward_link::Peer;
use fleetward_model::vm::{VmObserved, VmState};
use fleetward_model::{ErrorCode, Failure, Names};
use std::sync::Arc;

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
    let input = match begin::<TpmEnable>(&app, &vm, &request, vm.tpm.enabled)? {
        Begin::Job(input) => *input,
        Begin::Answer(answer) => return Ok(answer),
    };
    require_stopped(&vm, &request)?;
    submit::<TpmEnable>(&app, &vm, &peer, &input).await
}

async fn tpm_disable(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Body(request): Body<TpmRequest>,
) -> Answer<Response> {
    let vm = app.world.inventory.find(&vm)?;
    let input = match begin::<TpmDisable>(&app, &vm, &request, !vm.tpm.enabled)? {
        Begin::Job(input) => *input,
        Begin::Answer(answer) => return Ok(answer),
    };
    require_stopped(&vm, &request)?;
    submit::<TpmDisable>(&app, &vm, &peer, &input).await
}

async fn tpm_restore(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Body(request): Body<TpmRequest>,
) -> Answer<Response> {
    let vm = app.world.inventory.find(&vm)?;
    let mut input = input(&app, &vm, &request)?;
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
    input.version = Some(version);
    require_stopped(&vm, &request)?;
    submit::<TpmRestore>(&app, &vm, &peer, &input).await
}

async fn tpm_roll(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Body(request): Body<TpmRequest>,
) -> Answer<Response> {
    let vm = app.world.inventory.find(&vm)?;
    let input = match begin::<TpmRoll>(&app, &vm, &request, false)? {
        Begin::Job(input) => *input,
        Begin::Answer(answer) => return Ok(answer),
    };
    if !vm.tpm.enabled {
        let what = format!("VM {} has no TPM", vm.name);
        return Err(Failure::new(ErrorCode::VmStateWrong, what)
            .fix(format!("fleetward tpm enable {}", vm.name))
            .into());
    }
    require_stopped(&vm, &request)?;
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

/// The first decision about a request.
enum Begin {
    Job(Box<TpmInput>),
    /// The VM is in the wanted state, or a running job makes the change.
    Answer(Response),
}

/// Makes retries idempotent: returns the running job of kind `K` if there is one, or `unchanged` if the VM is already
/// in the wanted state.
fn begin<K: JobKind>(
    app: &App,
    vm: &Arc<VmObserved>,
    request: &TpmRequest,
    done: bool,
) -> Result<Begin, Refusal> {
    let holder = app.world.holders.of(vm.id);
    match holder {
        Some((job, kind)) if kind == K::NAME => return Ok(Begin::Answer(accepted(Some(job)))),
        // What such a one makes of the TPM is not certain before its end.
        Some((_, kind)) if kind.starts_with("tpm-") => {}
        _ if done && vm.metadata.is_some() => return Ok(Begin::Answer(accepted(None))),
        _ => {}
    }
    Ok(Begin::Job(Box::new(input(app, vm, request)?)))
}

/// Refuses what cannot be at all, and puts the job's input together.
fn input(app: &App, vm: &Arc<VmObserved>, request: &TpmRequest) -> Result<TpmInput, Refusal> {
    if !(1..=3600).contains(&request.deadline_seconds) {
        let what = format!(
            "a guest gets 1 to 3600 seconds, not {}",
            request.deadline_seconds
        );
        return Err(Failure::new(ErrorCode::InvalidArgument, what).into());
    }
    let Some(metadata) = &vm.metadata else {
        let what = format!("domain {} was not made by Fleetward", vm.name);
        return Err(Failure::new(ErrorCode::VmNotManaged, what).into());
    };
    if let Some((job, _)) = app.world.holders.of(vm.id) {
        return Err(busy(vm, job).into());
    }
    if !app.world.inventory.seen(&vm.host).online {
        let what = format!("host {} of VM {} does not answer", vm.host, vm.name);
        return Err(Failure::new(ErrorCode::HostUnreachable, what)
            .about(&Names::default().host(&vm.host))
            .into());
    }
    Ok(TpmInput {
        vm: vm.id,
        name: vm.name.clone(),
        host: vm.host.clone(),
        group: metadata.spec.group.clone(),
        runs: vm.state != VmState::Stopped,
        deadline_seconds: request.deadline_seconds,
        version: None,
        guardians: vm.tpm.guardians.clone(),
    })
}

fn require_stopped(vm: &VmObserved, request: &TpmRequest) -> Result<(), Refusal> {
    if vm.state == VmState::Stopped || (vm.state == VmState::Running && request.stop_and_restart) {
        return Ok(());
    }
    let what = format!("VM {} is {}", vm.name, vm.state);
    Err(Failure::new(ErrorCode::VmRunning, what)
        .because("a TPM is changed only while the VM is stopped")
        .fix(format!(
            "fleetward vm stop {}; or add --stop-and-restart",
            vm.name
        ))
        .into())
}
