//! The API: one router, built from the one list of endpoints.
//!
//! ```text
//!   request ─► log ─► guard (role of the endpoint; before the body is read) ─► handler ─► JSON, or a Failure
//! ```

mod audit;
mod body;
mod console;
mod copies;
mod fleet;
mod grants;
mod guardians;
mod hosts;
mod images;
mod jobs;
mod metrics;
mod openapi;
mod recover;
mod refusal;
mod tpm;
mod view;
mod vms;

pub use openapi::openapi_json;
pub(crate) use refusal::{Answer, Refusal};

use crate::app::App;
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use fleetward_api::controller::{Access, ENDPOINTS, Endpoint, Role};
use fleetward_link::Peer;
use fleetward_model::{ErrorCode, Failure};
use http::header::HeaderName;
use http::{HeaderValue, Method, StatusCode};
use std::time::Instant;
use uuid::Uuid;

/// Every endpoint behind its guard.
pub(crate) fn router(app: App) -> Router {
    let mut router = Router::new();
    for endpoint in ENDPOINTS {
        let guarded =
            handler(endpoint).layer(middleware::from_fn_with_state(endpoint.access, guard));
        router = router.route(endpoint.path, guarded);
    }
    router
        .fallback(nowhere)
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn(log))
        .with_state(app)
}

/// The handler of an endpoint of the list.
///
/// # Panics
/// On an endpoint without one: a mistake in the program, found by the first test that builds a router.
fn handler(endpoint: &Endpoint) -> MethodRouter<App> {
    use routing::{delete, get, post, put};
    match (endpoint.method, endpoint.path) {
        ("GET", "/v1/status") => get(fleet::status),
        ("GET", "/v1/openapi.json") => get(openapi::openapi),
        ("POST", "/v1/join") => post(fleet::join),
        ("GET", "/v1/hosts") => get(hosts::host_list),
        ("GET", "/v1/hosts/{host}") => get(hosts::host_show),
        ("DELETE", "/v1/hosts/{host}") => delete(hosts::host_remove),
        ("POST", "/v1/hosts/{host}/drain") => post(hosts::host_drain),
        ("POST", "/v1/hosts/{host}/resume") => post(hosts::host_resume),
        ("POST", "/v1/host-tokens") => post(fleet::host_token),
        ("POST", "/v1/admins") => post(fleet::admin),
        ("GET", "/v1/images") => get(images::image_list),
        ("PUT", "/v1/images/{image}") => put(images::image_import),
        ("DELETE", "/v1/images/{image}") => delete(images::image_delete),
        ("GET", "/v1/vms") => get(vms::vm_list),
        ("POST", "/v1/vms") => post(vms::vm_create),
        ("GET", "/v1/vms/{vm}") => get(vms::vm_show),
        ("DELETE", "/v1/vms/{vm}") => delete(vms::vm_delete),
        ("POST", "/v1/vms/{vm}/start") => post(vms::vm_start),
        ("POST", "/v1/vms/{vm}/stop") => post(vms::vm_stop),
        ("POST", "/v1/vms/{vm}/migrate") => post(vms::vm_migrate),
        ("POST", "/v1/vms/{vm}/tpm/enable") => post(tpm::tpm_enable),
        ("POST", "/v1/vms/{vm}/tpm/disable") => post(tpm::tpm_disable),
        ("POST", "/v1/vms/{vm}/tpm/restore") => post(tpm::tpm_restore),
        ("POST", "/v1/vms/{vm}/tpm/roll") => post(tpm::tpm_roll),
        ("GET", "/v1/vms/{vm}/tpm/history") => get(tpm::tpm_history),
        ("POST", "/v1/vms/{vm}/clone") => post(copies::vm_clone),
        ("POST", "/v1/vms/{vm}/recover") => post(recover::vm_recover),
        ("GET", "/v1/templates") => get(copies::template_list),
        ("POST", "/v1/templates") => post(copies::template_create),
        ("GET", "/v1/templates/{template}") => get(copies::template_show),
        ("DELETE", "/v1/templates/{template}") => delete(copies::template_delete),
        ("GET", "/v1/vms/{vm}/console") => get(console::vm_console),
        ("GET", "/v1/check") => get(vms::check),
        ("GET", "/v1/job-kinds") => get(jobs::job_kinds),
        ("GET", "/v1/jobs") => get(jobs::job_list),
        ("GET", "/v1/jobs/{job}") => get(jobs::job_show),
        ("GET", "/v1/jobs/{job}/events") => get(jobs::job_events),
        ("POST", "/v1/jobs/{job}/cancel") => post(jobs::job_cancel),
        ("GET", "/v1/guardians") => get(guardians::guardian_list),
        ("GET", "/v1/guardians/{guardian}") => get(guardians::guardian_show),
        ("POST", "/v1/guardian-grants") => post(grants::guardian_grant),
        ("POST", "/v1/guardian-revocations") => post(grants::guardian_revoke),
        ("POST", "/v1/guardian-rotations") => post(grants::guardian_rotate),
        ("GET", "/metrics") => get(metrics::metrics),
        ("GET", "/v1/audit") => get(audit::audit_list),
        ("GET", "/v1/audit/verify") => get(audit::audit_verify),
        ("POST", "/v1/rebuild") => post(fleet::rebuild),
        (method, path) => panic!("no handler for {method} {path}"),
    }
}

/// Lets through who may use the endpoint.
async fn guard(State(access): State<Access>, peer: Peer, request: Request, next: Next) -> Response {
    match access {
        Access::JoinToken => next.run(request).await,
        Access::Role(needed) => match allowed(&peer, needed) {
            Ok(()) => next.run(request).await,
            Err(failure) => Refusal(failure).into_response(),
        },
    }
}

fn allowed(peer: &Peer, needed: Role) -> Result<(), Failure> {
    let Some(role) = role(peer) else {
        return Err(no_credentials(peer));
    };
    if role.allows(needed) {
        return Ok(());
    }
    let what = format!(
        "{peer} has role {}, that needs role {}",
        role.as_str(),
        needed.as_str()
    );
    Err(Failure::new(ErrorCode::RoleMissing, what))
}

fn no_credentials(peer: &Peer) -> Failure {
    match peer {
        Peer::Anonymous => Failure::new(
            ErrorCode::CredentialsMissing,
            "the request carries no credentials",
        ),
        Peer::Member(_) | Peer::Local { .. } => Failure::new(
            ErrorCode::CredentialsRefused,
            format!("{peer} is no administrator"),
        ),
    }
}

fn role(peer: &Peer) -> Option<Role> {
    Some(match peer.role()? {
        fleetward_link::Role::Viewer => Role::Viewer,
        fleetward_link::Role::Operator => Role::Operator,
        fleetward_link::Role::Keeper => Role::Keeper,
        fleetward_link::Role::Admin => Role::Admin,
    })
}

/// Who has no credentials does not learn what there is.
async fn nowhere(peer: Peer, request: Request) -> Refusal {
    if role(&peer).is_none() {
        return Refusal(no_credentials(&peer));
    }
    Refusal(Failure::new(
        ErrorCode::NotFound,
        format!("there is nothing at {}", request.uri().path()),
    ))
}

async fn other_method(peer: Peer, method: Method, request: Request) -> Response {
    if role(&peer).is_none() {
        return Refusal(no_credentials(&peer)).into_response();
    }
    let what = format!("{} does not take {method}", request.uri().path());
    let mut response = Refusal(Failure::new(ErrorCode::NotFound, what)).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// One line a request, with an id that the caller gets too.
async fn log(peer: Peer, request: Request, next: Next) -> Response {
    const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    let id = Uuid::new_v4().simple().to_string();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let begun = Instant::now();
    let mut response = next.run(request).await;
    let (status, ms) = (
        response.status().as_u16(),
        begun.elapsed().as_millis() as u64,
    );
    if method == Method::GET && status < 400 {
        tracing::debug!(id, %method, path, %peer, status, ms, "request");
    } else {
        tracing::info!(id, %method, path, %peer, status, ms, "request");
    }
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// A name or id in a path.
fn parsed<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, Refusal>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| {
        Refusal(
            Failure::new(ErrorCode::InvalidArgument, format!("that is no {what}")).because(error),
        )
    })
}
