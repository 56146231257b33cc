use crate::controller::{CheckQuery, CheckView};
use crate::verbs::verb;

verb! {
    /// Whether VMs can move to hosts; on its own host, whether a VM can start. Without arguments all VMs against all hosts.
    FleetCheck = get "/v1/check" (),
    operation: "check" in "vms",
    access: Viewer in Rows,
    request: query(CheckQuery),
    answer: pages(CheckView) { 200 },
    patience: long,
}
