use crate::controller::{KeysTyped, VmKeysRequest};
use crate::verbs::verb;

verb! {
    /// Types on a VM's keyboard, for a US layout.
    ///
    /// Answers when the last key is up. What cannot be typed refuses the whole
    /// before anything is typed.
    VmKeys = post "/v1/vms/{vm}/keys" ("vm" = "name or id"),
    operation: "vm_keys" in "screen",
    access: Operator in Vm,
    request: json(VmKeysRequest),
    answer: json(KeysTyped) { 200 },
    patience: long,
}
