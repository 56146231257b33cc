//! The store's file as an earlier version laid it out, with what it held: opened, read whole, written to.

use fleetward_store::{SqliteStore, Store, Txn};
use rusqlite::Connection;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn recorded(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/7917ca9/controller")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

/// The rows, by key.
fn rows() -> Vec<(String, Vec<u8>)> {
    let text = recorded("store.jsonl");
    let lines = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let key = line["key"].as_str().expect("a key").to_owned();
        (key, line["value"].to_string().into_bytes())
    });
    lines.collect()
}

/// Makes the file as that version's SQLite did.
fn make(path: &Path) {
    let mut connection = Connection::open(path).expect("a new file");
    connection
        .execute_batch(&recorded("store.sql"))
        .expect("its layout");
    let batch = connection.transaction().expect("a transaction");
    let rows = rows();
    for (revision, (key, value)) in (1_i64..).zip(&rows) {
        batch
            .execute(
                "INSERT INTO version (key, mod_revision, create_revision, version, value) VALUES (?1, ?2, ?2, 1, ?3)",
                (key, revision, value),
            )
            .expect("a row");
    }
    let last = i64::try_from(rows.len()).expect("few");
    batch
        .execute(
            "INSERT INTO counter (name, value) VALUES ('revision', ?1), ('compacted', 0)",
            [last],
        )
        .expect("the counters");
    batch.commit().expect("committed");
}

#[tokio::test]
async fn a_file_of_an_earlier_version_is_read_whole_and_goes_on() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("store.db");
    make(&path);
    for time in ["first", "second"] {
        let store = SqliteStore::open(path.clone()).await.expect(time);
        for (key, value) in rows() {
            let found = store.get(&key).await.expect("a read");
            let found = found.unwrap_or_else(|| panic!("{key} is lost, the {time} time"));
            assert_eq!(found.value, value, "{key}");
        }
        let put = Txn::new().put("new/key", time.as_bytes().to_vec());
        let outcome = store.commit(put).await.expect("a write");
        assert!(outcome.committed().is_some(), "the {time} time");
    }
}
