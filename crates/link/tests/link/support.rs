//! A fleet in a temporary directory, and servers of it on free ports.

use axum::Router;
use axum::routing::get;
use fleetward_link::authority::MEMBER_LIFETIME;
use fleetward_link::tunnel::TunnelService;
use fleetward_link::{
    Client, ClientCertificates, ClientTls, Credential, FleetAuthority, FleetTrust, Identity,
    KeyRequest, Limits, LiveCredential, Peer, ServerTls, TlsServer, Validity,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

pub(crate) struct Fleet {
    pub(crate) authority: FleetAuthority,
    pub(crate) dir: tempfile::TempDir,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let authority =
            FleetAuthority::open(dir.path(), OffsetDateTime::now_utc()).expect("authority");
        Self { authority, dir }
    }

    /// One that was made years ago.
    pub(crate) fn old() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let made = OffsetDateTime::now_utc() - time::Duration::days(5 * 365);
        let authority = FleetAuthority::open(dir.path(), made).expect("authority");
        Self { authority, dir }
    }

    pub(crate) fn trust(&self) -> FleetTrust {
        self.authority.trust().clone()
    }

    pub(crate) fn credential(&self, identity: &Identity) -> Credential {
        let validity = Validity::starting(OffsetDateTime::now_utc(), MEMBER_LIFETIME);
        self.credential_valid(identity, validity)
    }

    pub(crate) fn credential_valid(&self, identity: &Identity, validity: Validity) -> Credential {
        let request = KeyRequest::generate().expect("key");
        let chain = self
            .authority
            .issue(request.csr_pem(), identity, validity)
            .expect("certificate");
        request.into_credential(&chain).expect("credential")
    }

    pub(crate) fn live(&self, identity: &Identity) -> LiveCredential {
        LiveCredential::new(self.credential(identity))
    }

    pub(crate) fn client(
        &self,
        as_member: &Identity,
        address: SocketAddr,
        expected: &Identity,
    ) -> Client {
        let tls = ClientTls::member(self.live(as_member), self.trust(), expected.clone());
        Client::tls(address.to_string(), tls)
    }

    pub(crate) fn server(&self, identity: &Identity) -> ServerBuilder {
        ServerBuilder {
            credential: self.live(identity),
            trust: self.trust(),
            clients: ClientCertificates::Required,
            tunnels: None,
            limits: Limits::default(),
            router: whoami(),
        }
    }
}

pub(crate) struct ServerBuilder {
    pub(crate) credential: LiveCredential,
    pub(crate) trust: FleetTrust,
    pub(crate) clients: ClientCertificates,
    pub(crate) tunnels: Option<Arc<dyn TunnelService>>,
    pub(crate) limits: Limits,
    pub(crate) router: Router,
}

impl ServerBuilder {
    pub(crate) async fn start(self) -> Running {
        let tls = ServerTls::new(self.credential, self.trust, self.clients);
        let mut server = TlsServer::bind("127.0.0.1:0", tls)
            .await
            .expect("bind")
            .with_limits(self.limits);
        if let Some(tunnels) = self.tunnels {
            server = server.with_tunnels(tunnels);
        }
        let address = server.local_addr().expect("address");
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.serve(self.router, stop.clone()));
        Running {
            address,
            stop,
            task,
        }
    }
}

/// A server at work; it stops when this is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Answers with what audit records would name the caller.
pub(crate) fn whoami<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/whoami", get(|peer: Peer| async move { peer.to_string() }))
}

pub(crate) async fn whoami_text(client: &Client) -> Result<String, fleetward_link::ClientError> {
    let response = client.request(http_method(), "/whoami").send().await?;
    let body = response.bytes(1000).await?;
    Ok(String::from_utf8(body.to_vec()).expect("text"))
}

fn http_method() -> axum::http::Method {
    axum::http::Method::GET
}

pub(crate) fn host(name: &str) -> Identity {
    Identity::Host(name.parse().expect("name"))
}

/// Bounds what must not take long.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("within twenty seconds")
}

/// Polls until a condition holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
