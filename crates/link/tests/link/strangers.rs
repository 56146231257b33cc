//! What peers without a certificate can take from members: places, by silence, by slowness and by numbers. Strangers come
//! from other addresses of the loopback interface than members.

use crate::support::{Fleet, Running, ServerBuilder, soon, whoami, whoami_text};
use axum::routing::post;
use bytes::Bytes;
use fleetward_link::{Client, ClientCertificates, ClientTls, Identity, Limits, StrangerLimits};
use futures_util::StreamExt;
use http::Method;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// An address of the loopback interface that no member uses.
fn elsewhere(block: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 66, block, n)
}

async fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// Whether the server has closed it.
async fn is_closed(tcp: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(1), tcp.read(&mut [0; 16])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

async fn count_open(connections: &mut [TcpStream]) -> usize {
    let mut open = 0;
    for tcp in connections {
        open += usize::from(!is_closed(tcp).await);
    }
    open
}

fn controller(fleet: &Fleet) -> ServerBuilder {
    let mut server = fleet.server(&Identity::Controller);
    server.clients = ClientCertificates::Optional;
    server.router = whoami().route("/join", post(|body: String| async move { body }));
    server
}

fn member(fleet: &Fleet, server: &Running) -> Client {
    let admin = Identity::Admin {
        name: "kim".parse().expect("name"),
        role: fleetward_model::role::Role::Viewer,
    };
    fleet.client(&admin, server.address, &Identity::Controller)
}

fn joining(fleet: &Fleet, server: &Running) -> Client {
    let tls = ClientTls::join(fleet.trust().fingerprint());
    Client::tls(server.address.to_string(), tls)
}

/// Room for both ends of ten thousand connections in this process.
fn allow_many_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("read");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(20_000), hard).expect("set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_silent_connections_from_one_address_do_not_delay_a_member() {
    const STRANGERS: usize = 10_000;
    allow_many_files();
    let fleet = Fleet::new();
    let server = controller(&fleet).start().await;
    let address = server.address;
    // On a thread of its own, as on a machine of its own.
    let runtime = tokio::runtime::Handle::current();
    let flood = std::thread::spawn(move || {
        runtime.block_on(async move {
            let mut silent = Vec::with_capacity(STRANGERS);
            while silent.len() < STRANGERS {
                // One that is reset at once was made all the same.
                if let Ok(tcp) = connect(elsewhere(0, 1), address).await {
                    silent.push(tcp);
                }
            }
            silent
        })
    });
    let mut slowest = Duration::ZERO;
    let mut worked = 0;
    while !flood.is_finished() || worked < 20 {
        let begun = Instant::now();
        // A new connection each time: a handshake among the strangers'.
        let shown = soon(whoami_text(&member(&fleet, &server))).await;
        assert_eq!(shown.expect("served"), "admin:kim");
        let joined = soon(joining(&fleet, &server).post::<String>("/join", &"x")).await;
        assert_eq!(joined.expect("a host can join"), "x");
        slowest = slowest.max(begun.elapsed());
        worked += 1;
        // Members do not work without a pause; the strangers do.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut silent = flood.join().expect("no panic");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    let open = count_open(&mut silent).await;
    let most = StrangerLimits::default().per_unknown;
    assert!(open <= most, "{open} of one address are open");
}

#[tokio::test]
async fn strangers_of_many_addresses_keep_out_no_member_and_no_joining_host() {
    let fleet = Fleet::new();
    let mut server = controller(&fleet);
    server.limits.strangers = StrangerLimits {
        unknown: 64,
        per_unknown: 8,
        known: 8,
        per_known: 4,
    };
    let server = server.start().await;
    let mut silent = Vec::new();
    for n in 1..=30 {
        for _ in 0..8 {
            let tcp = connect(elsewhere(1, n), server.address).await;
            silent.push(tcp.expect("connected"));
        }
    }
    assert!(count_open(&mut silent).await <= 64);
    // From an address that the server has not seen before: one of the others gives way.
    soon(joining(&fleet, &server).post::<String>("/join", &"x"))
        .await
        .expect("a host can join");
    for _ in 0..3 {
        soon(whoami_text(&member(&fleet, &server)))
            .await
            .expect("a member is served");
    }
}

#[tokio::test]
async fn places_come_free_again() {
    let fleet = Fleet::new();
    let mut server = controller(&fleet);
    server.limits.strangers.per_unknown = 2;
    let server = server.start().await;
    let from = elsewhere(2, 1);
    let first = connect(from, server.address).await.expect("connected");
    let second = connect(from, server.address).await.expect("connected");
    let mut third = connect(from, server.address).await.expect("connected");
    let end = soon(third.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    drop((first, second));
    soon(async {
        loop {
            let mut again = connect(from, server.address).await.expect("connected");
            tokio::time::sleep(Duration::from_millis(20)).await;
            if !is_closed(&mut again).await {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_a_stranger_sends_byte_by_byte_is_cut_off() {
    let fleet = Fleet::new();
    let mut server = controller(&fleet);
    server.limits.stranger_time = Duration::from_millis(500);
    let server = server.start().await;
    let begun = Instant::now();
    let stranger = joining(&fleet, &server);
    let sent = stranger
        .request(Method::POST, "/join")
        .stream(drip(Duration::from_millis(20)), Some(1 << 20))
        .send();
    assert!(soon(sent).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_body_of_a_member_may_be_slow_but_not_silent() {
    let fleet = Fleet::new();
    let mut server = controller(&fleet);
    server.limits = Limits {
        stranger_time: Duration::from_millis(100),
        body_timeout: Duration::from_millis(400),
        ..Limits::default()
    };
    let server = server.start().await;
    let member = member(&fleet, &server);
    let slow = drip(Duration::from_millis(50)).take(20);
    let sent = member
        .request(Method::POST, "/join")
        .stream(slow, Some(20))
        .send();
    soon(sent).await.expect("as slow as it likes");
    let silent = drip(Duration::from_millis(50))
        .take(3)
        .chain(futures_util::stream::pending());
    let sent = member
        .request(Method::POST, "/join")
        .stream(silent, Some(20))
        .send();
    let error = soon(sent).await.expect_err("given up");
    assert!(!error.is_unreached(), "{error:?}");
}

/// One byte after each interval, for ever.
fn drip(
    interval: Duration,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    futures_util::stream::repeat(()).then(move |()| async move {
        tokio::time::sleep(interval).await;
        Ok(Bytes::from_static(b"x"))
    })
}

#[tokio::test]
async fn a_header_that_a_stranger_sends_byte_by_byte_is_cut_off() {
    let fleet = Fleet::new();
    let mut server = controller(&fleet);
    server.limits.stranger_time = Duration::from_millis(500);
    let server = server.start().await;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = connect(elsewhere(3, 1), server.address).await;
    let name = ServerName::try_from("member.fleetward.invalid").expect("name");
    let connector = TlsConnector::from(Arc::new(config));
    let stream = soon(connector.connect(name, tcp.expect("connected"))).await;
    let (mut reading, mut writing) = tokio::io::split(stream.expect("a handshake"));
    let begun = Instant::now();
    tokio::spawn(async move {
        let _ = writing.write_all(b"POST /join HTTP/1.1\r\nx: ").await;
        while writing.write_all(b"x").await.is_ok() && writing.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    // An end, a reset, or an alert that is missing: it is closed.
    let _ = soon(reading.read_to_end(&mut Vec::new())).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A stranger does not care who the server is.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
