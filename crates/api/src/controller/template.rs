//! Templates.

use fleetward_model::change::NicAsked;
use fleetward_model::disk::DiskSerial;
use fleetward_model::machine::Clock;
use fleetward_model::vm::{DiskBus, Profile};
use fleetward_model::{ByteSize, DeviceId, TemplateName, VmName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// `POST /v1/templates`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateRequest {
    pub name: TemplateName,
    /// The VM it is made of; running or stopped, and unchanged by it.
    pub from: VmName,
    /// Keeps the machine's UEFI variables: boot entries, and changes of the Secure Boot keys.
    #[serde(default)]
    pub uefi_variables: bool,
    /// Only says whether it could be done, by a refusal or by an answer without a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateView {
    pub name: TemplateName,
    /// The VM it was made of; it may be gone.
    pub from: VmName,
    pub profile: Profile,
    pub cpus: u32,
    pub memory_bytes: ByteSize,
    pub secure_boot: bool,
    /// Whether its source had a TPM, whose sealed secrets no deployment can open.
    pub source_had_tpm: bool,
    pub disks: Vec<TemplateDisk>,
    /// SHA-256 of the kept UEFI variables; none: deployments begin with the firmware's own.
    pub uefi_variables: Option<String>,
    /// Which time their clocks keep; none: the profile's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    /// Network cards of its deployments, each with an address of its own; none: one in the default network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicAsked>>,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
}

/// A disk of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateDisk {
    /// None: the template was made before templates kept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<DeviceId>,
    pub target: String,
    /// What guests know it by, in the source and in every deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<DiskSerial>,
    pub bus: DiskBus,
    /// Virtual size.
    pub size: ByteSize,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Of the content, hex.
    pub sha256: String,
}
