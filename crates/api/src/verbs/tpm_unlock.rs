use crate::controller::{Accepted, TpmRequest};
use crate::verbs::verb;

verb! {
    /// Clears the lockout counter of the TPM, unless the guest has set a password for that.
    TpmUnlock = post "/v1/vms/{vm}/tpm/unlock" ("vm" = "name or id"),
    operation: "tpm_unlock" in "tpm",
    access: Operator in Vm,
    request: json(TpmRequest),
    answer: json(Accepted) { 202 },
}
