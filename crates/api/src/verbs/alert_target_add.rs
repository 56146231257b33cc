use crate::controller::{AlertTargetRequest, AlertTargetView};
use crate::verbs::verb;

verb! {
    /// Adds a target for alerts. It is told what lasts now, and from now on.
    AlertTargetAdd = post "/v1/alert-targets" (),
    operation: "alert_target_add" in "alerts",
    access: Admin,
    request: json(AlertTargetRequest),
    answer: json(AlertTargetView) { 200 },
}
