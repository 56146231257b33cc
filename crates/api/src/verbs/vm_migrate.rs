use crate::controller::{Accepted, MigrateRequest};
use crate::verbs::verb;

verb! {
    /// Refused with every finding when something speaks against it; nothing has happened then.
    VmMigrate = post "/v1/vms/{vm}/migrate" ("vm" = "name or id"),
    operation: "vm_migrate" in "vms",
    access: Operator in Vm,
    request: json(MigrateRequest),
    answer: json(Accepted) { 202 },
}
