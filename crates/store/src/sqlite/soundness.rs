//! Whether the file is whole: SQLite's check of every page, which takes seconds for a large file.
//!
//! ```text
//!   unknown ──a thread reads the file──► sound ──► changes go into the file, as SQLite does by itself
//!      │                                 └ unsound ──► every write is refused; what can be read is still read
//!      └ changes go only to the log beside the file
//! ```
//!
//! Nobody waits for it, and nothing is written on a damaged file: until the file is known to be sound, SQLite's checkpoints
//! are off. A file that another layout is to be made of is checked before that.

use super::{schema, sqlite_failed};
use crate::StoreError;
use rusqlite::Connection;
use std::path::Path;
use std::thread::JoinHandle;
use tokio::sync::watch;

/// Pages in the log beside the file at which SQLite brings them into the file: its default.
const PAGES: i64 = 1000;

#[derive(Debug, Clone)]
enum Verdict {
    Unknown,
    Sound,
    Unsound(StoreError),
}

/// What is known of the file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Soundness(watch::Receiver<Verdict>);

impl Soundness {
    /// Waits until the whole file has been read.
    ///
    /// # Errors
    /// It is damaged, or cannot be read. Nothing was written on it since it was opened, and nothing will be.
    pub async fn known(&mut self) -> Result<(), StoreError> {
        let known = self
            .0
            .wait_for(|verdict| !matches!(verdict, Verdict::Unknown));
        match known.await.as_deref() {
            Ok(Verdict::Unsound(error)) => Err(error.clone()),
            Ok(Verdict::Sound) => Ok(()),
            Ok(Verdict::Unknown) | Err(_) => Err(StoreError::Closed),
        }
    }

    /// Why nothing may be written.
    pub(super) fn refusal(&self) -> Option<StoreError> {
        match &*self.0.borrow() {
            Verdict::Unsound(error) => Some(error.clone()),
            Verdict::Unknown | Verdict::Sound => None,
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        matches!(*self.0.borrow(), Verdict::Sound)
    }
}

/// The check under way, or done.
#[derive(Debug)]
pub(super) struct Check {
    soundness: Soundness,
    thread: Option<JoinHandle<()>>,
}

impl Check {
    /// Of a file that was made or read just now.
    pub(super) fn done() -> Self {
        let (_, verdict) = watch::channel(Verdict::Sound);
        Self {
            soundness: Soundness(verdict),
            thread: None,
        }
    }

    /// Reads the file in a thread of its own. `writer` leaves it alone from now on.
    pub(super) fn begin(path: &Path, writer: &Connection) -> Result<Self, StoreError> {
        let failed = |e| sqlite_failed("open", path, e);
        set_checkpoints(writer, 0).map_err(failed)?;
        let (sender, verdict) = watch::channel(Verdict::Unknown);
        let path = path.to_owned();
        let thread = std::thread::Builder::new().name("store-check".into());
        let thread = thread.spawn({
            let path = path.clone();
            move || {
                let _ = sender.send(judge(&path)); // nobody asks of a store that failed to open
            }
        });
        let thread = thread.map_err(|e| super::io_failed("check", &path, e))?;
        Ok(Self {
            soundness: Soundness(verdict),
            thread: Some(thread),
        })
    }

    pub(super) fn soundness(&self) -> &Soundness {
        &self.soundness
    }

    /// Lets changes go into the file once it is sound. Whether it is.
    pub(super) fn release(&mut self, writer: &Connection) -> rusqlite::Result<bool> {
        if !self.soundness.is_sound() {
            return Ok(false);
        }
        if self.thread.take().is_some() {
            set_checkpoints(writer, PAGES)?;
        }
        Ok(true)
    }

    /// Waits for the check; changes go into a sound file when the last connection is closed.
    pub(super) fn end(&mut self, writer: &Connection) -> rusqlite::Result<()> {
        if let Some(thread) = self.thread.take() {
            // After a panic the file counts as not checked.
            let _ = thread.join();
        }
        schema::allow_checkpoint_on_close(writer, self.soundness.is_sound())
    }
}

/// Reads every page now.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|e| sqlite_failed("check", path, e))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(StoreError::Corrupt {
        path: path.to_owned(),
        detail: verdict,
    })
}

fn judge(path: &Path) -> Verdict {
    let checked = schema::open_reader(path).and_then(|connection| check(&connection, path));
    match checked {
        Ok(()) => Verdict::Sound,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the store is not sound: nothing more is written");
            Verdict::Unsound(error)
        }
    }
}

fn set_checkpoints(writer: &Connection, pages: i64) -> rusqlite::Result<()> {
    writer.pragma_update_and_check(None, "wal_autocheckpoint", pages, |_| Ok(()))
}
