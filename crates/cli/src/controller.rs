//! The controller's API as functions, one for each endpoint that the command line uses, and how its errors become
//! [`Failure`]s. Knows nothing of terminals.

use crate::args::Global;
use bytes::Bytes;
use fleetward_api::controller::{
    Accepted, AcceptedWithWarnings, AdminReply, AdminRequest, AuditVerdict, CheckView,
    CloneRequest, GrantAnswer, GrantRequest, GuardianView, HostView, ImageView, JobKindView,
    JobView, MigrateRequest, RebuildView, RecoverRequest, RevokeRequest, RotateRequest, Status,
    StopRequest, TemplateRequest, TemplateView, TokenRequest, TokenView, TpmRequest,
    VmCreateRequest, VmView,
};
use fleetward_api::tpm::TpmVersion;
use fleetward_link::client::{Client, ClientError, Lines, Response, UpgradedIo};
use fleetward_link::{ClientTls, Credential, DialError, FleetTrust, Identity, LiveCredential};
use fleetward_model::{ErrorCode, Failure, HostName, ImageName, JobId, TemplateName, VmName};
use futures_util::Stream;
use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::Duration;

/// A quiet event stream says nothing; the controller sends an empty line more often than this.
const EVENT_SILENCE: Duration = Duration::from_secs(60);

/// Answers to requests that ask all hosts take longer than others.
const SLOW: Duration = Duration::from_secs(180);

const DEFAULT_PORT: u16 = 7440;

/// The controller, reached over its socket or over TLS.
#[derive(Debug, Clone)]
pub(crate) struct Controller {
    client: Client,
}

impl Controller {
    /// The controller that the options name. Does not connect yet.
    pub(crate) fn from_options(options: &Global) -> Result<Self, Failure> {
        let client = match &options.controller {
            None => Client::unix(&options.socket),
            Some(url) => Client::tls(address_of(url)?, tls(options)?),
        };
        Ok(Self { client })
    }

    pub(crate) async fn status(&self) -> Result<Status, Failure> {
        self.get("/v1/status").await
    }

    pub(crate) async fn rebuild(&self) -> Result<RebuildView, Failure> {
        let request = self
            .client
            .request(Method::POST, "/v1/rebuild")
            .response_timeout(Some(SLOW));
        let response = request.send().await.map_err(|e| self.failure(e))?;
        response.json().await.map_err(|e| self.failure(e))
    }

    pub(crate) async fn hosts(&self) -> Result<Vec<HostView>, Failure> {
        self.get("/v1/hosts").await
    }

    pub(crate) async fn host(&self, name: &HostName) -> Result<HostView, Failure> {
        self.get(&format!("/v1/hosts/{name}")).await
    }

    pub(crate) async fn drain_host(&self, name: &HostName) -> Result<Accepted, Failure> {
        let path = format!("/v1/hosts/{name}/drain");
        let response = self.send(Method::POST, &path).await?;
        response.json().await.map_err(|e| self.failure(e))
    }

    pub(crate) async fn resume_host(&self, name: &HostName) -> Result<(), Failure> {
        self.ask(Method::POST, &format!("/v1/hosts/{name}/resume"))
            .await
    }

    pub(crate) async fn remove_host(&self, name: &HostName) -> Result<(), Failure> {
        self.ask(Method::DELETE, &format!("/v1/hosts/{name}")).await
    }

    pub(crate) async fn make_token(&self, request: &TokenRequest) -> Result<TokenView, Failure> {
        self.post("/v1/host-tokens", request).await
    }

    pub(crate) async fn certify_admin(
        &self,
        request: &AdminRequest,
    ) -> Result<AdminReply, Failure> {
        self.post("/v1/admins", request).await
    }

    pub(crate) async fn images(&self) -> Result<Vec<ImageView>, Failure> {
        self.get("/v1/images").await
    }

    /// Uploads what `content` gives, `length` bytes.
    pub(crate) async fn import_image(
        &self,
        name: &ImageName,
        format: Option<&str>,
        content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        length: u64,
    ) -> Result<ImageView, Failure> {
        let mut query = Query::default();
        query.add("format", format);
        let path = format!("/v1/images/{name}{}", query.text());
        let request = self
            .client
            .request(Method::PUT, &path)
            .stream(content, Some(length))
            .response_timeout(None);
        let response = request.send().await.map_err(|e| self.failure(e))?;
        response.json().await.map_err(|e| self.failure(e))
    }

    pub(crate) async fn delete_image(&self, name: &ImageName) -> Result<(), Failure> {
        self.ask(Method::DELETE, &format!("/v1/images/{name}"))
            .await
    }

    pub(crate) async fn vms(
        &self,
        host: Option<&HostName>,
        label: Option<&str>,
        tpm: Option<bool>,
    ) -> Result<Vec<VmView>, Failure> {
        let mut query = Query::default();
        query.add("host", host.map(HostName::as_str));
        query.add("label", label);
        query.add("tpm", tpm.map(|on| if on { "true" } else { "false" }));
        self.get(&format!("/v1/vms{}", query.text())).await
    }

    pub(crate) async fn vm(&self, name: &VmName) -> Result<VmView, Failure> {
        self.get(&format!("/v1/vms/{name}")).await
    }

    pub(crate) async fn create_vm(&self, request: &VmCreateRequest) -> Result<Accepted, Failure> {
        self.post("/v1/vms", request).await
    }

    pub(crate) async fn clone_vm(
        &self,
        name: &VmName,
        request: &CloneRequest,
    ) -> Result<AcceptedWithWarnings, Failure> {
        self.post(&format!("/v1/vms/{name}/clone"), request).await
    }

    pub(crate) async fn recover_vm(
        &self,
        name: &str,
        request: &RecoverRequest,
    ) -> Result<Accepted, Failure> {
        self.post(&format!("/v1/vms/{name}/recover"), request).await
    }

    pub(crate) async fn templates(&self) -> Result<Vec<TemplateView>, Failure> {
        self.get("/v1/templates").await
    }

    pub(crate) async fn template(&self, name: &TemplateName) -> Result<TemplateView, Failure> {
        self.get(&format!("/v1/templates/{name}")).await
    }

    pub(crate) async fn create_template(
        &self,
        request: &TemplateRequest,
    ) -> Result<AcceptedWithWarnings, Failure> {
        self.post("/v1/templates", request).await
    }

    pub(crate) async fn delete_template(&self, name: &TemplateName) -> Result<(), Failure> {
        let path = format!("/v1/templates/{name}");
        self.send(Method::DELETE, &path).await.map(drop)
    }

    pub(crate) async fn start_vm(&self, name: &VmName) -> Result<Accepted, Failure> {
        let path = format!("/v1/vms/{name}/start");
        let response = self.send(Method::POST, &path).await?;
        response.json().await.map_err(|e| self.failure(e))
    }

    pub(crate) async fn stop_vm(
        &self,
        name: &VmName,
        request: &StopRequest,
    ) -> Result<Accepted, Failure> {
        self.post(&format!("/v1/vms/{name}/stop"), request).await
    }

    /// `change` is `enable`, `disable`, `restore` or `roll`.
    pub(crate) async fn change_tpm(
        &self,
        name: &VmName,
        change: &str,
        request: &TpmRequest,
    ) -> Result<Accepted, Failure> {
        self.post(&format!("/v1/vms/{name}/tpm/{change}"), request)
            .await
    }

    pub(crate) async fn tpm_history(&self, name: &VmName) -> Result<Vec<TpmVersion>, Failure> {
        self.get(&format!("/v1/vms/{name}/tpm/history")).await
    }

    pub(crate) async fn migrate_vm(
        &self,
        name: &VmName,
        request: &MigrateRequest,
    ) -> Result<Accepted, Failure> {
        self.post(&format!("/v1/vms/{name}/migrate"), request).await
    }

    pub(crate) async fn delete_vm(
        &self,
        name: &VmName,
        keep_tpm_state: bool,
    ) -> Result<Accepted, Failure> {
        let path = format!("/v1/vms/{name}?keep_tpm_state={keep_tpm_state}");
        let response = self.send(Method::DELETE, &path).await?;
        response.json().await.map_err(|e| self.failure(e))
    }

    /// The bytes of a WebSocket to the VM's serial console.
    pub(crate) async fn console(&self, name: &VmName) -> Result<UpgradedIo, Failure> {
        let path = format!("/v1/vms/{name}/console");
        let request = self.client.request(Method::GET, &path);
        let upgraded = request.upgrade_to_websocket().await;
        upgraded.map_err(|e| self.failure(e))
    }

    pub(crate) async fn check(
        &self,
        vm: Option<&VmName>,
        to: Option<&HostName>,
        offline: bool,
    ) -> Result<Vec<CheckView>, Failure> {
        let mut query = Query::default();
        query.add("vm", vm.map(VmName::as_str));
        query.add("to", to.map(HostName::as_str));
        query.add("offline", offline.then_some("true"));
        let path = format!("/v1/check{}", query.text());
        let request = self.client.request(Method::GET, &path);
        let response = request.response_timeout(Some(SLOW)).send().await;
        let response = response.map_err(|e| self.failure(e))?;
        response.json().await.map_err(|e| self.failure(e))
    }

    pub(crate) async fn jobs(&self) -> Result<Vec<JobView>, Failure> {
        self.get("/v1/jobs").await
    }

    pub(crate) async fn job_kinds(&self) -> Result<Vec<JobKindView>, Failure> {
        self.get("/v1/job-kinds").await
    }

    pub(crate) async fn job(&self, id: JobId) -> Result<JobView, Failure> {
        self.get(&format!("/v1/jobs/{id}")).await
    }

    /// The job now and each time it changes, until it has ended.
    pub(crate) async fn job_events(&self, id: JobId) -> Result<JobEvents<'_>, Failure> {
        let path = format!("/v1/jobs/{id}/events");
        let request = self.client.request(Method::GET, &path);
        let response = request.idle_timeout(Some(EVENT_SILENCE)).send().await;
        let response = response.map_err(|e| self.failure(e))?;
        Ok(JobEvents {
            controller: self,
            lines: response.lines(),
        })
    }

    pub(crate) async fn cancel_job(&self, id: JobId) -> Result<(), Failure> {
        self.ask(Method::POST, &format!("/v1/jobs/{id}/cancel"))
            .await
    }

    pub(crate) async fn grant(&self, request: &GrantRequest) -> Result<GrantAnswer, Failure> {
        self.post("/v1/guardian-grants", request).await
    }

    pub(crate) async fn revoke(&self, request: &RevokeRequest) -> Result<Accepted, Failure> {
        self.post("/v1/guardian-revocations", request).await
    }

    pub(crate) async fn rotate(&self, host: &HostName) -> Result<Accepted, Failure> {
        let request = RotateRequest { host: host.clone() };
        self.post("/v1/guardian-rotations", &request).await
    }

    pub(crate) async fn guardians(&self) -> Result<Vec<GuardianView>, Failure> {
        self.get("/v1/guardians").await
    }

    /// Audit records as they are: fields are added over time, and all of them are evidence.
    pub(crate) async fn audit(
        &self,
        vm: Option<&VmName>,
        since: Option<&str>,
    ) -> Result<Vec<serde_json::Value>, Failure> {
        let mut query = Query::default();
        query.add("vm", vm.map(VmName::as_str));
        query.add("since", since);
        self.get(&format!("/v1/audit{}", query.text())).await
    }

    pub(crate) async fn verify_audit(&self) -> Result<AuditVerdict, Failure> {
        self.get("/v1/audit/verify").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.client.get(path).await.map_err(|e| self.failure(e))
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let answer = self.client.post(path, body).await;
        answer.map_err(|e| self.failure(e))
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response, Failure> {
        let sent = self.client.request(method, path).send().await;
        sent.map_err(|e| self.failure(e))
    }

    /// A request whose answer has nothing to say beyond its status.
    async fn ask(&self, method: Method, path: &str) -> Result<(), Failure> {
        self.send(method, path).await.map(drop)
    }

    fn failure(&self, error: ClientError) -> Failure {
        failure_of(&self.client.endpoint(), error)
    }
}

/// A job's life, as the controller tells it.
pub(crate) struct JobEvents<'c> {
    controller: &'c Controller,
    lines: Lines,
}

impl JobEvents<'_> {
    /// The job's next state; `None` when the controller ends the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<JobView>, Failure> {
        let next = self.lines.next_json().await;
        next.map_err(|e| self.controller.failure(e))
    }
}

/// The query part of a path, percent-encoded.
#[derive(Default)]
struct Query(String);

impl Query {
    fn add(&mut self, key: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(key);
        self.0.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                self.0.push(char::from(byte));
            } else {
                write!(self.0, "%{byte:02X}").expect("strings take all writes");
            }
        }
    }

    fn text(&self) -> &str {
        &self.0
    }
}

fn address_of(url: &str) -> Result<String, Failure> {
    let refuse = || {
        Failure::new(
            ErrorCode::InvalidArgument,
            format!("{url:?} is no address of a controller"),
        )
        .fix("write it like https://controller.example:7440")
    };
    let uri: http::Uri = url.parse().map_err(|_| refuse())?;
    let (Some("https"), Some(authority), "" | "/") =
        (uri.scheme_str(), uri.authority(), uri.path())
    else {
        return Err(refuse());
    };
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => DEFAULT_PORT,
        Some(_) => authority.port_u16().ok_or_else(refuse)?,
        None => return Err(refuse()),
    };
    Ok(format!("{}:{port}", authority.host()))
}

fn tls(options: &Global) -> Result<ClientTls, Failure> {
    let missing = |option: &str, variable: &str| {
        Failure::new(
            ErrorCode::CredentialsMissing,
            format!("--controller needs {option}"),
        )
        .fix(format!("give a file with {option}, or set {variable}"))
    };
    let cert = (options.cert.as_deref()).ok_or_else(|| missing("--cert", "FLEETWARD_CERT"))?;
    let ca = (options.ca.as_deref()).ok_or_else(|| missing("--ca", "FLEETWARD_CA"))?;
    let key = options.key.as_deref().unwrap_or(cert);
    let unusable = |path: &Path, error: &dyn Error| {
        Failure::new(
            ErrorCode::CredentialsRefused,
            format!("{} cannot be used", path.display()),
        )
        .because(causes(error))
        .fix("get new files with fleetward admin create, on the controller's machine")
    };
    let credential = Credential::load_pair(cert, key).map_err(|error| unusable(cert, &error))?;
    let trust = FleetTrust::load(ca).map_err(|error| unusable(ca, &error))?;
    Ok(ClientTls::member(
        LiveCredential::new(credential),
        trust,
        Identity::Controller,
    ))
}

/// What went wrong, in the words of the contract.
fn failure_of(endpoint: &str, error: ClientError) -> Failure {
    let because = causes(&error);
    let unreachable = || {
        Failure::new(
            ErrorCode::ControllerUnreachable,
            format!("the controller at {endpoint} does not answer"),
        )
    };
    match error {
        ClientError::Dial(DialError::TlsRefused { .. } | DialError::IdentityMismatch { .. }) => {
            Failure::new(
                ErrorCode::CredentialsRefused,
                format!("the controller at {endpoint} and this client do not trust each other"),
            )
            .because(because)
        }
        ClientError::Dial(DialError::Unreachable { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            unreachable()
                .because("this user may not open the socket")
                .fix("run it as root, or use --controller with a client certificate")
        }
        ClientError::Dial(_) | ClientError::Timeout { .. } | ClientError::Broken { .. } => {
            unreachable().because(because)
        }
        ClientError::Status { code, body } => {
            serde_json::from_slice(&body).unwrap_or_else(|_| failure_of_status(code, &body))
        }
        ClientError::TooLong { .. }
        | ClientError::NotText
        | ClientError::Decode(_)
        | ClientError::Encode(_)
        | ClientError::Path { .. }
        | ClientError::Randomness => Failure::new(
            ErrorCode::Internal,
            format!("the controller at {endpoint} and this client do not understand each other"),
        )
        .because(because)
        .fix("use the same version of both: fleetward --version"),
    }
}

/// For errors that do not come from the controller's handlers: a newer controller's codes, a proxy.
fn failure_of_status(status: http::StatusCode, body: &[u8]) -> Failure {
    const SHOWN: usize = 200;
    let code = match status.as_u16() {
        401 | 403 => ErrorCode::CredentialsRefused,
        404 => ErrorCode::NotFound,
        413 => ErrorCode::TooLarge,
        400..500 => ErrorCode::InvalidRequest,
        503 | 504 => ErrorCode::ControllerUnreachable,
        _ => ErrorCode::Internal,
    };
    let text = String::from_utf8_lossy(body);
    Failure::new(code, format!("the controller answered {status}"))
        .because(text.trim().chars().take(SHOWN).collect::<String>())
}

/// An error and its causes on one line; a cause that its effect quotes already is left out.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_with_a_host_is_an_address() {
        assert_eq!(address_of("https://c:7440").as_deref(), Ok("c:7440"));
        assert_eq!(
            address_of("https://10.0.0.1").as_deref(),
            Ok("10.0.0.1:7440")
        );
        for bad in [
            "http://c",
            "c:7440",
            "https://",
            "https://c/v1",
            "",
            "https://c:99999",
            "https://me@c",
        ] {
            let refused = address_of(bad).expect_err(bad);
            assert_eq!(refused.code, ErrorCode::InvalidArgument);
        }
    }

    #[test]
    fn values_in_a_query_cannot_add_parameters() {
        let mut query = Query::default();
        query.add("label", Some("a=b&tpm=true c"));
        query.add("host", None);
        query.add("tpm", Some("true"));
        assert_eq!(query.text(), "?label=a%3Db%26tpm%3Dtrue%20c&tpm=true");
    }

    #[test]
    fn an_answer_that_is_no_failure_still_gets_a_code() {
        let failure = failure_of(
            "here",
            ClientError::Status {
                code: http::StatusCode::BAD_GATEWAY,
                body: Bytes::from_static(b"<html>bad gateway</html>"),
            },
        );
        assert_eq!(failure.code, ErrorCode::Internal);
        assert!(failure.because.contains("bad gateway"));
    }
}
