//! A VM's screen for any VNC viewer of this machine: a listener on loopback, and a session for each viewer.
//!
//! ```text
//!   viewer ── TCP, loopback ── session ══ WebSocket ══ controller ══ agent ══ hypervisor
//!                                 │
//!                                 └─ the VM moves: another WebSocket, the same viewer
//! ```
//! Whoever reaches the listener sees the screen without a password. So it is on loopback, and there only this user's
//! programs are let in ([`neighbour`]).

mod neighbour;
pub(crate) mod program;
mod session;
mod upstream;

use crate::controller::Controller;
use crate::exit::{Stop, say};
use crate::messages;
use fleetward_model::{ErrorCode, Failure, VmName};
use session::Ended;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use upstream::Upstream;

/// A screen that can be looked at from this machine.
pub(crate) struct Offered {
    controller: Controller,
    vm: VmName,
    listener: TcpListener,
    address: SocketAddr,
    /// Opened before the address is told, so that what is wrong is said at once; for the first viewer.
    ready: Option<Upstream>,
}

impl Offered {
    /// Opens the screen and listens.
    ///
    /// # Errors
    /// The screen cannot be opened, or nobody can listen there.
    pub(crate) async fn open(
        controller: &Controller,
        vm: &VmName,
        listen: SocketAddr,
        exposed: bool,
    ) -> Result<Self, Failure> {
        if !listen.ip().is_loopback() && !exposed {
            let what = format!("{} is not an address of this machine alone", listen.ip());
            return Err(Failure::new(ErrorCode::InvalidArgument, what)
                .because("whoever reaches it would see and use the screen without a password")
                .fix("--listen 127.0.0.1:0; or, in a network where everybody may, add --expose"));
        }
        let ready = Upstream::open(controller, vm).await?;
        let unusable = |error: std::io::Error| {
            let what = format!("cannot listen at {listen}");
            Failure::new(ErrorCode::InvalidArgument, what)
                .because(error)
                .fix("--listen 127.0.0.1:0, for a free port")
        };
        let listener = TcpListener::bind(listen).await.map_err(unusable)?;
        Ok(Self {
            address: listener.local_addr().map_err(unusable)?,
            controller: controller.clone(),
            vm: vm.clone(),
            listener,
            ready: Some(ready),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves viewers until the VM stops, the person has enough, or `viewer` has ended; why, if it was the VM.
    pub(crate) async fn serve(
        mut self,
        viewer: Option<tokio::process::Child>,
    ) -> Result<Option<String>, Stop> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (ended, mut endings) = mpsc::channel(1);
        let viewer_ends = async {
            match viewer {
                Some(mut viewer) => drop(viewer.wait().await),
                None => std::future::pending().await,
            }
        };
        tokio::pin!(viewer_ends);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, from)) => self.admit(stream, from, &ended),
                    // Out of descriptors, or the viewer has gone again.
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                },
                Some(reason) = endings.recv() => return Ok(Some(reason)),
                () = &mut viewer_ends => return Ok(None),
                _ = interrupt.recv() => return Ok(None),
                _ = terminate.recv() => return Ok(None),
                _ = hangup.recv() => return Ok(None),
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, from: SocketAddr, ended: &mpsc::Sender<String>) {
        if from.ip().is_loopback() && !neighbour::may_look(from, &stream) {
            say(&messages::stranger_refused(from));
            return;
        }
        let (controller, vm) = (self.controller.clone(), self.vm.clone());
        let (ready, ended) = (self.ready.take(), ended.clone());
        tokio::spawn(async move {
            match session::run(&controller, &vm, stream, ready).await {
                Ended::Viewer => {}
                Ended::Stopped(reason) => drop(ended.send(reason).await),
                Ended::Failed(failure) => say(&messages::failure(&failure)),
            }
        });
    }
}
