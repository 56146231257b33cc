use crate::controller::Accepted;
use crate::verbs::verb;

verb! {
    /// Starts a VM.
    VmStart = post "/v1/vms/{vm}/start" ("vm" = "name or id"),
    operation: "vm_start" in "vms",
    access: Operator in Vm,
    request: none,
    answer: json(Accepted) { 202, 200 = "it runs already" },
}
