//! Secure Boot of VMs, templates and kept versions.

use fleetward_model::secure_boot::{CertificateState, SecureBootObserved};
use fleetward_model::{HostName, VmId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

/// Query of `GET /v1/secure-boot`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SecureBootQuery {
    /// only these VMs, with their kept versions; may be repeated
    #[serde(rename = "vm", default)]
    pub vms: Vec<String>,
    /// kept versions of all VMs, too
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub versions: bool,
    /// at most so many rows, 1 to 1,000; without it all
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// only what follows: KIND/NAME/ID/VERSION of a row, of which a VM has no version and a template neither that nor an id
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// What the UEFI variables of one thing say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecureBootView {
    pub kind: SecureBootKind,
    /// Of the VM, also where a kept version is of a time at which it had another; or of the template.
    pub name: String,
    /// Of the VM; none of a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VmId>,
    /// Where the VM is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// Of a kept version: its number in `tpm history`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub made: Option<OffsetDateTime>,
    /// None: there are no variables yet, or nobody has looked at them.
    pub state: Option<CertificateState>,
    /// In full; none of a kept version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<SecureBootObserved>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display)]
#[strum(const_into_str, serialize_all = "snake_case")]
pub enum SecureBootKind {
    Vm,
    Template,
    /// A kept version of a VM's TPM, with the variables of that moment.
    Version,
}
