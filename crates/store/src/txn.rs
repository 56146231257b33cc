//! A transaction: conditions, the changes that are made if all conditions hold, and the result.
//!
//! Size limits are checked here, before a transaction is sent.

use crate::{Entry, LeaseId, Revision, StoreError};
use bytes::Bytes;
use std::collections::BTreeSet;

/// The longest key, in bytes.
pub const MAX_KEY: usize = 1024;
/// The largest value, in bytes.
pub const MAX_VALUE: usize = 1024 * 1024;
/// The most comparisons, and the most changes, of one transaction.
pub const MAX_OPERATIONS: usize = 128;

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    Absent { key: String },
    Present { key: String },
    Unchanged { key: String, mod_revision: Revision },
}

impl Compare {
    pub fn key(&self) -> &str {
        match self {
            Self::Absent { key } | Self::Present { key } | Self::Unchanged { key, .. } => key,
        }
    }

    /// Whether the condition holds for what is (or is not) under its key.
    pub fn holds(&self, current: Option<&Entry>) -> bool {
        match self {
            Self::Absent { .. } => current.is_none(),
            Self::Present { .. } => current.is_some(),
            Self::Unchanged { mod_revision, .. } => {
                current.is_some_and(|entry| entry.mod_revision == *mod_revision)
            }
        }
    }
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put {
        key: String,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    Delete {
        key: String,
    },
}

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Comparisons and changes that happen together.
///
/// ```
/// # use fleetward_store::{Revision, Txn};
/// Txn::new()
///     .if_absent("vm-name/web")
///     .if_unchanged("vm/1", Revision(7))
///     .put("vm-name/web", "1")
///     .delete("vm-name/old");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub(crate) compares: Vec<Compare>,
    pub(crate) ops: Vec<Op>,
}

impl Txn {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    pub fn if_absent(self, key: impl Into<String>) -> Self {
        self.when(Compare::Absent { key: key.into() })
    }

    pub fn if_present(self, key: impl Into<String>) -> Self {
        self.when(Compare::Present { key: key.into() })
    }

    pub fn if_unchanged(self, key: impl Into<String>, mod_revision: Revision) -> Self {
        self.when(Compare::Unchanged {
            key: key.into(),
            mod_revision,
        })
    }

    pub fn then(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.then(Op::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        })
    }

    /// The entry disappears with `lease`.
    pub fn put_leased(
        self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Self {
        self.then(Op::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        })
    }

    /// Deleting what is not there is no error.
    pub fn delete(self, key: impl Into<String>) -> Self {
        self.then(Op::Delete { key: key.into() })
    }

    /// Whether every store would take this; implementations call it first.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.compares.len().max(self.ops.len()) > MAX_OPERATIONS {
            return Err(StoreError::TooManyOperations);
        }
        let mut changed = BTreeSet::new();
        for op in &self.ops {
            check_key(op.key())?;
            if !changed.insert(op.key()) {
                return Err(StoreError::ChangedTwice {
                    key: op.key().to_owned(),
                });
            }
            if let Op::Put { key, value, .. } = op
                && value.len() > MAX_VALUE
            {
                return Err(StoreError::ValueTooLarge {
                    key: key.clone(),
                    size: value.len(),
                });
            }
        }
        self.compares
            .iter()
            .try_for_each(|compare| check_key(compare.key()))
    }
}

/// What came of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a conflict changed nothing"]
pub enum Outcome {
    /// All changes are durable under this revision.
    Committed { revision: Revision },
    /// A comparison did not hold: the first such key, and what is there.
    Conflict { key: String, current: Option<Entry> },
}

impl Outcome {
    /// The revision, if it was committed.
    pub fn committed(&self) -> Option<Revision> {
        match self {
            Self::Committed { revision } => Some(*revision),
            Self::Conflict { .. } => None,
        }
    }
}

/// A key is non-empty segments of printable text between single slashes.
pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    let well_formed = key.len() <= MAX_KEY
        && key.split('/').all(|segment| !segment.is_empty())
        && !key.chars().any(char::is_control);
    if well_formed {
        Ok(())
    } else {
        Err(StoreError::BadKey {
            key: key.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_printable_segments() {
        for good in ["a", "vm/1", "name/日本", "a b/c"] {
            assert!(check_key(good).is_ok(), "{good}");
        }
        let long = "x".repeat(MAX_KEY + 1);
        for bad in ["", "/", "/a", "a/", "a//b", "a\0", "a\n", &long] {
            assert!(
                matches!(check_key(bad), Err(StoreError::BadKey { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_key_is_changed_once_at_most() {
        let twice = Txn::new().put("a", "1").delete("a");
        assert!(matches!(
            twice.check(),
            Err(StoreError::ChangedTwice { .. })
        ));
    }

    #[test]
    fn size_limits_hold() {
        let large = Txn::new().put("a", vec![0; MAX_VALUE + 1]);
        assert!(matches!(
            large.check(),
            Err(StoreError::ValueTooLarge { .. })
        ));
        let many = (0..=MAX_OPERATIONS).fold(Txn::new(), |txn, i| txn.delete(format!("k/{i}")));
        assert!(matches!(many.check(), Err(StoreError::TooManyOperations)));
    }
}
