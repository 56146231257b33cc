//! VMs that come back with their host: which of those that an agent asks for the controller starts.

use crate::fleet::Controller;
use crate::fleet::agent::FakeAgent;
use fleetward_api::controller::{JobState, JobView, VmView};
use fleetward_model::VmId;
use fleetward_model::boot::BootFacts;
use fleetward_model::vm::VmState;
use http::Method;
use serde_json::json;
use time::OffsetDateTime;

async fn create(controller: &Controller, name: &str, host: &str) -> VmView {
    let body = json!({"name": name, "host": host, "autostart": true});
    controller.done(Method::POST, "/v1/vms", &body).await;
    controller.get(&format!("/v1/vms/{name}")).await
}

/// The agent's word about its boot.
fn asks(agent: &FakeAgent, vms: &[VmId]) {
    agent.look(|inner| {
        inner.facts.boot = Some(BootFacts {
            noticed: OffsetDateTime::now_utc(),
            asking: vms.to_vec(),
            waiting: vms.len() as u32,
            started: 0,
            off: Vec::new(),
        });
        inner.tell_facts();
    });
}

fn state_on(agent: &FakeAgent, vm: VmId) -> Option<VmState> {
    agent.look(|inner| inner.vms.get(&vm).map(|vm| vm.state))
}

async fn starts(controller: &Controller) -> Vec<JobView> {
    let jobs: Vec<JobView> = controller.get("/v1/jobs").await;
    jobs.into_iter()
        .filter(|job| job.kind == "vm-start")
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_asks_for_is_started_once_and_only_with_autostart() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let web = create(&controller, "web", "a").await;
    let plain = json!({"name": "plain", "host": "a"});
    controller.done(Method::POST, "/v1/vms", &plain).await;
    let plain: VmView = controller.get("/v1/vms/plain").await;
    asks(&a, &[plain.id, web.id]);
    controller
        .wait("the VM to come back", async || {
            state_on(&a, web.id) == Some(VmState::Running)
        })
        .await;
    asks(&a, &[plain.id, web.id]);
    asks(&a, &[]);
    let started = starts(&controller).await;
    assert_eq!(started.len(), 1, "{started:#?}");
    let started = [controller.ended(started[0].id).await];
    assert_eq!(started[0].state, JobState::Done);
    assert_eq!(started[0].created_by, "autostart");
    assert_eq!(state_on(&a, plain.id), Some(VmState::Stopped));
}

/// The agent says the same whenever it is heard: it has nothing new to tell.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_without_a_controller_is_started_by_the_next_one() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let web = create(&controller, "web", "a").await;
    let controller = controller.restart_after(|_| asks(&a, &[web.id])).await;
    controller
        .wait("the VM to come back", async || {
            state_on(&a, web.id) == Some(VmState::Running)
        })
        .await;
    assert_eq!(starts(&controller).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_rebuilt_elsewhere_is_never_started_whatever_its_host_asks() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    let body = json!({"name": "web", "host": "a", "autostart": true, "tpm": false});
    controller.done(Method::POST, "/v1/vms", &body).await;
    let web: VmView = controller.get("/v1/vms/web").await;
    // Its disk is on both: that is what a shared pool looks like.
    b.look(|inner| {
        inner
            .volumes
            .extend(web.disks.iter().map(|disk| disk.path.clone()))
    });
    a.cut();
    controller.wait_online(&"a".parse().unwrap(), false).await;
    let recovered = controller
        .job(Method::POST, "/v1/vms/web/recover", &json!({"to": "b"}))
        .await;
    assert_eq!(recovered.state, JobState::Done, "{recovered:#?}");
    // The host is back and asks for its VMs with the first word that it says.
    asks(&a, &[web.id]);
    a.look(|inner| inner.fail.clear());
    a.comes_back().await;
    controller
        .wait("the old copy's end", async || {
            state_on(&a, web.id).is_none()
        })
        .await;
    let started = starts(&controller).await;
    assert!(started.is_empty(), "{started:#?}");
    assert!(a.look(|inner| !inner.asked.contains(&"start")));
    let web: VmView = controller.get("/v1/vms/web").await;
    assert_eq!(web.host.as_str(), "b");
}

/// The host comes back in the middle of the recovery: whichever goes first, one copy runs at most.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_and_a_recovery_exclude_each_other() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    controller.join("b", "default").await;
    let body = json!({"name": "web", "host": "a", "autostart": true, "tpm": false});
    controller.done(Method::POST, "/v1/vms", &body).await;
    let web: VmView = controller.get("/v1/vms/web").await;
    a.cut();
    controller.wait_online(&"a".parse().unwrap(), false).await;
    asks(&a, &[web.id]);
    let request = controller
        .local
        .request(Method::POST, "/v1/vms/web/recover")
        .json(&json!({"to": "b"}));
    let (recovery, ()) = tokio::join!(request.send(), a.comes_back());
    let recovered = match recovery {
        Ok(response) => {
            let accepted: fleetward_api::controller::Accepted = response.json().await.unwrap();
            controller.ended(accepted.job.unwrap()).await.state == JobState::Done
        }
        Err(_) => false,
    };
    match recovered {
        true => {
            controller
                .wait("the old copy's end", async || {
                    state_on(&a, web.id).is_none()
                })
                .await;
            assert!(a.look(|inner| !inner.asked.contains(&"start")));
        }
        false => {
            controller
                .wait("the VM to come back", async || {
                    state_on(&a, web.id) == Some(VmState::Running)
                })
                .await;
        }
    }
}
