use crate::controller::HostView;
use crate::lists::HostQuery;
use crate::verbs::verb;

verb! {
    /// Every host of the fleet, and those that are invited, by name.
    HostList = get "/v1/hosts" (),
    operation: "host_list" in "hosts",
    access: Viewer in Rows,
    request: query(HostQuery),
    answer: pages(HostView) { 200 },
}
