//! The terminal as a VM's serial console: raw bytes both ways over a WebSocket, until Ctrl-].
//!
//! The terminal's settings are restored on every exit.

use crate::exit::Stop;
use fleetward_link::client::UpgradedIo;
use fleetward_model::{ErrorCode, Failure, VmName};
use futures_util::{SinkExt, StreamExt};
use nix::sys::termios::{self, SetArg, Termios};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message, protocol::Role};

/// Ctrl-], as in telnet and virsh.
const LEAVE: u8 = 0x1d;

/// Why the console was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Ctrl-], a signal, or the end of the input.
    Here,
    /// The VM or the controller closed it.
    There,
}

/// Connects stdin and stdout with the console of `vm` until one side has enough.
pub(crate) async fn run(io: UpgradedIo, vm: &VmName) -> Result<Left, Stop> {
    let socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    let (mut to_vm, mut from_vm) = socket.split();
    let raw = RawTerminal::enter()?;
    let mut stdin = tokio::io::stdin();
    let mut stdout = tokio::io::stdout();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut typed = [0; 4096];

    let left = loop {
        tokio::select! {
            read = stdin.read(&mut typed) => {
                let read = &typed[..read?];
                if read.is_empty() {
                    break Left::Here;
                }
                let (text, leave) = until_leave(read, raw.is_some());
                if !text.is_empty() {
                    to_vm.send(Message::binary(text.to_vec())).await.map_err(|error| broken(vm, error))?;
                }
                if leave {
                    break Left::Here;
                }
            }
            message = from_vm.next() => match message {
                None | Some(Ok(Message::Close(_))) => break Left::There,
                Some(Ok(message)) => {
                    if message.is_binary() || message.is_text() {
                        stdout.write_all(&message.into_data()).await?;
                        stdout.flush().await?;
                    }
                }
                Some(Err(WebSocketError::ConnectionClosed | WebSocketError::AlreadyClosed)) => break Left::There,
                Some(Err(error)) => return Err(broken(vm, error)),
            },
            _ = terminate.recv() => break Left::Here,
            _ = hangup.recv() => break Left::Here,
        }
    };
    // The other side sees the connection end in any case.
    let _ = to_vm.send(Message::Close(None)).await;
    drop(raw);
    Ok(left)
}

/// What to send of what was typed, and whether Ctrl-] was in it. Only a person at a terminal leaves that way.
fn until_leave(typed: &[u8], at_terminal: bool) -> (&[u8], bool) {
    match typed.iter().position(|byte| *byte == LEAVE) {
        Some(at) if at_terminal => (&typed[..at], true),
        _ => (typed, false),
    }
}

fn broken(vm: &VmName, error: WebSocketError) -> Stop {
    Failure::new(
        ErrorCode::ControllerUnreachable,
        format!("the connection to the console of VM {vm} broke; the VM goes on"),
    )
    .because(error)
    .fix(format!("fleetward vm console {vm}"))
    .into()
}

/// Stdin in raw mode, put back when dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// `None` where stdin is no terminal.
    fn enter() -> io::Result<Option<Self>> {
        let Ok(before) = termios::tcgetattr(io::stdin()) else {
            return Ok(None);
        };
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // There is no terminal left to say it on if this fails.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_bracket_leaves_a_terminal_but_passes_through_a_pipe() {
        assert_eq!(until_leave(b"ls\x1drest", true), (&b"ls"[..], true));
        assert_eq!(until_leave(b"ls\x1d", false), (&b"ls\x1d"[..], false));
        assert_eq!(until_leave(b"ls", true), (&b"ls"[..], false));
    }
}
