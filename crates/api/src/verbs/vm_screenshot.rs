use crate::verbs::verb;

verb! {
    /// What the VM's screen shows, as PNG.
    VmScreenshot = get "/v1/vms/{vm}/screenshot" ("vm" = "name or id"),
    operation: "vm_screenshot" in "screen",
    access: Operator in Vm,
    request: none,
    answer: picture { 200 = "the picture" },
}
