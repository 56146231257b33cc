use crate::controller::VmView;
use crate::verbs::verb;

verb! {
    /// One VM.
    VmShow = get "/v1/vms/{vm}" ("vm" = "name or id"),
    operation: "vm_show" in "vms",
    access: Viewer in Vm,
    request: none,
    answer: json(VmView) { 200 },
}
