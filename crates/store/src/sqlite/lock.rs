//! One process per database: a lock on a file beside it, which names the holder.
//!
//! The kernel releases the lock when the process ends, so a file that a crash left behind does not block a start.

use super::io_failed;
use crate::StoreError;
use fleetward_durable::{self as durable, Lock};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Takes the lock beside `database`, or tells who has it.
pub(super) fn take(database: &Path) -> Result<Lock, StoreError> {
    let path = beside(database);
    let mut lock = match durable::try_lock(&path).map_err(|e| io_failed("lock", database, e))? {
        Ok(lock) => lock,
        Err(mut file) => {
            let mut text = String::new();
            let holder = file
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok());
            return Err(StoreError::InUse {
                path: database.to_owned(),
                holder,
            });
        }
    };
    // the name only helps a person who finds the lock; a full disk must not prevent opening the store
    if let Err(error) = lock
        .set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
    {
        tracing::warn!(path = %path.display(), %error, "cannot write the lock holder's pid");
    }
    Ok(lock)
}

fn beside(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}
