use crate::controller::{Accepted, VmCreateRequest};
use crate::verbs::verb;

verb! {
    /// Makes a VM.
    VmCreate = post "/v1/vms" (),
    operation: "vm_create" in "vms",
    access: Operator,
    request: json(VmCreateRequest),
    answer: json(Accepted) { 202, 200 = "a dry run" },
}
