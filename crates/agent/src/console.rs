//! A VM's serial console: bytes both ways between the controller and the guest's pty.
//!
//! Two dialects of the same upgrade: raw bytes (`Upgrade: fleetward-console`), or WebSocket binary frames.

use crate::failure::{HypervisorResult, Result, Trouble};
use crate::firmware;
use crate::host::Host;
use axum::extract::ws::{Message, WebSocket};
use fleetward_durable as durable;
use fleetward_model::{ErrorCode, Failure, Names, VmId};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

/// Bytes carried at a time.
const PIECE: usize = 4096;

/// An administrator's console.
pub(crate) struct Console {
    opened: firmware::Opened,
    pty: Pty,
}

/// The guest's end of the console. A pty is no pipe, but is read, written and waited for like one.
pub(crate) struct Pty {
    from_guest: pipe::Receiver,
    to_guest: pipe::Sender,
}

/// Opens the console of a running VM.
pub(crate) async fn open(host: &Arc<Host>, vm: VmId) -> Result<Console> {
    let domain = host
        .hypervisor
        .inspect(vm)
        .await
        .attempt(|| format!("the console of VM {vm}"))?;
    let path = domain.console.ok_or_else(|| {
        Failure::new(
            ErrorCode::VmNotRunning,
            format!("the console of VM {}", domain.name),
        )
        .because("the VM does not run, or has no serial console")
        .about(&Names::default().vm(&domain.name))
    })?;
    let (uid, _) = host.volumes.owner();
    let pty = Pty::open(&path, uid).map_err(|error| {
        Trouble::file(format!("the console of VM {}", domain.name), path, &error)
    })?;
    Ok(Console {
        opened: firmware::hand_over(host, vm),
        pty,
    })
}

impl Pty {
    /// The path is QEMU's word: a terminal of its own user is opened, and nothing else that it may name.
    pub(crate) fn open(path: &Path, owner: u32) -> io::Result<Self> {
        let file = durable::open_terminal(path, owner)?;
        // What is typed is the guest's to echo and interpret.
        let mut settings = tcgetattr(&file)?;
        cfmakeraw(&mut settings);
        tcsetattr(&file, SetArg::TCSANOW, &settings)?;
        Ok(Self {
            to_guest: pipe::Sender::from_file_unchecked(file.try_clone()?)?,
            from_guest: pipe::Receiver::from_file_unchecked(file)?,
        })
    }

    /// What the guest prints.
    pub(crate) async fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        self.from_guest.read(piece).await
    }
}

/// Carries raw bytes until either side ends.
pub(crate) async fn carry_raw(upgraded: Upgraded, console: Console) {
    let Console { opened, pty } = console;
    let Pty {
        mut from_guest,
        mut to_guest,
    } = pty;
    let (mut from_user, mut to_user) = tokio::io::split(TokioIo::new(upgraded));
    let output = async {
        let mut piece = [0; PIECE];
        while let Ok(length @ 1..) = from_guest.read(&mut piece).await {
            opened.hear(&piece[..length]);
            if to_user.write_all(&piece[..length]).await.is_err() || to_user.flush().await.is_err()
            {
                break;
            }
        }
    };
    // The first end ends the console; how it came about is of no interest.
    tokio::select! {
        () = output => {}
        _ = tokio::io::copy(&mut from_user, &mut to_guest) => {}
    }
    // The user's side may be gone already.
    let _ = to_user.shutdown().await;
}

/// Carries WebSocket frames until either side ends.
pub(crate) async fn carry_frames(socket: WebSocket, console: Console) {
    let Console { opened, pty } = console;
    let Pty {
        mut from_guest,
        mut to_guest,
    } = pty;
    let (mut to_user, mut from_user) = socket.split();
    let output = async {
        let mut piece = [0; PIECE];
        while let Ok(length @ 1..) = from_guest.read(&mut piece).await {
            opened.hear(&piece[..length]);
            let frame = Message::Binary(piece[..length].to_vec().into());
            if to_user.send(frame).await.is_err() {
                break;
            }
        }
        // The user's side may be gone already.
        let _ = to_user.close().await;
    };
    let input = async {
        while let Some(Ok(message)) = from_user.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Close(_) => break,
            };
            if to_guest.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = output => {}
        () = input => {}
    }
}
