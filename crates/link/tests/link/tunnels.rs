//! Bytes between hosts: whole or failed, ended one direction at a time, never hanging.

use crate::support::{Fleet, Running, host, soon, until};
use async_trait::async_trait;
use fleetward_link::tunnel::{
    IncomingTunnel, Traffic, TunnelDialer, TunnelError, TunnelHeader, TunnelService, TunnelTarget,
    UnixRelay,
};
use fleetward_link::{Identity, Limits, SocketSpec};
use sha2::{Digest, Sha256};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

const SIZE: u64 = 100 * 1024 * 1024;

/// What the tests' acceptor does, by the header's kind.
struct Acceptor {
    socket: PathBuf,
    traffic: Traffic,
}

#[async_trait]
impl TunnelService for Acceptor {
    async fn serve(&self, incoming: IncomingTunnel) {
        assert_eq!(incoming.from, host("b"));
        match incoming.header.kind.as_str() {
            "no" => incoming.refuse("BUSY", "not now").await.expect("refuse"),
            "socket" => {
                // Tests judge the failure from the other end.
                let own = nix::unistd::geteuid().as_raw();
                let carried = incoming.forward_to_unix((&self.socket, own), &self.traffic);
                let _ = carried.await;
            }
            "digest" => {
                // Reads to the end of one direction, then answers in the other.
                let mut tunnel = incoming.accept().await.expect("accept");
                let (digest, size) = digest(&mut tunnel).await.expect("whole");
                let answer = format!("{} {size}", hex::encode(digest));
                tunnel.write_all(answer.as_bytes()).await.expect("answer");
                tunnel.shutdown().await.expect("end");
            }
            "cut" => {
                let mut tunnel = incoming.accept().await.expect("accept");
                tunnel.write_all(b"half a mess").await.expect("some");
                tunnel.flush().await.expect("flush");
                // Dropped without an end, as by a crash.
            }
            "hold" => {
                let _tunnel = incoming.accept().await.expect("accept");
                std::future::pending::<()>().await;
            }
            _ => drop(incoming),
        }
    }
}

async fn digest(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<([u8; 32], u64)> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok((hash.finalize().into(), size)),
            n => {
                hash.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
}

/// Bytes of which no two stretches are alike, so that a lost or swapped one shows.
fn pattern(block: u64) -> Vec<u8> {
    (0..8192u64)
        .flat_map(|i| {
            (block * 8192 + i)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .to_le_bytes()
        })
        .collect()
}

struct Hosts {
    fleet: Fleet,
    server: Running,
    dialer: TunnelDialer,
    traffic: Traffic,
    socket: PathBuf,
}

impl Hosts {
    async fn new() -> Self {
        let fleet = Fleet::new();
        let socket = fleet.dir.path().join("behind.sock");
        let traffic = Traffic::default();
        let mut server = fleet.server(&host("a"));
        server.tunnels = Some(Arc::new(Acceptor {
            socket: socket.clone(),
            traffic: traffic.clone(),
        }));
        server.limits = Limits {
            shutdown_grace: Duration::from_millis(200),
            ..Limits::default()
        };
        let server = server.start().await;
        let dialer = TunnelDialer::new(fleet.live(&host("b")), fleet.trust())
            .with_timeout(Duration::from_secs(5));
        Self {
            fleet,
            server,
            dialer,
            traffic,
            socket,
        }
    }

    async fn dial(&self, kind: &str) -> Result<fleetward_link::tunnel::Tunnel, TunnelError> {
        let address = self.server.address.to_string();
        let header = TunnelHeader::new(kind, "s1").with_params(serde_json::json!({ "x": 1 }));
        soon(self.dialer.dial(&address, &host("a"), &header)).await
    }

    fn relay(&self, kind: &str) -> UnixRelay {
        let target = TunnelTarget {
            address: self.server.address.to_string(),
            expected: host("a"),
            header: TunnelHeader::new(kind, "s1"),
        };
        let socket = SocketSpec::new(self.fleet.dir.path().join("relay.sock"));
        UnixRelay::open(&socket, self.dialer.clone(), target).expect("relay")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_arrive_unchanged_and_the_answer_comes_after_the_end() {
    let hosts = Hosts::new().await;
    let mut tunnel = hosts.dial("digest").await.expect("open");
    assert_eq!(tunnel.peer(), &host("a"));
    let mut hash = Sha256::new();
    for block in 0..SIZE / (64 * 1024) {
        let bytes = pattern(block);
        hash.update(&bytes);
        tunnel.write_all(&bytes).await.expect("write");
    }
    tunnel.shutdown().await.expect("end of our direction");
    let mut answer = String::new();
    soon(tunnel.read_to_string(&mut answer))
        .await
        .expect("answer");
    let expected: [u8; 32] = hash.finalize().into();
    assert_eq!(answer, format!("{} {SIZE}", hex::encode(expected)));
}

#[tokio::test]
async fn a_refusal_carries_its_code_and_message() {
    let hosts = Hosts::new().await;
    let error = hosts.dial("no").await.expect_err("refused");
    let TunnelError::Refused { code, message } = error else {
        panic!("{error:?}");
    };
    assert_eq!((code.as_str(), message.as_str()), ("BUSY", "not now"));
}

#[tokio::test]
async fn a_tunnel_nobody_answers_is_an_error() {
    let hosts = Hosts::new().await;
    let error = hosts.dial("unknown").await.expect_err("closed");
    assert!(matches!(error, TunnelError::Stream(_)), "{error:?}");
}

#[tokio::test]
async fn a_stranger_at_the_address_is_refused() {
    let hosts = Hosts::new().await;
    let address = hosts.server.address.to_string();
    let header = TunnelHeader::new("digest", "s1");
    let dialing = hosts.dialer.dial(&address, &Identity::Controller, &header);
    let error = soon(dialing).await.expect_err("refused");
    assert!(matches!(error, TunnelError::Dial(_)), "{error:?}");
}

#[tokio::test]
async fn a_stream_that_was_cut_is_never_taken_for_a_whole_one() {
    let hosts = Hosts::new().await;
    let mut tunnel = hosts.dial("cut").await.expect("open");
    let mut read = Vec::new();
    let error = soon(tunnel.read_to_end(&mut read)).await.expect_err("cut");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(read, b"half a mess");
}

#[tokio::test]
async fn a_peer_that_dies_in_mid_stream_is_an_error_in_bounded_time() {
    let hosts = Hosts::new().await;
    // The wire can be cut without either end saying goodbye to the other.
    let wire = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = wire.local_addr().expect("address").to_string();
    let far = hosts.server.address;
    let carrier = tokio::spawn(async move {
        let (mut near, _) = wire.accept().await.expect("accept");
        let mut far = TcpStream::connect(far).await.expect("connect");
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    let header = TunnelHeader::new("hold", "s1");
    let mut tunnel = soon(hosts.dialer.dial(&address, &host("a"), &header))
        .await
        .expect("open");
    tunnel.write_all(b"some").await.expect("write");
    carrier.abort();
    let error = soon(tunnel.read(&mut [0; 10])).await.expect_err("dead");
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_stopping_server_ends_its_tunnels_with_an_error() {
    let hosts = Hosts::new().await;
    let mut tunnel = hosts.dial("hold").await.expect("open");
    hosts.server.stop.cancel();
    let error = soon(tunnel.read(&mut [0; 10])).await.expect_err("ended");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_socket_behaves_like_the_socket_behind_it() {
    let hosts = Hosts::new().await;
    let behind = UnixListener::bind(&hosts.socket).expect("bind");
    // Echoes what it reads, in capitals, and says goodbye after the end.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = behind.accept().await {
            tokio::spawn(async move {
                let mut text = String::new();
                stream.read_to_string(&mut text).await.expect("to the end");
                let answer = text.to_uppercase() + " BYE";
                stream.write_all(answer.as_bytes()).await.expect("answer");
            });
        }
    });
    let relay = hosts.relay("socket");
    let mode = std::fs::metadata(relay.path())
        .expect("socket")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    for word in ["one", "two"] {
        let mut stream = UnixStream::connect(relay.path()).await.expect("connect");
        stream.write_all(word.as_bytes()).await.expect("write");
        stream.shutdown().await.expect("end");
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer))
            .await
            .expect("answer");
        assert_eq!(answer, format!("{} BYE", word.to_uppercase()));
    }
    let traffic = relay.traffic().clone();
    assert_eq!((traffic.forth(), traffic.back()), (6, 14));
    until(|| hosts.traffic.total() == 20).await;
    assert!(relay.last_failure().is_none());

    let path = relay.path().to_owned();
    soon(relay.close()).await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_relay_tells_why_a_connection_failed_and_goes_on() {
    let hosts = Hosts::new().await;
    let relay = hosts.relay("socket");
    let mut stream = UnixStream::connect(relay.path()).await.expect("connect");
    let read = soon(stream.read(&mut [0; 10])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    until(|| relay.last_failure().is_some()).await;
    let failure = relay.last_failure().expect("kept");
    let TunnelError::Refused { code, .. } = &*failure else {
        panic!("{failure:?}");
    };
    assert_eq!(code, fleetward_link::tunnel::CODE_NO_SOCKET);
    UnixStream::connect(relay.path())
        .await
        .expect("still there");
}

#[tokio::test]
async fn closing_a_relay_ends_its_connections() {
    let hosts = Hosts::new().await;
    let relay = hosts.relay("hold");
    let mut stream = UnixStream::connect(relay.path()).await.expect("connect");
    stream.write_all(b"x").await.expect("write");
    until(|| relay.traffic().forth() == 1).await;
    soon(relay.close()).await;
    let read = soon(stream.read(&mut [0; 10])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}
