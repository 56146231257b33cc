use crate::lists::{KeptTpm, PageQuery};
use crate::verbs::verb;

verb! {
    /// The TPMs that are kept of VMs which are not there any more: the newest version of each VM, by name.
    TpmKept = get "/v1/kept-tpms" (),
    operation: "tpm_kept" in "tpm",
    access: Viewer,
    request: query(PageQuery),
    answer: pages(KeptTpm) { 200 },
}
