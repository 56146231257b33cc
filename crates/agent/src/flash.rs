//! The firmware that a VM runs with: its file becomes the flash memory of the machine.
//!
//! The other host names the path. Nothing is opened there, and its size alone is looked at.

use fleetward_api::agent::Flash;
use fleetward_model::ByteSize;
use std::path::Path;

/// The firmware that a VM runs with, as it is on this host. Nothing but its size is looked at.
pub(crate) fn of(loader: &Path) -> Option<Flash> {
    let size = std::fs::metadata(loader).ok()?.len();
    Some(Flash {
        path: loader.to_str()?.to_owned(),
        size: ByteSize(size),
    })
}

/// QEMU gives an arriving VM flash of the size of the same file here, and the VM brings its own firmware along in it.
pub(crate) fn problem(wanted: &Flash) -> Option<String> {
    match of(Path::new(&wanted.path)) {
        None => Some(format!("there is no {}", wanted.path)),
        Some(here) if here.size != wanted.size => Some(format!(
            "{} has {} bytes there, and {} bytes where the VM runs",
            wanted.path,
            here.size.bytes(),
            wanted.size.bytes()
        )),
        Some(_) => None,
    }
}
