use crate::controller::AlertTargetView;
use crate::lists::LibraryQuery;
use crate::verbs::verb;

verb! {
    /// Where alerts are sent to, and whether they arrive; never the secrets.
    AlertTargetList = get "/v1/alert-targets" (),
    operation: "alert_target_list" in "alerts",
    access: Admin,
    request: query(LibraryQuery),
    answer: pages(AlertTargetView) { 200 },
}
