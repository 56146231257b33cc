//! Who gets a VM's TPM key, whichever job makes one.

use crate::fleet::agent::FakeAgent;
use crate::fleet::{Controller, failure};
use fleetward_api::controller::{Role, VmView};
use fleetward_link::Client;
use fleetward_model::{ErrorCode, VmId};
use http::Method;
use serde_json::{Value, json};
use std::path::Path;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

async fn create(controller: &Controller, name: &str, more: Value) {
    let mut body = json!({"name": name, "host": "a"});
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    controller.done(Method::POST, "/v1/vms", &body).await;
}

/// Asks for a job with a `POST`, and waits for it to end well.
async fn post(controller: &Controller, path: &str, body: Value) {
    controller.done(Method::POST, path, &body).await;
}

/// The hosts whose own guardian opens the VM's key, in the order of the alphabet.
async fn holders(controller: &Controller, vm: &str, agents: &[&FakeAgent]) -> String {
    let vm: VmView = controller.get(&format!("/v1/vms/{vm}")).await;
    let own = |agent: &&&FakeAgent| {
        let id = agent.look(|inner| inner.facts.guardians[0].id.clone());
        vm.tpm.guardians.contains(&id)
    };
    let found = agents.iter().filter(own);
    found.map(|agent| agent.host.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_manual_trust_every_new_key_is_for_the_vms_own_host_alone() {
    let controller = Controller::start_with_manual_trust().await;
    let (a, b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    let holders = async |vm: &str| holders(&controller, vm, &[&a, &b]).await;
    create(&controller, "made", json!({})).await;
    assert_eq!(holders("made").await, "a");

    create(&controller, "enabled", json!({"tpm": false})).await;
    assert_eq!(holders("enabled").await, "");
    post(&controller, "/v1/vms/enabled/tpm/enable", json!({})).await;
    assert_eq!(holders("enabled").await, "a", "tpm enable");

    for tpm in ["new", "copy"] {
        let body = json!({"name": tpm, "tpm": tpm});
        post(&controller, "/v1/vms/made/clone", body).await;
        assert_eq!(holders(tpm).await, "a", "vm clone --tpm {tpm}");
    }

    let template = json!({"name": "golden", "from": "made"});
    post(&controller, "/v1/templates", template).await;
    create(&controller, "deployed", json!({"template": "golden"})).await;
    assert_eq!(holders("deployed").await, "a", "a template's deployment");

    // and only a person changes that
    let grant = json!({"vms": ["enabled"], "to": "b"});
    post(&controller, "/v1/guardian-grants", grant).await;
    assert_eq!(holders("enabled").await, "ab");
    assert_eq!(holders("made").await, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_has_is_granted_to_those_that_joined_while_it_was_away() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    create(&controller, "web", json!({})).await;
    a.cut();
    controller.wait_online(&a.host, false).await;
    let b = controller.join("b", "default").await;
    assert_eq!(holders(&controller, "web", &[&a, &b]).await, "a");
    // It says nothing new of its VM when it is back.
    a.serve().await;
    let both = async || holders(&controller, "web", &[&a, &b]).await == "ab";
    controller.wait("both to open it", both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_host_gets_no_later_key_until_it_is_granted_by_name() {
    let controller = Controller::start().await;
    let (a, b, c) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default"),
        controller.join("c", "default")
    );
    let holders = async |vm: &str| holders(&controller, vm, &[&a, &b, &c]).await;
    create(&controller, "web", json!({})).await;
    assert_eq!(holders("web").await, "abc");
    let revoke = json!({"vm": "web", "from": "b"});
    post(&controller, "/v1/guardian-revocations", revoke).await;
    assert_eq!(holders("web").await, "ac");

    post(&controller, "/v1/vms/web/tpm/disable", json!({})).await;
    assert_eq!(holders("web").await, "");
    post(&controller, "/v1/vms/web/tpm/enable", json!({})).await;
    assert_eq!(holders("web").await, "ac", "tpm disable and tpm enable");
    post(&controller, "/v1/vms/web/clone", json!({"name": "twin"})).await;
    assert_eq!(holders("twin").await, "ac", "vm clone");

    let grant = json!({"vms": ["web"], "to": "b"});
    post(&controller, "/v1/guardian-grants", grant).await;
    assert_eq!(holders("web").await, "abc");
    post(&controller, "/v1/vms/web/tpm/disable", json!({})).await;
    post(&controller, "/v1/vms/web/tpm/enable", json!({})).await;
    assert_eq!(holders("web").await, "abc", "granted back by name");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_of_all_leaves_no_vm_out_however_many_there_are() {
    const MANY: u32 = 900;
    let controller = Controller::start_with_manual_trust().await;
    let (a, b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    create(&controller, "web", json!({})).await;
    // more of the same, as if they had been made one by one
    a.cut();
    controller.wait_online(&a.host, false).await;
    a.look(|inner| {
        let (first, vm) = inner.vms.first_key_value().expect("web");
        let (vm, guardians) = (vm.clone(), inner.tpms[first].clone());
        for n in 1..MANY {
            let mut another = vm.clone();
            let id = VmId(uuid::Uuid::from_u128(n.into()));
            another.metadata.spec.id = id;
            another.metadata.spec.name = format!("web{n}").parse().expect("name");
            inner.vms.insert(id, another);
            inner.tpms.insert(id, guardians.clone());
        }
    });
    a.serve().await;
    controller.wait_online(&a.host, true).await;
    let all = async || controller.get::<Vec<VmView>>("/v1/vms").await.len();
    controller
        .wait("all VMs", async || all().await == MANY as usize)
        .await;

    let grant = json!({"all": true, "to": "b"});
    let job = controller
        .done(Method::POST, "/v1/guardian-grants", &grant)
        .await;
    let result = job.result.expect("a result");
    assert_eq!(
        result["summary"],
        json!({"succeeded": MANY, "failed": 0, "skipped": 0})
    );
    let listed = result["results"].as_array().expect("results").len() as u64;
    let not_listed = result["not_listed"].as_u64().unwrap_or(0);
    assert_eq!(listed + not_listed, u64::from(MANY));
    let id = b.look(|inner| inner.facts.guardians[0].id.clone());
    let lacking = a.look(|inner| inner.tpms.values().filter(|g| !g.contains(&id)).count());
    assert_eq!(lacking, 0, "VMs were left out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_reports_the_vms_that_were_refused_at_once_beside_the_others() {
    let controller = Controller::start_with_manual_trust().await;
    let (_a, _b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    create(&controller, "web", json!({})).await;
    let grant = json!({"vms": ["ghost", "web"], "to": "b"});
    let job = controller
        .done(Method::POST, "/v1/guardian-grants", &grant)
        .await;
    let result = job.result.expect("a result");
    let summary = json!({"succeeded": 1, "failed": 1, "skipped": 0});
    assert_eq!(result["summary"], summary);
    let [web, ghost] = [&result["results"][0], &result["results"][1]];
    assert_eq!((&web["vm"], &ghost["vm"]), (&json!("web"), &json!("ghost")));
    assert_eq!(ghost["code"], "VM_NOT_FOUND", "{result}");
}

/// The lines of a bulk answer.
async fn lines(client: &Client, path: &str, body: &Value) -> Vec<Value> {
    let sent = client.request(Method::POST, path).json(body).send().await;
    let mut lines = sent.expect("an answer").lines();
    let mut all: Vec<Value> = Vec::new();
    while let Some(line) = lines.next_json().await.expect("a line") {
        all.push(line);
    }
    assert_eq!(all.last().expect("lines")["event"], "summary");
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_of_what_expires_name_hosts_that_say_nothing_and_take_the_others_in_order() {
    const ROTATIONS: &str = "/v1/guardian-rotations/expiring";
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    let controller = controller
        .restart_after(|data| mirror(data, "mute", None))
        .await;
    controller
        .wait_online(&"a".parse().expect("name"), true)
        .await;
    let request =
        |years: u64, dry_run| json!({ "within_seconds": years * 31_557_600, "dry_run": dry_run });
    let told = async |client: &Client, years, dry_run| {
        lines(client, ROTATIONS, &request(years, dry_run)).await
    };
    // a host that has not said anything since the restart comes first, the other only where its end is meant
    let soon = told(&controller.local, 1, true).await;
    assert_eq!(soon.len(), 2, "{soon:?}");
    let viewer = controller.admin("eve", Role::Viewer).await;
    let all = told(&viewer, 50, true).await;
    let hosts: Vec<_> = all
        .iter()
        .filter_map(|line| line["host"].as_str())
        .collect();
    assert_eq!(hosts, ["mute", "a"]);
    assert_eq!(
        (&all[0]["would"], &all[1]["would"]),
        (&json!("fail"), &json!("change"))
    );
    assert_eq!(all[0]["failure"]["code"], "HOST_UNREACHABLE");
    assert!(
        all[0].get("expires").is_none() && all[1]["expires"].is_string(),
        "{all:?}"
    );
    let refused = failure(&viewer, Method::POST, ROTATIONS, &request(1, false)).await;
    assert_eq!(refused.1.code, ErrorCode::RoleMissing);

    let run = told(&controller.local, 1, false).await;
    let ended = run.iter().find(|line| line["event"] == "ended");
    let ended = ended.expect("a host");
    assert_eq!(
        (&ended["host"], &ended["outcome"]),
        (&json!("mute"), &json!("failed"))
    );
    assert_eq!(run.last().expect("a summary")["failed"], 1);
}

/// Writes a record like that of host a, as a controller that lost its database takes back from its mirror.
fn mirror(data: &Path, host: &str, ends: Option<OffsetDateTime>) {
    let text = std::fs::read(data.join("hosts/a.json")).expect("the mirror");
    let mut record: Value = serde_json::from_slice(&text).expect("json");
    record["name"] = json!(host);
    record["guardian"]["host"] = json!(host);
    if let Some(ends) = ends {
        for certificate in record["guardian"]["certificates"]
            .as_array_mut()
            .expect("certificates")
        {
            certificate["not_after"] = json!(ends.format(&Rfc3339).expect("a time"));
        }
    }
    let text = serde_json::to_vec(&record).expect("json");
    std::fs::write(data.join(format!("hosts/{host}.json")), text).expect("write");
}

/// What `GET /metrics` says of a family and a host.
async fn metric(controller: &Controller, family: &str, host: &str) -> Vec<i64> {
    let text = controller.metrics().await;
    let host = format!("host=\"{host}\"");
    text.lines()
        .filter(|line| line.starts_with(&format!("{family}{{")) && line.contains(&host))
        .map(|line| {
            line.rsplit(' ')
                .next()
                .expect("a value")
                .parse()
                .expect("a number")
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guardian_that_ends_within_180_days_shows_in_metrics_and_in_the_list() {
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    let now = OffsetDateTime::now_utc();
    let (soon, later) = (now + Duration::days(179), now + Duration::days(181));
    let controller = controller
        .restart_after(|data| {
            mirror(data, "soon", Some(soon));
            mirror(data, "later", Some(later));
            mirror(data, "over", Some(now - Duration::days(1)));
        })
        .await;
    for (host, end, warned) in [
        ("soon", soon, true),
        ("later", later, false),
        ("over", now - Duration::days(1), true),
    ] {
        let family = "fleetward_guardian_not_after_timestamp_seconds";
        assert_eq!(
            metric(&controller, family, host).await,
            [end.unix_timestamp()]
        );
        let family = "fleetward_guardian_expires_soon";
        assert_eq!(
            metric(&controller, family, host).await,
            [i64::from(warned)],
            "{host}"
        );
        let shown: Value = controller.get(&format!("/v1/hosts/{host}")).await;
        let fix = format!("fleetward guardian rotate --host {host}");
        assert_eq!(
            shown["warnings"].to_string().contains(&fix),
            warned,
            "{shown}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_more_than_fifty_hosts_is_told_to_its_user() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    create(&controller, "web", json!({})).await;
    let with = async |controller: Controller, hosts: std::ops::RangeInclusive<u32>| {
        let controller = controller
            .restart_after(|data| hosts.for_each(|n| mirror(data, &format!("h{n}"), None)))
            .await;
        controller.wait_online(&a.host, true).await;
        let shown: Value = controller.get("/v1/hosts/a").await;
        let checks: Value = controller.get("/v1/check?vm=web&to=h2").await;
        let said = [&shown["warnings"], &checks[0]["findings"]];
        (
            said.map(|said| said.to_string().contains("group default has 51 hosts")),
            checks,
            controller,
        )
    };
    let (said, checks, controller) = with(controller, 2..=50).await;
    assert_eq!(said, [false, false], "{checks}");
    let (said, checks, _controller) = with(controller, 51..=51).await;
    assert_eq!(said, [true, true], "{checks}");
    assert!(checks.to_string().contains("GROUP_TOO_LARGE"), "{checks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_by_whom_its_own_verb_lets_in_and_by_nobody_else() {
    let controller = Controller::start_with_manual_trust().await;
    let _agents = (
        controller.join("a", "default").await,
        controller.join("b", "default").await,
    );
    let body = json!({"name": "web", "host": "a", "tpm": true});
    let made = controller.done(Method::POST, "/v1/vms", &body).await;
    let grant = json!({"vms": ["web"], "to": "b"});
    let granted = controller
        .done(Method::POST, "/v1/guardian-grants", &grant)
        .await;
    for (job, may) in [(made.id, Role::Operator), (granted.id, Role::Keeper)] {
        for role in [Role::Viewer, Role::Operator, Role::Keeper, Role::Admin] {
            let client = controller.admin(role.into_str(), role).await;
            let path = format!("/v1/jobs/{job}/cancel");
            let (status, refused) = failure(&client, Method::POST, &path, &json!({})).await;
            let expected = match role == may || role == Role::Admin {
                // It has ended; who asks got as far as that.
                true => (409, ErrorCode::JobNotCancellable),
                false => (403, ErrorCode::RoleMissing),
            };
            assert_eq!(
                (status, refused.code),
                expected,
                "{role:?} {may:?}: {refused}"
            );
        }
    }
}
