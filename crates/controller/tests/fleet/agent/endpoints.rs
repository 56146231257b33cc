//! What the agent answers over HTTP.

use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::{CertificateAnswer, CertificateRequest, EkAuthorityHeld, RefusedHeld};
use fleetward_model::certificate::RefusedCertificates;
use http::StatusCode;

pub(super) async fn events(State(inner): State<Shared>, headers: HeaderMap) -> Response {
    let (formats, first, receiver) = {
        let inner = inner.lock().expect("lock");
        let vms = inner
            .vms
            .keys()
            .filter_map(|id| inner.observed(*id))
            .collect();
        let facts = facts_now(&inner);
        (
            inner.answers_in(&headers),
            AgentEvent::Snapshot {
                facts,
                vms,
                more: false,
            },
            inner.events.subscribe(),
        )
    };
    let lines = futures_util::stream::unfold(
        (Some(first), receiver, inner),
        move |(first, mut receiver, inner)| async move {
            let event = match first {
                Some(first) => first,
                None => {
                    match tokio::time::timeout(std::time::Duration::from_secs(2), receiver.recv())
                        .await
                    {
                        Ok(event) => event.ok()?,
                        Err(_) => AgentEvent::Facts {
                            facts: facts_now(&inner.lock().expect("lock")),
                        },
                    }
                }
            };
            let parts = match formats {
                Some(formats) => event.readable_with(formats).in_parts(formats),
                None => vec![event],
            };
            let lines: Vec<u8> = parts.iter().flat_map(line_of).collect();
            let lines = Ok::<_, std::convert::Infallible>(Bytes::from(lines));
            Some((lines, (None, receiver, inner)))
        },
    );
    Body::from_stream(lines).into_response()
}

fn facts_now(inner: &Inner) -> Box<HostFacts> {
    Box::new(HostFacts {
        clock: OffsetDateTime::now_utc(),
        ..inner.facts.clone()
    })
}

fn line(value: &impl serde::Serialize) -> Result<Bytes, std::convert::Infallible> {
    Ok(line_of(value).into())
}

fn line_of(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("json");
    line.push(b'\n');
    line
}

pub(super) async fn operate(
    State(inner): State<Shared>,
    Json(request): Json<OperationRequest>,
) -> Response {
    let name = request.operation.name();
    let death = inner.lock().expect("lock").deaths.remove(name);
    if let Some(death) = death.as_ref().filter(|death| !death.after) {
        death.who.lock().expect("lock").cancel();
        if !death.peer {
            return std::future::pending().await;
        }
        let failure = Failure::new(ErrorCode::LinkLost, "the link between the hosts");
        let lost = OperationLine::Failed {
            failure,
            transient: false,
        };
        return Body::from_stream(futures_util::stream::iter([line(&lost)])).into_response();
    }
    let outcome = {
        let mut inner = inner.lock().expect("lock");
        inner.asked.push(name);
        let seen = inner.generations.entry(request.vm).or_default();
        let stale = request.generation < *seen;
        *seen = request.generation.max(*seen);
        if stale {
            Err(Failure::new(ErrorCode::StaleGeneration, name))
        } else if inner.unknown.contains(name) {
            Err(Failure::new(ErrorCode::InvalidRequest, name))
        } else if inner.busy.contains(name) {
            Err(Failure::new(ErrorCode::HostUnreachable, "not now"))
        } else if inner.broken.contains(name) {
            Err(Failure::new(ErrorCode::HypervisorFailed, name))
        } else if let Some(failure) = inner.fail.remove(name) {
            Err(failure)
        } else {
            let mut outcome = inner.perform(request.job, request.vm, request.operation);
            if inner.fail_after.remove(name) {
                outcome = Err(Failure::new(
                    ErrorCode::MigrationFailed,
                    "the answer was lost",
                ));
            }
            inner.tell(request.vm);
            let event = AuditEvent {
                time: OffsetDateTime::now_utc(),
                host: inner.host.clone(),
                actor: "controller".into(),
                action: AuditAction::Open,
                vm: Some(request.vm),
                guardian: None,
                reason: name.into(),
                job: Some(request.job),
            };
            let record = AuditRecord::chain(inner.audit.last(), event);
            inner.audit.push(record);
            outcome
        }
    };
    if let Some(death) = death {
        death.who.lock().expect("lock").cancel();
        if !death.peer {
            return std::future::pending().await;
        }
    }
    let last = match outcome {
        Ok(result) => OperationLine::Done { result },
        Err(failure) => OperationLine::Failed {
            failure,
            transient: false,
        },
    };
    let progress = OperationLine::Progress {
        done: 1,
        total: 2,
        text: name.into(),
    };
    Body::from_stream(futures_util::stream::iter([line(&progress), line(&last)])).into_response()
}

pub(super) async fn question(
    State(inner): State<Shared>,
    Json(question): Json<Question>,
) -> Json<IncomingAnswer> {
    let inner = inner.lock().expect("lock");
    Json(IncomingAnswer {
        uuid_taken: Some(inner.vms.contains_key(&question.metadata.spec.id)),
        name_taken: Some(
            inner
                .vms
                .values()
                .any(|vm| vm.metadata.spec.name == question.metadata.spec.name),
        ),
        cpu_problem: None,
        flash_problem: None,
        can_open: match question.metadata.spec.tpm {
            true if inner.opens.contains(&question.metadata.spec.id) => CanOpen::Yes,
            true => CanOpen::NotGranted,
            false => CanOpen::NoTpm,
        },
    })
}

pub(super) async fn ek_authority(State(inner): State<Shared>) -> Response {
    match &inner.lock().expect("lock").ek_authority {
        Some(der) => Json(EkAuthorityHeld {
            certificate: STANDARD.encode(der),
        })
        .into_response(),
        None => http::StatusCode::NOT_FOUND.into_response(),
    }
}

pub(super) async fn vm(
    State(inner): State<Shared>,
    Path(id): Path<VmId>,
    headers: HeaderMap,
) -> Response {
    let inner = inner.lock().expect("lock");
    match inner.observed(id) {
        Some(vm) => Json(VmDetail {
            vm: match inner.answers_in(&headers) {
                Some(formats) => vm.readable_with(formats),
                None => vm,
            },
            cpu_xml: None,
            flash: None,
            can_open: CanOpen::Yes,
            tpm_state: inner.judged.clone(),
            tpm_states: inner.seen_states.clone(),
        })
        .into_response(),
        None => refusal(Failure::new(ErrorCode::VmNotFound, "no such VM")),
    }
}

/// A bundle as it has to be, with a key protector for just this VM.
pub(super) async fn tpm(State(inner): State<Shared>, Path(asked): Path<VmId>) -> Response {
    static OWNER: LazyLock<LocalGuardian> = LazyLock::new(|| {
        let host = "fake".parse().expect("name");
        LocalGuardian::generate(&host, OffsetDateTime::now_utc()).expect("guardian")
    });
    let (id, metadata) = {
        let inner = inner.lock().expect("lock");
        let id = inner.answers_with.unwrap_or(asked);
        if let Some(failure) = &inner.no_copy {
            return refusal(failure.clone());
        }
        match inner.vms.get(&id) {
            Some(vm) if inner.parts.contains_key(&id) => {
                return Json(TpmBundle::new(vm.metadata.clone(), &inner.parts[&id]))
                    .into_response();
            }
            Some(vm) if vm.metadata.spec.tpm => (id, vm.metadata.clone()),
            _ => return refusal(Failure::new(ErrorCode::TpmStateMissing, "no TPM")),
        }
    };
    let request = SealRequest {
        vm_id: id,
        key_id: fleetward_model::KeyId(id.0),
        tpm_key: &TpmKey::generate().expect("key"),
        owner: &OWNER,
        recipients: &[],
        now: OffsetDateTime::now_utc(),
        expired: &ExpiredAllowed::none(),
    };
    let parts = BundleParts {
        state: vec![2, 1, 0, 10, 0, 9, 0, 0, 0, 11, 1],
        key_protector: seal(&request).expect("seal").der().to_vec(),
        ek_certificate: None,
        uefi_variables: None,
    };
    Json(TpmBundle::new(metadata, &parts)).into_response()
}

fn refusal(failure: Failure) -> Response {
    let status = http::StatusCode::from_u16(failure.code.class().http_status()).expect("status");
    (status, Json(failure)).into_response()
}

/// What a copy left: UEFI variables of no content, or the header of an empty qcow2 file of 1 MiB and room for its tables.
pub(super) async fn copy(Path((_, item)): Path<(VmId, String)>) -> Vec<u8> {
    if item == "variables" {
        return vec![0xff; 4096];
    }
    let mut file = vec![0; 4 * 65536];
    file[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    file[20..24].copy_from_slice(&16_u32.to_be_bytes());
    file[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
    file[36..40].copy_from_slice(&1_u32.to_be_bytes());
    file[40..48].copy_from_slice(&(3 * 65536_u64).to_be_bytes());
    file[48..56].copy_from_slice(&65536_u64.to_be_bytes());
    file[56..60].copy_from_slice(&1_u32.to_be_bytes());
    file[96..100].copy_from_slice(&4_u32.to_be_bytes());
    file[100..104].copy_from_slice(&104_u32.to_be_bytes());
    file
}

pub(super) async fn seed(State(inner): State<Shared>, Path(vm): Path<VmId>) -> Response {
    match inner.lock().expect("lock").seeds.get(&vm) {
        Some(content) => content.clone().into_response(),
        None => refusal(Failure::new(ErrorCode::NotFound, "no such medium")),
    }
}

pub(super) async fn put_seed(
    State(inner): State<Shared>,
    Path(vm): Path<VmId>,
    content: Bytes,
) -> http::StatusCode {
    inner.lock().expect("lock").seeds.insert(vm, content);
    http::StatusCode::NO_CONTENT
}

pub(super) async fn delete_history(
    State(inner): State<Shared>,
    Path(vm): Path<VmId>,
) -> http::StatusCode {
    let mut inner = inner.lock().expect("lock");
    inner.facts.histories.retain(|kept| *kept != vm);
    inner.tell_facts();
    http::StatusCode::NO_CONTENT
}

pub(super) async fn delete_seed(
    State(inner): State<Shared>,
    Path(vm): Path<VmId>,
) -> http::StatusCode {
    inner.lock().expect("lock").seeds.remove(&vm);
    http::StatusCode::NO_CONTENT
}

pub(super) async fn image(State(inner): State<Shared>, Path(sha256): Path<String>) -> Response {
    if inner.lock().expect("lock").images.contains(&sha256) {
        http::StatusCode::NO_CONTENT.into_response()
    } else {
        refusal(Failure::new(ErrorCode::ImageNotFound, "no such image"))
    }
}

pub(super) async fn put_image(
    State(inner): State<Shared>,
    Path(sha256): Path<String>,
    _content: Bytes,
) -> http::StatusCode {
    inner.lock().expect("lock").images.insert(sha256);
    http::StatusCode::NO_CONTENT
}

pub(super) async fn delete_image(
    State(inner): State<Shared>,
    Path(sha256): Path<String>,
) -> http::StatusCode {
    inner.lock().expect("lock").images.remove(&sha256);
    http::StatusCode::NO_CONTENT
}

#[derive(serde::Deserialize)]
pub(super) struct After {
    after: u64,
}

pub(super) async fn audit(
    State(inner): State<Shared>,
    axum::extract::Query(query): axum::extract::Query<After>,
) -> Response {
    let inner = inner.lock().expect("lock");
    if inner.audit_spoilt {
        let failure = Failure::new(ErrorCode::Internal, "the audit log");
        return refusal(failure.because("line 7 is no audit record"));
    }
    let records = inner.audit.iter().filter(|record| record.seq > query.after);
    Json(records.cloned().collect::<Vec<_>>()).into_response()
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
    Json(answer): Json<CertificateAnswer>,
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
    Json(list): Json<RefusedCertificates>,
) -> Json<RefusedHeld> {
    let inner = inner.lock().expect("lock");
    let refusals = &inner.certificate.refusals;
    refusals.merge(&list, OffsetDateTime::now_utc());
    let entries = refusals.list().entries.len() as u32;
    Json(RefusedHeld { entries })
}

pub(super) async fn witness(
    State(inner): State<Shared>,
    Json(shown): Json<Option<AuditHead>>,
) -> Json<Option<AuditHead>> {
    let mut inner = inner.lock().expect("lock");
    let known = inner.witnessed.clone();
    let seq = |head: &Option<AuditHead>| head.as_ref().map_or(0, |head| head.seq);
    if seq(&shown) > seq(&known) {
        inner.witnessed = shown;
    }
    Json(known)
}
