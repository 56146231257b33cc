//! The audit log of a fleet: what is asked of hosts, and what is found of logs that were changed.

use crate::fleet::Controller;
use crate::fleet::agent::FakeAgent;
use crate::jobs::create;
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// The records that `audit --verify` finds something about, as `CHAIN: WHAT`.
async fn breaks(controller: &Controller) -> Vec<String> {
    let verdict: Value = controller.get("/v1/audit/verify").await;
    let found = verdict["breaks"].as_array().expect("a list");
    assert_eq!(verdict["intact"], found.is_empty(), "{verdict}");
    let text = |found: &Value| {
        let (chain, what) = (found["chain"].as_str(), found["what"].as_str());
        format!("{}: {}", chain.expect("text"), what.expect("text"))
    };
    found.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_trail_is_intact_only_where_every_host_has_shown_its_log() {
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    create(&controller, json!({"name": "web", "host": "b"})).await;
    assert_eq!(breaks(&controller).await, [""; 0]);

    b.cut();
    controller.wait_online(&b.host, false).await;
    let verdict: Value = controller.get("/v1/audit/verify").await;
    assert_eq!(verdict["intact"], false, "{verdict}");
    assert_eq!(verdict["not_compared"], json!(["b"]));
    b.serve().await;
    controller.wait_online(&b.host, true).await;
    assert_eq!(breaks(&controller).await, [""; 0]);

    b.look(|inner| inner.audit_spoilt = true);
    let found = breaks(&controller).await;
    assert!(
        matches!(&found[..], [one] if one.starts_with("b: ") && one.contains("line 7 is no audit record")),
        "{found:?}"
    );
    b.look(|inner| inner.audit_spoilt = false);
    let first = b.look(|inner| inner.audit.remove(0));
    let found = breaks(&controller).await;
    assert!(found.iter().any(|one| one.starts_with("b: ")), "{found:?}");
    b.look(|inner| inner.audit.insert(0, first));
    assert_eq!(breaks(&controller).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_at_rest_is_not_asked_for_its_audit_log() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let old = controller.join("old", "default").await;
    let stranger = controller.join("c", "other").await;
    old.look(|inner| inner.tells_audit = false);
    let asked = |host: &FakeAgent| host.look(|inner| inner.audit_requests);
    create(&controller, json!({"name": "web", "host": "a"})).await;
    // Longer than a host that does not say how far its log goes is left alone, and than the controller's own records wait.
    tokio::time::sleep(Duration::from_secs(17)).await;
    let (of_a, of_old) = (asked(&a), asked(&old));
    assert!(of_a.0 > 0 && of_a.1 > 0, "{of_a:?}");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(asked(&a), of_a, "nothing is new");
    let now = asked(&old);
    assert!(now.0 > of_old.0 && now.1 == of_old.1, "{of_old:?} {now:?}");

    let of_stranger = asked(&stranger);
    let records: Vec<Value> = controller.get("/v1/audit?vm=web").await;
    assert!(
        records.iter().any(|record| record["host"] == "a"),
        "{records:?}"
    );
    assert!(
        asked(&a).0 > of_a.0,
        "a question about a VM asks who has it"
    );
    assert_eq!(asked(&stranger), of_stranger, "and not who never had it");
    let of_a = asked(&a);

    create(&controller, json!({"name": "db", "host": "a"})).await;
    let fetched = async || asked(&a).0 > of_a.0 && asked(&a).1 > of_a.1;
    controller.wait("what is new is exchanged", fetched).await;

    let nothing = json!({});
    controller
        .done(Method::DELETE, "/v1/vms/web", &nothing)
        .await;
    let of_stranger = asked(&stranger);
    let records: Vec<Value> = controller.get("/v1/audit?vm=web").await;
    let removed = |record: &Value| record["action"] == "remove-tpm" && record["host"] == "a";
    assert!(records.iter().any(removed), "{records:?}");
    let now = asked(&stranger);
    assert!(
        now.0 > of_stranger.0,
        "of a VM that is gone anybody may know"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controllers_own_records_are_checked_and_their_end_is_remembered_by_hosts() {
    use fleetward_store::{SqliteStore, Store, StoreExt, Txn};
    let mut controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    create(&controller, json!({"name": "web"})).await;
    assert_eq!(breaks(&controller).await, [""; 0]);
    let end = a
        .look(|inner| inner.witnessed.clone())
        .expect("it was shown")
        .seq;

    // one record changed, then put back; the last one taken away
    let changed = format!("audit/controller/{:020}", 2);
    let last = format!("audit/controller/{end:020}");
    let mut kept: Option<Value> = None;
    for cut_off in [false, true] {
        controller.end().await;
        let store = SqliteStore::open(controller.data().join("store.db"))
            .await
            .expect("store");
        let txn = if cut_off {
            let kept = kept.take().expect("the record of before");
            Txn::new()
                .put_json(&changed, &kept)
                .expect("json")
                .delete(&last)
        } else {
            let record = store.get_json::<Value>(&changed).await.expect("read");
            let record = record.expect("a record").value;
            let mut other = record.clone();
            other["actor"] = json!("nobody");
            kept = Some(record);
            Txn::new().put_json(&changed, &other).expect("json")
        };
        let _ = store.commit(txn).await.expect("written");
        drop(store);
        controller = controller.restart().await;
        controller.wait_online(&a.host, true).await;
        let found = breaks(&controller).await;
        let expected = if cut_off {
            format!("controller: host a has seen record {end}")
        } else {
            "controller: record 2 of host controller was changed".to_owned()
        };
        assert!(
            matches!(&found[..], [one] if one.starts_with(&expected)),
            "{expected}: {found:?}"
        );
    }
}
