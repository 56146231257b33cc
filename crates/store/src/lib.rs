//! A revisioned key-value store with compare-and-swap, watch and leases, and its SQLite implementation.
//!
//! The interface follows etcd, so that an etcd cluster can replace the file without a change in the callers. One
//! counter (the [`Revision`]) orders all writes. An entry has the revisions that created and last changed it. A
//! [`Txn`] applies all its changes under one revision, or none. A watch replays from any revision that is still stored
//! and then follows. The limits are etcd's defaults.
//!
//! This crate does not know the meaning of the values. Keys are `/`-separated text, values are bytes; [`StoreExt`]
//! adds JSON.
//!
//! ```no_run
//! # async fn example() -> Result<(), fleetward_store::StoreError> {
//! use fleetward_store::{Guard, SqliteStore, Store, StoreExt};
//! use std::sync::Arc;
//!
//! let store: Arc<dyn Store> = Arc::new(SqliteStore::open("/var/lib/fleetward-controller/store.db").await?);
//! store.put_json("host/a", &"first", Guard::Absent).await?;
//! if let Some(found) = store.get_json::<String>("host/a").await? {
//!     store.put_json("host/a", &"second", Guard::Unchanged(found.revision)).await?;
//! }
//! # Ok(()) }
//! ```

pub mod conformance;
mod error;
mod sqlite;
mod txn;
mod typed;
mod value;

pub use error::{Cause, StoreError};
pub use sqlite::{Convert, LetGo, Soundness, SqliteOptions, SqliteStore};
pub use txn::{Compare, MAX_KEY, MAX_OPERATIONS, MAX_VALUE, Op, Outcome, Txn};
pub use typed::{Guard, StoreExt, Versioned};
pub use value::{Change, Entry, Event, LeaseId, Page, Range, Revision};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use std::time::Duration;

/// What a watch yields: whole revisions in order, without gaps, until the first error.
pub type Watch = BoxStream<'static, Result<Change, StoreError>>;

/// The store as its callers see it; share it as `Arc<dyn Store>`.
///
/// Every method may be repeated. A write that returned an error other than a refusal may or may not
/// have happened; compare-and-swap tells on the next attempt.
#[async_trait]
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// The entry under `key`, if there is one.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// One page of the entries under a prefix, in key order or against it, as they were at one revision.
    ///
    /// Fails with [`StoreError::Compacted`] when the revision asked for is no longer held.
    async fn list(&self, range: Range) -> Result<Page, StoreError>;

    /// Applies all changes of `txn` under one new revision if every comparison holds, else none.
    ///
    /// Durable when it returns. A transaction that changes nothing takes no revision.
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Follows all changes under `prefix` (as text; end it with `/` to mean a folder) from revision
    /// `from` on, that one included.
    ///
    /// `from` may lie in the past; the stream fails with [`StoreError::Compacted`] when history is
    /// gone, and the caller lists again. List, then watch from `page.revision.next()`, misses nothing.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// The revision of the latest write; [`Revision::ZERO`] in a new store.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Starts a lease: entries put under it are deleted when it is not kept alive for `ttl`.
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Starts the lease's time anew. Fails with [`StoreError::LeaseGone`] once it has run out.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends the lease now and deletes its entries. Ending one that is gone is no error.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Forgets history up to and including `revision`; current entries stay.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
}
