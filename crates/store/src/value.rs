//! Types of the store: revisions, leases, entries, events, pages.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A point in the order of all writes of one store.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first write.
    pub const ZERO: Self = Self(0);

    /// The revision after this one: where a watch goes on after a list.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease, to which entries can be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A key with its value and history marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// The write that made the key (after its last deletion, if any).
    pub create_revision: Revision,
    /// The latest write of the key: what compare-and-swap compares.
    pub mod_revision: Revision,
    /// How many writes since it was made, itself included: 1 for a fresh key.
    pub version: u64,
    pub lease: Option<LeaseId>,
}

/// One key's part in a [`Change`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put(Entry),
    Delete { key: String },
}

impl Event {
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key } => key,
        }
    }
}

/// All that one revision changed under a watched prefix, in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub events: Vec<Event>,
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct Range {
    pub(crate) prefix: String,
    pub(crate) after: Option<String>,
    pub(crate) at: Option<Revision>,
    pub(crate) limit: Option<usize>,
    pub(crate) descending: bool,
}

impl Range {
    /// Everything whose key starts with `prefix`, as it is now.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            ..Self::default()
        }
    }

    /// At most `limit` entries; the page says where the next begins.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// As it was at `revision`.
    pub fn at(mut self, revision: Revision) -> Self {
        self.at = Some(revision);
        self
    }

    /// The last key first.
    pub fn descending(mut self) -> Self {
        self.descending = true;
        self
    }

    /// Only keys that come after `key` in the order of the list.
    pub fn after(mut self, key: impl Into<String>) -> Self {
        self.after = Some(key.into());
        self
    }

    /// The page following `page`, at the same revision; `None` when that was the last.
    pub fn following(self, page: &Page) -> Option<Self> {
        let last = page.entries.last().filter(|_| page.more)?;
        Some(self.after(last.key.clone()).at(page.revision))
    }
}

/// Entries in the order that was asked for, all as of `revision`.
#[derive(Debug, Clone)]
pub struct Page {
    pub entries: Vec<Entry>,
    pub revision: Revision,
    /// Whether there are entries behind the last of this page.
    pub more: bool,
}
