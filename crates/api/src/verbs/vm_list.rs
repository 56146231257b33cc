use crate::controller::{VmQuery, VmView};
use crate::verbs::verb;

verb! {
    /// VMs, by name.
    VmList = get "/v1/vms" (),
    operation: "vm_list" in "vms",
    access: Viewer in Rows,
    request: query(VmQuery),
    answer: pages(VmView) { 200 },
}
