use crate::controller::{SettleAnswer, SettleRequest};
use crate::verbs::verb;

verb! {
    /// Says which of the hosts that claim a VM is right. What the others have of it counts for nothing from then on: it is
    /// stopped, its TPM is kept in the history of its host, and its definition is removed. Its disks stay.
    VmSettle = post "/v1/vms/{vm}/settle" ("vm" = "name or id"),
    operation: "vm_settle" in "vms",
    access: Admin,
    request: json(SettleRequest),
    answer: json(SettleAnswer) { 200 },
}
