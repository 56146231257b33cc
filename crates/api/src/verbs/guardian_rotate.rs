use crate::controller::{Accepted, RotateRequest};
use crate::verbs::verb;

verb! {
    /// A new pair for a host's own guardian; every VM that depends on the former one is re-wrapped while it runs.
    GuardianRotate = post "/v1/guardian-rotations" (),
    operation: "guardian_rotate" in "grants",
    access: Keeper,
    request: json(RotateRequest),
    answer: json(Accepted) { 202, 200 = "a dry run" },
}
