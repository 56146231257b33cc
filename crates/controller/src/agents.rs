//! Clients for the agents: one for each host, over mutual TLS to exactly that host.
//!
//! An operation continues in the agent when its stream breaks. The job engine then retries the step, which attaches to
//! the operation by sending the same request.

mod events;

pub(crate) use self::events::Events;
use crate::debts::unpaid;
use crate::fleet::Fleet;
use crate::hosts::{Hosts, Members};
use crate::presence::{Distrust, Presence};
use bytes::Bytes;
use fleetward_api::agent::operation::{Answer, HostOperation, Operation, OperationResult};
use fleetward_api::agent::{
    self, AuditHead, CanOpen, CancelRequest, CertificateAnswer, CertificateRequest, ConversionLine,
    ConversionQuery, ConverterState, EkAuthorityHeld, Flash, GuardianChange, IncomingAnswer,
    KeysRequest, OperationLine, OperationRequest, Question, TpmStateJudged, VmDetail,
};
use fleetward_api::tpm::{TpmBundle, TpmQuery};
use fleetward_jobs::{Data, DebtBook, StepContext, StepError};
use fleetward_link::client::{Lines, Timeouts, UpgradedIo};
use fleetward_link::{Client, ClientError, ClientTls, DialError, Identity};
use fleetward_model::audit::AuditRecord;
use fleetward_model::certificate::{CertificateFacts, RefusedCertificates};
use fleetward_model::fit;
use fleetward_model::guardian::GuardianFacts;
use fleetward_model::host::Formats;
use fleetward_model::keys::Chord;
use fleetward_model::vm::{Custody, VmObserved};
use fleetward_model::{ErrorCode, Failure, HostName, Names, VmId};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use http::{HeaderName, HeaderValue, Method};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest line of a host's events, bytes. libvirt gives no definition of more than four mebibytes away, so an honest host
/// stays below, whatever its VMs are; what is in it is judged afterwards.
const MAX_EVENT: usize = 16 << 20;
/// Longest text of a failure that is taken from a host, characters: it becomes part of a job's record.
const MAX_TEXT: usize = 8 << 10;

/// A question is answered within this, or the check counts as failed.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Largest medium for a first boot that is taken from a host, bytes.
const MAX_SEED: usize = 2 << 20;

/// Reaching an agent, TLS included, takes no longer in a network that works.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A host whose events have ended for so long is not only restarting its agent.
const SILENT: Duration = Duration::from_secs(3);
/// Such a host is given so long to take a request all the same.
const SILENT_TIMEOUT: Duration = Duration::from_secs(2);

/// A host that converts says so every ten seconds.
const CONVERSION_SILENCE: Duration = Duration::from_secs(60);

/// A picture takes a moment under translation, and may wait for others.
const SCREENSHOT_TIMEOUT: Duration = Duration::from_secs(30);
/// Typing waits for what somebody else types at the moment.
const TYPING_TIMEOUT: Duration = Duration::from_secs(60);

/// Clients of all hosts.
#[derive(Debug)]
pub(crate) struct Agents {
    fleet: Arc<Fleet>,
    hosts: Arc<Hosts>,
    presence: Arc<Presence>,
    debts: Arc<DebtBook>,
    clients: Mutex<HashMap<HostName, (String, Client)>>,
    /// As each host last said; nothing is known of one that has not been heard.
    formats: Mutex<HashMap<HostName, Formats>>,
}

impl Agents {
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        hosts: Arc<Hosts>,
        presence: Arc<Presence>,
        debts: Arc<DebtBook>,
    ) -> Self {
        Self {
            fleet,
            hosts,
            presence,
            debts,
            clients: Mutex::default(),
            formats: Mutex::default(),
        }
    }

    /// Takes note of which versions a host's agent knows.
    pub(crate) fn learn(&self, host: &HostName, formats: Formats) {
        let mut known = self.formats.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(host.clone(), formats);
    }

    fn formats_of(&self, host: &HostName) -> Option<Formats> {
        let known = self.formats.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(host).copied()
    }

    /// The agent of a host of the fleet.
    pub(crate) fn of(&self, host: &HostName) -> Result<Agent, Failure> {
        let address = self.hosts.of(host)?.address.clone();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = clients.get(host)
            && *known == address
        {
            return Ok(self.agent(host, client.clone()));
        }
        let client = self.client(host, &address);
        clients.insert(host.clone(), (address, client.clone()));
        Ok(self.agent(host, client))
    }

    /// The same, over connections of its own.
    pub(crate) fn anew(&self, host: &HostName) -> Result<Agent, Failure> {
        let address = self.hosts.of(host)?.address.clone();
        let client = self.client(host, &address);
        Ok(self.agent(host, client))
    }

    /// Later requests use new connections.
    pub(crate) fn reconnect(&self, host: &HostName) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.remove(host);
    }

    fn client(&self, host: &HostName, address: &str) -> Client {
        let tls = ClientTls::member(
            self.fleet.credential().clone(),
            self.fleet.trust().clone(),
            Identity::Host(host.clone()),
        )
        .with_refusals(self.fleet.certificates.refusals().clone());
        Client::tls(address, tls).with_timeouts(Timeouts {
            connect: CONNECT_TIMEOUT,
            ..Timeouts::default()
        })
    }

    /// Why nobody speaks to a host that answers.
    pub(crate) fn distrust(&self, host: &HostName) -> Option<Distrust> {
        self.presence.distrust(host)
    }

    /// For how long a host has been known to be silent.
    pub(crate) fn silent_for(&self, host: &HostName) -> Option<Duration> {
        self.presence.silent_for(host)
    }

    fn agent(&self, host: &HostName, client: Client) -> Agent {
        Agent {
            host: host.clone(),
            client,
            fleet: self.fleet.clone(),
            members: self.hosts.members().clone(),
            presence: self.presence.clone(),
            debts: self.debts.clone(),
            formats: self.formats_of(host),
        }
    }
}

/// One host's agent.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    host: HostName,
    client: Client,
    fleet: Arc<Fleet>,
    /// Not the hosts themselves: they hold the store open, and an agent may outlive a controller that stops.
    members: Arc<Members>,
    presence: Arc<Presence>,
    debts: Arc<DebtBook>,
    /// None before it was heard.
    formats: Option<Formats>,
}

impl Agent {
    /// Its events; `silence` without a line ends them.
    pub(crate) async fn events(&self, silence: Duration) -> Result<Events, Failure> {
        let request = self.client.request(Method::GET, agent::EVENTS);
        let request = request
            .header(
                HeaderName::from_static(agent::FORMATS),
                header(Formats::KNOWN),
            )
            .response_timeout(Some(silence))
            .idle_timeout(Some(silence));
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        Ok(Events::new(self.clone(), response.lines_of(MAX_EVENT)))
    }

    /// Runs an operation for a job's step to its end, passing on progress and cancellation.
    pub(crate) async fn run<I: Data, O: HostOperation>(
        &self,
        cx: &StepContext<I>,
        vm: VmId,
        operation: O,
    ) -> Result<O::Answer, StepError> {
        let operation = operation.into();
        let request = OperationRequest {
            job: cx.job(),
            generation: cx.generation(),
            vm,
            ek: self.fleet.eks.word(&operation, &self.members),
            operation,
            owners: Some(
                self.fleet
                    .vouch_for_owners(&self.fleet.owners.known(&self.members))
                    .map_err(StepError::fatal)?,
            ),
        };
        if !cx.pays_debt()
            && let Some(failure) = self.unpaid(Some(vm))
        {
            let away = failure.code == ErrorCode::HostUnreachable;
            // of a debt that failed, waiting is no cure
            return Err(match away || self.debts.holds_up(self.host.as_str()) {
                true => StepError::retryable(failure),
                false => StepError::fatal(failure),
            });
        }
        self.require_formats(&request.operation)?;
        let sending = self
            .client
            .request(Method::POST, agent::OPERATIONS)
            .json(&request)
            .response_timeout(Some(Duration::from_secs(30)))
            .idle_timeout(None)
            .send();
        let response = self.in_time(sending).await?;
        let mut lines = response.lines();
        let mut asked_to_stop = false;
        loop {
            let line = tokio::select! {
                line = lines.next_json::<OperationLine>() => line.map_err(|error| self.failed(&error))?,
                // a machine that lost power does not close its connections
                () = self.presence.silence(&self.host, SILENT) => return Err(self.silent().into()),
                () = cx.cancelled().cancelled(), if !asked_to_stop => {
                    asked_to_stop = true;
                    self.cancel(&CancelRequest { job: cx.job(), vm }).await;
                    continue;
                }
            };
            match line {
                Some(OperationLine::Progress { done, total, text }) => {
                    if total > 0 {
                        cx.progress().bytes(done, total);
                    }
                    cx.progress().text(text);
                }
                Some(OperationLine::Done { result }) => {
                    return O::Answer::from_result(result)
                        .map_err(|other| self.answered_another::<O>(&other));
                }
                Some(OperationLine::Failed { failure, transient }) => {
                    let failure = bounded(failure);
                    return Err(if transient {
                        StepError::retryable(failure)
                    } else {
                        StepError::from(failure)
                    });
                }
                None => {
                    let what = format!("host {} broke off during {}", self.host, O::NAME);
                    let failure = Failure::new(ErrorCode::HostUnreachable, what);
                    let failure = failure.about(&Names::default().host(&self.host));
                    return Err(StepError::retryable(failure));
                }
            }
        }
    }

    fn answered_another<O: HostOperation>(&self, other: &OperationResult) -> StepError {
        let what = format!(
            "the answer of host {} to {} is the one of another operation",
            self.host,
            O::NAME
        );
        StepError::fatal(Failure::new(ErrorCode::Internal, what).because(format!("{other:?}")))
    }

    /// The answer's beginning, or none for a host that has been silent and stays so.
    async fn in_time<T>(
        &self,
        sending: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Failure> {
        let gone = async {
            self.presence.silence(&self.host, SILENT).await;
            tokio::time::sleep(SILENT_TIMEOUT).await;
        };
        tokio::select! {
            sent = sending => sent.map_err(|error| self.failed(&error)),
            () = gone => Err(self.silent()),
        }
    }

    /// Why nothing but its debts is asked of the host; of one that is away still, that it is away.
    fn unpaid(&self, vm: Option<VmId>) -> Option<Failure> {
        let failure = unpaid(&self.debts, &self.host, vm)?;
        let away = self.presence.silent_for(&self.host).is_some();
        Some(if away { self.silent() } else { failure })
    }

    fn silent(&self) -> Failure {
        let host = &self.host;
        let silent = self.presence.silent_for(host).unwrap_or_default();
        Failure::new(
            ErrorCode::HostUnreachable,
            format!("host {host} does not answer"),
        )
        .because(format!(
            "nothing was heard of it for {} s",
            silent.as_secs()
        ))
        .fix(format!(
            "see that its agent runs and that its port is reachable: fleetward host show {host}"
        ))
    }

    /// Refuses what the host's agent cannot read, or can only read a part of. What was not refused before a job, because the
    /// agent was replaced by an older one since, is refused here.
    fn require_formats(&self, operation: &Operation) -> Result<(), Failure> {
        let Some(known) = self.formats else {
            return Ok(());
        };
        match fit::agent_knows(known, operation.formats(), &self.host) {
            None => Ok(()),
            Some(finding) => Err(Failure::new(finding.code, finding.what).fix(finding.fix)),
        }
    }

    /// A lost request does no harm: the engine drops the step when its grace is over, and undoes it.
    pub(crate) async fn cancel(&self, request: &CancelRequest) {
        let request = self
            .client
            .request(Method::POST, agent::OPERATIONS_CANCEL)
            .json(request);
        if let Err(error) = self.in_time(request.send()).await {
            tracing::warn!(host = %self.host, error = %error.what, "cannot cancel the operation");
        }
    }

    /// What it says of one VM; none when it has no such domain.
    pub(crate) async fn vm(&self, id: VmId) -> Result<Option<Detail>, Failure> {
        let detail = self.detail(id, Formats::KNOWN).await?;
        Ok(detail.map(Detail::from))
    }

    /// What it says of one VM, with the key protector and the EK certificate of a VM that Fleetward made: for the host that
    /// needs them, and never to be stored. None when it has no such domain.
    pub(crate) async fn custody(
        &self,
        id: VmId,
    ) -> Result<Option<(Detail, Option<Custody>)>, Failure> {
        let formats = Formats {
            custody: 1,
            ..Formats::KNOWN
        };
        let Some(detail) = self.detail(id, formats).await? else {
            return Ok(None);
        };
        let custody = detail.vm.metadata.as_ref().map(Custody::from);
        Ok(Some((Detail::from(detail), custody)))
    }

    async fn detail(&self, id: VmId, formats: Formats) -> Result<Option<VmDetail>, Failure> {
        let path = agent::VM.replace("{id}", &id.to_string());
        let request = self
            .client
            .request(Method::GET, &path)
            .header(HeaderName::from_static(agent::FORMATS), header(formats))
            .response_timeout(Some(QUESTION_TIMEOUT));
        let answer = async {
            let response = self.in_time(request.send()).await?;
            let detail = response.json().await;
            detail.map_err(|error| self.failed(&error))
        };
        match answer.await {
            Ok(detail) => Ok(Some(detail)),
            Err(failure) if failure.code == ErrorCode::VmNotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The VM's TPM as one piece, without the UEFI variables if they have the digest in `query`.
    pub(crate) async fn tpm(&self, id: VmId, query: &TpmQuery) -> Result<TpmBundle, Failure> {
        let mut path = agent::VM_TPM.replace("{id}", &id.to_string());
        if let Some(variables) = &query.variables {
            path = format!("{path}?variables={variables}");
        }
        let request = self
            .client
            .request(Method::GET, &path)
            .response_timeout(Some(QUESTION_TIMEOUT));
        let response = self.in_time(request.send()).await?;
        response.json().await.map_err(|error| self.failed(&error))
    }

    pub(crate) async fn ask(&self, question: &Question) -> Result<IncomingAnswer, Failure> {
        let request = self
            .client
            .request(Method::POST, agent::QUESTIONS)
            .json(question);
        let sending = request.response_timeout(Some(QUESTION_TIMEOUT)).send();
        let response = self.in_time(sending).await?;
        response.json().await.map_err(|error| self.failed(&error))
    }

    /// Changes the host's own guardian.
    pub(crate) async fn guardian<I: Data>(
        &self,
        cx: &StepContext<I>,
        change: &GuardianChange,
    ) -> Result<GuardianFacts, Failure> {
        if !cx.pays_debt()
            && let Some(failure) = self.unpaid(None)
        {
            return Err(failure);
        }
        let request = self.client.request(Method::POST, agent::GUARDIANS);
        let response = self.in_time(request.json(change).send()).await?;
        response.json().await.map_err(|error| self.failed(&error))
    }

    /// Shows the host how far the controller's own audit records go; what it was shown before. An agent of before there were
    /// witnesses has seen nothing.
    pub(crate) async fn witness(
        &self,
        head: Option<&AuditHead>,
    ) -> Result<Option<AuditHead>, Failure> {
        match self.client.post(agent::AUDIT_WITNESS, &head).await {
            Err(ClientError::Status { code, .. }) if code == http::StatusCode::NOT_FOUND => {
                Ok(None)
            }
            answer => answer.map_err(|error| self.failed(&error)),
        }
    }

    /// Tells the host which certificates are refused. False: its agent is of before there was such a list.
    pub(crate) async fn refuse(&self, list: &RefusedCertificates) -> Result<bool, Failure> {
        let request = self
            .client
            .request(Method::PUT, agent::REFUSED_CERTIFICATES);
        match request.json(list).send().await {
            Ok(_) => Ok(true),
            Err(ClientError::Status { code, .. }) if code == http::StatusCode::NOT_FOUND => {
                Ok(false)
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// What the host issues EK certificates with. None: its agent is of before that could be asked.
    pub(crate) async fn ek_authority(&self) -> Result<Option<EkAuthorityHeld>, Failure> {
        match self.client.get(agent::EK_AUTHORITY).await {
            Err(ClientError::Status { code, .. }) if code == http::StatusCode::NOT_FOUND => {
                Ok(None)
            }
            answer => answer.map(Some).map_err(|error| self.failed(&error)),
        }
    }

    /// The certificate that the host presents now.
    pub(crate) async fn certificate(&self) -> Result<CertificateFacts, Failure> {
        let answer = self.client.get(agent::CERTIFICATE).await;
        answer.map_err(|error| self.failed(&error))
    }

    pub(crate) async fn request_certificate(&self) -> Result<CertificateRequest, Failure> {
        let answer = self.client.post(agent::CERTIFICATE, &()).await;
        answer.map_err(|error| self.failed(&error))
    }

    pub(crate) async fn install_certificate(&self, chain: String) -> Result<(), Failure> {
        let request = self.client.request(Method::PUT, agent::CERTIFICATE);
        let sent = request.json(&CertificateAnswer { chain }).send().await;
        sent.map(drop).map_err(|error| self.failed(&error))
    }

    /// The medium for a VM's first boot, where the host has one.
    pub(crate) async fn seed(&self, vm: VmId) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        let path = agent::VM_SEED.replace("{id}", &vm.to_string());
        match self.client.request(Method::GET, &path).send().await {
            Ok(response) => {
                let content = response
                    .bytes(MAX_SEED)
                    .await
                    .map_err(|error| self.failed(&error))?;
                Ok(Some(Zeroizing::new(content.into())))
            }
            // An agent of before there were such media has none.
            Err(ClientError::Status { code, .. }) if code == http::StatusCode::NOT_FOUND => {
                Ok(None)
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    pub(crate) async fn put_seed(&self, vm: VmId, content: &[u8]) -> Result<(), Failure> {
        let path = agent::VM_SEED.replace("{id}", &vm.to_string());
        let request = self.client.request(Method::PUT, &path);
        let length = content.len() as u64;
        let request = request.upload(std::io::Cursor::new(content.to_vec()), Some(length));
        let sent = self.in_time(request.send()).await;
        sent.map(drop)
    }

    /// Removes it; a missing one is fine.
    pub(crate) async fn delete_seed(&self, vm: VmId) -> Result<(), Failure> {
        let path = agent::VM_SEED.replace("{id}", &vm.to_string());
        match self.client.request(Method::DELETE, &path).send().await {
            Ok(_) => Ok(()),
            Err(ClientError::Status { code, .. }) if code == http::StatusCode::NOT_FOUND => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Removes what the host keeps of the TPMs of a VM that was deleted.
    pub(crate) async fn delete_history(&self, vm: VmId) -> Result<(), Failure> {
        let path = agent::VM_HISTORY.replace("{id}", &vm.to_string());
        let answer = self.client.request(Method::DELETE, &path).send().await;
        answer.map(drop).map_err(|error| self.failed(&error))
    }

    pub(crate) async fn has_image(&self, sha256: &str) -> Result<bool, Failure> {
        let path = agent::IMAGE.replace("{sha256}", sha256);
        match self.client.request(Method::GET, &path).send().await {
            Ok(_) => Ok(true),
            Err(ClientError::Status { code, .. }) if code == http::StatusCode::NOT_FOUND => {
                Ok(false)
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Sends an image; `progress` hears of the bytes as they go.
    pub(crate) async fn put_image(
        &self,
        sha256: &str,
        format: &str,
        file: &Path,
        progress: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<(), Failure> {
        let unreadable = |error: std::io::Error| {
            Failure::new(
                ErrorCode::Internal,
                format!("cannot read the image {sha256}"),
            )
            .because(error)
        };
        let file = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let total = file.metadata().await.map_err(unreadable)?.len();
        let path = format!(
            "{}?format={format}",
            agent::IMAGE.replace("{sha256}", sha256)
        );
        let request = self
            .client
            .request(Method::PUT, &path)
            .stream(counted(file, total, progress), Some(total));
        let sent = request.response_timeout(None).send().await;
        sent.map(drop).map_err(|error| self.failed(&error))
    }

    /// A file that was copied for a VM or template: its content as it comes.
    pub(crate) async fn copied_file(
        &self,
        id: VmId,
        item: &str,
    ) -> Result<fleetward_link::client::Response, Failure> {
        let path = agent::COPY
            .replace("{id}", &id.to_string())
            .replace("{item}", item);
        let request = self
            .client
            .request(Method::GET, &path)
            .idle_timeout(Some(Duration::from_secs(60)));
        request.send().await.map_err(|error| self.failed(&error))
    }

    /// Whether the host converts images now.
    pub(crate) async fn converter(&self) -> Result<ConverterState, Failure> {
        let request = self.client.request(Method::GET, agent::CONVERSIONS);
        let request = request.response_timeout(Some(QUESTION_TIMEOUT));
        let response = self.in_time(request.send()).await?;
        response.json().await.map_err(|error| self.failed(&error))
    }

    /// Sends a file to be converted; `sent` hears of the bytes as they go. The conversion has begun when this returns.
    pub(crate) async fn convert(
        &self,
        file: &Path,
        query: &ConversionQuery,
        sent: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<Conversion, Failure> {
        let unreadable = |error: std::io::Error| {
            Failure::new(ErrorCode::Internal, "cannot read the image").because(error)
        };
        let file = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let total = file.metadata().await.map_err(unreadable)?.len();
        let query = serde_html_form::to_string(query).expect("two texts");
        let path = format!("{}?{query}", agent::CONVERSIONS);
        let request = self
            .client
            .request(Method::POST, &path)
            .stream(counted(file, total, sent), Some(total))
            .response_timeout(None)
            .idle_timeout(Some(CONVERSION_SILENCE));
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        Ok(Conversion {
            agent: self.clone(),
            lines: response.lines(),
            done: None,
        })
    }

    pub(crate) async fn delete_image(&self, sha256: &str) -> Result<(), Failure> {
        let path = agent::IMAGE.replace("{sha256}", sha256);
        match self.client.request(Method::DELETE, &path).send().await {
            Err(ClientError::Status { code, .. }) if code == http::StatusCode::NOT_FOUND => Ok(()),
            sent => sent.map(drop).map_err(|error| self.failed(&error)),
        }
    }

    pub(crate) async fn audit_after(&self, seq: u64) -> Result<Vec<AuditRecord>, Failure> {
        let path = format!("{}?after={seq}", agent::AUDIT);
        self.client
            .get(&path)
            .await
            .map_err(|error| self.failed(&error))
    }

    /// The raw bytes of a VM's serial console.
    pub(crate) async fn console(&self, id: VmId) -> Result<UpgradedIo, Failure> {
        let path = agent::VM_CONSOLE.replace("{id}", &id.to_string());
        let request = self.client.request(Method::GET, &path);
        let upgraded = request.upgrade(agent::CONSOLE_PROTOCOL).await;
        upgraded.map_err(|error| self.failed(&error))
    }

    /// The screen of a VM: RFB.
    pub(crate) async fn screen(&self, id: VmId) -> Result<UpgradedIo, Failure> {
        let path = agent::VM_SCREEN.replace("{id}", &id.to_string());
        let request = self.client.request(Method::GET, &path);
        let upgraded = self.in_time(request.upgrade(agent::SCREEN_PROTOCOL)).await;
        upgraded.map_err(|failure| self.without_screens(failure))
    }

    /// What the screen of a VM shows, as PNG.
    pub(crate) async fn screenshot(&self, id: VmId) -> Result<Bytes, Failure> {
        let path = agent::VM_SCREENSHOT.replace("{id}", &id.to_string());
        let request = self
            .client
            .request(Method::GET, &path)
            .response_timeout(Some(SCREENSHOT_TIMEOUT));
        let response = self.in_time(request.send()).await;
        let response = response.map_err(|failure| self.without_screens(failure))?;
        let picture = response.bytes(agent::MAX_PICTURE).await;
        picture.map_err(|error| self.failed(&error))
    }

    /// Types on the keyboard of a VM, at most [`agent::MAX_STROKES`] chords.
    pub(crate) async fn keys(&self, id: VmId, strokes: &[Chord]) -> Result<(), Failure> {
        let path = agent::VM_KEYS.replace("{id}", &id.to_string());
        let request = KeysRequest {
            strokes: strokes.to_vec(),
        };
        let request = self
            .client
            .request(Method::POST, &path)
            .json(&request)
            .response_timeout(Some(TYPING_TIMEOUT));
        let typed = self.in_time(request.send()).await;
        typed
            .map(drop)
            .map_err(|failure| self.without_screens(failure))
    }

    /// An agent of before there were screens has nothing at their paths.
    fn without_screens(&self, failure: Failure) -> Failure {
        if failure.code != ErrorCode::NotFound {
            return failure;
        }
        let host = &self.host;
        let what = format!("the agent of host {host} is too old to show screens");
        Failure::new(ErrorCode::AgentTooOld, what).about(&Names::default().host(host))
    }

    /// Returns when the host has been silent for so long that a connection to it is taken for dead.
    pub(crate) async fn silence(&self) {
        self.presence.silence(&self.host, SILENT).await;
    }

    fn failed(&self, error: &ClientError) -> Failure {
        let host = &self.host;
        match error {
            ClientError::Status { code, body } => {
                let failure = serde_json::from_slice(body).map(bounded);
                let failure = failure.unwrap_or_else(|_| {
                    Failure::new(
                        ErrorCode::Internal,
                        format!("host {host} refused, and did not say why"),
                    )
                    .because(format!("its agent answered {code}"))
                });
                failure.about(&Names::default().host(host))
            }
            ClientError::TooLong { limit } => Failure::new(
                ErrorCode::ReportTooLarge,
                format!("host {host} answers with more than is taken"),
            )
            .because(format!("at most {limit} bytes are taken")),
            ClientError::Decode(_) | ClientError::NotText => Failure::new(
                ErrorCode::Internal,
                format!("the answer of host {host} cannot be understood"),
            )
            .because(crate::chain(error)),
            // As good as silent, for jobs; people are told what to do.
            ClientError::Dial(
                DialError::CertificateEnded { .. } | DialError::CertificateRefused { .. },
            ) => {
                let why = crate::chain(error);
                self.presence.distrusts(host, Distrust::OfIts(why.clone()));
                Failure::new(
                    ErrorCode::HostUnreachable,
                    format!("host {host} answers under a certificate that is not taken"),
                )
                .because(why)
                .fix(format!("fleetward host rejoin {host}"))
            }
            ClientError::Dial(DialError::OutOfTimeThere { .. }) => {
                self.presence.distrusts(host, Distrust::OfOurs);
                Failure::new(
                    ErrorCode::HostUnreachable,
                    format!("host {host} refuses the controller by its clock"),
                )
                .because(crate::chain(error))
                .fix(format!(
                    "set the clock of host {host}; what both say: fleetward host show {host}"
                ))
            }
            _ => Failure::new(
                ErrorCode::HostUnreachable,
                format!("host {host} does not answer"),
            )
            .because(crate::chain(error))
            .about(&Names::default().host(host)),
        }
    }
}

/// What a host says of a failure, cut to what a job's record takes.
fn bounded(mut failure: Failure) -> Failure {
    failure.findings.truncate(1000);
    let findings = failure.findings.iter_mut();
    let texts = findings.flat_map(|finding| [&mut finding.what, &mut finding.fix]);
    for text in texts.chain([&mut failure.what, &mut failure.because, &mut failure.fix]) {
        if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
            text.truncate(end);
        }
    }
    failure
}

/// The pieces of a file; `progress` hears of the bytes as they go.
fn counted(
    file: tokio::fs::File,
    total: u64,
    progress: impl Fn(u64, u64) + Send + 'static,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let mut done = 0;
    tokio_util::io::ReaderStream::with_capacity(file, 256 * 1024).inspect(move |piece| {
        done += piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
        progress(done, total);
    })
}

/// A disk that a host has made.
pub(crate) struct ConvertedDisk {
    /// Bytes, as the host says.
    pub(crate) size: u64,
    /// What was found on the way to it, from outside to inside.
    pub(crate) found: Vec<String>,
    pub(crate) content: BoxStream<'static, Result<Bytes, ClientError>>,
}

/// A conversion on a host. Dropping it ends it there.
pub(crate) struct Conversion {
    agent: Agent,
    lines: Lines,
    done: Option<(u64, Vec<String>)>,
}

impl Conversion {
    /// The next step and how far it is, of 1,000; none when the disk is ready.
    pub(crate) async fn progress(&mut self) -> Result<Option<(String, u32)>, Failure> {
        let next = self.lines.next_json().await;
        match next.map_err(|error| self.agent.failed(&error))? {
            Some(ConversionLine::Progress { step, permille }) => Ok(Some((step, permille))),
            Some(ConversionLine::Done { size, found }) => {
                self.done = Some((size, found));
                Ok(None)
            }
            Some(ConversionLine::Failed { failure }) => Err(failure),
            None => Err(self.broken()),
        }
    }

    /// The disk.
    pub(crate) fn disk(self) -> Result<ConvertedDisk, Failure> {
        let (size, found) = self.done.clone().ok_or_else(|| self.broken())?;
        Ok(ConvertedDisk {
            size,
            found,
            content: self.lines.into_rest().boxed(),
        })
    }

    fn broken(&self) -> Failure {
        let host = &self.agent.host;
        Failure::new(
            ErrorCode::HostUnreachable,
            format!("host {host} broke the conversion off"),
        )
        .about(&Names::default().host(host))
    }
}

fn header(formats: Formats) -> HeaderValue {
    HeaderValue::try_from(formats.to_string()).expect("digits and letters")
}

/// One VM with what only its host knows; its custody as digests.
#[derive(Debug, Clone)]
pub(crate) struct Detail {
    pub(crate) vm: VmObserved,
    pub(crate) cpu_xml: Option<String>,
    pub(crate) flash: Option<Flash>,
    pub(crate) can_open: CanOpen,
    pub(crate) tpm_state: Option<TpmStateJudged>,
    /// As digests, oldest first: only beside its custody.
    pub(crate) tpm_states: Vec<String>,
}

impl From<VmDetail> for Detail {
    fn from(detail: VmDetail) -> Self {
        Self {
            vm: detail.vm.digested(),
            cpu_xml: detail.cpu_xml,
            flash: detail.flash,
            can_open: detail.can_open,
            tpm_state: detail.tpm_state,
            tpm_states: detail.tpm_states,
        }
    }
}
