//! `fleetward vm set`, with its options, and `fleetward vm rename`: one request, one job.

use super::Context;
use crate::args::parse::{parse_label, parse_word};
use crate::args::{Switch, Wait};
use crate::exit::{Exit, Stop};
use crate::{interrupt, messages, wait};
use clap::Args;
use fleetward_api::controller::ChangeRequest;
use fleetward_api::verbs::VmChange;
use fleetward_model::change::{Cpus, LabelValue, Memory};
use fleetward_model::machine::{BootFirst, Clock};
use fleetward_model::spec::Description;
use fleetward_model::{ByteSize, LabelKey, VmName};

#[derive(Debug, Args)]
pub struct VmSet {
    pub name: VmName,
    /// Number of virtual CPUs; a running VM has them after its next start
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub cpus: Option<Cpus>,
    /// Memory, such as 4G; a running VM has it after its next start
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub memory: Option<Memory>,
    /// What people should know about it: any text; an empty one takes it away
    #[arg(long, value_name = "TEXT")]
    pub description: Option<Description>,
    /// Sets a label, or with KEY- takes it away; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE|KEY-", value_parser = parse_label_change)]
    pub labels: Vec<(LabelKey, Option<LabelValue>)>,
    /// Whether its host starts it after a boot
    #[arg(long, value_enum)]
    pub autostart: Option<Switch>,
    /// Whether its host starts it again when its guest crashes; not more often than five times in an hour
    #[arg(long, value_enum)]
    pub restart_on_crash: Option<Switch>,
    /// What its firmware tries first: disk, iso or network; a running VM has it after its next start
    #[arg(long, value_name = "DEVICE", value_parser = parse_word::<BootFirst>)]
    pub boot: Option<BootFirst>,
    /// Which time its clock keeps: utc, or the host's local time; a running VM has it after its next start
    #[arg(long, value_name = "utc|local", value_parser = parse_word::<Clock>)]
    pub clock: Option<Clock>,
    /// Makes a new TPM, or puts the TPM into the history
    #[arg(long, value_enum)]
    pub tpm: Option<Switch>,
    /// Says what would be changed, and changes nothing
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: Wait,
}

pub(super) async fn set(context: &Context, args: VmSet) -> Result<Exit, Stop> {
    let on = |switch: Switch| switch == Switch::On;
    let request = ChangeRequest {
        cpus: args.cpus,
        memory_bytes: args.memory,
        description: args.description,
        labels: args.labels.into_iter().collect(),
        autostart: args.autostart.map(on),
        restart_on_crash: args.restart_on_crash.map(on),
        boot: args.boot,
        clock: args.clock,
        tpm: args.tpm.map(on),
        dry_run: args.dry_run,
        ..ChangeRequest::default()
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

/// Asks for a change, and waits for it.
pub(super) async fn change(
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

fn parse_label_change(text: &str) -> Result<(LabelKey, Option<LabelValue>), String> {
    match (text.contains('='), text.strip_suffix('-')) {
        (true, _) => {
            let (key, value) = parse_label(text)?;
            Ok((key, Some(value.try_into()?)))
        }
        (false, Some(key)) => Ok((key.parse().map_err(|error| format!("{error}"))?, None)),
        (false, None) => Err(format!("{text:?} is neither KEY=VALUE nor KEY-")),
    }
}

fn parse_cpus(text: &str) -> Result<Cpus, String> {
    let number: u32 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number of CPUs"))?;
    number.try_into()
}

fn parse_memory(text: &str) -> Result<Memory, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}"))?;
    size.try_into()
}
