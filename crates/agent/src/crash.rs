//! Guests that crash are started again, where their specification says so.
//!
//! ```text
//!   crashed ─┬─ fewer than six times within an hour ──► a pause (10 s, 20 s, 40 s, ...) ──► started
//!            └─ else, or it does not start ──► given up, and said, until somebody starts it
//! ```
//! Crashes are counted in the VM's record, so a crash loop ends although the agent is started again in between. A guest that
//! shuts down, is stopped, or goes with its host has not crashed; what comes back with a host is [`crate::boot`]'s matter.

use crate::host::Host;
use crate::operation::table;
use crate::record::CrashRecord;
use fleetward_api::agent::OperationLine;
use fleetward_api::agent::operation::Operation;
use fleetward_hypervisor::{DomainObserved, DomainState, StopReason};
use fleetward_model::VmId;
use fleetward_model::boot::Crashes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;

/// So many crashes within [`WINDOW`] are forgiven.
const FORGIVEN: usize = 5;
/// Seconds.
const WINDOW: i64 = 60 * 60;
/// How often a VM that something else is done with is looked at.
const BUSY: Duration = Duration::from_secs(1);

/// VMs whose restart is being seen to, and whether they have stopped once more meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Restarts(Mutex<HashMap<VmId, bool>>);

impl Restarts {
    /// Whether the caller is to see to it; else who does so already will look again.
    fn begin(&self, vm: VmId) -> bool {
        let mut all = self.lock();
        let meanwhile = all.contains_key(&vm);
        all.insert(vm, meanwhile);
        !meanwhile
    }

    /// Whether that was all.
    fn end(&self, vm: VmId) -> bool {
        let mut all = self.lock();
        match all.get_mut(&vm) {
            Some(meanwhile @ true) => {
                *meanwhile = false;
                false
            }
            Some(false) | None => {
                all.remove(&vm);
                true
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the report of a VM: its crashes of the last hour, if its specification has it started again.
pub(crate) fn of(host: &Host, domain: &DomainObserved) -> Option<Crashes> {
    let wanted = domain.metadata.as_ref()?.spec.restart_on_crash;
    let record = host.record(domain.id).crashes().ok()??;
    let last = OffsetDateTime::from_unix_timestamp(*record.at.last()?).ok()?;
    wanted.then(|| Crashes {
        count: u32::try_from(record.at.len()).unwrap_or(u32::MAX),
        last,
        again: record.again,
        given_up: record.given_up,
    })
}

/// Takes note of how an operation ended: a VM that somebody has started, or stopped, begins anew.
pub(crate) fn note(host: &Host, vm: VmId, operation: &Operation) {
    let by_somebody = matches!(operation, Operation::Start(_) | Operation::Stop(_));
    if by_somebody && let Err(trouble) = host.record(vm).forget_crashes() {
        tracing::warn!(%vm, because = trouble.failure.because, "former crashes still count");
    }
}

/// Sees to a VM that has stopped, if it has crashed and is to be started again.
pub(crate) fn stopped(host: &Arc<Host>, vm: VmId) {
    if !host.restarts.begin(vm) {
        return;
    }
    let host = host.clone();
    tokio::spawn(async move {
        loop {
            restart(&host, vm).await;
            let all = host.restarts.end(vm);
            host.observer.look_at(vm);
            if all {
                break;
            }
        }
    });
}

/// After a start of the agent, or a return of libvirt: crashes that nobody saw.
pub(crate) async fn look_at_all(host: &Arc<Host>) {
    let Ok(domains) = host.hypervisor.list().await else {
        return;
    };
    for domain in domains {
        if has_crashed(host, &domain) {
            stopped(host, domain.id);
        }
    }
}

/// Whether it is the VM, has crashed, and is to be started again.
fn has_crashed(host: &Host, domain: &DomainObserved) -> bool {
    let crashed = domain.state == DomainState::Stopped(StopReason::Crashed);
    let wanted = |domain: &DomainObserved| {
        let metadata = domain.metadata.as_ref();
        metadata.is_some_and(|metadata| metadata.spec.restart_on_crash)
    };
    crashed && wanted(domain) && host.record(domain.id).is_whole().unwrap_or(false)
}

async fn is_still_down(host: &Host, vm: VmId) -> bool {
    let domain = host.hypervisor.inspect(vm).await;
    domain.is_ok_and(|domain| has_crashed(host, &domain))
}

async fn restart(host: &Arc<Host>, vm: VmId) {
    if !is_still_down(host, vm).await {
        return;
    }
    let now = OffsetDateTime::now_utc();
    let record = host.record(vm);
    let mut crashes = record.crashes().ok().flatten().unwrap_or_default();
    if crashes.given_up.is_some() {
        return;
    }
    // One that an earlier agent was about to end the pause of is counted already.
    if crashes.again.is_none() {
        let now = now.unix_timestamp();
        // Those of a clock that was ahead are no hour's.
        crashes.at.retain(|at| (now - *at).abs() < WINDOW);
        crashes.at.push(now);
    }
    if crashes.at.len() > FORGIVEN {
        let because = format!("it has crashed {} times within an hour", crashes.at.len());
        give_up(host, vm, crashes, because);
        return;
    }
    let doublings = u32::try_from(crashes.at.len().saturating_sub(1)).unwrap_or(0);
    let first = Duration::from_secs(host.config.crash_pause.into());
    let pause = first * 2_u32.saturating_pow(doublings);
    crashes.again = Some(now + pause);
    keep(host, vm, &crashes);
    tracing::warn!(%vm, crashes = crashes.at.len(), pause = pause.as_secs(), "a guest has crashed and is started again");
    host.observer.look_at(vm);
    tokio::time::sleep(pause).await;
    let lines = loop {
        if !is_still_down(host, vm).await {
            crashes.again = None;
            keep(host, vm, &crashes);
            return;
        }
        // A job of the controller may have more to do with it.
        if !host.operations.may_go_on(vm)
            && let Some(lines) =
                table::start_own(host, vm, "the guest has crashed and is started again")
        {
            break lines;
        }
        tokio::time::sleep(BUSY).await;
    };
    let ended = table::ended(lines).await;
    crashes.again = None;
    match ended {
        OperationLine::Failed { failure, .. } => {
            let because = format!("it does not start: {}: {}", failure.code, failure.because);
            give_up(host, vm, crashes, because);
        }
        OperationLine::Done { .. } | OperationLine::Progress { .. } => keep(host, vm, &crashes),
    }
}

fn give_up(host: &Host, vm: VmId, mut crashes: CrashRecord, because: String) {
    tracing::warn!(%vm, because, "a guest that has crashed is not started again");
    crashes.again = None;
    crashes.given_up = Some(because);
    keep(host, vm, &crashes);
}

fn keep(host: &Host, vm: VmId, crashes: &CrashRecord) {
    if let Err(trouble) = host.record(vm).keep_crashes(crashes) {
        tracing::warn!(%vm, because = trouble.failure.because, "a crash is not written down");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_at_the_end_of_a_restart_is_seen_to() {
        let (restarts, vm) = (Restarts::default(), VmId(uuid::Uuid::new_v4()));
        assert!(restarts.begin(vm));
        assert!(!restarts.begin(vm) && !restarts.begin(vm), "one at a time");
        assert!(!restarts.end(vm), "it has stopped meanwhile");
        assert!(restarts.end(vm));
        assert!(restarts.begin(vm));
    }
}
