//! Atomic file writes: after a crash a file is complete or absent. Private files are never readable by others, not
//! even briefly.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Mode 0600.
    Owner,
    /// Mode 0644.
    Everybody,
}

/// Writes `path`, replacing what was there.
pub(crate) fn replace(path: &Path, content: &[u8], readers: Readers) -> io::Result<()> {
    let temporary = write_beside(path, content, readers)?;
    fs::rename(&temporary, path)?;
    sync_directory(path)
}

/// Writes `path` unless it exists, and returns whether it did. Of several concurrent writers exactly one succeeds.
pub(crate) fn create(path: &Path, content: &[u8], readers: Readers) -> io::Result<bool> {
    let temporary = write_beside(path, content, readers)?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => sync_directory(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_beside(path: &Path, content: &[u8], readers: Readers) -> io::Result<PathBuf> {
    let temporary = path.with_extension(format!("{}.new", uuid::Uuid::new_v4().simple()));
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Everybody => 0o644,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // The write error matters more than a leftover that the next start ignores.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(temporary)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_creator_wins_and_nothing_else_stays() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("key.pem");
        assert!(create(&path, b"one", Readers::Owner).expect("create"));
        assert!(!create(&path, b"two", Readers::Owner).expect("create"));
        assert_eq!(fs::read(&path).expect("read"), b"one");

        replace(&path, b"three", Readers::Owner).expect("replace");
        assert_eq!(fs::read(&path).expect("read"), b"three");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
