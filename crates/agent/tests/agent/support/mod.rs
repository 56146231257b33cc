//! A small fleet for tests: an authority that answers joins, and agents over fakes, all over real TLS.

pub mod fake;

use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fake::Fake;
use fleetward_agent::{Agent, Config, Machinery, join};
use fleetward_api::agent::operation::{self, *};
use fleetward_api::agent::{self, *};
use fleetward_api::controller::{
    JoinReply, JoinRequest, RejoinReply, RejoinRequest, TokenRequest, TokenView,
};
use fleetward_link::*;
use fleetward_model::guardian::{EndorsedGuardian, GuardianFacts};
use fleetward_model::vm::*;
use fleetward_model::*;
use fleetward_protector::possession::RejoinProof;
use fleetward_protector::{Endorsement, EndorsementStatement, Guardian};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// The controller's part, as far as agents see it.
pub struct Fleet {
    pub authority: Arc<FleetAuthority>,
    pub address: String,
    credential: LiveCredential,
    guardians: Arc<Mutex<BTreeMap<HostName, GuardianFacts>>>,
    joins: Arc<Mutex<Vec<serde_json::Value>>>,
    pub dir: tempfile::TempDir,
}

pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn validity() -> Validity {
    Validity::starting(now(), authority::MEMBER_LIFETIME)
}

fn new_token(controller: &str, authority: Fingerprint, host: &HostName) -> JoinToken {
    JoinToken {
        controller: controller.to_owned(),
        authority,
        host: host.clone(),
        secret: JoinSecret::random().unwrap(),
        expires: now() + time::Duration::hours(1),
    }
}

impl Fleet {
    pub async fn start() -> Self {
        Self::begun(now()).await
    }

    /// A fleet whose authority was made then, so that certificates of its past can be made.
    pub async fn begun(then: OffsetDateTime) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(FleetAuthority::open(dir.path(), then).unwrap());
        let ek = Arc::new(EkRoot::open(dir.path(), authority.fleet(), now()).unwrap());
        let request = KeyRequest::generate().unwrap();
        let chain = authority
            .issue(request.csr_pem(), &Identity::Controller, validity())
            .unwrap();
        let credential = LiveCredential::new(request.into_credential(&chain).unwrap());
        let guardians: Arc<Mutex<BTreeMap<HostName, GuardianFacts>>> = Arc::default();
        let joins: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
        let answer = {
            let (authority, guardians) = (authority.clone(), guardians.clone());
            let joins = joins.clone();
            move |Json(body): Json<serde_json::Value>| async move {
                joins.lock().unwrap().push(body.clone());
                let body: JoinRequest = serde_json::from_value(body).unwrap();
                let token = JoinToken::parse(&body.token, now()).unwrap();
                let host = token.host.clone();
                guardians
                    .lock()
                    .unwrap()
                    .insert(host.clone(), body.guardian);
                let identity = Identity::Host(host.clone());
                Json(JoinReply {
                    group: "default".parse().unwrap(),
                    fleet: authority.fleet().to_string(),
                    host_certificate: authority
                        .issue(&body.host_csr, &identity, validity())
                        .unwrap(),
                    authority_certificate: authority.trust().to_pem(),
                    ek_certificate: certificate_pem(
                        &ek.issue_host_authority(&body.ek_csr, &host, now()).unwrap(),
                    ),
                    ek_root_certificate: ek.certificate_pem(),
                    host,
                })
            }
        };
        let rejoin = {
            let (authority, guardians) = (authority.clone(), guardians.clone());
            move |Json(body): Json<RejoinRequest>| async move {
                let token = JoinToken::parse(&body.token, now()).unwrap();
                let host = token.host.clone();
                let known = guardians.lock().unwrap()[&host].clone();
                let guardian = Guardian::from_facts(&known).unwrap();
                let signature = STANDARD.decode(&body.proof).unwrap();
                let proof = RejoinProof::new(&body.token, &body.host_csr);
                assert!(proof.is_signed_by(&guardian, &signature));
                let identity = Identity::Host(host.clone());
                let host_certificate = authority.issue(&body.host_csr, &identity, validity());
                Json(RejoinReply {
                    host,
                    host_certificate: host_certificate.unwrap(),
                })
            }
        };
        let tls = ServerTls::new(
            credential.clone(),
            authority.trust().clone(),
            ClientCertificates::Optional,
        );
        let server = TlsServer::bind("127.0.0.1:0", tls).await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let fingerprint = authority.trust().fingerprint();
        let own = address.clone();
        let tokens = move |Json(body): Json<TokenRequest>| async move {
            let token = new_token(&own, fingerprint, &body.host);
            Json(TokenView {
                host: body.host,
                group: body.group,
                expires: token.expires,
                token: token.encode().to_string(),
            })
        };
        let router = Router::new()
            .route("/v1/host-tokens", post(tokens))
            .route("/v1/join", post(answer))
            .route("/v1/rejoin", post(rejoin));
        tokio::spawn(server.serve(router, CancellationToken::new()));
        Self {
            authority,
            address,
            credential,
            guardians,
            joins,
            dir,
        }
    }

    pub fn token(&self, host: &str) -> String {
        let fingerprint = self.authority.trust().fingerprint();
        let token = new_token(&self.address, fingerprint, &host.parse().unwrap());
        token.encode().to_string()
    }

    /// What hosts sent to join, in order.
    pub fn joins(&self) -> Vec<serde_json::Value> {
        self.joins.lock().unwrap().clone()
    }

    pub fn client(&self, host: &str, address: &str) -> Client {
        let tls = ClientTls::member(
            self.credential.clone(),
            self.authority.trust().clone(),
            Identity::Host(host.parse().unwrap()),
        );
        Client::tls(address, tls)
    }

    /// Opens tunnels as that host does.
    pub fn dialer_of(&self, host: &str) -> tunnel::TunnelDialer {
        let credential = self.credential_of(&Identity::Host(host.parse().unwrap()));
        tunnel::TunnelDialer::new(credential, self.authority.trust().clone())
    }

    pub fn credential_of(&self, identity: &Identity) -> LiveCredential {
        let request = KeyRequest::generate().unwrap();
        let chain = self
            .authority
            .issue(request.csr_pem(), identity, validity())
            .unwrap();
        LiveCredential::new(request.into_credential(&chain).unwrap())
    }

    /// A client with the certificate of somebody else of the fleet.
    pub fn client_as(&self, identity: &Identity, host: &str, address: &str) -> Client {
        let credential = self.credential_of(identity);
        let expected = Identity::Host(host.parse().unwrap());
        Client::tls(
            address,
            ClientTls::member(credential, self.authority.trust().clone(), expected),
        )
    }

    /// The authority's word that the guardians of these hosts, and no others, may own key protectors.
    pub fn owners(&self, hosts: &[&str]) -> Option<String> {
        let guardians = self.guardians.lock().unwrap();
        let of = |host: &&str| guardians[&host.parse::<HostName>().unwrap()].id.clone();
        let known = fleetward_protector::KnownOwners::new(hosts.iter().map(of));
        let sign = |bytes: &[u8]| {
            let signed = self.authority.sign(bytes);
            signed.map_err(|_| fleetward_protector::key_protector::SigningFailed)
        };
        Some(known.sign(sign).unwrap())
    }

    pub fn endorsed(&self, host: &str, group: &str) -> EndorsedGuardian {
        let host: HostName = host.parse().unwrap();
        let facts = self.guardians.lock().unwrap()[&host].clone();
        let group: GroupName = group.parse().unwrap();
        let guardian = Guardian::from_facts(&facts).unwrap();
        let statement = EndorsementStatement::new(
            &guardian,
            host,
            group.clone(),
            now(),
            now() + time::Duration::days(1),
        );
        let authority = self.authority.clone();
        let endorsement = Endorsement::sign(statement, |bytes| {
            authority
                .sign(bytes)
                .map_err(|_| fleetward_protector::key_protector::SigningFailed)
        })
        .unwrap();
        EndorsedGuardian {
            guardian: facts,
            group,
            endorsement: endorsement.text().to_owned(),
        }
    }
}

/// An agent over a fake; it can be stopped and started again on the same files.
pub struct Node {
    pub name: String,
    pub config: Config,
    pub fake: Arc<Fake>,
    pub address: String,
    pub client: Client,
    /// Of the kernel: another one means that the host has booted.
    pub boot_id: String,
    stop: CancellationToken,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Node {
    /// Joins and starts a host.
    pub async fn start(fleet: &Fleet, name: &str) -> Self {
        let root = fleet.dir.path().join(name);
        std::fs::create_dir_all(&root).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let config = config(&root, &address);
        join::join(&config, &fleet.token(name)).await.unwrap();
        let mut node = Self {
            name: name.to_owned(),
            fake: Fake::new(root),
            client: fleet.client(name, &address),
            address,
            config,
            boot_id: "first".to_owned(),
            stop: CancellationToken::new(),
            served: None,
        };
        node.up().await;
        node
    }

    pub async fn up(&mut self) {
        self.stop = CancellationToken::new();
        let machinery = Machinery {
            hypervisor: self.fake.clone(),
            volumes: self.fake.clone(),
            tpms: self.fake.clone(),
            converter: self.fake.clone(),
            boot_id: self.boot_id.clone(),
        };
        let agent = Agent::open(self.config.clone(), machinery).await.unwrap();
        // Connections to an earlier agent are dead, and known to be so only when used.
        self.client = self.client.clone().with_timeouts(Default::default());
        let stop = self.stop.clone();
        self.served = Some(tokio::spawn(
            async move { agent.serve(stop).await.unwrap() },
        ));
    }

    /// Stops the agent; what it was doing ends with it.
    pub async fn down(&mut self) {
        self.stop.cancel();
        self.served.take().unwrap().await.unwrap();
    }

    pub fn peer(&self) -> agent::Peer {
        agent::Peer {
            host: self.name.parse().unwrap(),
            address: self.address.clone(),
        }
    }

    pub async fn ask(&self, request: &OperationRequest) -> Result<OperationResult, Failure> {
        let response = self
            .client
            .request(http::Method::POST, OPERATIONS)
            .json(request)
            .send()
            .await
            .map_err(refusal)?;
        let mut lines = response.lines();
        loop {
            match lines
                .next_json::<OperationLine>()
                .await
                .unwrap()
                .expect("a last line")
            {
                OperationLine::Progress { .. } => {}
                OperationLine::Done { result } => return Ok(result),
                OperationLine::Failed { failure, .. } => return Err(failure),
            }
        }
    }

    /// The VM in today's specification, with its custody as text.
    pub async fn detail(&self, vm: VmId) -> Result<VmDetail, Failure> {
        let formats = host::Formats {
            custody: 1,
            ..host::Formats::KNOWN
        };
        let formats = http::HeaderValue::try_from(formats.to_string()).unwrap();
        let name = http::HeaderName::from_static(agent::FORMATS);
        let path = format!("/v1/vms/{vm}");
        let request = self.client.request(http::Method::GET, &path);
        let response = request.header(name, formats).send().await;
        response.map_err(refusal)?.json().await.map_err(refusal)
    }
}

pub fn refusal(error: ClientError) -> Failure {
    match error {
        ClientError::Status { body, .. } => serde_json::from_slice(&body).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn config(root: &Path, address: &str) -> Config {
    let text = format!(
        "data_dir = '{r}/data'\nrun_dir = '{r}/run'\nlisten = '{address}'\nadvertise = '{address}'\n\
         nvram_dir = '{r}/nvram'\nformer_nvram_dir = '{r}/former-nvram'\nlibvirt_socket = '{r}/libvirt-sock'\ntpm_pool_size = 1\ntpm_pool_at_rest = 1\n\
         [[pool]]\nname = 'default'\npath = '{r}/pool'\n\
         [[network]]\nname = 'lan'\nbridge = 'br-there-is-not'\n\
         [[pool]]\nname = 'other'\npath = '{r}/other'\n",
        r = root.display()
    );
    let path = root.join("agent.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path).unwrap()
}

/// A job's requests for one VM, with rising generations.
pub struct Job {
    pub id: JobId,
    pub vm: VmId,
    pub generation: u64,
    /// The authority's word for those who may own key protectors.
    pub owners: Option<String>,
    /// What the controller knows of the EK certificate that is brought.
    pub ek: Option<EkWord>,
}

impl Job {
    pub fn new(vm: VmId, generation: u64) -> Self {
        Self {
            id: JobId(uuid::Uuid::new_v4()),
            vm,
            generation,
            owners: None,
            ek: None,
        }
    }

    pub fn request(&self, operation: Operation) -> OperationRequest {
        OperationRequest {
            job: self.id,
            generation: self.generation,
            vm: self.vm,
            operation,
            owners: self.owners.clone(),
            ek: self.ek.clone(),
        }
    }

    pub async fn on<O: HostOperation>(
        &self,
        node: &Node,
        operation: O,
    ) -> Result<O::Answer, Failure> {
        let result = node.ask(&self.request(operation.into())).await?;
        Ok(O::Answer::from_result(result).expect("the answer of this operation"))
    }

    pub async fn any(&self, node: &Node, operation: Operation) -> Result<OperationResult, Failure> {
        node.ask(&self.request(operation)).await
    }
}

pub fn spec(name: &str) -> VmSpec {
    let id = VmId(uuid::Uuid::new_v4());
    VmSpec {
        memory: ByteSize::mib(512),
        disks: vec![DiskSpec::new(
            "vda",
            DiskBus::Virtio,
            PoolName::default(),
            format!("{id}-vda.qcow2"),
            ByteSize::mib(64),
        )],
        ..VmSpec::bare(id, name.parse().unwrap(), Profile::Linux, now())
    }
}

pub fn disks(copy: bool) -> Vec<IncomingDisk> {
    vec![IncomingDisk {
        target: "vda".into(),
        copy,
        io: Default::default(),
    }]
}

/// Makes, defines and starts a VM; gives its metadata.
pub async fn create_running(fleet: &Fleet, node: &Node, name: &str) -> (VmSpec, VmMetadata) {
    let spec = spec(name);
    let job = Job::new(spec.id, 1);
    let create = operation::CreateVolumes {
        spec: spec.clone(),
        sources: vec![],
    };
    job.on(node, create).await.unwrap();
    let recipients = vec![fleet.endorsed(&node.name, "default")];
    let made = job
        .on(node, operation::MakeTpm { recipients })
        .await
        .unwrap();
    let metadata = VmMetadata {
        spec: spec.clone(),
        generation: 1,
        key_protector: Some(made.key_protector),
        ek_certificate: Some(made.ek_certificate),
        transit: None,
        revoked: Vec::new(),
        former_certificates: None,
        unknown: Default::default(),
    };
    let define = operation::Define {
        metadata: Box::new(metadata.clone()),
    };
    job.on(node, define).await.unwrap();
    job.on(node, operation::Start {}).await.unwrap();
    (spec, metadata)
}

/// Files of the agent that belong to a VM.
pub fn record_of(node: &Node, vm: VmId) -> PathBuf {
    node.config.data_dir.join("vms").join(vm.to_string())
}
