//! Operations, questions before them, and what they leave.

use super::{Shared, line};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fleetward_api::agent::operation::Operation;
use fleetward_api::agent::{CanOpen, IncomingAnswer, OperationLine, OperationRequest, Question};
use fleetward_model::audit::{AuditAction, AuditEvent, AuditRecord};
use fleetward_model::{ErrorCode, Failure};
use std::sync::Mutex;
use time::OffsetDateTime;

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
        // A move locks two hosts; two moves in opposite directions would wait for each other for ever.
        static MOVES: Mutex<()> = Mutex::new(());
        let moves = matches!(
            request.operation,
            Operation::MigrateLive(_) | Operation::SendStopped(_)
        );
        let _turn = moves.then(|| MOVES.lock().expect("lock"));
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
