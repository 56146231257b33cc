//! The writer thread: batches, revisions, leases, compaction.
//!
//! A batch is one SQLite transaction. Each request runs in its own savepoint, so a refused request has no effect.
//! Replies and watch events are sent only after the batch is on disk. If the batch cannot be written, all its requests
//! fail and the thread continues.

use super::live::Live;
use super::query::{self, Former};
use super::soundness::Check;
use super::{SqliteOptions, sqlite_failed};
use crate::{Change, Event, LeaseId, Op, Outcome, Revision, StoreError, Txn};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Request {
    Write {
        work: Work,
        reply: Reply<Outcome>,
    },
    Grant {
        ttl: Duration,
        reply: Reply<LeaseId>,
    },
    KeepAlive {
        lease: LeaseId,
        reply: Reply<()>,
    },
    Revoke {
        lease: LeaseId,
        reply: Reply<()>,
    },
}

/// What needs the disk.
pub(super) enum Work {
    Commit(Txn),
    Compact(Revision),
}

/// Requests that share one fsync.
const BATCH: usize = 64;
/// Wait with nothing to do; also the pause before a failed lease expiry is tried again.
const IDLE: Duration = Duration::from_secs(1);
/// Revisions between two automatic compactions.
const COMPACT_EVERY: u64 = 1000;

pub(super) struct Writer {
    path: PathBuf,
    connection: Connection,
    check: Check,
    live: Arc<Live>,
    leases: BTreeMap<LeaseId, Lease>,
    next_lease: u64,
    history: u64,
    without_history: &'static [&'static str],
}

/// What a batch has put on disk: its changes in order, and a result for each request.
#[derive(Default)]
struct Written {
    changes: Vec<Change>,
    results: Vec<Result<Outcome, StoreError>>,
}

struct Lease {
    ttl: Duration,
    deadline: Instant,
}

impl Writer {
    /// Takes over a freshly opened file: ends the leases left in it.
    pub(super) fn new(
        path: &Path,
        mut connection: Connection,
        check: Check,
        live: Arc<Live>,
        options: &SqliteOptions,
    ) -> Result<Self, StoreError> {
        let without_history = options.without_history;
        let failed = |e| sqlite_failed("open", path, e);
        let transaction = connection.transaction().map_err(failed)?;
        let orphans = query::leased(&transaction, None).map_err(failed)?;
        delete_all(&transaction, orphans, without_history).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        // lease numbers of an earlier process must not come back to life
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let next_lease = since.as_millis() as u64 & 0xffff_ffff_ffff;
        Ok(Self {
            path: path.to_owned(),
            connection,
            check,
            live,
            leases: BTreeMap::new(),
            next_lease: next_lease << 15,
            history: options.history,
            without_history,
        })
    }

    /// Works until all senders of `queue` are gone.
    pub(super) fn run(mut self, queue: &Receiver<Request>) {
        loop {
            let first = match queue.recv_timeout(self.until_expiry()) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let batch = first
                .into_iter()
                .chain(queue.try_iter())
                .take(BATCH)
                .collect();
            self.process(batch);
        }
        if let Err(error) = self.check.end(&self.connection) {
            tracing::warn!(path = %self.path.display(), %error, "changes stay in the log beside the store until the next start");
        }
    }

    fn until_expiry(&self) -> Duration {
        let now = Instant::now();
        let next = self.leases.values().map(|lease| lease.deadline).min();
        next.map_or(IDLE, |at| {
            at.saturating_duration_since(now)
                .clamp(Duration::from_millis(5), IDLE)
        })
    }

    fn process(&mut self, batch: Vec<Request>) {
        let mut revoked = Vec::new();
        let (mut works, mut replies) = (Vec::new(), Vec::new());
        for request in batch {
            match request {
                Request::Grant { ttl, reply } => drop(reply.send(Ok(self.grant(ttl)))),
                Request::KeepAlive { lease, reply } => drop(reply.send(self.keep_alive(lease))),
                Request::Revoke { lease, reply } => {
                    if let Some(lease) = self.leases.get_mut(&lease) {
                        lease.deadline = Instant::now();
                    }
                    revoked.push(reply);
                }
                Request::Write { work, reply } => {
                    works.push(work);
                    replies.push(reply);
                }
            }
        }
        let due = self.due();
        match self.write(&due, works) {
            Ok(Written { changes, results }) => {
                self.leases.retain(|id, _| !due.contains(id));
                self.live.publish(changes);
                for (reply, result) in replies.into_iter().zip(results) {
                    let _ = reply.send(result);
                }
                revoked
                    .into_iter()
                    .for_each(|reply| drop(reply.send(Ok(()))));
            }
            Err(error) => {
                tracing::warn!(%error, "a batch of writes failed");
                self.put_off(&due);
                replies
                    .into_iter()
                    .for_each(|reply| drop(reply.send(Err(error.clone()))));
                revoked
                    .into_iter()
                    .for_each(|reply| drop(reply.send(Err(error.clone()))));
            }
        }
    }

    /// One SQLite transaction for everything.
    fn write(&mut self, due: &[LeaseId], works: Vec<Work>) -> Result<Written, StoreError> {
        if due.is_empty() && works.is_empty() {
            return Ok(Written::default());
        }
        if let Some(error) = self.check.soundness().refusal() {
            return Err(error);
        }
        self.try_write(due, works)
            .map_err(|e| sqlite_failed("write", &self.path, e))
    }

    fn try_write(&mut self, due: &[LeaseId], works: Vec<Work>) -> rusqlite::Result<Written> {
        self.check.release(&self.connection)?;
        let without_history = self.without_history;
        let mut transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut written = Written::default();
        for lease in due {
            let keys = query::leased(&transaction, Some(*lease))?;
            let deleted = delete_all(&transaction, keys, without_history)?;
            written.changes.extend(deleted);
        }
        for work in works {
            written.results.push(match work {
                Work::Commit(txn) => {
                    let done = commit_one(&mut transaction, txn, &self.leases, without_history)?;
                    done.map(|(outcome, change)| {
                        written.changes.extend(change);
                        outcome
                    })
                }
                Work::Compact(revision) => compact_one(&transaction, revision)?,
            });
        }
        let compacted = query::compacted(&transaction)?;
        let oldest = query::revision(&transaction)?
            .0
            .saturating_sub(self.history);
        if oldest >= compacted.0 + COMPACT_EVERY {
            query::compact(&transaction, Revision(oldest))?;
        }
        transaction.commit()?;
        Ok(written)
    }

    /// These leases are over, but their entries could not be deleted: try again a little later.
    fn put_off(&mut self, due: &[LeaseId]) {
        for id in due {
            if let Some(lease) = self.leases.get_mut(id) {
                *lease = Lease {
                    ttl: Duration::ZERO,
                    deadline: Instant::now() + IDLE,
                };
            }
        }
    }

    fn grant(&mut self, ttl: Duration) -> LeaseId {
        let lease = LeaseId(self.next_lease);
        self.next_lease += 1;
        self.leases.insert(
            lease,
            Lease {
                ttl,
                deadline: Instant::now() + ttl,
            },
        );
        lease
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        let now = Instant::now();
        match self.leases.get_mut(&lease) {
            Some(held) if held.is_alive(now) => {
                held.deadline = now + held.ttl;
                Ok(())
            }
            _ => Err(StoreError::LeaseGone { lease }),
        }
    }

    fn due(&self) -> Vec<LeaseId> {
        let now = Instant::now();
        let over = |(id, lease): (&LeaseId, &Lease)| (lease.deadline <= now).then_some(*id);
        self.leases.iter().filter_map(over).collect()
    }
}

impl Lease {
    /// A lease whose entries could not be deleted in time stays over: its time was set to zero.
    fn is_alive(&self, now: Instant) -> bool {
        self.deadline > now && !self.ttl.is_zero()
    }
}

/// SQLite's own failure outside, the caller's outcome or refusal inside.
type Tried<T> = rusqlite::Result<Result<T, StoreError>>;

fn commit_one(
    transaction: &mut Transaction<'_>,
    txn: Txn,
    leases: &BTreeMap<LeaseId, Lease>,
    without_history: &[&str],
) -> Tried<(Outcome, Option<Change>)> {
    let now = Instant::now();
    for op in &txn.ops {
        if let Op::Put {
            lease: Some(lease), ..
        } = op
            && !leases.get(lease).is_some_and(|held| held.is_alive(now))
        {
            return Ok(Err(StoreError::LeaseGone { lease: *lease }));
        }
    }
    for compare in txn.compares {
        let current = query::entry(transaction, compare.key())?;
        if !compare.holds(current.as_ref()) {
            let conflict = Outcome::Conflict {
                key: compare.key().to_owned(),
                current,
            };
            return Ok(Ok((conflict, None)));
        }
    }
    let savepoint = transaction.savepoint()?;
    let (revision, change) = apply_all(&savepoint, txn.ops, without_history)?;
    savepoint.commit()?;
    Ok(Ok((Outcome::Committed { revision }, change)))
}

fn compact_one(transaction: &Transaction<'_>, revision: Revision) -> Tried<Outcome> {
    let current = query::revision(transaction)?;
    if revision > current {
        return Ok(Err(StoreError::FutureRevision {
            asked: revision,
            current,
        }));
    }
    if revision > query::compacted(transaction)? {
        query::compact(transaction, revision)?;
    }
    Ok(Ok(Outcome::Committed { revision: current }))
}

/// Applies `ops` under the next revision, or under none if they change nothing.
fn apply_all(
    connection: &Connection,
    ops: Vec<Op>,
    without_history: &[&str],
) -> rusqlite::Result<(Revision, Option<Change>)> {
    let current = query::revision(connection)?;
    let revision = current.next();
    let mut events: Vec<Event> = Vec::new();
    let mut forgetful = BTreeSet::new();
    for op in ops {
        let mut prefixes = without_history.iter();
        let prefix = prefixes.find(|prefix| op.key().starts_with(**prefix));
        let former = match prefix {
            Some(_) => Former::Forgotten,
            None => Former::Kept,
        };
        if let Some(event) = query::apply(connection, op, revision, former)? {
            events.push(event);
            forgetful.extend(prefix);
        }
    }
    if events.is_empty() {
        return Ok((current, None));
    }
    for prefix in forgetful {
        query::set_forgotten(connection, prefix, revision)?;
    }
    events.sort_by(|a, b| a.key().cmp(b.key()));
    query::set_revision(connection, revision)?;
    Ok((revision, Some(Change { revision, events })))
}

fn delete_all(
    connection: &Connection,
    keys: Vec<String>,
    without_history: &[&str],
) -> rusqlite::Result<Option<Change>> {
    let ops = keys.into_iter().map(|key| Op::Delete { key }).collect();
    apply_all(connection, ops, without_history).map(|(_, change)| change)
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.live.close();
    }
}
