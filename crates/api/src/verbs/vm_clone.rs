use crate::controller::{AcceptedWithWarnings, CloneRequest};
use crate::verbs::verb;

verb! {
    /// Another VM with this one's disks; the warnings say what the choice of its TPM means.
    VmClone = post "/v1/vms/{vm}/clone" ("vm" = "name or id"),
    operation: "vm_clone" in "copies",
    access: Operator in Vm,
    request: json(CloneRequest),
    answer: json(AcceptedWithWarnings) { 202, 200 = "a dry run" },
}
