//! What a crash left of files under construction.
//!
//! Only names that a [`Draft`](crate::Draft) gives, or that the writers before this crate gave, are touched: a UUID and
//! `.new` at the end. A draft that a living process has locked stays.

use crate::draft::ENDING;
use crate::wipe;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Removes the drafts in a directory that no process works on; returns how many. Their content is overwritten, because a
/// draft may hold a key. A missing directory is no error.
pub fn sweep(directory: &Path) -> io::Result<usize> {
    sweep_where(directory, is_draft)
}

/// The same for the drafts of one file, in a directory that holds files of others, too.
pub fn sweep_file(path: &Path) -> io::Result<usize> {
    let Some(own) = path.file_name().and_then(|name| name.to_str()) else {
        return Ok(0);
    };
    let prefix = format!(".{own}.");
    let directory = crate::parent(path);
    sweep_where(&directory, |name| {
        name.strip_prefix(&prefix).is_some_and(is_draft)
    })
}

/// The same for a directory and all below it, through no symbolic link.
pub fn sweep_tree(directory: &Path) -> io::Result<usize> {
    let mut swept = sweep(directory)?;
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(swept),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            swept += sweep_tree(&entry.path())?;
        }
    }
    Ok(swept)
}

fn sweep_where(directory: &Path, ours: impl Fn(&str) -> bool) -> io::Result<usize> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut swept = 0;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_file()
            && name.to_str().is_some_and(&ours)
            && !is_in_use(&entry.path())?
        {
            wipe(&entry.path())?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Whether a name ends with a UUID, in either of its two forms, and `.new`.
pub(crate) fn is_draft(name: &str) -> bool {
    let Some(rest) = name.strip_suffix(ENDING) else {
        return false;
    };
    let id = rest.rsplit('.').next().unwrap_or(rest);
    matches!(id.len(), 32 | 36) && id.parse::<uuid::Uuid>().is_ok()
}

fn is_in_use(path: &Path) -> io::Result<bool> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path);
    let file = match file {
        // Put in its place meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    Ok(matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
}
