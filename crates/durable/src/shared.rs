//! Files in a directory that somebody else may write: QEMU's, swtpm's, a user's.
//!
//! ```text
//!  walk to the directory ──► descriptor ── O_PATH|O_NOFOLLOW of one name ──► fstat: file, owner, one name, size ──► opened
//! ```
//! Whoever may write a directory can put anything under any name at any time: a link to a key of root's, a pipe that blocks
//! its reader for ever, a device, a file without end. So nothing is done by path here. A directory is held open; what has
//! a name in it is looked at by descriptor before a byte is read; owner and mode are given to a descriptor; new files are
//! made exclusively and renamed within descriptors. What is not as expected is refused with [`Unexpected`].

use crate::walk;
use crate::{Access, draft, missing_is_fine};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// What a file must be for its content to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The users that it may belong to; none: anybody, and it may have more than one name.
    owners: Option<Vec<u32>>,
    /// Largest size, in bytes.
    at_most: u64,
    /// Permissions that its owner must have.
    mode: u32,
}

impl Expected {
    /// Of root, or of this process's user, and of at most that many bytes.
    pub fn at_most(at_most: u64) -> Self {
        let own = nix::unistd::geteuid().as_raw();
        Self {
            owners: Some(vec![0, own]),
            at_most,
            mode: 0,
        }
    }

    /// Or of that user.
    pub fn or_of(mut self, uid: u32) -> Self {
        self.owners.get_or_insert_default().push(uid);
        self
    }

    /// With these permissions for its owner at least, such as 0o600: another program has to open it.
    pub const fn with_mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// A file, of whatever size and owner, with however many names: for directories in which only root makes names.
    pub const fn any() -> Self {
        Self {
            owners: None,
            at_most: u64::MAX,
            mode: 0,
        }
    }

    /// What is wrong with it.
    fn differs(&self, stat: &FileStat) -> Option<Is> {
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => {}
            SFlag::S_IFLNK => return Some(Is::Link),
            SFlag::S_IFDIR => return Some(Is::Directory),
            SFlag::S_IFIFO => return Some(Is::Pipe),
            SFlag::S_IFSOCK => return Some(Is::Socket),
            _ => return Some(Is::Device),
        }
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if let Some(owners) = &self.owners
            && let Some(is) = not_alone(stat, owners)
        {
            Some(is)
        } else if stat.st_mode & self.mode != self.mode {
            Some(Is::Closed {
                mode: stat.st_mode & 0o7777,
                wanted: self.mode,
            })
        } else if size > self.at_most {
            Some(Is::Larger {
                size,
                at_most: self.at_most,
            })
        } else {
            None
        }
    }
}

/// Whether it is somebody else's, or is something else under another name.
fn not_alone(stat: &FileStat, owners: &[u32]) -> Option<Is> {
    if !owners.contains(&stat.st_uid) {
        return Some(Is::Of {
            user: stat.st_uid,
            wanted: owners.last().copied().unwrap_or_default(),
        });
    }
    (stat.st_nlink != 1).then_some(Is::Named(stat.st_nlink))
}

/// What something is instead of the expected file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Is {
    #[error("a symbolic link")]
    Link,
    #[error("a directory")]
    Directory,
    #[error("a pipe")]
    Pipe,
    #[error("a socket")]
    Socket,
    #[error("a device")]
    Device,
    #[error("a file of user {user}, where one of user {wanted} is expected")]
    Of { user: u32, wanted: u32 },
    #[error("a file of mode {mode:04o}, where its owner needs {wanted:04o}")]
    Closed { mode: u32, wanted: u32 },
    #[error("a file that has {0} names (hard links)")]
    Named(u64),
    #[error("a file of {size} bytes, where at most {at_most} are expected")]
    Larger { size: u64, at_most: u64 },
    #[error("not the file that was written there")]
    Other,
}

/// Something lies under a name where a file of ours or none was expected. It was neither read nor written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} is {is}, and is not used")]
pub struct Unexpected {
    pub path: PathBuf,
    pub is: Is,
}

impl Unexpected {
    pub(crate) fn new(path: PathBuf, is: Is) -> Self {
        Self { path, is }
    }

    /// Whether it is a file like the expected one, which has the wrong owner or mode.
    pub const fn is_of_rights(&self) -> bool {
        matches!(self.is, Is::Of { .. } | Is::Closed { .. })
    }

    /// The reason of an error of this crate, where it is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<Unexpected> for io::Error {
    fn from(unexpected: Unexpected) -> Self {
        Self::new(io::ErrorKind::InvalidData, unexpected)
    }
}

/// A directory that somebody else may write, held open. Names are single: no path leads out of it.
#[derive(Debug)]
pub struct SharedDirectory {
    descriptor: OwnedFd,
    /// For messages only.
    path: PathBuf,
}

impl SharedDirectory {
    /// Opens it, following the administrator's symbolic links only.
    pub fn open(path: &Path) -> io::Result<Self> {
        let found = walk::directory(path)?;
        Self::readable(&found, OsStr::new("."), path.to_owned())
    }

    /// As [`open`](Self::open); none where it is missing.
    pub fn open_if_there(path: &Path) -> io::Result<Option<Self>> {
        none_if_missing(Self::open(path))
    }

    /// Opens, or first makes with that mode, a directory whose parents others may write, too.
    pub fn open_or_make(path: &Path, mode: u32) -> io::Result<Self> {
        match Self::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let parent = Self::open_or_make(parent, mode)?;
        match parent.make(name, mode) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(_) | Err(_) => parent.below(name),
        }
    }

    /// Opens a directory in it, through no link.
    pub fn below(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = single(name.as_ref())?;
        let path = self.path.join(name);
        match Self::readable(&self.descriptor, name, path.clone()) {
            Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
                Err(Unexpected::new(path, Is::Link).into())
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                let is = self.kind_of(name)?;
                Err(Unexpected::new(path, is).into())
            }
            other => other,
        }
    }

    fn readable(at: &OwnedFd, name: &OsStr, path: PathBuf) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let descriptor = openat(at, name, flags, Mode::empty())?;
        Ok(Self { descriptor, path })
    }

    /// Makes a directory in it, of that mode; whatever has the name already is an error.
    pub fn make(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Self> {
        let name = single(name.as_ref())?;
        mkdirat(&self.descriptor, name, Mode::from_bits_truncate(mode))?;
        let made = self.below(name)?;
        // What somebody put there in its place is not given another mode.
        let stat = fstat(&made.descriptor)?;
        let own = nix::unistd::geteuid().as_raw();
        if stat.st_uid != own {
            let is = Is::Of {
                user: stat.st_uid,
                wanted: own,
            };
            return Err(Unexpected::new(made.path, is).into());
        }
        made.set_mode(mode)?;
        self.sync()?;
        Ok(made)
    }

    /// Gives the directory itself to a user and a group.
    pub fn give(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        fchown(&self.descriptor, uid, gid)
    }

    /// Sets the mode of the directory itself.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        nix::sys::stat::fchmod(&self.descriptor, Mode::from_bits_truncate(mode))?;
        Ok(())
    }

    /// Whether anything has that name.
    pub fn has(&self, name: impl AsRef<OsStr>) -> io::Result<bool> {
        match self.stat(single(name.as_ref())?) {
            Ok(_) => Ok(true),
            Err(error) => missing_is_fine(error).map(|()| false),
        }
    }

    /// Opens a file for reading if it is as expected.
    pub fn file(&self, name: impl AsRef<OsStr>, expected: &Expected) -> io::Result<File> {
        let name = single(name.as_ref())?;
        let found = self.look(name)?;
        if let Some(is) = expected.differs(&fstat(&found)?) {
            return Err(Unexpected::new(self.path.join(name), is).into());
        }
        // The very file that was looked at, whatever has its name by now.
        OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(by_descriptor(&found))
    }

    /// The content of a file; none where nothing has that name.
    pub fn read(
        &self,
        name: impl AsRef<OsStr>,
        expected: &Expected,
    ) -> io::Result<Option<Vec<u8>>> {
        let name = name.as_ref();
        let Some(file) = none_if_missing(self.file(name, expected))? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        // It may grow while it is read.
        file.take(expected.at_most.saturating_add(1))
            .read_to_end(&mut content)?;
        let (size, at_most) = (content.len() as u64, expected.at_most);
        if size > at_most {
            let is = Is::Larger { size, at_most };
            return Err(Unexpected::new(self.path.join(name), is).into());
        }
        Ok(Some(content))
    }

    /// Puts a file with that content under that name, durably: in the place of whatever has the name, which is never followed,
    /// except that a directory is refused.
    pub fn replace(
        &self,
        name: impl AsRef<OsStr>,
        content: &[u8],
        access: Access,
    ) -> io::Result<()> {
        let name = single(name.as_ref())?;
        if none_if_missing(self.kind_of(name))? == Some(Is::Directory) {
            return Err(Unexpected::new(self.path.join(name), Is::Directory).into());
        }
        let draft = draft::name_for(name);
        let mut file = self.new_file(&draft)?;
        let put = file
            .write_all(content)
            .and_then(|()| draft::finish(&file, access))
            .and_then(|()| self.rename(&draft, self, name))
            .and_then(|()| self.is_that(name, &file));
        if put.is_err() {
            // The reason is what matters; a sweep removes what stays.
            let _ = self.remove(&draft);
        }
        put
    }

    /// A new file of mode 0600; whatever has the name already is an error.
    fn new_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let name = single(name.as_ref())?;
        let made = openat(
            &self.descriptor,
            name,
            flags,
            Mode::from_bits_truncate(0o600),
        )?;
        let file = File::from(made);
        // Tells a sweep that it is in use.
        let _ = file.try_lock();
        Ok(file)
    }

    /// Whether a name is that of an open file.
    fn is_that(&self, name: &OsStr, file: &File) -> io::Result<()> {
        let (there, ours) = (self.stat(name)?, fstat(file)?);
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) {
            return Ok(());
        }
        Err(Unexpected::new(self.path.join(name), Is::Other).into())
    }

    /// Renames, within this directory or into another, durably.
    pub fn rename(
        &self,
        from: impl AsRef<OsStr>,
        to: &Self,
        name: impl AsRef<OsStr>,
    ) -> io::Result<()> {
        let (from, name) = (single(from.as_ref())?, single(name.as_ref())?);
        renameat(&self.descriptor, from, &to.descriptor, name)?;
        to.sync()?;
        if self.descriptor.as_raw_fd() == to.descriptor.as_raw_fd() {
            return Ok(());
        }
        self.sync()
    }

    /// Removes a name; what it leads to stays. A missing one is no error, and a directory is refused.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = single(name.as_ref())?;
        match unlinkat(&self.descriptor, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => self.sync(),
            Err(Errno::EISDIR) => Err(Unexpected::new(self.path.join(name), Is::Directory).into()),
            Err(error) => missing_is_fine(error.into()),
        }
    }

    /// Removes a name, and if it is a directory all below it, through no link. A missing one is no error.
    pub fn remove_tree(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = single(name.as_ref())?;
        match self.remove(name) {
            Err(error) if Unexpected::of(&error).is_some() => {}
            other => return other,
        }
        // The standard library goes by descriptor below what it is given, and follows no link there.
        match fs::remove_dir_all(by_descriptor(&self.descriptor).join(name)) {
            Ok(()) => self.sync(),
            Err(error) => missing_is_fine(error),
        }
    }

    /// Removes what a crash left of [`replace`](Self::replace) in it. Nothing is overwritten: files here are not ours alone.
    pub fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(by_descriptor(&self.descriptor))? {
            let name = entry?.file_name();
            if name.to_str().is_some_and(crate::sweep::is_draft)
                && let Ok(file) = self.file(&name, &Expected::at_most(u64::MAX))
                && !matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock))
            {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// A socket of that user.
    pub fn socket(&self, name: impl AsRef<OsStr>, owner: u32) -> io::Result<Socket> {
        let name = single(name.as_ref())?;
        let found = self.look(name)?;
        let stat = fstat(&found)?;
        let is = match Expected::any().differs(&stat) {
            Some(Is::Socket) => not_alone(&stat, &[owner]),
            other => Some(other.unwrap_or(Is::Other)),
        };
        match is {
            Some(is) => Err(Unexpected::new(self.path.join(name), is).into()),
            None => Ok(Socket(found)),
        }
    }

    /// What has a name, to be looked at only.
    fn look(&self, name: &OsStr) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.descriptor, name, flags, Mode::empty())?)
    }

    /// Brings the directory's entries to the disk.
    pub fn sync(&self) -> io::Result<()> {
        nix::unistd::fsync(&self.descriptor)?;
        Ok(())
    }

    /// Where it was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn stat(&self, name: &OsStr) -> io::Result<FileStat> {
        Ok(fstatat(
            &self.descriptor,
            name,
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?)
    }

    /// What has that name; a plain file is [`Is::Other`].
    fn kind_of(&self, name: &OsStr) -> io::Result<Is> {
        let differs = Expected::any().differs(&self.stat(name)?);
        Ok(differs.unwrap_or(Is::Other))
    }
}

impl AsFd for SharedDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The file of a Unix socket, whatever has its name by now.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Finds it by its path as [`SharedDirectory::socket`] does.
    pub fn open(path: &Path, owner: u32) -> io::Result<Self> {
        let (directory, name) = split(path)?;
        directory.socket(name, owner)
    }

    /// A path to connect to that leads to it and nothing else, as long as this lives.
    pub fn path(&self) -> PathBuf {
        by_descriptor(&self.0)
    }

    /// Sets its mode, and its user and group where they are said.
    pub fn give(&self, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
        fs::set_permissions(self.path(), Permissions::from_mode(mode))?;
        let (uid, gid) = owner.unzip();
        std::os::unix::fs::chown(self.path(), uid, gid)
    }
}

/// Opens a file by its path as [`SharedDirectory::file`] does.
pub fn open_expected(path: &Path, expected: &Expected) -> io::Result<File> {
    let (directory, name) = split(path)?;
    directory.file(name, expected)
}

/// Reads a file by its path as [`SharedDirectory::read`] does; none where it or its directory is missing.
pub fn read_expected(path: &Path, expected: &Expected) -> io::Result<Option<Vec<u8>>> {
    let Some((directory, name)) = none_if_missing(split(path))? else {
        return Ok(None);
    };
    directory.read(name, expected)
}

/// Opens a terminal (the slave of a pty) of that user for reading and writing without blocking, and nothing else.
pub fn open_terminal(path: &Path, owner: u32) -> io::Result<File> {
    let (directory, name) = split(path)?;
    let found = directory.look(name)?;
    let stat = fstat(&found)?;
    let is = match Expected::any().differs(&stat) {
        Some(Is::Device) if is_pty(&stat) => not_alone(&stat, &[owner]),
        other => Some(other.unwrap_or(Is::Other)),
    };
    if let Some(is) = is {
        return Err(Unexpected::new(path.to_owned(), is).into());
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(by_descriptor(&found))
}

/// Major numbers of pseudo-terminals' slaves: Linux's Documentation/admin-guide/devices.txt.
fn is_pty(stat: &FileStat) -> bool {
    let character = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    character && (136..=143).contains(&nix::sys::stat::major(stat.st_rdev))
}

/// The directory of a path, held open, and the name in it.
fn split(path: &Path) -> io::Result<(SharedDirectory, &OsStr)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((SharedDirectory::open(&crate::parent(path))?, name))
}

/// A name of one component that is not `.` or `..`.
fn single(name: &OsStr) -> io::Result<&OsStr> {
    let bytes = name.as_encoded_bytes();
    let one = !bytes.is_empty() && !bytes.contains(&b'/') && bytes != b"." && bytes != b"..";
    one.then_some(name)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// A path that leads to what is open, and to nothing else.
fn by_descriptor(open: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()))
}

fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) => missing_is_fine(error).map(|()| None),
    }
}
