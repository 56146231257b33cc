use crate::verbs::verb;

verb! {
    /// The VM's screen, keyboard and mouse as RFB (VNC).
    ///
    /// Binary frames with the bytes as they are, in both directions. The subprotocol `binary` is accepted. How it ended is the code of the last frame: 4001, the VM does not run any more; 4002,
    /// to be opened again, because the VM has moved or its host was interrupted.
    VmScreen = get "/v1/vms/{vm}/screen" ("vm" = "name or id"),
    operation: "vm_screen" in "screen",
    access: Operator in Vm,
    request: none,
    answer: socket { 101 = "WebSocket" },
}
