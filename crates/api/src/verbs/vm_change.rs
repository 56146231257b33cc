use crate::controller::{ChangeAnswer, ChangeRequest};
use crate::verbs::verb;

verb! {
    /// Changes a VM. What a running VM cannot take now waits for its next start, and is shown as pending.
    VmChange = patch "/v1/vms/{vm}" ("vm" = "name or id"),
    operation: "vm_change" in "vms",
    access: Operator in Vm,
    request: json(ChangeRequest),
    answer: json(ChangeAnswer) { 202, 200 = "there is nothing to do, or it was only asked what would be done" },
}
