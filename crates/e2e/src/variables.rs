//! Reads a VM's UEFI variables, with no code of Fleetward's: those that make it this machine to its guest.
//!
//! Source: edk2 `MdeModulePkg/Include/Guid/VariableFormat.h`.

use crate::fleet::Fleet;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// By their names, what they hold as hex.
pub type Variables = BTreeMap<String, String>;

/// `aaf32c78-947b-439a-a180-2e144ec37792`, as it lies in the file, and the bytes from there to the first variable.
const STORE: &str = "782cf3aa7b949a43a1802e144ec37792";
const STORE_HEADER: usize = 28;
const VARIABLE_HEADER: usize = 60;

/// `PK`, `KEK`, `db`, `dbx`, the boot order, and the boot options.
pub fn of(fleet: &Fleet, host: &str, id: &str) -> Result<Variables> {
    let read = format!(
        "for d in /var/lib/fleetward/uefi /var/lib/libvirt/qemu/nvram; do [ ! -e $d/{id}_VARS.fd ] || od -An -v -tx1 $d/{id}_VARS.fd; done"
    );
    let said = fleet.exec(host, &["sh", "-ec", &read])?.ok()?.stdout;
    let hex: String = said.split_whitespace().collect();
    let mut at = hex.find(STORE).context("no store of variables")? + 2 * STORE_HEADER;
    let mut found = Variables::new();
    while hex.get(at..at + 4) == Some("aa55") {
        let byte = |offset: usize, length: usize| {
            let from = at + 2 * offset;
            hex.get(from..from + 2 * length).context("it is cut short")
        };
        let number = |offset: usize| {
            let bytes = u32::from_str_radix(byte(offset, 4)?, 16)?.swap_bytes();
            Ok::<_, anyhow::Error>(usize::try_from(bytes)?)
        };
        let (name_length, data_length) = (number(36)?, number(40)?);
        // A living one, or one that is being replaced and may be all there is; what follows counts more.
        if matches!(byte(2, 1)?, "3f" | "3e") {
            let name = plain(byte(VARIABLE_HEADER, name_length)?);
            if is_wanted(&name) {
                let data = byte(VARIABLE_HEADER + name_length, data_length)?;
                found.insert(name, data.to_owned());
            }
        }
        at += 2 * (VARIABLE_HEADER + name_length + data_length).next_multiple_of(4);
    }
    Ok(found)
}

/// The name, of which only letters and digits matter here.
fn plain(utf16: &str) -> String {
    let bytes = (0..utf16.len() / 4).filter_map(|n| utf16.get(4 * n..4 * n + 2));
    let bytes = bytes.filter_map(|hex| u8::from_str_radix(hex, 16).ok());
    bytes.take_while(|b| *b != 0).map(char::from).collect()
}

fn is_wanted(name: &str) -> bool {
    let is_option = name.strip_prefix("Boot").is_some_and(|number| {
        number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    is_option || ["PK", "KEK", "db", "dbx", "BootOrder"].contains(&name)
}

/// # Errors
/// Which of them differ.
pub fn same(before: &Variables, after: &Variables) -> Result<()> {
    let names = before.keys().chain(after.keys());
    let differ: Vec<&String> = names
        .filter(|name| before.get(*name) != after.get(*name))
        .collect();
    ensure!(differ.is_empty(), "UEFI variables have changed: {differ:?}");
    Ok(())
}
