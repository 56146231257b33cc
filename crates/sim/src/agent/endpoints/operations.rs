//! Operations, questions before them, and what they leave.

use super::{Body as Asked, Shared, line, refusal};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fleetward_api::agent::operation::Operation;
use fleetward_api::agent::{
    CancelRequest, IncomingAnswer, OperationLine, OperationRequest, Question,
};
use fleetward_model::{ErrorCode, Failure};
use std::sync::Mutex;

pub(super) async fn operate(
    State(inner): State<Shared>,
    Asked(request): Asked<OperationRequest>,
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
        // What cannot be begun is refused; what was begun and fails says so in its last line.
        if stale {
            return refusal(Failure::new(ErrorCode::StaleGeneration, name));
        } else if inner.unknown.contains(name) {
            return refusal(Failure::new(ErrorCode::InvalidRequest, name));
        } else if inner.busy.contains(name) {
            Err(Failure::new(ErrorCode::HostUnreachable, "not now"))
        } else if inner.broken.contains(name) {
            Err(Failure::new(ErrorCode::HypervisorFailed, name))
        } else if let Some(failure) = inner.fail.remove(name) {
            Err(failure)
        } else {
            let (job, vm) = (request.job, request.vm);
            let uses = inner.uses(vm, &request.operation);
            inner.performed.push((name, job, vm));
            let mut outcome = inner.perform(job, vm, request.operation);
            if outcome.is_ok() {
                inner.record(job, vm, uses);
            }
            if inner.fail_after.remove(name) {
                outcome = Err(Failure::new(
                    ErrorCode::MigrationFailed,
                    "the answer was lost",
                ));
            }
            inner.tell(vm);
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

/// What a simulated host does is done at once: there is nothing to cancel.
pub(super) async fn cancel(Asked(_): Asked<CancelRequest>) -> http::StatusCode {
    http::StatusCode::NO_CONTENT
}

pub(super) async fn question(
    State(inner): State<Shared>,
    Asked(question): Asked<Question>,
) -> Json<IncomingAnswer> {
    let inner = inner.lock().expect("lock");
    Json(IncomingAnswer {
        uuid_taken: Some(inner.vms.contains_key(&question.metadata.spec.id)),
        name_taken: Some(inner.vms.iter().any(|(id, vm)| {
            let spec = &question.metadata.spec;
            vm.metadata.spec.name == spec.name && *id != spec.id
        })),
        cpu_problem: None,
        flash_problem: None,
        can_open: inner.can_open(&question.metadata),
    })
}
