//! The index of the audit trail: which records are of a VM, and which are of a time, without reading all of them.
//!
//! | key, with an empty value | tells |
//! |---|---|
//! | `audit-vm/<vm>/<time>/<chain>/<seq>` | a record of a VM |
//! | `audit-time/<time>/<chain>/<seq>` | a record |
//! | `audit-name/<name>/<vm>` | a VM that had that name when a job of its was begun |
//!
//! They are written in the transaction of their record. `audit-indexed/<chain>` names the last record of a chain up to which
//! that was done; a controller of before the index writes none of them. A chain whose end is another is *behind*: what is
//! asked meanwhile reads the rest of it record by record.
//!
//! The index only finds. What it names is read and held against the question, so an entry that leads nowhere adds nothing.

use super::{Audit, CONTROLLER, chain_of, head_of, record_key};
use fleetward_api::agent::AuditHead;
use fleetward_api::lists::AuditPlace;
use fleetward_model::audit::{AuditAction, AuditRecord};
use fleetward_model::{VmId, VmName};
use fleetward_store::{Entry, MAX_OPERATIONS, Outcome, Range, Store, StoreError, StoreExt, Txn};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use time::OffsetDateTime;

const VM: &str = "audit-vm/";
const TIME: &str = "audit-time/";
const NAME: &str = "audit-name/";
pub(super) const INDEXED: &str = "audit-indexed/";

/// The index has no history: nobody watches it.
pub(crate) const WITHOUT_HISTORY: [&str; 4] = [VM, TIME, NAME, INDEXED];

/// The most entries of one record.
pub(super) const ENTRIES: usize = 3;
/// Records that are written in one transaction with their entries and the mark of their chain.
pub(super) const WRITTEN_AT_ONCE: usize = (MAX_OPERATIONS - 1) / (1 + ENTRIES);

/// Records or entries that are read at a time.
const PAGE: usize = 1000;

/// Where a record is: its chain and its number there.
pub(super) type Place = (String, u64);

/// Nanoseconds from the year 0 to 1970, so that times of all years that a record can tell sort as text.
const YEAR_0: i128 = 62_167_219_200_000_000_000;

fn time_key(time: OffsetDateTime) -> String {
    let since_0 = (time.unix_timestamp_nanos() + YEAR_0).max(0);
    format!("{since_0:021}")
}

/// The target of a job that somebody began with a VM.
pub(super) fn target(record: &AuditRecord) -> Option<&str> {
    let (_, target) = record.reason.split_once(' ')?;
    (record.action == AuditAction::SubmitJob).then_some(target)
}

/// The keys under which a record of `chain` is found.
pub(super) fn entries(chain: &str, record: &AuditRecord) -> Vec<String> {
    let at = format!("{}/{chain}/{:020}", time_key(record.time), record.seq);
    let mut keys = vec![format!("{TIME}{at}")];
    if let Some(vm) = record.vm {
        keys.push(format!("{VM}{vm}/{at}"));
        let name = target(record).and_then(|name| name.parse::<VmName>().ok());
        if let Some(name) = name.filter(|_| chain == CONTROLLER) {
            keys.push(format!("{NAME}{name}/{vm}"));
        }
    }
    keys
}

/// Puts the entries of `records`, each once: two jobs of a VM have the same name.
pub(super) fn put_entries(mut txn: Txn, chain: &str, records: &[AuditRecord]) -> Txn {
    let keys: BTreeSet<_> = records.iter().flat_map(|r| entries(chain, r)).collect();
    for key in keys {
        txn = txn.put(key, "");
    }
    txn
}

/// Notes that the chain is indexed up to `last`.
pub(super) fn put_mark(txn: Txn, chain: &str, last: &AuditRecord) -> Result<Txn, StoreError> {
    txn.put_json(format!("{INDEXED}{chain}"), &head_of(last))
}

/// Where the record is that an entry leads to.
fn place_of(entry: &Entry) -> Option<Place> {
    let mut names = entry.key.rsplit('/');
    let seq = names.next()?.parse().ok()?;
    Some((names.next()?.to_owned(), seq))
}

/// The pages of a range.
pub(super) struct Pages<'a> {
    store: &'a dyn Store,
    next: Option<Range>,
    one_revision: bool,
}

impl<'a> Pages<'a> {
    /// Each page as it is when it is read: of what only grows, nothing is missed.
    pub(super) fn new(store: &'a dyn Store, range: Range) -> Self {
        Self {
            store,
            next: Some(range.limit(PAGE)),
            one_revision: false,
        }
    }

    fn of_length(mut self, entries: usize) -> Self {
        self.next = self.next.map(|range| range.limit(entries));
        self
    }

    /// All pages as they were when the first was read.
    pub(super) fn of_one_revision(store: &'a dyn Store, range: Range) -> Self {
        Self {
            one_revision: true,
            ..Self::new(store, range)
        }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Vec<Entry>>, StoreError> {
        let Some(range) = self.next.take() else {
            return Ok(None);
        };
        let page = self.store.list(range.clone()).await?;
        self.next = if self.one_revision {
            range.following(&page)
        } else {
            let last = page.entries.last().filter(|_| page.more);
            last.map(|last| range.after(&last.key))
        };
        Ok(Some(page.entries))
    }
}

/// The last record of each chain, by its name, in two reads a chain.
pub(super) async fn ends(store: &dyn Store) -> Result<BTreeMap<String, AuditRecord>, StoreError> {
    let mut ends = BTreeMap::new();
    let mut range = Range::prefix("audit/").limit(1);
    while let Some(first) = store.list(range).await?.entries.pop() {
        let chain = chain_of(&first.key);
        if let Some(end) = end(store, chain).await? {
            ends.insert(chain.to_owned(), end);
        }
        // '0' follows '/': behind every key of this chain
        range = Range::prefix("audit/")
            .limit(1)
            .after(format!("audit/{chain}0"));
    }
    Ok(ends)
}

/// The last record of a chain.
pub(super) async fn end(store: &dyn Store, chain: &str) -> Result<Option<AuditRecord>, StoreError> {
    let range = Range::prefix(format!("audit/{chain}/")).descending();
    let mut last = store.list(range.limit(1)).await?;
    last.entries.pop().map(|entry| entry.json()).transpose()
}

/// The chains whose end is not that of the index, each with the number up to which it is indexed.
pub(super) async fn behind(
    store: &dyn Store,
    ends: &BTreeMap<String, AuditRecord>,
) -> Result<BTreeMap<String, u64>, StoreError> {
    let (marks, _) = store.list_json::<AuditHead>(INDEXED).await?;
    let marks: BTreeMap<_, _> = marks
        .into_iter()
        .map(|(key, mark)| (key, mark.value))
        .collect();
    let mut behind = BTreeMap::new();
    for (chain, end) in ends {
        let upto = match marks.get(&format!("{INDEXED}{chain}")) {
            Some(mark) if *mark == head_of(end) => continue,
            // another chain may have come to the place of the one that was indexed
            Some(mark) => {
                let at = record_key(chain, mark.seq);
                let there = store.get_json::<AuditRecord>(&at).await?;
                let same = there.is_some_and(|record| record.value.hash == mark.hash);
                if same { mark.seq } else { 0 }
            }
            None => 0,
        };
        behind.insert(chain.clone(), upto);
    }
    Ok(behind)
}

/// What is asked of the trail: a page of it. What is left open is not asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) vms: Option<&'a BTreeSet<VmId>>,
    pub(crate) since: Option<OffsetDateTime>,
    /// Only what stands behind it.
    pub(crate) after: Option<&'a AuditPlace>,
    /// At most so many, the first of them.
    pub(crate) limit: Option<usize>,
}

impl Wanted<'_> {
    fn is(&self, record: &AuditRecord) -> bool {
        let is_of = |vms: &BTreeSet<VmId>| record.vm.is_some_and(|vm| vms.contains(&vm));
        self.vms.is_none_or(is_of)
            && self.since.is_none_or(|since| record.time >= since)
            && self
                .after
                .is_none_or(|after| AuditPlace::of(record) > *after)
    }

    /// No record of before is wanted.
    fn from(&self) -> Option<OffsetDateTime> {
        self.since.max(self.after.map(|after| after.time))
    }

    /// The prefixes of the index below which everything that is wanted is found; `None`: all chains are read.
    fn prefixes(&self) -> Option<Vec<String>> {
        match self.vms {
            Some(vms) => Some(vms.iter().map(|vm| format!("{VM}{vm}/")).collect()),
            None => (self.from().is_some() || self.limit.is_some()).then(|| vec![TIME.to_owned()]),
        }
    }
}

/// Records in the order in which they are listed. A record that lies in two chains, because its host left and came back with
/// the same log, is listed once.
#[derive(Debug, Default)]
struct Found(BTreeMap<AuditPlace, AuditRecord>);

impl Found {
    fn add(&mut self, record: AuditRecord) {
        self.0.insert(AuditPlace::of(&record), record);
    }

    /// Whether what begins with `time` stands behind the first `limit` of these.
    fn are_before(&self, limit: Option<usize>, time: &str) -> bool {
        let last = limit.and_then(|limit| self.0.keys().nth(limit.saturating_sub(1)));
        last.is_some_and(|last| time_key(last.time).as_str() < time)
    }
}

impl Audit {
    /// Records of all chains by time, oldest first.
    pub(crate) async fn list(&self, wanted: Wanted<'_>) -> Result<Vec<AuditRecord>, StoreError> {
        let _nothing_moves = self.moving.read().await;
        // Asked first: what is indexed from here on is found twice, and not missed.
        let behind = self.behind().clone();
        let mut found = Found::default();
        match wanted.prefixes() {
            None => {
                self.scan(Range::prefix("audit/"), wanted, &mut found)
                    .await?;
            }
            Some(prefixes) => {
                for prefix in &prefixes {
                    self.find(prefix, wanted, &mut found).await?;
                }
                for (chain, upto) in &behind {
                    self.scan(rest_of(chain, *upto), wanted, &mut found).await?;
                }
            }
        }
        let records = found.0.into_values();
        Ok(records.take(wanted.limit.unwrap_or(usize::MAX)).collect())
    }

    /// VMs that had that name when a job of theirs was begun, whether or not they exist. A VM's records outlive it.
    pub(crate) async fn named(&self, name: &VmName) -> Result<BTreeSet<VmId>, StoreError> {
        let behind = self.behind().get(CONTROLLER).copied();
        let mut named = BTreeSet::new();
        let mut pages = Pages::new(&*self.store, Range::prefix(format!("{NAME}{name}/")));
        while let Some(page) = pages.next().await? {
            let ids = page.iter().filter_map(|entry| entry.key.rsplit('/').next());
            named.extend(ids.filter_map(|id| id.parse::<VmId>().ok()));
        }
        if let Some(upto) = behind {
            let mut pages = Pages::new(&*self.store, rest_of(CONTROLLER, upto));
            while let Some(page) = pages.next().await? {
                for entry in page {
                    let record = entry.json::<AuditRecord>()?;
                    if target(&record) == Some(name.as_str()) {
                        named.extend(record.vm);
                    }
                }
            }
        }
        Ok(named)
    }

    /// Adds what the entries under `prefix` lead to, until the first `limit` of them are known.
    async fn find(
        &self,
        prefix: &str,
        wanted: Wanted<'_>,
        all: &mut Found,
    ) -> Result<(), StoreError> {
        let mut range = Range::prefix(prefix);
        if let Some(from) = wanted.from() {
            range = range.after(format!("{prefix}{}", time_key(from)));
        }
        let mut found = Found::default();
        let at_once = wanted.limit.map_or(PAGE, |limit| limit.min(PAGE - 1) + 1);
        let mut pages = Pages::new(&*self.store, range).of_length(at_once);
        while let Some(page) = pages.next().await? {
            let places = page.iter().filter_map(place_of).collect();
            let records = self.read(&places).await?;
            records
                .into_iter()
                .filter(|record| wanted.is(record))
                .for_each(|record| found.add(record));
            // entries are in the order of their times
            let last = page.last().and_then(|entry| entry.key.rsplit('/').nth(2));
            if last.is_some_and(|last| found.are_before(wanted.limit, last)) {
                break;
            }
        }
        all.0.append(&mut found.0);
        Ok(())
    }

    /// Reads the records at `places`, those that follow each other together.
    async fn read(&self, places: &BTreeSet<Place>) -> Result<Vec<AuditRecord>, StoreError> {
        let mut records = Vec::new();
        let places: Vec<_> = places.iter().collect();
        let runs = places.chunk_by(|(chain, seq), (next, after)| {
            chain == next && seq.checked_add(1) == Some(*after)
        });
        for run in runs.flat_map(|run| run.chunks(PAGE)) {
            let [(chain, first), ..] = run else { continue };
            let entries = if run.len() == 1 {
                let entry = self.store.get(&record_key(chain, *first)).await?;
                entry.into_iter().collect()
            } else {
                let range = rest_of(chain, first.saturating_sub(1)).limit(run.len());
                self.store.list(range).await?.entries
            };
            if entries.len() < run.len() {
                tracing::debug!(%chain, first, "the index names records that are not there");
            }
            for entry in entries {
                records.push(entry.json()?);
            }
        }
        Ok(records)
    }

    /// Reads all of `range` for what is wanted.
    async fn scan(
        &self,
        range: Range,
        wanted: Wanted<'_>,
        found: &mut Found,
    ) -> Result<(), StoreError> {
        let mut pages = Pages::new(&*self.store, range);
        while let Some(page) = pages.next().await? {
            for entry in page {
                let record = entry.json()?;
                if wanted.is(&record) {
                    found.add(record);
                }
            }
        }
        Ok(())
    }

    /// Indexes some of what is behind; false once nothing is.
    pub(super) async fn index_some(&self) -> Result<bool, StoreError> {
        // Nothing is written and nothing moved meanwhile.
        let _last = self.last.lock().await;
        let first = self
            .behind()
            .first_key_value()
            .map(|(c, u)| (c.clone(), *u));
        let Some((chain, upto)) = first else {
            return Ok(false);
        };
        let page = self
            .store
            .list(rest_of(&chain, upto).limit(WRITTEN_AT_ONCE))
            .await?;
        let records: Vec<AuditRecord> = page
            .entries
            .iter()
            .map(Entry::json)
            .collect::<Result<_, _>>()?;
        if let Some(last) = records.last() {
            let txn = put_entries(Txn::new(), &chain, &records);
            let _ = self.store.commit(put_mark(txn, &chain, last)?).await?;
            self.behind().insert(chain.clone(), last.seq);
        }
        if !page.more {
            self.behind().remove(&chain);
        }
        Ok(true)
    }

    /// Which of the entries are not there though their record is. They are put, so that they are found from now on.
    pub(super) async fn mend(
        &self,
        entries: &[(Place, String)],
    ) -> Result<BTreeSet<Place>, StoreError> {
        let mut lacked = BTreeSet::new();
        for some in entries.chunks(MAX_OPERATIONS) {
            let mut left = some;
            while !left.is_empty() {
                let present = left
                    .iter()
                    .fold(Txn::new(), |txn, (_, key)| txn.if_present(key));
                let outcome = self.store.commit(present).await?;
                let Outcome::Conflict { key, .. } = outcome else {
                    break;
                };
                let Some(at) = left.iter().position(|(_, entry)| *entry == key) else {
                    break;
                };
                let (place, entry) = &left[at];
                let record = record_key(&place.0, place.1);
                let put = Txn::new().if_present(record).if_absent(entry);
                let put = self.store.commit(put.put(entry, "")).await?;
                // otherwise it was moved meanwhile, with its record
                if put.committed().is_some() {
                    lacked.insert(place.clone());
                }
                left = &left[at + 1..];
            }
        }
        Ok(lacked)
    }

    /// Chains of which the index does not have the end, and up to which record it has them.
    pub(super) fn behind(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u64>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The records of a chain behind the one of that number.
pub(super) fn rest_of(chain: &str, after: u64) -> Range {
    Range::prefix(format!("audit/{chain}/")).after(record_key(chain, after))
}
