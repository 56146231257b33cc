//! What memory has and the store has not.

use super::Inventory;
use super::held::Conditions;
use super::stored::{StoredFacts, StoredState, StoredVm, conditions_key, facts_key, vm_key};
use fleetward_model::host::HostFacts;
use fleetward_model::vm::VmObserved;
use fleetward_model::{HostName, VmId};
use fleetward_store::{MAX_OPERATIONS, Revision, StoreError, Txn};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::time::Instant;

/// Facts change with every report; this often is enough for a restart.
const FACTS_EVERY: time::Duration = time::Duration::seconds(60);
/// Whose facts that long are due is looked for so often.
const FACTS_LOOK: Duration = Duration::from_secs(5);

/// A condition is at most that much older in the store than in memory, while its host answers. A host that answers after
/// a restart tells everything anew, and with one that is lost it is written at once: what a condition of half a minute before
/// is shown for is a controller and a host that end in the same half minute.
const CONDITIONS_EVERY: Duration = Duration::from_secs(30);

/// A VM whose record is behind, with the time since which it is in its state; `None` when it is gone.
type UnwrittenVm = (HostName, VmId, Option<(Arc<VmObserved>, OffsetDateTime)>);

/// Facts that are not in the store yet, and when they arrived.
type UnwrittenFacts = (HostName, Arc<HostFacts>, OffsetDateTime);

/// Which conditions are written.
#[derive(Debug, Clone, Copy)]
enum Which<'a> {
    All,
    Of(&'a HostName),
    Due,
}

impl Inventory {
    /// Writes what changed to the store; on its return everything seen before the call is there.
    pub(crate) async fn flush(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        self.write_out(now, Which::All).await
    }

    /// The same, but for other hosts' VMs only what they are, and how they are where that is due.
    pub(crate) async fn flush_of(
        &self,
        host: &HostName,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.write_out(now, Which::Of(host)).await
    }

    /// Writes what is not to wait any longer.
    pub(crate) async fn flush_due(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        self.write_out(now, Which::Due).await
    }

    async fn write_out(&self, now: OffsetDateTime, which: Which<'_>) -> Result<(), StoreError> {
        let _turn = self.writing.lock().await;
        self.write_vms().await?;
        self.write_conditions(which).await?;
        self.write_facts(now).await
    }

    /// In as few transactions as hold them: no two VMs depend on each other.
    async fn write_vms(&self) -> Result<(), StoreError> {
        let vms = self.take_dirty();
        for (at, some) in vms.chunks(MAX_OPERATIONS).enumerate() {
            match self.write_some(some).await {
                Ok(revision) => self.are_recorded(some, revision),
                // Of those that failed all are written again: which of them were is not worth knowing.
                Err(error) => {
                    let behind = vms.iter().skip(at * MAX_OPERATIONS);
                    let behind = behind.map(|(host, id, _)| (host.clone(), *id));
                    self.write().dirty.extend(behind);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn write_some(&self, vms: &[UnwrittenVm]) -> Result<Option<Revision>, StoreError> {
        let mut txn = Txn::new();
        for (host, id, vm) in vms {
            let key = vm_key(host, *id);
            txn = match vm {
                Some((vm, since)) => {
                    let state_since = Some(*since);
                    let state = StoredState { state_since };
                    txn.put_json(key, &StoredVm { vm, state })?
                }
                None => txn.delete(key),
            };
        }
        Ok(self.store.commit(txn).await?.committed())
    }

    /// These records were written, of VMs that may have changed since they were taken.
    fn are_recorded(&self, vms: &[UnwrittenVm], revision: Option<Revision>) {
        let mut state = self.write();
        for (host, id, written) in vms {
            if state.dirty.contains(&(host.clone(), *id)) {
                continue;
            }
            let reported = state.hosts.get_mut(host);
            let held = reported.and_then(|reported| reported.vms.get_mut(id));
            if let (Some(held), Some((written, _))) = (held, written) {
                held.recorded = revision;
                held.has_moved = !Arc::ptr_eq(&held.vm, written);
            }
        }
    }

    fn take_dirty(&self) -> Vec<UnwrittenVm> {
        let mut state = self.write();
        let dirty = std::mem::take(&mut state.dirty);
        let vms = dirty.into_iter().map(|(host, id)| {
            let reported = state.hosts.get(&host);
            let held = reported.and_then(|reported| reported.vms.get(&id));
            let vm = held.map(|held| (Arc::clone(&held.vm), held.since));
            (host, id, vm)
        });
        vms.collect()
    }

    async fn write_conditions(&self, which: Which<'_>) -> Result<(), StoreError> {
        let hosts = self.take_behind(which);
        for (at, some) in hosts.chunks(MAX_OPERATIONS).enumerate() {
            let written = async {
                let mut txn = Txn::new();
                for (host, _, conditions) in some {
                    txn = txn.put_json(conditions_key(host), conditions)?;
                }
                self.store.commit(txn).await
            };
            if let Err(error) = written.await {
                let mut state = self.write();
                for (host, since, _) in hosts.iter().skip(at * MAX_OPERATIONS) {
                    state.behind.insert(host.clone(), *since);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn take_behind(&self, which: Which<'_>) -> Vec<(HostName, Instant, Conditions)> {
        let mut state = self.write();
        let is_due = |(host, since): &(&HostName, &Instant)| match which {
            Which::All => true,
            Which::Of(one) if one == *host => true,
            Which::Of(_) | Which::Due => since.elapsed() >= CONDITIONS_EVERY || !state.online(host),
        };
        let due = state.behind.iter().filter(is_due);
        let due: Vec<_> = due.map(|(host, since)| (host.clone(), *since)).collect();
        let hosts = due.into_iter().map(|(host, since)| {
            state.behind.remove(&host);
            let reported = state.hosts.get(&host).into_iter();
            let vms = reported.flat_map(|reported| &reported.vms);
            let conditions = vms.filter_map(|(id, held)| Some((*id, held.condition()?)));
            let conditions = conditions.collect();
            (host, since, conditions)
        });
        hosts.collect()
    }

    async fn write_facts(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        for some in self.take_facts(now).chunks(MAX_OPERATIONS) {
            let mut txn = Txn::new();
            for (host, facts, reported) in some {
                let stored = StoredFacts {
                    facts: &**facts,
                    reported: *reported,
                };
                txn = txn.put_json(facts_key(host), &stored)?;
            }
            let _ = self.store.commit(txn).await?;
        }
        Ok(())
    }

    fn take_facts(&self, now: OffsetDateTime) -> Vec<UnwrittenFacts> {
        let mut state = self.write();
        let looked = state.facts_looked;
        if looked.is_some_and(|looked| looked.elapsed() < FACTS_LOOK) {
            return Vec::new();
        }
        state.facts_looked = Some(Instant::now());
        let mut facts = Vec::new();
        for (host, reported) in &mut state.hosts {
            let due = |at: OffsetDateTime| now - at >= FACTS_EVERY;
            if reported.seen.snapshots == 0 || !reported.facts_written.is_none_or(due) {
                continue;
            }
            if let (Some(latest), Some(at)) = (&reported.seen.facts, reported.seen.reported) {
                reported.facts_written = Some(now);
                facts.push((host.clone(), Arc::clone(latest), at));
            }
        }
        facts
    }
}
