use crate::controller::AlertView;
use crate::lists::LibraryQuery;
use crate::verbs::verb;

verb! {
    /// What needs somebody now, as targets were told, oldest first.
    AlertList = get "/v1/alerts" (),
    operation: "alert_list" in "alerts",
    access: Viewer,
    request: query(LibraryQuery),
    answer: pages(AlertView) { 200 },
}
