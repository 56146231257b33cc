//! Why the engine refused or failed.

use crate::{JobState, StepError};
use fleetward_model::{ErrorCode, Failure, JobId, Names};
use fleetward_store::StoreError;

/// Why the engine refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    #[error("{resource} is in use by job {by}")]
    Busy { resource: String, by: JobId },
    #[error("there is no job {id}")]
    NotFound { id: JobId },
    #[error("job {id} is {state:?} and cannot be cancelled any more")]
    NotCancellable { id: JobId, state: JobState },
    #[error("there is another job {id} already")]
    IdTaken { id: JobId },
    #[error("job kind {kind} is not in the registry")]
    UnknownKind { kind: String },
    #[error("the input of a {kind} job cannot be recorded")]
    BadInput {
        kind: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("the engine has been shut down")]
    ShutDown,
    #[error("another engine runs the jobs")]
    NotLeading,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl JobError {
    /// The error as people get it.
    pub fn to_failure(&self) -> Failure {
        let code = match self {
            Self::Busy { .. } => ErrorCode::VmBusy,
            Self::NotFound { .. } => ErrorCode::JobNotFound,
            Self::NotCancellable { .. } => ErrorCode::JobNotCancellable,
            Self::Store(_) | Self::ShutDown | Self::NotLeading => ErrorCode::StoreFailed,
            Self::IdTaken { .. } | Self::UnknownKind { .. } | Self::BadInput { .. } => {
                ErrorCode::Internal
            }
        };
        let failure = Failure::new(code, self.to_string());
        match self {
            Self::Busy { by: id, .. } | Self::NotCancellable { id, .. } => {
                failure.about(&Names::default().job(id))
            }
            _ => failure,
        }
    }
}

impl From<JobError> for StepError {
    fn from(error: JobError) -> Self {
        match &error {
            JobError::Store(e) if e.is_transient() => Self::retryable(error.to_failure()),
            JobError::ShutDown | JobError::NotLeading => Self::retryable(error.to_failure()),
            _ => Self::fatal(error.to_failure()),
        }
    }
}
