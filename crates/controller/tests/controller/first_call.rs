//! What is asked in the first moments after a start, while most hosts were not heard yet.

use crate::fleet::Controller;
use fleetward_api::controller::{HostView, JobState, VmView};
use fleetward_model::host::HostState;
use fleetward_model::vm::VmState;
use fleetward_sim::directory::{Fleet, Protectors};
use fleetward_sim::plan::FleetPlan;
use fleetward_sim::prepare::prepare;
use http::Method;
use serde_json::json;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

/// More than are called in the time that a start waits for hosts, if each of them takes a connection and is silent.
const HANGING: u32 = 150;

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_a_host_that_answers_is_shown_as_it_is_while_others_hang() {
    let controller = Controller::start().await;
    let process = std::process::id() % 4096;
    let plan = FleetPlan {
        hosts: HANGING,
        vms: 0,
        hosts_per_group: 2,
        random_seed: 3,
        first_address: Ipv4Addr::from_bits(
            Ipv4Addr::new(127, 128, 0, 1).to_bits() + process * HANGING,
        ),
        port: 7443,
    };
    let fleet = Fleet {
        plan,
        shared_guardian: true,
        protectors: Protectors::Sized,
    };
    let kept = controller.dir.path().join("fleet");
    let joined = prepare(&controller.local, &fleet, &kept, |_| {}).await;
    joined.expect("joined");
    let _host = controller.join("zz", "last").await;
    let create = json!({"name": "web", "host": "zz", "group": "last", "start": true});
    let made = controller.done(Method::POST, "/v1/vms", &create).await;
    assert_eq!(made.state, JobState::Done);

    // The kernel takes their connections, and nobody ever speaks.
    let hanging: Vec<_> = (0..HANGING)
        .map(|host| TcpListener::bind(fleet.plan.address(host)).expect("a listener"))
        .collect();
    let controller = controller.restart().await;
    let list = {
        let local = controller.local.clone();
        tokio::spawn(async move { local.get::<Vec<VmView>>("/v1/vms").await })
    };
    let web: VmView = controller.get("/v1/vms/web").await;
    let host: HostView = controller.get("/v1/hosts/zz").await;
    let first = !list.is_finished();
    assert_eq!(
        (web.state, host.state),
        (VmState::Running, HostState::Online)
    );
    assert!(first, "a VM waits for hosts that it has nothing to do with");
    // A list waits for all hosts, but not for ever.
    let list = list.await.expect("no panic").expect("a list");
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].state, VmState::Running);
    drop(hanging);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_moved_while_the_controller_was_away_is_not_missing_before_its_new_host_was_heard()
 {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    let create = json!({"name": "web", "host": "a", "start": true});
    let made = controller.done(Method::POST, "/v1/vms", &create).await;
    assert_eq!(made.state, JobState::Done);
    let web: VmView = controller.get("/v1/vms/web").await;
    assert_eq!(web.host.as_str(), "a");

    let controller = controller
        .restart_after(|_| {
            let moved = a.look(|inner| inner.vms.remove(&web.id)).expect("there");
            b.look(|inner| {
                inner.vms.insert(web.id, moved);
                inner.delay = Duration::from_millis(300);
            });
        })
        .await;
    let web: VmView = controller.get("/v1/vms/web").await;
    assert_eq!((web.host.as_str(), web.state), ("b", VmState::Running));
}
