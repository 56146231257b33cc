use crate::controller::{Accepted, VmCreateRequest};
use crate::verbs::verb;

verb! {
    /// Makes a VM.
    VmCreate = post "/v1/vms" (),
    operation: "vm_create" in "vms",
    access: Operator in Rows,
    request: json(VmCreateRequest),
    answer: json(Accepted) { 202, 200 = "a dry run" },
}
