//! Jobs: list, show, follow, cancel, give up.

use super::body::Asked;
use super::lines::lines;
use super::page::Page;
use super::rows::Rows;
use super::{Answer, allowed, parsed, scope, view};
use crate::app::App;
use crate::audit::Act;
use crate::debts;
use crate::work;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_api::controller::{JobKindView, JobView, StepKindView};
use fleetward_api::lists::LONGEST_PAGE;
use fleetward_api::verbs;
use fleetward_jobs::JobFilter;
use fleetward_link::Peer;
use fleetward_model::audit::AuditAction;
use fleetward_model::{ErrorCode, Failure, JobId};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use std::sync::Arc;

serves! {
    JobList => job_list,
    JobKindList => job_kinds,
    JobShow => job_show,
    JobEvents => job_events,
    JobCancel => job_cancel,
    JobGiveUp => job_give_up,
}

async fn job_list(
    State(app): State<App>,
    peer: Peer,
    Asked(query): Asked<verbs::JobList>,
) -> Answer<Rows<JobView>> {
    let page = Page::new(Some(query.limit.unwrap_or(LONGEST_PAGE)), query.after)?;
    let filter = JobFilter {
        state: query.state,
        active: query.active,
        kind: query.kind,
        // Of those whose groups are limited, others' jobs are left out afterwards.
        limit: (page.is_first() && peer.groups().is_none()).then_some(page.limit()),
        ..JobFilter::default()
    };
    let mut jobs = app.engine.list(&filter).await?;
    jobs.retain(|job| scope::sees_job(&app.world, &peer, job));
    let jobs = jobs.into_iter().map(|job| view::job(&app.world, job));
    let jobs = jobs.collect();
    Ok(Rows(page.of_listed(jobs)?))
}

async fn job_kinds(State(app): State<App>) -> Json<Vec<JobKindView>> {
    let step = |step: fleetward_jobs::StepInfo| StepKindView {
        name: step.name.to_owned(),
        undoable: step.undoable,
        point_of_no_return: step.point_of_no_return,
    };
    let kinds = app.engine.kinds().into_iter().map(|kind| JobKindView {
        kind: kind.name.to_owned(),
        steps: kind.steps.into_iter().map(step).collect(),
    });
    Json(kinds.collect())
}

async fn job_show(State(app): State<App>, Path(job): Path<String>) -> Answer<Json<JobView>> {
    let id: JobId = parsed("job's id", &job)?;
    Ok(Json(view::job(&app.world, app.engine.get(id).await?)))
}

async fn job_events(State(app): State<App>, Path(job): Path<String>) -> Answer<Response> {
    let id: JobId = parsed("job's id", &job)?;
    let updates = app.engine.watch(id).await?;
    let world = Arc::clone(&app.world);
    let views = stream::unfold((updates, world), |(mut updates, world)| async move {
        match updates.next().await? {
            Ok(job) => Some((view::job(&world, job), (updates, world))),
            Err(error) => {
                tracing::warn!(%error, "the job can no longer be followed");
                None
            }
        }
    });
    Ok(lines(&app, views))
}

async fn job_cancel(
    State(app): State<App>,
    peer: Peer,
    Path(job): Path<String>,
) -> Answer<StatusCode> {
    let id: JobId = parsed("job's id", &job)?;
    let by = peer.to_string();
    // What may begin it may also end it, and nobody else.
    allowed(&peer, work::role_of(&app.engine.get(id).await?))?;
    app.engine.cancel(id, &by).await?;
    let act = Act {
        job: Some(id),
        ..Act::new(by, AuditAction::CancelJob, "asked for")
    };
    app.record(act).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn job_give_up(
    State(app): State<App>,
    peer: Peer,
    Path(job): Path<String>,
) -> Answer<Json<JobView>> {
    let id: JobId = parsed("job's id", &job)?;
    let by = peer.to_string();
    let before = app.engine.get(id).await?;
    let owed = app.world.debts.of_job(id);
    if before.state.has_ended() && owed.is_empty() {
        let what = format!("job {id} has ended, and nothing is owed of it");
        return Err(Failure::new(ErrorCode::JobNotCancellable, what)
            .fix(format!("fleetward job show {id}"))
            .into());
    }
    let reason = match before.state.has_ended() {
        true => {
            let owed: Vec<_> = owed.iter().map(debts::told).collect();
            format!("dropped what was owed: {}", owed.join(", "))
        }
        false => {
            let step = before.current_step().map(|step| step.name.as_str());
            format!(
                "{} in step {}: {}",
                before.kind,
                step.unwrap_or("none"),
                before.waiting.as_ref().map_or("", |w| w.reason.as_str())
            )
        }
    };
    let act = Act {
        vm: work::about_job(&before).vm,
        job: Some(id),
        ..Act::new(by.clone(), AuditAction::GiveUpJob, reason)
    };
    // Written before it is done: nobody gives up a job without a trace.
    app.record(act).await?;
    let ended = app.engine.give_up(id, &by).await?;
    app.world.stop_operations(&ended).await;
    app.world.inventory.touch();
    Ok(Json(view::job(&app.world, ended)))
}
