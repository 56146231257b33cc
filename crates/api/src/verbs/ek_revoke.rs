use crate::controller::{EkRevokeRequest, EkRevoked};
use crate::verbs::verb;

verb! {
    /// Revokes an EK certificate, or a host's EK authority; takes back that another maker's certificate was accepted.
    EkRevoke = post "/v1/ek/certificates/{sha256}/revoke" ("sha256" = "SHA-256 of the certificate, hex"),
    operation: "ek_revoke" in "ek",
    access: Keeper,
    request: json(EkRevokeRequest),
    answer: json(EkRevoked) { 200 },
}
