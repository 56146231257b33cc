use crate::controller::{SecureBootQuery, SecureBootView};
use crate::verbs::verb;

verb! {
    /// Which of Microsoft's certificates VMs, templates and kept versions trust.
    SecureBootStatus = get "/v1/secure-boot" (),
    operation: "secure_boot_status" in "secure boot",
    access: Viewer in Rows,
    request: query(SecureBootQuery),
    answer: pages(SecureBootView) { 200 },
}
