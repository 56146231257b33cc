//! VMs, copies of their TPMs, and media for their first boots.

use super::{Inner, Shared, Vm, refusal};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::{CanOpen, VmDetail};
use fleetward_api::tpm::{BundleParts, TpmBundle, TpmQuery};
use fleetward_model::{ErrorCode, Failure, VmId};
use fleetward_protector::ExpiredAllowed;
use fleetward_protector_open::{LocalGuardian, SealRequest, TpmKey, seal};
use http::HeaderMap;
use std::sync::LazyLock;
use time::OffsetDateTime;

pub(super) async fn vm(State(inner): State<Shared>, Vm(id): Vm, headers: HeaderMap) -> Response {
    let inner = inner.lock().expect("lock");
    let id = inner.answers_with.unwrap_or(id);
    match inner.observed(id) {
        Some(vm) => {
            let formats = inner.answers_in(&headers);
            let can_open = match (&inner.custody, &vm.metadata) {
                (Some(_), Some(metadata)) => inner.can_open(metadata),
                _ => CanOpen::Yes,
            };
            let mut tpm_states = inner.seen_states.clone();
            if inner.custody.is_some() && formats.is_none_or(|formats| formats.custody < 2) {
                tpm_states.extend(vm.tpm.state_sha256.clone());
            }
            Json(VmDetail {
                vm: match formats {
                    Some(formats) => vm.readable_with(formats),
                    None => vm,
                },
                cpu_xml: None,
                flash: None,
                can_open,
                tpm_state: inner.judged(id),
                tpm_states,
            })
            .into_response()
        }
        None => refusal(Failure::new(ErrorCode::VmNotFound, "no such VM")),
    }
}

/// A bundle as it has to be, with a key protector for just this VM.
pub(super) async fn tpm(
    State(inner): State<Shared>,
    Vm(asked): Vm,
    Query(query): Query<TpmQuery>,
) -> Response {
    let (id, metadata, simulated) = {
        let mut inner = inner.lock().expect("lock");
        let id = inner.answers_with.unwrap_or(asked);
        if let Some(failure) = &inner.no_copy {
            return refusal(failure.clone());
        }
        match inner.vms.get(&id) {
            None => return refusal(Failure::new(ErrorCode::VmNotFound, "no such VM")),
            Some(vm) if vm.metadata.transit.is_some() => {
                let half = "the copy on this host is not the VM";
                return refusal(Failure::new(ErrorCode::VmStateWrong, half));
            }
            Some(_) => {}
        }
        inner.try_tpm(id, None);
        if let Some(whole) = inner.sealed_bundle(id) {
            return give(&mut inner, whole, &query);
        }
        match inner.vms.get(&id) {
            Some(vm) if inner.parts.contains_key(&id) => {
                let whole = TpmBundle::new(vm.metadata.clone(), &inner.parts[&id]);
                return give(&mut inner, whole, &query);
            }
            Some(vm) if vm.metadata.spec.tpm => (id, vm.metadata.clone(), vm.simulated_tpm),
            _ => return refusal(Failure::new(ErrorCode::TpmStateMissing, "no TPM")),
        }
    };
    let former = metadata.key_protector.as_deref();
    let sealed = match simulated.and_then(|_| STANDARD.decode(former?).ok()) {
        Some(sealed) => sealed,
        None => seal_for(id),
    };
    let parts = BundleParts {
        state: simulated.map_or_else(
            || vec![2, 1, 0, 10, 0, 9, 0, 0, 0, 11, 1],
            |tpm| tpm.state(id),
        ),
        key_protector: sealed,
        ek_certificate: None,
        uefi_variables: None,
    };
    if simulated.is_some() {
        keep_protector(&inner, id, STANDARD.encode(&parts.key_protector));
    }
    let mut inner = inner.lock().expect("lock");
    give(&mut inner, TpmBundle::new(metadata, &parts), &query)
}

/// A copy as an answer, counted.
fn give(inner: &mut Inner, whole: TpmBundle, query: &TpmQuery) -> Response {
    let bundle = whole.answering(query);
    let body = serde_json::to_vec(&bundle).expect("json");
    inner.given.copies += 1;
    inner.given.bytes += body.len() as u64;
    inner.given.without_variables += u64::from(bundle.same_variables);
    let kind = (http::header::CONTENT_TYPE, "application/json");
    ([kind], body).into_response()
}

/// A key protector for a VM. Its owner is of no fleet.
fn seal_for(id: VmId) -> Vec<u8> {
    static OWNER: LazyLock<LocalGuardian> = LazyLock::new(|| {
        let host = "fake".parse().expect("name");
        LocalGuardian::generate(&host, OffsetDateTime::now_utc()).expect("guardian")
    });
    let request = SealRequest {
        vm_id: id,
        key_id: fleetward_model::KeyId(id.0),
        tpm_key: &TpmKey::generate().expect("key"),
        owner: &OWNER,
        recipients: &[],
        now: OffsetDateTime::now_utc(),
        expired: &ExpiredAllowed::none(),
    };
    seal(&request).expect("seal").der().to_vec()
}

/// The VM has this key protector from now on, which its host tells: it was sealed when it was first asked for.
fn keep_protector(inner: &Shared, id: VmId, text: String) {
    let mut inner = inner.lock().expect("lock");
    if let Some(vm) = inner.vms.get_mut(&id)
        && vm.metadata.key_protector.as_ref() != Some(&text)
    {
        vm.metadata.key_protector = Some(text);
        inner.tell(id);
    }
}

pub(super) async fn delete_history(State(inner): State<Shared>, Vm(vm): Vm) -> http::StatusCode {
    let mut inner = inner.lock().expect("lock");
    inner.facts.histories.retain(|kept| *kept != vm);
    inner.tell_facts();
    http::StatusCode::NO_CONTENT
}

pub(super) async fn seed(State(inner): State<Shared>, Vm(vm): Vm) -> Response {
    match inner.lock().expect("lock").seeds.get(&vm) {
        Some(content) => content.clone().into_response(),
        None => refusal(Failure::new(ErrorCode::NotFound, "no such medium")),
    }
}

pub(super) async fn put_seed(
    State(inner): State<Shared>,
    Vm(vm): Vm,
    content: Bytes,
) -> http::StatusCode {
    inner.lock().expect("lock").seeds.insert(vm, content);
    http::StatusCode::NO_CONTENT
}

pub(super) async fn delete_seed(State(inner): State<Shared>, Vm(vm): Vm) -> http::StatusCode {
    inner.lock().expect("lock").seeds.remove(&vm);
    http::StatusCode::NO_CONTENT
}
