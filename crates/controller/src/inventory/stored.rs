//! What a restarted controller knows before the hosts report: the inventory in the store.

use super::held::{Conditions, Held};
use super::{Inventory, State, Superseded};
use crate::presence::Presence;
use fleetward_jobs::DebtBook;
use fleetward_model::host::HostFacts;
use fleetward_model::vm::VmObserved;
use fleetward_model::{HostName, VmId};
use fleetward_store::{Entry, MAX_OPERATIONS, Range, Store, StoreError, StoreExt, Txn};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, RwLock};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;

const VMS: &str = "seen-vm/";
const CONDITIONS: &str = "seen-now/";
const FACTS: &str = "seen-facts/";
const SUPERSEDED: &str = "superseded/";
/// Records that are read and decoded in one go: some hundred kilobytes.
const RECORDS: usize = 200;
/// What changes all the time, and is never asked for as it was.
pub(crate) const WITHOUT_HISTORY: [&str; 3] = [VMS, CONDITIONS, FACTS];

/// A VM as it is stored, in one object; programs of before the moment read and write the VM alone.
#[derive(Serialize)]
pub(super) struct StoredVm<'a> {
    #[serde(flatten)]
    pub(super) vm: &'a VmObserved,
    #[serde(flatten)]
    pub(super) state: StoredState,
}

/// What a VM's record has beside the VM. Read on its own: serde copies the whole of an object that has such parts before it
/// reads any of it.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredState {
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) state_since: Option<OffsetDateTime>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoredFacts<F> {
    pub(super) facts: F,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) reported: OffsetDateTime,
}

impl Superseded {
    pub(super) fn key(host: &HostName, vm: VmId) -> String {
        format!("{SUPERSEDED}{host}/{vm}")
    }
}

pub(super) fn vm_key(host: &HostName, id: VmId) -> String {
    format!("{VMS}{host}/{id}")
}

pub(super) fn conditions_key(host: &HostName) -> String {
    format!("{CONDITIONS}{host}")
}

pub(super) fn facts_key(host: &HostName) -> String {
    format!("{FACTS}{host}")
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
        let mut conditions = BTreeMap::new();
        for (key, found) in store.list_json::<Conditions>(CONDITIONS).await?.0 {
            if let Some(host) = key.strip_prefix(CONDITIONS) {
                conditions.insert(host.to_owned(), found.value);
            }
        }
        read_vms(&*store, |mut held| {
            let (host, id) = (held.vm.host.clone(), held.vm.id);
            let of_host = conditions.get_mut(host.as_str());
            if let Some(condition) = of_host.and_then(|of_host| of_host.remove(&id)) {
                held.take(condition);
            }
            let vm = Arc::clone(&held.vm);
            let reported = state.hosts.entry(host.clone()).or_default();
            reported.vms.insert(id, held);
            state.file(&host, id, Some(vm));
        })
        .await?;
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
        let turn = self.writing.lock().await;
        {
            let mut state = self.write();
            state.forget(host);
            state.hosts.remove(host);
            state.dirty.retain(|(other, _)| other != host);
            state.behind.remove(host);
        }
        // Also of VMs that were removed before, and that had not yet been removed from the store.
        let mut keys = vec![conditions_key(host), facts_key(host)];
        let mut next = Some(Range::prefix(format!("{VMS}{host}/")).limit(RECORDS));
        while let Some(range) = next {
            let page = self.store.list(range.clone()).await?;
            next = range.following(&page);
            keys.extend(page.entries.into_iter().map(|entry| entry.key));
        }
        for some in keys.chunks(MAX_OPERATIONS) {
            let txn = some.iter().fold(Txn::new(), |txn, key| txn.delete(key));
            let _ = self.store.commit(txn).await?;
        }
        drop(turn);
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
}

/// Reads all records of VMs, in their order. Every processor decodes some.
async fn read_vms(store: &dyn Store, mut take: impl FnMut(Held)) -> Result<(), StoreError> {
    let at_once = std::thread::available_parallelism().map_or(1, NonZeroUsize::get) + 1;
    let mut decoding = VecDeque::new();
    let mut next = Some(Range::prefix(VMS).limit(RECORDS));
    loop {
        if let Some(range) = next.take() {
            let page = store.list(range.clone()).await?;
            next = range.following(&page);
            let decode = move || -> Result<Vec<Held>, StoreError> {
                page.entries.iter().map(decode_vm).collect()
            };
            decoding.push_back(tokio::task::spawn_blocking(decode));
        }
        if next.is_some() && decoding.len() < at_once {
            continue;
        }
        let Some(decoded) = decoding.pop_front() else {
            return Ok(());
        };
        let decoded = decoded
            .await
            .unwrap_or_else(|ended| match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The program ends.
                Err(_) => Ok(Vec::new()),
            });
        decoded?.into_iter().for_each(&mut take);
    }
}

fn decode_vm(entry: &Entry) -> Result<Held, StoreError> {
    let vm: VmObserved = entry.json()?;
    let StoredState { state_since } = entry.json()?;
    Ok(Held {
        since: state_since.unwrap_or(vm.observed),
        vm: Arc::new(vm.by_its_specification()),
        recorded: Some(entry.mod_revision),
        has_moved: false,
        at: Instant::now(),
        answered: None,
    })
}
