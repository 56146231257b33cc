//! Waits for the end of a job, across lost connections and restarts of the controller.

use crate::controller::Controller;
use crate::exit::Stop;
use crate::messages;
use crate::progress::{Progress, Task};
use fleetward_api::controller::{JobState, JobView};
use fleetward_api::verbs::JobEvents;
use fleetward_model::error::Class;
use fleetward_model::{ErrorCode, Failure, JobId};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a controller may be away before waiting for a job is given up (the job goes on).
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(500);
/// Attempts of a step after which its host is away, and not only restarting.
const ATTEMPTS: u32 = 3;

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

/// The same for one of many: a job that waits for a host that is away, and that nothing but the host's return can bring to
/// an end, does not hold up the others. Whether it only goes back or only forward, it goes on by itself.
pub(crate) async fn for_one_of_many(
    controller: &Controller,
    progress: &Progress,
    interrupt: &CancellationToken,
    name: &str,
    job: JobId,
) -> Result<JobView, Stop> {
    let task = progress.task(name);
    let seen = tokio::select! {
        seen = follow(controller, progress, &task, job, Until::Stuck) => seen?,
        () = interrupt.cancelled() => return Err(Stop::Interrupted(vec![job])),
    };
    drop(task);
    match seen.state {
        JobState::Done => Ok(seen),
        JobState::Undoing => {
            let because = messages::taken_back_later(job, seen.waiting.as_deref());
            Err(failure_of(seen).because(because).into())
        }
        JobState::Running if is_held_up(&seen) => Err(held_up(&seen).into()),
        JobState::Pending | JobState::Running | JobState::Undone | JobState::Failed => {
            Err(failure_of(seen).into())
        }
    }
}

/// Past the point of no return, and its step keeps failing.
fn is_held_up(view: &JobView) -> bool {
    let attempts = view
        .steps
        .iter()
        .find(|step| Some(&step.name) == view.current.as_ref())
        .map_or(0, |step| step.attempts);
    view.state == JobState::Running
        && !view.cancellable
        && view.waiting.is_some()
        && attempts >= ATTEMPTS
}

fn held_up(view: &JobView) -> Failure {
    let code = view.waiting_code.unwrap_or(ErrorCode::HostUnreachable);
    let waiting = view.waiting.as_deref().unwrap_or_default();
    let what = format!("{} of {} is begun and not done", view.kind, view.target);
    let failure = Failure::new(code, what);
    if view.held_up && code.class() != Class::Unreachable {
        return failure
            .because(format!("{waiting}; it does not pass by itself"))
            .fix(messages::remove_the_cause(view.id));
    }
    failure
        .because(messages::goes_forward_later(view.id, waiting, code))
        .fix(messages::job_goes_on(view.id))
}

/// How far a job is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Ended,
    /// Or standing still until a host is back or somebody acts.
    HeldUp,
    /// Or waiting for what only the return of its host can bring.
    Stuck,
}

impl Until {
    fn is_reached(self, view: &JobView) -> bool {
        let stuck = (view.state == JobState::Undoing && view.waiting.is_some()) || is_held_up(view);
        view.state.has_ended()
            || match self {
                Self::Ended => false,
                Self::HeldUp => view.held_up,
                Self::Stuck => stuck || view.held_up,
            }
    }
}

/// What a job that did not end well has to say.
fn failure_of(job: JobView) -> Failure {
    job.failure.unwrap_or_else(|| {
        Failure::new(
            ErrorCode::Internal,
            format!(
                "job {} of {} ended as {}",
                job.id,
                job.target,
                job.state.as_str()
            ),
        )
        .because("it does not say why")
    })
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
                return Err(failure.fix(messages::job_goes_on(job)));
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
