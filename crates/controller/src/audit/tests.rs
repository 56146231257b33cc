use super::*;
use async_trait::async_trait;
use fleetward_api::lists::AuditPlace;
use fleetward_store::{LeaseId, Page, Revision, SqliteStore, Watch};
use std::sync::atomic::{AtomicU64, Ordering};

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
        let txn = Txn::new()
            .delete(record_key(record.host.as_str(), record.seq))
            .put_json(kept, record);
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

/// A store that counts the entries that are read from it.
#[derive(Debug)]
struct Counting {
    store: Arc<dyn Store>,
    read: AtomicU64,
}

impl Counting {
    fn count(&self) -> u64 {
        self.read.swap(0, Ordering::Relaxed)
    }
}

#[async_trait]
impl Store for Counting {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.read.fetch_add(1, Ordering::Relaxed);
        self.store.get(key).await
    }
    async fn list(&self, range: Range) -> Result<Page, StoreError> {
        let page = self.store.list(range).await?;
        self.read
            .fetch_add(1 + page.entries.len() as u64, Ordering::Relaxed);
        Ok(page)
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.store.commit(txn).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.store.revision().await
    }
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.lease_grant(ttl).await
    }
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.lease_keep_alive(lease).await
    }
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.lease_revoke(lease).await
    }
    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }
}

async fn new_store() -> (tempfile::TempDir, Arc<dyn Store>) {
    let dir = tempfile::tempdir().expect("directory");
    let store = SqliteStore::open(dir.path().join("store.db")).await;
    (dir, Arc::new(store.expect("store")))
}

/// A chain of `length` records a second apart, the first ten and the last of them of `vm`.
fn long_chain(host: &HostName, length: usize, vm: VmId) -> Vec<AuditRecord> {
    let mut records: Vec<AuditRecord> = Vec::new();
    for (n, of_none) in chain(host, length).into_iter().enumerate() {
        let event = AuditEvent {
            time: OffsetDateTime::UNIX_EPOCH + Duration::from_secs(n as u64),
            host: host.clone(),
            actor: of_none.actor,
            action: of_none.action,
            vm: (n < 10 || n + 1 == length).then_some(vm),
            guardian: None,
            reason: of_none.reason,
            job: None,
        };
        records.push(AuditRecord::chain(records.last(), event));
    }
    records
}

/// Writes records as a controller of before the index did.
async fn write_without_index(store: &dyn Store, records: &[AuditRecord]) {
    for some in records.chunks(MAX_OPERATIONS) {
        let txn = some.iter().fold(Txn::new(), |txn, record| {
            let key = record_key(record.host.as_str(), record.seq);
            txn.put_json(key, record).expect("json")
        });
        let _ = store.commit(txn).await.expect("written");
    }
}

async fn index_all(audit: &Audit) {
    while audit.index_some().await.expect("indexed") {}
}

fn from(since: Option<OffsetDateTime>) -> Wanted<'static> {
    Wanted {
        since,
        ..Wanted::default()
    }
}

async fn of_vm(audit: &Audit, vm: VmId) -> Vec<u64> {
    let wanted = Wanted {
        vms: Some(&BTreeSet::from([vm])),
        ..Wanted::default()
    };
    let found = audit.list(wanted).await;
    found
        .expect("list")
        .iter()
        .map(|record| record.seq)
        .collect()
}

#[tokio::test]
async fn what_is_read_does_not_depend_on_how_many_records_there_are() {
    let mut counts = Vec::new();
    for length in [400, 4000] {
        let (_dir, store) = new_store().await;
        let (host, vm): (HostName, _) = ("a".parse().expect("name"), VmId(uuid::Uuid::new_v4()));
        let records = long_chain(&host, length, vm);
        write_without_index(&*store, &records).await;
        index_all(&Audit::open(store.clone()).await.expect("audit")).await;

        let counting = Arc::new(Counting {
            store,
            read: AtomicU64::new(0),
        });
        let audit = Audit::open(counting.clone()).await.expect("audit");
        let at_start = counting.count();
        assert_eq!(audit.position(&host).await, length as u64);
        assert_eq!(of_vm(&audit, vm).await.len(), 11);
        let by_vm = counting.count();
        let since = Some(records[length - 20].time);
        let found = audit.list(from(since)).await.expect("list");
        assert_eq!(found, records[length - 20..]);
        counts.push((at_start, by_vm, counting.count()));
    }
    assert_eq!(counts[0], counts[1]);
    let (at_start, by_vm, by_time) = counts[0];
    assert!(at_start < 10 && by_vm < 40 && by_time < 60, "{counts:?}");
}

#[tokio::test]
async fn an_index_that_a_crash_left_half_made_is_gone_on_with_and_hides_nothing() {
    let (_dir, store) = new_store().await;
    let (host, vm): (HostName, _) = ("a".parse().expect("name"), VmId(uuid::Uuid::new_v4()));
    let records = long_chain(&host, 200, vm);
    write_without_index(&*store, &records[..150]).await;
    let all: Vec<u64> = (1..=10).chain([200]).collect();
    let audit = Audit::open(store.clone()).await.expect("audit");
    assert_eq!(of_vm(&audit, vm).await, all[..10], "none is indexed");
    assert!(audit.index_some().await.expect("indexed"));
    drop(audit);

    let audit = Audit::open(store.clone()).await.expect("audit");
    let upto = audit.behind().get("a").copied();
    assert_eq!(upto, Some(WRITTEN_AT_ONCE as u64), "it goes on from there");
    audit
        .take(&host, records[150..].to_vec())
        .await
        .expect("taken");
    assert_eq!(of_vm(&audit, vm).await, all, "some are indexed");
    let verdict = audit.verdict().await.expect("verdict");
    assert!(verdict.intact, "{verdict:?}");
    index_all(&audit).await;
    assert_eq!(of_vm(&audit, vm).await, all);
    let verdict = audit.verdict().await.expect("verdict");
    assert!(verdict.intact && verdict.records == 200, "{verdict:?}");
    let audit = Audit::open(store).await.expect("audit");
    assert!(audit.behind().is_empty(), "it is done once");
}

#[tokio::test]
async fn what_a_controller_of_before_wrote_meanwhile_is_found() {
    let (_dir, store) = new_store().await;
    let (host, vm): (HostName, _) = ("a".parse().expect("name"), VmId(uuid::Uuid::new_v4()));
    let audit = Audit::open(store.clone()).await.expect("audit");
    let records = long_chain(&host, 100, vm);
    audit
        .take(&host, records[..60].to_vec())
        .await
        .expect("taken");
    write_without_index(&*store, &records[60..]).await;
    let audit = Audit::open(store.clone()).await.expect("audit");
    let all: Vec<u64> = (1..=10).chain([100]).collect();
    assert_eq!(of_vm(&audit, vm).await, all);
    index_all(&audit).await;
    assert_eq!(of_vm(&audit, vm).await, all);

    // the host left and joined anew under that controller: another chain of the same name and length
    let other = VmId(uuid::Uuid::new_v4());
    write_without_index(&*store, &long_chain(&host, 100, other)).await;
    let audit = Audit::open(store).await.expect("audit");
    assert_eq!(of_vm(&audit, other).await, all);
    index_all(&audit).await;
    assert_eq!(of_vm(&audit, other).await, all);
    assert_eq!(of_vm(&audit, vm).await, [0; 0], "they are gone");
}

#[tokio::test]
async fn records_of_a_host_that_left_are_found_by_their_vm() {
    let (_dir, store) = new_store().await;
    let (host, vm): (HostName, _) = ("a".parse().expect("name"), VmId(uuid::Uuid::new_v4()));
    let audit = Audit::open(store.clone()).await.expect("audit");
    let records = long_chain(&host, 100, vm);
    audit.take(&host, records.clone()).await.expect("taken");
    let left = OffsetDateTime::UNIX_EPOCH;
    audit.retire(&host, left).await.expect("retired");
    let anew = VmId(uuid::Uuid::new_v4());
    let second = long_chain(&host, 100, anew);
    audit.take(&host, second).await.expect("a new chain");
    let all: Vec<u64> = (1..=10).chain([100]).collect();
    let opened = Audit::open(store.clone()).await.expect("audit");
    assert!(opened.behind().is_empty(), "the index moved along");
    for audit in [audit, opened] {
        assert_eq!(of_vm(&audit, vm).await, all);
        assert_eq!(of_vm(&audit, anew).await, all);
        let found = audit.list(from(Some(records[50].time))).await;
        assert_eq!(found.expect("list").len(), 100);
        let verdict = audit.verdict().await.expect("verdict");
        assert!(verdict.intact && verdict.records == 200, "{verdict:?}");
    }
}

#[tokio::test]
async fn an_index_that_lacks_an_entry_is_told_by_the_whole_check_and_mended() {
    let (_dir, store) = new_store().await;
    let (host, vm): (HostName, _) = ("a".parse().expect("name"), VmId(uuid::Uuid::new_v4()));
    let audit = Audit::open(store.clone()).await.expect("audit");
    let records = long_chain(&host, 300, vm);
    audit.take(&host, records.clone()).await.expect("taken");
    let txn = records[2..4].iter().fold(Txn::new(), |txn, record| {
        let keys = index::entries("a", record).into_iter();
        keys.fold(txn, Txn::delete)
    });
    let _ = store.commit(txn).await.expect("deleted");
    let verdict = audit.verdict().await.expect("verdict");
    assert!(!verdict.intact && verdict.records == 300, "{verdict:?}");
    let found = &verdict.breaks[0];
    assert_eq!((found.chain.as_str(), found.seq), ("a", Some(3)));
    assert!(found.what.contains("2 records of a"), "{found:?}");
    assert_eq!(of_vm(&audit, vm).await.len(), 11);
    let verdict = audit.verdict().await.expect("verdict");
    assert!(verdict.intact, "{verdict:?}");
}

#[tokio::test]
async fn a_vm_is_found_by_a_former_name() {
    let (_dir, store) = new_store().await;
    let audit = Audit::open(store.clone()).await.expect("audit");
    let (vm, name) = (VmId(uuid::Uuid::new_v4()), "web".parse().expect("name"));
    for job in ["vm-create web", "vm-delete web", "vm-start other"] {
        let act = Act {
            vm: Some(vm),
            ..Act::new("admin", AuditAction::SubmitJob, job)
        };
        audit.own(act).await.expect("recorded");
    }
    let opened = Audit::open(store).await.expect("audit");
    for audit in [audit, opened] {
        let named = audit.named(&name).await.expect("named");
        assert_eq!(named, BTreeSet::from([vm]));
        let none = audit.named(&"db".parse().expect("name")).await;
        assert_eq!(none.expect("named"), BTreeSet::new());
    }
}

/// All pages of that length, put one after the other.
async fn by_pages(audit: &Audit, wanted: Wanted<'_>, limit: usize) -> Vec<AuditRecord> {
    let mut listed: Vec<AuditRecord> = Vec::new();
    loop {
        let after = listed.last().map(AuditPlace::of);
        let page = Wanted {
            after: after.as_ref(),
            limit: Some(limit),
            ..wanted
        };
        let page = audit.list(page).await.expect("a page");
        let is_last = page.len() < limit;
        listed.extend(page);
        if is_last {
            return listed;
        }
        assert!(listed.len() < 10_000, "the pages repeat");
    }
}

#[tokio::test]
async fn pages_of_a_host_that_left_and_came_back_are_the_list() {
    let (_dir, store) = new_store().await;
    let audit = Audit::open(store.clone()).await.expect("audit");
    let (first, second) = (VmId(uuid::Uuid::new_v4()), VmId(uuid::Uuid::new_v4()));
    let (host, other): (HostName, HostName) =
        ("a".parse().expect("name"), "b".parse().expect("name"));
    // three chains of the same times and numbers, one of a host that came back
    let of_first = long_chain(&host, 60, first);
    let of_second = long_chain(&host, 60, second);
    let of_other = long_chain(&other, 60, first);
    audit.take(&host, of_first.clone()).await.expect("taken");
    let left = OffsetDateTime::UNIX_EPOCH;
    audit.retire(&host, left).await.expect("retired");
    audit.take(&host, of_second.clone()).await.expect("taken");
    audit.take(&other, of_other.clone()).await.expect("taken");

    let mut all = [of_first.clone(), of_second, of_other].concat();
    all.sort_by_key(AuditPlace::of);
    let vms = BTreeSet::from([first, second]);
    let of_vms = Wanted {
        vms: Some(&vms),
        ..Wanted::default()
    };
    let whole = audit.list(Wanted::default()).await.expect("list");
    assert_eq!(whole, all);
    for limit in [1, 7, 60, 179, 180, 1000] {
        let listed = by_pages(&audit, Wanted::default(), limit).await;
        assert_eq!(listed, all, "{limit} at once");
        let late = by_pages(&audit, from(Some(all[90].time)), limit).await;
        assert_eq!(late, all[90..], "{limit} at once");
        let some = by_pages(&audit, of_vms, limit).await;
        assert_eq!(some.len(), 33, "{limit} at once");
    }

    // It left again, in the same second, and came back with the log that it had: its records are there twice.
    audit.retire(&host, left).await.expect("retired");
    audit.take(&host, of_first).await.expect("taken");
    let verdict = audit.verdict().await.expect("verdict");
    assert!(verdict.intact && verdict.records == 240, "{verdict:?}");
    for limit in [1, 7, 1000] {
        let listed = by_pages(&audit, Wanted::default(), limit).await;
        assert_eq!(listed, all, "{limit} at once");
    }
}

#[tokio::test]
async fn a_page_reads_about_what_it_shows() {
    let mut counts = Vec::new();
    for length in [400, 4000] {
        let (_dir, store) = new_store().await;
        let (host, vm): (HostName, _) = ("a".parse().expect("name"), VmId(uuid::Uuid::new_v4()));
        let audit = Audit::open(store.clone()).await.expect("audit");
        let records = long_chain(&host, length, vm);
        audit.take(&host, records.clone()).await.expect("taken");
        let counting = Arc::new(Counting {
            store,
            read: AtomicU64::new(0),
        });
        let audit = Audit::open(counting.clone()).await.expect("audit");
        let _ = counting.count();
        let after = AuditPlace::of(&records[length / 2]);
        let page = Wanted {
            after: Some(&after),
            limit: Some(20),
            ..Wanted::default()
        };
        let page = audit.list(page).await.expect("a page");
        assert_eq!(page, records[length / 2 + 1..][..20]);
        counts.push(counting.count());
    }
    assert_eq!(counts[0], counts[1]);
    assert!(counts[0] < 100, "{counts:?}");
}

#[tokio::test]
async fn a_record_whose_predecessor_was_written_though_it_failed_follows_it() {
    let (_dir, store) = new_store().await;
    let audit = Audit::open(store.clone()).await.expect("audit");
    let act = |what: &str| Act::new("admin", AuditAction::MakeToken, what);
    audit.own(act("first")).await.expect("recorded");
    // what another object wrote is to this one as a commit that it was told had failed
    let same = Audit::open(store.clone()).await.expect("audit");
    same.own(act("second")).await.expect("recorded");
    audit.own(act("third")).await.expect("recorded");
    let whole = audit.list(Wanted::default()).await.expect("list");
    let reasons: Vec<_> = whole.iter().map(|record| record.reason.as_str()).collect();
    assert_eq!(reasons, ["first", "second", "third"]);
    let verdict = audit.verdict().await.expect("verdict");
    assert!(verdict.intact, "{verdict:?}");
}
