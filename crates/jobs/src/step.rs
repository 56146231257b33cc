//! The interface for authors of jobs: one type per step, with its run, its undo and its errors.

use crate::{Absence, StepContext};
use async_trait::async_trait;
use fleetward_model::error::Class;
use fleetward_model::{ErrorCode, Failure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::time::Duration;

/// What a job can be given and a step can hand on: plain data that survives as JSON.
///
/// It is stored in clear and shown to whoever may read jobs: no secrets.
pub trait Data: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Data for T {}

/// One step of the jobs whose input is `I`.
///
/// `run` may be called again after it succeeded, failed, or was cut off at any line, with the same
/// input; it brings about the same result and finds out by itself what is already there.
#[async_trait]
pub trait Step<I: Data>: Send + Sync + 'static {
    /// Unique within the job, lower-case with dashes: it names the record, the log lines, the hold points.
    const NAME: &'static str;

    /// How long retryable failures are retried before the job turns back. Past the point of no
    /// return there is no limit.
    const RETRY_FOR: Duration = Duration::from_secs(300);

    /// What later steps read with [`StepContext::output`].
    type Output: Data;

    /// Whether there is anything to do in this job. A step that does not apply is recorded as skipped: it hands nothing on
    /// and is never undone. Decided from input and outputs alone.
    fn applies(&self, _cx: &StepContext<I>) -> bool {
        true
    }

    /// Past the point of no return: what to do when the party the step asks stays away. Called only for a failure that says
    /// so.
    ///
    /// To answer [`Absence::Owe`] is to claim that
    /// - the step asks nobody but the debtor, so that the failure is the debtor's;
    /// - no later step of the job needs it to have happened;
    /// - what the debtor has meanwhile can do no harm, whatever others do with the job's subject elsewhere: it does not run;
    /// - the step may run any time later, once, twice or half, with the generation it was recorded with. Where something newer
    ///   has happened to the subject at the debtor since, that generation is refused there, and the debt is void.
    ///
    /// Once a debtor owes a step of a job, all that comes later in the job and is its to owe is owed too, in the same order.
    fn absence(&self, _cx: &StepContext<I>) -> Absence {
        Absence::Wait
    }

    /// Brings the step about.
    async fn run(&self, cx: &StepContext<I>) -> Result<Self::Output, StepError>;
}

/// A step that can be taken back. Required of every step that leaves something behind before the
/// job's point of no return.
#[async_trait]
pub trait UndoStep<I: Data>: Step<I> {
    /// What to do when the party that this undo asks stays away; [`Step::absence`] says what [`Absence::Owe`] claims. Undos of
    /// earlier steps run before an owed one: that they do not depend on it is part of the claim.
    fn undo_absence(&self, _cx: &StepContext<I>) -> Absence {
        Absence::Wait
    }

    /// Makes it as if the step had never begun, whether it had no effect, half or all of it; the
    /// step's own output may be missing. Called until it succeeds.
    ///
    /// Only the last step before the point of no return may answer [`StepError::past_undo`]: its effect
    /// turned out to be complete and irrevocable, and the job goes forward.
    async fn undo(&self, cx: &StepContext<I>) -> Result<(), StepError>;
}

/// What can be known of a step without running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepInfo {
    pub name: &'static str,
    /// With this step's success the job can only go forward.
    pub point_of_no_return: bool,
    /// Whether it has an undo.
    pub undoable: bool,
}

/// What to do about a failed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recourse {
    /// Try again: the cause may pass by itself, as an unreachable host does.
    Retry,
    /// Turn back. Past the point of no return and in an undo there is no way back: the job stands still and says so, and a
    /// new attempt is made now and then.
    TurnBack,
    /// From an undo only: nothing can be taken back any more, go forward.
    GoForward,
    /// From the first step past the point of no return only: it has begun nothing, and cannot; go back.
    GoBack,
}

/// Why a step or an undo did not succeed, and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {}", failure.code, Brief(failure))]
pub struct StepError {
    pub failure: Failure,
    pub recourse: Recourse,
}

impl StepError {
    /// Trying again will not help.
    pub fn fatal(failure: Failure) -> Self {
        Self {
            failure,
            recourse: Recourse::TurnBack,
        }
    }

    /// Trying again may help.
    pub fn retryable(failure: Failure) -> Self {
        Self {
            failure,
            recourse: Recourse::Retry,
        }
    }

    /// The answer of an undo that finds the step's effect complete and irrevocable.
    pub fn past_undo(what: impl Into<String>) -> Self {
        let failure = Failure::new(ErrorCode::JobNotCancellable, what);
        Self {
            failure,
            recourse: Recourse::GoForward,
        }
    }

    /// The answer of the first step past the point of no return that finds itself unable to begin, while all before it can
    /// still be taken back.
    pub fn not_begun(failure: Failure) -> Self {
        Self {
            failure,
            recourse: Recourse::GoBack,
        }
    }

    /// The answer of a step that stopped because the job is being cancelled.
    pub fn cancelled() -> Self {
        Self::fatal(Failure::new(ErrorCode::Cancelled, "the job was cancelled"))
    }

    /// Somebody could not be reached.
    pub(crate) fn is_absence(&self) -> bool {
        self.failure.code.class() == Class::Unreachable
    }

    pub(crate) fn internal(what: impl Into<String>, because: impl fmt::Display) -> Self {
        Self::fatal(Failure::new(ErrorCode::Internal, what).because(because))
    }
}

/// Retryable where the code says that something could not be reached, else fatal.
impl From<Failure> for StepError {
    fn from(failure: Failure) -> Self {
        match failure.code.class() {
            Class::Unreachable => Self::retryable(failure),
            _ => Self::fatal(failure),
        }
    }
}

/// A failure on one line.
struct Brief<'a>(&'a Failure);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        if !self.0.because.is_empty() {
            write!(f, " ({})", self.0.because)?;
        }
        Ok(())
    }
}
