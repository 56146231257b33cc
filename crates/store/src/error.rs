//! Errors of the store. The kind says who must act: the caller, or the administrator of the machine.

use crate::txn::{MAX_KEY, MAX_OPERATIONS, MAX_VALUE};
use crate::{LeaseId, Revision};
use std::path::PathBuf;
use std::sync::Arc;

/// What lies under an error; shared, because one failed write can fail many callers.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why the store refused or failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    // for the caller to mend
    #[error("the key {key:?} is not 1 to {MAX_KEY} bytes of printable segments between slashes")]
    BadKey { key: String },
    #[error("the value for {key} has {size} bytes, more than {MAX_VALUE}")]
    ValueTooLarge { key: String, size: usize },
    #[error("more than {MAX_OPERATIONS} operations in one transaction")]
    TooManyOperations,
    #[error("the transaction changes {key} twice")]
    ChangedTwice { key: String },
    #[error("revision {asked} lies ahead of the store's {current}")]
    FutureRevision { asked: Revision, current: Revision },
    /// List again and watch from there.
    #[error("history up to revision {compacted} is gone, {asked} was asked for")]
    Compacted {
        asked: Revision,
        compacted: Revision,
    },
    #[error("the lease {lease} has run out")]
    LeaseGone { lease: LeaseId },
    #[error("cannot write the value for {key} as JSON")]
    Encode {
        key: String,
        #[source]
        source: Cause,
    },
    #[error("what lies under {key} is not what this program expects")]
    Decode {
        key: String,
        #[source]
        source: Cause,
    },

    // for the administrator of the machine
    #[error("the store {} is in use by another process{}", path.display(), of_process(*holder))]
    InUse { path: PathBuf, holder: Option<u32> },
    #[error("no space left to write the store {}", path.display())]
    DiskFull { path: PathBuf },
    #[error("the store {} is damaged, or is no store: {detail}", path.display())]
    Corrupt { path: PathBuf, detail: String },
    #[error("the store {} was written by a newer version of this program (layout {found}, this one knows {known})", path.display())]
    TooNew {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error("cannot {attempt} the store {}", path.display())]
    Failed {
        attempt: &'static str,
        path: PathBuf,
        #[source]
        source: Cause,
    },
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the same call can succeed later without anybody changing it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::DiskFull { .. } | Self::Failed { .. } => true,
            Self::BadKey { .. }
            | Self::ValueTooLarge { .. }
            | Self::TooManyOperations
            | Self::ChangedTwice { .. }
            | Self::FutureRevision { .. }
            | Self::Compacted { .. }
            | Self::LeaseGone { .. }
            | Self::Encode { .. }
            | Self::Decode { .. }
            | Self::InUse { .. }
            | Self::Corrupt { .. }
            | Self::TooNew { .. }
            | Self::Closed => false,
        }
    }
}

fn of_process(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}
