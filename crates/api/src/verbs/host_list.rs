use crate::controller::HostView;
use crate::verbs::verb;

verb! {
    /// Every host of the fleet, and those that are invited, by name.
    HostList = get "/v1/hosts" (),
    operation: "host_list" in "hosts",
    access: Viewer,
    request: none,
    answer: list(HostView) { 200 },
}
