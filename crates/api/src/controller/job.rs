//! Jobs and their steps.

use fleetward_model::job::JobState;
use fleetward_model::{ErrorCode, Failure, JobId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    pub id: JobId,
    /// `vm-create`, `vm-migrate`, ...
    pub kind: String,
    /// What it works on.
    pub target: String,
    pub state: JobState,
    pub created_by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended: Option<OffsetDateTime>,
    pub steps: Vec<StepView>,
    /// Name of the step that runs or waits.
    pub current: Option<String>,
    pub progress: Option<ProgressView>,
    /// Why it waits, when it does: a host that does not answer.
    pub waiting: Option<String>,
    /// The code of what it waits for.
    #[serde(default)]
    pub waiting_code: Option<ErrorCode>,
    /// What it waits for does not come by itself within seconds: its host stays away, or somebody must act.
    #[serde(default)]
    pub held_up: bool,
    pub cancellable: bool,
    pub failure: Option<Failure>,
    /// What went less well than its state says: a copy of a TPM that could not be taken.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What it reports, by kind: a migration's downtime, a created VM's name.
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
}

/// A kind of job with its steps, in order: `GET /v1/job-kinds`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobKindView {
    pub kind: String,
    pub steps: Vec<StepKindView>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StepKindView {
    pub name: String,
    /// Whether it leaves something behind that is undone when the job turns back.
    pub undoable: bool,
    /// Once it is done the job only goes forward.
    pub point_of_no_return: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    pub name: String,
    /// `pending`, `running`, `done`, `skipped` (nothing to do), `undoing`, `undone`, `failed`, `owed` (by a host that is away).
    pub state: String,
    pub attempts: u32,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended: Option<OffsetDateTime>,
    /// The host that owes it, or owed it until it was back.
    #[serde(default)]
    pub owed_by: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgressView {
    /// Bytes.
    pub done: u64,
    /// Bytes.
    pub total: u64,
    pub text: String,
}
