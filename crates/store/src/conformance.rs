//! Tests that every implementation of [`Store`] must pass.
//!
//! Each test uses only keys under its own name and assumes no initial revision, so all tests can run on one store that
//! is in use. [`store_conformance_tests!`](crate::store_conformance_tests) generates a test function for each:
//!
//! ```ignore
//! fleetward_store::store_conformance_tests!(open_a_store());
//! ```

use crate::{
    Change, Event, Guard, Outcome, Range, Revision, Store, StoreError, StoreExt, Txn, Watch,
};
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// Makes a `#[tokio::test]` of every claim, on the store that the given expression opens; it yields a
/// guard (kept for the test's duration) and the store.
#[macro_export]
macro_rules! store_conformance_tests {
    ($open:expr) => {
        $crate::store_conformance_tests!(@each $open;
            an_absent_key_reads_as_nothing
            a_put_is_read_back_with_its_history_marks
            a_deleted_key_starts_its_history_anew
            revisions_grow_with_every_write_and_only_with_writes
            a_conflict_changes_nothing_and_tells_what_is_there
            a_transaction_is_one_revision
            of_many_swaps_from_one_revision_one_wins
            a_list_is_in_key_order_and_keeps_to_its_prefix
            a_list_from_the_end_begins_with_the_last_key
            pages_show_one_revision_whatever_happens_meanwhile
            a_watch_replays_the_past_and_goes_on_without_a_gap
            a_watch_sees_whole_revisions_of_its_prefix_only
            watches_miss_nothing_while_many_write
            a_slow_watch_catches_up
            compacted_history_is_refused_and_current_entries_stay
            entries_disappear_when_their_lease_runs_out
            a_lease_kept_alive_lasts
            a_revoked_lease_takes_its_entries_along
            a_put_without_the_lease_frees_the_entry
            malformed_requests_are_refused
            json_values_keep_their_revision
        );
    };
    (@each $open:expr; $($claim:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                let (_guard, store) = $open.await;
                $crate::conformance::$claim(store).await;
            }
        )*
    };
}

type Shared = Arc<dyn Store>;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn put(store: &Shared, key: &str, value: &str) -> Revision {
    commit(store, Txn::new().put(key, value.to_owned())).await
}

async fn commit(store: &Shared, txn: Txn) -> Revision {
    let outcome = store.commit(txn).await.expect("commit");
    outcome.committed().expect("no conflict")
}

async fn keys(store: &Shared, range: Range) -> Vec<String> {
    let page = store.list(range).await.expect("list");
    page.entries.into_iter().map(|entry| entry.key).collect()
}

async fn next(watch: &mut Watch) -> Result<Change, StoreError> {
    let item = tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("a change in time");
    item.expect("the watch goes on")
}

async fn gone(store: &Shared, key: &str) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while store.get(key).await.expect("get").is_some() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{key} is still there"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub async fn an_absent_key_reads_as_nothing(store: Shared) {
    assert_eq!(store.get("absent/key").await.expect("get"), None);
    assert!(keys(&store, Range::prefix("absent/")).await.is_empty());
}

pub async fn a_put_is_read_back_with_its_history_marks(store: Shared) {
    let first = put(&store, "marks/a", "1").await;
    let second = put(&store, "marks/a", "2").await;
    let entry = store.get("marks/a").await.expect("get").expect("there");
    assert_eq!(&entry.value[..], b"2");
    assert_eq!(
        (
            entry.create_revision,
            entry.mod_revision,
            entry.version,
            entry.lease
        ),
        (first, second, 2, None)
    );
}

pub async fn a_deleted_key_starts_its_history_anew(store: Shared) {
    put(&store, "anew/a", "1").await;
    commit(&store, Txn::new().delete("anew/a")).await;
    assert_eq!(store.get("anew/a").await.expect("get"), None);
    let again = put(&store, "anew/a", "2").await;
    let entry = store.get("anew/a").await.expect("get").expect("there");
    assert_eq!((entry.create_revision, entry.version), (again, 1));
}

pub async fn revisions_grow_with_every_write_and_only_with_writes(store: Shared) {
    let first = put(&store, "grow/a", "1").await;
    assert!(put(&store, "grow/a", "1").await > first);
    let before = store.revision().await.expect("revision");
    let _ = commit(&store, Txn::new().if_present("grow/a")).await;
    let _ = commit(&store, Txn::new().delete("grow/absent")).await;
    store.get("grow/a").await.expect("get");
    assert_eq!(store.revision().await.expect("revision"), before);
}

pub async fn a_conflict_changes_nothing_and_tells_what_is_there(store: Shared) {
    let old = put(&store, "conflict/a", "old").await;
    put(&store, "conflict/a", "new").await;
    let txn = Txn::new()
        .if_absent("conflict/b")
        .if_unchanged("conflict/a", old)
        .put("conflict/a", "mine")
        .put("conflict/b", "mine");
    let outcome = store.commit(txn).await.expect("commit");
    let Outcome::Conflict { key, current } = outcome else {
        panic!("committed")
    };
    assert_eq!(key, "conflict/a");
    assert_eq!(&current.expect("told").value[..], b"new");
    assert_eq!(store.get("conflict/b").await.expect("get"), None);

    let taken = store
        .commit(Txn::new().if_absent("conflict/a").put("conflict/b", "x"))
        .await;
    assert!(taken.expect("commit").committed().is_none());
    let missing = store
        .commit(Txn::new().if_present("conflict/b").put("conflict/c", "x"))
        .await;
    assert!(missing.expect("commit").committed().is_none());
}

pub async fn a_transaction_is_one_revision(store: Shared) {
    put(&store, "one/c", "1").await;
    let revision = commit(
        &store,
        Txn::new()
            .put("one/b", "1")
            .put("one/a", "1")
            .delete("one/c"),
    )
    .await;
    for key in ["one/a", "one/b"] {
        let entry = store.get(key).await.expect("get").expect("there");
        assert_eq!(entry.mod_revision, revision);
    }
    assert_eq!(
        keys(&store, Range::prefix("one/")).await,
        ["one/a", "one/b"]
    );
}

pub async fn of_many_swaps_from_one_revision_one_wins(store: Shared) {
    let start = put(&store, "swap/a", "0").await;
    let tries = (0..20).map(|i| {
        let txn = Txn::new()
            .if_unchanged("swap/a", start)
            .put("swap/a", i.to_string());
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            store
                .commit(txn)
                .await
                .expect("commit")
                .committed()
                .is_some()
        })
    });
    let mut won = 0;
    for one in tries.collect::<Vec<_>>() {
        won += usize::from(one.await.expect("no panic"));
    }
    assert_eq!(won, 1);
}

pub async fn a_list_is_in_key_order_and_keeps_to_its_prefix(store: Shared) {
    for key in ["order/b", "order/a/z", "order/日", "order/a", "orders/x"] {
        put(&store, key, "").await;
    }
    let all = keys(&store, Range::prefix("order/")).await;
    assert_eq!(all, ["order/a", "order/a/z", "order/b", "order/日"]);
    assert_eq!(
        keys(&store, Range::prefix("order/").after("order/a/z").limit(1)).await,
        ["order/b"]
    );
}

pub async fn a_list_from_the_end_begins_with_the_last_key(store: Shared) {
    for key in ["end/1", "end/2", "end/2/a", "end/3", "ends/4"] {
        put(&store, key, "").await;
    }
    let last = || Range::prefix("end/").descending().limit(2);
    let page = store.list(last()).await.expect("list");
    commit(&store, Txn::new().delete("end/2").delete("end/3")).await;
    let of = |page: &crate::Page| -> Vec<String> {
        page.entries.iter().map(|entry| entry.key.clone()).collect()
    };
    assert_eq!(of(&page), ["end/3", "end/2/a"]);
    // the pages that follow show the same revision
    let following = last().following(&page).expect("more");
    let page = store.list(following).await.expect("list");
    assert_eq!(
        (of(&page), page.more),
        (vec!["end/2".into(), "end/1".into()], false)
    );

    assert_eq!(keys(&store, last()).await, ["end/2/a", "end/1"]);
    assert_eq!(keys(&store, last().after("end/2")).await, ["end/1"]);
}

pub async fn pages_show_one_revision_whatever_happens_meanwhile(store: Shared) {
    for i in 0..10 {
        put(&store, &format!("page/{i}"), "old").await;
    }
    let range = Range::prefix("page/").limit(4);
    let first = store.list(range.clone()).await.expect("list");
    assert!(first.more);
    put(&store, "page/5", "new").await;
    put(&store, "page/99", "new").await;
    commit(&store, Txn::new().delete("page/7")).await;

    let mut found = first.entries.clone();
    let mut following = range.clone().following(&first);
    while let Some(range) = following {
        let page = store.list(range.clone()).await.expect("list");
        assert_eq!(page.revision, first.revision);
        found.extend(page.entries.clone());
        following = range.following(&page);
    }
    let seen: Vec<_> = found.iter().map(|entry| entry.key.clone()).collect();
    assert_eq!(
        seen,
        (0..10).map(|i| format!("page/{i}")).collect::<Vec<_>>()
    );
    assert!(found.iter().all(|entry| &entry.value[..] == b"old"));

    let ahead = Range::prefix("page/").at(Revision(u64::MAX >> 2));
    let refused = store.list(ahead).await;
    assert!(
        matches!(refused, Err(StoreError::FutureRevision { .. })),
        "{refused:?}"
    );
}

pub async fn a_watch_replays_the_past_and_goes_on_without_a_gap(store: Shared) {
    let first = put(&store, "replay/a", "1").await;
    let second = commit(&store, Txn::new().delete("replay/a")).await;
    let mut watch = store.watch("replay/", first).await.expect("watch");
    let third = put(&store, "replay/b", "2").await;

    let change = next(&mut watch).await.expect("change");
    assert_eq!(change.revision, first);
    assert!(matches!(&change.events[..], [Event::Put(e)] if e.key == "replay/a" && e.version == 1));
    let change = next(&mut watch).await.expect("change");
    assert_eq!(change.revision, second);
    assert_eq!(
        change.events,
        [Event::Delete {
            key: "replay/a".into()
        }]
    );
    assert_eq!(next(&mut watch).await.expect("change").revision, third);

    let fourth = put(&store, "replay/c", "3").await;
    assert_eq!(next(&mut watch).await.expect("change").revision, fourth);
}

pub async fn a_watch_sees_whole_revisions_of_its_prefix_only(store: Shared) {
    let from = store.revision().await.expect("revision").next();
    let mut watch = store.watch("whole/in/", from).await.expect("watch");
    put(&store, "whole/out", "").await;
    let revision = commit(
        &store,
        Txn::new()
            .put("whole/in/b", "")
            .put("whole/out/c", "")
            .put("whole/in/a", ""),
    )
    .await;
    let change = next(&mut watch).await.expect("change");
    assert_eq!(change.revision, revision);
    let seen: Vec<_> = change.events.iter().map(Event::key).collect();
    assert_eq!(seen, ["whole/in/a", "whole/in/b"]);
}

pub async fn watches_miss_nothing_while_many_write(store: Shared) {
    const WRITERS: usize = 8;
    const EACH: usize = 50;
    let from = store.revision().await.expect("revision").next();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut written = Vec::new();
                for i in 0..EACH {
                    written.push(put(&store, &format!("many/{writer}"), &i.to_string()).await);
                }
                written
            })
        })
        .collect();
    // some watches begin in the middle of it
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(store.watch("many/", from).await.expect("watch"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut written = Vec::new();
    for writer in writers {
        written.extend(writer.await.expect("no panic"));
    }
    written.sort();
    for mut watch in watches {
        let mut seen = Vec::new();
        while seen.len() < WRITERS * EACH {
            let change = next(&mut watch).await.expect("change");
            assert_eq!(change.events.len(), 1);
            seen.push(change.revision);
        }
        assert_eq!(seen, written);
    }
}

pub async fn a_slow_watch_catches_up(store: Shared) {
    const CHANGES: usize = 1500;
    let from = store.revision().await.expect("revision").next();
    let mut watch = store.watch("slow/", from).await.expect("watch");
    put(&store, "slow/x", "first").await;
    next(&mut watch).await.expect("change");
    // without looking, more than any window in memory
    let mut last = Revision::ZERO;
    for batch in 0..CHANGES / 50 {
        let puts = (0..50).map(|i| {
            let (store, key) = (Arc::clone(&store), format!("slow/{batch}-{i}"));
            tokio::spawn(async move { put(&store, &key, "x").await })
        });
        for put in puts.collect::<Vec<_>>() {
            last = last.max(put.await.expect("no panic"));
        }
    }
    let mut seen = 0;
    loop {
        let change = next(&mut watch).await.expect("change");
        seen += change.events.len();
        if change.revision == last {
            break;
        }
    }
    assert_eq!(seen, CHANGES);
}

pub async fn compacted_history_is_refused_and_current_entries_stay(store: Shared) {
    let first = put(&store, "compact/a", "1").await;
    put(&store, "compact/b", "1").await;
    let second = put(&store, "compact/a", "2").await;
    commit(&store, Txn::new().delete("compact/b")).await;
    let third = put(&store, "compact/c", "3").await;
    store.compact(third).await.expect("compact");
    store
        .compact(second)
        .await
        .expect("compacting less is no error");

    let mut watch = store.watch("compact/", first).await.expect("watch");
    let refused = next(&mut watch).await;
    assert!(
        matches!(refused, Err(StoreError::Compacted { .. })),
        "{refused:?}"
    );
    assert!(watch.next().await.is_none());
    let past = store.list(Range::prefix("compact/").at(first)).await;
    assert!(
        matches!(past, Err(StoreError::Compacted { .. })),
        "{past:?}"
    );

    assert_eq!(
        keys(&store, Range::prefix("compact/")).await,
        ["compact/a", "compact/c"]
    );
    let entry = store.get("compact/a").await.expect("get").expect("there");
    assert_eq!((entry.create_revision, entry.version), (first, 2));
    let mut watch = store.watch("compact/", third.next()).await.expect("watch");
    let fourth = put(&store, "compact/d", "4").await;
    assert_eq!(next(&mut watch).await.expect("change").revision, fourth);
}

pub async fn entries_disappear_when_their_lease_runs_out(store: Shared) {
    // etcd grants whole seconds
    let lease = store
        .lease_grant(Duration::from_secs(1))
        .await
        .expect("grant");
    let revision = commit(&store, Txn::new().put_leased("expire/a", "x", lease)).await;
    let entry = store.get("expire/a").await.expect("get").expect("there");
    assert_eq!(entry.lease, Some(lease));
    let mut watch = store
        .watch("expire/", revision.next())
        .await
        .expect("watch");
    let change = next(&mut watch).await.expect("change");
    assert_eq!(
        change.events,
        [Event::Delete {
            key: "expire/a".into()
        }]
    );
    assert_eq!(store.get("expire/a").await.expect("get"), None);
    let late = store.lease_keep_alive(lease).await;
    assert!(
        matches!(late, Err(StoreError::LeaseGone { .. })),
        "{late:?}"
    );
    let late = store
        .commit(Txn::new().put_leased("expire/b", "x", lease))
        .await;
    assert!(
        matches!(late, Err(StoreError::LeaseGone { .. })),
        "{late:?}"
    );
    store
        .lease_revoke(lease)
        .await
        .expect("revoking what is gone is no error");
}

pub async fn a_lease_kept_alive_lasts(store: Shared) {
    let lease = store
        .lease_grant(Duration::from_secs(2))
        .await
        .expect("grant");
    commit(&store, Txn::new().put_leased("alive/a", "x", lease)).await;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        store.lease_keep_alive(lease).await.expect("keep alive");
    }
    assert!(store.get("alive/a").await.expect("get").is_some());
    store.lease_revoke(lease).await.expect("revoke");
}

pub async fn a_revoked_lease_takes_its_entries_along(store: Shared) {
    let lease = store
        .lease_grant(Duration::from_secs(60))
        .await
        .expect("grant");
    commit(
        &store,
        Txn::new()
            .put_leased("revoke/a", "x", lease)
            .put_leased("revoke/b", "x", lease),
    )
    .await;
    store.lease_revoke(lease).await.expect("revoke");
    assert!(keys(&store, Range::prefix("revoke/")).await.is_empty());
}

pub async fn a_put_without_the_lease_frees_the_entry(store: Shared) {
    let lease = store
        .lease_grant(Duration::from_secs(60))
        .await
        .expect("grant");
    commit(
        &store,
        Txn::new()
            .put_leased("free/a", "x", lease)
            .put_leased("free/b", "x", lease),
    )
    .await;
    put(&store, "free/a", "stays").await;
    store.lease_revoke(lease).await.expect("revoke");
    gone(&store, "free/b").await;
    assert!(store.get("free/a").await.expect("get").is_some());
}

pub async fn malformed_requests_are_refused(store: Shared) {
    let bad = store.get("/bad").await;
    assert!(matches!(bad, Err(StoreError::BadKey { .. })), "{bad:?}");
    let bad = store.commit(Txn::new().put("bad//key", "x")).await;
    assert!(matches!(bad, Err(StoreError::BadKey { .. })), "{bad:?}");
    let bad = store
        .commit(Txn::new().put("bad", vec![0; crate::MAX_VALUE + 1]))
        .await;
    assert!(
        matches!(bad, Err(StoreError::ValueTooLarge { .. })),
        "{bad:?}"
    );
    let bad = store
        .commit(Txn::new().put("bad", "1").put("bad", "2"))
        .await;
    assert!(
        matches!(bad, Err(StoreError::ChangedTwice { .. })),
        "{bad:?}"
    );
    let many = (0..=crate::MAX_OPERATIONS).fold(Txn::new(), |t, i| t.put(format!("bad/{i}"), ""));
    let bad = store.commit(many).await;
    assert!(matches!(bad, Err(StoreError::TooManyOperations)), "{bad:?}");
    assert!(keys(&store, Range::prefix("bad")).await.is_empty());
}

pub async fn json_values_keep_their_revision(store: Shared) {
    let made = store
        .put_json("json/a", &1, Guard::Absent)
        .await
        .expect("put")
        .committed();
    let found = store
        .get_json::<i32>("json/a")
        .await
        .expect("get")
        .expect("there");
    assert_eq!((found.value, Some(found.revision)), (1, made));
    let lost = store
        .put_json("json/a", &9, Guard::Absent)
        .await
        .expect("put");
    assert!(lost.committed().is_none());
    let swapped = store
        .put_json("json/a", &2, Guard::Unchanged(found.revision))
        .await;
    assert!(swapped.expect("put").committed().is_some());
    let _ = store.put_json("json/b", &3, Guard::Any).await.expect("put");
    let (all, _) = store.list_json::<i32>("json/").await.expect("list");
    let all: Vec<_> = all
        .into_iter()
        .map(|(key, found)| (key, found.value))
        .collect();
    assert_eq!(all, [("json/a".to_owned(), 2), ("json/b".to_owned(), 3)]);
    let wrong = store.get_json::<String>("json/a").await;
    assert!(matches!(wrong, Err(StoreError::Decode { .. })), "{wrong:?}");
}
