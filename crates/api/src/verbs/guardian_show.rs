use crate::controller::GuardianView;
use crate::lists::PageQuery;
use crate::verbs::verb;

verb! {
    /// The certificates of one guardian, on every host that has it.
    GuardianShow = get "/v1/guardians/{guardian}" ("guardian"),
    operation: "guardian_show" in "guardians",
    access: Viewer,
    request: query(PageQuery),
    answer: pages(GuardianView) { 200 },
}
