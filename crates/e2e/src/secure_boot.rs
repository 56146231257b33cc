//! The certificates in a VM's UEFI variables.

use crate::fleet::{Fleet, text};
use anyhow::Result;
use serde_json::Value;

/// What `secure-boot status` says of the VM; null of one that does not exist.
pub fn found(fleet: &Fleet, vm: &str) -> Result<Value> {
    let all = fleet.json(&["secure-boot", "status"])?;
    let mut all = all.as_array().into_iter().flatten();
    let view = all.find(|view| view["kind"] == "vm" && view["name"] == vm);
    Ok(view.map_or(Value::Null, |view| view["found"].clone()))
}

/// Gives a stopped VM the variables that Debian 12's firmware gave VMs before Fleetward added certificates of 2023, and lets its
/// host look at them.
pub fn make_old(fleet: &Fleet, host: &str, vm: &str) -> Result<()> {
    let id = text(&fleet.vm(vm)?, "id")?;
    let place = format!("/var/lib/libvirt/qemu/nvram/{id}_VARS.fd");
    let script = format!(
        "v={place}; cp /usr/share/OVMF/OVMF_VARS_4M.ms.fd $v.x; chown --reference=$v $v.x; chmod --reference=$v $v.x; mv $v.x $v"
    );
    fleet.exec(host, &["sh", "-ec", &script])?.ok()?;
    let look = ["vm", "set", vm, "--label", "certificates=old"];
    fleet.cli(&look)?.ok().map(drop)
}
