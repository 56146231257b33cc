//! The agent's HTTP API. Only the controller may call it; [`fleetward_api::agent`] documents the paths.

use crate::failure::Trouble;
use crate::history;
use crate::host::Host;
use crate::keyring::{self, Purpose};
use crate::operation::copy;
use crate::operation::table::{is_last, vanished};
use crate::seeds::MAX_SEED;
use crate::{bundle, certificate, console, observe, questions, screen};
use axum::body::{Body, BodyDataStream};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fleetward_api::agent::{
    self as api, AuditHead, CancelRequest, EkAuthorityHeld, GuardianChange, KeysRequest,
    OperationLine, OperationRequest, Question, VmDetail,
};
use fleetward_api::tpm::TpmQuery;
use fleetward_api::{MAX_BODY, NDJSON};
use fleetward_link::{Identity, Peer};
use fleetward_model::guardian::GuardianFacts;
use fleetward_model::host::Formats;
use fleetward_model::{ErrorCode, Failure, JobId, VmId};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A stream that has nothing new says its last line again, so that nobody takes it for dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// How much of a body that is too large is read before we hang up, bytes.
const MAX_THROWN_AWAY: usize = 16 * MAX_BODY;

/// Shortest interval between progress reports of an operation.
const PACE: Duration = Duration::from_millis(100);

/// The whole API.
pub(crate) fn router(host: Arc<Host>) -> Router {
    Router::new()
        .route(api::EVENTS, get(events))
        .route(api::OPERATIONS, post(operate))
        .route(api::OPERATIONS_CANCEL, post(cancel))
        .route(api::QUESTIONS, post(question))
        .route(api::VM, get(vm))
        .route(api::VM_TPM, get(vm_tpm))
        .route(api::VM_CONSOLE, get(vm_console))
        .route(api::VM_HISTORY, delete(delete_history))
        .route(api::VM_SEED, get(seed).put(put_seed).delete(delete_seed))
        .route(api::VM_SCREEN, get(vm_screen))
        .route(api::VM_SCREENSHOT, get(vm_screenshot))
        .route(api::VM_KEYS, post(vm_keys))
        .route(api::IMAGE, get(image).put(put_image).delete(delete_image))
        .route(api::CONVERSIONS, get(converter).post(convert))
        .route(api::GUARDIANS, post(guardians))
        .route(api::COPY, get(copied_file))
        .route(api::AUDIT, get(audit))
        .route(api::AUDIT_WITNESS, post(witness))
        .route(
            api::CERTIFICATE,
            get(own_certificate)
                .post(ask_for_certificate)
                .put(put_certificate),
        )
        .route(api::REFUSED_CERTIFICATES, put(refuse_certificates))
        .route(api::EK_AUTHORITY, get(ek_authority))
        .fallback(nothing_here)
        .layer(middleware::from_fn(only_the_controller))
        .with_state(host)
}

async fn only_the_controller(request: Request, next: Next) -> Response {
    match request.extensions().get::<Peer>() {
        Some(Peer::Member(Identity::Controller)) => next.run(request).await,
        Some(Peer::Member(other)) => Refusal(
            Failure::new(ErrorCode::RoleMissing, "the agent's API")
                .because(format!("only the controller may call it, not {other}")),
        )
        .into_response(),
        Some(Peer::Anonymous | Peer::Program { .. } | Peer::Person { .. } | Peer::Local { .. })
        | None => Refusal(Failure::new(
            ErrorCode::CredentialsMissing,
            "the agent's API",
        ))
        .into_response(),
    }
}

/// A failure as an HTTP answer.
struct Refusal(Failure);

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Self {
        Self(trouble.failure)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.class().http_status())
            .expect("the table holds HTTP statuses");
        (status, Json(self.0)).into_response()
    }
}

type Answer<T> = Result<T, Refusal>;

async fn nothing_here() -> Refusal {
    Refusal(Failure::new(ErrorCode::NotFound, "that address"))
}

/// The JSON body. One that is too large is read on for a while and thrown away: a caller that is still writing when we
/// hang up would never read why.
async fn body<T: DeserializeOwned>(request: Request) -> Answer<T> {
    let refuse =
        |code, because: String| Refusal(Failure::new(code, "the request").because(because));
    let mut pieces = request.into_body().into_data_stream();
    let mut content = Vec::new();
    let mut length = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| refuse(ErrorCode::InvalidRequest, error.to_string()))?;
        length += piece.len();
        if length > MAX_THROWN_AWAY {
            break;
        }
        if length <= MAX_BODY {
            content.extend_from_slice(&piece);
        }
    }
    if length > MAX_BODY {
        return Err(refuse(
            ErrorCode::TooLarge,
            format!("its body has more than {MAX_BODY} bytes"),
        ));
    }
    serde_json::from_slice(&content)
        .map_err(|error| refuse(ErrorCode::InvalidRequest, error.to_string()))
}

fn vm_id(text: &str) -> Answer<VmId> {
    text.parse().map_err(|_| {
        Refusal(Failure::new(ErrorCode::InvalidArgument, "the VM's id").because("it is no uuid"))
    })
}

/// Lines of JSON as they come.
fn lines<T: Serialize + Send + 'static>(
    values: impl Stream<Item = T> + Send + 'static,
) -> Response {
    let lines = values.map(|value| {
        let mut line = serde_json::to_vec(&value).expect("wire types are JSON");
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response()
}

async fn events(State(host): State<Arc<Host>>, headers: HeaderMap) -> Response {
    lines(observe::events(host, formats_of(&headers)))
}

/// The versions that the one who asks knows.
fn formats_of(headers: &HeaderMap) -> Formats {
    let said = headers
        .get(api::FORMATS)
        .and_then(|said| said.to_str().ok());
    said.map_or_else(Formats::default, Formats::parse)
}

async fn operate(State(host): State<Arc<Host>>, request: Request) -> Answer<Response> {
    let request: OperationRequest = body(request).await?;
    let progress = host.operations.begin(&host, request)?;
    Ok(lines(follow(progress)))
}

/// The lines of an operation until its last; each tells the newest, not all there were.
fn follow(progress: watch::Receiver<OperationLine>) -> impl Stream<Item = OperationLine> {
    futures_util::stream::unfold(Some((progress, true)), |state| async move {
        let (mut progress, first) = state?;
        if !first {
            let changed = tokio::time::timeout(SIGN_OF_LIFE, progress.changed()).await;
            if matches!(changed, Ok(Err(_))) && !is_last(&progress.borrow()) {
                return Some((vanished(), None));
            }
        }
        let line = progress.borrow_and_update().clone();
        if is_last(&line) {
            return Some((line, None));
        }
        if !first {
            // slowed down, but never the end: a guest may stand still until the controller knows of it
            let mut ahead = progress.clone();
            let _ = tokio::time::timeout(PACE, ahead.wait_for(is_last)).await;
        }
        Some((line, Some((progress, false))))
    })
}

async fn cancel(State(host): State<Arc<Host>>, request: Request) -> Answer<StatusCode> {
    let request: CancelRequest = body(request).await?;
    host.operations.cancel(&request);
    Ok(StatusCode::NO_CONTENT)
}

async fn question(State(host): State<Arc<Host>>, request: Request) -> Answer<Response> {
    let question: Question = body(request).await?;
    let answer = questions::answer(&host, &question).await?;
    Ok(Json(answer).into_response())
}

async fn vm(
    State(host): State<Arc<Host>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer<Response> {
    let mut detail = questions::detail(&host, vm_id(&id)?).await?;
    let formats = formats_of(&headers);
    if formats.custody > 1 {
        detail.tpm_states.clear();
    }
    let vm = detail.vm.readable_with(formats);
    Ok(Json(VmDetail { vm, ..detail }).into_response())
}

async fn vm_tpm(
    State(host): State<Arc<Host>>,
    Path(id): Path<String>,
    Query(query): Query<TpmQuery>,
) -> Answer<Response> {
    let bundle = bundle::read(&host, vm_id(&id)?).await?;
    Ok(Json(bundle.answering(&query)).into_response())
}

async fn vm_console(
    State(host): State<Arc<Host>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer<Response> {
    let vm = vm_id(&id)?;
    if wants(&request, api::CONSOLE_PROTOCOL) {
        let pty = console::open(&host, vm).await?;
        tokio::spawn(async move {
            match hyper::upgrade::on(request).await {
                Ok(upgraded) => console::carry_raw(upgraded, pty).await,
                Err(error) => tracing::debug!(%error, "a console was not upgraded"),
            }
        });
        return Ok(switching_to(api::CONSOLE_PROTOCOL));
    }
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|rejection| {
            Refusal(
                Failure::new(ErrorCode::InvalidRequest, "the console")
                    .because(rejection.body_text()),
            )
        })?;
    let pty = console::open(&host, vm).await?;
    Ok(upgrade.on_upgrade(|socket| console::carry_frames(socket, pty)))
}

/// The medium for a VM's first boot.
async fn seed(State(host): State<Arc<Host>>, Path(id): Path<String>) -> Answer<Bytes> {
    match host.seeds.get(vm_id(&id)?)? {
        Some(content) => Ok(content.into()),
        None => {
            let what = "the medium for the VM's first boot";
            Err(Refusal(Failure::new(ErrorCode::NotFound, what)))
        }
    }
}

async fn put_seed(
    State(host): State<Arc<Host>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer<StatusCode> {
    let vm = vm_id(&id)?;
    let content = axum::body::to_bytes(request.into_body(), MAX_SEED).await;
    let content = content.map_err(|error| {
        let what = "the medium for the VM's first boot";
        Refusal(Failure::new(ErrorCode::InvalidRequest, what).because(error))
    })?;
    host.seeds.put(vm, &content)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_seed(State(host): State<Arc<Host>>, Path(id): Path<String>) -> Answer<StatusCode> {
    host.seeds.remove(vm_id(&id)?)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The controller asks for it once a VM was deleted for good with its TPM. Of a VM that is here nothing is removed.
async fn delete_history(
    State(host): State<Arc<Host>>,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    history::forget_former(&host, vm_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether a request asks for that upgrade.
fn wants(request: &Request, protocol: &str) -> bool {
    let upgrade = request.headers().get(header::UPGRADE);
    upgrade.is_some_and(|wanted| wanted.as_bytes().eq_ignore_ascii_case(protocol.as_bytes()))
}

fn switching_to(protocol: &'static str) -> Response {
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, protocol)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn vm_screen(
    State(host): State<Arc<Host>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer<Response> {
    let vm = vm_id(&id)?;
    if !wants(&request, api::SCREEN_PROTOCOL) {
        let failure = Failure::new(ErrorCode::InvalidRequest, "the screen");
        return Err(Refusal(failure.because("it is reached by an upgrade")));
    }
    let screen = screen::open(&host, vm).await?;
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => screen::carry(upgraded, screen).await,
            Err(error) => tracing::debug!(%error, "a screen was not upgraded"),
        }
    });
    Ok(switching_to(api::SCREEN_PROTOCOL))
}

async fn vm_screenshot(State(host): State<Arc<Host>>, Path(id): Path<String>) -> Answer<Response> {
    let png = screen::picture(&host, vm_id(&id)?).await?;
    Ok(([(header::CONTENT_TYPE, api::PNG)], png).into_response())
}

async fn vm_keys(
    State(host): State<Arc<Host>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer<StatusCode> {
    let request: KeysRequest = body(request).await?;
    screen::type_keys(&host, vm_id(&id)?, &request).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn image(State(host): State<Arc<Host>>, Path(sha256): Path<String>) -> Answer<StatusCode> {
    match host.images.find(&sha256) {
        Some(_) => Ok(StatusCode::NO_CONTENT),
        None => Err(Refusal(Failure::new(ErrorCode::ImageNotFound, "the image"))),
    }
}

#[derive(Debug, Deserialize)]
struct ImageQuery {
    format: String,
}

async fn put_image(
    State(host): State<Arc<Host>>,
    Path(sha256): Path<String>,
    Query(query): Query<ImageQuery>,
    request: Request,
) -> Answer<StatusCode> {
    let length = content_length(request.headers());
    let content: BodyDataStream = request.into_body().into_data_stream();
    host.images
        .receive(&sha256, &query.format, length, content)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_image(
    State(host): State<Arc<Host>>,
    Path(sha256): Path<String>,
) -> Answer<StatusCode> {
    host.images.remove(&sha256)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn converter(State(host): State<Arc<Host>>) -> Response {
    Json(host.conversions.state().await).into_response()
}

async fn convert(
    State(host): State<Arc<Host>>,
    Query(query): Query<api::ConversionQuery>,
    request: Request,
) -> Answer<Response> {
    let length = content_length(request.headers());
    let content: BodyDataStream = request.into_body().into_data_stream();
    let api::ConversionQuery { format, disk } = query;
    let conversions = &host.conversions;
    let answer = conversions.convert(format, disk, length, content).await?;
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(answer)).into_response())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// Making RSA keys and waiting for disks takes its time, so it is done aside.
async fn guardians(State(host): State<Arc<Host>>, request: Request) -> Answer<Response> {
    let change: GuardianChange = body(request).await?;
    let facts = tokio::task::spawn_blocking(move || change_guardian(&host, &change))
        .await
        .expect("the guardian store does not panic")?;
    Ok(Json(facts).into_response())
}

fn change_guardian(host: &Host, change: &GuardianChange) -> Result<GuardianFacts, Trouble> {
    let purpose = |job: JobId, reason: &str| Purpose {
        actor: "controller".into(),
        reason: reason.to_owned(),
        job: Some(job),
    };
    match change {
        GuardianChange::MakeSuccessor { job } => host
            .keyring
            .make_successor(*job, &purpose(*job, "successor of the host's own guardian")),
        GuardianChange::DiscardSuccessor { job } => host.keyring.discard_successor(*job),
        GuardianChange::Adopt { guardian, job } => host.keyring.adopt(
            guardian,
            &purpose(*job, "becomes the host's own; the former own still opens"),
        ),
        GuardianChange::Retire { guardian, job } => {
            let dependents = keyring::dependents(&host.layout).map_err(|error| {
                Failure::new(ErrorCode::Internal, "the key protectors of this host")
                    .because(crate::failure::chain(&error))
            })?;
            host.keyring.retire(
                guardian,
                &dependents,
                &purpose(*job, "no VM of the fleet depends on it any more"),
            )
        }
    }
}

/// How far the controller's own records go, remembered here so that their end cannot be cut off unseen.
async fn witness(State(host): State<Arc<Host>>, request: Request) -> Answer<Response> {
    let shown: Option<AuditHead> = body(request).await?;
    let before = tokio::task::spawn_blocking(move || host.audit.witness(shown))
        .await
        .expect("writing a file does not panic")
        .map_err(|error| {
            Refusal(Failure::new(ErrorCode::Internal, "the audit witness").because(error))
        })?;
    Ok(Json(before).into_response())
}

async fn ek_authority(State(host): State<Arc<Host>>) -> Json<EkAuthorityHeld> {
    let certificate = STANDARD.encode(host.ek.own());
    Json(EkAuthorityHeld { certificate })
}

async fn own_certificate(State(host): State<Arc<Host>>) -> Response {
    Json(host.credential.current().facts()).into_response()
}

async fn ask_for_certificate(State(host): State<Arc<Host>>) -> Answer<Response> {
    Ok(Json(certificate::request(&host)?).into_response())
}

async fn put_certificate(State(host): State<Arc<Host>>, request: Request) -> Answer<Response> {
    let answer = body(request).await?;
    Ok(Json(certificate::install(&host, &answer).await?).into_response())
}

async fn refuse_certificates(State(host): State<Arc<Host>>, request: Request) -> Answer<Response> {
    let named = body(request).await?;
    let held = tokio::task::spawn_blocking(move || certificate::refuse(&host, &named))
        .await
        .expect("writing a file does not panic")?;
    Ok(Json(held).into_response())
}

async fn copied_file(
    State(host): State<Arc<Host>>,
    Path((id, item)): Path<(String, String)>,
) -> Answer<Response> {
    let file = copy::copied_file(&host, vm_id(&id)?, &item)?;
    let length = file.metadata();
    let length = length.map_err(|error| Refusal::from(Trouble::file("a copy", &item, &error)))?;
    let (file, length) = (tokio::fs::File::from_std(file), length.len());
    let content = tokio_util::io::ReaderStream::with_capacity(file, 256 * 1024);
    Ok((
        [(header::CONTENT_LENGTH, length.to_string())],
        Body::from_stream(content),
    )
        .into_response())
}

#[derive(Debug, Deserialize)]
struct AuditQuery {
    #[serde(default)]
    after: u64,
}

async fn audit(State(host): State<Arc<Host>>, Query(query): Query<AuditQuery>) -> Answer<Response> {
    let log = host.audit.clone();
    let records = tokio::task::spawn_blocking(move || log.after(query.after))
        .await
        .expect("reading the audit log does not panic")
        .map_err(|error| {
            Refusal(Failure::new(ErrorCode::Internal, "the audit log").because(error))
        })?;
    Ok(Json(records).into_response())
}
