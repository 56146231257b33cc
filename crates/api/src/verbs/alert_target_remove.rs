use crate::controller::AlertTargetView;
use crate::verbs::verb;

verb! {
    /// Removes a target for alerts, and its secrets. What it was not told, it is told no more.
    AlertTargetRemove = delete "/v1/alert-targets/{name}" ("name"),
    operation: "alert_target_remove" in "alerts",
    access: Admin,
    request: none,
    answer: json(AlertTargetView) { 200 },
}
