//! The connection to libvirtd: monitoring it, reopening it, and running calls on it.
//!
//! ```text
//!            opened                 socket closed, keepalive unanswered
//!  closed ----------> connected ------------------------------------+
//!     ^    (Connected)                                (Disconnected) |
//!     +--------------------------------------------------------------+
//! ```
//! Every call of libvirt blocks, so calls run on tokio's blocking threads with a time limit. Short calls share the
//! monitored connection. Calls that may take seconds (start, define, migrate) open their own, because libvirtd serves
//! only a few requests of one client at a time. A call without a connection waits for a short time, then fails with
//! `Unavailable`.

use crate::binding::{Connection, DomainEvent, Subscription};
use crate::said;
use fleetward_hypervisor::{Error, HypervisorEvent, Result};
use fleetward_model::VmId;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// How long a call waits for a connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause between attempts to connect, and between looks at a connection.
const PACE: Duration = Duration::from_millis(200);
/// Limit of a short call.
pub(crate) const SHORT: Duration = Duration::from_secs(20);
/// Limit of a call that starts or stops processes.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Shared by everybody who calls libvirt. When the last is dropped, the watching thread ends.
#[derive(Clone)]
pub(crate) struct Libvirt {
    uri: Arc<str>,
    current: watch::Receiver<Option<Arc<Connection>>>,
    events: broadcast::Sender<HypervisorEvent>,
    _wanted: Arc<()>,
}

impl Libvirt {
    /// Starts the thread that connects and keeps connecting.
    pub(crate) fn start(uri: &str) -> std::io::Result<Self> {
        let (current_sender, current) = watch::channel(None);
        let (events, _) = broadcast::channel(1024);
        let wanted = Arc::new(());
        let keeper = Keeper {
            uri: uri.to_owned(),
            current: current_sender,
            events: events.clone(),
            wanted: Arc::downgrade(&wanted),
        };
        std::thread::Builder::new()
            .name("libvirt-connection".into())
            .spawn(move || keeper.run())?;
        Ok(Self {
            uri: uri.into(),
            current,
            events,
            _wanted: wanted,
        })
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<HypervisorEvent> {
        self.events.subscribe()
    }

    /// Runs a short call on the shared connection.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = self.connection().await?;
        run(SHORT, move || settle(&connection, work(&connection))).await
    }

    /// Runs a call that may take seconds on a connection of its own.
    pub(crate) async fn call_alone<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        // Waiting for the shared one first keeps calls out of a gap.
        self.connection().await?;
        let uri = Arc::clone(&self.uri);
        run(limit, move || {
            let connection =
                Connection::open(&uri).map_err(|error| Error::Unavailable(said::cause(error)))?;
            settle(&connection, work(&connection))
        })
        .await
    }

    async fn connection(&self) -> Result<Arc<Connection>> {
        let mut current = self.current.clone();
        let waiting = current.wait_for(Option::is_some);
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(Ok(connection)) => Ok(Arc::clone(
                connection.as_ref().expect("waited until there is one"),
            )),
            Ok(Err(_)) | Err(_) => Err(Error::Unavailable(
                format!("no connection to {} for {} s", self.uri, PATIENCE.as_secs()).into(),
            )),
        }
    }
}

/// A failed call on a connection that broke says nothing about the domain.
fn settle<T>(connection: &Connection, result: Result<T>) -> Result<T> {
    match result {
        Err(error @ Error::Libvirt { .. }) if !connection.is_alive().unwrap_or(false) => {
            Err(Error::Unavailable(error.into()))
        }
        other => other,
    }
}

async fn run<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Error::Unavailable("the call was abandoned".into())),
        Err(_) => Err(Error::Unavailable(
            format!("no answer within {} s", limit.as_secs()).into(),
        )),
    }
}

/// The watching thread's part.
struct Keeper {
    uri: String,
    current: watch::Sender<Option<Arc<Connection>>>,
    events: broadcast::Sender<HypervisorEvent>,
    /// Held by every [`Libvirt`]; when nobody does, the thread ends.
    wanted: Weak<()>,
}

impl Keeper {
    fn run(self) {
        let mut complained = false;
        while self.wanted() {
            match Connection::open(&self.uri) {
                Ok(connection) => {
                    complained = false;
                    self.keep(Arc::new(connection));
                }
                Err(error) => {
                    if !complained {
                        tracing::warn!(uri = self.uri, %error, "libvirt does not answer; trying on");
                        complained = true;
                    }
                    std::thread::sleep(PACE);
                }
            }
        }
    }

    fn keep(&self, connection: Arc<Connection>) {
        let events = self.events.clone();
        let subscription = Subscription::new(&connection, move |event| {
            // No receiver is fine.
            let _ = events.send(match event {
                DomainEvent::Changed(id) => HypervisorEvent::Changed(VmId(id)),
                DomainEvent::Booted(id) => HypervisorEvent::Booted(VmId(id)),
                DomainEvent::Stopped(id) => HypervisorEvent::Stopped(VmId(id)),
                DomainEvent::Undefined(id) => HypervisorEvent::Removed(VmId(id)),
            });
        });
        let subscription = match subscription {
            Ok(subscription) => subscription,
            Err(error) => {
                tracing::warn!(%error, "libvirt refuses to report events; connecting anew");
                std::thread::sleep(PACE);
                return;
            }
        };
        tracing::info!(uri = self.uri, "connected to libvirt");
        self.current.send_replace(Some(Arc::clone(&connection)));
        let _ = self.events.send(HypervisorEvent::Connected);
        while self.wanted() && connection.is_alive().unwrap_or(false) {
            std::thread::sleep(PACE);
        }
        self.current.send_replace(None);
        let _ = self.events.send(HypervisorEvent::Disconnected);
        drop(subscription);
    }

    fn wanted(&self) -> bool {
        self.wanted.strong_count() > 0
    }
}
