use crate::tpm::TpmVersion;
use crate::verbs::verb;

verb! {
    /// The TPMs that are kept of VMs which are not there any more: the newest version of each VM.
    TpmKept = get "/v1/kept-tpms" (),
    operation: "tpm_kept" in "tpm",
    access: Viewer,
    request: none,
    answer: list(TpmVersion) { 200 },
}
