use crate::lists::PageQuery;
use crate::tpm::TpmVersion;
use crate::verbs::verb;

verb! {
    /// The kept versions of a VM's TPM, oldest first.
    TpmHistory = get "/v1/vms/{vm}/tpm/history" ("vm" = "name or id"),
    operation: "tpm_history" in "tpm",
    access: Viewer in Vm,
    request: query(PageQuery),
    answer: pages(TpmVersion) { 200 },
}
