//! The audit log: the controller's own records, and verified copies of the hosts' records.
//!
//! Each record has its own key in the store (`audit/<host>/<seq>`). A host whose records do not follow from the stored
//! ones is marked (`audit-break/<host>`) and shown with a warning, and its further records are refused: the stored
//! copy is the evidence.
//!
//! A chain whose end is cut off is still a valid chain. So each side stores the other's last position: the controller
//! has copies of the hosts' records, and the hosts store the position of the controller's chain, which it sends them
//! (`witness`).

use fleetward_api::agent::AuditHead;
use fleetward_api::controller::{AuditBreakView, AuditVerdict};
use fleetward_model::audit::{AuditAction, AuditEvent, AuditRecord, closings, verify};
use fleetward_model::{Failure, HostName, JobId, VmId};
use fleetward_store::{Guard, MAX_OPERATIONS, MAX_VALUE, Store, StoreError, StoreExt, Txn};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use time::OffsetDateTime;
use tokio::sync::Mutex;

/// The name under which the controller keeps its own records; no host may have it.
pub(crate) const CONTROLLER: &str = "controller";

fn own_name() -> HostName {
    CONTROLLER.parse().expect("a well-formed name")
}

/// `audit-retiring/<host>`: where the chain of a host that left is being moved.
const RETIRING: &str = "audit-retiring/";
/// Records moved in one transaction, each with two operations.
const MOVED_AT_ONCE: usize = fleetward_store::MAX_OPERATIONS / 2;

/// The audit trail.
#[derive(Debug)]
pub(crate) struct Audit {
    store: Arc<dyn Store>,
    /// The last record of each chain.
    last: Mutex<HashMap<HostName, AuditRecord>>,
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
        let mut last: HashMap<HostName, AuditRecord> = HashMap::new();
        for (key, found) in store.list_json::<AuditRecord>("audit/").await?.0 {
            if chain_of(&key) == found.value.host.as_str() {
                last.insert(found.value.host.clone(), found.value); // in order of seq
            }
        }
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
            broken: StdMutex::new(broken),
            cut_off: StdMutex::default(),
        })
    }

    /// Records an act of the controller's own.
    pub(crate) async fn own(&self, act: Act) -> Result<(), Failure> {
        let host = own_name();
        let mut last = self.last.lock().await;
        let record = AuditRecord::chain(
            last.get(&host),
            AuditEvent {
                time: OffsetDateTime::now_utc(),
                host: host.clone(),
                actor: act.actor,
                action: act.action,
                vm: act.vm,
                guardian: act.guardian,
                reason: act.reason,
                job: act.job,
            },
        );
        let put = self
            .store
            .put_json(&key(&record), &record, Guard::Absent)
            .await;
        let _ = put.map_err(|error| crate::store_failure(&error))?;
        *self.own_head_now() = Some(head_of(&record));
        last.insert(host, record);
        Ok(())
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
        for some in good.chunks(MAX_OPERATIONS) {
            let mut txn = Txn::new();
            for record in some {
                txn = txn.put_json(key(record), record)?;
            }
            let _ = self.store.commit(txn).await?;
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
        let mut last = self.last.lock().await;
        let (found, _) = self
            .store
            .list_json::<AuditRecord>(&format!("audit/{host}/"))
            .await?;
        if found.is_empty() && self.break_of(host).is_none() {
            return Ok(());
        }
        // Recorded before the first is moved, so that after a crash the rest is moved to the same place.
        let former = format!("{host}@{}", now.unix_timestamp());
        let noted = format!("{RETIRING}{host}");
        let _ = self.store.put_json(&noted, &former, Guard::Absent).await?;
        retire_noted(&*self.store, host).await?;
        // Its mark stays with the records.
        let mark = self.broken().remove(host.as_str());
        if let Some(why) = mark {
            self.broken().insert(former, why);
        }
        last.remove(host);
        Ok(())
    }

    /// Why the records of `host` are not trusted.
    pub(crate) fn break_of(&self, host: &HostName) -> Option<String> {
        self.broken().get(host.as_str()).cloned()
    }

    /// Records of all hosts, oldest first.
    pub(crate) async fn list(
        &self,
        vms: Option<&BTreeSet<VmId>>,
        since: Option<OffsetDateTime>,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        let (found, _) = self.store.list_json::<AuditRecord>("audit/").await?;
        let mut records: Vec<_> = found
            .into_iter()
            .map(|(_, found)| found.value)
            .filter(|record| vms.is_none_or(|vms| record.vm.is_some_and(|vm| vms.contains(&vm))))
            .filter(|record| since.is_none_or(|since| record.time >= since))
            .collect();
        records.sort_by(|a, b| (a.time, &a.host, a.seq).cmp(&(b.time, &b.host, b.seq)));
        Ok(records)
    }

    /// VMs that had that name when a job of theirs was begun, whether or not they exist. A VM's records outlive it.
    pub(crate) async fn named(&self, name: &str) -> Result<BTreeSet<VmId>, StoreError> {
        let prefix = format!("audit/{CONTROLLER}/");
        let (found, _) = self.store.list_json::<AuditRecord>(&prefix).await?;
        let named = found.into_iter().map(|(_, found)| found.value);
        let named = named.filter(|record| {
            let target = record.reason.split_once(' ').map(|(_, target)| target);
            record.action == AuditAction::SubmitJob && target == Some(name)
        });
        Ok(named.filter_map(|record| record.vm).collect())
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
            .get_json::<AuditRecord>(&format!("audit/{CONTROLLER}/{:020}", seen.seq))
            .await?;
        if found.is_none_or(|found| found.value.hash != seen.hash) {
            self.cut_off().insert((by.clone(), seen.seq, end));
        }
        Ok(())
    }

    /// Checks every chain from its first record; one finding for each chain that does not hold.
    pub(crate) async fn verdict(&self) -> Result<AuditVerdict, StoreError> {
        let chains = self.chains().await?;
        let records = chains.values().map(|chain| chain.len() as u64).sum();
        let here = |chain: &str, seq, what: String| AuditBreakView {
            chain: chain.to_owned(),
            kept_by: CONTROLLER.to_owned(),
            seq,
            what,
        };
        let mut breaks: Vec<_> = chains
            .iter()
            .filter_map(|(name, chain)| {
                let found = verify(None, chain).err()?;
                Some(here(name, Some(found.seq()), found.to_string()))
            })
            .collect();
        for (chain, why) in self.broken().iter() {
            breaks.push(AuditBreakView {
                kept_by: chain.clone(),
                ..here(chain, None, why.clone())
            });
        }
        let closed = chains.values().flat_map(closings).collect();
        // the end cut off is seen only by who remembers it
        let last = self.last.lock().await;
        for record in last.values() {
            let chain = chains.get(record.host.as_str());
            let end = chain.and_then(|c| c.last());
            if end.map(|r| &r.hash) != Some(&record.hash) {
                let first = end.map_or(1, |end| end.seq + 1);
                let what = format!(
                    "records {first} to {} of host {} are missing at the end",
                    record.seq, record.host
                );
                breaks.push(here(record.host.as_str(), Some(first), what));
            }
        }
        drop(last);
        for (by, seq, end) in self.cut_off().iter() {
            let what = if seq > end {
                format!(
                    "host {by} has seen record {seq} of the controller, whose records end with {end}: {} are missing at the end",
                    seq - end
                )
            } else {
                format!(
                    "host {by} has seen another record {seq} of the controller than the one that is here"
                )
            };
            let first = (*seq).min(end + 1);
            breaks.push(here(CONTROLLER, Some(first), what));
        }
        Ok(AuditVerdict {
            closed,
            intact: breaks.is_empty(),
            records,
            broken: breaks.first().map(|found| found.what.clone()),
            breaks,
            not_compared: Vec::new(),
        })
    }

    /// Holds a host's own log, whole, against what was copied here up to `position`: the first record in which they differ.
    pub(crate) async fn compare(
        &self,
        host: &HostName,
        position: u64,
        log: &[AuditRecord],
    ) -> Result<Option<AuditBreakView>, StoreError> {
        let there = |seq, what: String| AuditBreakView {
            chain: host.to_string(),
            kept_by: host.to_string(),
            seq: Some(seq),
            what: format!("in the log on host {host}: {what}"),
        };
        if let Err(found) = verify(None, log) {
            return Ok(Some(there(found.seq(), found.to_string())));
        }
        let chains = self.chains().await?;
        let copy = chains.get(host.as_str()).map_or(&[][..], Vec::as_slice);
        // what was copied while the log was on its way here is not in it
        let copy = copy.iter().filter(|record| record.seq <= position);
        let known: BTreeMap<u64, &AuditRecord> =
            log.iter().map(|record| (record.seq, record)).collect();
        // What lies between the record that a closing follows and the closing was damaged there.
        let closed = |seq: u64| {
            log.iter().zip(log.iter().skip(1)).any(|(before, after)| {
                after.action == AuditAction::CloseLog && before.seq < seq && seq < after.seq
            })
        };
        let end = log.last().map_or(0, |last| last.seq);
        let mut last = 0;
        for record in copy {
            last = record.seq;
            match known.get(&record.seq) {
                Some(there) if there.hash == record.hash => {}
                None if closed(record.seq) || record.seq > end => {}
                Some(_) | None => {
                    let what =
                        format!("record {} is another than the one read earlier", record.seq);
                    return Ok(Some(there(record.seq, what)));
                }
            }
        }
        Ok((end < last).then(|| {
            let what = format!("records {} to {last} are missing at the end", end + 1);
            there(end + 1, what)
        }))
    }

    async fn chains(&self) -> Result<BTreeMap<String, Vec<AuditRecord>>, StoreError> {
        let (found, _) = self.store.list_json::<AuditRecord>("audit/").await?;
        let mut chains: BTreeMap<String, Vec<AuditRecord>> = BTreeMap::new();
        for (key, found) in found {
            chains
                .entry(chain_of(&key).to_owned())
                .or_default()
                .push(found.value);
        }
        Ok(chains)
    }

    fn cut_off(&self) -> std::sync::MutexGuard<'_, BTreeSet<(HostName, u64, u64)>> {
        self.cut_off.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves what is left of a chain to the place that was noted for it.
async fn retire_noted(store: &dyn Store, host: &HostName) -> Result<(), StoreError> {
    let noted = format!("{RETIRING}{host}");
    let Some(former) = store.get_json::<String>(&noted).await? else {
        return Ok(());
    };
    let (found, _) = store
        .list_json::<AuditRecord>(&format!("audit/{host}/"))
        .await?;
    for some in found.chunks(MOVED_AT_ONCE) {
        let mut txn = Txn::new();
        for (key, found) in some {
            let kept = format!("audit/{}/{:020}", former.value, found.value.seq);
            txn = txn.delete(key.clone()).put_json(kept, &found.value)?;
        }
        let _ = store.commit(txn).await?;
    }
    let mark = format!("audit-break/{host}");
    let broken = store.get_json::<String>(&mark).await?;
    let mut txn = Txn::new().delete(mark).delete(noted);
    if let Some(broken) = broken {
        txn = txn.put_json(format!("audit-break/{}", former.value), &broken.value)?;
    }
    let _ = store.commit(txn).await?;
    Ok(())
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

fn key(record: &AuditRecord) -> String {
    format!("audit/{}/{:020}", record.host, record.seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_store::SqliteStore;

    fn chain(host: &HostName, length: usize) -> Vec<AuditRecord> {
        let mut records: Vec<AuditRecord> = Vec::new();
        for n in 0..length {
            let event = AuditEvent {
                time: OffsetDateTime::UNIX_EPOCH,
                host: host.clone(),
                actor: "controller".into(),
                action: AuditAction::Open,
                vm: None,
                guardian: None,
                reason: format!("start {n}"),
                job: None,
            };
            records.push(AuditRecord::chain(records.last(), event));
        }
        records
    }

    #[tokio::test]
    async fn a_chain_that_a_crash_left_half_retired_is_whole_again_and_a_new_one_begins() {
        let dir = tempfile::tempdir().expect("directory");
        let store: Arc<dyn Store> = Arc::new(
            SqliteStore::open(dir.path().join("store.db"))
                .await
                .expect("store"),
        );
        let host: HostName = "a".parse().expect("name");
        let audit = Audit::open(store.clone()).await.expect("audit");
        let records = chain(&host, 300);
        audit.take(&host, records.clone()).await.expect("taken");
        // the crash: noted where to, and a hundred records moved
        let put = store.put_json("audit-retiring/a", "a@7", Guard::Any).await;
        let _ = put.expect("noted");
        for record in &records[..100] {
            let kept = format!("audit/a@7/{:020}", record.seq);
            let txn = Txn::new().delete(key(record)).put_json(kept, record);
            let _ = store.commit(txn.expect("json")).await.expect("moved");
        }
        drop(audit);

        let audit = Audit::open(store.clone()).await.expect("audit");
        let verdict = audit.verdict().await.expect("verdict");
        assert!(verdict.intact, "{verdict:?}");
        assert_eq!(verdict.records, 300);
        assert_eq!(audit.position(&host).await, 0);
        audit.take(&host, chain(&host, 3)).await.expect("a new one");
        assert_eq!(audit.break_of(&host), None);

        // and the whole way, more records than one transaction takes
        audit
            .retire(&host, OffsetDateTime::now_utc())
            .await
            .expect("retired");
        let verdict = audit.verdict().await.expect("verdict");
        assert!(verdict.intact && verdict.records == 303, "{verdict:?}");
        assert_eq!(audit.position(&host).await, 0);
    }

    #[tokio::test]
    async fn the_mark_of_a_broken_chain_outlives_its_host() {
        let dir = tempfile::tempdir().expect("directory");
        let store = SqliteStore::open(dir.path().join("store.db")).await;
        let store: Arc<dyn Store> = Arc::new(store.expect("store"));
        let audit = Audit::open(store.clone()).await.expect("audit");
        let host: HostName = "a".parse().expect("name");
        let mut records = chain(&host, 3);
        records[2].reason = "another".to_owned();
        audit.take(&host, records).await.expect("taken");
        assert!(audit.break_of(&host).is_some());
        let left = OffsetDateTime::UNIX_EPOCH;
        audit.retire(&host, left).await.expect("retired");
        let anew = Audit::open(store).await.expect("audit anew");
        for audit in [audit, anew] {
            assert_eq!(audit.break_of(&host), None, "a new machine begins anew");
            let verdict = audit.verdict().await.expect("verdict");
            let shown: Vec<_> = verdict.breaks.iter().map(|b| b.chain.as_str()).collect();
            assert_eq!(shown, ["a@0"], "{verdict:?}");
        }
    }
}
