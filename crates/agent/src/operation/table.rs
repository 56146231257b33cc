//! Orders operations: at most one for each VM at a time. An identical request attaches to the running operation.

use super::Task;
use crate::crash;
use crate::failure::Trouble;
use crate::host::Host;
use crate::record::VmRecord;
use fleetward_api::agent::operation::{self, Operation, OperationResult};
use fleetward_api::agent::{CancelRequest, OperationLine, OperationRequest};
use fleetward_model::change::{ChangeStep, Direction};
use fleetward_model::vm::StoppedBy;
use fleetward_model::{ErrorCode, Failure, JobId, VmId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long an operation may take to end before a forced stop cuts the VM off under it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A job that goes on asks for its next operation within this.
const BETWEEN_STEPS: Duration = Duration::from_secs(15);

/// The operations under way.
#[derive(Debug, Default)]
pub(crate) struct OperationTable {
    /// The latest operation of each VM; it may wait for an earlier one to end.
    latest: Mutex<HashMap<VmId, UnderWay>>,
    /// When the controller last asked for one of each VM.
    asked: Mutex<HashMap<VmId, Instant>>,
}

#[derive(Debug, Clone)]
struct UnderWay {
    job: JobId,
    /// The request as JSON: what makes two operations the same.
    asked: serde_json::Value,
    cancel: CancellationToken,
    lines: watch::Receiver<OperationLine>,
}

impl UnderWay {
    fn is_over(&self) -> bool {
        is_last(&self.lines.borrow()) || self.lines.has_changed().is_err()
    }
}

/// Whether nothing follows this line.
pub(crate) fn is_last(line: &OperationLine) -> bool {
    match line {
        OperationLine::Progress { .. } => false,
        OperationLine::Done { .. } | OperationLine::Failed { .. } => true,
    }
}

impl OperationTable {
    /// Starts an operation, or attaches to the same one.
    pub(crate) fn begin(
        &self,
        host: &Arc<Host>,
        request: OperationRequest,
    ) -> Result<watch::Receiver<OperationLine>, Failure> {
        let asked = serde_json::to_value(&request.operation).expect("operations are JSON");
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        host.fence.pass(request.vm, request.generation)?;
        let mut last_asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        last_asked.insert(request.vm, Instant::now());
        drop(last_asked);
        let before = latest
            .get(&request.vm)
            .filter(|before| !before.is_over())
            .cloned();
        if let Some(before) = &before {
            if before.job == request.job && before.asked == asked && !before.cancel.is_cancelled() {
                return Ok(before.lines.clone());
            }
            // A question waits for the answer to be final; anything else replaces what is under way.
            if !matches!(request.operation, Operation::MigrationState(_)) {
                before.cancel.cancel();
            }
        }
        let (sender, lines) = watch::channel(OperationLine::Progress {
            done: 0,
            total: 0,
            text: String::new(),
        });
        let cancel = CancellationToken::new();
        latest.insert(
            request.vm,
            UnderWay {
                job: request.job,
                asked,
                cancel: cancel.clone(),
                lines: lines.clone(),
            },
        );
        drop(latest);
        tokio::spawn(run(
            host.clone(),
            request,
            None,
            before.map(|before| before.lines),
            cancel,
            sender,
        ));
        Ok(lines)
    }

    /// Begins what nobody asked for, of the newest generation that was here; none while an operation is under way.
    fn begin_own(
        &self,
        host: &Arc<Host>,
        vm: VmId,
        operation: Operation,
        why: &'static str,
    ) -> Option<watch::Receiver<OperationLine>> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.get(&vm).is_some_and(|found| !found.is_over()) {
            return None;
        }
        let generation = host.fence.newest(vm).ok()?;
        let request = OperationRequest {
            job: JobId(uuid::Uuid::new_v4()),
            generation,
            vm,
            operation,
            owners: None,
            ek: None,
        };
        let (sender, lines) = watch::channel(OperationLine::Progress {
            done: 0,
            total: 0,
            text: String::new(),
        });
        let cancel = CancellationToken::new();
        let under_way = UnderWay {
            job: request.job,
            asked: serde_json::Value::Null,
            cancel: cancel.clone(),
            lines: lines.clone(),
        };
        latest.insert(vm, under_way);
        drop(latest);
        let host = host.clone();
        tokio::spawn(run(host, request, Some(why), None, cancel, sender));
        Some(lines)
    }

    /// Asks a job's operation on a VM to stop. It ends in its own time, and in its own way.
    pub(crate) fn cancel(&self, request: &CancelRequest) {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = latest
            .get(&request.vm)
            .filter(|found| found.job == request.job)
        {
            found.cancel.cancel();
        }
    }

    /// Whether an operation of the VM is under way: what happens to the VM meanwhile is that operation's business.
    pub(crate) fn is_busy(&self, vm: VmId) -> bool {
        self.latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&vm)
            .is_some_and(|found| !found.is_over())
    }

    /// Whether the controller has asked for something of the VM so lately that a job may be between two of its steps.
    pub(crate) fn may_go_on(&self, vm: VmId) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked
            .get(&vm)
            .is_some_and(|asked| asked.elapsed() < BETWEEN_STEPS)
    }

    /// Whether any operation of any VM is under way.
    pub(crate) fn is_any_under_way(&self) -> bool {
        self.latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .any(|found| !found.is_over())
    }

    fn forget_finished(&self) {
        self.latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, found| !found.is_over());
    }
}

/// Starts a VM because the host itself sees a reason, `why`; none while something else is done with the VM.
pub(crate) fn start_own(
    host: &Arc<Host>,
    vm: VmId,
    why: &'static str,
) -> Option<watch::Receiver<OperationLine>> {
    let start = operation::Start {}.into();
    host.operations.begin_own(host, vm, start, why)
}

/// Takes steps of a change, or takes them back, because the host itself sees a reason; none while something else is done with the VM.
pub(crate) fn change_own(
    host: &Arc<Host>,
    vm: VmId,
    (steps, direction): (Vec<ChangeStep>, Direction),
    why: &'static str,
) -> Option<watch::Receiver<OperationLine>> {
    let change = operation::ChangeVm { steps, direction }.into();
    host.operations.begin_own(host, vm, change, why)
}

/// The last line of an operation.
pub(crate) async fn ended(mut lines: watch::Receiver<OperationLine>) -> OperationLine {
    let last = lines.wait_for(is_last).await;
    last.map_or_else(|_| vanished(), |line| line.clone())
}

async fn run(
    host: Arc<Host>,
    request: OperationRequest,
    own: Option<&'static str>,
    before: Option<watch::Receiver<OperationLine>>,
    cancel: CancellationToken,
    lines: watch::Sender<OperationLine>,
) {
    let forced = matches!(
        request.operation,
        Operation::Stop(operation::Stop { force: true, .. })
    );
    let cut = forced && cut_off_if_hung(&host, request.vm, before.clone()).await;
    if let Some(mut before) = before {
        // An error means that the earlier one is gone, which is just as well.
        let _ = before.wait_for(is_last).await;
    }
    let name = request.operation.name();
    let task = Task {
        host: &host,
        job: request.job,
        generation: request.generation,
        vm: request.vm,
        record: VmRecord::of(&host.layout, request.vm),
        own,
        cancel,
        owners: request.owners.as_deref(),
        ek: request.ek.as_ref(),
        lines: &lines,
    };
    fleetward_failpoint::hold(&format!("agent.{name}.begin")).await;
    // A newer request may have come while this one waited, which does not undo a stop.
    let outcome = match host.fence.pass(request.vm, request.generation) {
        Ok(()) => task.carry_out(&request.operation).await,
        Err(_) if cut => Ok(OperationResult::from(operation::Stopped::default())),
        Err(stale) => Err(stale.into()),
    };
    let outcome = match outcome {
        Ok(_) if cut => Ok(OperationResult::from(operation::Stopped {
            by: Some(StoppedBy::PowerOff),
        })),
        other => other,
    };
    fleetward_failpoint::hold(&format!("agent.{name}.end")).await;
    host.tidy_after(request.vm).await;
    take_note(&host, &request, own, &outcome);
    let last = match outcome {
        Ok(result) => {
            tracing::info!(vm = %request.vm, job = %request.job, operation = name, "done");
            OperationLine::Done { result }
        }
        Err(Trouble { failure, transient }) => {
            tracing::warn!(
                vm = %request.vm, job = %request.job, operation = name, transient,
                code = %failure.code, what = failure.what, because = failure.because, "failed"
            );
            OperationLine::Failed { failure, transient }
        }
    };
    lines.send_replace(last);
    host.operations.forget_finished();
    host.observer.look_at(request.vm);
}

/// For what the host does by itself.
fn take_note(
    host: &Host,
    request: &OperationRequest,
    own: Option<&'static str>,
    outcome: &crate::failure::Result<OperationResult>,
) {
    let refused = match outcome {
        Ok(_) => None,
        // It is tried again.
        Err(trouble) if trouble.transient => return,
        Err(trouble) => Some(format!(
            "{}: {}",
            trouble.failure.code, trouble.failure.because
        )),
    };
    if refused.is_none() && own.is_none() {
        crash::note(host, request.vm, &request.operation);
    }
    host.boot.note(request.vm, &request.operation, refused);
}

/// An operation that was told to end and does not, as one that waits for a QEMU that hangs, holds up everything but a forced
/// stop: the power is cut under it, and it ends of that. So is that of a QEMU which keeps libvirt from saying what it is.
/// Answers whether it was cut.
async fn cut_off_if_hung(
    host: &Host,
    vm: VmId,
    before: Option<watch::Receiver<OperationLine>>,
) -> bool {
    let answers = async {
        if let Some(mut before) = before {
            let _ = before.wait_for(is_last).await;
        }
        let _ = host.hypervisor.inspect(vm).await;
    };
    if tokio::time::timeout(PATIENCE, answers).await.is_ok() {
        return false;
    }
    let whole = matches!(VmRecord::of(&host.layout, vm).transit(), Ok(None));
    if !whole || !host.hypervisor.is_ours(vm).await.unwrap_or(false) {
        return false;
    }
    match host.hypervisor.destroy(vm).await {
        Ok(()) => {
            tracing::warn!(%vm, "the VM was cut off: it, or an operation on it, did not answer");
            true
        }
        Err(error) => {
            tracing::warn!(%vm, error = &error as &dyn std::error::Error, "cannot cut the VM off");
            false
        }
    }
}

/// The line for an operation whose task has vanished.
pub(crate) fn vanished() -> OperationLine {
    OperationLine::Failed {
        failure: Failure::new(ErrorCode::Internal, "the operation")
            .because("it ended without a result"),
        transient: false,
    }
}
