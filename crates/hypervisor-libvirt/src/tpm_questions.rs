//! What QEMU has asked a TPM's process, where that does not answer.
//!
//! At the switch-over of a migration QEMU waits for its TPM without a limit: for the answer to a command of the guest's, then
//! for the state. While it waits it does nothing else, so the guest stands still, and an abort does not get through.
//!
//! ```text
//!            ┌─ data: a pair of sockets ──────────────┐   unread for a second: taken out of swtpm's end (`pidfd_getfd`),
//!   QEMU ◄───┤                                        ├─► swtpm          and answered there in swtpm's place
//!            └─ control: swtpm's socket with a name ──┘   read, no answer: both ends are shut, and swtpm is killed
//! ```
//! A question is taken whole or not at all, and each channel has one at a time. So swtpm has either read it, and answers by
//! itself, or never hears of it. Answers have fixed bytes, and what was asked is shown to nobody.
//!
//! Tried with QEMU 10.0 and swtpm 0.7.1: QEMU gives the migration up, and the guest goes on within a second.
//!
//! Source: TPM 2.0 Library, part 1, section 18 (structure of commands and answers), part 2, section 6.6.3 (`TPM_RC_RETRY`);
//! `CMD_GET_STATEBLOB` and `struct ptm_getstate` in swtpm's `tpm_ioctl.h`.

use crate::descriptors;
use crate::tpm_process::{self, Place};
use fleetward_hypervisor::TpmAttention;
use fleetward_model::VmId;
use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, getsockopt, recv, send, shutdown, sockopt};
use rustix::process::{Signal, pidfd_send_signal};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use zeroize::Zeroizing;

/// A TPM that answers has read a question long before.
const SETTLE: Duration = Duration::from_secs(1);
/// More than any question is long.
const LONGEST: usize = 8192;

/// The request for a part of the TPM's state: its number, which part, and two more numbers.
const GET_STATE: [u8; 4] = [0, 0, 0, 0x0c];
const GET_STATE_LENGTH: usize = 16;
/// Its answer: `TPM_FAIL`, and nothing of the state.
const NO_STATE: [u8; 16] = [0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The answer to a command: `TPM_RC_RETRY`, "the TPM was not able to start the command": the guest sends it again.
const RETRY: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0x09, 0x22];

/// System calls in which swtpm waits to be asked.
const WAITS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    // The same, after a signal.
    libc::SYS_restart_syscall,
];

/// Looks whether the process of a VM's TPM reads what it is asked. What it has not read after a second is taken back and
/// answered in its place with `take`.
pub(crate) fn look(place: &Place<'_>, vm: VmId, take: bool) -> io::Result<TpmAttention> {
    let Some(found) = tpm_process::all(place)?.remove(&vm) else {
        return Ok(TpmAttention::Idle);
    };
    let pid = found.pid;
    let process = tpm_process::held(place, vm, pid)?;
    let sockets = descriptors::sockets(&process, pid)?;
    let unread: Vec<Unread> = sockets
        .iter()
        .filter(|socket| connected(socket))
        .filter_map(Unread::of)
        .collect();
    if unread.is_empty() {
        return Ok(match waits_to_be_asked(pid) {
            true => TpmAttention::Idle,
            false => TpmAttention::Busy { pid },
        });
    }
    std::thread::sleep(SETTLE);
    let mut attention = TpmAttention::Idle;
    for question in unread.iter().filter(|question| question.is_still_there()) {
        if !take || question.take()? {
            attention = TpmAttention::Unread { pid };
        }
    }
    Ok(attention)
}

/// Shuts both channels, and kills the process.
pub(crate) fn cut_off(place: &Place<'_>, vm: VmId) -> io::Result<()> {
    let found = tpm_process::all(place)?.remove(&vm);
    let pid = found.ok_or(io::ErrorKind::NotFound)?.pid;
    let process = tpm_process::held(place, vm, pid)?;
    for socket in descriptors::sockets(&process, pid)? {
        if connected(&socket) {
            shutdown(socket.as_raw_fd(), Shutdown::Both)?;
        }
    }
    Ok(pidfd_send_signal(&process, Signal::KILL)?)
}

/// Whether it is one of the channels, and not the socket at which QEMU has found swtpm.
fn connected(socket: &OwnedFd) -> bool {
    getsockopt(&socket.as_fd(), sockopt::AcceptConn).is_ok_and(|listens| !listens)
}

/// Whether the process waits in the system call in which swtpm waits for questions. In doubt it does.
///
/// Source: proc(5), `/proc/pid/syscall`.
fn waits_to_be_asked(pid: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/syscall")) else {
        return true;
    };
    let number = text.split_whitespace().next().map(str::parse);
    // `running` is no number.
    matches!(number, Some(Ok(number)) if WAITS.contains(&number))
}

/// A whole question that lies unread in a channel of swtpm's.
struct Unread<'a> {
    socket: &'a OwnedFd,
    question: Zeroizing<Vec<u8>>,
    answer: &'static [u8],
}

impl<'a> Unread<'a> {
    /// None also for what is no question that could be answered.
    fn of(socket: &'a OwnedFd) -> Option<Self> {
        let question = received(socket, MsgFlags::MSG_PEEK)?;
        let named = UnixStream::from(socket.try_clone().ok()?)
            .local_addr()
            .is_ok_and(|address| !address.is_unnamed());
        let answer: &[u8] = match named {
            true if is_request_for_state(&question) => &NO_STATE,
            false if is_command(&question) => &RETRY,
            _ => return None,
        };
        Some(Self {
            socket,
            question,
            answer,
        })
    }

    fn is_still_there(&self) -> bool {
        received(self.socket, MsgFlags::MSG_PEEK).is_some_and(|now| now == self.question)
    }

    /// Takes it and answers it. Says whether it did: swtpm may have read it meanwhile.
    fn take(&self) -> io::Result<bool> {
        let Some(taken) = received(self.socket, MsgFlags::empty()) else {
            return Ok(false);
        };
        if taken != self.question {
            return Err(io::Error::other("the TPM's channel is read by another"));
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.socket.as_raw_fd(), self.answer, flags)? == self.answer.len() {
            true => Ok(true),
            false => Err(io::Error::other("the TPM's channel is full")),
        }
    }
}

/// What lies there; none where nothing does, or the other end is shut.
fn received(socket: &OwnedFd, flags: MsgFlags) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; LONGEST]);
    let length = recv(
        socket.as_raw_fd(),
        &mut bytes,
        flags | MsgFlags::MSG_DONTWAIT,
    );
    bytes.truncate(length.ok().filter(|length| *length > 0)?);
    Some(bytes)
}

fn is_request_for_state(question: &[u8]) -> bool {
    question.starts_with(&GET_STATE) && question.len() == GET_STATE_LENGTH
}

/// With or without sessions (`TPM_ST_SESSIONS`, `TPM_ST_NO_SESSIONS`), and as long as it says.
fn is_command(question: &[u8]) -> bool {
    match question {
        [0x80, 1 | 2, a, b, c, d, _, _, _, _, ..] => {
            usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])) == Ok(question.len())
        }
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests make files as they like")]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// `TPM2_GetRandom`, of 16 bytes.
    const COMMAND: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 16];
    const REQUEST: [u8; 16] = [0, 0, 0, 0x0c, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0];

    /// Both ends of a data channel: QEMU's, swtpm's.
    fn data() -> (UnixStream, OwnedFd) {
        let (qemu, swtpm) = UnixStream::pair().unwrap();
        (qemu, swtpm.into())
    }

    /// The same of a control channel, and the socket at which it was made.
    fn control() -> (UnixStream, OwnedFd, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("swtpm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let qemu = UnixStream::connect(&path).unwrap();
        let swtpm = listener.accept().unwrap().0;
        (qemu, swtpm.into(), listener)
    }

    /// What QEMU reads after its question was taken back.
    fn answered(mut qemu: &UnixStream, swtpm: &OwnedFd, question: &[u8]) -> Vec<u8> {
        qemu.write_all(question).unwrap();
        let unread = Unread::of(swtpm).unwrap();
        assert!(unread.is_still_there());
        assert!(unread.take().unwrap());
        let mut answer = vec![0; 64];
        let length = qemu.read(&mut answer).unwrap();
        answer.truncate(length);
        answer
    }

    #[test]
    fn a_command_is_answered_with_ask_again_and_swtpm_never_hears_of_it() {
        let (qemu, swtpm) = data();
        assert_eq!(answered(&qemu, &swtpm, &COMMAND), RETRY);
        assert!(Unread::of(&swtpm).is_none());
        // The next question finds the channel in order.
        (&qemu).write_all(&COMMAND).unwrap();
        let mut heard = [0; 64];
        let length = UnixStream::from(swtpm).read(&mut heard).unwrap();
        assert_eq!(heard[..length], COMMAND);
    }

    #[test]
    fn the_request_for_the_state_is_answered_with_a_failure() {
        let (qemu, swtpm, _listener) = control();
        assert_eq!(answered(&qemu, &swtpm, &REQUEST), NO_STATE);
    }

    #[test]
    fn what_swtpm_reads_meanwhile_is_left_to_it() {
        let (mut qemu, swtpm) = data();
        qemu.write_all(&COMMAND).unwrap();
        let unread = Unread::of(&swtpm).unwrap();
        let mut own = UnixStream::from(swtpm.try_clone().unwrap());
        own.read_exact(&mut [0; COMMAND.len()]).unwrap();
        assert!(!unread.is_still_there());
        assert!(!unread.take().unwrap());
        qemu.set_nonblocking(true).unwrap();
        assert!(qemu.read(&mut [0; 64]).is_err(), "nobody has answered");
    }

    #[test]
    fn what_is_no_whole_question_of_its_channel_is_left_alone() {
        for question in [&COMMAND[..11], &REQUEST, &[0; 12], &[0x80, 1]] {
            let (mut qemu, swtpm) = data();
            qemu.write_all(question).unwrap();
            assert!(Unread::of(&swtpm).is_none(), "{question:?}");
        }
        // CMD_INIT, the start of a TPM, is among what nobody else may answer.
        let start = [0, 0, 0, 2, 0, 0, 0, 0];
        for question in [&COMMAND[..], &REQUEST[..8], &start] {
            let (mut qemu, swtpm, _listener) = control();
            qemu.write_all(question).unwrap();
            assert!(Unread::of(&swtpm).is_none(), "{question:?}");
        }
    }

    #[test]
    fn the_socket_at_which_swtpm_is_found_is_no_channel() {
        let (_qemu, swtpm, listener) = control();
        assert!(connected(&swtpm));
        assert!(!connected(&listener.into()));
    }
}
