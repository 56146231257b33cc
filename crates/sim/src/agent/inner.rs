//! The state of a simulated host: what it has, what was asked of it, and how it has been told to fail.

use super::FakeConversion;
use super::vm::FakeVm;
use crate::custody::{Custody, SealedTpm};
use axum::body::Bytes;
use fleetward_api::agent as api_agent;
use fleetward_api::agent::{AgentEvent, AuditHead, TpmStateJudged};
use fleetward_api::tpm::BundleParts;
use fleetward_link::{KeyRequest, LiveCredential, Refusals};
use fleetward_model::audit::{AuditRecord, GENESIS};
use fleetward_model::guardian::GuardianFacts;
use fleetward_model::host::{
    Accelerator, Formats, HostFacts, HypervisorVersions, PoolFacts, Version,
};
use fleetward_model::secure_boot::CertificateState;
use fleetward_model::vm::VmReport;
use fleetward_model::{ByteSize, Failure, GroupName, GuardianId, HostName, JobId, KeyId, VmId};
use http::HeaderMap;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub struct Inner {
    pub host: HostName,
    pub facts: HostFacts,
    pub vms: BTreeMap<VmId, FakeVm>,
    pub volumes: BTreeSet<String>,
    pub tpms: BTreeMap<VmId, Vec<GuardianId>>,
    /// What it seals with; none: key protectors are texts that nothing opens.
    pub custody: Option<Arc<Custody>>,
    /// TPMs that it has made, and those that it has of VMs, where it seals.
    pub made: BTreeMap<VmId, SealedTpm>,
    pub key_ids: BTreeMap<VmId, KeyId>,
    /// Key protectors of TPMs that were prepared and are not in place, where it seals.
    pub prepared: BTreeMap<VmId, String>,
    /// Copies of TPMs that were asked for.
    pub given: Given,
    pub images: BTreeSet<String>,
    pub conversion: FakeConversion,
    /// Media for first boots.
    pub seeds: BTreeMap<VmId, Bytes>,
    /// TPMs that are whole and can be copied.
    pub parts: BTreeMap<VmId, BundleParts>,
    /// VMs whose key this host opens, as it says when asked.
    pub opens: BTreeSet<VmId>,
    /// Names of the operations asked for, in order.
    pub asked: Vec<&'static str>,
    /// Operations that were carried out, or were refused by what is on the host, in order.
    pub performed: Vec<(&'static str, JobId, VmId)>,
    /// Operations that fail the next time, with what.
    pub fail: BTreeMap<&'static str, Failure>,
    /// Operations that are done the next time, and reported as failed.
    pub fail_after: BTreeSet<&'static str>,
    /// Operations at which a host loses its power: this one or a peer, before the operation is done or after.
    pub deaths: BTreeMap<&'static str, Death>,
    /// The jobs whose arrivals are under way, by VM.
    pub arriving: BTreeMap<VmId, JobId>,
    /// The jobs that have moved VMs away, and that have brought some, by VM.
    pub left: BTreeMap<VmId, JobId>,
    pub committed: BTreeMap<VmId, JobId>,
    /// Operations that fail each time.
    pub broken: BTreeSet<&'static str>,
    /// Bytes that every key protector has more: one for many guardians is long.
    pub padding: usize,
    /// Operations for which it is never the time.
    pub busy: BTreeSet<&'static str>,
    /// Operations that an older agent does not know.
    pub unknown: BTreeSet<&'static str>,
    /// The highest generation seen, by VM.
    pub generations: BTreeMap<VmId, u64>,
    pub audit: Vec<AuditRecord>,
    /// Why no copy of any TPM is given.
    pub no_copy: Option<Failure>,
    /// Its EK authority, DER; an agent of before cannot be asked.
    pub ek_authority: Option<Vec<u8>>,
    /// What it says of the TPM state of any VM.
    pub judged: Option<TpmStateJudged>,
    /// Digests of TPM states that it says it has seen.
    pub seen_states: Vec<String>,
    /// Those that it was told of when a VM came.
    pub told_states: Vec<String>,
    /// Asked for a VM or its TPM, it answers with this one, whichever is asked for, also if it does not have that.
    pub answers_with: Option<VmId>,
    /// Its log cannot be read.
    pub audit_spoilt: bool,
    /// The longest end of the controller's own records that was shown.
    pub witnessed: Option<AuditHead>,
    /// Whether it says how far its audit log goes; an agent of before does not.
    pub tells_audit: bool,
    /// Whether it tells by itself what it and its VMs use; an agent of before does not.
    pub tells_load: bool,
    /// How often it was asked for audit records, and shown the end of the controller's.
    pub audit_requests: (u64, u64),
    /// How often somebody has begun to listen to what happens here.
    pub streams: u64,
    /// How often it was given the list of refused certificates.
    pub lists_given: u64,
    /// How it presents itself.
    pub certificate: FakeCertificate,
    /// The running peers of migrations, by host.
    pub peers: Peers,
    /// How often it reports its facts, which is its sign of life.
    pub facts_every: Duration,
    /// How long after its begin it does so first: hosts that begin together do not report together.
    pub facts_phase: Duration,
    /// When it began.
    pub(super) begun: Instant,
    /// How long each answer takes it.
    pub delay: Duration,
    /// How far its clock is ahead of the machine's.
    pub clock_ahead: time::Duration,
    /// It says and answers nothing while this is true, and its connections stay.
    pub(super) silent: watch::Sender<bool>,
    /// Fires when it listens no longer.
    pub(super) stop: Arc<Mutex<CancellationToken>>,
    pub(super) events: broadcast::Sender<AgentEvent>,
}

/// Copies of TPMs that a host gave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Given {
    pub copies: u64,
    /// Of all answers, without what TLS and HTTP add.
    pub bytes: u64,
    /// Copies without the UEFI variables, which were there already.
    pub without_variables: u64,
}

/// Hosts that move VMs between each other, by name.
#[derive(Debug, Clone, Default)]
pub struct Peers(Arc<Mutex<HashMap<HostName, Weak<Mutex<Inner>>>>>);

impl Peers {
    pub(super) fn add(&self, host: &HostName, inner: &Arc<Mutex<Inner>>) {
        let mut peers = self.0.lock().expect("lock");
        peers.insert(host.clone(), Arc::downgrade(inner));
    }

    pub(super) fn of(&self, host: &HostName) -> Option<Arc<Mutex<Inner>>> {
        self.0.lock().expect("lock").get(host)?.upgrade()
    }
}

/// A host's certificate, and whom it refuses.
#[derive(Debug)]
pub struct FakeCertificate {
    pub live: LiveCredential,
    pub refusals: Refusals,
    pub asked: Option<KeyRequest>,
    /// It gets no new one: what arrives is lost.
    pub fails: bool,
}

/// How a host loses its power.
#[derive(Debug, Clone)]
pub struct Death {
    /// Whose listening ends.
    pub(super) who: Arc<Mutex<CancellationToken>>,
    /// Whether it is the peer: this one then finds its link to it broken.
    pub(super) peer: bool,
    /// Whether the operation was done.
    pub(super) after: bool,
}

impl Inner {
    /// A host with nothing on it.
    pub(super) fn new(
        facts: HostFacts,
        certificate: FakeCertificate,
        stop: Arc<Mutex<CancellationToken>>,
    ) -> Self {
        Self {
            stop,
            host: facts.host.clone(),
            facts,
            vms: BTreeMap::new(),
            volumes: BTreeSet::new(),
            tpms: BTreeMap::new(),
            custody: None,
            made: BTreeMap::new(),
            key_ids: BTreeMap::new(),
            prepared: BTreeMap::new(),
            given: Given::default(),
            images: BTreeSet::new(),
            conversion: FakeConversion::default(),
            seeds: BTreeMap::new(),
            parts: BTreeMap::new(),
            opens: BTreeSet::new(),
            asked: Vec::new(),
            performed: Vec::new(),
            fail: BTreeMap::new(),
            fail_after: BTreeSet::new(),
            deaths: BTreeMap::new(),
            arriving: BTreeMap::new(),
            left: BTreeMap::new(),
            committed: BTreeMap::new(),
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
            tells_audit: true,
            tells_load: true,
            audit_requests: (0, 0),
            streams: 0,
            lists_given: 0,
            certificate,
            peers: Peers::default(),
            facts_every: Duration::from_secs(2),
            facts_phase: Duration::ZERO,
            begun: Instant::now(),
            delay: Duration::ZERO,
            clock_ahead: time::Duration::ZERO,
            silent: watch::Sender::new(false),
            events: broadcast::Sender::new(64),
        }
    }

    /// Of a VM whose variables are looked at.
    pub(super) fn certificates(&mut self, vm: VmId, state: CertificateState) {
        let found = self.vms.get_mut(&vm);
        if let Some(found) = found.and_then(|vm| vm.secure_boot.as_mut()) {
            found.state = state;
            found.former_kept = state == CertificateState::Ok;
        }
    }

    pub(super) fn begin_anew(&mut self) {
        self.begun = Instant::now();
        self.facts_phase = Duration::ZERO;
    }

    /// The time, by its own clock.
    pub fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + self.clock_ahead
    }

    /// How far its audit log goes, as its signs of life say.
    pub(super) fn audit_head(&self) -> Option<AuditHead> {
        let last = self.audit.last();
        let (seq, hash) = last.map_or((0, GENESIS), |last| (last.seq, &last.hash));
        (self.tells_audit && !self.audit_spoilt).then(|| AuditHead {
            seq,
            hash: hash.to_owned(),
        })
    }

    pub fn tell(&self, id: VmId) {
        let event = match self.observed(id) {
            Some(vm) => AgentEvent::VmChanged { vm: Box::new(vm) },
            None => AgentEvent::VmRemoved { id },
        };
        let _ = self.events.send(event);
    }

    /// Its facts as of now.
    pub(super) fn facts_now(&self) -> Box<HostFacts> {
        Box::new(HostFacts {
            clock: self.now(),
            ..self.facts.clone()
        })
    }

    pub fn tell_facts(&self) {
        let facts = self.facts_now();
        let _ = self.events.send(AgentEvent::Facts {
            facts,
            audit: self.audit_head(),
        });
    }

    pub fn tell_all(&self, vms: Vec<VmReport>) {
        let facts = self.facts_now();
        let more = false;
        let _ = self.events.send(AgentEvent::Snapshot { facts, vms, more });
    }

    pub fn tell_of(&self, vm: VmReport) {
        let vm = Box::new(vm);
        let _ = self.events.send(AgentEvent::VmChanged { vm });
    }

    /// Whether it is an agent from before versions: it sends what it has, whatever the controller knows.
    pub(super) fn is_former(&self) -> bool {
        self.facts.formats == Formats::default()
    }

    /// The versions in which it answers a request with these headers.
    pub(super) fn answers_in(&self, headers: &HeaderMap) -> Option<Formats> {
        let said = headers.get(api_agent::FORMATS);
        let said = said.and_then(|said| said.to_str().ok());
        (!self.is_former()).then(|| said.map_or_else(Formats::default, Formats::parse))
    }

    pub(super) fn protector(&self, begin: &str) -> String {
        format!("{begin}{}", "A".repeat(self.padding))
    }

    /// Gives a VM another key protector, unless a test has given it a real one; returns what it has.
    pub(super) fn put_protector(&mut self, vm: VmId, begin: &str) -> String {
        let text = self.protector(begin);
        let real = self.parts.contains_key(&vm);
        match self.vms.get_mut(&vm) {
            Some(found) if found.simulated_tpm.is_some() => {
                let unsealed = format!("unsealed {vm} {begin}");
                found.metadata.key_protector.insert(unsealed).clone()
            }
            Some(found) if real => found.metadata.key_protector.clone().unwrap_or_default(),
            Some(found) => found.metadata.key_protector.insert(text).clone(),
            None => text,
        }
    }

    pub(super) fn own(&self) -> GuardianId {
        self.facts.guardians[0].id.clone()
    }
}

pub(super) fn facts(host: &HostName, group: GroupName, guardian: GuardianFacts) -> HostFacts {
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
        tpm_pool_most: Some(4),
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
