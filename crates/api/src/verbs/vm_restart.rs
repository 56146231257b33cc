use crate::controller::{Accepted, StopRequest};
use crate::verbs::verb;

verb! {
    /// Stops a VM and starts it again.
    ///
    /// What waits for its next start takes effect.
    VmRestart = post "/v1/vms/{vm}/restart" ("vm" = "name or id"),
    operation: "vm_restart" in "vms",
    access: Operator in Vm,
    request: json(StopRequest),
    answer: json(Accepted) { 202 },
}
