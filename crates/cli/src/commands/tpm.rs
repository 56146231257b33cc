//! `fleetward tpm ...`
//!
//! A bulk command submits one job for each VM: a failure affects one VM, the controller continues the jobs if the
//! command ends, and a repeated command does the rest.

use super::Context;
use super::vm::seconds;
use crate::args::{TpmChange, TpmCommand, TpmHow, Which};
use crate::bulk::{self, Targets, Words, Would};
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::{messages, table};
use fleetward_api::controller::{Accepted, JobView, TpmRequest, VmQuery, VmView};
use fleetward_api::lists::HostQuery;
use fleetward_api::verbs::{
    HostList, JobShow, TpmDisable, TpmEnable, TpmHistory, TpmRestore, TpmRoll, VmList, VmShow,
};
use fleetward_model::host::HostState;
use fleetward_model::vm::VmState;
use fleetward_model::{ErrorCode, Failure, HostName, Names, VmName};
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};

/// Questions about histories under way at once.
const ASKED_AT_ONCE: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Enable,
    Disable,
    Roll,
}

impl Change {
    /// The kind of its job.
    const fn kind(self) -> &'static str {
        match self {
            Self::Enable => "tpm-enable",
            Self::Disable => "tpm-disable",
            Self::Roll => "tpm-roll",
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
            if context
                .controller
                .call::<VmShow>([name.as_str()], &())
                .await?
                .tpm
                .enabled
                && version.is_some()
            {
                warn_and_ask(context, &messages::tpm_is_replaced(&name, version))?;
            }
            let words = Words {
                done: &|job| done(messages::tpm_restored(restored(job)), job),
                already: "",
            };
            let send = async |name: VmName| {
                context
                    .controller
                    .call::<TpmRestore>([name.as_str()], &request)
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
            let versions = context
                .controller
                .call::<TpmHistory>([name.as_str()], &())
                .await?;
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
    let chosen = args.which.names.is_empty();
    if args.dry_run {
        let now = Now::ask(context, &vms).await?;
        let found = vms
            .iter()
            .map(|vm| {
                let would = would(change, vm, chosen, &args.how, &had_one, &now);
                (vm.name.clone(), would.unwrap_or_else(Would::Fail))
            })
            .collect();
        return bulk::dry_run(context, found);
    }
    match change {
        Change::Disable if !affected.is_empty() => {
            warn_and_ask(context, &messages::tpm_is_lost_to(&affected))?;
        }
        Change::Enable if !had_one.is_empty() => {
            warn_and_ask(context, &messages::new_tpm_opens_nothing(&had_one))?;
        }
        Change::Enable | Change::Disable | Change::Roll => {}
    }
    // Who chose VMs by what they have in common did not say that each has a TPM to roll.
    let spared: BTreeSet<VmName> = vms
        .iter()
        .filter(|vm| chosen && change == Change::Roll && !change.applies_to(vm))
        .map(|vm| vm.name.clone())
        .collect();
    let names: Vec<VmName> = vms.into_iter().map(|vm| vm.name).collect();
    let targets = match chosen {
        true => Targets::chosen(names),
        false => names.into(),
    };
    let words = Words {
        done: &|job| done(change.done().to_owned(), job),
        already: change.already(),
    };
    let send = async |name: VmName| {
        if spared.contains(&name) {
            return Ok(Accepted { job: None });
        }
        let (controller, path) = (&context.controller, [name.as_str()]);
        match change {
            Change::Enable => controller.call::<TpmEnable>(path, &request).await,
            Change::Disable => controller.call::<TpmDisable>(path, &request).await,
            Change::Roll => controller.call::<TpmRoll>(path, &request).await,
        }
    };
    if args.how.wait.no_wait {
        return bulk::submit(context, targets, send).await;
    }
    bulk::run_at_once(context, targets, args.parallel, words, send).await
}

/// Asks before a TPM is replaced or removed. With `--yes` it prints the consequence without a question.
fn warn_and_ask(context: &Context, warning: &str) -> Result<(), Stop> {
    if context.yes {
        context.progress.remark(warning);
    }
    confirm(context.yes, &format!("{warning} {}", messages::CONTINUE))
}

/// What stands in the way of a change at the moment.
struct Now {
    away: BTreeSet<HostName>,
    jobs: BTreeMap<VmName, JobView>,
}

impl Now {
    async fn ask(context: &Context, vms: &[VmView]) -> Result<Self, Failure> {
        let hosts = context
            .controller
            .call::<HostList>([], &HostQuery::default())
            .await?;
        let away = hosts
            .into_iter()
            .filter(|host| host.state == HostState::Unreachable)
            .map(|host| host.name)
            .collect();
        let mut jobs = BTreeMap::new();
        for vm in vms {
            if let Some(job) = vm.job {
                let job = context
                    .controller
                    .call::<JobShow>([&job.to_string()], &())
                    .await?;
                jobs.insert(vm.name.clone(), job);
            }
        }
        Ok(Self { away, jobs })
    }
}

/// What the command would do to one VM.
fn would(
    change: Change,
    vm: &VmView,
    chosen: bool,
    how: &TpmHow,
    had_one: &[VmName],
    now: &Now,
) -> Result<Would, Failure> {
    if !vm.managed {
        return Err(Failure::new(
            ErrorCode::VmNotManaged,
            format!("domain {}", vm.name),
        ));
    }
    if let Some(newer) = &vm.newer {
        return Err(newer.refusal(&vm.name, &vm.host));
    }
    let names = Names::default().vm(&vm.name).host(&vm.host);
    match now.jobs.get(&vm.name) {
        Some(job) if job.state.has_ended() => {}
        Some(job) if job.kind == change.kind() => {
            return Ok(Would::Nothing(messages::does_it_already(job.id)));
        }
        Some(job) => {
            let what = format!("job {} works on VM {}", job.id, vm.name);
            return Err(Failure::new(ErrorCode::VmBusy, what)
                .because(&job.kind)
                .about(&Names::default().job(job.id)));
        }
        None => {}
    }
    if !change.applies_to(vm) {
        if change == Change::Roll && !chosen {
            let what = format!("VM {} has no TPM", vm.name);
            return Err(Failure::new(ErrorCode::VmStateWrong, what).about(&names));
        }
        return Ok(Would::Nothing(format!(
            "nothing to do: {}",
            change.already()
        )));
    }
    if now.away.contains(&vm.host) {
        let what = format!("host {} of VM {} does not answer", vm.host, vm.name);
        return Err(Failure::new(ErrorCode::HostUnreachable, what).about(&names));
    }
    let restarts = match vm.state {
        VmState::Stopped => "",
        VmState::Running if how.stop_and_restart => {
            ", after an orderly shutdown, and start it again"
        }
        state => {
            return Err(
                Failure::new(ErrorCode::VmRunning, format!("VM {} is {state}", vm.name))
                    .because("a TPM is changed only while the VM is stopped")
                    .about(&names),
            );
        }
    };
    Ok(Would::Change(match change {
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
    }))
}

/// Those of which a TPM is kept.
async fn with_history(context: &Context, names: &[VmName]) -> Result<Vec<VmName>, Failure> {
    let ask = |name: VmName| async move {
        let versions = context
            .controller
            .call::<TpmHistory>([name.as_str()], &())
            .await?;
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
        return Ok(vec![controller.call::<VmShow>([name.as_str()], &()).await?]);
    }
    let query = VmQuery {
        host: which.host.clone(),
        ..VmQuery::default()
    };
    let all: Vec<VmView> = controller.list::<VmList, _>(query, None).await?;
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
