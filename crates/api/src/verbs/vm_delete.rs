use crate::controller::{Accepted, DeleteQuery};
use crate::verbs::verb;

verb! {
    /// Deletes a VM with its disks.
    VmDelete = delete "/v1/vms/{vm}" ("vm" = "name or id"),
    operation: "vm_delete" in "vms",
    access: Operator in Vm,
    request: query(DeleteQuery),
    answer: json(Accepted) { 202 },
}
