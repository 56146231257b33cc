use crate::controller::Accepted;
use crate::verbs::verb;

verb! {
    /// Stops the processors of a running VM; its memory stays.
    VmPause = post "/v1/vms/{vm}/pause" ("vm" = "name or id"),
    operation: "vm_pause" in "vms",
    access: Operator in Vm,
    request: none,
    answer: json(Accepted) { 202, 200 = "it is paused already" },
}
