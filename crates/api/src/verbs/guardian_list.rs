use crate::controller::GuardianView;
use crate::lists::GuardianQuery;
use crate::verbs::verb;

verb! {
    /// Every certificate of every guardian.
    GuardianList = get "/v1/guardians" (),
    operation: "guardian_list" in "guardians",
    access: Viewer,
    request: query(GuardianQuery),
    answer: pages(GuardianView) { 200 },
}
