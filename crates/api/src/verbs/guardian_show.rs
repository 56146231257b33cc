use crate::controller::GuardianView;
use crate::verbs::verb;

verb! {
    /// The certificates of one guardian.
    GuardianShow = get "/v1/guardians/{guardian}" ("guardian"),
    operation: "guardian_show" in "guardians",
    access: Viewer,
    request: none,
    answer: list(GuardianView) { 200 },
}
