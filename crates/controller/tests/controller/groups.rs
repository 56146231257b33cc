//! Roles that hold in some groups of hosts alone: what such a program or person sees of the others, and what it can do there.

use crate::fleet::{Controller, failure};
use crate::jobs::create;
use crate::ways_in::anybody;
use fleetward_api::controller::{ApiTokenMade, ChangesView, HostView, JobView, VmView};
use fleetward_api::verbs::{Access, ENDPOINTS, Endpoint, Reach};
use fleetward_link::{Client, ClientError};
use fleetward_model::role::Role;
use fleetward_model::{ErrorCode, VmId};
use http::Method;
use serde_json::{Value, json};

/// Two groups, each with a host and a VM, and somebody who is an operator in one of them.
struct Two {
    controller: Controller,
    /// Held so that its hosts answer.
    _agents: Vec<crate::fleet::agent::FakeAgent>,
    mine: Client,
    /// A job on the other group's VM.
    foreign_job: String,
}

async fn limited(controller: &Controller, role: &str) -> Client {
    let body = json!({ "name": format!("mine-{role}"), "role": role, "groups": ["mine"] });
    let made: ApiTokenMade = controller.post("/v1/tokens", &body).await;
    anybody(&made).with_token(&made.token).expect("a header")
}

impl Two {
    async fn start() -> Self {
        let controller = Controller::start_with_console().await;
        let agents = vec![
            controller.join("here", "mine").await,
            controller.join("yonder", "theirs").await,
        ];
        create(
            &controller,
            json!({ "name": "my-vm", "group": "mine", "tpm": true }),
        )
        .await;
        create(
            &controller,
            json!({ "name": "foreign", "group": "theirs", "tpm": true }),
        )
        .await;
        let jobs: Vec<JobView> = controller.get("/v1/jobs").await;
        let foreign = jobs.iter().find(|job| job.target.contains("foreign"));
        Self {
            mine: limited(&controller, "operator").await,
            foreign_job: foreign.expect("it was made").id.to_string(),
            controller,
            _agents: agents,
        }
    }
}

/// What a request is answered with: its status, and its text.
async fn answer(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> (u16, String) {
    let mut request = client.request(method, path);
    if let Some(body) = body {
        request = request.json(body);
    }
    match request.send().await {
        Ok(answer) => {
            let status = answer.status.as_u16();
            let body = answer.bytes(1 << 20).await.expect("a body");
            (status, String::from_utf8_lossy(&body).into_owned())
        }
        Err(ClientError::Status { code, body }) => {
            (code.as_u16(), String::from_utf8_lossy(&body).into_owned())
        }
        Err(other) => panic!("{path}: {other:?}"),
    }
}

fn with(path: &str, vm: &str, host: &str, job: &str) -> String {
    path.replace("{vm}", vm)
        .replace("{host}", host)
        .replace("{job}", job)
        .replace('{', "no-")
        .replace('}', "")
}

fn for_operators(endpoint: &&Endpoint) -> bool {
    matches!(endpoint.access, Access::Role(role) if Role::Operator.allows(role))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_another_group_is_as_if_it_were_not_there() {
    let two = Two::start().await;
    let nothing = "00000000-0000-0000-0000-000000000000";
    let mut asked = 0;
    for endpoint in ENDPOINTS.iter().filter(for_operators) {
        let method: Method = endpoint.method.parse().expect("a method");
        let ask = async |path: &str| {
            let body = (method != Method::GET).then(|| json!({}));
            answer(&two.mine, method.clone(), path, body.as_ref()).await
        };
        match endpoint.reach {
            Reach::Fleet => {
                let (status, text) = ask(&with(endpoint.path, "my-vm", "here", nothing)).await;
                assert_eq!(status, 403, "{endpoint:?} {text}");
                assert!(text.contains("GROUPS_LIMITED"), "{endpoint:?} {text}");
            }
            Reach::Vm | Reach::Host | Reach::Job => {
                let theirs = ask(&with(endpoint.path, "foreign", "yonder", &two.foreign_job)).await;
                let none = ask(&with(endpoint.path, "nowhere", "nowhere", nothing)).await;
                let none = none.1.replace("nowhere", "").replace(nothing, "");
                let text = theirs.1.replace("foreign", "").replace("yonder", "");
                let text = text.replace(&two.foreign_job, "");
                assert_eq!((theirs.0, text), (404, none), "{endpoint:?}");
            }
            Reach::Rows | Reach::Open => {
                // Changes never end; they have a test of their own.
                if method != Method::GET || endpoint.path == "/v1/changes" {
                    continue;
                }
                let (status, text) = ask(&with(endpoint.path, "", "", "")).await;
                assert!(
                    status == 200 || status == 404,
                    "{endpoint:?} {status} {text}"
                );
                // The description of the API has words of its own.
                for name in ["yonder", "\"foreign\"", "theirs"] {
                    let said = endpoint.path != "/v1/openapi.json" && text.contains(name);
                    assert!(!said, "{endpoint:?} tells of {name}: {text}");
                }
            }
        }
        asked += 1;
    }
    assert!(asked > 40, "{asked} endpoints");
    // All of it is there for who has the same role in the whole fleet.
    let everything = two.controller.admin("kim", Role::Operator).await;
    let vms: Vec<VmView> = everything.get("/v1/vms").await.expect("all");
    assert_eq!(vms.len(), 2);
    let vms: Vec<VmView> = two.mine.get("/v1/vms").await.expect("some");
    assert_eq!(vms.len(), 1);
    let hosts: Vec<HostView> = two.mine.get("/v1/hosts").await.expect("some");
    assert_eq!(hosts.len(), 1);
    let jobs: Vec<JobView> = two.mine.get("/v1/jobs").await.expect("some");
    assert!(
        jobs.iter().all(|job| job.target.contains("my-vm")),
        "{jobs:?}"
    );
    assert!(!jobs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn by_name_by_id_and_in_bulk_only_ones_own_vms_are_reached() {
    let two = Two::start().await;
    let foreign: VmView = two.controller.get("/v1/vms/foreign").await;
    let path = format!("/v1/vms/{}", foreign.id);
    let (status, refused) = failure(&two.mine, Method::GET, &path, &json!({})).await;
    assert_eq!((status, refused.code), (404, ErrorCode::VmNotFound));
    for vms in [
        json!("all"),
        json!({ "named": ["my-vm", "foreign"] }),
        json!({ "matching": { "host": "yonder", "labels": [] } }),
    ] {
        let body = json!({ "action": { "verb": "start" }, "vms": vms, "dry_run": true });
        let (status, text) = answer(&two.mine, Method::POST, "/v1/bulk", Some(&body)).await;
        assert_eq!(status, 200, "{text}");
        assert!(!text.contains("yonder"), "{text}");
        let told = text.lines().find(|line| line.contains("foreign"));
        assert!(
            told.is_none_or(|line| line.contains("VM_NOT_FOUND")),
            "{text}"
        );
        let body = json!({ "action": { "verb": "start" }, "vms": vms, "dry_run": false });
        answer(&two.mine, Method::POST, "/v1/bulk", Some(&body)).await;
    }
    let foreign: VmView = two.controller.get("/v1/vms/foreign").await;
    assert_eq!(
        foreign.state.to_string(),
        "stopped",
        "nobody may have started it"
    );
    for (query, code) in [
        ("vm=foreign", ErrorCode::VmNotFound),
        ("vm=my-vm&to=yonder", ErrorCode::GroupsLimited),
        ("to=yonder", ErrorCode::GroupsLimited),
    ] {
        let path = format!("/v1/check?{query}");
        let (_, refused) = failure(&two.mine, Method::GET, &path, &json!({})).await;
        assert_eq!(refused.code, code, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_are_made_and_moved_within_ones_groups() {
    let two = Two::start().await;
    for place in [json!({ "group": "theirs" }), json!({ "host": "yonder" })] {
        let mut body = json!({ "name": "new", "tpm": false });
        body.as_object_mut()
            .expect("an object")
            .extend(place.as_object().expect("one").clone());
        let (status, refused) = failure(&two.mine, Method::POST, "/v1/vms", &body).await;
        assert_eq!(
            (status, refused.code),
            (403, ErrorCode::GroupsLimited),
            "{body}"
        );
    }
    for (path, body) in [
        ("/v1/vms/my-vm/migrate", json!({ "to": "yonder" })),
        (
            "/v1/vms/my-vm/clone",
            json!({ "name": "copy", "host": "yonder" }),
        ),
    ] {
        let (status, refused) = failure(&two.mine, Method::POST, path, &body).await;
        assert_eq!(
            (status, refused.code),
            (403, ErrorCode::GroupsLimited),
            "{path}"
        );
    }
    let action = json!({ "verb": "migrate", "to": "yonder" });
    let body = json!({ "action": action, "vms": "all", "dry_run": true });
    let (_, refused) = failure(&two.mine, Method::POST, "/v1/bulk", &body).await;
    assert_eq!(refused.code, ErrorCode::GroupsLimited);
    // Nothing said about the place: there is only one.
    let body = json!({ "name": "new", "tpm": false });
    let made = answer(&two.mine, Method::POST, "/v1/vms", Some(&body)).await;
    assert_eq!(made.0, 202, "{}", made.1);
    let accepted: Value = serde_json::from_str(&made.1).expect("JSON");
    let job = accepted["job"].as_str().expect("a job");
    let (status, _) = answer(&two.mine, Method::GET, &format!("/v1/jobs/{job}"), None).await;
    assert_eq!(status, 200, "one's own job is seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_of_the_whole_fleet_have_no_groups() {
    let controller = Controller::start_with_console().await;
    for body in [
        json!({ "name": "x", "role": "admin", "groups": ["mine"] }),
        json!({ "name": "x", "role": "keeper", "groups": ["mine"] }),
        json!({ "name": "x", "role": "viewer", "groups": [] }),
    ] {
        let refused = controller.refusal(Method::POST, "/v1/tokens", &body).await;
        assert_eq!(refused.code, ErrorCode::InvalidArgument, "{body}");
        let mut user = body.clone();
        user["password"] = json!("correct horse battery");
        let refused = controller.refusal(Method::POST, "/v1/users", &user).await;
        assert_eq!(refused.code, ErrorCode::InvalidArgument, "{user}");
    }
    let user = json!({ "name": "kim", "role": "operator", "groups": ["mine"], "password": "correct horse battery" });
    let _: Value = controller.post("/v1/users", &user).await;
    // An administrator has no limits, so they must go first; what is left out stays.
    let patch = async |body: Value| {
        let sent = controller.local.request(Method::PATCH, "/v1/users/kim");
        let sent = sent.json(&body).send().await;
        sent.map(|_| ()).map_err(|error| format!("{error:?}"))
    };
    patch(json!({ "role": "admin" }))
        .await
        .expect_err("refused");
    patch(json!({ "role": "viewer" })).await.expect("changed");
    let users: Vec<Value> = controller.get("/v1/users").await;
    assert_eq!(users[0]["groups"], json!(["mine"]));
    patch(json!({ "role": "admin", "groups": null }))
        .await
        .expect("changed");
    let users: Vec<Value> = controller.get("/v1/users").await;
    assert_eq!(
        (&users[0]["groups"], &users[0]["role"]),
        (&Value::Null, &json!("admin"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_within_a_second_and_only_of_ones_own() {
    let two = Two::start().await;
    let path = "/v1/changes";
    let follow = async |client: &Client| {
        let sent = client.request(Method::GET, path).send().await;
        let mut lines = sent.expect("a stream").lines();
        let first = next(&mut lines).await;
        assert!(first.all, "{first:?}");
        lines
    };
    let mut mine = follow(&two.mine).await;
    let mut all = follow(&two.controller.local).await;
    let foreign: VmView = two.controller.get("/v1/vms/foreign").await;
    let own: VmView = two.controller.get("/v1/vms/my-vm").await;
    for vm in ["foreign", "my-vm"] {
        let path = format!("/v1/vms/{vm}/start");
        let begun = std::time::Instant::now();
        let _: Value = two.controller.post(&path, &json!({})).await;
        let id = if vm == "foreign" { foreign.id } else { own.id };
        until(&mut all, id).await;
        assert!(begun.elapsed() < std::time::Duration::from_secs(5));
    }
    let told = until(&mut mine, own.id).await;
    assert!(!told.contains(&foreign.id), "{told:?}");
}

/// All that is told until it is time to read that VM anew.
async fn until(lines: &mut fleetward_link::client::Lines, vm: VmId) -> Vec<VmId> {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut all = Vec::new();
    loop {
        let told = tokio::time::timeout_at(deadline, next(lines)).await;
        let told = told.expect("told in time");
        all.extend(told.vms);
        if told.all || all.contains(&vm) {
            return all;
        }
    }
}

async fn next(lines: &mut fleetward_link::client::Lines) -> ChangesView {
    let wait = std::time::Duration::from_secs(15);
    loop {
        let line = tokio::time::timeout(wait, lines.next()).await;
        let line = line.expect("in time").expect("no error").expect("a line");
        if !line.trim().is_empty() {
            return serde_json::from_str(&line).expect("a change");
        }
    }
}
