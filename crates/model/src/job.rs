//! Jobs, as far as everybody knows them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a job is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr)]
#[strum(const_into_str, serialize_all = "snake_case")]
pub enum JobState {
    /// Accepted, not begun.
    Pending,
    Running,
    /// Going back step by step.
    Undoing,
    Done,
    /// Failed or cancelled, and everything it had done is undone; the failure says why.
    Undone,
    /// Ended half-way: given up by an administrator, or what is left is owed by somebody who is away. The steps tell.
    Failed,
}

impl JobState {
    /// Whether nothing will change any more.
    pub const fn has_ended(self) -> bool {
        match self {
            Self::Done | Self::Undone | Self::Failed => true,
            Self::Pending | Self::Running | Self::Undoing => false,
        }
    }
}
