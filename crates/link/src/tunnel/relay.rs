//! A Unix socket that forwards each connection through a new tunnel to one peer.

use super::{Traffic, TunnelDialer, TunnelError, TunnelHeader, pump};
use crate::identity::Identity;
use crate::local::{SocketFile, SocketSpec};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where a relay's tunnels lead.
#[derive(Debug, Clone)]
pub struct TunnelTarget {
    /// The peer's `host:port`.
    pub address: String,
    /// Who must answer there.
    pub expected: Identity,
    /// What every tunnel is for.
    pub header: TunnelHeader,
}

/// A relay at work. Closing or dropping it removes the socket and ends all its connections.
#[derive(Debug)]
pub struct UnixRelay {
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dialer: TunnelDialer,
    target: TunnelTarget,
    traffic: Traffic,
    failure: Mutex<Option<Arc<TunnelError>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl UnixRelay {
    /// Listens on `socket`. Must be called within a Tokio runtime.
    pub fn open(
        socket: &SocketSpec,
        dialer: TunnelDialer,
        target: TunnelTarget,
    ) -> io::Result<Self> {
        let (listener, file) = socket.listen()?;
        let shared = Arc::new(Shared {
            dialer,
            target,
            traffic: Traffic::default(),
            failure: Mutex::new(None),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        shared
            .tasks
            .spawn(shared.clone().accept_connections(listener, file));
        Ok(Self {
            path: socket.path.clone(),
            shared,
        })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes carried by all connections so far; `forth` is into the tunnels.
    pub fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    /// Why the latest connection that failed did, if one did. A Unix socket can only say "closed".
    pub fn last_failure(&self) -> Option<Arc<TunnelError>> {
        self.shared
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Stops, and waits until the socket and all connections are gone.
    pub async fn close(self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for UnixRelay {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Shared {
    async fn accept_connections(self: Arc<Self>, listener: UnixListener, file: SocketFile) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((local, _)) => {
                    self.tasks.spawn(self.clone().carry_until_stopped(local));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on a relay");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(file);
    }

    async fn carry_until_stopped(self: Arc<Self>, local: UnixStream) {
        let carried = tokio::select! {
            () = self.stop.cancelled() => return,
            carried = self.carry(local) => carried,
        };
        if let Err(error) = carried {
            tracing::warn!(
                kind = self.target.header.kind,
                session = self.target.header.session,
                peer = %self.target.expected,
                error = &error as &dyn std::error::Error,
                "a relayed connection failed"
            );
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(error));
        }
    }

    async fn carry(&self, local: UnixStream) -> Result<(), TunnelError> {
        let TunnelTarget {
            address,
            expected,
            header,
        } = &self.target;
        let tunnel = self.dialer.dial(address, expected, header).await?;
        pump(local, tunnel, &self.traffic)
            .await
            .map_err(TunnelError::Stream)
    }
}
