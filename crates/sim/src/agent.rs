//! An agent whose hypervisor is a map. Enough of one to hold the controller to the agents' contract: it refuses what the
//! real one refuses, remembers what was asked, and can be told to fail.

mod audit;
mod conversion;
mod endpoints;
mod inner;
mod load;
mod perform;
mod report;
mod rules;
mod tpms;
pub mod variables;
mod vm;

pub use conversion::FakeConversion;
pub use endpoints::TUNNEL;
pub use inner::{Death, FakeCertificate, Given, Inner, Peers};
pub use vm::{FakeVm, SimulatedTpm};

use fleetward_link::{
    Client, ClientCertificates, ClientTls, Credential, FleetTrust, Identity, LiveCredential,
    Refusals, ServerTls, TlsServer,
};
use fleetward_model::guardian::GuardianFacts;
use fleetward_model::vm::VmState;
use fleetward_model::{ErrorCode, Failure, GroupName, HostName};
use fleetward_protector_open::LocalGuardian;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

/// A running fake agent.
#[derive(Debug, Clone)]
pub struct FakeAgent {
    pub host: HostName,
    pub inner: Arc<Mutex<Inner>>,
    pub credential: LiveCredential,
    /// Its guardian with the private keys.
    pub own: Option<Arc<LocalGuardian>>,
    /// The key of its EK authority.
    pub ek: Option<Arc<rcgen::KeyPair>>,
    tls: ServerTls,
    pub address: SocketAddr,
    stop: Arc<Mutex<CancellationToken>>,
}

impl FakeAgent {
    /// One that listens.
    pub async fn start(
        host: HostName,
        group: GroupName,
        guardian: GuardianFacts,
        credential: Credential,
        trust: FleetTrust,
        address: SocketAddr,
    ) -> Self {
        let agent = Self::new(host, group, guardian, credential, trust, address);
        agent.serve().await;
        agent
    }

    /// One that does not listen yet.
    pub fn new(
        host: HostName,
        group: GroupName,
        guardian: GuardianFacts,
        credential: Credential,
        trust: FleetTrust,
        address: SocketAddr,
    ) -> Self {
        let stop: Arc<Mutex<CancellationToken>> = Arc::default();
        let (credential, refusals) = (LiveCredential::new(credential), Refusals::default());
        let certificate = FakeCertificate {
            live: credential.clone(),
            refusals: refusals.clone(),
            asked: None,
            fails: false,
        };
        let facts = inner::facts(&host, group, guardian);
        let inner = Inner::new(facts, certificate, stop.clone());
        let tls = ServerTls::new(credential.clone(), trust, ClientCertificates::Required)
            .with_refusals(refusals);
        let inner = Arc::new(Mutex::new(inner));
        Self {
            host,
            inner,
            credential,
            own: None,
            ek: None,
            tls,
            address,
            stop,
        }
    }

    /// Listens again after [`cut`](Self::cut).
    pub async fn serve(&self) {
        self.listen().await.expect("bind");
    }

    /// Listens, also again after [`cut`](Self::cut).
    pub async fn listen(&self) -> io::Result<()> {
        let limits = fleetward_link::Limits {
            shutdown_grace: std::time::Duration::ZERO,
            ..Default::default()
        };
        let server = TlsServer::bind(self.address, self.tls.clone()).await?;
        let router = endpoints::router(self.inner.clone());
        let stop = CancellationToken::new();
        *self.stop.lock().expect("lock") = stop.clone();
        tokio::spawn(server.with_limits(limits).serve(router, stop));
        Ok(())
    }

    /// Listens again after [`cut`](Self::cut), as soon as what listened before has let go of the address. A host whose
    /// address somebody else has taken stays away, and says so.
    pub async fn listen_again(&self) {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
        let begin = std::time::Instant::now();
        while let Err(error) = self.listen().await {
            if begin.elapsed() > PATIENCE {
                tracing::warn!(host = %self.host, %error, "the host does not come back");
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// A client that shows this host's certificate.
    pub fn client_of(&self, controller: SocketAddr, trust: FleetTrust) -> Client {
        let tls = ClientTls::member(self.credential.clone(), trust, Identity::Controller);
        Client::tls(controller.to_string(), tls)
    }

    /// Its process is another one: it reports from its own begin on. What a real agent has on its disk stays: the newest
    /// generations, the audit log, what it has witnessed, and VMs.
    pub fn begin_anew(&self) {
        self.look(inner::Inner::begin_anew);
    }

    /// No longer answers.
    pub fn cut(&self) {
        self.stop.lock().expect("lock").cancel();
    }

    /// Loses its power when `operation` is asked of it: before it is done, or after and before it is answered.
    pub fn dies_at(&self, operation: &'static str, after: bool) {
        let death = Death {
            who: self.stop.clone(),
            peer: false,
            after,
        };
        self.look(|inner| inner.deaths.insert(operation, death));
    }

    /// Has power again: what ran does not run any more.
    pub async fn comes_back(&self) {
        self.look(|inner| {
            for vm in inner.vms.values_mut() {
                vm.state = VmState::Stopped;
            }
            inner.asked.clear();
        });
        self.serve().await;
    }

    /// `other` loses its power when `operation` is asked of this one.
    pub fn outlives(&self, other: &FakeAgent, operation: &'static str, after: bool) {
        let death = Death {
            who: other.stop.clone(),
            peer: true,
            after,
        };
        self.look(|inner| inner.deaths.insert(operation, death));
    }

    pub fn look<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.inner.lock().expect("lock"))
    }

    /// Says and answers nothing from now on, or goes on. Its connections stay, as those of a host that hangs.
    pub fn silence(&self, silent: bool) {
        self.look(|inner| inner.silent.send_replace(silent));
    }

    /// Lets the two move VMs between each other.
    pub fn knows(&self, other: &FakeAgent) {
        self.look(|inner| inner.peers.add(&other.host, &other.inner));
        other.look(|inner| inner.peers.add(&self.host, &self.inner));
    }

    /// Lets all those move VMs between each other.
    pub fn meets(&self, peers: &Peers) {
        peers.add(&self.host, &self.inner);
        self.look(|inner| inner.peers = peers.clone());
    }

    /// Nothing of any VM.
    pub fn is_clean(&self) -> bool {
        self.look(|inner| inner.vms.is_empty() && inner.volumes.is_empty() && inner.tpms.is_empty())
    }

    /// Fails `operation` once.
    pub fn fail_once(&self, operation: &'static str, code: ErrorCode) {
        self.look(|inner| {
            inner.fail.insert(
                operation,
                Failure::new(code, format!("{operation} was told to fail")),
            )
        });
    }
}

type Shared = Arc<Mutex<Inner>>;
