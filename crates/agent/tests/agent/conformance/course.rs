//! The course: what a controller asks of two hosts in the life of a VM, and much that it must not ask.

mod requests;

use super::shape;
use crate::support::{Fleet, Job, disks, spec};
use fleetward_api::agent::operation::*;
use fleetward_api::agent::{self, *};
use fleetward_api::tpm::TpmBundle;
use fleetward_link::client::Lines;
use fleetward_link::{Client, ClientError, Identity};
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::host::Formats;
use fleetward_model::vm::{VmMetadata, VmSpec, VolumeSource};
use fleetward_model::{Failure, GuardianId};
use http::{HeaderName, HeaderValue, Method};
use requests::{remove_tpm, stop};
use serde_json::{Value, json};
use std::time::Duration;

/// Within which an event must come.
const LIMIT: Duration = Duration::from_secs(60);

/// What was asked, and the shape of what was said.
pub struct Step {
    pub what: String,
    pub said: Value,
}

/// A host as a controller has it.
pub struct End {
    name: String,
    address: String,
    client: Client,
    events: Option<Lines>,
}

impl End {
    pub fn new(name: &str, address: &str, client: Client) -> Self {
        Self {
            name: name.to_owned(),
            address: address.to_owned(),
            client,
            events: None,
        }
    }

    fn peer(&self) -> Peer {
        Peer {
            host: self.name.parse().unwrap(),
            address: self.address.clone(),
        }
    }
}

pub struct Course<'f> {
    fleet: &'f Fleet,
    hosts: Vec<End>,
    steps: Vec<Step>,
    spec: VmSpec,
    job: Job,
}

/// The hosts, by their places.
const A: usize = 0;
const B: usize = 1;

impl<'f> Course<'f> {
    pub async fn run(fleet: &'f Fleet, hosts: Vec<End>) -> Vec<Step> {
        let spec = spec("vm1");
        let mut course = Self {
            fleet,
            hosts,
            steps: Vec::new(),
            job: Job::new(spec.id, 1),
            spec,
        };
        course.come().await;
        course.ask_for_what_is_not_there().await;
        course.create().await;
        course.switch_on_and_off().await;
        course.copy_the_tpm().await;
        course.take_the_tpm_away_and_make_another().await;
        course.roll().await;
        course.move_running().await;
        course.move_stopped().await;
        course.read_the_log().await;
        course.delete().await;
        course.be_somebody_else().await;
        course.steps
    }

    fn note(&mut self, what: impl Into<String>, said: &Value) {
        let (what, said) = (what.into(), shape::of(said));
        self.steps.push(Step { what, said });
    }

    fn endorsed(&self, hosts: &[usize]) -> Vec<EndorsedGuardian> {
        let names = hosts.iter().map(|host| self.hosts[*host].name.as_str());
        names
            .map(|name| self.fleet.endorsed(name, "default"))
            .collect()
    }

    fn guardian(&self, host: usize) -> GuardianId {
        self.endorsed(&[host])[0].guardian.id.clone()
    }

    /// Joins, the first event and the first sign of life.
    async fn come(&mut self) {
        let joins = self.fleet.joins();
        self.note("join", &joins[0]);
        for host in [A, B] {
            let request = self.hosts[host].client.request(Method::GET, EVENTS);
            let request = formats(request, Formats::KNOWN);
            self.hosts[host].events = Some(request.send().await.unwrap().lines());
            let first = self.next_event(host).await;
            self.note("the first event", &first);
        }
        // Where something of a host has changed meanwhile, as the number of its TPMs, its facts come first.
        let sign = loop {
            let event = self.next_event(A).await;
            if event["event"] == "alive" {
                break event;
            }
        };
        self.note("a sign of life", &sign);
    }

    async fn next_event(&mut self, host: usize) -> Value {
        let events = self.hosts[host].events.as_mut().unwrap();
        let next = tokio::time::timeout(LIMIT, events.next_json::<Value>());
        next.await.expect("an event").unwrap().expect("a stream")
    }

    /// Asks for an operation, and gives its answer where it has one.
    async fn ask(&mut self, host: usize, operation: impl Into<Operation>) -> Value {
        let operation = operation.into();
        let what = format!("{} on {}", operation.name(), self.hosts[host].name);
        let request = self.job.request(operation);
        let sent = self.hosts[host].client.request(Method::POST, OPERATIONS);
        let said = match sent.json(&request).send().await {
            Err(error) => refused(error),
            Ok(response) => {
                let mut lines = response.lines();
                loop {
                    let line = lines.next_json::<OperationLine>().await.unwrap();
                    match line.expect("a last line") {
                        OperationLine::Progress { .. } => {}
                        OperationLine::Failed { failure, transient } => {
                            break json!({ "failed": failure.code.as_str(), "transient": transient });
                        }
                        OperationLine::Done { result } => {
                            break serde_json::to_value(result).unwrap();
                        }
                    }
                }
            }
        };
        self.note(what, &said);
        said
    }

    /// Asks for an operation, and looks at the VM until the host has told of it as it shows it.
    async fn see(&mut self, host: usize, operation: impl Into<Operation>) -> Value {
        let said = self.ask(host, operation).await;
        let vm = self.spec.id;
        let shown = self
            .get(host, &format!("/v1/vms/{vm}"), Formats::KNOWN)
            .await;
        let told = match shown.get("vm") {
            Some(vm) => json!({ "event": "vm_changed", "vm": vm }),
            None => json!({ "event": "vm_removed", "id": vm }),
        };
        self.note("the VM", &shown);
        let told = shape::of(&told);
        let mut last = Value::Null;
        let deadline = std::time::Instant::now() + LIMIT;
        while last != told {
            let differs = || shape::differences(&told, &last).join("\n");
            assert!(std::time::Instant::now() < deadline, "{}", differs());
            last = shape::of(&self.next_event(host).await);
        }
        said
    }

    async fn get(&self, host: usize, path: &str, known: Formats) -> Value {
        let request = self.hosts[host].client.request(Method::GET, path);
        match formats(request, known).send().await {
            Ok(response) => response.json().await.unwrap_or(json!("no content")),
            Err(error) => refused(error),
        }
    }

    /// Reads something, and notes it.
    async fn read(&mut self, host: usize, path: &str) -> Value {
        let said = self.get(host, path, Formats::KNOWN).await;
        let name = path.replace(&self.spec.id.to_string(), "VM");
        let name = name.split('?').next().unwrap_or_default();
        self.note(format!("GET {name} of {}", self.hosts[host].name), &said);
        said
    }

    async fn send(&mut self, host: usize, method: Method, path: &str, body: &Value) -> Value {
        let sent = self.hosts[host].client.request(method.clone(), path);
        let said = match sent.json(body).send().await {
            Ok(response) => response.json().await.unwrap_or(json!("no content")),
            Err(error) => refused(error),
        };
        self.note(format!("{method} {path}"), &said);
        said
    }

    fn another_job(&mut self) {
        self.job = Job::new(self.spec.id, self.job.generation + 1);
    }

    async fn ask_for_what_is_not_there(&mut self) {
        let (vm, other) = (self.spec.id, "0".repeat(64));
        for path in [
            format!("/v1/vms/{vm}"),
            format!("/v1/vms/{vm}/tpm"),
            format!("/v1/vms/{vm}/seed"),
            format!("/v1/images/{other}"),
            "/v1/there/is/no/such/thing".to_owned(),
            "/v1/vms/not-an-id".to_owned(),
        ] {
            self.read(A, &path).await;
        }
        for operation in [
            Operation::from(Start {}),
            Pause {}.into(),
            Resume {}.into(),
            stop().into(),
            Undefine {}.into(),
            AttachTpm {}.into(),
            DetachTpm {}.into(),
            SetAsideTpm {}.into(),
            remove_tpm(false).into(),
            Grant { to: Vec::new() }.into(),
            self.rewrap(&[], &[], RewrapReason::Automatic).into(),
            PrepareUnlock {}.into(),
            AbandonTpm {}.into(),
            MigrationState {}.into(),
            Depart {}.into(),
            CommitIncoming { live: true }.into(),
            self.migrate(B).into(),
            self.send_stopped(B).into(),
            self.abandon().into(),
            self.clean_up().into(),
            self.delete_volumes().into(),
            Supersede {}.into(),
        ] {
            self.ask(A, operation).await;
        }
    }

    async fn create(&mut self) {
        self.another_job();
        let image = VolumeSource::Image {
            image: "base".parse().unwrap(),
            sha256: "0".repeat(64),
        };
        let create = |sources| CreateVolumes {
            spec: self.spec.clone(),
            sources,
        };
        let (of_image, empty) = (create(vec![image]), create(Vec::new()));
        self.ask(A, of_image).await;
        for _ in 0..2 {
            self.ask(A, empty.clone()).await;
        }
        let recipients = self.endorsed(&[A]);
        for _ in 0..2 {
            let make = MakeTpm {
                recipients: recipients.clone(),
            };
            self.see(A, make).await;
        }
        let metadata = Box::new(VmMetadata {
            spec: self.spec.clone(),
            generation: 1,
            key_protector: None,
            ek_certificate: None,
            transit: None,
            revoked: Vec::new(),
            former_certificates: None,
            unknown: Default::default(),
        });
        for _ in 0..2 {
            let metadata = metadata.clone();
            self.see(A, Define { metadata }).await;
        }
        let question = json!({ "metadata": metadata, "cpu_xml": null });
        self.send(A, Method::POST, QUESTIONS, &question).await;
        self.send(B, Method::POST, QUESTIONS, &question).await;
    }

    async fn switch_on_and_off(&mut self) {
        self.ask(A, Pause {}).await;
        self.ask(A, Resume {}).await;
        for _ in 0..2 {
            self.see(A, Start {}).await;
        }
        // Rates are known after two looks.
        let load = loop {
            let event = self.next_event(A).await;
            if event["load"]["vms"][0]["read"].is_number() {
                break event;
            }
        };
        self.note("what a host and a VM use", &load);
        for operation in [
            Operation::from(self.delete_volumes()),
            Undefine {}.into(),
            remove_tpm(true).into(),
            AttachTpm {}.into(),
            DetachTpm {}.into(),
            SetAsideTpm {}.into(),
            Depart {}.into(),
            PrepareRoll { to: Vec::new() }.into(),
            CommitIncoming { live: true }.into(),
            self.clean_up().into(),
            self.abandon().into(),
            MigrationState {}.into(),
        ] {
            self.ask(A, operation).await;
        }
        for _ in 0..2 {
            self.see(A, Pause {}).await;
        }
        self.see(A, Resume {}).await;
        for _ in 0..2 {
            self.see(A, stop()).await;
        }
        let now = std::mem::replace(&mut self.job, Job::new(self.spec.id, 0));
        self.ask(A, Start {}).await;
        self.job = now;
        let cancel = json!({ "job": self.job.id, "vm": self.spec.id });
        self.send(A, Method::POST, OPERATIONS_CANCEL, &cancel).await;
        let junk = json!({ "operation": "unheard-of" });
        self.send(A, Method::POST, OPERATIONS, &junk).await;
    }

    async fn copy_the_tpm(&mut self) {
        let path = format!("/v1/vms/{}/tpm", self.spec.id);
        let whole = self.read(A, &path).await;
        let whole: Option<TpmBundle> = serde_json::from_value(whole).ok();
        self.note(
            "a bundle is whole",
            &json!(whole.as_ref().is_some_and(|whole| whole.check().is_ok())),
        );
        let known = whole.and_then(|whole| whole.variables_sha256());
        let known = known.unwrap_or_default();
        self.read(A, &format!("{path}?variables={known}")).await;
        let custody = Formats {
            custody: 1,
            ..Formats::KNOWN
        };
        let path = format!("/v1/vms/{}", self.spec.id);
        let said = self.get(A, &path, custody).await;
        self.note("the VM with its custody", &said);
    }

    /// `tpm disable`, then `tpm enable`.
    async fn take_the_tpm_away_and_make_another(&mut self) {
        self.another_job();
        self.see(A, DetachTpm {}).await;
        let path = format!("/v1/vms/{}/tpm", self.spec.id);
        self.read(A, &path).await;
        for _ in 0..2 {
            self.see(A, SetAsideTpm {}).await;
        }
        self.ask(A, AttachTpm {}).await;
        self.another_job();
        let recipients = self.endorsed(&[A, B]);
        self.see(A, MakeTpm { recipients }).await;
        for _ in 0..2 {
            self.see(A, AttachTpm {}).await;
        }
        let facts = self.facts(A).await;
        self.note("facts of a host with a history", &facts);
    }

    /// What another reader of its events is told first.
    async fn facts(&mut self, host: usize) -> Value {
        let request = self.hosts[host].client.request(Method::GET, EVENTS);
        let response = formats(request, Formats::KNOWN).send().await.unwrap();
        let first = response.lines().next_json::<Value>().await.unwrap();
        first.expect("a snapshot")["facts"].clone()
    }

    async fn roll(&mut self) {
        self.another_job();
        let to = self.endorsed(&[A]);
        self.ask(A, PrepareRoll { to: to.clone() }).await;
        self.ask(A, AbandonTpm {}).await;
        // The host knows best what it has prepared: what is said counts when that is in place already.
        let commit = |key_protector: &str| CommitTpm {
            key_protector: key_protector.to_owned(),
        };
        self.ask(A, commit("")).await;
        let prepared = self.ask(A, PrepareRoll { to }).await;
        self.see(A, commit("")).await;
        let rolled = prepared["key_protector"].as_str().unwrap_or("none");
        self.see(A, commit(rolled)).await;
        self.ask(A, commit("another")).await;
        self.ask(A, PrepareUnlock {}).await;
        self.see(A, commit("")).await;
    }

    async fn move_running(&mut self) {
        self.another_job();
        self.see(A, Start {}).await;
        self.wrap().await;
        self.prepare(A, B, true).await;
        self.ask(B, Start {}).await;
        self.see(A, self.migrate(B)).await;
        self.see(B, Start {}).await;
        for host in [A, B] {
            let path = format!("/v1/vms/{}/tpm", self.spec.id);
            self.ask(host, MigrationState {}).await;
            if host == B {
                self.read(host, &path).await;
            }
        }
        for _ in 0..2 {
            self.see(A, Depart {}).await;
        }
        self.ask(A, Start {}).await;
        let path = format!("/v1/vms/{}/tpm", self.spec.id);
        self.read(A, &path).await;
        for _ in 0..2 {
            self.see(B, CommitIncoming { live: true }).await;
        }
        self.ask(B, self.abandon()).await;
        self.ask(B, self.clean_up()).await;
        for _ in 0..2 {
            self.see(A, self.clean_up()).await;
        }
    }

    /// Grants, takes away and gives back.
    async fn wrap(&mut self) {
        let both = self.endorsed(&[A, B]);
        for _ in 0..2 {
            let to = both.clone();
            self.see(A, Grant { to }).await;
        }
        let revoke = self.rewrap(&[], &[B], RewrapReason::Revoked);
        self.see(A, revoke).await;
        let give_back = self.rewrap(&[B], &[], RewrapReason::Granted);
        self.see(A, give_back).await;
    }

    async fn prepare(&mut self, from: usize, to: usize, live: bool) {
        let custody = Formats {
            custody: 1,
            ..Formats::KNOWN
        };
        let path = format!("/v1/vms/{}", self.spec.id);
        let shown = self.get(from, &path, custody).await;
        let shown: VmDetail = serde_json::from_value(shown).expect("a VM");
        let metadata = shown.vm.metadata.expect("ours");
        for _ in 0..2 {
            let prepare = PrepareIncoming {
                metadata: Box::new(metadata.clone()),
                disks: disks(true),
                live,
                from: self.hosts[from].peer(),
                former_states: Vec::new(),
            };
            self.see(to, prepare).await;
        }
    }

    async fn move_stopped(&mut self) {
        self.another_job();
        self.see(B, stop()).await;
        let to = self.endorsed(&[A, B]);
        self.see(B, Grant { to }).await;
        // Prepared and given up, then for good.
        self.prepare(B, A, false).await;
        self.see(A, self.abandon()).await;
        self.prepare(B, A, false).await;
        self.ask(A, CommitIncoming { live: false }).await;
        self.see(B, self.send_stopped(A)).await;
        self.see(B, Depart {}).await;
        self.see(A, CommitIncoming { live: false }).await;
        self.see(B, self.clean_up()).await;
        self.see(A, Start {}).await;
        self.see(A, stop()).await;
    }

    async fn delete(&mut self) {
        self.another_job();
        for _ in 0..2 {
            self.see(A, Undefine {}).await;
            let remove = RemoveTpm {
                keep: false,
                history: true,
            };
            self.see(A, remove).await;
            self.see(A, self.delete_volumes()).await;
        }
        let facts = self.facts(A).await;
        self.note("facts of a host without", &facts);
    }

    async fn read_the_log(&mut self) {
        for host in [A, B] {
            let records = self.read(host, "/v1/audit?after=0").await;
            let records = records.as_array().expect("records");
            let actions: Vec<String> = records
                .iter()
                .map(|record| record["action"].as_str().unwrap().to_owned())
                .collect();
            // In a text, where the order counts.
            let actions = json!(actions.join(" "));
            self.note("actions in the log", &actions);
            let after = format!("/v1/audit?after={}", records.len());
            self.read(host, &after).await;
        }
        let head = |seq: u64| json!({ "seq": seq, "hash": "0".repeat(64) });
        for shown in [Value::Null, head(7), head(3), Value::Null] {
            self.send(A, Method::POST, AUDIT_WITNESS, &shown).await;
        }
        self.read(A, CERTIFICATE).await;
        self.read(A, EK_AUTHORITY).await;
        self.read(A, CONVERSIONS).await;
        self.send(A, Method::POST, CERTIFICATE, &Value::Null).await;
        let none = json!({ "entries": [] });
        self.send(A, Method::PUT, REFUSED_CERTIFICATES, &none).await;
    }

    async fn be_somebody_else(&mut self) {
        let End { name, address, .. } = &self.hosts[A];
        let other = Identity::Host(self.hosts[B].name.parse().unwrap());
        let client = self.fleet.client_as(&other, name, address);
        for path in [EVENTS, AUDIT, "/v1/there/is/no/such/thing"] {
            let said = match client.request(Method::GET, path).send().await {
                Ok(_) => json!("answered"),
                Err(error) => refused(error),
            };
            self.note(format!("{path} for another host"), &said);
        }
    }
}

fn formats(
    request: fleetward_link::client::Request<'_>,
    known: Formats,
) -> fleetward_link::client::Request<'_> {
    let text = HeaderValue::try_from(known.to_string()).unwrap();
    request.header(HeaderName::from_static(agent::FORMATS), text)
}

/// A refusal by its status and its code.
fn refused(error: ClientError) -> Value {
    let ClientError::Status { code, body } = error else {
        panic!("{error:?}");
    };
    match serde_json::from_slice::<Failure>(&body) {
        Ok(failure) => shape::refusal(&format!("refused {code}"), failure.code),
        Err(_) => json!({ "refused": format!("{code} {}", String::from_utf8_lossy(&body)) }),
    }
}
