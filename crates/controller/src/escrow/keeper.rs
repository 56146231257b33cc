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
use crate::world::World;
use fleetward_api::tpm::VersionReason;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, VmId};
use futures_util::{StreamExt, stream};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often what is due is looked for.
const TICK: Duration = Duration::from_secs(1);
/// A guest that writes without pause gets a copy this often.
const EVERY: Duration = Duration::from_secs(5);
/// The longest pause after failures.
const LONGEST: Duration = Duration::from_secs(300);
/// Fetched at once.
const AT_ONCE: usize = 8;
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// A VM whose copy is behind.
#[derive(Debug, Clone, Copy)]
struct Behind {
    due: Instant,
    failures: u32,
}

/// Until `stop`.
pub(crate) async fn keep_current(world: Arc<World>, stop: CancellationToken) {
    let mut looked_at: HashMap<VmId, Arc<VmObserved>> = HashMap::new();
    let mut behind: HashMap<VmId, Behind> = HashMap::new();
    let mut taken: HashMap<VmId, Instant> = HashMap::new();
    // Some copy is behind although no host has said anything new.
    let mut look = false;
    let mut changes = world.inventory.changes();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut prune = tokio::time::interval(PRUNE_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = prune.tick() => {
                for vm in world.escrow.verify().await {
                    looked_at.remove(&vm);
                    look = true;
                }
                if let Err(failure) = world.escrow.prune(OffsetDateTime::now_utc()).await {
                    tracing::warn!(because = failure.because, "old copies of TPMs stay");
                }
                continue;
            }
            _ = tick.tick() => {}
        }
        if std::mem::take(&mut look) || changes.has_changed().unwrap_or(false) {
            changes.mark_unchanged();
            let vms = world.inventory.vms();
            for vm in &vms {
                let known = looked_at.get(&vm.id);
                if known.is_some_and(|known| Arc::ptr_eq(known, vm)) {
                    continue;
                }
                if is_behind(&world, vm) {
                    let due = taken
                        .get(&vm.id)
                        .map_or_else(Instant::now, |at| *at + EVERY);
                    behind.entry(vm.id).or_insert(Behind { due, failures: 0 });
                }
            }
            looked_at = vms.into_iter().map(|vm| (vm.id, vm)).collect();
            taken.retain(|vm, at| looked_at.contains_key(vm) && at.elapsed() < EVERY);
        }
        let now = Instant::now();
        let due: Vec<_> = behind
            .iter()
            .filter(|(vm, behind)| {
                behind.due <= now
                    && world.holders.of(**vm).is_none()
                    && claimants(&world, **vm).is_empty()
            })
            .map(|(vm, _)| *vm)
            .collect();
        let fetched = stream::iter(due.into_iter().map(|vm| {
            let world = world.clone();
            async move { (vm, catch_up(&world, vm).await) }
        }));
        let mut fetched = fetched.buffer_unordered(AT_ONCE);
        while let Some((vm, caught_up)) = fetched.next().await {
            if caught_up {
                behind.remove(&vm);
                taken.insert(vm, Instant::now());
            } else if let Some(behind) = behind.get_mut(&vm) {
                behind.failures += 1;
                behind.due = Instant::now() + pause(behind.failures);
            }
        }
    }
}

/// Whether its host has what the newest version has not.
pub(crate) fn is_behind(world: &World, vm: &VmObserved) -> bool {
    world.escrow.lacks(vm).is_some()
}

/// True when nothing is to be done any more.
async fn catch_up(world: &World, vm: VmId) -> bool {
    let Some(vm) = world.inventory.vm(vm) else {
        return true;
    };
    let Some(lacking) = world.escrow.lacks(&vm) else {
        return true;
    };
    if !world.inventory.seen(&vm.host).online {
        return false;
    }
    let why = match lacking {
        Lacking::Everything => VersionReason::Found,
        Lacking::Protector => VersionReason::Granted,
        Lacking::Specification => VersionReason::Redefined,
        Lacking::State if vm.state.stands_still() => VersionReason::Stopped,
        Lacking::State => VersionReason::Written,
    };
    match pull::take(world, &vm.host, vm.id, why, crate::audit::CONTROLLER).await {
        Ok(_) => true,
        // It has gone, or left, since its host spoke of it; the host will speak again.
        Err(failure) => matches!(
            failure.code,
            ErrorCode::VmNotFound | ErrorCode::VmStateWrong
        ),
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
