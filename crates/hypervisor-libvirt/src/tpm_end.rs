//! Ends the TPM of a domain in good order before its power is cut.
//!
//! A TPM counts an end without `TPM2_Shutdown` as a wrong guess, once an object with a password was used since its start; three
//! of them lock it. swtpm sends that command by itself from version 0.8 on. An older one does not, has no control command
//! for it, and listens to one peer: QEMU. A TPM that is started once more afterwards has counted already (tried with 0.7.1). So
//! the command goes the way of the guest's own: through QEMU's end of the data channel, of which this process takes a
//! copy (`pidfd_getfd`) while the guest's processors stand still.
//!
//! ```text
//!   QEMU ── data channel (a pair of sockets that QEMU made) ──► swtpm
//!              ▲ copy of QEMU's end: TPM2_Shutdown(CLEAR), and its answer
//! ```
//! Only for a domain that is about to be destroyed: an answer that QEMU waits for could be read here. Whatever fails, the
//! power is cut all the same, and the TPM counts.
//!
//! Source: TPM 2.0 Library, part 1, section 19.8 (dictionary attacks), part 3, section 9.4 (`TPM2_Shutdown`).

use crate::descriptors;
use fleetward_durable::{self as durable, Expected};
use fleetward_model::VmId;
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// `TPM2_Shutdown(TPM_SU_CLEAR)`.
const SHUTDOWN: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 0];
/// Its answer: `TPM_RC_SUCCESS`, and nothing else.
const DONE: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];
/// How long a TPM may take: it may have a command to end before.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);

/// Lets the TPM shut down. The domain's processors stand still.
///
/// # Errors
/// QEMU is not found, has no such channel, or its TPM does not answer in time.
pub(crate) fn shut_down(pid_file: &Path, id: VmId) -> io::Result<()> {
    let pid = qemu(pid_file, id)?;
    let channel = data_channel(pid)?;
    let descriptor = channel.as_raw_fd();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    if send(descriptor, &SHUTDOWN, flags)? != SHUTDOWN.len() {
        return Err(other("the TPM's channel is full"));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut answer = [0; 4096];
        match recv(descriptor, &mut answer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // Before it the answer to a command of the guest's may come.
            Ok(length) if answer[..length].ends_with(&DONE) => return Ok(()),
            Ok(_) | Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(PAUSE);
    }
}

/// The process, as libvirt has written it down, if it runs this domain.
fn qemu(pid_file: &Path, id: VmId) -> io::Result<i32> {
    let content = durable::read_expected(pid_file, &Expected::at_most(32))?;
    let content = content.ok_or_else(|| other("libvirt has no pid file of it"))?;
    let text = std::str::from_utf8(&content).unwrap_or_default();
    let pid = text
        .trim()
        .parse()
        .map_err(|_| other("libvirt's pid file holds no number"))?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    let id = id.to_string();
    match command
        .split(|byte| *byte == 0)
        .any(|word| word == id.as_bytes())
    {
        true => Ok(pid),
        false => Err(other("the process of libvirt's pid file is not the VM's")),
    }
}

/// QEMU's end of the pair that it made for its TPM: the one connected socket without a name whose other end it made, too.
fn data_channel(pid: i32) -> io::Result<OwnedFd> {
    let process = Pid::from_raw(pid).ok_or_else(|| other("no process"))?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let mut found = None;
    for copy in descriptors::sockets(&process, pid.unsigned_abs())? {
        if is_data_channel(&copy, pid) && found.replace(copy).is_some() {
            return Err(other(
                "QEMU has more than one channel that could be its TPM's",
            ));
        }
    }
    found.ok_or_else(|| other("QEMU has no channel that could be its TPM's"))
}

fn is_data_channel(socket: &OwnedFd, pid: i32) -> bool {
    let made_by = getsockopt(&socket.as_fd(), sockopt::PeerCredentials);
    if made_by.is_err() || made_by.is_ok_and(|peer| peer.pid() != pid) {
        return false;
    }
    let Ok(copy) = socket.try_clone() else {
        return false;
    };
    let stream = UnixStream::from(copy);
    let unnamed = |address: io::Result<std::os::unix::net::SocketAddr>| {
        address.is_ok_and(|address| address.is_unnamed())
    };
    unnamed(stream.local_addr()) && unnamed(stream.peer_addr())
}

fn other(why: &'static str) -> io::Error {
    io::Error::other(why)
}
