//! Orders operations: at most one for each VM at a time. An identical request attaches to the running operation.

use super::Task;
use crate::failure::Trouble;
use crate::host::Host;
use crate::record::VmRecord;
use fleetward_api::agent::operation::{self, Operation};
use fleetward_api::agent::{CancelRequest, OperationLine, OperationRequest};
use fleetward_model::{ErrorCode, Failure, JobId, VmId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long an operation may take to end before a forced stop cuts the VM off under it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The operations under way.
#[derive(Debug, Default)]
pub(crate) struct OperationTable {
    /// The latest operation of each VM; it may wait for an earlier one to end.
    latest: Mutex<HashMap<VmId, UnderWay>>,
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
            before.map(|before| before.lines),
            cancel,
            sender,
        ));
        Ok(lines)
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

async fn run(
    host: Arc<Host>,
    request: OperationRequest,
    before: Option<watch::Receiver<OperationLine>>,
    cancel: CancellationToken,
    lines: watch::Sender<OperationLine>,
) {
    if let Some(mut before) = before {
        if let Operation::Stop(operation::Stop { force: true, .. }) = &request.operation {
            cut_off(&host, request.vm, &mut before).await;
        }
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
        cancel,
        lines: &lines,
    };
    fleetward_failpoint::hold(&format!("agent.{name}.begin")).await;
    // A newer request may have come while this one waited.
    let outcome = match host.fence.pass(request.vm, request.generation) {
        Ok(()) => task.carry_out(&request.operation).await,
        Err(stale) => Err(stale.into()),
    };
    fleetward_failpoint::hold(&format!("agent.{name}.end")).await;
    host.tidy_after(request.vm).await;
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

/// An operation that was told to end and does not, as one that waits for a QEMU that hangs, holds up everything but this: the
/// power is cut under it, and it ends of that.
async fn cut_off(host: &Host, vm: VmId, before: &mut watch::Receiver<OperationLine>) {
    let ended = before.wait_for(is_last);
    if tokio::time::timeout(PATIENCE, ended).await.is_ok() {
        return;
    }
    let whole = matches!(VmRecord::of(&host.layout, vm).transit(), Ok(None));
    let ours = async {
        let domain = host.hypervisor.inspect(vm).await;
        domain.is_ok_and(|domain| domain.metadata.is_some())
    };
    if !whole || !ours.await {
        return;
    }
    match host.hypervisor.destroy(vm).await {
        Ok(()) => tracing::warn!(%vm, "the VM was cut off under an operation that did not end"),
        Err(error) => {
            tracing::warn!(%vm, error = &error as &dyn std::error::Error, "cannot cut the VM off");
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
