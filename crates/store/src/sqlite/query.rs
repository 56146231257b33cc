//! The statements, each as a function on a connection. Revisions fit SQLite's signed integers.

use crate::{Entry, Event, LeaseId, Op, Range, Revision};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};

type Result<T> = rusqlite::Result<T>;

const ENTRY: &str = "key, value, create_revision, mod_revision, version, lease";

/// Names of counters: up to where history is gone under the prefix that follows.
const FORGOTTEN: &str = "forgotten/";

/// Behind every key that starts with a given prefix: no key contains this (last) character's successor.
const LAST: char = char::MAX;

fn entry_of(row: &Row<'_>) -> Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: Bytes::from(row.get::<_, Vec<u8>>(1)?),
        create_revision: Revision(row.get(2)?),
        mod_revision: Revision(row.get(3)?),
        version: row.get(4)?,
        lease: row.get::<_, Option<i64>>(5)?.map(|id| LeaseId(id as u64)),
    })
}

fn event_of(row: &Row<'_>) -> Result<(Revision, Event)> {
    let revision = Revision(row.get(3)?);
    let event = if row.get_ref(1)? == rusqlite::types::ValueRef::Null {
        Event::Delete { key: row.get(0)? }
    } else {
        Event::Put(entry_of(row)?)
    };
    Ok((revision, event))
}

fn counter(connection: &Connection, name: &str) -> Result<Revision> {
    connection
        .prepare_cached("SELECT value FROM counter WHERE name = ?1")?
        .query_row([name], |row| row.get(0).map(Revision))
}

fn set_counter(connection: &Connection, name: &str, value: Revision) -> Result<()> {
    connection
        .prepare_cached("UPDATE counter SET value = ?2 WHERE name = ?1")?
        .execute(params![name, value.0])
        .map(drop)
}

pub(super) fn revision(connection: &Connection) -> Result<Revision> {
    counter(connection, "revision")
}

pub(super) fn set_revision(connection: &Connection, revision: Revision) -> Result<()> {
    set_counter(connection, "revision", revision)
}

/// History up to and including this revision is gone.
pub(super) fn compacted(connection: &Connection) -> Result<Revision> {
    counter(connection, "compacted")
}

pub(super) fn entry(connection: &Connection, key: &str) -> Result<Option<Entry>> {
    connection
        .prepare_cached(&format!(
            "SELECT {ENTRY} FROM version WHERE key = ?1 AND superseded IS NULL AND value IS NOT NULL"
        ))?
        .query_row([key], entry_of)
        .optional()
}

/// Which keys are listed, in which order; parameters 1 to 3 are the bounds of the prefix and what is passed already.
fn of_range(range: &Range) -> (&'static str, String, String) {
    let behind = format!("{}{LAST}", range.prefix);
    let after = range.after.clone();
    if range.descending {
        let rows = "key >= ?1 AND key < ?2 AND key < ?3 ORDER BY key DESC LIMIT ?4";
        (rows, behind.clone(), after.unwrap_or(behind))
    } else {
        let rows = "key >= ?1 AND key < ?2 AND key > ?3 ORDER BY key LIMIT ?4";
        (rows, behind, after.unwrap_or_default())
    }
}

/// Current entries of `range`, at most `limit`.
pub(super) fn entries(connection: &Connection, range: &Range, limit: usize) -> Result<Vec<Entry>> {
    let (rows, behind, after) = of_range(range);
    connection
        .prepare_cached(&format!(
            "SELECT {ENTRY} FROM version
             WHERE superseded IS NULL AND value IS NOT NULL AND {rows}"
        ))?
        .query_map(params![range.prefix, behind, after, limit], entry_of)?
        .collect()
}

/// Entries of `range` as they were at `at`, at most `limit`.
pub(super) fn entries_at(
    connection: &Connection,
    range: &Range,
    limit: usize,
    at: Revision,
) -> Result<Vec<Entry>> {
    let (rows, behind, after) = of_range(range);
    connection
        .prepare_cached(&format!(
            "SELECT {ENTRY} FROM version
             WHERE mod_revision <= ?5 AND (superseded IS NULL OR superseded > ?5)
               AND value IS NOT NULL AND {rows}"
        ))?
        .query_map(params![range.prefix, behind, after, limit, at.0], entry_of)?
        .collect()
}

/// At most `limit` events under `prefix` from revision `from` on, in order.
pub(super) fn events(
    connection: &Connection,
    prefix: &str,
    from: Revision,
    limit: usize,
) -> Result<Vec<(Revision, Event)>> {
    connection
        .prepare_cached(&format!(
            "SELECT {ENTRY} FROM version
             WHERE mod_revision >= ?3 AND key >= ?1 AND key < ?2
             ORDER BY mod_revision, key LIMIT ?4"
        ))?
        .query_map(
            params![prefix, format!("{prefix}{LAST}"), from.0, limit],
            event_of,
        )?
        .collect()
}

/// Up to where history under `prefix` is gone: compacted, or never kept for some of the keys.
pub(super) fn compacted_under(connection: &Connection, prefix: &str) -> Result<Revision> {
    let mut gone = compacted(connection)?;
    let mut statement =
        connection.prepare_cached("SELECT name, value FROM counter WHERE name LIKE ?1")?;
    let mut rows = statement.query([format!("{FORGOTTEN}%")])?;
    while let Some(row) = rows.next()? {
        let name = row.get_ref(0)?.as_str()?;
        let forgetful = name.strip_prefix(FORGOTTEN).unwrap_or(name);
        if forgetful.starts_with(prefix) || prefix.starts_with(forgetful) {
            gone = gone.max(Revision(row.get(1)?));
        }
    }
    Ok(gone)
}

/// Takes note that a former value under `prefix`, where none is kept, was replaced at `revision`.
pub(super) fn set_forgotten(
    connection: &Connection,
    prefix: &str,
    revision: Revision,
) -> Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO counter (name, value) VALUES (?1, ?2)")?
        .execute(params![format!("{FORGOTTEN}{prefix}"), revision.0])
        .map(drop)
}

/// What becomes of the value that a change replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Former {
    Kept,
    Forgotten,
}

/// Carries out one change at `revision`; `None` when there was nothing to delete.
pub(super) fn apply(
    connection: &Connection,
    op: Op,
    revision: Revision,
    former: Former,
) -> Result<Option<Event>> {
    let current = entry(connection, op.key())?;
    let (key, next) = match op {
        Op::Delete { key } if current.is_none() => {
            tracing::trace!(key, "nothing to delete");
            return Ok(None);
        }
        Op::Delete { key } => (key, None),
        Op::Put { key, value, lease } => {
            let (create_revision, version) =
                current.map_or((revision, 1), |e| (e.create_revision, e.version + 1));
            let entry = Entry {
                key: key.clone(),
                value,
                create_revision,
                mod_revision: revision,
                version,
                lease,
            };
            (key, Some(entry))
        }
    };
    match former {
        Former::Kept => connection
            .prepare_cached(
                "UPDATE version SET superseded = ?2 WHERE key = ?1 AND superseded IS NULL",
            )?
            .execute(params![key, revision.0])?,
        Former::Forgotten => connection
            .prepare_cached("DELETE FROM version WHERE key = ?1")?
            .execute([&key])?,
    };
    let mut insert = connection.prepare_cached(
        "INSERT INTO version (key, value, create_revision, mod_revision, version, lease)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    match next {
        Some(entry) => {
            let lease = entry.lease.map(|id| id.0 as i64);
            insert.execute(params![
                entry.key,
                &entry.value[..],
                entry.create_revision.0,
                revision.0,
                entry.version,
                lease
            ])?;
            Ok(Some(Event::Put(entry)))
        }
        None if former == Former::Forgotten => Ok(Some(Event::Delete { key })),
        None => {
            insert.execute(params![
                key,
                None::<Vec<u8>>,
                revision.0,
                revision.0,
                0,
                None::<i64>
            ])?;
            Ok(Some(Event::Delete { key }))
        }
    }
}

/// The keys hanging on `lease`, or on any lease. Left to itself, SQLite looks through all keys.
pub(super) fn leased(connection: &Connection, lease: Option<LeaseId>) -> Result<Vec<String>> {
    connection
        .prepare_cached(
            "SELECT key FROM version INDEXED BY version_leased
             WHERE lease IS NOT NULL AND superseded IS NULL AND (?1 IS NULL OR lease = ?1)
             ORDER BY key",
        )?
        .query_map([lease.map(|id| id.0 as i64)], |row| row.get(0))?
        .collect()
}

/// Forgets all that was replaced or deleted up to `revision`.
pub(super) fn compact(connection: &Connection, revision: Revision) -> Result<()> {
    connection
        .prepare_cached("DELETE FROM version WHERE superseded <= ?1")?
        .execute([revision.0])?;
    connection
        .prepare_cached("DELETE FROM version WHERE value IS NULL AND mod_revision <= ?1")?
        .execute([revision.0])?;
    set_counter(connection, "compacted", revision)
}
