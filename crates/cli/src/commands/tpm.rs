//! `fleetward tpm ...`
//!
//! In bulk there is one job a VM: a failure is that VM's alone, the controller carries each on whatever becomes of us, and
//! the same command once more does what is left.

use super::Context;
use super::vm::seconds;
use crate::args::{TpmChange, TpmCommand, TpmHow, Which};
use crate::bulk::{self, Words};
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::{messages, table};
use fleetward_api::controller::{JobView, TpmRequest, VmView};
use fleetward_model::vm::VmState;
use fleetward_model::{ErrorCode, Failure, VmName};
use futures_util::{StreamExt, stream};

/// Questions about histories under way at once.
const ASKED_AT_ONCE: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Enable,
    Disable,
    Roll,
}

impl Change {
    const fn path(self) -> &'static str {
        match self {
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Roll => "roll",
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Enable => messages::TPM_ENABLED,
            Self::Disable => messages::TPM_DISABLED,
            Self::Roll => messages::TPM_ROLLED,
        }
    }

    /// Said of a VM that is as it should be already.
    const fn already(self) -> &'static str {
        match self {
            Self::Enable => messages::TPM_ENABLED_ALREADY,
            Self::Disable | Self::Roll => messages::TPM_DISABLED_ALREADY,
        }
    }

    fn applies_to(self, vm: &VmView) -> bool {
        vm.tpm.enabled != (self == Self::Enable)
    }
}

pub(super) async fn run(context: &Context, command: TpmCommand) -> Result<Exit, Stop> {
    match command {
        TpmCommand::Enable(args) => change(context, Change::Enable, args).await,
        TpmCommand::Disable(args) => change(context, Change::Disable, args).await,
        TpmCommand::Roll(args) => change(context, Change::Roll, args).await,
        TpmCommand::Restore { name, version, how } => {
            let request = request_of(&how, version)?;
            let words = Words {
                done: &|job| done(messages::tpm_restored(restored(job)), job),
                already: "",
            };
            let send = async |name| {
                context
                    .controller
                    .change_tpm(&name, "restore", &request)
                    .await
            };
            if how.wait.no_wait {
                return bulk::submit(context, vec![name], send).await;
            }
            bulk::run(context, vec![name], words, send).await
        }
        TpmCommand::Status { names } => {
            let vms = selected(context, &by_name(names)).await?;
            context.output.document(&vms, || table::tpms(&vms))?;
            Ok(Exit::Done)
        }
        TpmCommand::History { name } => {
            let versions = context.controller.tpm_history(&name).await?;
            context
                .output
                .document(&versions, || table::tpm_versions(&versions))?;
            Ok(Exit::Done)
        }
    }
}

async fn change(context: &Context, change: Change, args: TpmChange) -> Result<Exit, Stop> {
    let request = request_of(&args.how, None)?;
    let mut vms = selected(context, &args.which).await?;
    vms.retain(|vm| vm.managed || !args.which.names.is_empty());
    let affected: Vec<VmName> = vms
        .iter()
        .filter(|vm| change.applies_to(vm))
        .map(|vm| vm.name.clone())
        .collect();
    let had_one = match change {
        Change::Enable => with_history(context, &affected).await?,
        Change::Disable | Change::Roll => Vec::new(),
    };
    if args.dry_run {
        let found = vms
            .iter()
            .map(|vm| (vm.name.clone(), would(change, vm, &args.how, &had_one)))
            .collect();
        return bulk::dry_run(context, found);
    }
    match change {
        Change::Disable if !affected.is_empty() => {
            confirm(context.yes, &messages::confirm_disable_tpm(&affected))?;
        }
        Change::Enable if !had_one.is_empty() => {
            let question = messages::confirm_new_tpm(&had_one);
            if context.yes {
                context.progress.remark(&question);
            }
            confirm(context.yes, &question)?;
        }
        Change::Enable | Change::Disable | Change::Roll => {}
    }
    let names = vms.into_iter().map(|vm| vm.name).collect();
    let words = Words {
        done: &|job| done(change.done().to_owned(), job),
        already: change.already(),
    };
    let send = async |name| {
        context
            .controller
            .change_tpm(&name, change.path(), &request)
            .await
    };
    if args.how.wait.no_wait {
        return bulk::submit(context, names, send).await;
    }
    bulk::run_at_once(context, names, args.parallel, words, send).await
}

/// What would become of one VM.
fn would(change: Change, vm: &VmView, how: &TpmHow, had_one: &[VmName]) -> Result<String, Failure> {
    if !vm.managed {
        return Err(Failure::new(
            ErrorCode::VmNotManaged,
            format!("domain {}", vm.name),
        ));
    }
    if !change.applies_to(vm) {
        return Ok(format!("nothing to do: {}", change.already()));
    }
    let restarts = match vm.state {
        VmState::Stopped => "",
        VmState::Running if how.stop_and_restart => {
            ", after an orderly shutdown, and start it again"
        }
        state => {
            return Err(
                Failure::new(ErrorCode::VmRunning, format!("VM {} is {state}", vm.name))
                    .because("a TPM is changed only while the VM is stopped"),
            );
        }
    };
    Ok(match change {
        Change::Enable if had_one.contains(&vm.name) => format!(
            "would get a new TPM on host {}{restarts}; what its former TPM had sealed would be lost to it",
            vm.host
        ),
        Change::Enable => format!("would get a TPM on host {}{restarts}", vm.host),
        Change::Disable => format!(
            "would lose its TPM on host {}{restarts}; the TPM is kept",
            vm.host
        ),
        Change::Roll => format!("would get a new TPM key on host {}{restarts}", vm.host),
    })
}

/// Those of which a TPM is kept.
async fn with_history(context: &Context, names: &[VmName]) -> Result<Vec<VmName>, Failure> {
    let ask = |name: VmName| async move {
        let versions = context.controller.tpm_history(&name).await?;
        Ok((!versions.is_empty()).then_some(name))
    };
    let answers: Vec<Result<Option<VmName>, Failure>> = stream::iter(names.to_vec())
        .map(ask)
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await;
    answers.into_iter().filter_map(Result::transpose).collect()
}

async fn selected(context: &Context, which: &Which) -> Result<Vec<VmView>, Failure> {
    let controller = &context.controller;
    if let [name] = which.names.as_slice() {
        return Ok(vec![controller.vm(name).await?]);
    }
    let all = controller.vms(which.host.as_ref(), None, None).await?;
    if which.names.is_empty() {
        let has_all = |vm: &VmView| {
            which
                .labels
                .iter()
                .all(|(key, value)| vm.labels.get(key) == Some(value))
        };
        return Ok(all.into_iter().filter(has_all).collect());
    }
    let mut found = Vec::new();
    for name in &which.names {
        match all.iter().find(|vm| vm.name == *name) {
            Some(vm) => found.push(vm.clone()),
            None => {
                return Err(Failure::new(
                    ErrorCode::VmNotFound,
                    format!("there is no VM {name}"),
                ));
            }
        }
    }
    Ok(found)
}

fn by_name(names: Vec<VmName>) -> Which {
    Which {
        names,
        all: false,
        host: None,
        labels: Vec::new(),
    }
}

fn request_of(how: &TpmHow, version: Option<u64>) -> Result<TpmRequest, Failure> {
    Ok(TpmRequest {
        stop_and_restart: how.stop_and_restart,
        deadline_seconds: seconds(how.deadline)?,
        version,
    })
}

fn done(text: String, job: &JobView) -> String {
    messages::with_warnings(text, &job.warnings)
}

fn restored(job: &JobView) -> Option<u64> {
    job.result.as_ref()?.get("version")?.as_u64()
}
