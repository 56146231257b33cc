//! EK certificates: whose TPMs go with the fleet's VMs.

use fleetward_model::certificate::Serial;
use fleetward_model::{HostName, VmName};
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// What counts of an EK certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum EkStanding {
    /// It leads to the fleet's EK root.
    Fleet,
    /// Another maker's, or of an authority that was revoked; an administrator let it in by name, or the fleet had it before.
    Accepted,
    /// Another maker's. No other host takes it.
    Foreign,
    /// The fleet issued it, and an administrator revoked it: it is in the list of revoked certificates.
    Revoked,
}

/// An administrator's decision about a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EkDecision {
    pub by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// An EK certificate that the fleet has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EkCertificateView {
    /// SHA-256 of the certificate, hex.
    pub sha256: String,
    pub serial: Serial,
    /// By its own word, RFC 4514 text.
    pub issuer: String,
    /// The host whose EK authority that is, if it is named as this fleet's are.
    #[serde(default)]
    pub issuer_host: Option<HostName>,
    pub standing: EkStanding,
    /// Who let it in by name. None also where the fleet had it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<EkDecision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<EkDecision>,
    /// The VMs whose TPM has it now: several after a clone with a copied TPM, none once it was deleted or replaced.
    pub vms: Vec<VmName>,
    /// Of which VM it was when it was first seen.
    pub first_vm: VmName,
    #[serde(with = "time::serde::rfc3339")]
    pub first_seen: OffsetDateTime,
}

/// One with its chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EkCertificateDetail {
    #[serde(flatten)]
    pub view: EkCertificateView,
    /// PEM: the certificate, then what it leads over to the EK root, if it does.
    pub chain: String,
}

/// An authority of EK certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EkAuthorityView {
    /// SHA-256 of its certificate, hex.
    pub sha256: String,
    pub serial: Serial,
    pub subject: String,
    /// The host that issues with it; none of the fleet's EK root.
    #[serde(default)]
    pub host: Option<HostName>,
    /// Whether new TPMs get certificates from it: the present one of a member.
    pub issues: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<EkDecision>,
    /// PEM.
    pub certificate: String,
}

/// The list of the EK certificates that are revoked (RFC 5280 section 5), signed by the fleet's EK root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EkRevocationList {
    /// PEM.
    pub crl: String,
    pub entries: usize,
    /// Until then a newer one is to be fetched.
    #[serde(with = "time::serde::rfc3339")]
    pub next_update: OffsetDateTime,
}

/// Request of `POST /v1/ek/certificates/{sha256}/revoke`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EkRevokeRequest {
    /// For the record.
    #[serde(default)]
    pub reason: String,
}

/// What a revocation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EkRevoked {
    /// SHA-256 of the certificate, hex.
    pub sha256: String,
    pub decision: EkDecision,
    /// False of another maker's certificate: it is no longer accepted, and that is all that this fleet can say of it.
    pub listed: bool,
    /// VMs whose TPM has it, or one that the revoked authority issued.
    pub vms: Vec<VmName>,
}

/// An EK certificate of another maker that goes with a TPM of the fleet from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EkAccepted {
    /// SHA-256 of the certificate, hex.
    pub sha256: String,
    /// Who accepted it first.
    pub by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}
