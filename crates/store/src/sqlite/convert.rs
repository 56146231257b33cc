//! Converts the values of a file of an earlier layout, and removes the bytes of the former ones from the file.
//!
//! ```text
//!   all values of all versions converted, mark set, layout raised   one transaction
//!   file rebuilt without free pages, write-ahead log emptied         repeated at the next start after a crash
//!   mark removed
//! ```

use super::Convert;
use rusqlite::{Connection, OptionalExtension, Result, Transaction, params};

/// Rows read at once, so that a large store needs little memory.
const ROWS: usize = 500;

/// The counter that exists while free pages and the write-ahead log may hold bytes of former values.
const MARK: &str = "unswept";

/// Converts the value of every version of every key.
pub(super) fn all(step: &Transaction<'_>, convert: Convert) -> Result<()> {
    let mut read = step.prepare(
        "SELECT rowid, key, value FROM version WHERE rowid > ?1 AND value IS NOT NULL ORDER BY rowid LIMIT ?2",
    )?;
    let mut write = step.prepare("UPDATE version SET value = ?2 WHERE rowid = ?1")?;
    let mut after = i64::MIN;
    loop {
        let rows = read.query_map(params![after, ROWS as i64], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
        let rows: Vec<(i64, String, Vec<u8>)> = rows.collect::<Result<_>>()?;
        let Some((last, _, _)) = rows.last() else {
            break;
        };
        after = *last;
        for (row, key, value) in rows {
            if let Some(converted) = convert(&key, &value) {
                write.execute(params![row, converted])?;
            }
        }
    }
    step.execute(
        "INSERT OR REPLACE INTO counter (name, value) VALUES (?1, 1)",
        [MARK],
    )?;
    Ok(())
}

/// Whether the file is to be rebuilt after [`all`]. A file without our tables is not.
pub(super) fn is_unswept(connection: &Connection) -> Result<bool> {
    if !connection.table_exists(None, "counter")? {
        return Ok(false);
    }
    let due: Option<i64> = connection
        .query_row("SELECT value FROM counter WHERE name = ?1", [MARK], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(due.is_some())
}

/// Rebuilds the file where that is due.
pub(super) fn sweep(connection: &Connection) -> Result<()> {
    if !is_unswept(connection)? {
        return Ok(());
    }
    connection.execute_batch("VACUUM")?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    connection.execute("DELETE FROM counter WHERE name = ?1", [MARK])?;
    Ok(())
}
