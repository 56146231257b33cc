//! Hosts that say they have a VM which another host has. The agents are simulated; what they say comes over real TLS.

use crate::fleet::Controller;
use crate::fleet::agent::{FakeAgent, FakeVm};
use fleetward_api::controller::{CheckView, VmView};
use fleetward_model::vm::VmState;
use fleetward_model::{ErrorCode, VmId};
use http::Method;
use serde_json::{Value, json};

/// Three hosts; a has the VM `web`, and b says that it has it, too, and that it runs there.
async fn claimed() -> (Controller, [FakeAgent; 3], VmId) {
    let controller = Controller::start_with_manual_trust().await;
    let (a, b, c) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default"),
        controller.join("c", "default")
    );
    a.knows(&b);
    a.knows(&c);
    let body = json!({"name": "web", "host": "a"});
    controller.done(Method::POST, "/v1/vms", &body).await;
    let web: VmView = controller.get("/v1/vms/web").await;
    claim(&controller, &a, &b, web.id).await;
    (controller, [a, b, c], web.id)
}

/// `liar` says that it has what `owner` has, running, and newer.
async fn claim(controller: &Controller, owner: &FakeAgent, liar: &FakeAgent, id: VmId) {
    let metadata = owner.look(|inner| inner.vms[&id].metadata.clone());
    liar.look(|inner| {
        inner
            .vms
            .insert(id, FakeVm::new(metadata, VmState::Running));
        inner.tell(id);
    });
    let shown = async || {
        let web: VmView = controller.get(&format!("/v1/vms/{id}")).await;
        !web.claims.is_empty()
    };
    controller.wait("the claim to show", shown).await;
    owner.look(|inner| inner.asked.clear());
    liar.look(|inner| inner.asked.clear());
}

async fn versions(controller: &Controller) -> usize {
    let all: Value = controller.get("/v1/vms/web/tpm/history").await;
    all.as_array().expect("a list").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_with_a_vm_that_two_hosts_claim() {
    let (controller, [a, b, c], _) = claimed().await;
    let kept = versions(&controller).await;
    for (method, path, body) in [
        (Method::POST, "/v1/vms/web/start", json!({})),
        (Method::POST, "/v1/vms/web/stop", json!({"force": true})),
        (Method::POST, "/v1/vms/web/pause", json!({})),
        (Method::DELETE, "/v1/vms/web", json!({})),
        (Method::POST, "/v1/vms/web/clone", json!({"name": "twin"})),
        (Method::POST, "/v1/vms/web/migrate", json!({"to": "c"})),
        (Method::POST, "/v1/vms/web/tpm/roll", json!({})),
        (Method::POST, "/v1/vms/web/tpm/disable", json!({})),
        (Method::POST, "/v1/vms/web/recover", json!({"to": "c"})),
        (Method::PATCH, "/v1/vms/web", json!({"description": "x"})),
        (
            Method::POST,
            "/v1/templates",
            json!({"name": "golden", "from": "web"}),
        ),
        (
            Method::POST,
            "/v1/guardian-revocations",
            json!({"vm": "web", "from": "c"}),
        ),
    ] {
        let refusal = controller.refusal(method, path, &body).await;
        assert_eq!(refusal.code, ErrorCode::VmDisputed, "{path}: {refusal:?}");
        for host in ["a", "b"] {
            let fix = format!("fleetward vm settle web --host {host}");
            assert!(refusal.fix.contains(&fix), "{refusal:?}");
        }
    }
    // the check says the same, for one VM and in the matrix
    for path in ["/v1/check?vm=web", "/v1/check"] {
        let checks: Vec<CheckView> = controller.get(path).await;
        assert!(
            !checks.is_empty() && checks.iter().all(|one| !one.possible),
            "{checks:#?}"
        );
        let told = |one: &CheckView| one.findings.iter().any(|f| f.code == ErrorCode::VmDisputed);
        assert!(checks.iter().all(told), "{path}: {checks:#?}");
    }
    // keys: by name, and all that a host of the group lacks
    let grant = json!({"vms": ["web"], "to": "c"});
    let said: Value = controller.post("/v1/guardian-grants", &grant).await;
    assert!(said["job"].is_null(), "{said}");
    assert!(said["plan"].to_string().contains("VM_DISPUTED"), "{said}");
    // a drain moves nothing of it
    let drain = controller
        .job(Method::POST, "/v1/hosts/b/drain", &json!({}))
        .await;
    let drain = serde_json::to_string(&drain).expect("text");
    assert!(drain.contains("VM_DISPUTED"), "{drain}");
    for agent in [&a, &b, &c] {
        let asked = agent.look(|inner| inner.asked.clone());
        assert!(asked.is_empty(), "host {}: {asked:?}", agent.host);
    }
    assert_eq!(versions(&controller).await, kept, "copies of the TPM");
    // a claim does not go away with the host that made it
    b.cut();
    controller.wait_online(&b.host, false).await;
    let refusal = controller
        .refusal(Method::POST, "/v1/vms/web/start", &json!({}))
        .await;
    assert_eq!(refusal.code, ErrorCode::VmDisputed, "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_says_whose_a_vm_is_and_what_others_have_is_ended() {
    let (controller, [a, b, c], id) = claimed().await;
    // also where nobody answers at the moment
    claim(&controller, &a, &c, id).await;
    c.cut();
    controller.wait_online(&c.host, false).await;
    let web: VmView = controller.get("/v1/vms/web").await;
    let claims: Vec<_> = web.claims.iter().map(|one| one.host.as_str()).collect();
    assert_eq!(claims, ["a", "b", "c"]);

    let nobody = json!({"host": "d"});
    let refusal = controller
        .refusal(Method::POST, "/v1/vms/web/settle", &nobody)
        .await;
    assert_eq!(refusal.code, ErrorCode::InvalidArgument, "{refusal:?}");

    let answer: Value = controller
        .post("/v1/vms/web/settle", &json!({"host": "a"}))
        .await;
    assert_eq!(answer, json!({"host": "a", "ended": ["b", "c"]}));
    let web: VmView = controller.get("/v1/vms/web").await;
    assert_eq!((web.host.as_str(), web.claims.len()), ("a", 0));
    let gone = async || b.look(|inner| inner.vms.is_empty());
    controller.wait("b's copy to be ended", gone).await;
    let asked = b.look(|inner| inner.asked.clone());
    assert_eq!(asked, ["supersede", "clean-up-departed"]);
    // the VM of the right host is as it was, and takes requests
    let free = async || {
        let web: VmView = controller.get("/v1/vms/web").await;
        web.job.is_none()
    };
    controller.wait("the VM to be free", free).await;
    controller
        .done(Method::POST, "/v1/vms/web/start", &json!({}))
        .await;
    let asked = a.look(|inner| inner.asked.clone());
    assert_eq!(asked, ["start"]);
    // the one that did not answer ends its copy when it is back
    c.comes_back().await;
    let gone = async || c.look(|inner| inner.vms.is_empty());
    controller.wait("c's copy to be ended", gone).await;
    // the job that ended it has an end of its own
    controller.wait("the VM to be free", free).await;
    // who said so is on record
    let audit: Value = controller.get("/v1/audit?vm=web").await;
    let said = audit.to_string();
    assert!(
        said.contains("settle-vm") && said.contains("b and c"),
        "{said}"
    );
    // and once there is one word for it, there is nothing to settle
    let refusal = controller
        .refusal(Method::POST, "/v1/vms/web/settle", &json!({"host": "a"}))
        .await;
    assert_eq!(refusal.code, ErrorCode::VmStateWrong, "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_two_hosts_use_leads_nowhere_and_ids_do() {
    let (controller, [a, b, _], id) = claimed().await;
    b.look(|inner| {
        let mut other = inner.vms.remove(&id).expect("its claim");
        inner.tell(id);
        other.metadata.spec.id = VmId(uuid::Uuid::from_u128(9));
        let id = other.metadata.spec.id;
        inner.vms.insert(id, other);
        inner.tell(id);
    });
    let twice = async || {
        let all: Vec<VmView> = controller.get("/v1/vms").await;
        all.iter().filter(|vm| vm.name.as_str() == "web").count() == 2
            && all.iter().all(|vm| vm.claims.is_empty())
    };
    controller.wait("two VMs of a name", twice).await;
    let refusal = controller
        .refusal(Method::POST, "/v1/vms/web/start", &json!({}))
        .await;
    assert_eq!(refusal.code, ErrorCode::VmDisputed, "{refusal:?}");
    assert!(refusal.fix.contains(&id.to_string()), "{refusal:?}");
    let by_id = format!("/v1/vms/{id}/start");
    controller.done(Method::POST, &by_id, &json!({})).await;
    let asked = a.look(|inner| inner.asked.clone());
    assert_eq!(asked, ["start"]);
    assert!(b.look(|inner| inner.asked.is_empty()));
}
