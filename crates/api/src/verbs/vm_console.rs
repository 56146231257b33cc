use crate::verbs::verb;

verb! {
    /// Binary frames with the bytes as they are, in both directions.
    VmConsole = get "/v1/vms/{vm}/console" ("vm" = "name or id"),
    operation: "vm_console" in "console",
    access: Operator in Vm,
    request: none,
    answer: socket { 101 = "WebSocket" },
}
