//! The check of everything: each chain from its first record, and each host's own log against its copy.
//!
//! Records are read by their chains and not by the index, a page at a time. The index is held against them: an entry that
//! was taken away would keep a record from whoever asks about a VM.

use super::index::{self, Pages, Place};
use super::{Audit, CONTROLLER, chain_of};
use fleetward_api::controller::{AuditBreakView, AuditVerdict};
use fleetward_model::HostName;
use fleetward_model::audit::{AuditAction, AuditBreak, AuditRecord, closings, verify};
use fleetward_store::{Entry, Range, StoreError};
use std::collections::BTreeMap;

/// How far a chain was read.
#[derive(Debug, Default)]
struct Walked {
    last: Option<AuditRecord>,
    broken: Option<AuditBreak>,
    /// Whether the record that was last in memory is there.
    has_end: bool,
}

/// What was found on the way through all chains.
#[derive(Debug, Default)]
struct Walk {
    chains: BTreeMap<String, Walked>,
    records: u64,
    closed: Vec<String>,
    /// Records that the index did not lead to: the first of each chain, and how many.
    lacked: BTreeMap<String, (u64, u64)>,
}

impl Audit {
    /// Checks every chain from its first record; one finding for each chain that does not hold.
    pub(crate) async fn verdict(&self) -> Result<AuditVerdict, StoreError> {
        let behind = self.behind().clone();
        let mut pages = Pages::of_one_revision(&*self.store, Range::prefix("audit/"));
        // what is in memory and what is read are of one moment
        let last = self.last.lock().await;
        let ends: BTreeMap<_, _> = last
            .values()
            .map(|end| (end.host.to_string(), end.clone()))
            .collect();
        let mut page = pages.next().await?;
        drop(last);
        let mut walk = Walk::default();
        while let Some(entries) = page {
            let found_by = walk.read(&entries, &ends, &behind)?;
            for (chain, seq) in self.mend(&found_by).await? {
                let (first, count) = walk.lacked.entry(chain).or_insert((seq, 0));
                *first = seq.min(*first);
                *count += 1;
            }
            page = pages.next().await?;
        }

        let mut breaks = walk.breaks(&ends);
        for (chain, why) in self.broken().iter() {
            breaks.push(AuditBreakView {
                kept_by: chain.clone(),
                ..here(chain, None, why.clone())
            });
        }
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
            closed: walk.closed,
            intact: breaks.is_empty(),
            records: walk.records,
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
        let range = Range::prefix(format!("audit/{host}/"));
        let mut pages = Pages::of_one_revision(&*self.store, range);
        while let Some(page) = pages.next().await? {
            for entry in page {
                let record: AuditRecord = entry.json()?;
                // what was copied while the log was on its way here is not in it
                if record.seq > position {
                    continue;
                }
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
        }
        Ok((end < last).then(|| {
            let what = format!("records {} to {last} are missing at the end", end + 1);
            there(end + 1, what)
        }))
    }
}

impl Walk {
    /// Takes the next records; yields the entries that the index must have of them.
    fn read(
        &mut self,
        page: &[Entry],
        ends: &BTreeMap<String, AuditRecord>,
        behind: &BTreeMap<String, u64>,
    ) -> Result<Vec<(Place, String)>, StoreError> {
        let mut found_by = Vec::new();
        for entry in page {
            let record: AuditRecord = entry.json()?;
            let chain = chain_of(&entry.key);
            self.records += 1;
            self.closed.extend(closings([&record]));
            if behind.get(chain).is_none_or(|upto| record.seq <= *upto) {
                let keys = index::entries(chain, &record).into_iter();
                found_by.extend(keys.map(|key| ((chain.to_owned(), record.seq), key)));
            }
            let walked = self.chains.entry(chain.to_owned()).or_default();
            if walked.broken.is_none() {
                walked.broken = verify(walked.last.as_ref(), [&record]).err();
            }
            walked.has_end |= ends.get(chain).is_some_and(|end| end.hash == record.hash);
            walked.last = Some(record);
        }
        Ok(found_by)
    }

    fn breaks(&self, ends: &BTreeMap<String, AuditRecord>) -> Vec<AuditBreakView> {
        let broken = self.chains.iter().filter_map(|(chain, walked)| {
            let found = walked.broken.as_ref()?;
            Some(here(chain, Some(found.seq()), found.to_string()))
        });
        // the end cut off is seen only by who remembers it
        let cut_off = ends.iter().filter_map(|(host, end)| {
            let walked = self.chains.get(host);
            if walked.is_some_and(|walked| walked.has_end) {
                return None;
            }
            let there = walked.and_then(|walked| walked.last.as_ref());
            let first = there.map_or(1, |there| there.seq + 1);
            let what = format!(
                "records {first} to {} of host {host} are missing at the end",
                end.seq
            );
            Some(here(host, Some(first), what))
        });
        let lacked = self.lacked.iter().map(|(chain, (first, count))| {
            let what = format!(
                "the index did not lead to {count} records of {chain}, of which {first} is the first: questions about a VM or a time \
                 may have been answered without them; they are found again from now on"
            );
            here(chain, Some(*first), what)
        });
        broken.chain(cut_off).chain(lacked).collect()
    }
}

/// A finding about a chain that the controller keeps.
fn here(chain: &str, seq: Option<u64>, what: String) -> AuditBreakView {
    AuditBreakView {
        chain: chain.to_owned(),
        kept_by: CONTROLLER.to_owned(),
        seq,
        what,
    }
}
