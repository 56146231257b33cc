//! What can be asked of one VM and of many: whether it can be done now, what it would do, and the job that does it. The
//! verbs of one VM and bulk requests both come here.
//!
//! ```text
//!   admitted: admission ─ the action's own checks ─┬─► plan of a dry run
//!                                                  └─► begin: the job
//! ```

use super::vms::{accepted, submit};
use super::{Answer, scope};
use crate::admission::admit;
use crate::app::App;
use crate::audit::Act;
use crate::check::{AtHome, against};
use crate::work::{
    DeleteInput, MigrateInput, Reservation, RestartInput, SecureBootEnroll, SecureBootRestore,
    StartInput, StopInput, TpmDisable, TpmEnable, TpmInput, TpmRestore, TpmRoll, TpmUnlock,
    VmDelete, VmMigrate, VmMigrateStopped, VmRestart, VmStart, VmStop,
};
use crate::world::World;
use axum::response::Response;
use fleetward_api::bulk::{Plan, Question, Target, VmAction, Would, short};
use fleetward_api::controller::{Accepted, MigrateRequest, SecureBootRequest, TpmRequest};
use fleetward_link::Peer;
use fleetward_model::admission::{Admission, Request};
use fleetward_model::audit::AuditAction;
use fleetward_model::fit::Needs;
use fleetward_model::secure_boot::CertificateState;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, HostName, Names};

/// Answers the verb of one VM.
pub(super) async fn act(app: &App, peer: &Peer, vm: &str, action: VmAction) -> Answer<Response> {
    action.check()?;
    scope::require_hosts_of(&app.world, peer, &action)?;
    let vm = app.world.inventory.find(vm)?;
    if let VmAction::Delete(_) = action
        && let Some(expelled) = left_behind(app, &vm)
    {
        forget(app, peer, &vm, &expelled).await?;
        return Ok(accepted(None));
    }
    let begun = begin(app, &peer.to_string(), &vm, &action).await?;
    Ok(accepted(begun.job))
}

/// The expelled host on which a VM was last, and on which nobody asks for it any more.
fn left_behind(app: &App, vm: &VmObserved) -> Option<HostName> {
    let world = &app.world;
    let gone = world.hosts.find(&vm.host).is_none();
    let expelled = world.expulsions.of(&vm.host);
    expelled.filter(|_| gone).map(|expelled| expelled.host)
}

/// A VM that is given up with its host. Copies of its TPM stay for as long as copies of deleted VMs do.
async fn forget(app: &App, peer: &Peer, vm: &VmObserved, host: &HostName) -> Result<(), Failure> {
    let why = format!(
        "VM {} of host {host}, which was expelled, is given up",
        vm.name
    );
    let act = Act {
        vm: Some(vm.id),
        ..Act::new(peer, AuditAction::ExpelHost, why)
    };
    app.record(act).await?;
    let forgotten = app.world.inventory.forget_copy(host, vm.id).await;
    forgotten.map_err(|error| crate::store_failure(&error))
}

/// Submits the job for `by`. Makes retries idempotent: the answer is the running job of the same kind if there is one, or no
/// job if the VM is already as wanted.
pub(super) async fn begin(
    app: &App,
    by: &str,
    vm: &VmObserved,
    action: &VmAction,
) -> Result<Accepted, Failure> {
    match admitted(app, vm, action).await? {
        Admission::Accepted => {}
        Admission::Done => return Ok(Accepted { job: None }),
        Admission::UnderWay(job) => return Ok(Accepted { job: Some(job) }),
    }
    let (id, name, host) = (vm.id, vm.name.clone(), vm.host.clone());
    match action {
        VmAction::Start => {
            let input = StartInput {
                vm: id,
                name,
                host,
                was_stopped: vm.state.stands_still(),
            };
            submit::<VmStart>(app, vm, by, &input).await
        }
        VmAction::Stop(request) => {
            let input = StopInput {
                vm: id,
                name,
                host,
                force: request.force,
                deadline_seconds: request.deadline_seconds,
            };
            submit::<VmStop>(app, vm, by, &input).await
        }
        VmAction::Restart(request) => {
            let input = RestartInput {
                vm: id,
                name,
                host,
                force: request.force,
                deadline_seconds: request.deadline_seconds,
            };
            submit::<VmRestart>(app, vm, by, &input).await
        }
        VmAction::Delete(request) => {
            let metadata = vm.require_metadata()?;
            let input = DeleteInput {
                vm: id,
                name,
                host,
                spec: metadata.spec.clone(),
                keep_tpm_state: request.keep_tpm_state,
            };
            submit::<VmDelete>(app, vm, by, &input).await
        }
        VmAction::Migrate(request) => migrate(app, by, vm, request).await,
        VmAction::TpmEnable(request) => {
            submit::<TpmEnable>(app, vm, by, &tpm(vm, request, None)?).await
        }
        VmAction::TpmDisable(request) => {
            submit::<TpmDisable>(app, vm, by, &tpm(vm, request, None)?).await
        }
        VmAction::TpmRestore(request) => {
            let version = version(&app.world, vm, request)?;
            submit::<TpmRestore>(app, vm, by, &tpm(vm, request, Some(version))?).await
        }
        VmAction::TpmRoll(request) => {
            submit::<TpmRoll>(app, vm, by, &tpm(vm, request, None)?).await
        }
        VmAction::TpmUnlock(request) => {
            submit::<TpmUnlock>(app, vm, by, &tpm(vm, request, None)?).await
        }
        VmAction::SecureBootEnroll(request) => {
            submit::<SecureBootEnroll>(app, vm, by, &certificates(vm, request)?).await
        }
        VmAction::SecureBootRestore(request) => {
            submit::<SecureBootRestore>(app, vm, by, &certificates(vm, request)?).await
        }
    }
}

/// What would become of the VM, by the rules by which [`begin`] begins.
pub(super) async fn plan(app: &App, vm: &VmObserved, action: &VmAction, spared: bool) -> Plan {
    let found = match spared {
        true => Ok(Admission::Done),
        false => admitted(app, vm, action).await,
    };
    let (would, message, failure) = match found {
        Ok(Admission::Accepted) => (Would::Change, change(&app.world, vm, action), None),
        Ok(Admission::Done) => {
            let message = format!("nothing to do: {}", action.already());
            (Would::Nothing, message, None)
        }
        Ok(Admission::UnderWay(job)) => {
            let message =
                format!("a job is already doing that; follow it with: fleetward job watch {job}");
            (Would::Nothing, message, None)
        }
        Err(failure) => (Would::Fail, refused(&failure), Some(failure)),
    };
    Plan {
        target: Target::Vm(vm.name.clone()),
        would,
        message,
        failure,
        expires: None,
        question: action.question().filter(|q| asks(&app.world, vm, *q)),
    }
}

/// Whether a VM that is chosen with others is left alone: choosing VMs by what they have in common does not say that each
/// has a TPM to roll or to unlock.
pub(super) fn is_spared(vm: &VmObserved, action: &VmAction, chosen: bool) -> bool {
    let found = vm.noted.secure_boot.as_ref();
    chosen
        && match action {
            VmAction::TpmRoll(_) | VmAction::TpmUnlock(_) => !vm.tpm.enabled,
            VmAction::SecureBootEnroll(_) => {
                found.is_none_or(|found| found.state == CertificateState::Custom)
            }
            VmAction::SecureBootRestore(_) => found.is_none_or(|found| !found.former_kept),
            VmAction::Start
            | VmAction::Stop(_)
            | VmAction::Restart(_)
            | VmAction::Delete(_)
            | VmAction::Migrate(_)
            | VmAction::TpmEnable(_)
            | VmAction::TpmDisable(_)
            | VmAction::TpmRestore(_) => false,
        }
}

/// What the VM's variables say to a change of its certificates; an agent that does not tell decides itself.
fn certificates_so(
    vm: &VmObserved,
    action: &VmAction,
    admission: Result<Admission, Failure>,
) -> Result<Admission, Failure> {
    let held = |code| matches!(code, ErrorCode::VmBusy | ErrorCode::HostUnreachable);
    let found = match (&admission, &vm.noted.secure_boot) {
        (Ok(Admission::Accepted | Admission::Done), Some(found)) => found,
        // A VM that runs, and lacks nothing, need not be stopped for it.
        (Err(failure), Some(found)) if vm.is_managed() && !held(failure.code) => found,
        (Ok(_) | Err(_), _) => return admission,
    };
    let name = &vm.name;
    let refuse = |code, what: String| {
        let names = Names::default().vm(name).host(&vm.host);
        Err(Failure::new(code, what).about(&names))
    };
    if let VmAction::SecureBootRestore(_) = action {
        return match found.former_kept {
            true => admission,
            false => refuse(
                ErrorCode::SecureBootNothingKept,
                format!("no former certificates of VM {name} are kept"),
            ),
        };
    }
    match found.state {
        CertificateState::Ok | CertificateState::Off => Ok(Admission::Done),
        CertificateState::UpdateAvailable => admission,
        CertificateState::Custom => refuse(
            ErrorCode::SecureBootCustom,
            format!("the firmware of VM {name} has keys of its owner's"),
        ),
        CertificateState::Unreadable => {
            let what = format!("the UEFI variables of VM {name} cannot be read");
            let because = found.because.clone().unwrap_or_default();
            let names = Names::default().vm(name).host(&vm.host);
            let failure = Failure::new(ErrorCode::UefiVariablesUnreadable, what);
            Err(failure.because(because).about(&names))
        }
    }
}

fn certificates(vm: &VmObserved, request: &SecureBootRequest) -> Result<TpmInput, Failure> {
    let SecureBootRequest {
        stop_and_restart,
        deadline_seconds,
    } = *request;
    let request = TpmRequest {
        stop_and_restart,
        deadline_seconds,
        version: None,
    };
    tpm(vm, &request, None)
}

/// Whether the action can be begun now.
async fn admitted(app: &App, vm: &VmObserved, action: &VmAction) -> Result<Admission, Failure> {
    let admission = admit(app, vm, action.request()).await;
    match action {
        VmAction::Migrate(request) => {
            match admission {
                // What its state refuses is one finding among those of the check.
                Err(failure) if is_a_finding(failure.code) => {}
                Err(failure) => return Err(failure),
                Ok(_) => {}
            }
            movable(app, vm, request).await?;
            Ok(Admission::Accepted)
        }
        VmAction::TpmRestore(request) => {
            let admission = admission?;
            if admission == Admission::Accepted {
                version(&app.world, vm, request)?;
            }
            Ok(admission)
        }
        VmAction::SecureBootEnroll(_) | VmAction::SecureBootRestore(_) => {
            certificates_so(vm, action, admission)
        }
        VmAction::Start
        | VmAction::Stop(_)
        | VmAction::Restart(_)
        | VmAction::Delete(_)
        | VmAction::TpmEnable(_)
        | VmAction::TpmDisable(_)
        | VmAction::TpmRoll(_)
        | VmAction::TpmUnlock(_) => admission,
    }
}

fn is_a_finding(code: ErrorCode) -> bool {
    !matches!(
        code,
        ErrorCode::VmBusy
            | ErrorCode::HostUnreachable
            | ErrorCode::VmNotManaged
            | ErrorCode::VmDisputed
            | ErrorCode::SpecNewer
    )
}

/// Whether the VM can move there, as the check finds it.
async fn movable(app: &App, vm: &VmObserved, request: &MigrateRequest) -> Result<(), Failure> {
    let world = &app.world;
    world.hosts.of(&request.to)?;
    if vm.host == request.to {
        let what = format!("VM {} is on host {} already", vm.name, request.to);
        return Err(Failure::new(ErrorCode::SameHost, what));
    }
    let home = AtHome::ask(world, vm).await;
    let checked = against(world, &home, &request.to, request.offline).await?;
    match Failure::from_findings(cannot_move(vm, &request.to), checked.findings) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

fn cannot_move(vm: &VmObserved, to: &HostName) -> String {
    format!(
        "VM {} cannot move from host {} to host {to}",
        vm.name, vm.host
    )
}

async fn migrate(
    app: &App,
    by: &str,
    vm: &VmObserved,
    request: &MigrateRequest,
) -> Result<Accepted, Failure> {
    let world = &app.world;
    let needs = Needs {
        tpm_written: world.tpm_writer(vm),
        ..Needs::of(vm, !request.offline, None)
    };
    // Once more, from here to the submission alone: two requests must not count on the same room.
    let _turn = app.placing.lock().await;
    world.require_fit(cannot_move(vm, &request.to), &needs, &request.to)?;
    let input = MigrateInput {
        vm: vm.id,
        name: vm.name.clone(),
        from: vm.host.clone(),
        live: !request.offline,
        reservation: Some(Reservation::of(world, &needs, &request.to)),
        to: request.to.clone(),
    };
    match request.offline {
        true => submit::<VmMigrateStopped>(app, vm, by, &input).await,
        false => submit::<VmMigrate>(app, vm, by, &input).await,
    }
}

/// The version that a restore brings back.
fn version(world: &World, vm: &VmObserved, request: &TpmRequest) -> Result<u64, Failure> {
    let name = &vm.name;
    let none = || {
        let what = format!("there is no kept version of the TPM of VM {name}");
        Failure::new(ErrorCode::TpmVersionNotFound, what).about(&Names::default().vm(name))
    };
    let newest = world.escrow.newest(vm.id);
    let version = match (request.version, newest) {
        (Some(version), _) => version,
        (None, newest) if vm.tpm.enabled => {
            let what = format!("VM {name} has a TPM: which version is to replace it?");
            return Err(Failure::new(ErrorCode::InvalidArgument, what).fix(match newest {
                Some(newest) => format!(
                    "this lists the versions: fleetward tpm history {name}; this restores the newest: fleetward tpm restore {name} \
                     --version {}",
                    newest.version
                ),
                None => format!("fleetward tpm history {name}"),
            }));
        }
        (None, newest) => newest.ok_or_else(none)?.version,
    };
    let known = world.escrow.list(vm.id);
    let kept = known.iter().find(|kept| kept.version == version);
    let kept = kept.ok_or_else(|| none().because(format!("there is no version {version}")))?;
    let seen = world.inventory.seen(&vm.host);
    let goes_back = seen
        .facts
        .and_then(|facts| world.writer_of(kept).goes_back(&vm.host, &facts));
    let what = format!("version {version} of the TPM of VM {name} cannot be restored");
    match Failure::from_findings(what, Vec::from_iter(goes_back)) {
        None => Ok(version),
        Some(failure) => Err(failure),
    }
}

fn tpm(vm: &VmObserved, request: &TpmRequest, version: Option<u64>) -> Result<TpmInput, Failure> {
    Ok(TpmInput {
        vm: vm.id,
        name: vm.name.clone(),
        host: vm.host.clone(),
        group: vm.require_metadata()?.spec.group.clone(),
        runs: !vm.state.stands_still(),
        deadline_seconds: request.deadline_seconds,
        version,
        guardians: vm.tpm.guardians.clone(),
    })
}

/// Why a dry run says that it would fail, on one line.
fn refused(failure: &Failure) -> String {
    match failure.code {
        // Its reason says the same in other words.
        ErrorCode::HostUnreachable => failure.what.clone(),
        _ => short(failure),
    }
}

fn change(world: &World, vm: &VmObserved, action: &VmAction) -> String {
    let host = &vm.host;
    let restarts = match (action.request(), vm.state) {
        (Request::Tpm { .. } | Request::Certificates { .. }, state) if !state.stands_still() => {
            ", after an orderly shutdown, and start it again"
        }
        _ => "",
    };
    match action {
        VmAction::Start => format!("would be started on host {host}"),
        VmAction::Stop(request) if request.force => {
            format!("would have its power cut on host {host}")
        }
        VmAction::Stop(_) => format!("would be shut down on host {host}"),
        VmAction::Restart(request) if request.force => {
            format!("would have its power cut on host {host}, and be started again")
        }
        VmAction::Restart(_) => format!("would be shut down on host {host}, and started again"),
        VmAction::Delete(request) if request.keep_tpm_state => {
            format!("would be deleted from host {host}, with its disks")
        }
        VmAction::Delete(_) => format!("would be deleted from host {host}, with its disks and TPM"),
        VmAction::Migrate(request) => format!("would move from host {host} to host {}", request.to),
        VmAction::TpmEnable(_) if had_one(world, vm) => format!(
            "would get a new TPM on host {host}{restarts}; what its former TPM had sealed would be lost to it"
        ),
        VmAction::TpmEnable(_) => format!("would get a TPM on host {host}{restarts}"),
        VmAction::TpmDisable(_) => {
            format!("would lose its TPM on host {host}{restarts}; the TPM is kept")
        }
        VmAction::TpmRestore(_) => format!("would get a former TPM back on host {host}{restarts}"),
        VmAction::TpmRoll(_) => format!("would get a new TPM key on host {host}{restarts}"),
        VmAction::TpmUnlock(_) => {
            format!("would have the lockout of its TPM cleared on host {host}{restarts}")
        }
        VmAction::SecureBootEnroll(_) => {
            format!("would get Microsoft's certificates of 2023 on host {host}{restarts}{PCR_7}")
        }
        VmAction::SecureBootRestore(_) => {
            format!("would get its former certificates back on host {host}{restarts}{PCR_7}")
        }
    }
}

/// What a change of the certificates costs.
const PCR_7: &str = "; PCR 7 of its TPM changes: BitLocker asks for its recovery key once, unless it is suspended in the \
                     guest before: manage-bde -protectors -disable C: -RebootCount 1";

/// Whether a TPM is kept that the VM had.
fn had_one(world: &World, vm: &VmObserved) -> bool {
    !world.escrow.list(vm.id).is_empty()
}

/// Whether the guest of this VM has something to lose.
fn asks(world: &World, vm: &VmObserved, question: Question) -> bool {
    match question {
        Question::TpmIsLost | Question::TpmIsReplaced | Question::Pcr7Changes => vm.tpm.enabled,
        Question::NewTpmOpensNothing => !vm.tpm.enabled && had_one(world, vm),
    }
}
