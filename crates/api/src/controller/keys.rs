//! Guardians, and who can open the keys of VMs.

use fleetward_model::guardian::CertificateRole;
use fleetward_model::{ErrorCode, GuardianId, HostName, JobId, VmName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// One certificate of a guardian: a row of `guardian list`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GuardianView {
    pub guardian: GuardianId,
    pub role: CertificateRole,
    pub serial: String,
    pub sha1: String,
    pub sha256: String,
    pub subject: String,
    /// The subject, where the certificate is self-signed; empty where it is not known.
    #[serde(default)]
    pub issuer: String,
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub not_before: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    pub days_left: i64,
    pub has_private_key: bool,
    pub host: HostName,
    /// VMs whose key is wrapped for it.
    pub vms: Vec<VmName>,
}

/// `POST /v1/guardian-grants`: wraps the keys of VMs for one more guardian.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// Which VMs; empty with `all`.
    #[serde(default)]
    pub vms: Vec<VmName>,
    /// Every VM of the guardian's group.
    #[serde(default)]
    pub all: bool,
    /// A host, or a guardian's id or the beginning of it.
    pub to: String,
    /// Only says what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// Guardians that are used although they have expired, each named in full.
    #[serde(default)]
    pub expired: Vec<GuardianId>,
}

/// Answer of `POST /v1/guardian-grants`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GrantAnswer {
    /// None: nothing had to be done, or it was a dry run.
    pub job: Option<JobId>,
    pub guardian: GuardianId,
    pub host: HostName,
    /// What is to be done for each VM; `outcome` is `skipped` where nothing is.
    pub plan: Vec<VmOutcome>,
}

/// What became, or would become, of one VM of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmOutcome {
    pub vm: VmName,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    Failed,
    Skipped,
}

/// `POST /v1/guardian-revocations`: takes a guardian's wrapping of a VM's key away, and rolls the key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    pub vm: VmName,
    /// A host, or a guardian's id or the beginning of it.
    pub from: String,
    /// Only says whether it could be done, by a refusal or by an answer without a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// `POST /v1/guardian-rotations`: a new pair for a host's own guardian.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    pub host: HostName,
    /// Only says whether it could be done, by a refusal or by an answer without a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}
