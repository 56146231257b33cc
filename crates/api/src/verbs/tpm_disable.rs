use crate::controller::{Accepted, TpmRequest};
use crate::verbs::verb;

verb! {
    /// Takes the TPM from a VM; it stays in the history.
    TpmDisable = post "/v1/vms/{vm}/tpm/disable" ("vm" = "name or id"),
    operation: "tpm_disable" in "tpm",
    access: Operator in Vm,
    request: json(TpmRequest),
    answer: json(Accepted) { 202, 200 = "it is off already" },
}
