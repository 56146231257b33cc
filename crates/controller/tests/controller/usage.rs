//! What hosts say that they and their VMs use, and what becomes of it.

use crate::fleet::Controller;
use crate::fleet::agent::FakeAgent;
use fleetward_api::agent::{LoadReport, VmLoad};
use fleetward_api::controller::{HostView, LoadHistory, VmView};
use fleetward_model::load::Load;
use fleetward_model::vm::VmState;
use fleetward_model::{ErrorCode, VmId};
use http::Method;
use serde_json::{Value, json};

fn cpu(cpu: u64) -> Load {
    Load {
        cpu: Some(cpu),
        ..Load::default()
    }
}

/// A host says that it uses `own`, and of its VMs what they use.
fn tell(agent: &FakeAgent, own: Load, vms: &[(VmId, Load)]) {
    let vms = vms.iter().map(|(id, load)| VmLoad {
        id: *id,
        load: *load,
    });
    let report = LoadReport {
        host: own,
        vms: vms.collect(),
    };
    agent.look(|inner| inner.tell_load(report));
}

/// A host that says only what a test has it say of what it uses.
async fn silent(controller: &Controller, name: &str) -> FakeAgent {
    let agent = controller.join(name, "default").await;
    agent.look(|inner| inner.tells_load = false);
    agent
}

async fn running(controller: &Controller, name: &str, host: &str) -> VmId {
    let body = json!({"name": name, "host": host, "start": true});
    controller.done(Method::POST, "/v1/vms", &body).await;
    let vm: VmView = controller.get(&format!("/v1/vms/{name}")).await;
    assert_eq!(vm.state, VmState::Running);
    vm.id
}

async fn vm_cpu(controller: &Controller, name: &str) -> Option<f32> {
    let vm: VmView = controller.get(&format!("/v1/vms/{name}")).await;
    vm.usage?.cpu_percent
}

async fn host_cpu(controller: &Controller, name: &str) -> Option<f32> {
    let host: HostView = controller.get(&format!("/v1/hosts/{name}")).await;
    host.usage?.cpu_percent
}

/// Waits until a host's own figure shows that its last word was heard.
async fn heard(controller: &Controller, host: &str, percent: f32) {
    let shown = async || host_cpu(controller, host).await == Some(percent);
    controller.wait("the host's load", shown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_shown_while_it_is_of_now_and_kept_as_history() {
    let controller = Controller::start().await;
    let a = silent(&controller, "a").await;
    let web = running(&controller, "web", "a").await;
    let whole = Load {
        cpu: Some(500),
        memory: Some(1 << 30),
        storage: None,
        read: Some(1000),
        written: Some(2000),
        requests: Some(30),
        received: Some(400),
        sent: Some(50),
    };
    let of_host = Load {
        storage: Some(7 << 30),
        ..cpu(250)
    };
    tell(&a, of_host, &[(web, whole)]);
    heard(&controller, "a", 25.0).await;

    let vms: Value = controller.get("/v1/vms?usage=true").await;
    let mut usage = vms[0]["usage"].clone();
    let at = usage["at"].take();
    assert!(at.is_string(), "{vms}");
    let expected = json!({
        "at": null, "cpu_percent": 50.0, "memory_bytes": 1 << 30, "disk_read_bytes_per_second": 1000,
        "disk_written_bytes_per_second": 2000, "disk_requests_per_second": 30, "net_received_bytes_per_second": 400,
        "net_sent_bytes_per_second": 50
    });
    assert_eq!(usage, expected);
    let hosts: Value = controller.get("/v1/hosts?usage=true").await;
    assert_eq!(hosts[0]["usage"]["storage_bytes"], 7_u64 << 30, "{hosts}");
    for path in ["/v1/vms", "/v1/hosts"] {
        let rows: Value = controller.get(path).await;
        assert!(rows[0].get("usage").is_none(), "nobody asked: {rows}");
    }
    let metrics = controller.metrics().await;
    for line in [
        "fleetward_host_cpu_used_ratio{host=\"a\"} 0.25",
        "fleetward_host_storage_used_bytes{host=\"a\"} 7516192768",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }

    // what does not run uses nothing, whatever was told a moment ago
    let stop = json!({"force": true});
    controller
        .done(Method::POST, "/v1/vms/web/stop", &stop)
        .await;
    assert_eq!(vm_cpu(&controller, "web").await, None);

    // the end of the controller writes what it knows, and the next one has it, as history
    let controller = controller.restart().await;
    let history: LoadHistory = controller.get("/v1/vms/web/load").await;
    assert_eq!(history.step, 60);
    let point = history.points.last().expect("a point");
    assert_eq!(
        (point.cpu_percent, point.disk_requests_per_second),
        (Some(50.0), Some(30))
    );
    let history: LoadHistory = controller.get("/v1/hosts/a/load?step=3600").await;
    let point = history.points.last().expect("a point");
    let storage = point.storage_bytes.expect("known");
    assert!(storage.abs_diff(7 << 30) < (7 << 30) / 1000, "{storage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_speaks_of_its_own_vms_alone_and_no_figure_is_believed_that_cannot_be() {
    let controller = Controller::start().await;
    let (a, b) = tokio::join!(silent(&controller, "a"), silent(&controller, "b"));
    a.knows(&b);
    let web = running(&controller, "web", "a").await;
    let nobody = VmId(uuid::Uuid::from_u128(7));
    tell(&a, cpu(1), &[(web, cpu(100))]);
    heard(&controller, "a", 0.1).await;
    assert_eq!(vm_cpu(&controller, "web").await, Some(10.0));

    // b lies about the VM of a, and about VMs that there are not
    let mut lies: Vec<_> = (0..20_000)
        .map(|n| (VmId(uuid::Uuid::from_u128(n)), cpu(9)))
        .collect();
    lies.insert(0, (web, cpu(900)));
    lies.insert(1, (nobody, cpu(900)));
    tell(&b, cpu(2), &lies);
    heard(&controller, "b", 0.2).await;
    assert_eq!(vm_cpu(&controller, "web").await, Some(10.0));

    // a says what cannot be
    let monstrous = Load::of_figures([Some(u64::MAX); Load::FIGURES]);
    tell(&a, cpu(3), &[(web, monstrous)]);
    heard(&controller, "a", 0.3).await;
    let vm: Value = controller.get("/v1/vms/web").await;
    let usage = vm["usage"].as_object().expect("a word of its host");
    assert!(usage.keys().all(|field| field == "at"), "{vm}");

    // a moved VM's figures go on, by the word of the host that has it now
    tell(&a, cpu(4), &[(web, cpu(200))]);
    heard(&controller, "a", 0.4).await;
    let move_it = json!({"to": "b"});
    controller
        .done(Method::POST, "/v1/vms/web/migrate", &move_it)
        .await;
    tell(&b, cpu(5), &[(web, cpu(300))]);
    heard(&controller, "b", 0.5).await;
    tell(&a, cpu(6), &[(web, cpu(900))]);
    heard(&controller, "a", 0.6).await;
    assert_eq!(vm_cpu(&controller, "web").await, Some(30.0));

    // nobody knows of a host that does not answer
    b.cut();
    controller.wait_online(&b.host, false).await;
    assert_eq!(host_cpu(&controller, "b").await, None);
    assert_eq!(vm_cpu(&controller, "web").await, None);
    let hosts: Vec<HostView> = controller.get("/v1/hosts?usage=true").await;
    let known: Vec<_> = hosts.iter().map(|host| host.usage.is_some()).collect();
    assert_eq!(known, [true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn simulated_hosts_tell_what_they_use_by_themselves() {
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    running(&controller, "web", "a").await;
    let shown = async || vm_cpu(&controller, "web").await.is_some();
    controller.wait("a load", shown).await;
    assert!(host_cpu(&controller, "a").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_history_that_make_no_sense_are_refused() {
    let mut controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    for (path, code) in [
        ("/v1/hosts/ghost/load", ErrorCode::HostNotFound),
        ("/v1/vms/ghost/load", ErrorCode::VmNotFound),
        (
            "/v1/hosts/a/load?from=yesterday",
            ErrorCode::InvalidArgument,
        ),
        ("/v1/hosts/a/load?step=61", ErrorCode::InvalidArgument),
        ("/v1/hosts/a/load?step=-60", ErrorCode::InvalidArgument),
        (
            "/v1/hosts/a/load?from=2020-01-01T00:00:00Z&step=60",
            ErrorCode::InvalidArgument,
        ),
        (
            "/v1/hosts/a/load?to=2020-01-01T00:00:00Z&from=2020-01-02T00:00:00Z",
            ErrorCode::InvalidArgument,
        ),
    ] {
        let refusal = controller.refusal(Method::GET, path, &json!({})).await;
        assert_eq!(refusal.code, code, "{path}: {refusal:?}");
    }
    let years: LoadHistory = controller
        .get("/v1/hosts/a/load?from=1990-01-01T00:00:00Z")
        .await;
    assert!(years.points.is_empty() && years.step > 3600, "{years:?}");

    // a history that cannot be kept is none, and the controller works
    controller.end().await;
    let load = controller.data().join("load");
    std::fs::remove_dir_all(&load).expect("removed");
    std::fs::write(&load, "in the way").expect("written");
    let controller = controller.restart().await;
    let none: LoadHistory = controller.get("/v1/hosts/a/load").await;
    assert!(none.points.is_empty(), "{none:?}");
}
