//! The server for people and programs without a certificate of the fleet: whom its clients believe, and how long a
//! connection stays a stranger's.

use crate::support::{Running, soon, whoami, whoami_text};
use axum::Extension;
use axum::body::Body;
use axum::extract::ws::WebSocket;
use axum::extract::{State, WebSocketUpgrade};
use axum::http::{HeaderMap, Method};
use axum::response::IntoResponse;
use axum::routing::get;
use fleetward_link::web::self_made;
use fleetward_link::{
    Client, ClientError, ClientTls, DialError, Limits, LiveWebCertificate, ServerTls, TlsServer,
    Visit, WebCertificate,
};
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use std::time::Duration;
use time::OffsetDateTime;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

/// What a stranger has in these tests.
const STRANGER_TIME: Duration = Duration::from_millis(300);

struct Web {
    running: Running,
    certificate: LiveWebCertificate,
    /// PEM.
    own: String,
    /// Ends the welcome of everybody.
    revoked: CancellationToken,
}

impl Web {
    async fn start() -> Self {
        let text = self_made(vec!["localhost".to_owned(), "127.0.0.1".to_owned()], now());
        let text = text.expect("a certificate");
        let certificate = WebCertificate::from_pem(&text, &text).expect("usable");
        let own = certificate.to_pem();
        let certificate = LiveWebCertificate::new(certificate);
        let limits = Limits {
            stranger_time: STRANGER_TIME,
            ..Limits::default()
        };
        let server = TlsServer::bind("127.0.0.1:0", ServerTls::web(certificate.clone()))
            .await
            .expect("bind")
            .with_limits(limits);
        let address = server.local_addr().expect("address");
        let (stop, revoked) = (CancellationToken::new(), CancellationToken::new());
        let router = whoami()
            .route("/token", get(token))
            .route("/come-in", get(come_in))
            .route("/stream", get(stream))
            .route("/stranger", get(without_end))
            .route("/echo", get(echo))
            .with_state(revoked.clone());
        let task = tokio::spawn(server.serve(router, stop.clone()));
        Self {
            running: Running {
                address,
                stop,
                task,
            },
            certificate,
            own,
            revoked,
        }
    }

    fn client(&self, host: &str, roots: &str) -> Client {
        let tls = ClientTls::web(host, Some(roots.as_bytes())).expect("usable");
        Client::tls(self.running.address.to_string(), tls)
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

async fn token(headers: HeaderMap) -> String {
    let value = headers.get("authorization").expect("a header");
    value.to_str().expect("text").to_owned()
}

fn let_in(visit: &Visit, revoked: CancellationToken) {
    visit.welcome("kim", async move { revoked.cancelled().await });
}

async fn come_in(visit: Extension<Visit>, State(revoked): State<CancellationToken>) {
    let_in(&visit, revoked);
}

/// Bytes without an end, to somebody who is known.
async fn stream(
    visit: Extension<Visit>,
    State(revoked): State<CancellationToken>,
) -> impl IntoResponse {
    let_in(&visit, revoked);
    without_end().await
}

async fn without_end() -> Body {
    let piece = || async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok::<_, std::io::Error>("more\n")
    };
    Body::from_stream(futures_util::stream::repeat_with(piece).then(|piece| piece))
}

async fn echo(
    visit: Extension<Visit>,
    State(revoked): State<CancellationToken>,
    upgrade: WebSocketUpgrade,
) -> impl IntoResponse {
    let_in(&visit, revoked);
    upgrade.on_upgrade(|mut socket: WebSocket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

fn refused(error: &ClientError) -> bool {
    matches!(error, ClientError::Dial(DialError::TlsRefused { .. }))
}

#[tokio::test]
async fn a_server_is_believed_for_its_names_by_who_trusts_its_certificate() {
    let web = Web::start().await;
    for host in ["localhost", "127.0.0.1"] {
        let served = soon(whoami_text(&web.client(host, &web.own))).await;
        assert_eq!(served.expect("served"), "anonymous");
    }
    let other_name = soon(whoami_text(&web.client("elsewhere.example", &web.own))).await;
    assert!(refused(&other_name.expect_err("another name")));
    let other = self_made(vec!["localhost".to_owned()], now()).expect("a certificate");
    let stranger = soon(whoami_text(&web.client("localhost", &other))).await;
    assert!(refused(&stranger.expect_err("another certificate")));
    let tls = ClientTls::web("localhost", None).expect("this machine believes somebody");
    let system = Client::tls(web.running.address.to_string(), tls);
    let unknown = soon(whoami_text(&system)).await;
    assert!(refused(&unknown.expect_err("nobody vouches for it")));
    assert!(ClientTls::web("no name", None).is_err());
}

#[tokio::test]
async fn another_certificate_is_presented_without_a_restart() {
    let web = Web::start().await;
    let text = self_made(vec!["localhost".to_owned()], now()).expect("a certificate");
    let next = WebCertificate::from_pem(&text, &text).expect("usable");
    let next_pem = next.to_pem();
    assert_ne!(next.fingerprint(), web.certificate.current().fingerprint());
    web.certificate.replace(next);
    let former = soon(whoami_text(&web.client("localhost", &web.own))).await;
    assert!(refused(&former.expect_err("the former is gone")));
    soon(whoami_text(&web.client("localhost", &next_pem)))
        .await
        .expect("served");
}

#[tokio::test]
async fn a_token_goes_with_every_request() {
    let web = Web::start().await;
    let client = web.client("localhost", &web.own).with_token("fwt1.x.y");
    let client = client.expect("a header");
    for _ in 0..2 {
        let sent = soon(client.request(Method::GET, "/token").send()).await;
        let body = sent.expect("served").bytes(100).await.expect("text");
        assert_eq!(&body[..], b"Bearer fwt1.x.y");
    }
    let unsendable = web.client("localhost", &web.own).with_token("a\nb");
    assert!(matches!(unsendable, Err(ClientError::Token)));
}

#[tokio::test]
async fn only_who_is_known_has_time() {
    let web = Web::start().await;
    let client = web.client("localhost", &web.own);
    // A body that goes on for longer than a stranger may stay.
    let begun = tokio::time::Instant::now();
    let sent = soon(client.request(Method::GET, "/stream").send()).await;
    let mut pieces = Box::pin(sent.expect("served").into_stream());
    while begun.elapsed() < STRANGER_TIME * 3 {
        soon(pieces.try_next())
            .await
            .expect("goes on")
            .expect("more");
    }
    // The same without a welcome.
    let sent = soon(client.request(Method::GET, "/stranger").send()).await;
    let mut pieces = Box::pin(sent.expect("served").into_stream());
    soon(async { while let Ok(Some(_)) = pieces.try_next().await {} }).await;
}

#[tokio::test]
async fn who_is_not_welcome_any_more_is_cut_off_streams_and_sockets_included() {
    let web = Web::start().await;
    let client = web.client("localhost", &web.own);
    let sent = soon(client.request(Method::GET, "/stream").send()).await;
    let mut pieces = Box::pin(sent.expect("served").into_stream());
    soon(pieces.try_next())
        .await
        .expect("goes on")
        .expect("more");

    let upgrade = client.request(Method::GET, "/echo").upgrade_to_websocket();
    let io = soon(upgrade).await.expect("a socket");
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    soon(socket.send("hello".into())).await.expect("sent");
    let heard = soon(socket.next()).await.expect("an echo");
    assert_eq!(heard.expect("whole").to_text().expect("text"), "hello");

    web.revoked.cancel();
    soon(async { while let Ok(Some(_)) = pieces.try_next().await {} }).await;
    soon(async { while let Some(Ok(_)) = socket.next().await {} }).await;
    // Nothing but the welcome has ended.
    soon(client.request(Method::GET, "/whoami").send())
        .await
        .expect("a new connection is served");
}

#[tokio::test]
async fn a_connection_that_is_welcomed_again_waits_for_one_end() {
    let web = Web::start().await;
    let client = web.client("localhost", &web.own);
    for _ in 0..50 {
        soon(client.request(Method::GET, "/come-in").send())
            .await
            .expect("served");
    }
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    // The server, its connection, the client's and the wait for the end.
    assert!(tasks < 20, "{tasks} tasks");
}
