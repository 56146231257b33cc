//! What a restarted controller knows before the hosts report: the inventory in the store.

use super::{Inventory, Reported, State, Superseded};
use crate::presence::Presence;
use fleetward_jobs::DebtBook;
use fleetward_model::host::HostFacts;
use fleetward_model::vm::VmObserved;
use fleetward_model::{HostName, VmId};
use fleetward_store::{MAX_OPERATIONS, Store, StoreError, StoreExt, Txn};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, RwLock};
use time::OffsetDateTime;
use tokio::sync::watch;

const VMS: &str = "seen-vm/";
const FACTS: &str = "seen-facts/";
const SUPERSEDED: &str = "superseded/";
/// What changes all the time, and is never asked for as it was.
pub(crate) const WITHOUT_HISTORY: &[&str] = &[VMS, FACTS];
/// Facts change with every report; this often is enough for a restart.
const FACTS_EVERY: time::Duration = time::Duration::seconds(60);

/// A change that is not in the store yet: the VM with the time since which it is in its state, `None` when it is gone.
type UnwrittenVm = (HostName, VmId, Option<(Arc<VmObserved>, OffsetDateTime)>);

/// A VM as it is stored; programs of before the moment read and write the VM alone.
#[derive(Serialize, Deserialize)]
struct StoredVm<V> {
    #[serde(flatten)]
    vm: V,
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    state_since: Option<OffsetDateTime>,
}

#[derive(Serialize, Deserialize)]
struct StoredFacts<F> {
    facts: F,
    #[serde(with = "time::serde::rfc3339")]
    reported: OffsetDateTime,
}

/// Facts that are not in the store yet, and when they arrived.
type UnwrittenFacts = (HostName, Arc<HostFacts>, OffsetDateTime);

impl Superseded {
    pub(super) fn key(host: &HostName, vm: VmId) -> String {
        format!("{SUPERSEDED}{host}/{vm}")
    }
}

fn vm_key(host: &HostName, id: VmId) -> String {
    format!("{VMS}{host}/{id}")
}

impl Inventory {
    /// Remembers what was last seen before the controller ended; nobody counts as online.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        presence: Arc<Presence>,
        debts: Arc<DebtBook>,
    ) -> Result<Self, StoreError> {
        let mut state = State::default();
        for (_, found) in store.list_json::<Superseded>(SUPERSEDED).await?.0 {
            state.superseded.insert(found.value.id(), found.value);
        }
        for (_, found) in store.list_json::<StoredVm<VmObserved>>(VMS).await?.0 {
            let StoredVm { vm, state_since } = found.value;
            let vm = Arc::new(vm.by_its_specification());
            let (host, id) = (vm.host.clone(), vm.id);
            let reported = state.hosts.entry(host.clone()).or_default();
            reported
                .since
                .insert(id, state_since.unwrap_or(vm.observed));
            reported.vms.insert(id, Arc::clone(&vm));
            state.file(&host, id, Some(vm));
        }
        for (_, found) in store.list_json::<StoredFacts<HostFacts>>(FACTS).await?.0 {
            let StoredFacts { facts, reported } = found.value;
            let host = state.hosts.entry(facts.host.clone()).or_default();
            host.seen.facts = Some(Arc::new(facts));
            host.seen.reported = Some(reported);
            host.seen.last_seen = Some(reported);
        }
        // Nothing was looked up in the book yet.
        let mut debts_changed = debts.changes();
        state.debts_seen = debts_changed.borrow_and_update().wrapping_sub(1);
        Ok(Self {
            store,
            presence,
            debts,
            debts_changed,
            state: RwLock::new(state),
            changed: watch::Sender::new(0),
            feed: Default::default(),
            writing: tokio::sync::Mutex::default(),
        })
    }

    /// Forgets a host that left the fleet.
    pub(crate) async fn forget_host(&self, host: &HostName) -> Result<(), StoreError> {
        let had: Vec<_> = self.copies_on(host).iter().map(|vm| vm.id).collect();
        {
            let mut state = self.write();
            state.forget(host);
            state.hosts.remove(host);
            state.dirty.retain(|(other, _)| other != host);
        }
        let keys = had.iter().map(|id| vm_key(host, *id));
        let keys: Vec<_> = keys.chain([format!("{FACTS}{host}")]).collect();
        for some in keys.chunks(MAX_OPERATIONS) {
            let txn = some.iter().fold(Txn::new(), |txn, key| txn.delete(key));
            let _ = self.store.commit(txn).await?;
        }
        let superseded = self.superseded().into_iter();
        for copy in superseded.filter(|copy| copy.host == *host) {
            self.settle(host, copy.spec.id).await?;
        }
        self.touch();
        Ok(())
    }

    /// Forgets one copy, on a host that left the fleet.
    pub(crate) async fn forget_copy(&self, host: &HostName, vm: VmId) -> Result<(), StoreError> {
        self.write().remove(host, vm);
        let txn = Txn::new()
            .delete(vm_key(host, vm))
            .delete(Superseded::key(host, vm));
        let _ = self.store.commit(txn).await?;
        {
            let mut state = self.write();
            state.superseded.remove(&(host.clone(), vm));
            state.choose(vm);
        }
        self.touch();
        Ok(())
    }

    /// Writes what changed to the store; on its return everything seen before the call is there.
    pub(crate) async fn flush(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        let _turn = self.writing.lock().await;
        let (vms, facts) = self.take_dirty(now);
        // All are written again after a failure: which of them were is not worth knowing.
        if let Err(error) = self.write_vms(&vms).await {
            let still_behind = vms.into_iter().map(|(host, id, _)| (host, id));
            self.write().dirty.extend(still_behind);
            return Err(error);
        }
        self.write_facts(&facts).await
    }

    /// In as few transactions as hold them: no two VMs depend on each other.
    async fn write_vms(&self, vms: &[UnwrittenVm]) -> Result<(), StoreError> {
        for some in vms.chunks(MAX_OPERATIONS) {
            let mut txn = Txn::new();
            for (host, id, vm) in some {
                let key = vm_key(host, *id);
                txn = match vm {
                    Some((vm, since)) => {
                        let stored = StoredVm {
                            vm: &**vm,
                            state_since: Some(*since),
                        };
                        txn.put_json(key, &stored)?
                    }
                    None => txn.delete(key),
                };
            }
            let _ = self.store.commit(txn).await?;
        }
        Ok(())
    }

    async fn write_facts(&self, facts: &[UnwrittenFacts]) -> Result<(), StoreError> {
        for some in facts.chunks(MAX_OPERATIONS) {
            let mut txn = Txn::new();
            for (host, facts, reported) in some {
                let stored = StoredFacts {
                    facts: &**facts,
                    reported: *reported,
                };
                txn = txn.put_json(format!("{FACTS}{host}"), &stored)?;
            }
            let _ = self.store.commit(txn).await?;
        }
        Ok(())
    }

    fn take_dirty(&self, now: OffsetDateTime) -> (Vec<UnwrittenVm>, Vec<UnwrittenFacts>) {
        let mut state = self.write();
        let dirty = std::mem::take(&mut state.dirty);
        let latest = |host: &Reported, id| {
            let vm = host.vms.get(&id)?;
            let since = host.since.get(&id).copied();
            Some((Arc::clone(vm), since.unwrap_or(vm.observed)))
        };
        let vms = dirty.into_iter().map(|(host, id)| {
            let vm = state.hosts.get(&host).and_then(|host| latest(host, id));
            (host, id, vm)
        });
        let vms = vms.collect();
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
        (vms, facts)
    }
}
