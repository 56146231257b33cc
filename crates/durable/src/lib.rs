//! Files that survive a crash: after `kill -9` or a power cut each one holds its old content or its new content, whole.
//!
//! ```text
//!   Draft::beside ──► .NAME.UUID.new (0600, locked) ── content, owner, mode, fsync ──► rename to NAME ──► fsync of the directory
//!                            └── a crash here leaves it: sweep() removes what nobody has locked
//! ```
//! This crate owns every write to a file that must last. The linter forbids `std::fs` and `tokio::fs` functions that write
//! in the other crates (`clippy.toml`). It knows nothing of what the files hold.
//!
//! Nobody else writes the directories of these files. For those that others may write there is [`SharedDirectory`].
//!
//! Functions here block; [`background`] has those that async code needs.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "the one crate that makes, renames and removes files; everybody else calls it"
    )
)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests make and damage files as they like"
    )
)]

pub mod background;
mod draft;
mod point;
mod shared;
mod sweep;
mod walk;

pub use draft::Draft;
pub use shared::{
    Expected, Is, SharedDirectory, Socket, Unexpected, open_expected, open_terminal, read_expected,
};
pub use sweep::{sweep, sweep_file, sweep_tree};
pub use walk::exposed;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use point::Point;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The mode and the owner that a file gets before it appears under its name, whatever the process's umask is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Access {
    /// Mode 0600, owned by the process.
    pub const PRIVATE: Self = Self::mode(0o600);
    /// Mode 0644, owned by the process.
    pub const PUBLIC: Self = Self::mode(0o644);

    /// That mode, owned by the process.
    pub const fn mode(mode: u32) -> Self {
        Self { mode, owner: None }
    }

    /// The same mode, owned by that user and group.
    pub const fn owned_by(self, uid: u32, gid: u32) -> Self {
        Self {
            owner: Some((uid, gid)),
            ..self
        }
    }
}

/// Replaces the content of `path`, or makes the file.
pub fn replace(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    draft_of(path, content, access)?.put(path)
}

/// Replaces the content of `path` by a JSON document.
pub fn replace_json(path: &Path, value: &impl Serialize, access: Access) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?, access)
}

/// Makes `path` unless it exists; returns whether it did. Of several writers exactly one succeeds.
pub fn create(path: &Path, content: &[u8], access: Access) -> io::Result<bool> {
    draft_of(path, content, access)?.put_new(path)
}

fn draft_of(path: &Path, content: &[u8], access: Access) -> io::Result<Draft> {
    let draft = Draft::beside(path, access)?;
    point::pass(Point::Created)?;
    draft.file().write_all(content)?;
    point::pass(Point::Written)?;
    Ok(draft)
}

/// Reads a file that may be missing.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a JSON document that may be missing. A document that cannot be parsed is an error.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    read(path)?
        .map(|content| serde_json::from_slice(&content).map_err(io::Error::from))
        .transpose()
}

/// Removes a file. A missing file is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) => missing_is_fine(error),
    }
}

/// Overwrites a file that holds a secret, then removes it. A missing file is no error.
///
/// The content of a file that has a second name is left alone. On a disk that writes to other places than those it read
/// from (copy on write, flash), overwriting may leave the old content readable.
pub fn wipe(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)
    {
        Ok(file) => file,
        Err(error) => return missing_is_fine(error),
    };
    let found = file.metadata()?;
    if found.is_file() && found.nlink() == 1 {
        io::copy(&mut io::repeat(0).take(found.len()), &mut file)?;
        file.sync_all()?;
    }
    remove(path)
}

/// Removes a file whose loss or survival does not matter, such as a half-written one; failures are ignored.
pub fn discard(path: &Path) {
    let _ = fs::remove_file(path);
}

/// Removes a directory with everything in it. A missing directory is no error.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => sync_parent(path),
        Err(error) => missing_is_fine(error),
    }
}

/// Removes a directory if it is empty; returns whether it is gone.
pub fn remove_if_empty(path: &Path) -> io::Result<bool> {
    match fs::remove_dir(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a directory of that mode, with its parents. An existing directory gets the mode.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    let made: Vec<&Path> = path
        .ancestors()
        .take_while(|at| !at.as_os_str().is_empty() && !at.exists())
        .collect();
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    made.into_iter().rev().try_for_each(sync_parent)
}

/// Makes a directory of that mode, with its parents, where it is missing. An existing one keeps its mode.
pub fn ensure_directory(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_directory(path, mode)
}

/// Makes a directory of that mode; an existing one is an error.
pub fn make_new_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    sync_parent(path)
}

/// Renames a file or a directory whose content is on the disk, replacing the file `to`.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    point::pass(Point::Renamed)?;
    sync_parent(to)?;
    if parent(from) == parent(to) {
        return Ok(());
    }
    sync_parent(from)
}

/// Brings the content of a file that another program wrote to the disk, then renames it.
pub fn put(from: &Path, to: &Path) -> io::Result<()> {
    sync(from)?;
    rename(from, to)
}

/// Gives a file a second name; an existing file of that name is an error.
pub fn link(file: &Path, name: &Path) -> io::Result<()> {
    fs::hard_link(file, name)?;
    sync_parent(name)
}

/// Brings the content of a file or the entries of a directory to the disk.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Brings the entry of `path` in its directory to the disk.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    point::pass(Point::ParentSynced)?;
    sync(&parent(path))
}

/// Makes a file of mode 0600 for reading and writing, in the place of one that an earlier attempt left.
pub fn create_fresh(path: &Path) -> io::Result<File> {
    remove(path)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// A lock that one process at a time holds. It ends with the process, or when this is dropped.
///
/// Dropping it unlocks the open file itself. Closing would not be enough: a child that another thread is starting has
/// the same open file from its fork until its exec, and would hold the lock for that long.
pub type Lock = Flock<File>;

/// Takes the lock of the file at `path`, if nobody has it; gives back the file otherwise.
///
/// The file is made (mode 0600) when it is missing, and never opened through a symbolic link.
pub fn try_lock(path: &Path) -> io::Result<Result<Lock, File>> {
    match Flock::lock(open_lock(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Ok(lock)),
        Err((file, Errno::EWOULDBLOCK)) => Ok(Err(file)),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// As [`try_lock`], but waits until the lock is free.
pub fn lock(path: &Path) -> io::Result<Lock> {
    Flock::lock(open_lock(path)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
}

/// Whether a write failed because the disk or the user's quota is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) => PathBuf::from("."),
        None => PathBuf::from("/"),
    }
}

fn missing_is_fine(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests;
