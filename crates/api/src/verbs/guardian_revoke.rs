use crate::controller::{Accepted, RevokeRequest};
use crate::verbs::verb;

verb! {
    /// Takes a guardian's wrapping of a VM's key away and rolls the key: at once, or when the VM stops.
    GuardianRevoke = post "/v1/guardian-revocations" (),
    operation: "guardian_revoke" in "grants",
    access: Keeper,
    request: json(RevokeRequest),
    answer: json(Accepted) { 202, 200 = "a dry run" },
}
