//! A file under construction.

use crate::point::{self, Point};
use crate::{Access, parent, rename, sync_parent};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// How the name of a draft ends.
pub(crate) const ENDING: &str = ".new";

/// A file that is written beside its place and removed unless it is put there. Until then only its owner can read it.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    file: File,
    access: Access,
}

impl Draft {
    /// A draft of `place`.
    pub fn beside(place: &Path, access: Access) -> io::Result<Self> {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        Self::named(&parent(place), &name, access)
    }

    /// A draft in a directory, of a file whose name is known only when its content is.
    pub fn within(directory: &Path, access: Access) -> io::Result<Self> {
        Self::named(directory, "draft", access)
    }

    fn named(directory: &Path, name: &str, access: Access) -> io::Result<Self> {
        let path = directory.join(name_for(name.as_ref()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        // Tells a sweep that the file is in use. Where a file system has no locks, sweeping must wait for this process's end.
        let _ = file.try_lock();
        Ok(Self { path, file, access })
    }

    /// Where the draft lies now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts the file in its place, replacing what is there. It is on the disk when this returns.
    pub fn put(self, place: &Path) -> io::Result<()> {
        finish(&self.file, self.access)?;
        rename(&self.path, place)
    }

    /// Puts the file in its place unless something has that name; returns whether it did.
    pub fn put_new(self, place: &Path) -> io::Result<bool> {
        finish(&self.file, self.access)?;
        let moved = renameat2(
            AT_FDCWD,
            &self.path,
            AT_FDCWD,
            place,
            RenameFlags::RENAME_NOREPLACE,
        );
        let moved = match moved {
            // File systems without that flag, such as NFS, have hard links.
            Err(Errno::EINVAL) => fs::hard_link(&self.path, place),
            other => other.map_err(io::Error::from),
        };
        match moved {
            Ok(()) => sync_parent(place).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What a draft of that file is called.
pub(crate) fn name_for(name: &OsStr) -> OsString {
    let id = uuid::Uuid::new_v4().simple();
    format!(".{}.{id}{ENDING}", name.to_string_lossy()).into()
}

/// Owner, mode, then everything to the disk.
pub(crate) fn finish(file: &File, access: Access) -> io::Result<()> {
    if let Some((uid, gid)) = access.owner {
        fchown(file, Some(uid), Some(gid))?;
    }
    file.set_permissions(Permissions::from_mode(access.mode))?;
    file.sync_all()?;
    point::pass(Point::Synced)
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a rename nothing has that name; the name is unique, so it is nobody else's file.
        let _ = fs::remove_file(&self.path);
    }
}
