//! The interface of a running step to its job.

use crate::engine::child_id;
use crate::{
    Data, Engine, Job, JobError, JobKind, JobState, Progress, Step, StepError, Submission,
};
use fleetward_model::{ErrorCode, Failure, JobId};
use serde_json::Value;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The part that does not depend on the input's type.
#[derive(Clone)]
pub(crate) struct Core {
    pub(crate) job: JobId,
    pub(crate) input: Value,
    pub(crate) created_by: String,
    pub(crate) step: &'static str,
    pub(crate) attempt: u32,
    pub(crate) generation: u64,
    pub(crate) outputs: Arc<BTreeMap<String, Value>>,
    /// What is carried out is a debt of a job that has gone on without it.
    pub(crate) owed: bool,
    pub(crate) cancelled: CancellationToken,
    pub(crate) progress: ProgressReporter,
    pub(crate) engine: Engine,
}

/// What a running step (or undo) sees of its job.
pub struct StepContext<I> {
    core: Core,
    input: I,
}

impl<I: Data> StepContext<I> {
    pub(crate) fn of(core: Core) -> Result<Self, StepError> {
        match serde_json::from_value(core.input.clone()) {
            Ok(input) => Ok(Self { core, input }),
            Err(e) => Err(StepError::internal(
                "the job's input is not what this program takes",
                e,
            )),
        }
    }

    pub fn job(&self) -> JobId {
        self.core.job
    }

    pub fn input(&self) -> &I {
        &self.input
    }

    /// Who submitted the job.
    pub fn created_by(&self) -> &str {
        &self.core.created_by
    }

    /// 1 for the first try of this step (or of its undo).
    pub fn attempt(&self) -> u32 {
        self.core.attempt
    }

    /// A number larger than that of every attempt, of any job, that began before this one: pass it to
    /// hosts, which refuse a request with a smaller one than they hold for the same VM. Compare it per
    /// VM only; jobs on different VMs overtake each other.
    pub fn generation(&self) -> u64 {
        self.core.generation
    }

    /// Whether this is a debt being paid: the job has gone on without it, and has probably ended.
    pub fn pays_debt(&self) -> bool {
        self.core.owed
    }

    /// What the earlier step `S` handed on.
    pub fn output<S: Step<I>>(&self) -> Result<S::Output, StepError> {
        self.output_if_done::<S>()?.ok_or_else(|| {
            StepError::internal(
                format!("step {} needs the output of {}", self.core.step, S::NAME),
                "that step has not succeeded",
            )
        })
    }

    /// As [`output`](Self::output), but `None` where `S` has not succeeded: for undos, and their own output.
    pub fn output_if_done<S: Step<I>>(&self) -> Result<Option<S::Output>, StepError> {
        let output = self.core.outputs.get(S::NAME).cloned();
        output.map(serde_json::from_value).transpose().map_err(|e| {
            StepError::internal(
                format!("the output of {} is not what it should be", S::NAME),
                e,
            )
        })
    }

    /// Where to say how far the step is.
    pub fn progress(&self) -> &ProgressReporter {
        &self.core.progress
    }

    /// Fires when the job is cancelled, in forward steps before the point of no return only. A step that
    /// takes long listens, stops, and returns an error; its undo is called next. A step that
    /// succeeds nevertheless is taken back too, unless it was the point of no return.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.core.cancelled
    }

    /// Awaits `work` unless the job is cancelled first.
    pub async fn unless_cancelled<T, E: Into<StepError>>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, StepError> {
        tokio::select! {
            biased;
            done = work => done.map_err(Into::into),
            () = self.core.cancelled.cancelled() => Err(StepError::cancelled()),
        }
    }

    /// Submits a job of its own under `name`, unless an earlier attempt of this step's job did.
    ///
    /// The same name is the same child, for the whole job. What this job has locked, the child may use.
    pub async fn start_child<K: JobKind>(
        &self,
        name: &str,
        input: &K::Input,
    ) -> Result<JobId, StepError> {
        let submission = Submission::by(&self.core.created_by).child_of(self.core.job, name);
        Ok(self.core.engine.submit_as::<K>(input, submission).await?)
    }

    /// Waits for the end of a child. When this job is cancelled, so is the child, and its end is
    /// waited for all the same.
    pub async fn wait_for_child(&self, child: JobId) -> Result<Job, StepError> {
        let engine = &self.core.engine;
        tokio::select! {
            biased;
            ended = engine.wait(child) => return Ok(ended?),
            () = self.core.cancelled.cancelled() => {}
        }
        match engine.cancel(child, &self.core.created_by).await {
            Ok(()) | Err(JobError::NotCancellable { .. }) => Ok(engine.wait(child).await?),
            Err(error) => Err(error.into()),
        }
    }

    /// For the undo of a step with children: cancels the child called `name` and waits for its end,
    /// which tells what is left to take back. `None` where no such child was ever submitted.
    ///
    /// Children go on by themselves when their parent's step is interrupted, so an undo begins with this.
    pub async fn stop_child(&self, name: &str) -> Result<Option<Job>, StepError> {
        let child = child_id(self.core.job, name);
        let engine = &self.core.engine;
        match engine.cancel(child, &self.core.created_by).await {
            Err(JobError::NotFound { .. }) => return Ok(None),
            Ok(()) | Err(JobError::NotCancellable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Some(engine.wait(child).await?))
    }

    /// [`start_child`](Self::start_child), [`wait_for_child`](Self::wait_for_child), and the child's
    /// failure as this step's, unless it ended done.
    pub async fn run_child<K: JobKind>(
        &self,
        name: &str,
        input: &K::Input,
    ) -> Result<Job, StepError> {
        let child = self.start_child::<K>(name, input).await?;
        let job = self.wait_for_child(child).await?;
        if job.state == JobState::Done {
            return Ok(job);
        }
        let unexplained =
            || Failure::new(ErrorCode::Internal, format!("job {child} did not end well"));
        Err(StepError::fatal(job.failure.unwrap_or_else(unexplained)))
    }
}

/// Takes reports of how far a step is. Cheap: watchers see the latest, the store gets one a second.
#[derive(Debug, Clone)]
pub struct ProgressReporter {
    pub(crate) step: &'static str,
    pub(crate) latest: Arc<watch::Sender<Option<Progress>>>,
}

impl ProgressReporter {
    /// `done` of `total` bytes; 0 for a total that is not known.
    pub fn bytes(&self, done: u64, total: u64) {
        self.report(|progress| {
            progress.done_bytes = Some(done);
            progress.total_bytes = (total > 0).then_some(total);
        });
    }

    /// What is being done, for people.
    pub fn text(&self, text: impl Into<String>) {
        let text = text.into();
        self.report(|progress| progress.text = Some(text));
    }

    fn report(&self, change: impl FnOnce(&mut Progress)) {
        self.latest.send_modify(|latest| {
            let mut progress = latest
                .take()
                .filter(|p| p.step == self.step)
                .unwrap_or(Progress {
                    step: self.step.to_owned(),
                    done_bytes: None,
                    total_bytes: None,
                    text: None,
                    at: OffsetDateTime::UNIX_EPOCH,
                });
            change(&mut progress);
            progress.at = OffsetDateTime::now_utc();
            *latest = Some(progress);
        });
    }
}
