//! The audit log: the controller's own records, and verified copies of the hosts' records.
//!
//! Each record has its own key in the store (`audit/<host>/<seq>`), and the keys by which it is found (`index`). A host
//! whose records do not follow from the stored ones is marked (`audit-break/<host>`) and shown with a warning, and its
//! further records are refused: the stored copy is the evidence.
//!
//! A chain whose end is cut off is still a valid chain. So each side stores the other's last position: the controller
//! has copies of the hosts' records, and the hosts store the position of the controller's chain, which it sends them
//! (`witness`).

mod index;
#[cfg(test)]
mod tests;
mod whole;

pub(crate) use self::index::{WITHOUT_HISTORY, Wanted};

use self::index::{ENTRIES, INDEXED, Pages, WRITTEN_AT_ONCE};
use crate::world::World;
use fleetward_api::agent::AuditHead;
use fleetward_model::audit::{AuditAction, AuditEvent, AuditRecord, verify};
use fleetward_model::{ErrorCode, Failure, HostName, JobId, VmId};
use fleetward_store::{
    Entry, Guard, MAX_OPERATIONS, MAX_VALUE, Outcome, Range, Store, StoreError, StoreExt, Txn,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

/// The name under which the controller keeps its own records; no host may have it.
pub(crate) const CONTROLLER: &str = "controller";

fn own_name() -> HostName {
    CONTROLLER.parse().expect("a well-formed name")
}

/// `audit-retiring/<host>`: where the chain of a host that left is being moved.
const RETIRING: &str = "audit-retiring/";
/// Records moved in one transaction, each with its entries from one place to the other, and the mark of their chain.
const MOVED_AT_ONCE: usize = (MAX_OPERATIONS - 1) / (2 * (1 + ENTRIES));
/// How long indexing waits after it has failed.
const INDEX_AGAIN: Duration = Duration::from_secs(60);

/// The audit trail.
#[derive(Debug)]
pub(crate) struct Audit {
    store: Arc<dyn Store>,
    /// The last record of each chain.
    last: Mutex<HashMap<HostName, AuditRecord>>,
    /// Which chains are not indexed to their end, and up to which record they are.
    behind: StdMutex<BTreeMap<String, u64>>,
    /// Held for writing while records are moved; before `last`.
    moving: RwLock<()>,
    /// The end of the controller's own.
    own_head: StdMutex<Option<AuditHead>>,
    /// By the name of the chain: a host, or one that left, as `host@time`.
    broken: StdMutex<BTreeMap<String, String>>,
    /// Which host has seen which record of the controller's own that is not here, and where they ended then.
    cut_off: StdMutex<BTreeSet<(HostName, u64, u64)>>,
}

impl Audit {
    pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        for (key, _) in store.list_json::<String>(RETIRING).await?.0 {
            if let Some(Ok(host)) = key.strip_prefix(RETIRING).map(str::parse) {
                retire_noted(&*store, &host).await?;
            }
        }
        let ends = index::ends(&*store).await?;
        let behind = index::behind(&*store, &ends).await?;
        let last: HashMap<_, _> = ends
            .into_iter()
            .filter(|(chain, end)| chain == end.host.as_str())
            .map(|(_, end)| (end.host.clone(), end))
            .collect();
        let mut broken = BTreeMap::new();
        for (key, found) in store.list_json::<String>("audit-break/").await?.0 {
            if let Some(chain) = key.strip_prefix("audit-break/") {
                broken.insert(chain.to_owned(), found.value);
            }
        }
        let own_head = last.get(&own_name()).map(head_of);
        Ok(Self {
            store,
            own_head: StdMutex::new(own_head),
            last: Mutex::new(last),
            behind: StdMutex::new(behind),
            moving: RwLock::default(),
            broken: StdMutex::new(broken),
            cut_off: StdMutex::default(),
        })
    }

    /// Records an act of the controller's own.
    pub(crate) async fn own(&self, act: Act) -> Result<(), Failure> {
        let host = own_name();
        let mut last = self.last.lock().await;
        let event = AuditEvent {
            time: OffsetDateTime::now_utc(),
            host: host.clone(),
            actor: act.actor,
            action: act.action,
            vm: act.vm,
            guardian: act.guardian,
            reason: act.reason,
            job: act.job,
        };
        loop {
            let record = AuditRecord::chain(last.get(&host), event.clone());
            let txn = Txn::new().if_absent(record_key(CONTROLLER, record.seq));
            let put = self.put(txn, &host, std::slice::from_ref(&record)).await;
            let put = put.map_err(|error| crate::store_failure(&error))?;
            if put.committed().is_some() {
                *self.own_head_now() = Some(head_of(&record));
                last.insert(host, record);
                return Ok(());
            }
            // An earlier one is there, though writing it had failed. This one follows it.
            let end = index::end(&*self.store, CONTROLLER).await;
            match end.map_err(|error| crate::store_failure(&error))? {
                Some(end) if end.seq >= record.seq => last.insert(host.clone(), end),
                Some(_) | None => return Err(taken(&record)),
            };
        }
    }

    /// Puts records at the end of their chain, at most [`WRITTEN_AT_ONCE`], while `last` is held.
    async fn put(
        &self,
        mut txn: Txn,
        host: &HostName,
        records: &[AuditRecord],
    ) -> Result<Outcome, StoreError> {
        for record in records {
            txn = txn.put_json(record_key(host.as_str(), record.seq), record)?;
        }
        txn = index::put_entries(txn, host.as_str(), records);
        // what is behind gets its mark when all that comes before is indexed
        let is_behind = self.behind().contains_key(host.as_str());
        if let Some(end) = records.last().filter(|_| !is_behind) {
            txn = index::put_mark(txn, host.as_str(), end)?;
        }
        self.store.commit(txn).await
    }

    /// The number of the last record read of `host`.
    pub(crate) async fn position(&self, host: &HostName) -> u64 {
        self.last
            .lock()
            .await
            .get(host)
            .map_or(0, |record| record.seq)
    }

    /// Takes further records of `host`, oldest first.
    pub(crate) async fn take(
        &self,
        host: &HostName,
        records: Vec<AuditRecord>,
    ) -> Result<(), StoreError> {
        let mut last = self.last.lock().await;
        if self.break_of(host).is_some() {
            return Ok(());
        }
        let mut broken = None;
        let mut good: Vec<AuditRecord> = Vec::new();
        for record in records {
            let before = good.last().or_else(|| last.get(host));
            let size = serde_json::to_vec(&record).map_or(usize::MAX, |text| text.len());
            let follows = if size > MAX_VALUE {
                Err(format!("record {} has {size} bytes", record.seq))
            } else if record.host == *host {
                verify(before, [&record]).map_err(|found| found.to_string())
            } else {
                Err(format!("host {host} sent a record of host {}", record.host))
            };
            if let Err(why) = follows {
                broken = Some(why);
                break;
            }
            good.push(record);
        }
        // A host that was away for long has thousands: many to a transaction, in their order.
        for some in good.chunks(WRITTEN_AT_ONCE) {
            let _ = self.put(Txn::new(), host, some).await?;
            if let Some(newest) = some.last() {
                last.insert(host.clone(), newest.clone());
            }
        }
        let Some(why) = broken else {
            return Ok(());
        };
        tracing::error!(%host, %why, "the host's audit log is broken");
        let mark = format!("audit-break/{host}");
        let _ = self.store.put_json(&mark, &why, Guard::Any).await?;
        self.broken().insert(host.to_string(), why);
        Ok(())
    }

    /// Puts the chain of a host that left the fleet aside: a machine of the same name starts a new one.
    pub(crate) async fn retire(
        &self,
        host: &HostName,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let _alone = self.moving.write().await;
        let mut last = self.last.lock().await;
        let any = index::end(&*self.store, host.as_str()).await?;
        if any.is_none() && self.break_of(host).is_none() {
            return Ok(());
        }
        // Recorded before the first is moved, so that after a crash the rest is moved to the same place.
        let former = self.free_place(host, now).await?;
        let noted = format!("{RETIRING}{host}");
        let _ = self.store.put_json(&noted, &former, Guard::Absent).await?;
        retire_noted(&*self.store, host).await?;
        // Its mark stays with the records.
        let mark = self.broken().remove(host.as_str());
        if let Some(why) = mark {
            self.broken().insert(former, why);
        }
        last.remove(host);
        self.behind().remove(host.as_str());
        Ok(())
    }

    /// A name for a chain that is put aside now. That of this second may be taken.
    async fn free_place(&self, host: &HostName, now: OffsetDateTime) -> Result<String, StoreError> {
        let mut second = now.unix_timestamp();
        loop {
            let former = format!("{host}@{second}");
            let any = index::end(&*self.store, &former).await?;
            if any.is_none() && !self.broken().contains_key(&former) {
                return Ok(former);
            }
            second += 1;
        }
    }

    /// Why the records of `host` are not trusted.
    pub(crate) fn break_of(&self, host: &HostName) -> Option<String> {
        self.broken().get(host.as_str()).cloned()
    }

    /// The last of the controller's own records, as hosts are shown it.
    pub(crate) fn head(&self) -> Option<AuditHead> {
        self.own_head_now().clone()
    }

    fn own_head_now(&self) -> std::sync::MutexGuard<'_, Option<AuditHead>> {
        self.own_head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a host remembers of the controller's own chain: one that is longer, or other, than what is here means that
    /// records were cut off or replaced.
    pub(crate) async fn take_witness(
        &self,
        by: &HostName,
        seen: &AuditHead,
    ) -> Result<(), StoreError> {
        let host = own_name();
        let last = self.last.lock().await;
        let end = last.get(&host).map_or(0, |record| record.seq);
        if seen.seq > end {
            self.cut_off().insert((by.clone(), seen.seq, end));
            return Ok(());
        }
        let found = self
            .store
            .get_json::<AuditRecord>(&record_key(CONTROLLER, seen.seq))
            .await?;
        if found.is_none_or(|found| found.value.hash != seen.hash) {
            self.cut_off().insert((by.clone(), seen.seq, end));
        }
        Ok(())
    }

    fn cut_off(&self) -> std::sync::MutexGuard<'_, BTreeSet<(HostName, u64, u64)>> {
        self.cut_off.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves what is left of a chain to the place that was noted for it, records and index together.
async fn retire_noted(store: &dyn Store, host: &HostName) -> Result<(), StoreError> {
    let noted = format!("{RETIRING}{host}");
    let Some(former) = store.get_json::<String>(&noted).await? else {
        return Ok(());
    };
    let (chain, former) = (host.as_str(), former.value.as_str());
    // A controller of before the index may have moved some; what it moved is indexed with the other chains.
    let moved = index::end(store, former).await?.as_ref().map(head_of);
    let mark = format!("{INDEXED}{former}");
    let mark = store.get_json::<AuditHead>(&mark).await?;
    let is_indexed = moved == mark.map(|mark| mark.value);
    let mut pages = Pages::new(store, Range::prefix(format!("audit/{chain}/")));
    while let Some(page) = pages.next().await? {
        let records: Vec<AuditRecord> = page.iter().map(Entry::json).collect::<Result<_, _>>()?;
        for some in records.chunks(MOVED_AT_ONCE) {
            let mut txn = Txn::new();
            for record in some {
                txn = index::entries(chain, record)
                    .into_iter()
                    .fold(txn, Txn::delete)
                    .delete(record_key(chain, record.seq))
                    .put_json(record_key(former, record.seq), record)?;
            }
            txn = index::put_entries(txn, former, some);
            if let Some(last) = some.last().filter(|_| is_indexed) {
                txn = index::put_mark(txn, former, last)?;
            }
            let _ = store.commit(txn).await?;
        }
    }
    let mark = format!("audit-break/{host}");
    let broken = store.get_json::<String>(&mark).await?;
    let indexed = format!("{INDEXED}{host}");
    let mut txn = Txn::new().delete(mark).delete(noted).delete(indexed);
    if let Some(broken) = broken {
        txn = txn.put_json(format!("audit-break/{former}"), &broken.value)?;
    }
    let _ = store.commit(txn).await?;
    Ok(())
}

/// Indexes what a controller of before the index wrote, in the background, and ends.
pub(crate) async fn catch_up(world: Arc<World>, stop: CancellationToken) {
    let chains = world.audit.behind().len();
    if chains == 0 {
        return;
    }
    tracing::info!(
        chains,
        "the audit trail is being indexed; until that is done, questions about it read all that is not indexed yet"
    );
    while !stop.is_cancelled() {
        match world.audit.index_some().await {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!("the audit trail is indexed");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot index the audit trail; trying again in a minute");
                let _ = stop
                    .run_until_cancelled(tokio::time::sleep(INDEX_AGAIN))
                    .await;
            }
        }
    }
}

/// Something the controller did.
#[derive(Debug)]
pub(crate) struct Act {
    pub(crate) actor: String,
    pub(crate) action: AuditAction,
    pub(crate) reason: String,
    pub(crate) vm: Option<VmId>,
    pub(crate) guardian: Option<fleetward_model::GuardianId>,
    pub(crate) job: Option<JobId>,
}

impl Act {
    pub(crate) fn new(
        actor: impl ToString,
        action: AuditAction,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            actor: actor.to_string(),
            action,
            reason: reason.into(),
            vm: None,
            guardian: None,
            job: None,
        }
    }
}

/// A record was taken away behind a running controller, and this one's number is still in use.
fn taken(record: &AuditRecord) -> Failure {
    let what = format!(
        "record {} of the controller's audit log cannot be written",
        record.seq
    );
    Failure::new(ErrorCode::StoreFailed, what)
        .because("the store has another record there, which is not the end of the log")
}

fn head_of(record: &AuditRecord) -> AuditHead {
    AuditHead {
        seq: record.seq,
        hash: record.hash.clone(),
    }
}

/// `host`, or `host@time` once it has left.
fn chain_of(key: &str) -> &str {
    key.split('/').nth(1).unwrap_or_default()
}

fn record_key(chain: &str, seq: u64) -> String {
    format!("audit/{chain}/{seq:020}")
}
