//! Lists in pages, against a real controller.

use crate::fleet::agent::FakeVm;
use crate::fleet::{Controller, failure};
use fleetward_api::controller::{GuardianView, HostView, VmView};
use fleetward_api::lists::Row;
use fleetward_model::vm::VmState;
use fleetward_model::{ErrorCode, VmId};
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

/// Cursors of a list that is asked for in pages of two rows.
async fn paged<T: Row + DeserializeOwned>(controller: &Controller, path: &str) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let after: String = seen
            .last()
            .map(|cursor| format!("&after={cursor}"))
            .unwrap_or_default();
        let page: Vec<T> = controller.get(&format!("{path}limit=2{after}")).await;
        assert!(page.len() <= 2, "{path} gave {} rows", page.len());
        let last = page.len() < 2;
        seen.extend(page.iter().map(Row::cursor));
        if last {
            return seen;
        }
    }
}

async fn whole<T: Row + DeserializeOwned>(controller: &Controller, path: &str) -> Vec<String> {
    let rows: Vec<T> = controller.get(path).await;
    rows.iter().map(Row::cursor).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_put_together_are_the_whole_list() {
    let controller = Controller::start().await;
    let _agents = [
        controller.join("c", "default").await,
        controller.join("a", "other").await,
    ];
    for host in ["b", "e", "d"] {
        controller.token(host, "default").await;
    }
    let hosts = paged::<HostView>(&controller, "/v1/hosts?").await;
    assert_eq!(hosts, ["a", "b", "c", "d", "e"]);
    assert_eq!(whole::<HostView>(&controller, "/v1/hosts").await, hosts);

    let of_group = paged::<HostView>(&controller, "/v1/hosts?group=other&").await;
    assert_eq!(of_group, ["a"]);
    let invited = paged::<HostView>(&controller, "/v1/hosts?state=invited&").await;
    assert_eq!(invited, ["b", "d", "e"]);

    let certificates = paged::<GuardianView>(&controller, "/v1/guardians?").await;
    assert_eq!(certificates.len(), 4, "two of each host: {certificates:?}");
    assert_eq!(
        whole::<GuardianView>(&controller, "/v1/guardians").await,
        certificates
    );

    let records = paged::<Value>(&controller, "/v1/audit?").await;
    assert!(records.len() > 5, "{records:?}");
    assert_eq!(whole::<Value>(&controller, "/v1/audit").await, records);
}

/// A host may say anything; what it says is shown.
#[tokio::test(flavor = "multi_thread")]
async fn vms_of_one_name_on_one_host_are_all_on_some_page() {
    let controller = Controller::start_with_manual_trust().await;
    let a = controller.join("a", "default").await;
    let body = json!({"name": "web", "host": "a"});
    controller.done(Method::POST, "/v1/vms", &body).await;
    let web: VmView = controller.get("/v1/vms/web").await;
    a.look(|inner| {
        let metadata = inner.vms[&web.id].metadata.clone();
        for _ in 0..4 {
            let mut other = metadata.clone();
            other.spec.id = VmId(Uuid::new_v4());
            let id = other.spec.id;
            inner.vms.insert(id, FakeVm::new(other, VmState::Stopped));
            inner.tell(id);
        }
    });
    let five = async || whole::<VmView>(&controller, "/v1/vms").await.len() == 5;
    controller.wait("all to be shown", five).await;
    let all = whole::<VmView>(&controller, "/v1/vms").await;
    assert_eq!(paged::<VmView>(&controller, "/v1/vms?").await, all);
    assert_eq!(paged::<VmView>(&controller, "/v1/vms?host=a&").await, all);
    // a cursor of before stands for all of that name on that host
    let after: Vec<VmView> = controller.get("/v1/vms?limit=2&after=web/a").await;
    assert!(after.is_empty(), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_cannot_be_is_refused_with_its_bounds() {
    let controller = Controller::start().await;
    for path in [
        "/v1/vms?limit=0",
        "/v1/jobs?limit=1001",
        "/v1/images?limit=x",
        "/v1/jobs?after=00000000-0000-0000-0000-000000000000",
        "/v1/hosts?state=asleep",
    ] {
        let (status, failure) = failure(&controller.local, Method::GET, path, &json!({})).await;
        assert_eq!(
            (status, failure.code),
            (400, ErrorCode::InvalidArgument),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_labels_a_vm_has_all() {
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    for (name, labels) in [
        ("one", json!({ "tier": "front", "site": "tokyo" })),
        ("two", json!({ "tier": "front", "site": "osaka" })),
        ("three", json!({ "site": "tokyo" })),
    ] {
        let body = json!({ "name": name, "labels": labels });
        controller.done(Method::POST, "/v1/vms", &body).await;
    }
    let names = async |query: &str| {
        let vms: Vec<Value> = controller.get(&format!("/v1/vms?{query}")).await;
        let names = vms.iter().map(|vm| vm["name"].as_str().map(str::to_owned));
        names.collect::<Option<Vec<_>>>().expect("names")
    };
    assert_eq!(names("label=tier%3Dfront").await, ["one", "two"]);
    assert_eq!(
        names("label=tier%3Dfront&label=site%3Dtokyo").await,
        ["one"]
    );
    // The filter goes before the limit.
    assert_eq!(
        names("label=tier%3Dfront&label=site%3Dosaka&limit=1").await,
        ["two"]
    );
    let wrong = controller
        .refusal(
            Method::GET,
            "/v1/vms?label=tier%3Dfront&label=site",
            &json!({}),
        )
        .await;
    assert_eq!(wrong.code, ErrorCode::InvalidArgument);
}
