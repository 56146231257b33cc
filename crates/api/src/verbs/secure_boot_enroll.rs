use crate::controller::{Accepted, SecureBootRequest};
use crate::verbs::verb;

verb! {
    /// Adds Microsoft's certificates of 2023 to the UEFI variables of a stopped VM. PCR 7 changes.
    SecureBootEnroll = post "/v1/vms/{vm}/secure-boot/enroll" ("vm" = "name or id"),
    operation: "secure_boot_enroll" in "secure boot",
    access: Operator in Vm,
    request: json(SecureBootRequest),
    answer: json(Accepted) { 202 },
}
