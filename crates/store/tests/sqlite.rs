//! The SQLite store: the claims every store must meet, and what only a file can suffer.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use fleetward_store::{
    Range, Revision, SqliteOptions, SqliteStore, Store, StoreError, Txn, store_conformance_tests,
};
use futures_util::StreamExt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Says that this test process is somebody's child, and which store it is to write.
const CHILD: &str = "STORE_TEST_CHILD";

async fn fresh() -> (TempDir, Arc<dyn Store>) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = SqliteStore::open(dir.path().join("store.db"))
        .await
        .expect("open");
    (dir, Arc::new(store))
}

store_conformance_tests!(fresh());

fn database() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("store.db");
    (dir, path)
}

async fn put(store: &dyn Store, key: &str, value: impl Into<Vec<u8>>) -> Revision {
    let outcome = store
        .commit(Txn::new().put(key, value.into()))
        .await
        .expect("commit");
    outcome.committed().expect("no conflict")
}

/// This test program again, running only the test called `name`, as a child.
fn child(name: &str, path: &Path, wrapper: &[&str]) -> Command {
    let this = std::env::current_exe().expect("own path");
    let mut command = match wrapper {
        [] => Command::new(this),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(this);
            command
        }
    };
    command
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(CHILD, path);
    command.stdout(Stdio::piped());
    command
}

/// The lines of a child that begin with `mark`, without it.
fn lines(child: &mut Child, mark: &'static str) -> impl Iterator<Item = String> + use<> {
    let output = BufReader::new(child.stdout.take().expect("piped"));
    output
        .lines()
        .map_while(Result::ok)
        .filter_map(move |line| {
            let at = line.find(mark)?;
            Some(line[at + mark.len()..].to_owned())
        })
}

fn say(mark: &str, what: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{mark}{what}")
        .and_then(|()| out.flush())
        .expect("a parent that listens");
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let (_dir, path) = database();
    let store = SqliteStore::open(&path).await.expect("open");
    let revision = put(&store, "a", "1").await;
    drop(store);
    let store = SqliteStore::open(&path).await.expect("open again");
    assert_eq!(store.revision().await.expect("revision"), revision);
    assert_eq!(
        &store.get("a").await.expect("get").expect("there").value[..],
        b"1"
    );
    assert_eq!(put(&store, "b", "2").await, revision.next());
}

#[tokio::test]
async fn leases_end_with_the_process_that_held_them() {
    let (_dir, path) = database();
    let store = SqliteStore::open(&path).await.expect("open");
    let lease = store
        .lease_grant(Duration::from_secs(3600))
        .await
        .expect("grant");
    let txn = Txn::new()
        .put_leased("owner", "me", lease)
        .put("other", "x");
    let _ = store.commit(txn).await.expect("commit");
    drop(store);
    let store = SqliteStore::open(&path).await.expect("open again");
    assert_eq!(store.get("owner").await.expect("get"), None);
    assert!(store.get("other").await.expect("get").is_some());
    let gone = store.lease_keep_alive(lease).await;
    assert!(
        matches!(gone, Err(StoreError::LeaseGone { .. })),
        "{gone:?}"
    );
}

#[tokio::test]
async fn only_the_owner_may_read_the_files() {
    let (dir, path) = database();
    std::fs::write(&path, []).expect("an empty file, readable by all");
    let store = SqliteStore::open(&path).await.expect("open");
    put(&store, "a", "1").await;
    for file in std::fs::read_dir(dir.path()).expect("list") {
        let file = file.expect("entry");
        let mode = file.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", file.path());
    }
}

#[tokio::test]
async fn a_second_opener_is_told_who_has_the_store() {
    let (_dir, path) = database();
    let store = SqliteStore::open(&path).await.expect("open");
    let second = SqliteStore::open(&path).await;
    assert!(
        matches!(&second, Err(StoreError::InUse { holder: Some(pid), .. }) if *pid == std::process::id()),
        "{second:?}"
    );
    drop(store);
    SqliteStore::open(&path).await.expect("free again");
}

#[tokio::test]
async fn whoever_waits_for_the_file_gets_it_once_its_last_user_has_gone() {
    let (_dir, path) = database();
    let store = Arc::new(SqliteStore::open(&path).await.expect("open"));
    let mut free = tokio::spawn(store.let_go().done());
    let last = Arc::clone(&store);
    drop(store);
    assert!(!free.is_finished());
    put(&*last, "a", "1").await;
    assert!(!free.is_finished());
    std::thread::spawn(move || drop(last));
    let waited = tokio::time::timeout(Duration::from_secs(20), &mut free).await;
    waited.expect("in time").expect("no panic");
    SqliteStore::open(&path).await.expect("free");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let (_dir, path) = database();
    let text = "this is a letter, not a database\n".repeat(200);
    std::fs::write(&path, &text).expect("write");
    let refused = SqliteStore::open(&path).await;
    assert!(
        matches!(refused, Err(StoreError::Corrupt { .. })),
        "{refused:?}"
    );
    assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
}

#[tokio::test]
async fn a_damaged_store_is_refused() {
    let (_dir, path) = database();
    let store = SqliteStore::open(&path).await.expect("open");
    for i in 0..200 {
        put(&store, &format!("key/{i}"), vec![7; 500]).await;
    }
    drop(store);
    let mut bytes = std::fs::read(&path).expect("read");
    let length = bytes.len();
    bytes[4096..length - 100].fill(0x5a);
    std::fs::write(&path, bytes).expect("write");
    let refused = SqliteStore::open(&path).await;
    assert!(
        matches!(refused, Err(StoreError::Corrupt { .. })),
        "{refused:?}"
    );
}

/// A store of some 200 pages with values, and the bytes of its file.
async fn filled(path: &Path) -> Vec<u8> {
    let store = SqliteStore::open(path).await.expect("open");
    for i in 0..200 {
        put(&store, &format!("key/{i:03}"), vec![7; 3500]).await;
    }
    drop(store);
    std::fs::read(path).expect("read")
}

#[tokio::test]
async fn damage_that_shows_late_ends_all_writing_before_anything_is_written_on_the_file() {
    let (_dir, path) = database();
    let mut bytes = filled(&path).await;
    // A page of the table's own, with some value: nothing that is read when the store is opened.
    let mut pages: Vec<_> = bytes.chunks_mut(4096).collect();
    let mut leaves = pages.iter_mut().filter(|page| page[0] == 0x0d);
    leaves.nth(100).expect("many pages").fill(0x5a);
    std::fs::write(&path, &bytes).expect("write");

    let store = SqliteStore::open(&path).await.expect("open");
    let early = store.commit(Txn::new().put("early", "x")).await;
    assert!(
        matches!(early, Ok(_) | Err(StoreError::Corrupt { .. })),
        "{early:?}"
    );
    let known = store.soundness().known().await;
    assert!(
        matches!(known, Err(StoreError::Corrupt { .. })),
        "{known:?}"
    );
    let refused = store.commit(Txn::new().put("late", "x")).await;
    assert!(
        matches!(refused, Err(StoreError::Corrupt { .. })),
        "{refused:?}"
    );
    let whole = store.get("key/000").await.expect("what is whole is read");
    assert_eq!(&whole.expect("there").value[..], [7; 3500]);
    drop(store);
    assert!(std::fs::read(&path).expect("read") == bytes, "the file");
    let again = SqliteStore::open(&path).await.expect("open");
    assert!(again.soundness().known().await.is_err(), "still known");
}

#[tokio::test]
async fn all_changes_are_in_the_file_after_a_clean_end() {
    let (dir, path) = database();
    filled(&path).await;
    let store = SqliteStore::open(&path).await.expect("open");
    put(&store, "last", "x").await;
    drop(store);
    let copy = dir.path().join("copy.db");
    std::fs::copy(&path, &copy).expect("copy");
    let store = SqliteStore::open(&copy).await.expect("open the copy");
    assert!(store.get("last").await.expect("get").is_some());
}

#[tokio::test]
async fn changes_go_into_a_file_that_was_found_sound() {
    let (dir, path) = database();
    filled(&path).await;
    let store = SqliteStore::open(&path).await.expect("open");
    store.soundness().known().await.expect("sound");
    for i in 0..600 {
        put(&store, &format!("more/{i}"), vec![8; 20_000]).await;
    }
    let log = dir.path().join("store.db-wal");
    let log = std::fs::metadata(log).expect("the log").len();
    assert!(log < 6 << 20, "the log has {log} bytes of 12 MB");
}

/// A value that is counted for as long as somebody holds it.
struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl Counted {
    fn value(size: usize, held: &Arc<AtomicUsize>) -> bytes::Bytes {
        held.fetch_add(size, Ordering::SeqCst);
        bytes::Bytes::from_owner(Self(vec![1; size], Arc::clone(held)))
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len(), Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_burst_of_large_values_that_nobody_watches_leaves_nothing_in_memory() {
    let (_dir, path) = database();
    let store = SqliteStore::open(&path).await.expect("open");
    let from = store.revision().await.expect("revision").next();
    let mut watches = Vec::new();
    for prefix in ["jobs/", "jobs/1", "job-cancels/"] {
        watches.push(store.watch(prefix, from).await.expect("watch"));
    }
    // So that they wait for what comes.
    put(&store, "jobs/1", "x").await;
    put(&store, "job-cancels/1", "x").await;
    for watch in &mut watches {
        watch.next().await.expect("goes on").expect("a change");
    }
    let held = Arc::new(AtomicUsize::new(0));
    for i in 0..300 {
        let value = Counted::value(100_000, &held);
        let outcome = store.commit(Txn::new().put(format!("vm/{i}"), value)).await;
        outcome.expect("commit").committed().expect("no conflict");
    }
    assert_eq!(held.load(Ordering::SeqCst), 0, "bytes held");

    let value = Counted::value(100_000, &held);
    let both = Txn::new().put("jobs/2", "x").put("vm/1", value);
    let _ = store.commit(both).await.expect("commit");
    assert_eq!(held.load(Ordering::SeqCst), 0, "beside what is watched");
    let value = Counted::value(5000, &held);
    let _ = store.commit(Txn::new().put("jobs/3", value)).await;
    assert_eq!(held.load(Ordering::SeqCst), 5000, "what is watched");
    drop(watches);
    assert_eq!(held.load(Ordering::SeqCst), 0, "after its watch");
}

#[tokio::test]
async fn only_the_latest_value_is_kept_where_no_history_is_wanted() {
    let (_dir, path) = database();
    let options = SqliteOptions {
        without_history: &["seen/"],
        ..SqliteOptions::default()
    };
    let store = SqliteStore::open_with(&path, options).await.expect("open");
    let kept = put(&store, "kept/a", "1").await;
    let first = put(&store, "seen/a", "1").await;
    for i in 0..50 {
        put(&store, "seen/a", i.to_string()).await;
        put(&store, "seen/b", "x").await;
    }
    put(&store, "kept/a", "2").await;
    let latest = store.commit(Txn::new().delete("seen/b")).await;
    let latest = latest.expect("commit").committed().expect("done");
    let after = put(&store, "kept/b", "1").await;

    let entry = store.get("seen/a").await.expect("get").expect("there");
    assert_eq!((entry.create_revision, entry.version), (first, 51));
    assert_eq!(store.get("seen/b").await.expect("get"), None);
    for prefix in ["seen/", "seen/a", "see", ""] {
        let past = store.list(Range::prefix(prefix).at(first)).await;
        assert!(
            matches!(past, Err(StoreError::Compacted { compacted, .. }) if compacted == latest),
            "{prefix}: {past:?}"
        );
        let mut watch = store.watch(prefix, latest).await.expect("watch");
        let past = watch.next().await.expect("an answer");
        assert!(
            matches!(past, Err(StoreError::Compacted { .. })),
            "{prefix}: {past:?}"
        );
    }
    // A page can be followed as long as nothing changed there, whatever changed elsewhere.
    let page = store.list(Range::prefix("seen/").at(latest)).await;
    assert_eq!(page.expect("list").entries.len(), 1);
    let past = store.list(Range::prefix("kept/").at(kept)).await;
    assert_eq!(&past.expect("history").entries[0].value[..], b"1");

    let mut watch = store.watch("seen/", after.next()).await.expect("watch");
    let seen = async { while !matches!(watch.next().await, None | Some(Ok(_))) {} };
    let write = async {
        for i in 0.. {
            tokio::time::sleep(Duration::from_millis(20)).await;
            put(&store, "seen/c", i.to_string()).await;
        }
    };
    tokio::select! {
        () = seen => {}
        () = write => {}
    }
    drop(watch);
    drop(store);
    let connection = rusqlite::Connection::open(&path).expect("open");
    let rows: i64 = connection
        .query_row(
            "SELECT count(*) FROM version WHERE key LIKE 'seen/%'",
            [],
            |row| row.get(0),
        )
        .expect("read");
    assert_eq!(rows, 2, "one for each key");
}

/// The layout number of a file that nobody has open, after setting it.
fn layout(path: &Path, set: Option<i64>) -> i64 {
    let connection = rusqlite::Connection::open(path).expect("open");
    if let Some(number) = set {
        connection
            .pragma_update(None, "user_version", number)
            .expect("written");
    }
    connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .expect("read")
}

/// Whether any file of the store holds `text`.
fn files_hold(dir: &TempDir, text: &[u8]) -> bool {
    let files = std::fs::read_dir(dir.path()).expect("list");
    files.into_iter().any(|file| {
        let bytes = std::fs::read(file.expect("entry").path()).expect("read");
        bytes.windows(text.len()).any(|window| window == text)
    })
}

const FORMER: &[u8] = b"a value as it was before";

fn converting() -> SqliteOptions {
    SqliteOptions {
        convert: Some(|key, value| {
            (key.starts_with("old/") && value.starts_with(FORMER)).then(|| b"new".to_vec())
        }),
        ..SqliteOptions::default()
    }
}

#[tokio::test]
async fn values_of_an_earlier_layout_are_converted_once_and_leave_nothing_behind() {
    let (dir, path) = database();
    let store = SqliteStore::open(&path).await.expect("open");
    let mut before = Revision::ZERO;
    for i in 0..1200 {
        let value = [FORMER, &[b'x'; 300]].concat();
        before = put(&store, &format!("old/{}", i % 700), value).await;
    }
    put(&store, "other", FORMER).await;
    // what was deleted and compacted lies in free pages
    store.compact(Revision(900)).await.expect("compact");
    drop(store);
    layout(&path, Some(1));
    assert!(files_hold(&dir, FORMER));

    let store = SqliteStore::open_with(&path, converting()).await;
    let store = store.expect("open");
    let page = store.list(Range::prefix("old/")).await.expect("list");
    assert_eq!(page.entries.len(), 700);
    assert!(page.entries.iter().all(|entry| entry.value == "new"));
    let past = store.list(Range::prefix("old/").at(Revision(1000))).await;
    let past = past.expect("history").entries;
    assert!(past.iter().all(|entry| entry.value == "new"));
    assert_eq!(page.revision, before.next(), "no write of anybody");
    let kept = store.get("other").await.expect("get").expect("there");
    assert_eq!(kept.value, FORMER);
    let _ = store
        .commit(Txn::new().delete("other"))
        .await
        .expect("commit");
    let now = store.revision().await.expect("revision");
    store.compact(now).await.expect("compact");
    put(&store, "old/late", FORMER).await;
    drop(store);
    assert_eq!(layout(&path, None), 2, "programs of layout 1 refuse it");

    let store = SqliteStore::open_with(&path, converting()).await;
    let late = store.expect("open").get("old/late").await.expect("get");
    assert_eq!(late.expect("there").value, FORMER, "the second time");
}

#[tokio::test]
async fn a_conversion_that_was_interrupted_is_swept_at_the_next_start() {
    let (dir, path) = database();
    let store = SqliteStore::open(&path).await.expect("open");
    put(&store, "old/key", [FORMER, &[b'x'; 9000]].concat()).await;
    drop(store);
    // As after a crash behind the first transaction: the value is converted, its former pages are free.
    let connection = rusqlite::Connection::open(&path).expect("open");
    connection
        .execute_batch(
            "UPDATE version SET value = x'6e6577'; INSERT INTO counter (name, value) VALUES ('unswept', 1);",
        )
        .expect("written");
    drop(connection);
    drop(
        SqliteStore::open_with(&path, converting())
            .await
            .expect("open"),
    );
    assert!(!files_hold(&dir, FORMER));
    assert!(!files_hold(&dir, &[b'x'; 100]));
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_and_left_alone() {
    let (_dir, path) = database();
    drop(SqliteStore::open(&path).await.expect("open"));
    layout(&path, Some(99));
    let before = std::fs::read(&path).expect("read");
    let refused = SqliteStore::open_with(&path, converting()).await;
    assert!(
        matches!(refused, Err(StoreError::TooNew { found: 99, .. })),
        "{refused:?}"
    );
    assert!(std::fs::read(&path).expect("read") == before);
}

#[tokio::test]
async fn history_is_forgotten_by_itself() {
    let (_dir, path) = database();
    let options = SqliteOptions {
        history: 100,
        ..SqliteOptions::default()
    };
    let store = SqliteStore::open_with(&path, options).await.expect("open");
    let first = put(&store, "a", "1").await;
    for _ in 0..60 {
        let txns = (0..20).map(|i| store.commit(Txn::new().put(format!("k/{i}"), "x")));
        futures_util::future::try_join_all(txns)
            .await
            .expect("commit");
    }
    let past = store.list(Range::prefix("").at(first)).await;
    assert!(
        matches!(past, Err(StoreError::Compacted { .. })),
        "{past:?}"
    );
    assert!(store.get("a").await.expect("get").is_some());
}

#[tokio::test]
async fn a_full_disk_is_named_and_leaves_the_store_usable() {
    let (_dir, path) = database();
    let options = SqliteOptions {
        size_limit: Some(256 * 1024),
        ..SqliteOptions::default()
    };
    let store = SqliteStore::open_with(&path, options).await.expect("open");
    let written = fill(&store).await;
    assert!(written > 2, "{written} written");
    // what was acknowledged is there, what was refused is not, and small changes go on once there is room
    let page = store.list(Range::prefix("fill/")).await.expect("list");
    assert_eq!(page.entries.len(), written);
    drop(store);
    let store = SqliteStore::open(&path)
        .await
        .expect("open without the limit");
    put(&store, "fill/more", vec![1; 100_000]).await;
}

/// Writes until the disk is full; how many writes were acknowledged.
async fn fill(store: &dyn Store) -> usize {
    for i in 0.. {
        let txn = Txn::new().put(format!("fill/{i}"), vec![i as u8; 20_000]);
        match store.commit(txn).await {
            Ok(outcome) => drop(outcome.committed().expect("no conflict")),
            Err(StoreError::DiskFull { .. }) => return i,
            Err(other) => panic!("not told that the disk is full: {other:?}"),
        }
    }
    unreachable!("a disk without end")
}

/// Needs root for a small file system of its own; elsewhere the test above stands alone.
#[test]
fn a_really_full_file_system_is_named() {
    let (dir, path) = database();
    let mount = format!(
        "mount -t tmpfs -o size=1m none {} && exec \"$@\"",
        dir.path().display()
    );
    let wrapper = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    let able = Command::new("unshare").args(["--mount", "true"]).output();
    if !able.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: may not mount");
        return;
    }
    let mut child = child("child_fills_the_disk", &path, &wrapper)
        .spawn()
        .expect("spawn");
    let said: Vec<_> = lines(&mut child, "filled: ").collect();
    assert!(child.wait().expect("wait").success());
    assert_eq!(said.len(), 1, "{said:?}");
}

#[tokio::test]
#[ignore = "run as a child of a_really_full_file_system_is_named"]
async fn child_fills_the_disk() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let store = SqliteStore::open(&path).await.expect("open");
    let written = fill(&store).await;
    let page = store.list(Range::prefix("fill/")).await.expect("list");
    assert_eq!(page.entries.len(), written);
    assert!(written > 2);
    say("filled: ", written);
}

#[tokio::test]
async fn every_acknowledged_write_survives_a_kill() {
    for round in 0..5_u64 {
        let (_dir, path) = database();
        let mut child = child("child_writes_until_killed", &path, &[])
            .spawn()
            .expect("spawn");
        let acknowledged = tokio::task::spawn_blocking(move || {
            let mut acknowledged = Vec::new();
            let mut said = lines(&mut child, "written: ");
            for line in said.by_ref().take(40 + 17 * round as usize) {
                acknowledged.push(line);
            }
            child.kill().expect("kill");
            // what it said before it died
            acknowledged.extend(said);
            child.wait().expect("wait");
            acknowledged
        })
        .await
        .expect("no panic");
        assert!(acknowledged.len() >= 40);

        let store = SqliteStore::open(&path)
            .await
            .expect("open what the killed one left");
        let current = store.revision().await.expect("revision");
        for line in acknowledged {
            let (key, revision) = line.split_once(' ').expect("key and revision");
            let entry = store.get(key).await.expect("get").expect("acknowledged");
            assert_eq!(entry.mod_revision.to_string(), revision);
            assert!(entry.mod_revision <= current);
            let twin = store.get(&key.replace("key/", "twin/")).await.expect("get");
            assert_eq!(
                twin.expect("same transaction").mod_revision,
                entry.mod_revision
            );
        }
        assert_eq!(put(&store, "after", "x").await, current.next());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run as a child of every_acknowledged_write_survives_a_kill"]
async fn child_writes_until_killed() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let store = Arc::new(SqliteStore::open(&path).await.expect("open"));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for i in 0.. {
                    let key = format!("key/{writer}-{i}");
                    let twin = format!("twin/{writer}-{i}");
                    let txn = Txn::new().put(&key, vec![1; 3000]).put(twin, "x");
                    let outcome = store.commit(txn).await.expect("commit");
                    say(
                        "written: ",
                        format_args!("{key} {}", outcome.committed().expect("done")),
                    );
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("no panic");
    }
}
