//! EK certificates: whose TPMs go with the fleet's VMs.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

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
