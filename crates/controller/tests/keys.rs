//! Who gets a VM's TPM key, whichever job makes one.

#[expect(dead_code, reason = "each test program uses its own part")]
mod fleet;

use fleet::Controller;
use fleet::agent::FakeAgent;
use fleetward_api::controller::VmView;
use http::Method;
use serde_json::{Value, json};

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
