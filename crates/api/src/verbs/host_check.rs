use crate::controller::{HostCheckQuery, HostCheckView};
use crate::verbs::verb;

verb! {
    /// How many VMs of each host can start there, and can move to another host of its group, and what keeps the others.
    HostCheck = get "/v1/check/hosts" (),
    operation: "check_hosts" in "hosts",
    access: Viewer in Rows,
    request: query(HostCheckQuery),
    answer: pages(HostCheckView) { 200 },
    patience: long,
}
