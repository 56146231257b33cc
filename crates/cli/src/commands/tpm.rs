//! `fleetward tpm ...`
//!
//! The controller says which VMs are meant, what a change would do to each, and what must be asked before. Each VM has a job
//! of its own: a failure affects one VM, the controller continues the jobs if the command ends, and a repeated command does
//! the rest.

use super::Context;
use super::vm::seconds;
use crate::args::{self, TpmCommand, TpmHow, Which};
use crate::bulk;
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::{messages, table};
use fleetward_api::bulk::{
    BulkRequest, How, Matching, Plan, Question, Selection, Target, VmAction,
};
use fleetward_api::controller::{TpmRequest, VmQuery, VmView};
use fleetward_api::lists::{KeptTpm, PageQuery};
use fleetward_api::tpm::TpmVersion;
use fleetward_api::verbs::{TpmForget, TpmHistory, TpmKept, VmBulk, VmList, VmShow};
use fleetward_model::{ErrorCode, Failure, VmName};

pub(super) async fn run(context: &Context, command: TpmCommand) -> Result<Exit, Stop> {
    match command {
        TpmCommand::Enable(args) => change(context, VmAction::TpmEnable, args).await,
        TpmCommand::Disable(args) => change(context, VmAction::TpmDisable, args).await,
        TpmCommand::Roll(args) => change(context, VmAction::TpmRoll, args).await,
        TpmCommand::Unlock(args) => change(context, VmAction::TpmUnlock, args).await,
        TpmCommand::Restore { name, version, how } => {
            let request = BulkRequest {
                action: VmAction::TpmRestore(request_of(&how, version)?),
                vms: Selection::Named(vec![name]),
                dry_run: true,
                how: How::default(),
            };
            let plans = bulk::plans::<VmBulk>(context, &request).await?;
            carry_out(context, request, &plans, how.wait.no_wait).await
        }
        TpmCommand::Status { names } => {
            let vms = named(context, names).await?;
            context.output.document(&vms, || table::tpms(&vms))?;
            Ok(Exit::Done)
        }
        TpmCommand::Kept => {
            let kept = kept(context).await?;
            context.output.document(&kept, || table::kept_tpms(&kept))?;
            Ok(Exit::Done)
        }
        TpmCommand::Forget { id } => {
            let kept = kept(context).await?;
            let named = kept.iter().find(|version| version.vm.to_string() == id);
            let name = named.map_or_else(|| id.clone(), |version| version.vm_name.to_string());
            confirm(context.yes, &messages::confirm_forget(&name))?;
            context
                .controller
                .call::<TpmForget>([id.as_str()], &())
                .await?;
            let done = serde_json::json!({ "vm": id, "forgotten": true });
            context
                .output
                .success(&done, || messages::forgotten(&name))?;
            Ok(Exit::Done)
        }
        TpmCommand::History { name } => {
            let versions: Vec<TpmVersion> = context
                .controller
                .list_of::<TpmHistory, _>([name.as_str()])
                .await?;
            context
                .output
                .document(&versions, || table::tpm_versions(&versions))?;
            Ok(Exit::Done)
        }
    }
}

/// The TPMs of VMs that are gone.
async fn kept(context: &Context) -> Result<Vec<TpmVersion>, Failure> {
    let query = PageQuery::default();
    let kept: Vec<KeptTpm> = context.controller.list::<TpmKept, _>(query, None).await?;
    Ok(kept.into_iter().map(|KeptTpm(version)| version).collect())
}

async fn change(
    context: &Context,
    action: impl Fn(TpmRequest) -> VmAction,
    args: args::TpmChange,
) -> Result<Exit, Stop> {
    let request = BulkRequest {
        action: action(request_of(&args.how, None)?),
        vms: selection(args.which),
        dry_run: true,
        how: How {
            parallel: u32::try_from(args.parallel).ok(),
            max_failures: args.max_failures,
            ..How::default()
        },
    };
    let plans = bulk::plans::<VmBulk>(context, &request).await?;
    match args.dry_run {
        true => bulk::dry_run(context, plans),
        false => carry_out(context, request, &plans, args.how.wait.no_wait).await,
    }
}

/// Asks what the plans say must be asked, and sends the request for the VMs that they name.
pub(super) async fn carry_out(
    context: &Context,
    mut request: BulkRequest,
    plans: &[Plan],
    no_wait: bool,
) -> Result<Exit, Stop> {
    if let Some(warning) = warning(&request.action, plans) {
        if context.yes {
            context.progress.remark(&warning);
        }
        confirm(context.yes, &format!("{warning} {}", messages::CONTINUE))?;
    }
    if request.vms.is_chosen() {
        request.vms = Selection::Planned(plans.iter().filter_map(vm_of).collect());
    }
    request.dry_run = false;
    request.how.wait = !no_wait;
    bulk::run(context, request).await
}

/// What somebody loses, in one sentence for all VMs.
fn warning(action: &VmAction, plans: &[Plan]) -> Option<String> {
    let asked = plans.iter().filter(|plan| plan.question.is_some());
    let vms: Vec<VmName> = asked.filter_map(vm_of).collect();
    let question = plans.iter().find_map(|plan| plan.question)?;
    Some(match (question, action, vms.as_slice()) {
        (Question::TpmIsReplaced, VmAction::TpmRestore(request), [vm, ..]) => {
            messages::tpm_is_replaced(vm, request.version)
        }
        (Question::Pcr7Changes, _, vms) => messages::pcr_7_changes(vms),
        (Question::NewTpmOpensNothing, _, vms) => messages::new_tpm_opens_nothing(vms),
        (Question::TpmIsLost | Question::TpmIsReplaced, _, vms) => messages::tpm_is_lost_to(vms),
    })
}

fn vm_of(plan: &Plan) -> Option<VmName> {
    match &plan.target {
        Target::Vm(name) => Some(name.clone()),
        Target::Host(_) => None,
    }
}

pub(super) fn selection(which: Which) -> Selection {
    if !which.names.is_empty() {
        return Selection::Named(which.names);
    }
    if which.all {
        return Selection::All;
    }
    let labels = which.labels.iter();
    Selection::Matching(Matching {
        host: which.host,
        labels: labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect(),
    })
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
