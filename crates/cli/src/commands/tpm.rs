//! `fleetward tpm ...`
//!
//! The controller says what a change would do, and what must be asked before. A bulk command submits one job for each VM: a
//! failure affects one VM, the controller continues the jobs if the command ends, and a repeated command does the rest.

use super::Context;
use super::vm::seconds;
use crate::args::{self, TpmCommand, TpmHow};
use crate::bulk::{self, Targets, Words};
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::{messages, table};
use fleetward_api::controller::{Accepted, JobView, TpmRequest, VmQuery, VmView};
use fleetward_api::plans::{self, Question, QuestionAbout, TpmChange, TpmPlanRequest};
use fleetward_api::verbs::{
    TpmDisable, TpmEnable, TpmHistory, TpmPlan, TpmRestore, TpmRoll, VmList, VmShow,
};
use fleetward_model::{ErrorCode, Failure, VmName};
use std::collections::BTreeSet;

pub(super) async fn run(context: &Context, command: TpmCommand) -> Result<Exit, Stop> {
    match command {
        TpmCommand::Enable(args) => change(context, TpmChange::Enable, args).await,
        TpmCommand::Disable(args) => change(context, TpmChange::Disable, args).await,
        TpmCommand::Roll(args) => change(context, TpmChange::Roll, args).await,
        TpmCommand::Restore { name, version, how } => restore(context, name, version, &how).await,
        TpmCommand::Status { names } => {
            let vms = named(context, names).await?;
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

async fn restore(
    context: &Context,
    name: VmName,
    version: Option<u64>,
    how: &TpmHow,
) -> Result<Exit, Stop> {
    let request = request_of(how, version)?;
    let plan = TpmPlanRequest {
        change: TpmChange::Restore,
        names: vec![name.clone()],
        all: false,
        host: None,
        labels: Vec::new(),
        stop_and_restart: how.stop_and_restart,
        version,
    };
    ask(context, plan_of(context, &plan).await?.question, version)?;
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

async fn change(context: &Context, change: TpmChange, args: args::TpmChange) -> Result<Exit, Stop> {
    let request = request_of(&args.how, None)?;
    let labels = args.which.labels.iter();
    let wanted = TpmPlanRequest {
        change,
        names: args.which.names,
        all: args.which.all,
        host: args.which.host,
        labels: labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect(),
        stop_and_restart: args.how.stop_and_restart,
        version: None,
    };
    let plan = plan_of(context, &wanted).await?;
    if args.dry_run {
        return bulk::dry_run(context, plan.vms);
    }
    ask(context, plan.question, None)?;
    let spared = plan.vms.iter().filter(|vm| vm.spared);
    let spared: BTreeSet<VmName> = spared.map(|vm| vm.vm.clone()).collect();
    let names: Vec<VmName> = plan.vms.into_iter().map(|vm| vm.vm).collect();
    let targets = match wanted.names.is_empty() {
        true => Targets::chosen(names),
        false => names.into(),
    };
    let words = Words {
        done: &|job| done(changed(change).to_owned(), job),
        already: already(change),
    };
    let send = async |name: VmName| {
        if spared.contains(&name) {
            return Ok(Accepted { job: None });
        }
        let (controller, path) = (&context.controller, [name.as_str()]);
        match change {
            TpmChange::Enable => controller.call::<TpmEnable>(path, &request).await,
            TpmChange::Disable => controller.call::<TpmDisable>(path, &request).await,
            TpmChange::Restore => controller.call::<TpmRestore>(path, &request).await,
            TpmChange::Roll => controller.call::<TpmRoll>(path, &request).await,
        }
    };
    if args.how.wait.no_wait {
        return bulk::submit(context, targets, send).await;
    }
    bulk::run_at_once(context, targets, args.parallel, words, send).await
}

async fn plan_of(context: &Context, wanted: &TpmPlanRequest) -> Result<plans::TpmPlan, Failure> {
    context.controller.call::<TpmPlan>([], wanted).await
}

/// Asks before a TPM is replaced or removed. With `--yes` it prints the consequence without a question.
fn ask(context: &Context, question: Option<Question>, version: Option<u64>) -> Result<(), Stop> {
    let Some(Question { about, vms }) = question else {
        return Ok(());
    };
    let warning = match (about, vms.as_slice()) {
        (QuestionAbout::TpmIsLost, vms) => messages::tpm_is_lost_to(vms),
        (QuestionAbout::NewTpmOpensNothing, vms) => messages::new_tpm_opens_nothing(vms),
        (QuestionAbout::TpmIsReplaced, [vm, ..]) => messages::tpm_is_replaced(vm, version),
        (QuestionAbout::TpmIsReplaced, []) => return Ok(()),
    };
    if context.yes {
        context.progress.remark(&warning);
    }
    confirm(context.yes, &format!("{warning} {}", messages::CONTINUE))
}

const fn changed(change: TpmChange) -> &'static str {
    match change {
        TpmChange::Enable => messages::TPM_ENABLED,
        TpmChange::Disable => messages::TPM_DISABLED,
        TpmChange::Restore => messages::TPM_RESTORED,
        TpmChange::Roll => messages::TPM_ROLLED,
    }
}

/// Said of a VM that is as it should be already.
const fn already(change: TpmChange) -> &'static str {
    match change {
        TpmChange::Enable => messages::TPM_ENABLED_ALREADY,
        TpmChange::Disable | TpmChange::Restore | TpmChange::Roll => messages::TPM_DISABLED_ALREADY,
    }
}

/// All VMs, if none is named.
async fn named(context: &Context, names: Vec<VmName>) -> Result<Vec<VmView>, Failure> {
    let controller = &context.controller;
    if let [name] = names.as_slice() {
        return Ok(vec![controller.call::<VmShow>([name.as_str()], &()).await?]);
    }
    let query = VmQuery::default();
    let all: Vec<VmView> = controller.list::<VmList, _>(query, None).await?;
    if names.is_empty() {
        return Ok(all);
    }
    let mut found = Vec::new();
    for name in names {
        let vm = all.iter().find(|vm| vm.name == name).cloned();
        let missing = || Failure::new(ErrorCode::VmNotFound, format!("there is no VM {name}"));
        found.push(vm.ok_or_else(missing)?);
    }
    Ok(found)
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
