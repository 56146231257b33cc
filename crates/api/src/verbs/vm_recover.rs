use crate::controller::{Accepted, RecoverRequest};
use crate::verbs::verb;

verb! {
    /// Rebuilds a VM of a lost host on another one: its TPM and UEFI variables from the controller's copy, its disks as they lie
    /// in their pools there. When the lost host comes back, its own copy of the VM is ended; that one's disks stay.
    VmRecover = post "/v1/vms/{vm}/recover" ("vm" = "name or id"),
    operation: "vm_recover" in "recover",
    access: Operator in Vm,
    request: json(RecoverRequest),
    answer: json(Accepted) { 202, 200 = "a dry run" },
}
