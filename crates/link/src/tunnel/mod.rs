//! Byte tunnels between hosts: one TLS connection each, a header, an answer, then bytes both ways.
//!
//! ```text
//!  dialer                                   acceptor
//!    │── TLS 1.3, ALPN fleetward-tunnel/1 ────►│
//!    │── u32 length, JSON header ─────────────►│ TunnelService::serve
//!    │◄──────────── u32 length, JSON answer ───│ accept | refuse(code, message)
//!    │◄═══════════════ bytes ═════════════════►│ each direction ends by itself with close_notify
//! ```
//!
//! A direction that ends without close_notify is an error at the other side, so a cut stream is never taken for a
//! complete one. The services define the meaning of a stream (`kind`) and of its parameters.

mod dialer;
mod pump;
mod relay;

pub use dialer::TunnelDialer;
pub use pump::{Traffic, pump};
pub use relay::{TunnelTarget, UnixRelay};

use crate::dial::{DialError, MemberStream};
use crate::identity::Identity;
use crate::local;
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Longest header or answer, in bytes.
pub const MAX_HEADER: usize = 64 * 1024;

/// What the dialer of a tunnel wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TunnelHeader {
    /// What the bytes are, for example `libvirt-rpc`.
    pub kind: String,
    /// The session the tunnel belongs to, for example a migration's id.
    pub session: String,
    /// Further parameters of the service.
    #[serde(default)]
    pub params: serde_json::Value,
}

impl TunnelHeader {
    /// A header without parameters.
    pub fn new(kind: impl Into<String>, session: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            session: session.into(),
            params: serde_json::Value::Null,
        }
    }

    /// Adds parameters.
    pub fn with_params(mut self, params: serde_json::Value) -> Self {
        self.params = params;
        self
    }
}

/// What an agent does with tunnels that other members open.
#[async_trait]
pub trait TunnelService: Send + Sync + 'static {
    /// Answers one tunnel and carries its bytes. Returning, or the server's stop, ends the tunnel.
    async fn serve(&self, incoming: IncomingTunnel);
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Answer {
    Accepted,
    Refused { code: String, message: String },
}

/// A tunnel that waits for its answer.
#[derive(Debug)]
pub struct IncomingTunnel {
    /// Who dialled, as its certificate says.
    pub from: Identity,
    /// What is wanted.
    pub header: TunnelHeader,
    stream: MemberStream,
}

impl IncomingTunnel {
    pub(crate) async fn read(mut stream: MemberStream, from: Identity) -> io::Result<Self> {
        let header = read_frame(&mut stream).await?;
        Ok(Self {
            from,
            header,
            stream,
        })
    }

    /// Lets the bytes flow.
    pub async fn accept(mut self) -> io::Result<Tunnel> {
        write_frame(&mut self.stream, &Answer::Accepted).await?;
        Ok(Tunnel {
            stream: self.stream,
            peer: self.from,
        })
    }

    /// Refuses; `code` is for programs, `message` for people.
    pub async fn refuse(mut self, code: &str, message: &str) -> io::Result<()> {
        let answer = Answer::Refused {
            code: code.to_owned(),
            message: message.to_owned(),
        };
        write_frame(&mut self.stream, &answer).await?;
        self.stream.shutdown().await
    }

    /// Connects the tunnel to the Unix socket at `path`, which belongs to that user, and carries bytes until both directions
    /// have ended. Nothing else under that name is connected to, through no link: others may write its directory.
    ///
    /// Accepts only once that socket has answered; otherwise refuses with [`CODE_NO_SOCKET`].
    pub async fn forward_to_unix(
        self,
        (path, owner): (&Path, u32),
        traffic: &Traffic,
    ) -> Result<(), TunnelError> {
        let local = match local::connect(path, owner).await {
            Ok(local) => local,
            Err(source) => {
                let message = format!("cannot connect to {}: {source}", path.display());
                self.refuse(CODE_NO_SOCKET, &message)
                    .await
                    .map_err(TunnelError::Stream)?;
                return Err(TunnelError::Socket {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let tunnel = self.accept().await.map_err(TunnelError::Stream)?;
        pump(tunnel, local, traffic)
            .await
            .map_err(TunnelError::Stream)
    }
}

/// The code of a refusal because the local socket behind a tunnel did not answer.
pub const CODE_NO_SOCKET: &str = "no_socket";

/// An open tunnel.
///
/// Reading ends cleanly only if the other side shut its direction down; [`AsyncWriteExt::shutdown`] ends ours
/// and leaves the other open.
#[derive(Debug)]
pub struct Tunnel {
    stream: MemberStream,
    peer: Identity,
}

impl Tunnel {
    /// Who is at the other end.
    pub fn peer(&self) -> &Identity {
        &self.peer
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Why there is no tunnel, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The host was not reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The host was reached and said no.
    #[error("the tunnel was refused: {message} ({code})")]
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// The host was reached and did not answer in time.
    #[error("the tunnel got no answer in time")]
    NoAnswer,
    /// The local socket behind the tunnel did not answer.
    #[error("cannot connect to {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the tunnel broke")]
    Stream(#[source] io::Error),
}

async fn read_frame<T: DeserializeOwned>(stream: &mut MemberStream) -> io::Result<T> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_HEADER {
        return Err(invalid("a tunnel header that is too long"));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    serde_json::from_slice(&frame).map_err(|_| invalid("a tunnel header that cannot be read"))
}

async fn write_frame<T: Serialize>(stream: &mut MemberStream, value: &T) -> io::Result<()> {
    let frame = serde_json::to_vec(value)?;
    let length = u32::try_from(frame.len())
        .ok()
        .filter(|_| frame.len() <= MAX_HEADER)
        .ok_or_else(|| invalid("a tunnel header that is too long"))?;
    let mut message = Vec::with_capacity(4 + frame.len());
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&frame);
    stream.write_all(&message).await?;
    stream.flush().await
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
