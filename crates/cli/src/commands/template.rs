//! `fleetward template ...`, and what it shares with `fleetward vm clone`: a job with warnings.

use super::Context;
use crate::args::TemplateCommand;
use crate::confirm::confirm;
use crate::exit::{Exit, Stop, say};
use crate::{interrupt, messages, table, wait};
use fleetward_api::controller::{AcceptedWithWarnings, TemplateRequest, TemplateView};
use fleetward_api::lists::LibraryQuery;
use fleetward_api::verbs::{TemplateCreate, TemplateDelete, TemplateList, TemplateShow};
use fleetward_model::error::Finding;
use serde_json::json;

pub(super) async fn run(context: &Context, command: TemplateCommand) -> Result<Exit, Stop> {
    let (controller, output) = (&context.controller, &context.output);
    match command {
        TemplateCommand::Create {
            name,
            from,
            uefi_variables,
            wait,
        } => {
            let request = TemplateRequest {
                name: name.clone(),
                from,
                uefi_variables,
                dry_run: false,
            };
            let accepted = controller.call::<TemplateCreate>([], &request).await?;
            if !ended(context, name.as_str(), &accepted, wait.no_wait).await? {
                return Ok(Exit::Done);
            }
            let template = controller
                .call::<TemplateShow>([name.as_str()], &())
                .await?;
            output.success(&template, || messages::template_created(&name))?;
        }
        TemplateCommand::List { rows } => {
            let query = LibraryQuery {
                after: rows.after,
                limit: None,
            };
            let templates: Vec<TemplateView> = controller
                .list::<TemplateList, _>(query, rows.limit)
                .await?;
            output.document(&templates, || table::templates(&templates))?;
        }
        TemplateCommand::Show { name } => {
            let template = controller
                .call::<TemplateShow>([name.as_str()], &())
                .await?;
            output.document(&template, || table::template(&template))?;
        }
        TemplateCommand::Delete { name } => {
            confirm(context.yes, &messages::confirm_delete_template(&name))?;
            controller
                .call::<TemplateDelete>([name.as_str()], &())
                .await?;
            output.success(&json!({ "deleted": name }), || {
                messages::template_deleted(&name)
            })?;
        }
    }
    Ok(Exit::Done)
}

/// Says the warnings, then waits for the job's end, or prints its id. False: it goes on.
pub(super) async fn ended(
    context: &Context,
    what: &str,
    accepted: &AcceptedWithWarnings,
    no_wait: bool,
) -> Result<bool, Stop> {
    warn(&accepted.warnings);
    let Some(job) = accepted.job else {
        return Ok(false);
    };
    if no_wait {
        context.output.document(accepted, || job.to_string())?;
        return Ok(false);
    }
    let interrupt = interrupt::on_ctrl_c();
    let (controller, progress) = (&context.controller, &context.progress);
    wait::for_job(controller, progress, &interrupt, what, job).await?;
    Ok(true)
}

pub(super) fn warn(warnings: &[Finding]) {
    for warning in warnings {
        say(&messages::warning(warning));
    }
}
