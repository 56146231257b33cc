//! Read connections beside the writer's; each read uses one snapshot.

use super::soundness::Soundness;
use super::{query, schema, sqlite_failed};
use crate::{Change, Page, Range, Revision, StoreError};
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Idle connections kept for the next reader.
const IDLE: usize = 4;

#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    soundness: Soundness,
    idle: Mutex<Vec<Connection>>,
}

/// Changes found in the file, and the revision to go on from.
pub(super) struct Caught {
    pub(super) changes: Vec<Change>,
    pub(super) next: Revision,
    /// Whether everything written so far has been seen.
    pub(super) complete: bool,
}

impl Readers {
    pub(super) fn new(path: PathBuf, soundness: Soundness) -> Self {
        Self {
            path,
            soundness,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Runs `read` in one snapshot, off the async threads.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        attempt: &'static str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = Arc::clone(self);
        tokio::task::spawn_blocking(move || readers.read_blocking(attempt, read))
            .await
            .map_err(|_| StoreError::Closed)?
    }

    fn read_blocking<T>(
        &self,
        attempt: &'static str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => schema::open_reader(&self.path)?,
        };
        let snapshot = connection.unchecked_transaction();
        let found = snapshot
            .and_then(|snapshot| read(&snapshot))
            .map_err(|e| sqlite_failed(attempt, &self.path, e))?;
        let mut idle = self.idle();
        if idle.len() < IDLE {
            idle.push(connection);
        }
        Ok(found)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn list(self: &Arc<Self>, range: Range) -> Result<Page, StoreError> {
        self.read("read", move |connection| {
            let current = query::revision(connection)?;
            let at = range.at.unwrap_or(current);
            let compacted = match at < current {
                true => query::compacted_under(connection, &range.prefix)?,
                false => Revision::ZERO,
            };
            if at > current {
                return Ok(Err(StoreError::FutureRevision { asked: at, current }));
            }
            if at < compacted {
                return Ok(Err(StoreError::Compacted {
                    asked: at,
                    compacted,
                }));
            }
            // one more than asked for tells whether there is more
            let limit = range
                .limit
                .map_or(i64::MAX as usize, |limit| limit.saturating_add(1));
            let mut entries = if at == current {
                query::entries(connection, &range, limit)?
            } else {
                query::entries_at(connection, &range, limit, at)?
            };
            let more = range.limit.is_some_and(|limit| entries.len() > limit);
            if more {
                entries.pop();
            }
            Ok(Ok(Page {
                entries,
                revision: at,
                more,
            }))
        })
        .await?
    }

    /// Some of the changes under `prefix` from revision `from` on.
    pub(super) async fn changes(
        self: &Arc<Self>,
        prefix: String,
        from: Revision,
    ) -> Result<Caught, StoreError> {
        /// More than one transaction can hold, so that at least one revision is whole.
        const EVENTS: usize = 1000;
        self.read("read the history of", move |connection| {
            let current = query::revision(connection)?;
            let compacted = query::compacted_under(connection, &prefix)?;
            if from <= compacted && from <= current && current > Revision::ZERO {
                return Ok(Err(StoreError::Compacted {
                    asked: from,
                    compacted,
                }));
            }
            let mut events = query::events(connection, &prefix, from, EVENTS)?;
            let complete = events.len() < EVENTS;
            let mut next = from.max(current.next());
            if !complete && let Some((cut, _)) = events.last() {
                // the last revision may be cut in two: leave it for the next time
                next = *cut;
                events.retain(|(revision, _)| *revision < next);
            }
            let mut changes: Vec<Change> = Vec::new();
            for (revision, event) in events {
                match changes.last_mut() {
                    Some(change) if change.revision == revision => change.events.push(event),
                    _ => changes.push(Change {
                        revision,
                        events: vec![event],
                    }),
                }
            }
            Ok(Ok(Caught {
                changes,
                next,
                complete,
            }))
        })
        .await?
    }
}

impl Drop for Readers {
    /// A watch may hold these for longer than the writer lives: the last connection brings changes into the file.
    fn drop(&mut self) {
        let idle = self.idle.get_mut().unwrap_or_else(PoisonError::into_inner);
        for connection in idle.iter().filter(|_| self.soundness.is_sound()) {
            if let Err(error) = schema::allow_checkpoint_on_close(connection, true) {
                tracing::debug!(%error, "changes stay in the log beside the store");
            }
        }
    }
}
