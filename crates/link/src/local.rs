//! Unix sockets that have the right permissions from the first moment, and are removed with their owner.

use crate::dial::DialError;
use crate::patience::within;
use fleetward_durable::{SharedDirectory, Socket};
use nix::unistd::geteuid;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// Connections that wait to be accepted: as many as a server has at the same time. The kernel may allow fewer
/// (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// Pauses before a full queue is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Path and permissions of a Unix socket. The directory must exist.
#[derive(Debug, Clone)]
pub struct SocketSpec {
    /// The path; at most 107 bytes.
    pub path: PathBuf,
    /// The file's mode, for example 0o600.
    pub mode: u32,
    /// The account that the file is given to (numeric user and group), where it is not the process's own.
    pub owner: Option<(u32, u32)>,
}

impl SocketSpec {
    /// A socket for its owner alone, mode 0600. Others must not be able to write to its directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            mode: 0o600,
            owner: None,
        }
    }

    /// Gives the socket to an account (numeric user and group).
    pub fn with_owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    /// Sets another mode.
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Listens at the path. Replaces a socket that a dead process left; fails if a process answers there.
    pub(crate) fn listen(&self) -> io::Result<(UnixListener, SocketFile)> {
        remove_dead_socket(&self.path)?;
        let socket = UnixSocket::new_stream()?;
        socket.bind(&self.path)?;
        let file = SocketFile {
            path: self.path.clone(),
        };
        // Nobody can connect before `listen`, so the file is never open to more than it should be. Somebody else may write the
        // directory: what is opened to others is the socket that was made, not what lies in its place by now.
        Socket::open(&self.path, geteuid().as_raw())?.give(self.mode, self.owner)?;
        Ok((socket.listen(BACKLOG)?, file))
    }
}

/// Removes the socket's file when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a socket");
        }
    }
}

fn remove_dead_socket(path: &Path) -> io::Result<()> {
    let socket = match Socket::open(path, geteuid().as_raw()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    match std::os::unix::net::UnixStream::connect(socket.path()) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match SharedDirectory::open_if_there(directory)? {
        Some(directory) => directory.remove(name),
        None => Ok(()),
    }
}

/// Connects to a server on this machine, and waits at most `limit` for a place in its queue: while that is full, a connection
/// that does not block fails with `EAGAIN`.
///
/// Source: connect(2).
pub(crate) async fn connect_in_turn(path: &Path, limit: Duration) -> Result<UnixStream, DialError> {
    let address = path.display().to_string();
    let attempt = async {
        let mut pause = FIRST_PAUSE;
        loop {
            match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                other => return other,
            }
        }
    };
    match within(limit, attempt).await {
        Some(connected) => connected.map_err(|error| DialError::from_connect(&address, error)),
        None => Err(DialError::Timeout {
            address,
            after: limit,
        }),
    }
}

/// Connects to a socket of that user, in a directory that somebody else may write.
pub(crate) async fn connect(path: &Path, owner: u32) -> io::Result<UnixStream> {
    let socket = Socket::open(path, owner)?;
    UnixStream::connect(socket.path()).await
}
