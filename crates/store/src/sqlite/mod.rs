//! The store in one SQLite file, for one process.
//!
//! ```text
//!   commit, lease_* ──queue──► writer thread ──one SQLite transaction per batch──► file (WAL, fsync)
//!                                   └──after the fsync: what is watched──► watches, then the replies
//!   get, list, catching-up watches ──► reader connections, each read in one snapshot
//! ```
//!
//! Requests in one batch share one fsync, but each has its own revision and its own result. Leases exist only in the
//! writer's memory. Only a client in the same process can keep a lease alive, so opening the file ends all leases that
//! it contains.

mod convert;
mod live;
mod lock;
mod query;
mod reader;
mod schema;
mod soundness;
mod watch;
mod writer;

use crate::txn::check_key;
use crate::{Entry, LeaseId, Outcome, Page, Range, Revision, Store, StoreError, Txn, Watch};
use async_trait::async_trait;
use live::Live;
use reader::Readers;
pub use soundness::Soundness;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use writer::{Request, Work, Writer};

/// How to open the store.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Revisions of history to keep for watches and for lists of the past.
    pub history: u64,
    /// Prefixes of keys of which only the latest value is kept. Lists of the past and watches from the past are refused there
    /// with [`StoreError::Compacted`], as if history had been compacted up to the latest change.
    pub without_history: &'static [&'static str],
    /// The largest size of the database file in bytes; writes beyond it fail as on a full disk.
    pub size_limit: Option<u64>,
    /// Converts the values of a file of an earlier layout, once, when it is opened.
    pub convert: Option<Convert>,
}

/// Gives the value under a key as the present layout has it; none where it stays as it is.
pub type Convert = fn(key: &str, value: &[u8]) -> Option<Vec<u8>>;

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            history: 10_000,
            without_history: &[],
            size_limit: None,
            convert: None,
        }
    }
}

/// A [`Store`] in one SQLite file. Dropping it finishes the writes under way and lets the file go.
pub struct SqliteStore {
    path: PathBuf,
    requests: Option<mpsc::Sender<Request>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    readers: Arc<Readers>,
    live: Arc<Live>,
    soundness: Soundness,
    held: tokio::sync::watch::Receiver<()>,
}

/// Tells when a store that was dropped has let its file go, so that another may open it.
#[derive(Debug)]
pub struct LetGo(tokio::sync::watch::Receiver<()>);

impl LetGo {
    /// Waits until the last write is done and the file's lock is given back.
    pub async fn done(mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

impl SqliteStore {
    /// Opens the store at `path`, making it (mode 0600) if it is not there.
    ///
    /// Fails with [`StoreError::InUse`], [`StoreError::Corrupt`], [`StoreError::TooNew`],
    /// [`StoreError::DiskFull`] or [`StoreError::Failed`]; nothing is changed then. Damage that does not show at once is
    /// found later: see [`soundness`](Self::soundness).
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path, SqliteOptions::default()).await
    }

    /// As [`open`](Self::open), with options.
    pub async fn open_with(
        path: impl AsRef<Path>,
        options: SqliteOptions,
    ) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        tokio::task::spawn_blocking(move || Self::open_blocking(path, options))
            .await
            .map_err(|_| StoreError::Closed)?
    }

    fn open_blocking(path: PathBuf, options: SqliteOptions) -> Result<Self, StoreError> {
        let lock = lock::take(&path)?;
        let (connection, check) = schema::open(&path, &options)?;
        let (live, soundness) = (Arc::new(Live::default()), check.soundness().clone());
        let (requests, queue) = mpsc::channel();
        let (holds, held) = tokio::sync::watch::channel(());
        let writer = Writer::new(&path, connection, check, live.clone(), &options)?;
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                writer.run(&queue);
                drop(lock);
                drop(holds);
            })
            .map_err(|e| StoreError::Failed {
                attempt: "start the writer of",
                path: path.clone(),
                source: Arc::new(e),
            })?;
        Ok(Self {
            readers: Arc::new(Readers::new(path.clone(), soundness.clone())),
            path,
            requests: Some(requests),
            writer: Mutex::new(Some(thread)),
            live,
            soundness,
            held,
        })
    }

    /// Tells, after this store was dropped, when its file is free.
    pub fn let_go(&self) -> LetGo {
        LetGo(self.held.clone())
    }

    /// What is known of the file: all of it is read after the store was opened.
    pub fn soundness(&self) -> Soundness {
        self.soundness.clone()
    }

    /// Hands a request to the writer and waits for its reply.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests
            .send(request(reply))
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        let key = key.to_owned();
        self.readers
            .read("read", move |connection| query::entry(connection, &key))
            .await
    }

    async fn list(&self, range: Range) -> Result<Page, StoreError> {
        self.readers.list(range).await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.check()?;
        self.ask(|reply| Request::Write {
            work: Work::Commit(txn),
            reply,
        })
        .await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        // begun before the first read of the file, so that nothing can fall in between
        let live = self.live.watch(prefix);
        Ok(watch::follow(
            prefix.to_owned(),
            from,
            live,
            Arc::clone(&self.readers),
        ))
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.readers.read("read", query::revision).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(|reply| Request::Grant { ttl, reply }).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Request::KeepAlive { lease, reply }).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Request::Revoke { lease, reply }).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask(|reply| Request::Write {
            work: Work::Compact(revision),
            reply,
        })
        .await
        .map(drop)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.requests = None;
        let writer = self
            .writer
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if writer.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(path = %self.path.display(), "the store's writer panicked");
        }
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Names what SQLite reports in the store's terms.
fn sqlite_failed(attempt: &'static str, path: &Path, error: rusqlite::Error) -> StoreError {
    use rusqlite::ffi::{self, ErrorCode};
    let path = path.to_owned();
    match error.sqlite_error() {
        Some(e)
            if e.code == ErrorCode::DiskFull || e.extended_code == ffi::SQLITE_IOERR_SHMSIZE =>
        {
            StoreError::DiskFull { path }
        }
        Some(e) if matches!(e.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt {
                path,
                detail: error.to_string(),
            }
        }
        _ => StoreError::Failed {
            attempt,
            path,
            source: Arc::new(error),
        },
    }
}

fn io_failed(attempt: &'static str, path: &Path, error: std::io::Error) -> StoreError {
    let path = path.to_owned();
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            StoreError::DiskFull { path }
        }
        _ => StoreError::Failed {
            attempt,
            path,
            source: Arc::new(error),
        },
    }
}
