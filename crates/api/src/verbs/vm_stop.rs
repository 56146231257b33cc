use crate::controller::{Accepted, StopRequest};
use crate::verbs::verb;

verb! {
    /// Stops a VM.
    VmStop = post "/v1/vms/{vm}/stop" ("vm" = "name or id"),
    operation: "vm_stop" in "vms",
    access: Operator in Vm,
    request: json(StopRequest),
    answer: json(Accepted) { 202, 200 = "it is stopped already" },
}
