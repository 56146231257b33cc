//! A host as a member of the fleet: its certificates, its audit log and what it has witnessed of the controller's.

use super::{Body, Shared, refusal};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::{
    AuditHead, CertificateAnswer, CertificateRequest, EkAuthorityHeld, RefusedHeld,
};
use fleetward_link::KeyRequest;
use fleetward_model::certificate::RefusedCertificates;
use fleetward_model::{ErrorCode, Failure};
use http::StatusCode;
use time::OffsetDateTime;

pub(super) async fn ek_authority(State(inner): State<Shared>) -> Response {
    match &inner.lock().expect("lock").ek_authority {
        Some(der) => Json(EkAuthorityHeld {
            certificate: STANDARD.encode(der),
        })
        .into_response(),
        None => http::StatusCode::NOT_FOUND.into_response(),
    }
}

pub(super) async fn certificate(State(inner): State<Shared>) -> Response {
    let inner = inner.lock().expect("lock");
    Json(inner.certificate.live.current().facts()).into_response()
}

pub(super) async fn ask_for_certificate(State(inner): State<Shared>) -> Response {
    let request = KeyRequest::generate().expect("key");
    let csr = request.csr_pem().to_owned();
    inner.lock().expect("lock").certificate.asked = Some(request);
    Json(CertificateRequest { csr }).into_response()
}

pub(super) async fn put_certificate(
    State(inner): State<Shared>,
    Body(answer): Body<CertificateAnswer>,
) -> Response {
    let mut inner = inner.lock().expect("lock");
    let certificate = &mut inner.certificate;
    let asked = certificate.asked.take().expect("asked for");
    if certificate.fails {
        let failure = Failure::new(ErrorCode::Internal, "the disk is full");
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(failure)).into_response();
    }
    let credential = asked.into_credential(&answer.chain).expect("a credential");
    let facts = credential.facts().clone();
    certificate.live.replace(credential);
    Json(facts).into_response()
}

pub(super) async fn refuse_certificates(
    State(inner): State<Shared>,
    Body(list): Body<RefusedCertificates>,
) -> Json<RefusedHeld> {
    let mut inner = inner.lock().expect("lock");
    inner.lists_given += 1;
    let refusals = &inner.certificate.refusals;
    refusals.merge(&list, OffsetDateTime::now_utc());
    let entries = refusals.list().entries.len() as u32;
    Json(RefusedHeld { entries })
}

#[derive(serde::Deserialize)]
pub(super) struct After {
    after: u64,
}

pub(super) async fn audit(
    State(inner): State<Shared>,
    axum::extract::Query(query): axum::extract::Query<After>,
) -> Response {
    let mut inner = inner.lock().expect("lock");
    inner.audit_requests.0 += 1;
    if inner.audit_spoilt {
        let failure = Failure::new(ErrorCode::Internal, "the audit log");
        return refusal(failure.because("line 7 is no audit record"));
    }
    let records = inner.audit.iter().filter(|record| record.seq > query.after);
    Json(records.cloned().collect::<Vec<_>>()).into_response()
}

pub(super) async fn witness(
    State(inner): State<Shared>,
    Body(shown): Body<Option<AuditHead>>,
) -> Json<Option<AuditHead>> {
    let mut inner = inner.lock().expect("lock");
    inner.audit_requests.1 += 1;
    let known = inner.witnessed.clone();
    let seq = |head: &Option<AuditHead>| head.as_ref().map_or(0, |head| head.seq);
    if seq(&shown) > seq(&known) {
        inner.witnessed = shown;
    }
    Json(known)
}
