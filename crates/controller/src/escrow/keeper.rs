//! Background task that keeps the copies up to date with the TPMs on the hosts.
//!
//! ```text
//!   a host reports a state, a key protector or a specification that the newest version does not hold
//!     ──► no job at work? ──► fetched ──► kept            (again after a while, ever longer, when that failed)
//! ```
//! Hosts report the SHA-256 of each state when it changes and with every snapshot. So every missed change is found:
//! what a guest wrote while the controller was away, and what a job could not copy.

use super::{Lacking, pull};
use crate::admission::claimants;
use crate::clocks;
use crate::inventory::News;
use crate::world::World;
use fleetward_api::tpm::VersionReason;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, HostName, VmId};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often what is due is looked for.
const TICK: Duration = Duration::from_secs(1);
/// A guest that writes without pause gets a copy this often.
const EVERY: Duration = Duration::from_secs(5);
/// The longest pause after failures.
const LONGEST: Duration = Duration::from_secs(300);
/// Fetched at once: of one host one, so that one that hangs keeps no others waiting.
const AT_ONCE: usize = 16;
/// VMs that are looked at before others get their turn.
const SLICE: usize = 200;
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
const VERIFY_EVERY: Duration = Duration::from_secs(60);
/// Every copy is read at least so often, and none sooner again than after [`PRUNE_EVERY`].
const VERIFIED_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// Copies that are read in one go, where these are enough.
const VERIFIED_AT_ONCE: usize = 50;

/// A VM whose copy is behind.
#[derive(Debug, Clone, Copy)]
struct Behind {
    due: Instant,
    failures: u32,
}

/// What became of a fetch.
struct Fetched {
    vm: VmId,
    host: Option<HostName>,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing is to be done any more.
    CaughtUp,
    Failed,
    /// Its host does not answer, or something else works on it: no failure.
    NotNow,
}

/// Until `stop`.
pub(crate) async fn keep_current(world: Arc<World>, stop: CancellationToken) {
    let reports = world.inventory.news();
    let mut fetches = Fetches::default();
    let mut verification = Verification::default();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut prune = tokio::time::interval(PRUNE_EVERY);
    let mut verify = tokio::time::interval(VERIFY_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = prune.tick() => {
                // Under a clock of 2040 every copy would be old.
                if let Some(now) = clocks::certain(&world, OffsetDateTime::now_utc())
                    && let Err(failure) = world.escrow.prune(now).await
                {
                    tracing::warn!(because = failure.because, "old copies of TPMs stay");
                }
            }
            _ = verify.tick() => {
                for vm in verification.go_on(&world).await {
                    fetches.look(&world, vm);
                }
            }
            Some(fetched) = fetches.running.join_next() => {
                if let Ok(fetched) = fetched {
                    fetches.ended(&world, fetched);
                }
                fetches.begin(&world);
            }
            _ = tick.tick() => {
                fetches.hear(&world, reports.take()).await;
                fetches.begin(&world);
            }
        }
    }
}

/// How far the reading of all copies has come.
#[derive(Default)]
struct Verification {
    begun: Option<Instant>,
    /// The last one that was read; none between two rounds.
    after: Option<VmId>,
}

impl Verification {
    async fn go_on(&mut self, world: &World) -> Vec<VmId> {
        let fresh = self.begun.is_some_and(|at| at.elapsed() < PRUNE_EVERY);
        if self.after.is_none() && fresh {
            return Vec::new();
        }
        if self.after.is_none() {
            self.begun = Some(Instant::now());
        }
        let turns = VERIFIED_WITHIN.as_secs() / VERIFY_EVERY.as_secs();
        let turns = usize::try_from(turns).unwrap_or(1);
        let most = world.escrow.vms().div_ceil(turns).max(VERIFIED_AT_ONCE);
        let (hurt, after) = world.escrow.verify(self.after, most).await;
        self.after = after;
        hurt
    }
}

/// The copies that are behind, and those that are being fetched.
#[derive(Default)]
struct Fetches {
    behind: HashMap<VmId, Behind>,
    /// The same, by when they are due.
    queue: BTreeSet<(Instant, VmId)>,
    /// When a copy was fetched, for as long as that matters.
    taken: HashMap<VmId, Instant>,
    running: JoinSet<Fetched>,
    vms: HashSet<VmId>,
    hosts: HashSet<HostName>,
}

impl Fetches {
    /// Looks at the VMs of which there is news.
    async fn hear(&mut self, world: &World, news: News) {
        self.taken.retain(|_, at| at.elapsed() < EVERY);
        let mut vms = news.vms;
        if news.all {
            vms.extend(world.inventory.vms().iter().map(|vm| vm.id));
        }
        // What waits for its host, or for a pause after failures, has another chance now.
        for host in &news.hosts {
            for vm in world.inventory.vms_on(host) {
                if let Some(behind) = self.behind.get(&vm.id).copied() {
                    let due = behind.due.min(Instant::now() + EVERY);
                    self.put_off(vm.id, Behind { due, ..behind });
                }
            }
        }
        for (looked_at, vm) in vms.into_iter().enumerate() {
            self.look(world, vm);
            if looked_at % SLICE == SLICE - 1 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn look(&mut self, world: &World, id: VmId) {
        let vm = world.inventory.vm(id);
        if self.behind.contains_key(&id) || !vm.is_some_and(|vm| is_behind(world, &vm)) {
            return;
        }
        let taken = self.taken.get(&id);
        let due = taken.map_or_else(Instant::now, |at| *at + EVERY);
        self.put_off(id, Behind { due, failures: 0 });
    }

    fn put_off(&mut self, vm: VmId, behind: Behind) {
        self.strike(vm);
        self.queue.insert((behind.due, vm));
        self.behind.insert(vm, behind);
    }

    fn strike(&mut self, vm: VmId) {
        if let Some(behind) = self.behind.remove(&vm) {
            self.queue.remove(&(behind.due, vm));
        }
    }

    /// Begins what is due, as far as there is room.
    fn begin(&mut self, world: &Arc<World>) {
        let now = Instant::now();
        for (_, vm) in self.queue.iter().take_while(|(due, _)| *due <= now) {
            if self.running.len() >= AT_ONCE {
                return;
            }
            let vm = *vm;
            let host = world.inventory.vm(vm).map(|vm| vm.host.clone());
            let busy = host.as_ref().is_some_and(|host| self.hosts.contains(host));
            if busy
                || self.vms.contains(&vm)
                || world.holders.hold(vm)
                || !claimants(world, vm).is_empty()
            {
                continue;
            }
            self.vms.insert(vm);
            self.hosts.extend(host.clone());
            let world = Arc::clone(world);
            self.running.spawn(async move {
                let outcome = catch_up(&world, vm).await;
                Fetched { vm, host, outcome }
            });
        }
    }

    fn ended(&mut self, world: &World, fetched: Fetched) {
        let Fetched { vm, host, outcome } = fetched;
        self.vms.remove(&vm);
        if let Some(host) = host {
            self.hosts.remove(&host);
        }
        let failures = self.behind.get(&vm).map_or(0, |behind| behind.failures);
        match outcome {
            Outcome::CaughtUp => {
                self.strike(vm);
                self.taken.insert(vm, Instant::now());
                // What its host has said since then.
                self.look(world, vm);
            }
            Outcome::Failed => {
                let failures = failures + 1;
                let due = Instant::now() + pause(failures);
                self.put_off(vm, Behind { due, failures });
            }
            Outcome::NotNow => {
                let due = Instant::now() + EVERY;
                self.put_off(vm, Behind { due, failures });
            }
        }
    }
}

/// Whether its host has what the newest version has not.
pub(crate) fn is_behind(world: &World, vm: &VmObserved) -> bool {
    world.escrow.lacks(vm).is_some()
}

async fn catch_up(world: &World, vm: VmId) -> Outcome {
    let Some(vm) = world.inventory.vm(vm) else {
        return Outcome::CaughtUp;
    };
    let Some(lacking) = world.escrow.lacks(&vm) else {
        return Outcome::CaughtUp;
    };
    if !world.inventory.seen(&vm.host).online {
        return Outcome::NotNow;
    }
    let why = match lacking {
        Lacking::Everything => VersionReason::Found,
        Lacking::Protector => VersionReason::Granted,
        Lacking::Specification => VersionReason::Redefined,
        Lacking::State if vm.state.stands_still() => VersionReason::Stopped,
        Lacking::State => VersionReason::Written,
    };
    match pull::take(world, &vm.host, vm.id, why, crate::audit::CONTROLLER).await {
        Ok(_) => Outcome::CaughtUp,
        // It has gone, or left, since its host spoke of it; the host will speak again.
        Err(failure)
            if matches!(
                failure.code,
                ErrorCode::VmNotFound | ErrorCode::VmStateWrong
            ) =>
        {
            Outcome::CaughtUp
        }
        Err(_) => Outcome::Failed,
    }
}

fn pause(failures: u32) -> Duration {
    (TICK * 2u32.saturating_pow(failures.min(16))).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_minutes() {
        assert_eq!(pause(1), Duration::from_secs(2));
        assert_eq!(pause(3), Duration::from_secs(8));
        assert_eq!(pause(u32::MAX), LONGEST);
    }
}
