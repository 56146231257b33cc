use crate::controller::{Accepted, TpmRequest};
use crate::verbs::verb;

verb! {
    /// Encrypts the TPM under a new key, for the guardians that have the old one.
    TpmRoll = post "/v1/vms/{vm}/tpm/roll" ("vm" = "name or id"),
    operation: "tpm_roll" in "tpm",
    access: Operator in Vm,
    request: json(TpmRequest),
    answer: json(Accepted) { 202 },
}
