//! A controller and agents that keep their VMs in memory, over real mutual TLS on the loopback interface.

pub(crate) use fleetward_sim::agent;

use agent::FakeAgent;
use fleetward_api::controller::{
    AdminReply, AdminRequest, JobState, JobView, JoinReply, JoinRequest, Role, TokenRequest,
    TokenView,
};
use fleetward_controller::{ConsoleOptions, Options};
use fleetward_link::{
    Client, ClientError, ClientTls, Credential, FleetAuthority, FleetTrust, Identity, KeyRequest,
    LiveCredential, Validity,
};
use fleetward_model::guardian::{GuardianFacts, TrustMode};
use fleetward_model::host::HostFacts;
use fleetward_model::{Failure, HostName, JobId};
use fleetward_protector_open::LocalGuardian;
use http::Method;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running controller.
pub(crate) struct Controller {
    pub(crate) dir: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) local: Client,
    stop: CancellationToken,
    task: Option<JoinHandle<anyhow::Result<()>>>,
    process: Option<Child>,
    /// How far its clock is from the machine's, for libfaketime: `+14y`. Only where it is a process.
    clock: Option<&'static str>,
}

/// libfaketime, which stands between a process and the clock; none where it is not installed.
pub(crate) fn library_of_clocks() -> Option<std::path::PathBuf> {
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    let library = Path::new("/usr/lib").join(machine);
    let library = library.join("faketime/libfaketimeMT.so.1");
    library.exists().then_some(library)
}

/// Between two looks for alerts.
pub(crate) const ALERT_EVERY: Duration = Duration::from_millis(100);

/// Set in a process that is to be a controller: `DATA ADDRESS`.
const BE_CONTROLLER: &str = "FLEETWARD_TEST_CONTROLLER";

/// An address that stays free while nobody listens on it, as between a kill and the start after it.
///
/// A port that the kernel hands out may be taken meanwhile as the local end of anybody's connection, even of one that an agent
/// makes to that very port; so this one lies below those (`net.ipv4.ip_local_port_range`).
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ports = 20_000..32_000_u16;
    // processes that run side by side begin at places of their own
    let begin = u16::try_from(std::process::id() % 1_000).expect("less than 1,000") * 12;
    let free = (0..ports.len()).find_map(|_| {
        let step = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from(([127, 0, 0, 1], ports.start + step % 12_000));
        std::net::TcpListener::bind(address)
            .is_ok()
            .then_some(address)
    });
    free.expect("a free port")
}

fn any_console() -> ConsoleOptions {
    ConsoleOptions {
        listen: ([127, 0, 0, 1], 0).into(),
        certificate: None,
    }
}

/// The body of the test by which a test program becomes a controller that can be killed.
pub(crate) async fn be_the_controller() {
    let Ok(text) = std::env::var(BE_CONTROLLER) else {
        return;
    };
    let (data, address) = text.split_once(' ').expect("data and address");
    let options = Options {
        data: data.into(),
        listen: address.parse().expect("address"),
        advertise: None,
        socket: None,
        trust: None,
        retention: Default::default(),
        alert_every: ALERT_EVERY,
        console: None,
    };
    fleetward_controller::run(options)
        .await
        .expect("a clean end");
}

impl Controller {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("directory"), 0, None).await
    }

    /// One whose fleet is years old, so that certificates of its past can be made.
    pub(crate) async fn start_of_old_fleet() -> Self {
        Self::start_of_fleet(15 * 365).await
    }

    /// One whose fleet was made so many days ago.
    pub(crate) async fn start_of_fleet(days: i64) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let data = dir.path().join("data");
        std::fs::create_dir(&data).expect("directory");
        let begun = OffsetDateTime::now_utc() - time::Duration::days(days);
        FleetAuthority::open(&data, begun).expect("authority");
        Self::start_in(dir, 0, None).await
    }

    /// A certificate of the fleet, for whomever and whenever.
    pub(crate) fn credential(
        &self,
        of: &Identity,
        begins: OffsetDateTime,
        ends: OffsetDateTime,
    ) -> Credential {
        let authority =
            FleetAuthority::open(&self.data(), OffsetDateTime::now_utc()).expect("authority");
        let request = KeyRequest::generate().expect("key");
        let validity = Validity {
            not_before: begins,
            not_after: ends,
        };
        let chain = (authority.issue(request.csr_pem(), of, validity)).expect("certificate");
        request.into_credential(&chain).expect("credential")
    }

    /// One that grants no key by itself.
    pub(crate) async fn start_with_manual_trust() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        Self::start_in(dir, 0, Some(TrustMode::Manual)).await
    }

    /// One with a listener for people and programs, which makes its own certificate.
    pub(crate) async fn start_with_console() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        Self::start_whole(dir, 0, None, Some(any_console())).await
    }

    async fn start_in(dir: TempDir, port: u16, trust: Option<TrustMode>) -> Self {
        Self::start_whole(dir, port, trust, None).await
    }

    async fn start_whole(
        dir: TempDir,
        port: u16,
        trust: Option<TrustMode>,
        console: Option<ConsoleOptions>,
    ) -> Self {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let stop = CancellationToken::new();
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let options = Options {
                data: dir.path().join("data"),
                listen: SocketAddr::from(([127, 0, 0, 1], port)),
                advertise: None,
                socket: None,
                trust,
                retention: Default::default(),
                alert_every: ALERT_EVERY,
                console: console.clone(),
            };
            let local = Client::unix(options.data.join("controller.sock"));
            let run = fleetward_controller::run_until(options, stop.clone(), |address| {
                sender.send(address).expect("the test waits");
            });
            let task = tokio::spawn(run);
            if let Ok(address) = receiver.await {
                return Self {
                    dir,
                    address,
                    local,
                    stop,
                    task: Some(task),
                    process: None,
                    clock: None,
                };
            }
            // one that ended within this process lets go of its files a moment later
            let error = task.await.expect("no panic").expect_err("it did not start");
            assert!(Instant::now() < deadline, "{error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// One in a process of its own, whose hold points lie in `holds`. The test program must have a test
    /// `the_controller` that calls [`be_the_controller`].
    pub(crate) async fn spawn(holds: &Path) -> Self {
        let address = free_address();
        let dir = tempfile::tempdir().expect("directory");
        let mut controller = Self {
            local: Client::unix(dir.path().join("data/controller.sock")),
            dir,
            address,
            stop: CancellationToken::new(),
            task: None,
            process: None,
            clock: None,
        };
        controller.spawn_process(holds).await;
        controller
    }

    async fn spawn_process(&mut self, holds: &Path) {
        let own = std::env::current_exe().expect("this program");
        let said = self.dir.path().join("stderr");
        let mut command = Command::new(own);
        if let Some(clock) = self.clock {
            let library = library_of_clocks().expect("the caller has looked");
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME", clock)
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("NO_FAKE_STAT", "1");
        }
        let child = command
            .args(["--exact", "the_controller"])
            .env(
                BE_CONTROLLER,
                format!("{} {}", self.data().display(), self.address),
            )
            .env("FLEETWARD_HOLD_DIR", holds)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&said).expect("a file"))
            .spawn();
        let process = self.process.insert(child.expect("a process"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = self.local.get::<serde_json::Value>("/v1/status").await {
            let ended = process.try_wait().expect("a child");
            let said = || std::fs::read_to_string(&said).expect("what it said");
            assert!(ended.is_none(), "ended, {ended:?}: {}", said());
            assert!(Instant::now() < deadline, "{error:?}: {}", said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// kill -9, and another in the same directory, whose clock is so far from the machine's.
    pub(crate) async fn restart_under(&mut self, clock: Option<&'static str>, holds: &Path) {
        self.clock = clock;
        self.kill_and_restart(holds, || ()).await;
    }

    /// kill -9, and another in the same directory.
    pub(crate) async fn kill_and_restart(&mut self, holds: &Path, between: impl FnOnce()) {
        let mut process = self.process.take().expect("a process");
        process.kill().expect("kill");
        process.wait().expect("reaped");
        between();
        self.spawn_process(holds).await;
    }

    /// Stops it and starts another in the same directory.
    pub(crate) async fn restart(self) -> Self {
        self.restart_after(|_| ()).await
    }

    /// The same, with something done to its files in between.
    pub(crate) async fn restart_after(mut self, between: impl FnOnce(&Path)) -> Self {
        self.end().await;
        between(&self.data());
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().expect("directory"));
        Self::start_in(dir, self.address.port(), None).await
    }

    /// The same, with a listener for people and programs.
    pub(crate) async fn restart_with_console(mut self) -> Self {
        self.end().await;
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().expect("directory"));
        Self::start_whole(dir, self.address.port(), None, Some(any_console())).await
    }

    pub(crate) async fn end(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            task.await.expect("no panic").expect("a clean end");
        }
    }

    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn trust(&self) -> FleetTrust {
        FleetTrust::load(&self.data().join("authority.crt")).expect("authority")
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        self.local
            .get(path)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    /// The text of `/metrics`.
    pub(crate) async fn metrics(&self) -> String {
        let sent = self.local.request(Method::GET, "/metrics").send().await;
        let text = sent.expect("metrics").bytes(1 << 20).await.expect("whole");
        String::from_utf8(text.to_vec()).expect("text")
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        self.local
            .post(path, body)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    /// What the controller refuses with.
    pub(crate) async fn refusal(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Failure {
        failure(&self.local, method, path, body).await.1
    }

    /// A client with an administrator's certificate.
    pub(crate) async fn admin(&self, name: &str, role: Role) -> Client {
        let key = KeyRequest::generate().expect("key");
        let request = AdminRequest {
            name: name.parse().expect("name"),
            role,
            csr: key.csr_pem().to_owned(),
        };
        let reply: AdminReply = self.post("/v1/admins", &request).await;
        let credential = key.into_credential(&reply.certificate).expect("credential");
        let tls = ClientTls::member(
            LiveCredential::new(credential),
            self.trust(),
            Identity::Controller,
        );
        Client::tls(self.address.to_string(), tls)
    }

    /// Changes what a host reports, and waits until the controller has it.
    pub(crate) async fn hears_from(&self, agent: &FakeAgent, change: impl Fn(&mut HostFacts)) {
        // What its clock says, it says anew each time.
        let timeless = |mut facts: Value| {
            facts.as_object_mut().expect("facts").remove("clock");
            facts
        };
        let told = agent.look(|inner| {
            change(&mut inner.facts);
            inner.tell_facts();
            timeless(serde_json::to_value(&inner.facts).expect("facts"))
        });
        let path = format!("/v1/hosts/{}", agent.host);
        self.wait("the new facts", async || {
            let host: Value = self.get(&path).await;
            timeless(host["facts"].clone()) == told
        })
        .await;
    }

    pub(crate) fn anonymous(&self) -> Client {
        Client::tls(
            self.address.to_string(),
            ClientTls::join(self.trust().fingerprint()),
        )
    }

    pub(crate) async fn token(&self, host: &str, group: &str) -> TokenView {
        let request = TokenRequest {
            host: host.parse().expect("name"),
            group: group.parse().expect("group"),
            ttl_seconds: 60,
            reinstalled: false,
        };
        self.post("/v1/host-tokens", &request).await
    }

    /// Joins a fake agent and waits until it is online.
    pub(crate) async fn join(&self, host: &str, group: &str) -> FakeAgent {
        let token = self.token(host, group).await.token;
        let address = free_address();
        let request = Joining::new(host);
        let reply: JoinReply = self
            .anonymous()
            .post("/v1/join", &request.body(&token, &address.to_string()))
            .await
            .expect("join");
        let credential = request
            .key
            .into_credential(&reply.host_certificate)
            .expect("credential");
        let trust = FleetTrust::from_pem(&reply.authority_certificate).expect("trust");
        let mut agent = FakeAgent::start(
            reply.host,
            reply.group,
            request.guardian,
            credential,
            trust,
            address,
        )
        .await;
        agent.own = Some(request.own);
        let ek = CertificateDer::from_pem_slice(reply.ek_certificate.as_bytes()).expect("PEM");
        agent.look(|inner| inner.ek_authority = Some(ek.to_vec()));
        agent.ek = Some(Arc::new(request.ek));
        self.wait_online(&agent.host, true).await;
        agent
    }

    pub(crate) async fn wait_online(&self, host: &HostName, online: bool) {
        let wanted = if online { "online" } else { "unreachable" };
        self.wait(&format!("host {host} {wanted}"), async || {
            let view: serde_json::Value = self.get(&format!("/v1/hosts/{host}")).await;
            view["state"] == wanted
        })
        .await;
    }

    pub(crate) async fn wait(&self, what: &str, condition: impl AsyncFn() -> bool) {
        self.wait_within(Duration::from_secs(20), what, condition)
            .await;
    }

    pub(crate) async fn wait_within(
        &self,
        limit: Duration,
        what: &str,
        condition: impl AsyncFn() -> bool,
    ) {
        let deadline = Instant::now() + limit;
        while !condition().await {
            assert!(Instant::now() < deadline, "waited in vain for: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for a job's end.
    pub(crate) async fn ended(&self, job: JobId) -> JobView {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let view: JobView = self.get(&format!("/v1/jobs/{job}")).await;
            if view.state.has_ended() {
                return view;
            }
            assert!(Instant::now() < deadline, "job did not end: {view:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks for something that becomes a job, and waits for it to end well.
    pub(crate) async fn done(&self, method: Method, path: &str, body: &impl Serialize) -> JobView {
        let view = self.job(method, path, body).await;
        assert_eq!(view.state, JobState::Done, "{view:#?}");
        view
    }

    pub(crate) async fn job(&self, method: Method, path: &str, body: &impl Serialize) -> JobView {
        let response = self.local.request(method, path).json(body).send().await;
        let response = response.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        let said: serde_json::Value = response.json().await.expect("an answer");
        let accepted: fleetward_api::controller::Accepted =
            serde_json::from_value(said.clone()).expect("accepted");
        let job = accepted.job.unwrap_or_else(|| panic!("{path}: {said}"));
        self.ended(job).await
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // gone already is as good
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What a host brings to join.
pub(crate) struct Joining {
    host: HostName,
    key: KeyRequest,
    ek: rcgen::KeyPair,
    guardian: GuardianFacts,
    own: Arc<LocalGuardian>,
}

impl Joining {
    pub(crate) fn new(host: &str) -> Self {
        let host: HostName = host.parse().expect("name");
        let guardian = LocalGuardian::generate(&host, OffsetDateTime::now_utc()).expect("guardian");
        Self {
            guardian: guardian.public().facts(host.clone(), true, true),
            key: KeyRequest::generate().expect("key"),
            ek: rcgen::KeyPair::generate().expect("key"),
            own: Arc::new(guardian),
            host,
        }
    }

    pub(crate) fn body(&self, token: &str, address: &str) -> JoinRequest {
        let _ = &self.host;
        JoinRequest {
            token: token.to_owned(),
            host_csr: self.key.csr_pem().to_owned(),
            ek_csr: {
                let csr = rcgen::CertificateParams::default().serialize_request(&self.ek);
                csr.expect("request").pem().expect("PEM")
            },
            guardian: self.guardian.clone(),
            address: address.to_owned(),
            clock: None,
        }
    }
}

/// The status and failure of a request that must be refused.
pub(crate) async fn failure(
    client: &Client,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> (u16, Failure) {
    match client.request(method.clone(), path).json(body).send().await {
        Ok(response) => panic!("{method} {path} was answered: {response:?}"),
        Err(ClientError::Status { code, body }) => {
            let failure = serde_json::from_slice(&body)
                .unwrap_or_else(|error| panic!("{method} {path}: {code} {error}: {body:?}"));
            (code.as_u16(), failure)
        }
        Err(error) => panic!("{method} {path}: {error:?}"),
    }
}

/// A disk image of 1 MiB with a partition table's signature.
pub(crate) fn raw_disk(path: &Path) {
    let mut disk = vec![0; 1 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(path, disk).expect("write");
}
