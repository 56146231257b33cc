//! Requests, streams, upgrades and failures, over TLS and over the Unix socket.

use crate::support::{Fleet, host, soon, whoami, whoami_text};
use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::WebSocketUpgrade;
use axum::extract::ws::Message;
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;
use fleetward_link::client::Timeouts;
use fleetward_link::{
    Client, ClientCertificates, ClientError, DialError, Identity, Limits, ServerTls, SocketSpec,
    TlsServer, UnixServer,
};
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_util::sync::CancellationToken;

fn router() -> Router {
    whoami()
        .route("/sum", post(|Json(numbers): Json<Vec<u64>>| async move { Json(numbers.iter().sum::<u64>()) }))
        .route("/count", post(count))
        .route("/lines", get(lines))
        .route("/events", get(|| async { ": hello\n\nevent: step\nid: 7\ndata: {\"a\":1}\n\ndata: x\r\ndata: y\r\n\r\n: end\n" }))
        .route("/no", get(|| async { (StatusCode::CONFLICT, "because") }))
        .route("/never", get(std::future::pending::<()>))
        .route("/stuck", get(stuck))
        .route("/echo", get(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) }))
}

async fn count(body: Body) -> String {
    let counted = body
        .into_data_stream()
        .try_fold(0, |sum, chunk: Bytes| async move { Ok(sum + chunk.len()) });
    counted.await.expect("whole body").to_string()
}

async fn lines() -> impl IntoResponse {
    let pieces = ["{\"n\":", "1}\n{\"n\":2}\n\n", "{\"n\":3}"];
    let stream = futures_util::stream::iter(pieces).then(|piece| async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok::<_, std::io::Error>(piece)
    });
    Body::from_stream(stream)
}

async fn stuck() -> impl IntoResponse {
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>("begun\n")]);
    Body::from_stream(first.chain(futures_util::stream::pending()))
}

async fn echo(mut socket: axum::extract::ws::WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Binary(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}

struct Local {
    client: Client,
    path: std::path::PathBuf,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Local {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn local() -> Local {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("api.sock");
    let server = UnixServer::bind(SocketSpec::new(&path)).expect("bind");
    let stop = CancellationToken::new();
    tokio::spawn(server.serve(router(), stop.clone()));
    Local {
        client: Client::unix(&path),
        path,
        stop,
        _dir: dir,
    }
}

#[tokio::test]
async fn the_unix_socket_gives_a_local_administrator_with_all_rights() {
    let local = local();
    let shown = soon(whoami_text(&local.client)).await.expect("answer");
    let uid = nix::unistd::getuid().as_raw();
    assert_eq!(shown, format!("local:{uid}"));
    let peer = fleetward_link::Peer::Local { uid, pid: 1 };
    assert_eq!(peer.role(), Some(fleetward_model::role::Role::Admin));
    let metadata = std::fs::metadata(&local.path).expect("socket");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn both_doors_carry_every_kind_of_exchange() {
    let local = local();
    exercise(&local.client).await;

    let fleet = Fleet::new();
    let mut server = fleet.server(&host("a"));
    server.router = router();
    let server = server.start().await;
    let client = fleet.client(&Identity::Controller, server.address, &host("a"));
    exercise(&client).await;
}

async fn exercise(client: &Client) {
    let sum: u64 = soon(client.post("/sum", &[1, 2, 3])).await.expect("sum");
    assert_eq!(sum, 6);

    let size = 5_000_000;
    for length in [None, Some(size)] {
        let body = tokio::io::repeat(7).take(size);
        let upload = client
            .request(Method::POST, "/count")
            .upload(body, length)
            .send();
        let counted: u64 = soon(upload).await.expect("upload").json().await.expect("n");
        assert_eq!(counted, size);
    }

    let response = client.request(Method::GET, "/lines").send();
    let mut lines = soon(response).await.expect("lines").lines();
    for n in 1..=3 {
        let line: Option<serde_json::Value> = soon(lines.next_json()).await.expect("line");
        assert_eq!(line, Some(serde_json::json!({ "n": n })));
    }
    assert!(soon(lines.next()).await.expect("end").is_none());

    let response = client.request(Method::GET, "/events").send();
    let mut events = soon(response).await.expect("events").events();
    let event = soon(events.next()).await.expect("event").expect("first");
    assert_eq!(
        (event.event.as_str(), event.id.as_deref()),
        ("step", Some("7"))
    );
    assert_eq!(event.json::<serde_json::Value>().expect("json")["a"], 1);
    let event = soon(events.next()).await.expect("event").expect("second");
    assert_eq!(event.data, "x\ny");
    assert!(soon(events.next()).await.expect("end").is_none());

    let upgrade = client.request(Method::GET, "/echo").upgrade_to_websocket();
    let io = soon(upgrade).await.expect("upgrade");
    let role = tungstenite::protocol::Role::Client;
    let mut socket = WebSocketStream::from_raw_socket(io, role, None).await;
    socket
        .send(tungstenite::Message::Binary(Bytes::from_static(b"hello")))
        .await
        .expect("send");
    let echoed = soon(socket.next()).await.expect("message").expect("echo");
    assert_eq!(echoed.into_data().as_ref(), b"hello");
}

#[tokio::test]
async fn an_error_status_carries_its_body() {
    let local = local();
    let error = soon(local.client.get::<()>("/no")).await.expect_err("409");
    let ClientError::Status { code, body } = &error else {
        panic!("{error:?}");
    };
    assert_eq!((code.as_u16(), body.as_ref()), (409, b"because".as_ref()));
    assert!(!error.is_unreached());

    let upgrade = local.client.request(Method::GET, "/no");
    let error = soon(upgrade.upgrade_to_websocket()).await.expect_err("409");
    assert!(matches!(error, ClientError::Status { .. }), "{error:?}");
}

#[tokio::test]
async fn silence_is_bounded_before_and_within_the_answer() {
    let local = local();
    let client = local.client.clone().with_timeouts(Timeouts {
        response: Some(Duration::from_millis(200)),
        idle: Some(Duration::from_millis(200)),
        ..Timeouts::default()
    });
    let error = soon(client.get::<()>("/never")).await.expect_err("silent");
    assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");

    let response = client.request(Method::GET, "/stuck").send();
    let mut lines = soon(response).await.expect("header").lines();
    let first = soon(lines.next()).await.expect("first line");
    assert_eq!(first.as_deref(), Some("begun"));
    let error = soon(lines.next()).await.expect_err("silent");
    assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_listening_is_told_apart_from_a_broken_exchange() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let client = Client::unix(dir.path().join("none.sock"));
    let error = soon(whoami_text(&client)).await.expect_err("nobody");
    assert!(
        matches!(error, ClientError::Dial(DialError::Refused { .. })),
        "{error:?}"
    );
    assert!(error.is_unreached());

    let path = dir.path().join("rude.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("bind");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 100]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le").await;
        }
    });
    let error = soon(whoami_text(&Client::unix(path)))
        .await
        .expect_err("cut");
    assert!(matches!(error, ClientError::Broken { .. }), "{error:?}");
    assert!(!error.is_unreached());
}

#[tokio::test]
async fn a_full_queue_of_the_unix_socket_is_waited_for() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("busy.sock");
    let socket = tokio::net::UnixSocket::new_stream().expect("socket");
    socket.bind(&path).expect("bind");
    let listener = socket.listen(1).expect("listen");
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let client = Client::unix(&path);
            tokio::spawn(async move { whoami_text(&client).await })
        })
        .collect();
    let full = async {
        loop {
            match tokio::net::UnixStream::connect(&path).await {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    soon(full).await;
    let impatient = Client::unix(&path).with_timeouts(Timeouts {
        connect: Duration::from_millis(200),
        ..Timeouts::default()
    });
    let error = soon(whoami_text(&impatient)).await.expect_err("full");
    assert!(
        matches!(error, ClientError::Dial(DialError::Timeout { .. })),
        "{error:?}"
    );

    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nme";
            let _ = stream.read(&mut [0; 1000]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    for client in clients {
        let answer = soon(client).await.expect("no panic");
        assert_eq!(answer.expect("an answer"), "me");
    }
}

#[tokio::test]
async fn a_silent_peer_at_the_address_is_a_timeout() {
    let fleet = Fleet::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let address = listener.local_addr().expect("address");
    let client = fleet
        .client(&Identity::Controller, address, &host("a"))
        .with_timeouts(Timeouts {
            connect: Duration::from_millis(200),
            ..Timeouts::default()
        });
    let error = soon(whoami_text(&client)).await.expect_err("silent");
    assert!(
        matches!(error, ClientError::Dial(DialError::Timeout { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_request_header_that_never_ends_is_cut_off() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("api.sock");
    let server = UnixServer::bind(SocketSpec::new(&path))
        .expect("bind")
        .with_limits(Limits {
            header_timeout: Duration::from_millis(200),
            ..Limits::default()
        });
    let stop = CancellationToken::new();
    tokio::spawn(server.serve(router(), stop.clone()));
    let mut slow = tokio::net::UnixStream::connect(&path)
        .await
        .expect("connect");
    slow.write_all(b"GET /whoami HTTP/1.1\r\nx: ")
        .await
        .expect("some");
    let mut answer = Vec::new();
    soon(slow.read_to_end(&mut answer)).await.expect("closed");
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    stop.cancel();
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("left behind"));
    let live = UnixServer::bind(SocketSpec::new(&path)).expect("replaced");
    assert!(UnixServer::bind(SocketSpec::new(&path)).is_err());
    drop(live);
    assert!(!path.exists());

    std::fs::write(&path, "a file of somebody's").expect("write");
    assert!(UnixServer::bind(SocketSpec::new(&path)).is_err());
    assert!(path.exists());
}

/// What somebody who may write the directory puts where the socket is to be: not connected to, removed, or opened to others.
#[tokio::test]
async fn what_is_planted_in_the_place_of_a_socket_is_left_alone() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = tempfile::tempdir().expect("temporary directory");
    let (path, secret) = (dir.path().join("api.sock"), dir.path().join("secret"));
    std::fs::write(&secret, "a key").expect("write");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("mode");
    let theirs = dir.path().join("theirs.sock");
    let listener = std::os::unix::net::UnixListener::bind(&theirs).expect("bind");
    listener.set_nonblocking(true).expect("set");
    for target in [&secret, &theirs] {
        symlink(target, &path).expect("link");
        assert!(UnixServer::bind(SocketSpec::new(&path).with_mode(0o666)).is_err());
        std::fs::remove_file(&path).expect("still there");
    }
    let called = listener.accept().expect_err("nobody called");
    assert_eq!(called.kind(), std::io::ErrorKind::WouldBlock);
    let mode = |path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&secret), 0o600);
    let _live = UnixServer::bind(SocketSpec::new(&path).with_mode(0o660)).expect("without it");
    assert_eq!(mode(&path), 0o660);
}

/// A server in a runtime of its own, which says something every 50 ms.
fn talking_server(fleet: &Fleet) -> std::net::SocketAddr {
    let credential = fleet.live(&host("a"));
    let tls = ServerTls::new(credential, fleet.trust(), ClientCertificates::Required);
    let (sender, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let server = TlsServer::bind("127.0.0.1:0", tls).await.expect("bind");
            sender
                .send(server.local_addr().expect("address"))
                .expect("the test waits");
            let talk = get(|| async {
                Body::from_stream(futures_util::stream::unfold((), |()| async {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Some((Ok::<_, std::io::Error>("alive\n"), ()))
                }))
            });
            let router = Router::new().route("/talk", talk);
            let served = server.serve(router, CancellationToken::new());
            // The test's end ends it.
            let _ = served.await;
        });
    });
    address.recv().expect("an address")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_held_up_does_not_take_its_peer_for_silent() {
    let fleet = Fleet::new();
    let address = talking_server(&fleet);
    let client = fleet.client(&host("b"), address, &host("a"));
    let (heard, hears) = tokio::sync::watch::channel(0);
    let listening = tokio::spawn(async move {
        let request = client.request(Method::GET, "/talk");
        let request = request.idle_timeout(Some(Duration::from_millis(400)));
        let mut lines = request.send().await?.lines();
        while lines.next().await?.is_some() {
            heard.send_modify(|n| *n += 1);
        }
        Ok::<_, ClientError>(())
    });
    soon(hears.clone().wait_for(|n| *n > 2))
        .await
        .expect("heard");
    for _ in 0..3 {
        let both = std::sync::Arc::new(std::sync::Barrier::new(2));
        let stalls = [both.clone(), both].map(|both| {
            tokio::spawn(async move {
                both.wait();
                std::thread::sleep(Duration::from_millis(1500));
            })
        });
        for stall in stalls {
            stall.await.expect("no panic");
        }
        let before = *hears.borrow();
        let more = soon(hears.clone().wait_for(|n| *n > before + 2))
            .await
            .is_ok();
        assert!(more, "{:?}", listening.await);
    }
    listening.abort();
}
