//! An agent whose hypervisor is a map. Enough of one to hold the controller to the agents' contract: it refuses what the
//! real one refuses, remembers what was asked, and can be told to fail.

mod conversion;
mod endpoints;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use fleetward_api::agent as api_agent;
use fleetward_api::agent::operation::{self, Operation, OperationResult, SourceState};
use fleetward_api::agent::{
    AgentEvent, AuditHead, CanOpen, IncomingAnswer, OperationLine, OperationRequest, Question,
    RewrapReason, TpmStateJudged, VmDetail,
};
use fleetward_api::tpm::{BundleParts, TpmBundle};
use fleetward_link::{
    Client, ClientCertificates, ClientTls, Credential, FleetTrust, Identity, KeyRequest,
    LiveCredential, Refusals, ServerTls, TlsServer,
};
use fleetward_model::audit::{AuditAction, AuditEvent, AuditRecord};
use fleetward_model::change::machine::MachineDefined;
use fleetward_model::change::{self, ChangeStep, Direction, DiskAct};
use fleetward_model::guardian::GuardianFacts;
use fleetward_model::host::{
    Accelerator, Formats, HostFacts, HypervisorVersions, PoolFacts, Version,
};
use fleetward_model::machine::MachineSettings;
use fleetward_model::network::NicObserved;
use fleetward_model::secure_boot::{CertificateState, SecureBootObserved};
use fleetward_model::vm::{
    DiskObserved, DriveContent, DriveObserved, Noted, Presence, Revocation, StoppedBy, TpmObserved,
    Transit, TransitSide, VmDefined, VmMetadata, VmReport, VmState, protector_sha256,
};
use fleetward_model::{ByteSize, ErrorCode, Failure, GroupName, GuardianId, HostName, JobId, VmId};
use fleetward_protector::ExpiredAllowed;
use fleetward_protector_open::{LocalGuardian, SealRequest, TpmKey, seal};
use http::HeaderMap;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};
use time::OffsetDateTime;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub(crate) use conversion::FakeConversion;
use conversion::{convert, converter};
use endpoints::{
    ask_for_certificate, audit, certificate, copy, delete_history, delete_image, delete_seed,
    ek_authority, events, image, operate, put_certificate, put_image, put_seed, question,
    refuse_certificates, seed, tpm, vm, witness,
};

/// A VM's whole state on one host.
#[derive(Debug, Clone)]
pub(crate) struct FakeVm {
    pub(crate) metadata: VmMetadata,
    pub(crate) state: VmState,
    /// CPUs and memory of the definition, where a running VM has others.
    pub(crate) defined: Option<MachineDefined>,
    /// CPUs and memory that it runs with, where its definition has others.
    pub(crate) runs_with: Option<MachineDefined>,
    /// The domain's own name, where somebody renamed it.
    pub(crate) domain: Option<String>,
    /// What its UEFI variables say; none: as from an agent that does not look.
    pub(crate) secure_boot: Option<SecureBootObserved>,
}

impl FakeVm {
    pub(crate) fn new(metadata: VmMetadata, state: VmState) -> Self {
        Self {
            metadata,
            state,
            defined: None,
            runs_with: None,
            domain: None,
            secure_boot: None,
        }
    }

    fn size(&self) -> MachineDefined {
        let spec = &self.metadata.spec;
        self.defined.unwrap_or(MachineDefined {
            cpus: spec.cpus,
            memory: spec.memory,
            settings: MachineSettings {
                boot: Some(spec.boot),
                clock: Some(spec.clock()),
            },
        })
    }

    fn change(&mut self, steps: &[ChangeStep], direction: Direction) -> Result<(), ErrorCode> {
        let has = self.size();
        let own = self.metadata.spec.name.to_string();
        let domain = self.domain.clone().unwrap_or(own);
        if let Some(name) = change::domain_name_after(&domain, steps, direction) {
            if self.state != VmState::Stopped {
                return Err(ErrorCode::VmStateWrong);
            }
            self.domain = Some(name);
        }
        self.metadata.spec = change::apply(&self.metadata.spec, steps, direction);
        let next = change::defined_after(Some(has), steps, direction);
        if self.state == VmState::Running {
            self.runs_with.get_or_insert(has);
        }
        self.defined = Some(MachineDefined {
            cpus: next.cpus.unwrap_or(has.cpus),
            memory: next.memory.unwrap_or(has.memory),
            settings: MachineSettings {
                boot: next.boot.or(has.settings.boot),
                clock: next.clock.or(has.settings.clock),
            },
        });
        if self.domain.as_deref() == Some(self.metadata.spec.name.as_str()) {
            self.domain = None;
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) host: HostName,
    pub(crate) facts: HostFacts,
    pub(crate) vms: BTreeMap<VmId, FakeVm>,
    pub(crate) volumes: BTreeSet<String>,
    pub(crate) tpms: BTreeMap<VmId, Vec<GuardianId>>,
    pub(crate) images: BTreeSet<String>,
    pub(crate) conversion: FakeConversion,
    /// Media for first boots.
    pub(crate) seeds: BTreeMap<VmId, Bytes>,
    /// TPMs that are whole and can be copied.
    pub(crate) parts: BTreeMap<VmId, BundleParts>,
    /// VMs whose key this host opens, as it says when asked.
    pub(crate) opens: BTreeSet<VmId>,
    /// Names of the operations asked for, in order.
    pub(crate) asked: Vec<&'static str>,
    /// Operations that fail the next time, with what.
    pub(crate) fail: BTreeMap<&'static str, Failure>,
    /// Operations that are done the next time, and reported as failed.
    pub(crate) fail_after: BTreeSet<&'static str>,
    /// Operations at which a host loses its power: this one or a peer, before the operation is done or after.
    pub(crate) deaths: BTreeMap<&'static str, Death>,
    /// The jobs whose arrivals are under way, by VM.
    pub(crate) arriving: BTreeMap<VmId, JobId>,
    /// Operations that fail each time.
    pub(crate) broken: BTreeSet<&'static str>,
    /// Bytes that every key protector has more: one for many guardians is long.
    pub(crate) padding: usize,
    /// Operations for which it is never the time.
    pub(crate) busy: BTreeSet<&'static str>,
    /// Operations that an older agent does not know.
    pub(crate) unknown: BTreeSet<&'static str>,
    /// The highest generation seen, by VM.
    pub(crate) generations: BTreeMap<VmId, u64>,
    pub(crate) audit: Vec<AuditRecord>,
    /// Why no copy of any TPM is given.
    pub(crate) no_copy: Option<Failure>,
    /// Its EK authority, DER; an agent of before cannot be asked.
    pub(crate) ek_authority: Option<Vec<u8>>,
    /// What it says of the TPM state of any VM.
    pub(crate) judged: Option<TpmStateJudged>,
    /// Digests of TPM states that it says it has seen.
    pub(crate) seen_states: Vec<String>,
    /// Those that it was told of when a VM came.
    pub(crate) told_states: Vec<String>,
    /// It answers with the TPM of this VM, whichever is asked for.
    pub(crate) answers_with: Option<VmId>,
    /// Its log cannot be read.
    pub(crate) audit_spoilt: bool,
    /// The longest end of the controller's own records that was shown.
    pub(crate) witnessed: Option<AuditHead>,
    /// How it presents itself.
    pub(crate) certificate: FakeCertificate,
    /// The running peers of migrations, by host.
    pub(crate) peers: BTreeMap<HostName, Arc<Mutex<Inner>>>,
    /// Fires when it listens no longer.
    stop: Arc<Mutex<CancellationToken>>,
    events: broadcast::Sender<AgentEvent>,
}

/// A host's certificate, and whom it refuses.
#[derive(Debug)]
pub(crate) struct FakeCertificate {
    pub(crate) live: LiveCredential,
    pub(crate) refusals: Refusals,
    pub(crate) asked: Option<KeyRequest>,
    /// It gets no new one: what arrives is lost.
    pub(crate) fails: bool,
}

/// How a host loses its power.
#[derive(Debug, Clone)]
pub(crate) struct Death {
    /// Whose listening ends.
    who: Arc<Mutex<CancellationToken>>,
    /// Whether it is the peer: this one then finds its link to it broken.
    peer: bool,
    /// Whether the operation was done.
    after: bool,
}

/// A running fake agent.
#[derive(Debug, Clone)]
pub(crate) struct FakeAgent {
    pub(crate) host: HostName,
    pub(crate) inner: Arc<Mutex<Inner>>,
    pub(crate) credential: LiveCredential,
    /// Its guardian with the private keys.
    pub(crate) own: Option<Arc<LocalGuardian>>,
    /// The key of its EK authority.
    pub(crate) ek: Option<Arc<rcgen::KeyPair>>,
    tls: ServerTls,
    pub(crate) address: SocketAddr,
    stop: Arc<Mutex<CancellationToken>>,
}

impl FakeAgent {
    pub(crate) async fn start(
        host: HostName,
        group: GroupName,
        guardian: GuardianFacts,
        credential: Credential,
        trust: FleetTrust,
        address: SocketAddr,
    ) -> Self {
        let stop: Arc<Mutex<CancellationToken>> = Arc::default();
        let (credential, refusals) = (LiveCredential::new(credential), Refusals::default());
        let inner = Inner {
            stop: stop.clone(),
            facts: facts(&host, group, guardian),
            host: host.clone(),
            vms: BTreeMap::new(),
            volumes: BTreeSet::new(),
            tpms: BTreeMap::new(),
            images: BTreeSet::new(),
            conversion: FakeConversion::default(),
            seeds: BTreeMap::new(),
            parts: BTreeMap::new(),
            opens: BTreeSet::new(),
            asked: Vec::new(),
            fail: BTreeMap::new(),
            fail_after: BTreeSet::new(),
            deaths: BTreeMap::new(),
            arriving: BTreeMap::new(),
            broken: BTreeSet::new(),
            padding: 0,
            busy: BTreeSet::new(),
            unknown: BTreeSet::new(),
            generations: BTreeMap::new(),
            audit: Vec::new(),
            no_copy: None,
            judged: None,
            seen_states: Vec::new(),
            told_states: Vec::new(),
            ek_authority: None,
            answers_with: None,
            audit_spoilt: false,
            witnessed: None,
            certificate: FakeCertificate {
                live: credential.clone(),
                refusals: refusals.clone(),
                asked: None,
                fails: false,
            },
            peers: BTreeMap::new(),
            events: broadcast::Sender::new(64),
        };
        let tls = ServerTls::new(credential.clone(), trust, ClientCertificates::Required)
            .with_refusals(refusals);
        let inner = Arc::new(Mutex::new(inner));
        let agent = Self {
            host,
            inner,
            credential,
            own: None,
            ek: None,
            tls,
            address,
            stop,
        };
        agent.serve().await;
        agent
    }

    /// Listens again after [`cut`](Self::cut).
    pub(crate) async fn serve(&self) {
        let limits = fleetward_link::Limits {
            shutdown_grace: std::time::Duration::ZERO,
            ..Default::default()
        };
        let server = TlsServer::bind(self.address, self.tls.clone())
            .await
            .expect("bind")
            .with_limits(limits);
        let router = Router::new()
            .route("/v1/events", get(events))
            .route("/v1/operations", post(operate))
            .route("/v1/questions", post(question))
            .route("/v1/vms/{id}", get(vm))
            .route(api_agent::VM_TPM, get(tpm))
            .route(api_agent::VM_HISTORY, delete(delete_history))
            .route(
                api_agent::VM_SEED,
                get(seed).put(put_seed).delete(delete_seed),
            )
            .route(
                "/v1/images/{sha256}",
                get(image).put(put_image).delete(delete_image),
            )
            .route(api_agent::CONVERSIONS, get(converter).post(convert))
            .route("/v1/copies/{id}/{item}", get(copy))
            .route("/v1/audit", get(audit))
            .route(api_agent::AUDIT_WITNESS, post(witness))
            .route(
                api_agent::CERTIFICATE,
                get(certificate)
                    .post(ask_for_certificate)
                    .put(put_certificate),
            )
            .route(api_agent::EK_AUTHORITY, get(ek_authority))
            .route(api_agent::REFUSED_CERTIFICATES, put(refuse_certificates))
            .with_state(self.inner.clone());
        let stop = CancellationToken::new();
        *self.stop.lock().expect("lock") = stop.clone();
        tokio::spawn(server.serve(router, stop));
    }

    /// A client that shows this host's certificate.
    pub(crate) fn client_of(&self, controller: SocketAddr, trust: FleetTrust) -> Client {
        let tls = ClientTls::member(self.credential.clone(), trust, Identity::Controller);
        Client::tls(controller.to_string(), tls)
    }

    /// No longer answers.
    pub(crate) fn cut(&self) {
        self.stop.lock().expect("lock").cancel();
    }

    /// Loses its power when `operation` is asked of it: before it is done, or after and before it is answered.
    pub(crate) fn dies_at(&self, operation: &'static str, after: bool) {
        let death = Death {
            who: self.stop.clone(),
            peer: false,
            after,
        };
        self.look(|inner| inner.deaths.insert(operation, death));
    }

    /// Has power again: what ran does not run any more.
    pub(crate) async fn comes_back(&self) {
        self.look(|inner| {
            for vm in inner.vms.values_mut() {
                vm.state = VmState::Stopped;
            }
            inner.asked.clear();
        });
        self.serve().await;
    }

    /// `other` loses its power when `operation` is asked of this one.
    pub(crate) fn outlives(&self, other: &FakeAgent, operation: &'static str, after: bool) {
        let death = Death {
            who: other.stop.clone(),
            peer: true,
            after,
        };
        self.look(|inner| inner.deaths.insert(operation, death));
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.inner.lock().expect("lock"))
    }

    /// Lets the two move VMs between each other.
    pub(crate) fn knows(&self, other: &FakeAgent) {
        self.look(|inner| inner.peers.insert(other.host.clone(), other.inner.clone()));
        other.look(|inner| inner.peers.insert(self.host.clone(), self.inner.clone()));
    }

    /// Nothing of any VM.
    pub(crate) fn is_clean(&self) -> bool {
        self.look(|inner| inner.vms.is_empty() && inner.volumes.is_empty() && inner.tpms.is_empty())
    }

    /// Fails `operation` once.
    pub(crate) fn fail_once(&self, operation: &'static str, code: ErrorCode) {
        self.look(|inner| {
            inner.fail.insert(
                operation,
                Failure::new(code, format!("{operation} was told to fail")),
            )
        });
    }
}

impl Inner {
    /// Of a VM whose variables are looked at.
    fn certificates(&mut self, vm: VmId, state: CertificateState) {
        let found = self.vms.get_mut(&vm);
        if let Some(found) = found.and_then(|vm| vm.secure_boot.as_mut()) {
            found.state = state;
            found.former_kept = state == CertificateState::Ok;
        }
    }

    pub(crate) fn observed(&self, id: VmId) -> Option<VmReport> {
        let vm = self.vms.get(&id)?;
        let spec = &vm.metadata.spec;
        let guardians = self.tpms.get(&id).cloned().unwrap_or_default();
        Some(VmReport {
            domain_name: vm.domain.clone(),
            defined: Some(VmDefined {
                cpus: vm.size().cpus,
                memory: vm.size().memory,
                settings: vm.size().settings,
                nics: Some(spec.nics.iter().map(NicObserved::from).collect()),
            }),
            newer: None,
            noted: Noted {
                secure_boot: vm.secure_boot.clone(),
                ..Noted::default()
            },
            id,
            name: spec.name.clone(),
            host: self.host.clone(),
            state: vm.state,
            reason: "fake".into(),
            cpus: vm.runs_with.unwrap_or(vm.size()).cpus,
            memory: vm.runs_with.unwrap_or(vm.size()).memory,
            settings: vm.runs_with.unwrap_or(vm.size()).settings,
            firmware: Some(spec.firmware),
            machine: "pc-q35-10.0".into(),
            accelerator: "qemu".into(),
            nics: Some(spec.nics.iter().map(NicObserved::from).collect()),
            disks: spec
                .disks
                .iter()
                .map(|disk| DiskObserved {
                    id: Some(disk.id.clone()),
                    serial: disk.serial.clone(),
                    presence: Presence::Here,
                    bases: Vec::new(),
                    bases_allocated: ByteSize(0),
                    target: disk.target.clone(),
                    bus: disk.bus,
                    pool: disk.pool.clone(),
                    pool_id: self
                        .facts
                        .pool(&disk.pool)
                        .map(|pool| pool.id.clone())
                        .unwrap_or_default(),
                    path: format!("/volumes/{}", disk.volume),
                    format: "qcow2".into(),
                    size: disk.size,
                    allocated: ByteSize::mib(1),
                })
                .collect(),
            drives: spec
                .drives
                .iter()
                .map(|drive| DriveObserved {
                    id: Some(drive.id.clone()),
                    target: drive.target.clone(),
                    image: drive.medium.as_ref().map(|medium| medium.image.clone()),
                    holds: drive.seed.then_some(DriveContent::FirstBoot),
                    path: None,
                    presence: Presence::Here,
                })
                .collect(),
            tpm: TpmObserved {
                enabled: spec.tpm,
                version: "2.0".into(),
                model: "tpm-crb".into(),
                state_present: self.tpms.contains_key(&id),
                state_sha256: self
                    .parts
                    .get(&id)
                    .map(|parts| hex::encode(Sha256::digest(&parts.state))),
                key_id: None,
                owner: guardians.first().cloned(),
                guardians,
                ek_certificate: self
                    .parts
                    .get(&id)
                    .and_then(|parts| parts.ek_certificate.as_ref())
                    .map(|ek| hex::encode(Sha256::digest(ek))),
                protector_sha256: match self.is_former() {
                    true => None,
                    false => vm.metadata.key_protector.as_deref().map(protector_sha256),
                },
                lockout: None,
                process: None,
            },
            metadata: Some(vm.metadata.clone()),
            observed: OffsetDateTime::now_utc(),
        })
    }

    pub(crate) fn tell(&self, id: VmId) {
        let event = match self.observed(id) {
            Some(vm) => AgentEvent::VmChanged { vm: Box::new(vm) },
            None => AgentEvent::VmRemoved { id },
        };
        let _ = self.events.send(event);
    }

    pub(crate) fn tell_facts(&self) {
        let facts = Box::new(self.facts.clone());
        let _ = self.events.send(AgentEvent::Facts { facts });
    }

    pub(crate) fn tell_all(&self, vms: Vec<VmReport>) {
        let facts = Box::new(self.facts.clone());
        let more = false;
        let _ = self.events.send(AgentEvent::Snapshot { facts, vms, more });
    }

    pub(crate) fn tell_of(&self, vm: VmReport) {
        let vm = Box::new(vm);
        let _ = self.events.send(AgentEvent::VmChanged { vm });
    }

    /// Whether it is an agent from before versions: it sends what it has, whatever the controller knows.
    fn is_former(&self) -> bool {
        self.facts.formats == Formats::default()
    }

    /// The versions in which it answers a request with these headers.
    fn answers_in(&self, headers: &HeaderMap) -> Option<Formats> {
        let said = headers.get(api_agent::FORMATS);
        let said = said.and_then(|said| said.to_str().ok());
        (!self.is_former()).then(|| said.map_or_else(Formats::default, Formats::parse))
    }

    fn protector(&self, begin: &str) -> String {
        format!("{begin}{}", "A".repeat(self.padding))
    }

    /// Gives a VM another key protector, unless a test has given it a real one; returns what it has.
    fn put_protector(&mut self, vm: VmId, begin: &str) -> String {
        let text = self.protector(begin);
        let real = self.parts.contains_key(&vm);
        match self.vms.get_mut(&vm) {
            Some(found) if real => found.metadata.key_protector.clone().unwrap_or_default(),
            Some(found) => found.metadata.key_protector.insert(text).clone(),
            None => text,
        }
    }

    fn own(&self) -> GuardianId {
        self.facts.guardians[0].id.clone()
    }

    fn perform(
        &mut self,
        job: JobId,
        vm: VmId,
        operation: Operation,
    ) -> Result<OperationResult, Failure> {
        let refuse = |code, what: &str| Err(Failure::new(code, what.to_owned()));
        match operation {
            Operation::CreateVolumes(operation::CreateVolumes { spec, sources }) => {
                for source in &sources {
                    if let fleetward_model::vm::VolumeSource::Image { sha256, .. } = source
                        && !self.images.contains(sha256)
                    {
                        return refuse(ErrorCode::ImageNotFound, "the image was not sent");
                    }
                }
                self.volumes
                    .extend(spec.disks.into_iter().map(|d| d.volume));
            }
            Operation::DeleteVolumes(operation::DeleteVolumes { spec }) => {
                if self.vms.contains_key(&vm) {
                    return refuse(ErrorCode::VmStateWrong, "it is defined");
                }
                for disk in spec.disks {
                    self.volumes.remove(&disk.volume);
                }
            }
            Operation::CopyVm(operation::CopyVm { to, variables, .. }) => {
                self.volumes.extend(to.disks.into_iter().map(|d| d.volume));
                return Ok(operation::Copied {
                    paused_ms: None,
                    variables,
                    linked: false,
                    frozen: false,
                }
                .into());
            }
            Operation::UncopyVm(operation::UncopyVm { to }) => {
                for disk in to.disks {
                    self.volumes.remove(&disk.volume);
                }
            }
            Operation::PlaceVariables(_) => {}
            Operation::EnrollCertificates(_) => self.certificates(vm, CertificateState::Ok),
            Operation::RestoreCertificates(_) => {
                self.certificates(vm, CertificateState::UpdateAvailable);
            }
            Operation::MakeTpm(operation::MakeTpm { recipients })
            | Operation::CopyTpm(operation::CopyTpm { recipients }) => {
                let mut guardians = vec![self.own()];
                for recipient in recipients {
                    if !guardians.contains(&recipient.guardian.id) {
                        guardians.push(recipient.guardian.id);
                    }
                }
                self.tpms.insert(vm, guardians);
                return Ok(operation::TpmMade {
                    key_protector: self.protector("cHJvdGVjdG9y"),
                    key_id: fleetward_model::KeyId(vm.0),
                    ek_certificate: "ZWs=".into(),
                }
                .into());
            }
            Operation::RemoveTpm(_) => {
                self.tpms.remove(&vm);
            }
            Operation::AttachTpm(_) => {
                let made = self.protector("cHJvdGVjdG9y");
                if let Some(found) = self.vms.get_mut(&vm) {
                    found.metadata.spec.tpm = true;
                    found.metadata.key_protector = Some(made);
                }
            }
            Operation::DetachTpm(_) => {
                if let Some(found) = self.vms.get_mut(&vm) {
                    found.metadata.spec.tpm = false;
                    found.metadata.key_protector = None;
                }
            }
            Operation::SetAsideTpm(_) => {
                if self.vms.get(&vm).is_some_and(|vm| vm.metadata.spec.tpm) {
                    return refuse(ErrorCode::VmStateWrong, "its TPM is in use");
                }
                self.tpms.remove(&vm);
            }
            Operation::PrepareRoll(_)
            | Operation::PrepareRestore(_)
            | Operation::PrepareUnlock(_) => {
                return Ok(operation::Protector {
                    key_protector: self.protector("cm9sbGVk"),
                }
                .into());
            }
            Operation::CommitTpm(_) => drop(self.put_protector(vm, "cm9sbGVk")),
            Operation::AbandonTpm(_) => {}
            Operation::Define(operation::Define { mut metadata }) => {
                if metadata.spec.tpm {
                    metadata.key_protector = Some(self.protector("cHJvdGVjdG9y"));
                }
                let vm_there = FakeVm::new(*metadata, VmState::Stopped);
                self.vms.entry(vm).or_insert(vm_there);
            }
            Operation::ChangeVm(operation::ChangeVm { steps, direction }) => {
                let Some(found) = self.vms.get_mut(&vm) else {
                    return refuse(ErrorCode::VmNotFound, "not here");
                };
                if let Err(code) = found.change(&steps, direction) {
                    return refuse(code, "it runs");
                }
                let media = found.metadata.spec.media();
                let lost = media.filter(|medium| !self.images.contains(&medium.sha256));
                if lost.count() > 0 {
                    return refuse(ErrorCode::ImageNotFound, "the image was not sent");
                }
                for act in steps.iter().filter_map(|step| step.disk()?.act()) {
                    if let DiskAct::Come(disk) | DiskAct::Move { to: disk, .. } = act {
                        match direction {
                            Direction::Forward => self.volumes.insert(disk.volume.clone()),
                            Direction::Back => self.volumes.remove(&disk.volume),
                        };
                    }
                }
            }
            Operation::DropVolumes(operation::DropVolumes { disks }) => {
                for disk in disks {
                    self.volumes.remove(&disk.volume);
                }
            }
            Operation::Undefine(_) => {
                if self
                    .vms
                    .get(&vm)
                    .is_some_and(|vm| vm.state != VmState::Stopped)
                {
                    return refuse(ErrorCode::VmRunning, "it runs");
                }
                self.vms.remove(&vm);
            }
            Operation::Start(_) => match self.vms.get_mut(&vm) {
                None => return refuse(ErrorCode::VmNotFound, "not here"),
                Some(found) if found.metadata.transit.is_some() => {
                    return refuse(ErrorCode::VmStateWrong, "it is not the VM");
                }
                Some(found) => found.state = VmState::Running,
            },
            Operation::Stop(stop) => {
                let Some(found) = self.vms.get_mut(&vm) else {
                    return Ok(OperationResult::Nothing);
                };
                let runs = std::mem::replace(&mut found.state, VmState::Stopped);
                found.runs_with = None;
                let by = match stop.force {
                    true => StoppedBy::PowerOff,
                    false => StoppedBy::GuestAgent,
                };
                let by = (stop.tell && runs != VmState::Stopped).then_some(by);
                return Ok(operation::Stopped { by }.into());
            }
            Operation::Pause(_) | Operation::Resume(_) => {
                let (from, to) = match operation {
                    Operation::Pause(_) => (VmState::Running, VmState::Paused),
                    _ => (VmState::Paused, VmState::Running),
                };
                match self.vms.get_mut(&vm) {
                    Some(found) if found.state == from || found.state == to => found.state = to,
                    Some(_) | None => return refuse(ErrorCode::VmNotRunning, "it is stopped"),
                }
            }
            Operation::Grant(operation::Grant { to }) => {
                let guardians = self.tpms.entry(vm).or_default();
                for guardian in to {
                    if !guardians.contains(&guardian.guardian.id) {
                        guardians.push(guardian.guardian.id);
                    }
                }
                let key_protector = self.put_protector(vm, "Z3JhbnRlZA");
                return Ok(operation::Protector { key_protector }.into());
            }
            Operation::Rewrap(operation::Rewrap { change }) => {
                if let Some(found) = self.vms.get_mut(&vm) {
                    let revoked = &mut found.metadata.revoked;
                    if change.why == RewrapReason::Revoked {
                        revoked.extend(change.drop.iter().map(|guardian| Revocation {
                            guardian: guardian.clone(),
                            key_id: fleetward_model::KeyId(vm.0),
                        }));
                    }
                    let added = |r: &Revocation| {
                        change.add.iter().any(|g| g.guardian.id == r.guardian)
                            || change.former.contains(&r.guardian)
                    };
                    revoked.retain(|r| change.why != RewrapReason::Granted || !added(r));
                }
                let guardians = self.tpms.entry(vm).or_default();
                guardians.retain(|g| !change.drop.contains(g));
                for guardian in change.add {
                    if !guardians.contains(&guardian.guardian.id) {
                        guardians.push(guardian.guardian.id);
                    }
                }
                let key_protector = self.put_protector(vm, "cmV3cmFwcGVk");
                return Ok(operation::Protector { key_protector }.into());
            }
            Operation::PutProtector(_) => {}
            Operation::PrepareIncoming(operation::PrepareIncoming {
                metadata,
                disks,
                former_states,
                ..
            }) => {
                self.told_states = former_states;
                let spec = &metadata.spec;
                self.arriving.insert(vm, job);
                for disk in spec
                    .disks
                    .iter()
                    .filter(|d| disks.iter().any(|i| i.copy && i.target == d.target))
                {
                    self.volumes.insert(disk.volume.clone());
                }
            }
            Operation::AbandonIncoming(operation::AbandonIncoming { spec, .. }) => {
                // nothing of this job ever came here, or it is gone already
                if self.arriving.get(&vm) != Some(&job) {
                    return Ok(OperationResult::Nothing);
                }
                let here = self.vms.get(&vm);
                if here.is_some_and(|here| here.metadata.transit.is_none()) {
                    return refuse(ErrorCode::VmStateWrong, "it is committed");
                }
                self.arriving.remove(&vm);
                self.vms.remove(&vm);
                self.tpms.remove(&vm);
                for disk in spec.disks {
                    self.volumes.remove(&disk.volume);
                }
            }
            Operation::MigrateLive(operation::MigrateLive { to, .. }) => {
                return self.send(job, vm, &to.host, VmState::Paused);
            }
            Operation::SendStopped(operation::SendStopped { to, .. }) => {
                return self.send(job, vm, &to.host, VmState::Stopped);
            }
            Operation::RebuildIncoming(operation::RebuildIncoming {
                metadata,
                former_states,
                ..
            }) => {
                self.told_states = former_states;
                let transit = Some(Transit {
                    job,
                    side: TransitSide::Incoming,
                });
                let metadata = VmMetadata {
                    transit,
                    ..*metadata
                };
                for disk in &metadata.spec.disks {
                    self.volumes.insert(disk.volume.clone());
                }
                let state = VmState::Stopped;
                self.arriving.insert(vm, job);
                self.vms.insert(vm, FakeVm::new(metadata, state));
            }
            Operation::Supersede(_) => {
                if let Some(found) = self.vms.get_mut(&vm) {
                    if found.metadata.transit.is_some() {
                        return refuse(ErrorCode::VmStateWrong, "it is arriving here");
                    }
                    found.state = VmState::Stopped;
                    found.metadata.transit = Some(Transit {
                        job,
                        side: TransitSide::Departed,
                    });
                }
            }
            Operation::MigrationState(_) => {
                let here = self
                    .vms
                    .get(&vm)
                    .is_some_and(|vm| vm.state == VmState::Running);
                let state = if here {
                    SourceState::Here
                } else {
                    SourceState::NotHere
                };
                return Ok(OperationResult::MigrationState { state });
            }
            Operation::Depart(_) => {
                if let Some(found) = self.vms.get_mut(&vm) {
                    if found.state == VmState::Running {
                        return refuse(ErrorCode::VmRunning, "it runs here");
                    }
                    found.metadata.transit = Some(Transit {
                        job,
                        side: TransitSide::Departed,
                    });
                }
            }
            Operation::CommitIncoming(operation::CommitIncoming { live }) => {
                let Some(found) = self.vms.get_mut(&vm) else {
                    return refuse(ErrorCode::VmNotFound, "it never arrived");
                };
                found.metadata.transit = None;
                if live {
                    found.state = VmState::Running;
                }
                return Ok(OperationResult::Committed);
            }
            Operation::CleanUpDeparted(operation::CleanUpDeparted { spec, .. }) => {
                let departed = self
                    .vms
                    .get(&vm)
                    .is_none_or(|vm| vm.metadata.transit.is_some());
                if !departed {
                    return refuse(ErrorCode::VmStateWrong, "it has not departed");
                }
                self.vms.remove(&vm);
                self.tpms.remove(&vm);
                for disk in spec.disks {
                    self.volumes.remove(&disk.volume);
                }
            }
        }
        Ok(OperationResult::Nothing)
    }

    /// The whole migration in one stroke.
    fn send(
        &mut self,
        job: JobId,
        vm: VmId,
        to: &HostName,
        arrives: VmState,
    ) -> Result<OperationResult, Failure> {
        let found = self
            .vms
            .get_mut(&vm)
            .ok_or_else(|| Failure::new(ErrorCode::VmNotFound, "not here"))?;
        let there = self
            .peers
            .get(to)
            .expect("the test made them known to each other");
        let mut there = there.lock().expect("lock");
        if there.stop.lock().expect("lock").is_cancelled() {
            let what = "the link between the hosts";
            return Err(Failure::new(ErrorCode::LinkLost, what));
        }
        let transit = Some(Transit {
            job,
            side: TransitSide::Incoming,
        });
        let metadata = VmMetadata {
            transit,
            ..found.metadata.clone()
        };
        found.state = VmState::Stopped;
        there
            .vms
            .entry(vm)
            .or_insert(FakeVm::new(metadata, arrives));
        let guardians = self.tpms.get(&vm).cloned();
        if let Some(guardians) = guardians {
            there.tpms.insert(vm, guardians);
        }
        there.tell(vm);
        Ok(operation::Migrated {
            total_ms: 1000,
            downtime_ms: Some(100),
            transferred: 12345,
        }
        .into())
    }
}

type Shared = Arc<Mutex<Inner>>;

fn facts(host: &HostName, group: GroupName, guardian: GuardianFacts) -> HostFacts {
    HostFacts {
        host: host.clone(),
        group,
        versions: HypervisorVersions {
            libvirt: Version::new(11, 3, 0),
            qemu: Version::new(10, 0, 2),
            swtpm: Some(Version::new(0, 7, 1)),
            libtpms: Some(Version::new(0, 9, 2)),
            agent: "fake".into(),
        },
        accelerator: Accelerator::Tcg,
        cpus: 4,
        arch: "x86_64".into(),
        cpu_model: "fake".into(),
        memory: ByteSize::gib(64),
        memory_available: ByteSize::gib(32),
        machines: vec!["pc-q35-10.0".into()],
        secure_boot: true,
        confinement: None,
        networks: Vec::new(),
        default_network: Default::default(),
        pools: vec![
            pool("default", &format!("pool of {host}")),
            pool("fast", &format!("other pool of {host}")),
        ],
        guardians: vec![guardian],
        clock: OffsetDateTime::now_utc(),
        tpm_pool: 4,
        boot: None,
        histories: Vec::new(),
        formats: Formats::KNOWN,
        warnings: Vec::new(),
    }
}

fn pool(name: &str, id: &str) -> PoolFacts {
    PoolFacts {
        name: name.parse().expect("a name"),
        id: id.to_owned(),
        path: format!("/volumes/{name}"),
        capacity: ByteSize::gib(1000),
        available: ByteSize::gib(500),
        io: Default::default(),
    }
}
