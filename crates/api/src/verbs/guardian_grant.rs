use crate::controller::{GrantAnswer, GrantRequest};
use crate::verbs::verb;

verb! {
    /// Wraps the keys of VMs for one more guardian of their group. No private key moves.
    GuardianGrant = post "/v1/guardian-grants" (),
    operation: "guardian_grant" in "grants",
    access: Keeper,
    request: json(GrantRequest),
    answer: json(GrantAnswer) { 202, 200 = "a dry run, or nothing to do" },
}
