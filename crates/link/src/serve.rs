//! One router behind two servers: TLS for the fleet, and a Unix socket for local administrators.
//!
//! ```text
//!              accept (never waits for a peer)
//!                 │ one task each, limited in number: in all, and per address until it is known who is there
//!   TCP ──► handshake ── http/1.1 ───────────► router, with Peer::Member or Peer::Anonymous
//!              │  └───── fleetward-tunnel/1 ──► TunnelService, after its header has been read
//!              └ refused, too slow: closed
//!   Unix ─► credentials of the peer ──────────► router, with Peer::Local
//! ```
//!
//! A slow peer does not delay others: handshakes, headers and bodies have time limits, and everything that a peer without a
//! certificate does has one together, until a request says who makes it and is believed ([`Visit`]). [`crate::strangers`]
//! says who gets in where many ask.

use crate::dial::{self, MemberStream};
use crate::identity::Identity;
use crate::local::{SocketFile, SocketSpec};
use crate::peer::Peer;
use crate::strangers::{Crowded, Place, StrangerLimits, Strangers};
use crate::tls::{self, ALPN_HTTP, ALPN_TUNNEL, Moments, OutOfTime, ServerTls};
use crate::tunnel::{IncomingTunnel, TunnelService};
use crate::visit::Visit;
use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{Backlog, listen};
use rustls::AlertDescription;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;
use tower_http::timeout::TimeoutBody;

/// Shortest time between two messages about connections that were closed because there are too many.
const COMPLAINTS: Duration = Duration::from_secs(10);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Concurrent connections of peers that have shown no certificate, handshakes included.
    pub strangers: StrangerLimits,
    /// Time that such a peer has in all, from the first byte to the end of the answer.
    pub stranger_time: Duration,
    /// Concurrent connections of members.
    pub connections: usize,
    /// Time for a handshake, and for the header of a tunnel.
    pub handshake_timeout: Duration,
    /// Time for the header of a request; also the idle timeout of a connection.
    pub header_timeout: Duration,
    /// Longest silence within the body of a request.
    pub body_timeout: Duration,
    /// Time for running requests to end when the server stops.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            strangers: StrangerLimits::default(),
            stranger_time: Duration::from_secs(30),
            connections: 4096,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(120),
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// A TLS server: for the fleet, or for people and programs without a certificate of it.
pub struct TlsServer {
    listener: TcpListener,
    tls: ServerTls,
    tunnels: Option<Arc<dyn TunnelService>>,
    limits: Limits,
}

impl TlsServer {
    /// Listens on `address`.
    pub async fn bind(address: impl ToSocketAddrs, tls: ServerTls) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        // Where the queue is full the kernel drops a member's first packet like a stranger's, which costs it a second.
        listen(&listener, Backlog::new(BACKLOG)?)?;
        Ok(Self {
            listener,
            tls,
            tunnels: None,
            limits: Limits::default(),
        })
    }

    /// Also accepts byte tunnels from other members of the fleet.
    pub fn with_tunnels(mut self, service: Arc<dyn TunnelService>) -> Self {
        self.tunnels = Some(service);
        self
    }

    /// Sets other limits.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`, then lets running requests end within the grace time.
    ///
    /// Fails only if the server's own TLS configuration is unusable.
    pub async fn serve(self, router: Router, stop: CancellationToken) -> io::Result<()> {
        let protocols: &[&[u8]] = match self.tunnels {
            Some(_) => &[ALPN_HTTP, ALPN_TUNNEL],
            None => &[ALPN_HTTP],
        };
        let config = self.tls.config(protocols).map_err(io::Error::other)?;
        let shared = Arc::new(TlsConnections {
            acceptor: TlsAcceptor::from(config),
            tls: self.tls,
            tunnels: self.tunnels,
            limits: self.limits,
            router,
            tracker: ConnectionTracker::new(self.limits, stop),
        });
        let strangers = Strangers::new(self.limits.strangers);
        let mut complaints = Complaints::default();
        while let Some(accepted) = shared.tracker.next(self.listener.accept()).await {
            let Ok((tcp, address)) = accepted else {
                continue;
            };
            let place = match strangers.admit(address.ip(), Instant::now()) {
                Ok(place) => place,
                Err(crowded) => {
                    complaints.about(address, crowded);
                    continue;
                }
            };
            let visitor = shared.clone();
            shared
                .tracker
                .spawn(async move { visitor.receive(tcp, address, place).await });
        }
        drop(self.listener);
        shared.tracker.close().await;
        Ok(())
    }
}

/// The Unix socket server for local administrators.
pub struct UnixServer {
    listener: UnixListener,
    file: SocketFile,
    spec: SocketSpec,
    limits: Limits,
}

impl UnixServer {
    /// Listens on a socket file, which goes away with the server.
    pub fn bind(spec: SocketSpec) -> io::Result<Self> {
        let (listener, file) = spec.listen()?;
        Ok(Self {
            listener,
            file,
            spec,
            limits: Limits::default(),
        })
    }

    /// Sets other limits.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.spec.path
    }

    /// Serves until `stop`, then lets running requests end within the grace time.
    pub async fn serve(self, router: Router, stop: CancellationToken) -> io::Result<()> {
        let tracker = Arc::new(ConnectionTracker::new(self.limits, stop));
        while let Some(accepted) = tracker.next(self.listener.accept()).await {
            let Ok((stream, _)) = accepted else { continue };
            let Some(permit) = tracker.admit() else {
                tracing::warn!("too many local connections, closing the newest");
                continue;
            };
            let credentials = match stream.peer_cred() {
                Ok(credentials) => credentials,
                Err(error) => {
                    tracing::warn!(%error, "a local connection without credentials");
                    continue;
                }
            };
            let peer = Peer::Local {
                uid: credentials.uid(),
                pid: credentials.pid().unwrap_or(0),
            };
            let (router, host) = (router.clone(), tracker.clone());
            tracker.spawn(async move {
                host.serve_http(stream, Visitor::local(peer), router).await;
                drop(permit);
            });
        }
        drop(self.listener);
        drop(self.file);
        tracker.close().await;
        Ok(())
    }
}

/// State that all TLS connections share.
struct TlsConnections {
    acceptor: TlsAcceptor,
    tls: ServerTls,
    tunnels: Option<Arc<dyn TunnelService>>,
    limits: Limits,
    router: Router,
    tracker: ConnectionTracker,
}

impl TlsConnections {
    async fn receive(&self, tcp: TcpStream, address: SocketAddr, place: Place) {
        let end = tokio::time::Instant::now() + self.limits.stranger_time;
        let shaken = tokio::select! {
            () = place.given_up() => {
                tracing::info!(%address, "a handshake gave way to another address");
                return;
            }
            shaken = self.handshake(tcp, address) => shaken,
        };
        let Some((stream, client)) = shaken else {
            return;
        };
        let Some(client) = client else {
            self.receive_stranger(stream, address, place, end).await;
            return;
        };
        place.known(Instant::now());
        let Some(_permit) = self.tracker.admit() else {
            tracing::warn!(%address, peer = %client, "too many connections, closing the newest");
            return;
        };
        match &self.tunnels {
            Some(service) if stream.get_ref().1.alpn_protocol() == Some(ALPN_TUNNEL) => {
                self.receive_tunnel(service.as_ref(), stream, client).await;
            }
            _ => {
                let peer = Peer::Member(client);
                let visitor = Visitor::at(peer, address);
                self.tracker
                    .serve_http(stream, visitor, self.router.clone())
                    .await;
            }
        }
    }

    /// Until a request says who makes it, and is believed, all of it has one time.
    async fn receive_stranger(
        &self,
        mut stream: MemberStream,
        address: SocketAddr,
        place: Place,
        end: tokio::time::Instant,
    ) {
        let visit = Visit::new();
        stream.get_mut().0.get_mut().end_with(visit.clone());
        let mut served = std::pin::pin!(self.serve_stranger(stream, address, visit.clone()));
        tokio::select! {
            () = place.given_up() => {
                tracing::info!(%address, "a connection without a certificate gave way to another address");
                return;
            }
            () = tokio::time::sleep_until(end) => {
                tracing::info!(%address, "a connection without a certificate took too long");
                return;
            }
            () = served.as_mut() => return,
            () = visit.welcomed() => {}
        }
        place.known(Instant::now());
        let Some(_permit) = self.tracker.admit() else {
            tracing::warn!(%address, "too many connections, closing the newest");
            return;
        };
        served.await;
    }

    async fn serve_stranger(&self, stream: MemberStream, address: SocketAddr, visit: Visit) {
        if stream.get_ref().1.alpn_protocol() == Some(ALPN_TUNNEL) {
            tracing::warn!(%address, "a tunnel without a client certificate, closing it");
            return;
        }
        let visitor = Visitor {
            visit: Some(visit),
            ..Visitor::at(Peer::Anonymous, address)
        };
        self.tracker
            .serve_http(stream, visitor, self.router.clone())
            .await;
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
    ) -> Option<(MemberStream, Option<Identity>)> {
        if let Err(error) = dial::prepare(&tcp) {
            tracing::debug!(%address, %error, "the connection was gone before its handshake");
            return None;
        }
        let accepting = self.acceptor.accept(dial::unread(tcp)).into_fallible();
        let handshake = tokio::time::timeout(self.limits.handshake_timeout, accepting);
        let mut stream = tokio::select! {
            () = self.tracker.stop.cancelled() => return None,
            result = handshake => match result {
                Ok(Ok(stream)) => TlsStream::from(stream),
                Ok(Err((error, tcp))) => {
                    tell_of_refusal(address, &error);
                    linger(tcp).await;
                    return None;
                }
                Err(_) => {
                    tracing::info!(%address, "handshake too slow");
                    return None;
                }
            },
        };
        dial::widen(&mut stream);
        match self.tls.client_identity(&mut stream) {
            Ok(client) => Some((stream, client)),
            Err(error) => {
                tracing::info!(%address, %error, "handshake refused");
                None
            }
        }
    }

    async fn receive_tunnel(
        &self,
        service: &dyn TunnelService,
        stream: MemberStream,
        client: Identity,
    ) {
        let reading = IncomingTunnel::read(stream, client.clone());
        match tokio::time::timeout(self.limits.handshake_timeout, reading).await {
            Ok(Ok(incoming)) => tokio::select! {
                () = self.tracker.stop.cancelled() => {}
                () = service.serve(incoming) => {}
            },
            Ok(Err(error)) => tracing::info!(peer = %client, %error, "no tunnel header"),
            Err(_) => tracing::info!(peer = %client, "tunnel header too slow"),
        }
    }
}

/// What is said of connections that are closed because there are too many: an attacker does not fill the log.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    fn about(&mut self, address: SocketAddr, crowded: Crowded) {
        self.unsaid += 1;
        if self.last.is_some_and(|last| last.elapsed() < COMPLAINTS) {
            return;
        }
        let closed = std::mem::take(&mut self.unsaid);
        self.last = Some(Instant::now());
        match crowded {
            Crowded::Address => tracing::warn!(
                %address, closed, "too many connections without a certificate from one address, closing the newest"
            ),
            Crowded::Server => tracing::warn!(
                %address, closed, "too many connections without a certificate, closing the newest"
            ),
        }
    }
}

fn tell_of_refusal(address: SocketAddr, error: &io::Error) {
    if let Some(alert) = not_accepted(error) {
        tracing::warn!(
            %address, ?alert,
            "the other side does not accept our certificate: it has ended, or was revoked, or we are not in the fleet any more"
        );
        return;
    }
    match dial::tls_error_in(error).and_then(tls::out_of_time) {
        Some(OutOfTime::Ended(Moments { named, clock })) => tracing::warn!(
            %address,
            "the other side's certificate ended at {named}, and the clock here says {clock}: it has not come back since, or \
             the clock here is ahead (CLOCKS_APART)"
        ),
        Some(OutOfTime::NotYet(Moments { named, clock })) => tracing::warn!(
            %address,
            "the other side's certificate begins at {named}, and the clock here says {clock}: it is behind, or was ahead there \
             (CLOCKS_APART)"
        ),
        None => tracing::info!(%address, %error, "handshake refused"),
    }
}

/// The alert with which the other side refused our certificate, if that is what it did.
fn not_accepted(error: &io::Error) -> Option<AlertDescription> {
    match dial::tls_error_in(error)? {
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown),
        ) => Some(*alert),
        _ => None,
    }
}

/// Closes a refused connection so that the refusal arrives: with unread bytes in our buffer the kernel
/// would send a reset, which makes the other side forget the alert it has not read yet.
async fn linger(mut tcp: impl AsyncRead + AsyncWrite + Unpin) {
    let drain = async {
        tcp.shutdown().await?;
        let mut rest = [0; 4096];
        for _ in 0..16 {
            if tcp.read(&mut rest).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    // The connection is closed afterwards, also after an error.
    let _ = tokio::time::timeout(Duration::from_secs(1), drain).await;
}

/// Who is at the other end of a connection, as far as the connection itself tells.
struct Visitor {
    peer: Peer,
    /// None over a Unix socket.
    address: Option<SocketAddr>,
    /// Of one that has shown no certificate.
    visit: Option<Visit>,
}

impl Visitor {
    const fn at(peer: Peer, address: SocketAddr) -> Self {
        Self {
            peer,
            address: Some(address),
            visit: None,
        }
    }

    const fn local(peer: Peer) -> Self {
        Self {
            peer,
            address: None,
            visit: None,
        }
    }
}

/// Counts and ends the connections of one server, and serves HTTP on them.
struct ConnectionTracker {
    limits: Limits,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl ConnectionTracker {
    fn new(limits: Limits, stop: CancellationToken) -> Self {
        Self {
            limits,
            connections: Arc::new(Semaphore::new(limits.connections)),
            tasks: TaskTracker::new(),
            stop,
            abort: CancellationToken::new(),
        }
    }

    /// The next connection, or `None` when the server stops. An error has been dealt with.
    async fn next<T>(&self, accept: impl Future<Output = io::Result<T>>) -> Option<io::Result<T>> {
        let accepted = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            accepted = accept => accepted,
        };
        if let Err(error) = &accepted {
            // Of one connection that was gone again, or of the process, which has too many files open;
            // waiting helps the second and does not hurt the first.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        Some(accepted)
    }

    fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.connections.clone().try_acquire_owned().ok()
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = abort.cancelled() => {}
                () = task => {}
            }
        });
    }

    async fn close(&self) {
        self.tasks.close();
        if tokio::time::timeout(self.limits.shutdown_grace, self.tasks.wait())
            .await
            .is_err()
        {
            self.abort.cancel();
            self.tasks.wait().await;
        }
    }

    async fn serve_http(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        visitor: Visitor,
        router: Router,
    ) {
        let Visitor {
            peer,
            address,
            visit,
        } = visitor;
        let body_timeout = self.limits.body_timeout;
        let service = service_fn(move |request: http::Request<Incoming>| {
            let mut request = request.map(|body| TimeoutBody::new(body_timeout, body));
            request.extensions_mut().insert(peer.clone());
            if let Some(address) = address {
                request.extensions_mut().insert(ConnectInfo(address));
            }
            if let Some(visit) = &visit {
                request.extensions_mut().insert(visit.clone());
            }
            router.clone().call(request)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "an HTTP connection ended badly");
        }
    }
}

/// Lets this process have as many files open as the limits of a server need, as far as its hard limit goes. systemd starts
/// services with a soft limit of 1,024.
///
/// # Errors
/// The kernel refused.
pub fn allow_many_connections() -> io::Result<()> {
    const FILES: u64 = 16_384;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < FILES {
        setrlimit(Resource::RLIMIT_NOFILE, FILES.min(hard), hard)?;
    }
    Ok(())
}

/// Lets this process have as many files open as its hard limit allows: for a controller, which has connections to every
/// host.
///
/// # Errors
/// The kernel refused.
pub fn allow_all_connections() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// How many files this process may have open.
///
/// # Errors
/// The kernel refused.
pub fn allowed_files() -> io::Result<u64> {
    getrlimit(Resource::RLIMIT_NOFILE)
        .map(|(soft, _)| soft)
        .map_err(io::Error::from)
}
