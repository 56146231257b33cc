//! What a change would do to VMs, before anything is done.

use fleetward_model::{ErrorCode, HostName, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/tpm-plans`. VMs are named, or chosen: all, those of a host, those with labels.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TpmPlanRequest {
    pub change: TpmChange,
    #[serde(default)]
    pub names: Vec<VmName>,
    #[serde(default)]
    pub all: bool,
    #[serde(default)]
    pub host: Option<HostName>,
    /// `key=value`; each must fit.
    #[serde(default)]
    pub labels: Vec<String>,
    /// As the change would be asked for.
    #[serde(default)]
    pub stop_and_restart: bool,
    /// `restore` only.
    #[serde(default)]
    pub version: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TpmChange {
    Enable,
    Disable,
    Restore,
    Roll,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TpmPlan {
    pub vms: Vec<VmPlan>,
    /// What a person should know, and answer, before the change is asked for.
    pub question: Option<Question>,
}

/// What would become of one VM.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VmPlan {
    pub vm: VmName,
    pub would: Would,
    /// Why it would fail.
    #[serde(default)]
    pub code: Option<ErrorCode>,
    pub message: String,
    /// It was chosen by what it has in common with others, and the change does not concern it: nothing is asked of it.
    #[serde(default)]
    pub spared: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Would {
    Change,
    Nothing,
    Fail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Question {
    pub about: QuestionAbout,
    /// The VMs that it concerns.
    pub vms: Vec<VmName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuestionAbout {
    /// The guest loses its TPM, and what that has sealed stays closed.
    TpmIsLost,
    /// A new TPM does not open what the VM's former TPM has sealed.
    NewTpmOpensNothing,
    /// A kept version takes the place of the TPM that the VM has.
    TpmIsReplaced,
}
