use crate::controller::{Accepted, TpmRequest};
use crate::verbs::verb;

verb! {
    /// Makes a new TPM for a VM that has none. What a former TPM of the VM had sealed stays closed: `restore` brings that one back.
    TpmEnable = post "/v1/vms/{vm}/tpm/enable" ("vm" = "name or id"),
    operation: "tpm_enable" in "tpm",
    access: Operator in Vm,
    request: json(TpmRequest),
    answer: json(Accepted) { 202, 200 = "it is on already" },
}
