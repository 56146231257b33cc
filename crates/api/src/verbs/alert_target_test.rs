use crate::controller::AlertTargetView;
use crate::verbs::verb;

verb! {
    /// Sends a test to a target, and waits until the target has taken it.
    AlertTargetTest = post "/v1/alert-targets/{name}/test" ("name"),
    operation: "alert_target_test" in "alerts",
    access: Admin,
    request: none,
    answer: json(AlertTargetView) { 200 },
    patience: long,
}
