use crate::controller::{Accepted, TpmRequest};
use crate::verbs::verb;

verb! {
    /// Brings back a version of the history; what is there now is kept first.
    TpmRestore = post "/v1/vms/{vm}/tpm/restore" ("vm" = "name or id"),
    operation: "tpm_restore" in "tpm",
    access: Operator in Vm,
    request: json(TpmRequest),
    answer: json(Accepted) { 202 },
}
