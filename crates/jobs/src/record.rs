//! A job as it is stored and shown.
//!
//! ```text
//!   pending ─► running ──────────────► done
//!      │          │  ▲
//!      │          │  └─ undo finds the effect irrevocable
//!      └──────► undoing ─────────────► undone
//!   running, undoing ── given up by an administrator, or what it was for is owed ──► failed
//!
//!   a step: pending ─► running ─► done         undone last to first
//!              │          ├─► owed (past the point of no return)
//!              │          └─► failed ──┐
//!              │  running, done, failed ─► undoing ─► undone | owed
//!              └─► skipped (there is nothing to do in this job)
//! ```

use crate::debt::Debtor;
use fleetward_model::job::JobState;
use fleetward_model::{Failure, JobId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

/// One job, whole: what the store holds, with the latest progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub kind: String,
    pub input: Value,
    pub created_by: String,
    /// The job whose step submitted this one.
    pub parent: Option<JobId>,
    /// What the job locks, or would if its parent had not locked it already.
    pub resources: Vec<String>,
    /// The part of `resources` this job itself locked and will release.
    pub held: Vec<String>,
    pub state: JobState,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub steps: Vec<StepRecord>,
    /// Only forward from here.
    pub past_return: bool,
    /// Why the job turned back or was given up.
    pub failure: Option<Failure>,
    /// Why nothing happens at the moment.
    pub waiting: Option<Waiting>,
    pub cancel: Option<CancelRequest>,
    /// Of the step at work; kept beside the record in the store.
    #[serde(skip)]
    pub progress: Option<Progress>,
}

/// What became of one step so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    pub name: String,
    pub state: StepState,
    /// Times `run` was begun.
    pub attempts: u32,
    /// Times `undo` was begun.
    pub undo_attempts: u32,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// Absent until the step has succeeded. `null` is an output like any other: it is what `()` becomes.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub output: Option<Value>,
    /// The latest failure of `run` or `undo`.
    pub failure: Option<Failure>,
    /// Since when every attempt has failed: the retry limit counts from here.
    #[serde(with = "time::serde::rfc3339::option")]
    pub failing_since: Option<OffsetDateTime>,
    /// Who owes the step, or its undo, or did so until it was paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debtor: Option<Debtor>,
    /// What stays different because the undo was left out, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgone: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    Pending,
    Running,
    Done,
    /// There was nothing to do in this job.
    Skipped,
    Failed,
    Undoing,
    Undone,
    /// The step, or its undo, is a debt of somebody who was away.
    Owed,
}

impl StepState {
    /// Whether a job that goes forward is through with the step.
    pub(crate) fn is_behind(self) -> bool {
        match self {
            Self::Done | Self::Skipped | Self::Owed => true,
            // a job that turned round again has its crossing step left as Undoing
            Self::Pending | Self::Running | Self::Failed | Self::Undoing | Self::Undone => false,
        }
    }

    /// Whether there is something left for a job that turned back, if the step has an undo.
    pub(crate) fn is_to_undo(self) -> bool {
        match self {
            Self::Running | Self::Done | Self::Failed | Self::Undoing => true,
            Self::Pending | Self::Skipped | Self::Undone | Self::Owed => false,
        }
    }
}

/// A pause before the next attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    pub reason: String,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub next_attempt_at: OffsetDateTime,
    /// The cause does not pass by itself: somebody must act, or give the job up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lasting: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CancelRequest {
    pub by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// How far a step is. Bytes where there are bytes, text for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub step: String,
    pub done_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    pub text: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Whatever stands there is a value, `null` too.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

impl Progress {
    /// 0 to 100, where the total is known.
    pub fn percent(&self) -> Option<f64> {
        let (done, total) = (self.done_bytes?, self.total_bytes?);
        (total > 0).then(|| (done as f64 / total as f64 * 100.0).min(100.0))
    }
}

impl Job {
    /// The step at work, or whose turn is next.
    pub fn current_step(&self) -> Option<&StepRecord> {
        match self.state {
            JobState::Pending | JobState::Running => {
                self.steps.iter().find(|step| !step.state.is_behind())
            }
            JobState::Undoing => self.steps.iter().rev().find(|step| step.state.is_to_undo()),
            JobState::Done | JobState::Undone | JobState::Failed => None,
        }
    }

    /// The record of the step called `name`.
    pub fn step(&self, name: &str) -> Option<&StepRecord> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// What the step called `name` handed on, if it has succeeded and is of that type.
    pub fn output<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let output = self.step(name)?.output.clone()?;
        serde_json::from_value(output).ok()
    }
}

/// Which jobs to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    pub state: Option<JobState>,
    /// Only jobs that have not ended (or only such that have).
    pub active: Option<bool>,
    pub kind: Option<String>,
    /// Only jobs concerning this resource: `vm/<id>`.
    pub resource: Option<String>,
    pub parent: Option<JobId>,
    pub limit: Option<usize>,
}

impl JobFilter {
    pub(crate) fn matches(&self, job: &Job) -> bool {
        self.state.is_none_or(|state| job.state == state)
            && self
                .active
                .is_none_or(|active| job.state.has_ended() != active)
            && self.kind.as_ref().is_none_or(|kind| job.kind == *kind)
            && self
                .resource
                .as_ref()
                .is_none_or(|r| job.resources.contains(r))
            && self.parent.is_none_or(|parent| job.parent == Some(parent))
    }
}
