use crate::controller::{LoadHistory, LoadQuery};
use crate::verbs::verb;

verb! {
    /// What a VM has used, on whichever hosts: a day in minutes, a year in hours.
    VmLoad = get "/v1/vms/{vm}/load" ("vm" = "name or id"),
    operation: "vm_load" in "vms",
    access: Viewer in Vm,
    request: query(LoadQuery),
    answer: json(LoadHistory) { 200 },
}
