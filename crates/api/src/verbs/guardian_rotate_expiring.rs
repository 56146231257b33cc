use crate::bulk::{BulkEvent, RotateExpiringRequest};
use crate::verbs::verb;

verb! {
    /// Rotates the guardians that expire soon, the most urgent first. Needs the role keeper, unless it is a dry run.
    GuardianRotateExpiring = post "/v1/guardian-rotations/expiring" (),
    operation: "guardian_rotate_expiring" in "grants",
    access: Viewer,
    request: json(RotateExpiringRequest),
    answer: lines(BulkEvent) { 200 },
}
