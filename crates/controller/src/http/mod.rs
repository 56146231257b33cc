//! The API: one router, made of every verb that is declared in `fleetward_api::verbs`. Each module answers some of them,
//! and says which at its top.
//!
//! ```text
//!   request ─► log ─► guard (the verb's role, the caller's groups; before the body is read) ─► heard ─► handler ─► JSON with a tag, or a Failure
//! ```

/// Says which function answers a verb.
macro_rules! serves {
    ($($verb:ident => $handler:path),* $(,)?) => {
        $(impl crate::http::Served for fleetward_api::verbs::$verb {
            fn handler() -> axum::routing::MethodRouter<crate::app::App> {
                axum::routing::on(crate::http::method::<Self>(), $handler)
            }
        })*
    };
}

mod actions;
mod alerts;
mod audit;
mod body;
mod browsers;
mod bulk;
mod by_name;
mod changes;
mod check;
mod console;
mod copies;
mod ek;
mod fleet;
mod grants;
mod guardians;
mod hosts;
mod images;
mod jobs;
mod lines;
mod load;
mod metrics;
mod networks;
mod openapi;
mod page;
mod pages;
mod recover;
mod refusal;
mod rotations;
mod rows;
mod scope;
mod screen;
mod secure_boot;
mod sessions;
mod settle;
mod tags;
mod tokens;
mod tpm;
mod users;
mod view;
mod vm_change;
mod vms;
mod ways_in;

pub use openapi::openapi_json;
pub(crate) use refusal::{Answer, Refusal};

use crate::app::App;
use axum::Router;
use axum::extract::{RawPathParams, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter};
use fleetward_api::each_verb;
use fleetward_api::verbs::{self, Access, Form, Reach, Verb};
use fleetward_link::Peer;
use fleetward_model::role::Role;
use fleetward_model::{ErrorCode, Failure};
use http::header::HeaderName;
use http::{HeaderValue, Method, StatusCode};
use std::time::Instant;
use tower_http::compression::CompressionLayer;
use uuid::Uuid;

/// A verb that is answered here.
trait Served: Verb {
    fn handler() -> MethodRouter<App>;
}

/// Every verb behind its guard, for people and programs without a certificate of the fleet: each request says who makes it.
pub(crate) fn console_router(app: App) -> Router {
    let identify = middleware::from_fn_with_state(app.clone(), ways_in::identify);
    router_of(app, |access| access != Access::JoinToken)
        .layer(identify)
        .layer(middleware::from_fn(browsers::answer))
        .layer(middleware::from_fn_with_state(
            pages::router(),
            pages::first,
        ))
}

/// Every verb behind its guard, for the fleet and for local administrators.
pub(crate) fn router(app: App) -> Router {
    router_of(app, |access| access != Access::Password)
}

/// The verbs of these accesses. One that nobody serves does not compile.
fn router_of(app: App, is_here: impl Fn(Access) -> bool) -> Router {
    macro_rules! routes {
        ($($verb:ident)*) => {
            Router::new()$(.merge(match is_here(verbs::$verb::ACCESS) {
                true => route::<verbs::$verb>(&app),
                false => Router::new(),
            }))*
        };
    }
    each_verb!(routes)
        .fallback(no_endpoint)
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn(log))
        .with_state(app)
}

fn route<V: Served>(app: &App) -> Router<App> {
    // What is about one VM or one host waits for its hosts alone.
    let waits_itself =
        [verbs::VmShow::OPERATION, verbs::HostShow::OPERATION].contains(&V::OPERATION);
    let handler = match V::FORM {
        Form::Pages => V::handler().layer(middleware::from_fn_with_state(
            app.stop.clone(),
            rows::as_lines,
        )),
        _ => V::handler(),
    };
    let is_tagged = V::METHOD == Method::GET.as_str()
        && matches!(V::FORM, Form::Json | Form::Pages | Form::Document);
    let handler = match is_tagged {
        true => handler.layer(middleware::from_fn(tags::tagged)),
        false => handler,
    };
    let handler = match V::FORM {
        // long, and without anything secret that its length could tell of
        Form::Pages | Form::Text | Form::Document => handler.layer(CompressionLayer::new()),
        _ => handler,
    };
    let handler = match is_tagged {
        true => handler.layer(middleware::from_fn(tags::unless_known)),
        false => handler,
    };
    let handler = match waits_itself {
        true => handler,
        false => handler.layer(middleware::from_fn_with_state(app.clone(), heard)),
    };
    let handler = handler.layer(middleware::from_fn_with_state(
        (app.clone(), V::REACH),
        within_groups,
    ));
    let guarded = handler.layer(middleware::from_fn_with_state(V::ACCESS, guard));
    Router::new().route(V::PATH, guarded)
}

/// After a start, lets the hosts be called first: what was known of them before may be old.
async fn heard(State(app): State<App>, request: Request, next: Next) -> Response {
    if !app.first_call.is_over() {
        app.first_call.over().await;
    }
    next.run(request).await
}

/// # Panics
/// On a method that routers do not know: a mistake in the program, found by the first test that builds one.
fn method<V: Verb>() -> MethodFilter {
    let method = V::METHOD.parse::<Method>();
    let filter = method.ok().and_then(|method| method.try_into().ok());
    filter.expect("verbs have methods that there are")
}

/// Lets through who may use the verb.
async fn guard(State(access): State<Access>, peer: Peer, request: Request, next: Next) -> Response {
    match access {
        Access::JoinToken | Access::Password => next.run(request).await,
        Access::Role(needed) => match allowed(&peer, needed) {
            Ok(()) => next.run(request).await,
            Err(failure) => Refusal(failure).into_response(),
        },
    }
}

/// Lets through who may see what the request is about.
async fn within_groups(
    State((app, reach)): State<(App, Reach)>,
    peer: Peer,
    path: RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    match scope::require(&app, &peer, reach, &path).await {
        Ok(()) => next.run(request).await,
        Err(failure) => Refusal(failure).into_response(),
    }
}

fn allowed(peer: &Peer, needed: Role) -> Result<(), Failure> {
    let Some(role) = peer.role() else {
        return Err(no_credentials(peer));
    };
    if role.allows(needed) {
        return Ok(());
    }
    let what = format!(
        "{peer} has role {}, that needs role {}",
        role.into_str(),
        needed.into_str()
    );
    Err(Failure::new(ErrorCode::RoleMissing, what))
}

fn no_credentials(peer: &Peer) -> Failure {
    match peer {
        Peer::Anonymous => Failure::new(
            ErrorCode::CredentialsMissing,
            "the request carries no credentials",
        ),
        Peer::Member(_) | Peer::Program { .. } | Peer::Person { .. } | Peer::Local { .. } => {
            Failure::new(
                ErrorCode::CredentialsRefused,
                format!("{peer} is no administrator"),
            )
        }
    }
}

/// Without credentials the answer does not say which endpoints exist.
async fn no_endpoint(peer: Peer, request: Request) -> Refusal {
    if peer.role().is_none() {
        return Refusal(no_credentials(&peer));
    }
    Refusal(Failure::new(
        ErrorCode::NotFound,
        format!("there is nothing at {}", request.uri().path()),
    ))
}

async fn other_method(peer: Peer, method: Method, request: Request) -> Response {
    if peer.role().is_none() {
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
