//! Hosts pay what they owe as soon as they are back, before anything else is asked of them.
//!
//! ```text
//!   owes ── the host answers ──► paying ── all paid ──► online
//!     ▲                            ├── away again ──► owes
//!     └────────────────────────────┴── failed for a reason that waiting does not cure: online, with a warning;
//!                                      tried again now and then, or given up with `job give-up`
//! ```
//! A host that owes anything is not online for placement and jobs ([`crate::inventory`]), and its agent is asked nothing but
//! to pay ([`crate::agents`]); what it reports is read. A debt that failed keeps others from that VM on that host only.

use crate::app::App;
use crate::world::World;
use fleetward_jobs::{Absence, Debt, DebtBook, Debtor, JobError, Owed, Settled};
use fleetward_model::{ErrorCode, Failure, HostName, JobId, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A host that was away again in the middle, or whose libvirt is not up yet, is asked again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// What failed for a reason that waiting does not cure is tried again this often, and when the host was away in between.
const FAILED_AGAIN: Duration = Duration::from_secs(600);

/// What a debt about a VM calls it.
pub(crate) fn subject(vm: VmId) -> String {
    format!("vm/{vm}")
}

/// The VM that a debt is about.
pub(crate) fn vm_of(debt: &Debt) -> Option<VmId> {
    debt.debtor
        .subject
        .as_deref()?
        .strip_prefix("vm/")?
        .parse()
        .ok()
}

/// `host` will remove what it has of the VM.
pub(crate) fn removal(host: &HostName, vm: VmId) -> Absence {
    Absence::Owe(Debtor::new(host.as_str()).removing(subject(vm)))
}

/// `host` will do it to the VM, which stays what it is.
pub(crate) fn about(host: &HostName, vm: VmId) -> Debtor {
    Debtor::new(host.as_str()).about(subject(vm))
}

/// Why nothing else is asked of a host for the moment, if it owes anything.
pub(crate) fn unpaid(debts: &DebtBook, host: &HostName, vm: Option<VmId>) -> Option<Failure> {
    let what = format!("host {host} first clears up what it owes");
    if debts.holds_up(host.as_str()) {
        return Some(
            Failure::new(ErrorCode::DebtsUnpaid, what)
                .because("it was away in the middle of a job, and has just come back")
                .fix(format!("wait some seconds: fleetward host show {host}")),
        );
    }
    let vm = vm?;
    if !debts.concerns(host.as_str(), &subject(vm)) {
        return None;
    }
    let debts = debts.of(host.as_str());
    let failed = debts.into_iter().find(|debt| vm_of(debt) == Some(vm))?;
    let because = failed.failure.map(|failure| failure.what);
    Some(
        Failure::new(ErrorCode::DebtsUnpaid, what)
            .because(because.unwrap_or_default())
            .fix(format!(
                "remove the cause, or give it up: fleetward job give-up {}",
                failed.job
            )),
    )
}

/// What a debt is, for people.
pub(crate) fn told(debt: &Debt) -> String {
    let half = match debt.owed {
        Owed::Run => "step",
        Owed::Undo => "undo of step",
    };
    format!("{half} {} of {} {}", debt.step, debt.kind, debt.job)
}

/// A VM's disks that lay in pools of their own when they were copied may be in one shared pool by now: what was a copy then
/// is the VM's disk now, and must stay.
pub(crate) fn still_apart(
    world: &World,
    host: &HostName,
    (vm, job): (VmId, JobId),
    copied: impl Fn(&str) -> bool,
) -> Result<(), Failure> {
    let Some(elsewhere) = world.inventory.vm(vm).filter(|vm| vm.host != *host) else {
        return Ok(());
    };
    let facts = world.inventory.seen(host).facts;
    let shared = elsewhere.disks.iter().find(|disk| {
        let here = facts.as_ref().and_then(|facts| facts.pool(&disk.pool));
        copied(&disk.target) && here.is_some_and(|pool| pool.id == disk.pool_id)
    });
    match shared {
        None => Ok(()),
        Some(disk) => Err(Failure::new(
            ErrorCode::VmStateWrong,
            format!("what host {host} had of VM {} stays", elsewhere.name),
        )
        .because(format!(
            "its pool {} is shared now with host {}, where the VM's disk {} is",
            disk.pool, elsewhere.host, disk.target
        ))
        .fix(format!(
            "see that pool {} of host {host} has nothing of the VM but its disk, then: fleetward job give-up {job}",
            disk.pool
        ))),
    }
}

/// When a host was asked to pay last.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Instant,
    /// In which of its sessions.
    session: u64,
}

/// Has debts paid until `stop`.
pub(crate) async fn keep_paid(app: App, stop: CancellationToken) {
    let debts = app.world.debts.clone();
    let (mut hosts, mut owed) = (app.world.inventory.changes(), debts.changes());
    let (ended, mut ends) = mpsc::unbounded_channel::<(HostName, Result<Settled, JobError>)>();
    let mut paying: BTreeSet<HostName> = BTreeSet::new();
    let mut asked: BTreeMap<HostName, Asked> = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = hosts.changed() => if changed.is_err() { return },
            changed = owed.changed() => if changed.is_err() { return },
            Some((host, settled)) = ends.recv() => {
                paying.remove(&host);
                if let Some(asked) = asked.get_mut(&host) {
                    asked.at = Instant::now();
                }
                tell(&host, settled);
                // whoever has waited for the host looks again
                app.world.inventory.touch();
            }
            () = tokio::time::sleep(AGAIN), if !debts.is_empty() => {}
        }
        let all = debts.all();
        let debtors: BTreeSet<HostName> = all
            .iter()
            .filter_map(|debt| debt.debtor.key.parse().ok())
            .collect();
        for host in debtors {
            let seen = app.world.inventory.seen(&host);
            let pause = match debts.holds_up(host.as_str()) {
                true => AGAIN,
                false => FAILED_AGAIN,
            };
            let due = asked
                .get(&host)
                .is_none_or(|asked| asked.session != seen.snapshots || asked.at.elapsed() >= pause);
            if !seen.answers || !due || !paying.insert(host.clone()) {
                continue;
            }
            let now = Asked {
                at: Instant::now(),
                session: seen.snapshots,
            };
            asked.insert(host.clone(), now);
            let (engine, ended) = (app.engine.clone(), ended.clone());
            tokio::spawn(async move {
                let settled = engine.settle(host.as_str()).await;
                // nobody listens any more when the controller ends
                let _ = ended.send((host, settled));
            });
        }
    }
}

fn tell(host: &HostName, settled: Result<Settled, JobError>) {
    match settled {
        Ok(Settled::All) => tracing::info!(%host, "the host owes nothing any more"),
        Ok(Settled::Failed | Settled::Away) => {}
        Err(error) => tracing::warn!(%host, %error, "the host's debts cannot be paid now"),
    }
}
