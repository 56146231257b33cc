//! Lists in pages while what they list changes: nothing is repeated, and nothing that stays is passed over.

use crate::fleet::Controller;
use fleetward_api::NDJSON;
use fleetward_api::controller::{CheckView, GuardianView, SecureBootView, VmView};
use fleetward_api::lists::{KeptTpm, Row};
use fleetward_api::tpm::TpmVersion;
use fleetward_model::ErrorCode;
use http::header::ACCEPT;
use http::{HeaderValue, Method};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Cursors of a list that is asked for in pages of `limit`; something happens after the first of them.
async fn paged<T: Row + DeserializeOwned>(
    controller: &Controller,
    path: &str,
    limit: usize,
    meanwhile: impl AsyncFnOnce(),
) -> Vec<String> {
    let mut meanwhile = Some(meanwhile);
    let mut seen: Vec<String> = Vec::new();
    loop {
        let after = seen.last().map(|cursor| format!("&after={cursor}"));
        let uri = format!("{path}limit={limit}{}", after.unwrap_or_default());
        let page: Vec<T> = controller.get(&uri).await;
        assert!(page.len() <= limit, "{uri} gave {} rows", page.len());
        let is_last = page.len() < limit;
        seen.extend(page.iter().map(Row::cursor));
        if is_last {
            let once: BTreeSet<_> = seen.iter().collect();
            assert_eq!(once.len(), seen.len(), "a row is there twice: {seen:#?}");
            return seen;
        }
        if let Some(meanwhile) = meanwhile.take() {
            meanwhile().await;
        }
    }
}

async fn whole<T: Row + DeserializeOwned>(controller: &Controller, path: &str) -> Vec<String> {
    let rows: Vec<T> = controller.get(path.trim_end_matches(['?', '&'])).await;
    rows.iter().map(Row::cursor).collect()
}

/// The same list as an array, as pages of every length, and as lines; once nothing new comes meanwhile, such as a copy of a TPM.
async fn in_every_form<T: Row + DeserializeOwned>(
    controller: &Controller,
    path: &str,
) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let before = whole::<T>(controller, path).await;
        let mut forms = vec![lines::<T>(controller, path).await];
        for limit in 1..=before.len() + 1 {
            forms.push(paged::<T>(controller, path, limit, async || ()).await);
        }
        if whole::<T>(controller, path).await == before {
            for form in forms {
                assert_eq!(form, before, "{path}");
            }
            return before;
        }
        assert!(Instant::now() < deadline, "{path} changes all the time");
    }
}

async fn lines<T: Row + DeserializeOwned>(controller: &Controller, path: &str) -> Vec<String> {
    let request = controller.local.request(Method::GET, path);
    let request = request.header(ACCEPT, HeaderValue::from_static(NDJSON));
    let mut lines = request.send().await.expect("an answer").lines();
    let mut rows = Vec::new();
    while let Some(row) = lines.next_json::<T>().await.expect("whole") {
        rows.push(row.cursor());
    }
    rows
}

async fn create(controller: &Controller, name: &str, host: &str) -> VmView {
    let body = json!({ "name": name, "host": host });
    controller.done(Method::POST, "/v1/vms", &body).await;
    controller.get(&format!("/v1/vms/{name}")).await
}

async fn delete(controller: &Controller, name: &str) {
    let path = format!("/v1/vms/{name}?keep_tpm_state=true");
    controller.done(Method::DELETE, &path, &json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_tpms_that_come_and_go_do_not_disturb_the_others() {
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    for name in ["v1", "v2", "v3", "v4", "v5"] {
        create(&controller, name, "a").await;
        delete(&controller, name).await;
    }
    let all = in_every_form::<KeptTpm>(&controller, "/v1/kept-tpms?").await;
    assert_eq!(all.len(), 5, "{all:?}");
    let forget = async |cursor: &str| {
        let id = cursor.split('/').nth(1).expect("an id");
        let path = format!("/v1/kept-tpms/{id}");
        let sent = controller.local.request(Method::DELETE, &path).send().await;
        sent.expect("forgotten");
    };
    // The last row of the page, and one that is still to come; one that is before the page, and one after it.
    let meanwhile = async || {
        forget(&all[1]).await;
        forget(&all[2]).await;
        for name in ["v0", "v6"] {
            create(&controller, name, "a").await;
            delete(&controller, name).await;
        }
    };
    let seen = paged::<KeptTpm>(&controller, "/v1/kept-tpms?", 2, meanwhile).await;
    assert_eq!(seen[..4], [&*all[0], &all[1], &all[3], &all[4]]);
    assert!(seen.len() == 5 && seen[4].starts_with("v6/"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_of_a_tpm_come_in_pages_and_new_ones_follow() {
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    create(&controller, "web", "a").await;
    let roll = async || {
        let path = "/v1/vms/web/tpm/roll";
        controller.done(Method::POST, path, &json!({})).await;
    };
    for _ in 0..4 {
        roll().await;
    }
    let path = "/v1/vms/web/tpm/history?";
    let all = in_every_form::<TpmVersion>(&controller, path).await;
    assert!(all.len() >= 4, "{all:?}");
    let seen = paged::<TpmVersion>(&controller, path, 2, roll).await;
    assert!(seen.starts_with(&all) && seen.len() > all.len(), "{seen:?}");

    // It outlives its VM, under the same cursors.
    let begun = paged::<TpmVersion>(&controller, path, 3, async || {
        delete(&controller, "web").await;
    });
    assert!(begun.await.starts_with(&seen));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_secure_boot_comes_in_pages() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    a.knows(&b);
    for name in ["v1", "v2", "v3", "v4"] {
        create(&controller, name, "b").await;
    }
    for name in ["golden", "silver"] {
        let body = json!({ "name": name, "from": "v1" });
        controller.done(Method::POST, "/v1/templates", &body).await;
    }
    let all = in_every_form::<SecureBootView>(&controller, "/v1/secure-boot?").await;
    assert_eq!(all.len(), 6, "four VMs and two templates: {all:?}");
    assert_eq!(all[4..], ["template/golden", "template/silver"]);
    let versions = "/v1/secure-boot?versions=true&";
    let with_versions = in_every_form::<SecureBootView>(&controller, versions).await;
    assert!(with_versions.len() >= 10, "{with_versions:?}");
    let of_two = "/v1/secure-boot?vm=v3&vm=v1&vm=v3&";
    let of_two = in_every_form::<SecureBootView>(&controller, of_two).await;
    let names: Vec<_> = of_two.iter().map(|row| &row[3..5]).collect();
    assert!(names.starts_with(&["v3"]) && names.ends_with(&["v1"]));

    // The last VM of the page moves to a host that stands before its own, and goes; others come.
    let moves = async || {
        let body = json!({ "to": "a", "offline": true });
        let path = "/v1/vms/v2/migrate";
        controller.done(Method::POST, path, &body).await;
        create(&controller, "v0", "a").await;
        create(&controller, "v9", "a").await;
    };
    let seen = paged::<SecureBootView>(&controller, "/v1/secure-boot?", 2, moves).await;
    assert_eq!(seen[..4], all[..4]);
    assert!(seen[4].starts_with("vm/v9/"), "{seen:?}");
    assert_eq!(seen[5..], all[4..]);
    let goes = async || delete(&controller, "v1").await;
    let seen = paged::<SecureBootView>(&controller, "/v1/secure-boot?", 2, goes).await;
    assert!(seen[2..].starts_with(&all[1..4]), "{seen:?}");

    let strange = "/v1/secure-boot?limit=2&after=v1";
    let refused = controller.refusal(Method::GET, strange, &json!({})).await;
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_come_in_pages_in_all_their_forms() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    let _c = controller.join("c", "default").await;
    a.knows(&b);
    for name in ["v1", "v2", "v3"] {
        create(&controller, name, "b").await;
    }
    let all = in_every_form::<CheckView>(&controller, "/v1/check?").await;
    assert_eq!(all.len(), 9, "{all:?}");
    for (path, rows) in [
        ("/v1/check?vm=v2&", 3),
        ("/v1/check?to=c&", 3),
        ("/v1/check?vm=v2&to=c&", 1),
        ("/v1/check?offline=true&", 9),
    ] {
        let found = in_every_form::<CheckView>(&controller, path).await;
        assert_eq!(found.len(), rows, "{path}: {found:?}");
    }

    // In the middle of the row of a VM, that VM moves, another goes, and a third comes.
    let meanwhile = async || {
        let body = json!({ "to": "a", "offline": true });
        let path = "/v1/vms/v1/migrate";
        controller.done(Method::POST, path, &body).await;
        delete(&controller, "v2").await;
        create(&controller, "v4", "a").await;
    };
    let seen = paged::<CheckView>(&controller, "/v1/check?", 2, meanwhile).await;
    assert_eq!(seen[..3], all[..3]);
    assert_eq!(seen[3..6], all[6..], "of the third VM");
    assert!(seen.len() == 9 && seen[6..].iter().all(|row| row.starts_with("v4/")));
    // A host that comes stands where its name says.
    let joins = async || drop(controller.join("d", "default").await);
    let seen = paged::<CheckView>(&controller, "/v1/check?vm=v3&", 2, joins).await;
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_guardians_come_in_pages_while_hosts_leave() {
    let controller = Controller::start().await;
    let mut agents = Vec::new();
    for host in ["a", "b", "c"] {
        agents.push(controller.join(host, "default").await);
    }
    // one guardian on all hosts, as it is where keys were brought from elsewhere
    let shared = agents[0].look(|inner| inner.facts.guardians[0].clone());
    for agent in &agents[1..] {
        agent.look(|inner| {
            let mut foreign = shared.clone();
            foreign.own = false;
            inner.facts.guardians.push(foreign);
            inner.tell_facts();
        });
    }
    let path = format!("/v1/guardians/{}?", shared.id);
    let rows = async |path: &str| controller.get::<Vec<GuardianView>>(path).await.len();
    let known = async || rows(&path).await == 6;
    controller.wait("all to have it", known).await;
    in_every_form::<GuardianView>(&controller, &path).await;
    let all = in_every_form::<GuardianView>(&controller, "/v1/guardians?").await;
    assert_eq!(all.len(), 10, "{all:?}");
    let leaves = async || {
        let request = controller.local.request(Method::DELETE, "/v1/hosts/a");
        request.send().await.expect("removed");
    };
    let seen = paged::<GuardianView>(&controller, "/v1/guardians?", 2, leaves).await;
    assert_eq!(
        seen, all,
        "what was on the first page, and all of the others"
    );
}
