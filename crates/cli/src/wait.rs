//! Waits for the end of a job, across lost connections and restarts of the controller.

use crate::controller::Controller;
use crate::exit::Stop;
use crate::messages;
use crate::progress::{Progress, Task};
use fleetward_api::controller::{JobState, JobView};
use fleetward_api::following::{Until, failure_of, goes_on, held_up};
use fleetward_api::verbs::JobEvents;
use fleetward_model::error::Class;
use fleetward_model::{Failure, JobId};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a controller may be away before waiting for a job is given up (the job goes on).
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(500);

/// Waits for `job` to end well, and shows it under `name` until then.
///
/// A job that stands still, because a host is away or somebody must act, is not waited for: it goes on by itself then.
///
/// # Errors
/// What the job failed with, or stands still for; [`Stop::Interrupted`] when `interrupt` fires.
pub(crate) async fn for_job(
    controller: &Controller,
    progress: &Progress,
    interrupt: &CancellationToken,
    name: &str,
    job: JobId,
) -> Result<JobView, Stop> {
    one(controller, progress, interrupt, name, job, Until::HeldUp).await
}

/// The same, however long it takes.
pub(crate) async fn to_the_end(
    controller: &Controller,
    progress: &Progress,
    interrupt: &CancellationToken,
    name: &str,
    job: JobId,
) -> Result<JobView, Stop> {
    one(controller, progress, interrupt, name, job, Until::Ended).await
}

async fn one(
    controller: &Controller,
    progress: &Progress,
    interrupt: &CancellationToken,
    name: &str,
    job: JobId,
    until: Until,
) -> Result<JobView, Stop> {
    let task = progress.task(name);
    let ended = tokio::select! {
        ended = follow(controller, progress, &task, job, until) => ended?,
        () = interrupt.cancelled() => return Err(Stop::Interrupted(vec![job])),
    };
    drop(task);
    if !ended.state.has_ended() {
        return Err(held_up(&ended).into());
    }
    for warning in &ended.warnings {
        if ended.state != JobState::Done {
            progress.remark(warning);
        }
    }
    match ended.state {
        JobState::Done => Ok(ended),
        _ => Err(failure_of(ended).into()),
    }
}

async fn follow(
    controller: &Controller,
    progress: &Progress,
    task: &Task,
    job: JobId,
    until: Until,
) -> Result<JobView, Failure> {
    let mut heard = Instant::now();
    let mut told = false;
    loop {
        let lost = match listen(controller, task, job, until, &mut heard).await {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) => None,
            Err(failure) if failure.code.class() == Class::Unreachable => Some(failure),
            Err(failure) => return Err(failure),
        };
        if let Some(failure) = lost {
            if heard.elapsed() > PATIENCE {
                return Err(failure.fix(goes_on(job)));
            }
            if !told {
                progress.remark(&messages::connection_lost(job));
                told = true;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The job's end, or `None` when the stream ended before the job.
async fn listen(
    controller: &Controller,
    task: &Task,
    job: JobId,
    until: Until,
    heard: &mut Instant,
) -> Result<Option<JobView>, Failure> {
    let id = job.to_string();
    let mut events = controller.follow::<JobEvents>([&id], &()).await?;
    while let Some(view) = events.next().await? {
        *heard = Instant::now();
        task.job(&view);
        if until.is_reached(&view) {
            return Ok(Some(view));
        }
    }
    Ok(None)
}
