//! Overlays and their bases: which volumes build on which, and which bases are no longer needed.
//!
//! The headers of the files are the only record of this (qcow2: QEMU's docs/interop/qcow2.txt), so there is no counter
//! that could be wrong, and hosts that share a directory see the same. A header names a base by its file name alone;
//! the base is in the same directory. A frozen base has no write permission: QEMU does not run as root and cannot open
//! it for writing, whatever a definition says.
//!
//! An agent that makes an overlay, or looks for unneeded bases, holds the directory's lock. The lock works across
//! hosts.

use crate::owner::Owner;
use crate::volumes::{bad, blocking, file_error, open_plain, read_head};
use fleetward_durable as durable;
use fleetward_hypervisor::{Error, MAX_BASES, Result};
use fleetward_model::image::{self, BaseName, Content, NamesOnly};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Beside the volumes; hidden, as the pool's marker is.
const LOCK: &str = ".fleetward-links";

const ANY_WRITE: u32 = 0o222;
const READ_ONLY: u32 = 0o400;

/// The volumes below `path`, nearest first.
pub(crate) fn bases(path: &Path) -> Result<Vec<PathBuf>> {
    let mut below = Vec::new();
    let mut next = base_of(path)?;
    while let Some(base) = next {
        if below.len() == MAX_BASES || base == path || below.contains(&base) {
            return Err(bad(
                path,
                format!("it builds on itself, or on more than {MAX_BASES} volumes"),
            ));
        }
        next = base_of(&base)?;
        below.push(base);
    }
    Ok(below)
}

/// The volume that the file's header names as its base, in the same directory.
fn base_of(path: &Path) -> Result<Option<PathBuf>> {
    let mut file = open_plain(path)?;
    let Some(name) = base_name(&mut file, path)? else {
        return Ok(None);
    };
    let name = image::plain_base(&name)
        .ok_or_else(|| bad(path, "it refers to a file that is no volume beside it"))?;
    Ok(Some(path.with_file_name(name)))
}

/// The name of the base in a header, as it stands there. None in a file that is not qcow2.
fn base_name(file: &mut File, path: &Path) -> Result<Option<Vec<u8>>> {
    let Content::Qcow2(header) = read_head::<NamesOnly>(file, path)? else {
        return Ok(None);
    };
    let Some(BaseName { offset, length }) = header.base else {
        return Ok(None);
    };
    let mut name = vec![0; length as usize];
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(&mut name))
        .map_err(file_error("read", path))?;
    Ok(Some(name))
}

/// Held while overlays of a directory are made or removed.
pub(crate) struct LinksLock(
    #[expect(dead_code, reason = "held, and let go when dropped")] durable::Lock,
);

/// Waits for the lock of the directory that holds `path`.
pub(crate) async fn lock_links(path: &Path) -> Result<LinksLock> {
    let path = path.to_owned();
    blocking(move || lock_now(&path)).await
}

fn lock_now(path: &Path) -> Result<LinksLock> {
    let place = path.with_file_name(LOCK);
    durable::lock(&place)
        .map(LinksLock)
        .map_err(file_error("lock", &place))
}

/// Takes every permission to write away, durably.
pub(crate) fn freeze(path: &Path) -> Result<()> {
    let file = open_plain(path)?;
    let owner = Owner::qemu();
    std::os::unix::fs::fchown(&file, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))
        .and_then(|()| file.set_permissions(Permissions::from_mode(READ_ONLY)))
        .and_then(|()| file.sync_all())
        .map_err(file_error("freeze", path))
}

pub(crate) fn is_frozen(path: &Path) -> Result<bool> {
    let found = open_plain(path)?
        .metadata()
        .map_err(file_error("look at", path))?;
    Ok(found.permissions().mode() & ANY_WRITE == 0)
}

/// Removes a volume with the bases that nobody else builds on. One that others build on stays.
pub(crate) fn delete(path: &Path) -> Result<()> {
    let missing = |error: &Error| matches!(error, Error::File { source, .. } if source.kind() == io::ErrorKind::NotFound);
    let alone = match (bases(path), is_frozen(path)) {
        (Ok(below), Ok(frozen)) => below.is_empty() && !frozen,
        (Err(error), _) | (_, Err(error)) if missing(&error) => !path_exists(path),
        // What is no volume, or leads nowhere, takes nothing with it.
        _ => true,
    };
    if alone {
        return remove(path);
    }
    let _lock = lock_now(path)?;
    // A base may be missing: then the chain ends there, and there is nothing to remove.
    let mut next = Some(path.to_owned());
    let mut first = true;
    while let Some(volume) = next {
        let frozen = match is_frozen(&volume) {
            Ok(frozen) => frozen,
            Err(error) if missing(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let stays = match (first, frozen) {
            (_, true) => is_needed(&volume),
            (true, false) => false,
            // Below the first, what is not frozen is somebody's own disk.
            (false, false) => true,
        };
        if stays {
            return Ok(());
        }
        next = base_of(&volume)?;
        remove(&volume)?;
        first = false;
    }
    Ok(())
}

/// In doubt it is: a base too many costs room, one too few costs VMs.
fn is_needed(base: &Path) -> bool {
    is_built_on(base).unwrap_or_else(|error| {
        let base = base.display();
        tracing::warn!(%base, %error, "a base stays: who builds on it cannot be seen");
        true
    })
}

/// Whether a volume of the directory names this one as its base.
fn is_built_on(base: &Path) -> Result<bool> {
    let directory = base.parent().unwrap_or(Path::new("/"));
    let unreadable = file_error("read", directory);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return Err(unreadable(error)),
    };
    let name = base.file_name().map(|name| name.as_encoded_bytes());
    for entry in entries {
        let entry = entry.map_err(file_error("read", directory))?;
        let path = entry.path();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || path == base {
            continue;
        }
        let mut file = match open_plain(&path) {
            Ok(file) => file,
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let found = base_name(&mut file, &path)?;
        if found.as_deref() == name {
            return Ok(true);
        }
    }
    Ok(false)
}

fn remove(path: &Path) -> Result<()> {
    durable::remove(path).map_err(file_error("remove", path))
}

fn path_exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
