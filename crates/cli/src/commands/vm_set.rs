//! `fleetward vm set` and `fleetward vm rename`: one request, one job.

use super::Context;
use crate::args::{Switch, VmSet, Wait};
use crate::exit::{Exit, Stop};
use crate::{interrupt, messages, wait};
use fleetward_api::controller::ChangeRequest;
use fleetward_api::verbs::VmChange;
use fleetward_model::VmName;

pub(super) async fn set(context: &Context, args: VmSet) -> Result<Exit, Stop> {
    let on = |switch: Switch| switch == Switch::On;
    let request = ChangeRequest {
        name: None,
        cpus: args.cpus,
        memory_bytes: args.memory,
        description: args.description,
        labels: args.labels.into_iter().collect(),
        autostart: args.autostart.map(on),
        tpm: args.tpm.map(on),
        dry_run: args.dry_run,
    };
    change(context, &args.name, &request, args.wait).await
}

pub(super) async fn rename(
    context: &Context,
    name: &VmName,
    new: VmName,
    wait: Wait,
) -> Result<Exit, Stop> {
    let request = ChangeRequest {
        name: Some(new),
        ..ChangeRequest::default()
    };
    change(context, name, &request, wait).await
}

async fn change(
    context: &Context,
    name: &VmName,
    request: &ChangeRequest,
    wait: Wait,
) -> Result<Exit, Stop> {
    let answer = context
        .controller
        .call::<VmChange>([name.as_str()], request)
        .await?;
    let output = &context.output;
    let Some(job) = answer.job else {
        let text = || messages::planned(name, &answer.steps);
        if request.dry_run {
            output.document(&answer, text)?;
        } else {
            output.success(&answer, text)?;
        }
        return Ok(Exit::Done);
    };
    if wait.no_wait {
        output.document(&answer, || job.to_string())?;
        return Ok(Exit::Done);
    }
    let interrupt = interrupt::on_ctrl_c();
    let (controller, progress) = (&context.controller, &context.progress);
    let ended = wait::for_job(controller, progress, &interrupt, name.as_str(), job).await?;
    let result = ended.result.unwrap_or_default();
    output.success(&result, || messages::changed(name, &result))?;
    Ok(Exit::Done)
}
