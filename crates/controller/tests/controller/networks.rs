//! Networks of hosts, and network cards of VMs: a card needs its network on the VM's host, and an address of its own.

use crate::fleet::Controller;
use crate::fleet::agent::FakeAgent;
use fleetward_api::controller::{JobState, NetworkView, TemplateView, VmView};
use fleetward_model::ErrorCode;
use fleetward_model::network::{NetworkFacts, NetworkPlace};
use http::Method;
use serde_json::{Value, json};

const MAC: &str = "52:54:00:aa:bb:01";

fn lan(bridge: &str, vlans: bool) -> NetworkFacts {
    NetworkFacts {
        name: "lan".parse().expect("a name"),
        place: NetworkPlace::Bridge {
            bridge: bridge.to_owned(),
        },
        vlans,
        filters: false,
        problem: None,
    }
}

/// What a host offers from now on.
async fn offer(controller: &Controller, agent: &FakeAgent, networks: Vec<NetworkFacts>) {
    controller
        .hears_from(agent, |facts| facts.networks.clone_from(&networks))
        .await;
}

/// Host `a` has the network `lan`, host `b` only `nat`.
async fn fleet() -> (Controller, FakeAgent, FakeAgent) {
    let controller = Controller::start().await;
    let (a, b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    a.knows(&b);
    offer(&controller, &a, vec![lan("br0", true)]).await;
    (controller, a, b)
}

async fn with_web(controller: &Controller) {
    let web = json!({"name": "web", "host": "a", "nics": [{"network": "lan", "mac": MAC}]});
    controller.done(Method::POST, "/v1/vms", &web).await;
}

async fn show(controller: &Controller, vm: &str) -> VmView {
    controller.get(&format!("/v1/vms/{vm}")).await
}

async fn refused(controller: &Controller, method: Method, path: &str, body: Value) -> ErrorCode {
    let failure = controller.refusal(method, path, &body).await;
    match failure.findings.first() {
        Some(finding) => finding.code,
        None => failure.code,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_the_network_takes_nobody_who_needs_it() {
    let (controller, _a, b) = fleet().await;
    with_web(&controller).await;
    let placed = json!({"name": "placed", "nics": [{"network": "lan"}]});
    controller.done(Method::POST, "/v1/vms", &placed).await;
    assert_eq!(show(&controller, "placed").await.host.as_str(), "a");
    let nic = json!([{"network": "lan"}]);
    for (path, body) in [
        ("/v1/vms", json!({"name": "new", "host": "b", "nics": nic})),
        ("/v1/vms/web/clone", json!({"name": "new", "host": "b"})),
        ("/v1/vms/web/migrate", json!({"to": "b", "offline": true})),
    ] {
        let code = refused(&controller, Method::POST, path, body).await;
        assert_eq!(code, ErrorCode::NetworkMissing, "{path}");
    }
    let plain = json!({"name": "plain", "host": "b"});
    controller.done(Method::POST, "/v1/vms", &plain).await;
    let add = json!({"nics": [{"action": "add", "network": "lan"}]});
    let code = refused(&controller, Method::PATCH, "/v1/vms/plain", add.clone()).await;
    assert_eq!(code, ErrorCode::NetworkMissing);
    assert!(b.look(|inner| !inner.asked.contains(&"change-vm")));

    // A network that is there and cannot do what is asked.
    offer(&controller, &b, vec![lan("br7", false)]).await;
    let vlan = json!({"nics": [{"action": "add", "network": "lan", "vlan": 7}]});
    let code = refused(&controller, Method::PATCH, "/v1/vms/plain", vlan).await;
    assert_eq!(code, ErrorCode::NetworkMissing);
    controller.done(Method::PATCH, "/v1/vms/plain", &add).await;
    let broken = NetworkFacts {
        problem: Some("there is no bridge br7".into()),
        ..lan("br7", false)
    };
    offer(&controller, &b, vec![broken]).await;
    let again = json!({"to": "b", "offline": true});
    let code = refused(&controller, Method::POST, "/v1/vms/web/migrate", again).await;
    assert_eq!(code, ErrorCode::NetworkMissing);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_belongs_to_one_card_of_the_fleet() {
    let (controller, _a, _b) = fleet().await;
    with_web(&controller).await;
    let plain = json!({"name": "plain", "host": "b"});
    controller.done(Method::POST, "/v1/vms", &plain).await;
    let same = json!([{"network": "nat", "mac": "52-54-00-AA-BB-01"}]);
    let create = json!({"name": "new", "host": "b", "nics": same});
    let code = refused(&controller, Method::POST, "/v1/vms", create).await;
    assert_eq!(code, ErrorCode::MacTaken);
    for change in [
        json!({"action": "add", "network": "nat", "mac": MAC}),
        json!({"action": "set", "nic": "nic-0", "mac": MAC}),
    ] {
        let body = json!({"nics": [change]});
        let code = refused(&controller, Method::PATCH, "/v1/vms/plain", body).await;
        assert_eq!(code, ErrorCode::MacTaken);
    }
    let twice = json!([{"network": "nat", "mac": "52:54:00:00:00:09"}, {"network": "nat", "mac": "52:54:00:00:00:09"}]);
    let create = json!({"name": "new", "host": "b", "nics": twice});
    let code = refused(&controller, Method::POST, "/v1/vms", create).await;
    assert_eq!(code, ErrorCode::MacTaken);

    let clone = json!({"name": "twin", "host": "a", "tpm": "none"});
    controller
        .done(Method::POST, "/v1/vms/web/clone", &clone)
        .await;
    let (web, twin) = (
        show(&controller, "web").await,
        show(&controller, "twin").await,
    );
    assert_eq!(twin.nics[0].network, web.nics[0].network);
    assert_ne!(twin.nics[0].mac, web.nics[0].mac);
    // It is free again when nobody has it.
    controller
        .done(Method::DELETE, "/v1/vms/web", &json!({}))
        .await;
    let body = json!({"nics": [{"action": "set", "nic": "nic-0", "mac": MAC}]});
    controller.done(Method::PATCH, "/v1/vms/plain", &body).await;
    assert_eq!(show(&controller, "plain").await.nics[0].mac, MAC);
}

/// Neither VM is there when the other is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn two_requests_at_one_moment_do_not_get_one_address() {
    let (controller, a, _b) = fleet().await;
    a.look(|inner| inner.busy.insert("create-volumes"));
    let nics = json!([{"network": "lan", "mac": MAC}]);
    let first = json!({"name": "one", "host": "a", "nics": nics});
    let _: Value = controller.post("/v1/vms", &first).await;
    let second = json!({"name": "two", "host": "a", "nics": nics});
    let failure = controller.refusal(Method::POST, "/v1/vms", &second).await;
    assert_eq!(failure.code, ErrorCode::MacTaken, "{failure}");
    a.look(|inner| inner.busy.clear());
}

#[tokio::test(flavor = "multi_thread")]
async fn cards_come_change_and_go_and_a_template_keeps_their_networks() {
    let (controller, _a, _b) = fleet().await;
    with_web(&controller).await;
    let body = json!({"nics": [
        {"action": "add", "network": "lan", "vlan": 7},
        {"action": "set", "nic": "nic-0", "link": "down"},
    ]});
    controller.done(Method::PATCH, "/v1/vms/web", &body).await;
    let web = show(&controller, "web").await;
    let ids: Vec<&str> = web.nics.iter().map(|nic| nic.id.as_str()).collect();
    assert_eq!(ids, ["nic-0", "nic-1"]);
    assert!(!web.nics[0].link.is_up() && web.nics[1].vlan.is_some());
    assert!(web.findings.is_empty() && web.pending.is_empty(), "{web:?}");
    let golden = json!({"name": "golden", "from": "web"});
    controller
        .done(Method::POST, "/v1/templates", &golden)
        .await;
    let template: TemplateView = controller.get("/v1/templates/golden").await;
    let nics = template.nics.expect("kept");
    assert!(nics.iter().all(|nic| nic.mac.is_none()), "{nics:?}");
    let deployed = json!({"name": "deployed", "template": "golden"});
    controller.done(Method::POST, "/v1/vms", &deployed).await;
    let deployed = show(&controller, "deployed").await;
    assert_eq!(deployed.nics[1].vlan, web.nics[1].vlan);
    assert_ne!(deployed.nics[1].mac, web.nics[1].mac);
    let none = json!({"nics": [{"action": "remove", "nic": "nic-0"}, {"action": "set", "nic": "nic-1", "vlan": null}]});
    let job = controller.job(Method::PATCH, "/v1/vms/web", &none).await;
    assert_eq!(job.state, JobState::Done, "{job:?}");
    let web = show(&controller, "web").await;
    assert_eq!(web.nics.len(), 1);
    assert_eq!(web.nics[0].vlan, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_default_network_is_what_a_card_gets_of_which_nothing_is_said() {
    let (controller, a, b) = fleet().await;
    a.look(|inner| inner.facts.default_network = "lan".parse().expect("a name"));
    offer(&controller, &a, vec![lan("br0", false)]).await;
    for (name, host, network) in [("one", "a", "lan"), ("two", "b", "nat")] {
        let vm = json!({"name": name, "host": host});
        controller.done(Method::POST, "/v1/vms", &vm).await;
        let nics = show(&controller, name).await.nics;
        let networks: Vec<String> = nics
            .iter()
            .filter_map(|nic| Some(nic.network.as_ref()?.to_string()))
            .collect();
        assert_eq!(networks, [network]);
    }
    let bare = json!({"name": "bare", "host": "a", "nics": []});
    controller.done(Method::POST, "/v1/vms", &bare).await;
    assert!(show(&controller, "bare").await.nics.is_empty());

    let networks: Vec<NetworkView> = controller.get("/v1/networks").await;
    let rows: Vec<(&str, &str, bool)> = networks
        .iter()
        .flat_map(|network| {
            let on = network.hosts.iter();
            on.map(|on| (network.name.as_str(), on.host.as_str(), on.default))
        })
        .collect();
    assert_eq!(
        rows,
        [("lan", "a", true), ("nat", "a", false), ("nat", "b", true)]
    );
    drop(b);
}
