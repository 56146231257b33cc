//! UEFI variables of VMs: the one place that reads, writes and removes their files.
//!
//! QEMU has the file open, and may write the directory that libvirt keeps it in, unless the configuration names another
//! one. So whoever has taken over a QEMU can put anything there: a link to a guardian's key, a pipe, a file without end.
//! All is done through [`SharedDirectory`](durable::SharedDirectory), which reads nothing but a file of QEMU's or root's,
//! with one name and of a size that variables can have. Writing and removing replace what is there, so they cure what
//! reading refuses.

use crate::failure::{Result, Trouble};
use crate::host::Host;
use fleetward_durable::{self as durable, Access, Expected, SharedDirectory};
use fleetward_model::secure_boot::{CertificateState, SecureBootObserved};
use fleetward_model::{ErrorCode, VmId};
use std::io;
use std::path::{Path, PathBuf};

/// Largest variables taken, in bytes.
pub(crate) const MAX_VARIABLES: u64 = 16 * 1024 * 1024;

/// Where the variables of a VM lie, or are to lie where there are none.
pub(crate) fn place(host: &Host, vm: VmId) -> Result<PathBuf> {
    let [own, former] = host.layout.nvram(vm);
    let there = !is_there(&own)? && is_there(&former)?;
    Ok(if there { former } else { own })
}

/// The variables of a VM; none before its first start.
pub(crate) fn read(host: &Host, vm: VmId) -> Result<Option<Vec<u8>>> {
    let place = place(host, vm)?;
    durable::read_expected(&place, &expected(host)).map_err(|error| trouble(&place, &error))
}

/// What the variables of a VM say of Secure Boot; none where there are none.
pub(crate) fn secure_boot(host: &Host, vm: VmId) -> Option<SecureBootObserved> {
    match read(host, vm) {
        Ok(file) => file.map(|file| fleetward_uefi::assess(&file)),
        Err(trouble) => Some(SecureBootObserved {
            because: Some(trouble.failure.because),
            ..SecureBootObserved::of(CertificateState::Unreadable)
        }),
    }
}

/// The file that the hypervisor makes variables of; none where there is none. It comes from a package, and only root writes it.
pub(crate) fn read_template(template: &Path) -> Result<Option<Vec<u8>>> {
    // The administrator, or a package, may have put a link there.
    let place = template.canonicalize().unwrap_or_else(|_| template.into());
    durable::read_expected(&place, &Expected::at_most(MAX_VARIABLES))
        .map_err(|error| trouble(&place, &error))
}

/// What a file of variables is.
pub(crate) fn expected(host: &Host) -> Expected {
    let (uid, _) = host.volumes.owner();
    Expected::at_most(MAX_VARIABLES).or_of(uid)
}

/// Whether there are any.
pub(crate) fn are_there(host: &Host, vm: VmId) -> Result<bool> {
    is_there(&place(host, vm)?)
}

fn is_there(place: &Path) -> Result<bool> {
    let found = within(place, |directory, name| directory.has(name))?;
    Ok(found.unwrap_or(false))
}

/// Writes the variables of a VM that does not run, and gives them to QEMU.
pub(crate) fn write(host: &Host, vm: VmId, content: &[u8]) -> Result<()> {
    if content.len() as u64 > MAX_VARIABLES {
        return Err(Trouble::refuse(
            ErrorCode::TooLarge,
            "the UEFI variables",
            format!("they have {} bytes", content.len()),
        ));
    }
    let place = place(host, vm)?;
    let (uid, gid) = host.volumes.owner();
    let access = Access::PRIVATE.owned_by(uid, gid);
    let (directory, name) = split(&place)?;
    SharedDirectory::open_or_make(directory, 0o755)
        .and_then(|directory| directory.replace(name, content, access))
        .map_err(|error| trouble(&place, &error))
}

/// Removes the variables of a VM that is gone, with what an arrival or a crash left of them.
pub(crate) fn remove(host: &Host, vm: VmId) -> Result<()> {
    for place in host.layout.nvram(vm) {
        within(&place, |directory, name| {
            let mut half = name.to_owned();
            half.push(".part");
            directory.remove_tree(half)?;
            directory.remove_tree(name)
        })?;
    }
    Ok(())
}

/// Does something in the directory of a path; none where there is no such directory.
fn within<T>(
    place: &Path,
    work: impl FnOnce(&SharedDirectory, &std::ffi::OsStr) -> io::Result<T>,
) -> Result<Option<T>> {
    let (directory, name) = split(place)?;
    SharedDirectory::open_if_there(directory)
        .and_then(|found| found.map(|found| work(&found, name)).transpose())
        .map_err(|error| trouble(place, &error))
}

fn split(place: &Path) -> Result<(&Path, &std::ffi::OsStr)> {
    match (place.parent(), place.file_name()) {
        (Some(directory), Some(name)) => Ok((directory, name)),
        _ => Err(trouble(place, &io::ErrorKind::InvalidInput.into())),
    }
}

fn trouble(place: &Path, error: &io::Error) -> Trouble {
    Trouble::file("the UEFI variables", PathBuf::from(place), error)
}
