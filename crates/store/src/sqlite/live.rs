//! Hands changes on to the watches that they concern.
//!
//! Each watch has a queue of its own, which holds only what lies under its prefix. A change that nobody watches goes nowhere,
//! and wakes nobody. A watch that is too slow loses its queue, and goes back to reading the file.

use crate::{Change, Event};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Changes a slow watch may fall behind before it goes back to reading the file.
const QUEUE: usize = 256;

/// All watches of a store.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<Watches>);

#[derive(Debug, Default)]
struct Watches {
    next: u64,
    by_prefix: HashMap<String, BTreeMap<u64, mpsc::Sender<Change>>>,
    /// How many prefixes have which length: only so many beginnings of a key are looked up.
    lengths: BTreeMap<usize, usize>,
    closed: bool,
}

/// One watch's queue. Dropping it ends the watch.
#[derive(Debug)]
pub(super) struct Queue {
    live: Arc<Live>,
    prefix: String,
    number: u64,
    changes: mpsc::Receiver<Change>,
}

/// Why a queue has nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its watch was too slow.
    Lagged,
    /// The store is closed.
    Closed,
}

impl Live {
    /// Begins to hold changes under `prefix` for a watch.
    pub(super) fn watch(self: &Arc<Self>, prefix: &str) -> Queue {
        let (sender, changes) = mpsc::channel(QUEUE);
        let mut watches = self.lock();
        let number = watches.next;
        watches.next += 1;
        if !watches.closed {
            watches.add(prefix, number, sender);
        }
        Queue {
            live: Arc::clone(self),
            prefix: prefix.to_owned(),
            number,
            changes,
        }
    }

    /// Hands on what is on disk now.
    pub(super) fn publish(&self, changes: Vec<Change>) {
        let mut watches = self.lock();
        for change in changes {
            watches.publish(&change);
        }
    }

    /// There are no more changes.
    pub(super) fn close(&self) {
        let mut watches = self.lock();
        watches.closed = true;
        watches.by_prefix.clear();
        watches.lengths.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Watches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watches {
    fn add(&mut self, prefix: &str, number: u64, sender: mpsc::Sender<Change>) {
        let same = self.by_prefix.entry(prefix.to_owned()).or_default();
        if same.is_empty() {
            *self.lengths.entry(prefix.len()).or_default() += 1;
        }
        same.insert(number, sender);
    }

    fn remove(&mut self, prefix: &str, number: u64) {
        let Some(same) = self.by_prefix.get_mut(prefix) else {
            return;
        };
        same.remove(&number);
        if !same.is_empty() {
            return;
        }
        self.by_prefix.remove(prefix);
        if let Some(count) = self.lengths.get_mut(&prefix.len()) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
    }

    fn publish(&mut self, change: &Change) {
        let mut concerned: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
        for event in &change.events {
            let key = event.key();
            let beginnings = self.lengths.keys().filter_map(|length| key.get(..*length));
            for prefix in beginnings.filter(|prefix| self.by_prefix.contains_key(*prefix)) {
                concerned.entry(prefix).or_default().push(event);
            }
        }
        let mut slow = Vec::new();
        for (prefix, events) in concerned {
            let change = Change {
                revision: change.revision,
                events: events.into_iter().cloned().collect(),
            };
            for (number, queue) in &self.by_prefix[prefix] {
                if queue.try_send(change.clone()).is_err() {
                    slow.push((prefix, *number));
                }
            }
        }
        for (prefix, number) in slow {
            self.remove(prefix, number);
        }
    }
}

impl Queue {
    /// The next change, once it is there.
    pub(super) async fn next(&mut self) -> Result<Change, Ended> {
        match self.changes.recv().await {
            Some(change) => Ok(change),
            None => Err(self.ended()),
        }
    }

    fn ended(&self) -> Ended {
        match self.live.lock().closed {
            true => Ended::Closed,
            false => Ended::Lagged,
        }
    }

    /// Begins anew, with nothing held.
    pub(super) fn restart(&mut self) {
        let fresh = self.live.watch(&self.prefix);
        *self = fresh;
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.live.lock().remove(&self.prefix, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Entry, Revision};

    fn put(revision: u64, keys: &[&str]) -> Change {
        let revision = Revision(revision);
        let events = keys.iter().map(|key| {
            Event::Put(Entry {
                key: (*key).to_owned(),
                value: "x".into(),
                create_revision: revision,
                mod_revision: revision,
                version: 1,
                lease: None,
            })
        });
        Change {
            revision,
            events: events.collect(),
        }
    }

    fn keys(change: &Change) -> Vec<&str> {
        change.events.iter().map(Event::key).collect()
    }

    #[tokio::test]
    async fn a_watch_gets_what_lies_under_its_prefix() {
        let live = Arc::new(Live::default());
        let (mut one, mut all) = (live.watch("jobs/1"), live.watch(""));
        let mut jobs = live.watch("jobs/");
        live.publish(vec![
            put(1, &["jobs/1", "jobs/12", "jobs/2", "vm/1"]),
            put(2, &["日本/x"]),
            put(3, &["jobs/1"]),
        ]);
        assert_eq!(keys(&one.next().await.expect("one")), ["jobs/1", "jobs/12"]);
        assert_eq!(keys(&one.next().await.expect("two")), ["jobs/1"]);
        assert_eq!(jobs.next().await.expect("one").events.len(), 3);
        assert_eq!(all.next().await.expect("one").events.len(), 4);
        assert_eq!(keys(&all.next().await.expect("two")), ["日本/x"]);
    }

    #[tokio::test]
    async fn a_slow_watch_is_told_that_it_missed_something() {
        let live = Arc::new(Live::default());
        let (mut slow, mut quick) = (live.watch("a/"), live.watch("a/"));
        for revision in 1..=QUEUE as u64 + 1 {
            live.publish(vec![put(revision, &["a/x"])]);
            assert!(quick.next().await.is_ok());
        }
        for _ in 0..QUEUE {
            assert!(slow.next().await.is_ok());
        }
        assert_eq!(slow.next().await, Err(Ended::Lagged));
        slow.restart();
        live.publish(vec![put(9999, &["a/x"])]);
        assert!(slow.next().await.is_ok());
        live.close();
        assert_eq!(slow.next().await, Err(Ended::Closed));
        assert_eq!(live.watch("a/").next().await, Err(Ended::Closed));
    }

    #[tokio::test]
    async fn nothing_is_kept_of_watches_that_ended() {
        let live = Arc::new(Live::default());
        let watches: Vec<_> = (0..100).map(|i| live.watch(&format!("w/{i}"))).collect();
        assert_eq!(live.lock().by_prefix.len(), 100);
        drop(watches);
        assert!(live.lock().by_prefix.is_empty() && live.lock().lengths.is_empty());
    }
}
