use crate::controller::Status;
use crate::verbs::verb;

verb! {
    /// What the fleet is made of and how it is.
    FleetStatus = get "/v1/status" (),
    operation: "status" in "fleet",
    access: Viewer in Open,
    request: none,
    answer: json(Status) { 200 },
}
