//! One connection to a VM's screen: a WebSocket to the controller, with RFB's handshake behind it.

use crate::controller::Controller;
use fleetward_api::controller::screen_end;
use fleetward_api::verbs::VmScreen;
use fleetward_link::client::UpgradedIo;
use fleetward_model::{ErrorCode, Failure, VmName};
use fleetward_rfb::{Init, Unreadable, VERSION, Version};
use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};

/// Longest frame of the controller, bytes.
const MAX_FRAME: usize = 1 << 20;
/// A screen introduces itself within this.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// No security: the WebSocket has all of it.
const NO_SECURITY: u8 = 1;

/// Why a screen ended.
#[derive(Debug)]
pub(super) enum Broken {
    /// The VM does not run any more, in the controller's words.
    Stopped(String),
    /// It can be opened again.
    Interrupted,
}

/// An open screen.
pub(super) struct Upstream {
    socket: WebSocketStream<UpgradedIo>,
    /// What the handshake has left.
    rest: Vec<u8>,
    init: Init,
}

impl Upstream {
    /// Opens the screen and shakes hands.
    pub(super) async fn open(controller: &Controller, vm: &VmName) -> Result<Self, Failure> {
        let io = controller.open::<VmScreen>([vm.as_str()], &()).await?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_FRAME))
            .max_frame_size(Some(MAX_FRAME));
        let socket = WebSocketStream::from_raw_socket(io, Role::Client, Some(config)).await;
        let shaken = timeout(HANDSHAKE, shake_hands(socket)).await;
        let broken = |because: String| {
            let what = format!("the screen of VM {vm} does not introduce itself");
            Failure::new(ErrorCode::HypervisorFailed, what).because(because)
        };
        match shaken {
            Ok(Ok(upstream)) => Ok(upstream),
            Ok(Err(Unshaken::Unreadable(error))) => Err(broken(error.to_string())),
            Ok(Err(Unshaken::Broken(Broken::Stopped(reason)))) => {
                Err(Failure::new(ErrorCode::VmNotRunning, reason))
            }
            Ok(Err(Unshaken::Broken(Broken::Interrupted))) => Err(broken("it ended".into())),
            Err(_) => Err(broken(format!("within {} s", HANDSHAKE.as_secs()))),
        }
    }

    pub(super) fn init(&self) -> &Init {
        &self.init
    }

    /// The next bytes; may be dropped while it waits.
    pub(super) async fn read(&mut self) -> Result<Bytes, Broken> {
        if !self.rest.is_empty() {
            return Ok(std::mem::take(&mut self.rest).into());
        }
        next_bytes(&mut self.socket).await
    }

    pub(super) async fn write(&mut self, bytes: Vec<u8>) -> Result<(), Broken> {
        let sent = self.socket.send(Message::binary(bytes)).await;
        sent.map_err(|_| Broken::Interrupted)
    }

    /// Says that it is over; the other side sees the connection end in any case.
    pub(super) async fn close(mut self) {
        let _ = self.socket.close(None).await;
    }
}

async fn next_bytes(socket: &mut WebSocketStream<UpgradedIo>) -> Result<Bytes, Broken> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
            Some(Ok(Message::Close(Some(frame))))
                if u16::from(frame.code) == screen_end::STOPPED =>
            {
                return Err(Broken::Stopped(frame.reason.to_string()));
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Broken::Interrupted),
            // Pings are answered by the socket itself.
            Some(Ok(_)) => {}
        }
    }
}

enum Unshaken {
    Broken(Broken),
    Unreadable(Unreadable),
}

impl From<Broken> for Unshaken {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl From<Unreadable> for Unshaken {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unreadable(unreadable)
    }
}

/// The viewer's part (RFC 6143, 7.1 to 7.3), as version 3.8, which every hypervisor speaks.
async fn shake_hands(mut socket: WebSocketStream<UpgradedIo>) -> Result<Upstream, Unshaken> {
    let mut seen = Vec::new();
    let version = take(&mut socket, &mut seen, VERSION.len()).await?;
    let version: [u8; 12] = version.try_into().map_err(|_| Unreadable::NoRfb)?;
    if Version::read(version)? < Version::V3_8 {
        return Err(Unreadable::NoRfb.into());
    }
    send(&mut socket, &VERSION).await?;
    let offered = take(&mut socket, &mut seen, 1).await?[0];
    let offered = take(&mut socket, &mut seen, usize::from(offered)).await?;
    if !offered.contains(&NO_SECURITY) {
        return Err(Unreadable::NoRfb.into());
    }
    send(&mut socket, &[NO_SECURITY]).await?;
    if take(&mut socket, &mut seen, 4).await? != [0; 4] {
        return Err(Unreadable::NoRfb.into());
    }
    // others may look, too
    send(&mut socket, &[1]).await?;
    loop {
        if let Some((init, length)) = Init::read(&seen)? {
            return Ok(Upstream {
                socket,
                rest: seen.split_off(length),
                init,
            });
        }
        seen.extend(next_bytes(&mut socket).await?);
    }
}

/// The next `length` bytes, at most 255.
async fn take(
    socket: &mut WebSocketStream<UpgradedIo>,
    seen: &mut Vec<u8>,
    length: usize,
) -> Result<Vec<u8>, Unshaken> {
    while seen.len() < length {
        seen.extend(next_bytes(socket).await?);
    }
    let rest = seen.split_off(length);
    Ok(std::mem::replace(seen, rest))
}

async fn send(socket: &mut WebSocketStream<UpgradedIo>, bytes: &[u8]) -> Result<(), Unshaken> {
    let sent = socket.send(Message::binary(bytes.to_vec())).await;
    sent.map_err(|_| Broken::Interrupted.into())
}
