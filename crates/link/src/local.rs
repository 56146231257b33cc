//! Unix sockets that have the right permissions from the first moment, and are removed with their owner.

use nix::unistd::{Gid, chown};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixSocket};

const BACKLOG: u32 = 128;

/// Path and permissions of a Unix socket. The directory must exist.
#[derive(Debug, Clone)]
pub struct SocketSpec {
    /// The path; at most 107 bytes.
    pub path: PathBuf,
    /// The file's mode, for example 0o660.
    pub mode: u32,
    /// The file's group, where it is not the process's own.
    pub group: Option<u32>,
}

impl SocketSpec {
    /// A socket for the owner and the process's group, mode 0660.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            mode: 0o660,
            group: None,
        }
    }

    /// Gives the socket to a group (numeric id).
    pub fn with_group(mut self, group: u32) -> Self {
        self.group = Some(group);
        self
    }

    /// Sets another mode.
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Listens at the path. Replaces a socket that a dead process left; fails if a process answers there.
    #[expect(
        clippy::disallowed_methods,
        reason = "a socket, which no restart keeps"
    )]
    pub(crate) fn listen(&self) -> io::Result<(UnixListener, SocketFile)> {
        remove_dead_socket(&self.path)?;
        let socket = UnixSocket::new_stream()?;
        socket.bind(&self.path)?;
        let file = SocketFile {
            path: self.path.clone(),
        };
        // Nobody can connect before `listen`, so the file is never open to more than it should be.
        fs::set_permissions(&self.path, fs::Permissions::from_mode(self.mode))?;
        if let Some(group) = self.group {
            chown(&self.path, None, Some(Gid::from_raw(group)))?;
        }
        Ok((socket.listen(BACKLOG)?, file))
    }
}

/// Removes the socket's file when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
}

impl Drop for SocketFile {
    #[expect(
        clippy::disallowed_methods,
        reason = "a socket, which no restart keeps"
    )]
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a socket");
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a socket, which no restart keeps"
)]
fn remove_dead_socket(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !metadata.file_type().is_socket() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}
