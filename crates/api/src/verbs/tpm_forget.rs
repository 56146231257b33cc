use crate::verbs::verb;

verb! {
    /// Removes all that is kept of the TPM of a VM that is not there any more, with the controller and on all hosts.
    TpmForget = delete "/v1/kept-tpms/{vm}" ("vm" = "id of the VM"),
    operation: "tpm_forget" in "tpm",
    access: Operator,
    request: none,
    answer: nothing { 204 },
}
