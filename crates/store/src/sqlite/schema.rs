//! The schema of the file; opening and upgrading it.
//!
//! Each version of each key is a row. `superseded` is the later revision that replaced it, and a deletion is a version
//! without a value. One table therefore answers reads of now, reads of a past revision, and watches.

use super::soundness::{self, Check};
use super::{Convert, SqliteOptions, convert, io_failed, sqlite_failed};
use crate::StoreError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// "FWst", so that another program's database is not taken for ours.
const APPLICATION_ID: i64 = 0x4657_7374;

/// Statements that lead from layout `n` to `n + 1`. Append only. A new layout is also due when a value changes in a way that
/// an older program would misread; a field that it may pass over needs none.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE counter (
        name TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO counter (name, value) VALUES ('revision', 0), ('compacted', 0);

    CREATE TABLE version (
        key TEXT NOT NULL,
        mod_revision INTEGER NOT NULL,
        create_revision INTEGER NOT NULL,
        version INTEGER NOT NULL,
        value BLOB,
        lease INTEGER,
        superseded INTEGER,
        PRIMARY KEY (key, mod_revision)
    ) STRICT;
    CREATE INDEX version_by_revision ON version (mod_revision);
    CREATE INDEX version_superseded ON version (superseded) WHERE superseded IS NOT NULL;
    CREATE UNIQUE INDEX version_current ON version (key) WHERE superseded IS NULL;
    CREATE INDEX version_deleted ON version (mod_revision) WHERE value IS NULL;
    CREATE INDEX version_leased ON version (lease) WHERE lease IS NOT NULL AND superseded IS NULL;
",
    // The tables stay. Values are written that programs of layout 1 would misread, so those refuse the file instead.
    "",
];

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the file for the writer, making it if need be.
#[expect(
    clippy::disallowed_methods,
    reason = "SQLite writes the database; this gives the file its mode before SQLite sees it"
)]
pub(super) fn open(
    path: &Path,
    options: &SqliteOptions,
) -> Result<(Connection, Check), StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| io_failed("open", path, e))?;
    // SQLite gives its side files the mode of the database, also when an older one was too open
    file.set_permissions(Permissions::from_mode(0o600))
        .map_err(|e| io_failed("restrict", path, e))?;
    drop(file);

    let failed = |e| sqlite_failed("open", path, e);
    let mut connection = connect(path)?;
    let found = layout(&connection, path)?;
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(StoreError::TooNew {
            path: path.to_owned(),
            found,
            known,
        });
    }
    let updating = |e| sqlite_failed("update the layout of", path, e);
    let is_new = found == 0;
    let is_rewritten = found < known || convert::is_unswept(&connection).map_err(updating)?;
    if is_rewritten && !is_new {
        soundness::check(&connection, path)?;
    }
    let check = match is_rewritten {
        true => Check::done(),
        false => Check::begin(path, &connection)?,
    };
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(failed)?;
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(failed)?;
    if let Some(limit) = options.size_limit {
        let page_size: u64 = connection
            .pragma_query_value(None, "page_size", |row| row.get(0))
            .map_err(failed)?;
        connection
            .pragma_update_and_check(
                None,
                "max_page_count",
                limit.div_ceil(page_size),
                |_| Ok(()),
            )
            .map_err(failed)?;
    }
    migrate(&mut connection, found, options.convert).map_err(updating)?;
    convert::sweep(&connection).map_err(updating)?;
    // What undoes one statement of a transaction: a few pages each, which were written to a file for nothing.
    connection
        .pragma_update(None, "temp_store", "MEMORY")
        .map_err(failed)?;
    Ok((connection, check))
}

/// A further connection to a file that [`open`] has prepared, for reading.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let connection = connect(path)?;
    connection
        .pragma_update(None, "query_only", true)
        .map_err(|e| sqlite_failed("open", path, e))?;
    Ok(connection)
}

/// Whether changes go into the file when this connection is closed as the last: not before the file is known to be sound.
pub(super) fn allow_checkpoint_on_close(
    connection: &Connection,
    allow: bool,
) -> rusqlite::Result<()> {
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !allow)
        .map(drop)
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |e| sqlite_failed("open", path, e);
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    allow_checkpoint_on_close(&connection, false).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// The layout number found; 0 for an empty file.
fn layout(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let number = |name| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|e| sqlite_failed("open", path, e))
    };
    let (owner, found) = (number("application_id")?, number("user_version")?);
    let fresh = number("schema_version")? == 0;
    if owner == APPLICATION_ID || fresh {
        return Ok(found);
    }
    let detail = "it is another program's database".to_owned();
    Err(StoreError::Corrupt {
        path: path.to_owned(),
        detail,
    })
}

fn migrate(
    connection: &mut Connection,
    found: i64,
    convert: Option<Convert>,
) -> rusqlite::Result<()> {
    for (number, statements) in (0_i64..).zip(MIGRATIONS).skip_while(|(n, _)| *n < found) {
        let step = connection.transaction()?;
        step.execute_batch(statements)?;
        if let (Some(convert), 1..) = (convert, found) {
            convert::all(&step, convert)?;
        }
        step.pragma_update(None, "application_id", APPLICATION_ID)?;
        step.pragma_update(None, "user_version", number + 1)?;
        step.commit()?;
    }
    Ok(())
}
