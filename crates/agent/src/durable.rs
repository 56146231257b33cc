//! Atomic file writes: after a crash a file is complete or absent. Files are private unless requested otherwise.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Replaces `path`, mode 0600, and does not return before it is on the disk.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.new", uuid::Uuid::new_v4().simple()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The error of the write is the one that matters.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_parent(path)
}

/// The same for a JSON document.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write(path, &serde_json::to_vec(value)?)
}

/// Reads a file that may be missing.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a JSON document that may be missing. One that cannot be understood is an error, not absent.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    read(path)?
        .map(|content| serde_json::from_slice(&content).map_err(io::Error::from))
        .transpose()
}

/// Removes a file; a missing one is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a file that holds a secret: its content is overwritten first, unless the file has another name as well, whose
/// content it is. On a disk that writes elsewhere than it was (copy on write, flash), overwriting is an attempt. A missing
/// file is fine.
pub(crate) fn wipe(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    if found.nlink() == 1 {
        io::copy(&mut io::repeat(0).take(found.len()), &mut file)?;
        file.sync_all()?;
    }
    remove(path)
}

/// Removes a directory with what is in it; a missing one is fine.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory of that mode, parents included, whatever the process's mask is. An existing one gets the mode.
pub(crate) fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Makes what happened in a file's directory durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wiped_file_is_overwritten_and_one_with_a_second_name_is_not() {
        let dir = tempfile::tempdir().expect("directory");
        let (path, other) = (dir.path().join("key"), dir.path().join("other"));
        write(&path, b"secret").expect("write");
        fs::hard_link(&path, &other).expect("link");
        wipe(&other).expect("wipe");
        assert_eq!(read(&path).expect("read").as_deref(), Some(&b"secret"[..]));
        // What a handle from before sees is what was on the disk.
        let mut before = File::open(&path).expect("open");
        wipe(&path).expect("wipe");
        wipe(&path).expect("twice");
        let mut content = Vec::new();
        before.read_to_end(&mut content).expect("read");
        assert_eq!(content, [0; 6]);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_replaced_file_is_private_and_alone() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("record.json");
        write(&path, b"1").expect("write");
        write(&path, b"2").expect("write");
        assert_eq!(read(&path).expect("read").as_deref(), Some(&b"2"[..]));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        remove(&path).expect("remove");
        remove(&path).expect("twice");
        assert_eq!(read(&path).expect("read"), None);
    }
}
