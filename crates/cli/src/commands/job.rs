//! `fleetward job ...`

use super::Context;
use crate::args::JobCommand;
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::{interrupt, messages, table, wait};
use fleetward_api::controller::JobView;
use fleetward_api::lists::JobQuery;
use fleetward_api::verbs::{JobCancel, JobGiveUp, JobKindList, JobList, JobShow};
use fleetward_model::{ErrorCode, Failure, JobId};

/// Jobs listed where no number is given.
const NEWEST: usize = 1000;

pub(super) async fn run(context: &Context, command: JobCommand) -> Result<Exit, Stop> {
    let Context {
        controller,
        output,
        progress,
        ..
    } = context;
    match command {
        JobCommand::List { active, kind, rows } => {
            let query = JobQuery {
                active: active.then_some(true),
                kind,
                after: rows.after,
                ..JobQuery::default()
            };
            let limit = rows.limit.unwrap_or(NEWEST);
            let mut jobs: Vec<JobView> = controller.list::<JobList, _>(query, Some(limit)).await?;
            // An older controller gives all of them.
            jobs.retain(|job| !active || !job.state.has_ended());
            output.document(&jobs, || table::jobs(&jobs))?;
        }
        JobCommand::Kinds => {
            let kinds = controller.call::<JobKindList>([], &()).await?;
            output.document(&kinds, || table::job_kinds(&kinds))?;
        }
        JobCommand::Show { id } => {
            let job = controller
                .call::<JobShow>([&find(context, &id).await?.to_string()], &())
                .await?;
            output.document(&job, || table::job(&job))?;
        }
        JobCommand::Watch { id } => {
            let id = find(context, &id).await?;
            let target = controller
                .call::<JobShow>([&id.to_string()], &())
                .await?
                .target;
            let interrupt = interrupt::on_ctrl_c();
            let job = wait::to_the_end(controller, progress, &interrupt, &target, id).await?;
            output.success(&job, || table::job(&job))?;
        }
        JobCommand::Cancel { id } => {
            let id = find(context, &id).await?;
            controller.call::<JobCancel>([&id.to_string()], &()).await?;
            let job = controller.call::<JobShow>([&id.to_string()], &()).await?;
            output.success(&job, || messages::cancel_asked(id))?;
        }
        JobCommand::GiveUp { id } => {
            let id = find(context, &id).await?.to_string();
            let job = controller.call::<JobShow>([&id], &()).await?;
            confirm(context.yes, &messages::confirm_give_up(&job))?;
            let job = controller.call::<JobGiveUp>([&id], &()).await?;
            output.success(&job, || messages::given_up(&job))?;
        }
    }
    Ok(Exit::Done)
}

/// The job of an id, or of the beginning of one as tables show it.
async fn find(context: &Context, text: &str) -> Result<JobId, Failure> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let query = JobQuery::default();
    let jobs = context.controller.call::<JobList>([], &query).await?;
    one_of(&jobs, text)
}

fn one_of(jobs: &[JobView], text: &str) -> Result<JobId, Failure> {
    let wanted = text.to_ascii_lowercase();
    let mut found = jobs
        .iter()
        .filter(|job| job.id.to_string().starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(job), None) => Ok(job.id),
        (Some(_), Some(_)) => Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("several jobs begin with {text:?}"),
        )
        .fix("write more of the id")),
        (None, _) => Err(Failure::new(
            ErrorCode::JobNotFound,
            format!("there is no job {text:?}"),
        )),
    }
}
