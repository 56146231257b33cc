use crate::controller::Accepted;
use crate::verbs::verb;

verb! {
    /// Lets a paused VM run on.
    VmResume = post "/v1/vms/{vm}/resume" ("vm" = "name or id"),
    operation: "vm_resume" in "vms",
    access: Operator in Vm,
    request: none,
    answer: json(Accepted) { 202, 200 = "it runs already" },
}
