//! What a simulated agent answers over HTTP.

mod events;
mod files;
mod membership;
mod operations;
mod vms;

use super::conversion::{convert, converter};
use super::{Inner, Shared};
use axum::body::{self, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use files::{copy, delete_image, image, put_image};
use fleetward_api::agent as api;
use fleetward_link::{Identity, Peer};
use fleetward_model::{ErrorCode, Failure, VmId};
use futures_util::{StreamExt, stream};
use http::request::Parts;
use membership::{
    ask_for_certificate, audit, certificate, ek_authority, put_certificate, refuse_certificates,
    witness,
};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::convert::Infallible;
use vms::{delete_history, delete_seed, put_seed, seed, tpm, vm};

pub(super) fn router(inner: Shared) -> Router {
    Router::new()
        .route(api::EVENTS, get(events::events))
        .route(api::OPERATIONS, post(operations::operate))
        .route(api::QUESTIONS, post(operations::question))
        .route(api::VM, get(vm))
        .route(api::VM_TPM, get(tpm))
        .route(api::VM_HISTORY, delete(delete_history))
        .route(api::VM_SEED, get(seed).put(put_seed).delete(delete_seed))
        .route(api::IMAGE, get(image).put(put_image).delete(delete_image))
        .route(api::CONVERSIONS, get(converter).post(convert))
        .route(api::COPY, get(copy))
        .route(api::AUDIT, get(audit))
        .route(api::AUDIT_WITNESS, post(witness))
        .route(
            api::CERTIFICATE,
            get(certificate)
                .post(ask_for_certificate)
                .put(put_certificate),
        )
        .route(api::EK_AUTHORITY, get(ek_authority))
        .route(api::REFUSED_CERTIFICATES, put(refuse_certificates))
        .route(api::OPERATIONS_CANCEL, post(operations::cancel))
        .fallback(nothing_here)
        .layer(from_fn(only_the_controller))
        .route(TUNNEL, get(tunnel))
        .layer(from_fn_with_state(inner.clone(), patience))
        .with_state(inner)
}

/// Stands for the tunnels that a real agent takes from other hosts: any member may open it, and it stays open.
pub const TUNNEL: &str = "/tunnel";

async fn tunnel() -> body::Body {
    let first = stream::iter([Ok::<_, Infallible>("open\n")]);
    body::Body::from_stream(first.chain(stream::pending()))
}

async fn only_the_controller(request: Request, next: Next) -> Response {
    match request.extensions().get::<Peer>() {
        Some(Peer::Member(Identity::Controller)) => next.run(request).await,
        Some(Peer::Member(_)) => refusal(Failure::new(ErrorCode::RoleMissing, "the agent's API")),
        _ => refusal(Failure::new(
            ErrorCode::CredentialsMissing,
            "the agent's API",
        )),
    }
}

async fn nothing_here() -> Response {
    refusal(Failure::new(ErrorCode::NotFound, "that address"))
}

/// The JSON body; one that cannot be read is refused as the real agent refuses it.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let refuse = |because: String| {
            let failure = Failure::new(ErrorCode::InvalidRequest, "the request");
            refusal(failure.because(because))
        };
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|error| refuse(error.to_string()))?;
        let read = serde_json::from_slice(&body);
        read.map(Self).map_err(|error| refuse(error.to_string()))
    }
}

/// The id of a VM in a path.
struct Vm(VmId);

impl<S: Sync> FromRequestParts<S> for Vm {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Response> {
        let Path(path) = Path::<HashMap<String, String>>::from_request_parts(parts, &())
            .await
            .map_err(IntoResponse::into_response)?;
        let id = path.get("id").and_then(|id| id.parse().ok());
        let failure = || Failure::new(ErrorCode::InvalidArgument, "the VM's id");
        id.map(Self).ok_or_else(|| refusal(failure()))
    }
}

/// A silent host answers when it speaks again, and a slow one after a while.
async fn patience(State(inner): State<Shared>, request: Request, next: Next) -> Response {
    speaks(&inner).await;
    let delay = inner.lock().expect("lock").delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    next.run(request).await
}

/// Returns while the host is not silent.
async fn speaks(inner: &Shared) {
    let mut silent = inner.lock().expect("lock").silent.subscribe();
    // The sender lives as long as the host.
    let _ = silent.wait_for(|silent| !silent).await;
}

fn line(value: &impl serde::Serialize) -> Result<Bytes, std::convert::Infallible> {
    Ok(line_of(value).into())
}

fn line_of(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("json");
    line.push(b'\n');
    line
}

fn refusal(failure: Failure) -> Response {
    let status = http::StatusCode::from_u16(failure.code.class().http_status()).expect("status");
    (status, Json(failure)).into_response()
}
