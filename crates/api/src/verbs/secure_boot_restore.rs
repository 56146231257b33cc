use crate::controller::{Accepted, SecureBootRequest};
use crate::verbs::verb;

verb! {
    /// Brings the certificates from before an enrolment back. PCR 7 changes.
    SecureBootRestore = post "/v1/vms/{vm}/secure-boot/restore" ("vm" = "name or id"),
    operation: "secure_boot_restore" in "secure boot",
    access: Operator in Vm,
    request: json(SecureBootRequest),
    answer: json(Accepted) { 202 },
}
