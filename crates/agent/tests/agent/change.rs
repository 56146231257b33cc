//! Changes of a VM on its host: forward, back, repeated, and broken off between their two halves.

use crate::support::{Fleet, Job, Node, create_running};
use fleetward_api::agent::operation::{ChangeVm, Stop};
use fleetward_api::agent::{AgentEvent, EVENTS};
use fleetward_model::change::{ChangeStep, Direction};
use fleetward_model::vm::{NicSpec, Profile};
use fleetward_model::{ByteSize, ErrorCode, VmId};

const BY_HAND: &str = "<sound model='ich9'/>";

/// A VM that somebody has edited by hand.
async fn edited() -> (Fleet, Node, VmId) {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    node.fake
        .with(|s| s.domains.get_mut(&spec.id).unwrap().foreign = BY_HAND.into());
    (fleet, node, spec.id)
}

fn steps() -> Vec<ChangeStep> {
    let label = |key: &str, from: Option<&str>, to: Option<&str>| ChangeStep::Label {
        key: key.parse().unwrap(),
        from: from.map(str::to_owned),
        to: to.map(str::to_owned),
    };
    vec![
        ChangeStep::Cpus {
            from: 1,
            to: 4,
            defined: None,
        },
        ChangeStep::Memory {
            from: ByteSize::mib(512),
            to: ByteSize::gib(1),
            defined: Some(ByteSize::mib(600)),
        },
        ChangeStep::Description {
            from: Default::default(),
            to: "経理サーバー".parse().unwrap(),
        },
        label("new", None, Some("1")),
        ChangeStep::Autostart {
            from: false,
            to: true,
        },
    ]
}

fn rename() -> ChangeStep {
    ChangeStep::Name {
        from: "vm1".parse().unwrap(),
        to: "vm2".parse().unwrap(),
        domain: None,
    }
}

fn change(steps: Vec<ChangeStep>, direction: Direction) -> ChangeVm {
    ChangeVm { steps, direction }
}

async fn stop(node: &Node, vm: VmId) {
    let stop = Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    Job::new(vm, 2).on(node, stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_made_and_taken_back_twice_is_as_once_and_an_edit_by_hand_stays() {
    let (_fleet, node, id) = edited().await;
    let before = node.detail(id).await.unwrap().vm;
    let job = Job::new(id, 3);
    for _ in 0..2 {
        let forward = change(steps(), Direction::Forward);
        job.on(&node, forward).await.unwrap();
        let vm = node.detail(id).await.unwrap().vm;
        let defined = vm.defined.as_ref().unwrap();
        assert_eq!((defined.cpus, defined.memory), (4, ByteSize::gib(1)));
        let metadata = vm.metadata.unwrap();
        assert_eq!((metadata.spec.cpus, metadata.generation), (4, 3));
        assert_eq!(metadata.spec.description.as_str(), "経理サーバー");
        assert!(metadata.spec.autostart);
        assert_eq!(
            metadata.key_protector,
            before.metadata.as_ref().unwrap().key_protector
        );
    }
    for _ in 0..2 {
        let back = change(steps(), Direction::Back);
        job.on(&node, back).await.unwrap();
        let vm = node.detail(id).await.unwrap().vm;
        let defined = vm.defined.unwrap();
        assert_eq!((defined.cpus, defined.memory), (1, ByteSize::mib(600)));
        assert_eq!(
            vm.metadata.unwrap().spec,
            before.metadata.as_ref().unwrap().spec
        );
    }
    node.fake
        .with(|s| assert_eq!(s.domains[&id].foreign, BY_HAND));
    let stale = Job::new(id, 2);
    let forward = change(steps(), Direction::Forward);
    let refused = stale.on(&node, forward).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::StaleGeneration);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_changed_meanwhile_is_not_taken_back() {
    let (_fleet, node, id) = edited().await;
    let job = Job::new(id, 3);
    job.on(&node, change(steps(), Direction::Forward))
        .await
        .unwrap();
    node.fake
        .with(|s| s.domains.get_mut(&id).unwrap().memory = ByteSize::mib(700));
    job.on(&node, change(steps(), Direction::Back))
        .await
        .unwrap();
    let vm = node.detail(id).await.unwrap().vm;
    let defined = vm.defined.unwrap();
    assert_eq!((defined.cpus, defined.memory), (1, ByteSize::mib(700)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_that_was_broken_off_is_finished_or_taken_back() {
    let (_fleet, node, id) = edited().await;
    let early = Job::new(id, 2);
    let running = early
        .on(&node, change(vec![rename()], Direction::Forward))
        .await
        .unwrap_err();
    assert_eq!(running.code, ErrorCode::VmStateWrong);
    stop(&node, id).await;
    let job = Job::new(id, 3);
    let names = async || {
        let vm = node.detail(id).await.unwrap().vm;
        (vm.name.to_string(), vm.domain_name)
    };
    for direction in [Direction::Forward, Direction::Back] {
        // The agent was killed behind the first half.
        node.fake
            .with(|s| s.domains.get_mut(&id).unwrap().name = "vm2".into());
        assert_eq!(names().await, ("vm1".to_owned(), Some("vm2".to_owned())));
        job.on(&node, change(vec![rename()], direction))
            .await
            .unwrap();
        let name = match direction {
            Direction::Forward => "vm2",
            Direction::Back => "vm1",
        };
        assert_eq!(names().await, (name.to_owned(), None));
        job.on(&node, change(vec![rename()], Direction::Back))
            .await
            .unwrap();
        assert_eq!(names().await, ("vm1".to_owned(), None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_another_domain_has_is_refused_and_nothing_changes() {
    let (fleet, node, id) = edited().await;
    create_running(&fleet, &node, "vm2").await;
    stop(&node, id).await;
    let job = Job::new(id, 3);
    let mut all = steps();
    all.push(rename());
    let refused = job
        .on(&node, change(all, Direction::Forward))
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::NameTaken);
    let vm = node.detail(id).await.unwrap().vm;
    assert_eq!((vm.name.as_str(), vm.defined.unwrap().cpus), ("vm1", 1));
    let tpm = vec![ChangeStep::Tpm { to: false }];
    let refused = job
        .on(&node, change(tpm, Direction::Forward))
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidRequest);
}

fn card(network: &str) -> NicSpec {
    NicSpec {
        network: network.parse().unwrap(),
        ..NicSpec::first(Profile::Linux, "52:54:00:00:00:01")
    }
}

fn nic(from: Option<NicSpec>, to: Option<NicSpec>) -> Vec<ChangeStep> {
    vec![ChangeStep::Nic {
        nic: "nic-0".parse().unwrap(),
        from: from.map(Box::new),
        to: to.map(Box::new),
        parts: Vec::new(),
    }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_comes_and_goes_twice_is_as_once_and_the_guest_may_hold_on_to_it() {
    let (_fleet, node, id) = edited().await;
    let job = Job::new(id, 3);
    let add = change(nic(None, Some(card("lan"))), Direction::Forward);
    job.on(&node, add.clone()).await.unwrap();
    job.on(&node, add).await.unwrap();
    let vm = node.detail(id).await.unwrap().vm;
    let now = vm.nics.clone().unwrap();
    assert_eq!(now.len(), 1);
    assert_eq!(now[0].network, Some("lan".parse().unwrap()));
    assert_eq!(now[0].bridge.as_deref(), Some("br-there-is-not"));
    assert_eq!(vm.defined.unwrap().nics, Some(now.clone()));

    node.fake.with(|s| s.guests_hold_on = true);
    let remove = change(nic(Some(card("lan")), None), Direction::Forward);
    job.on(&node, remove).await.unwrap();
    let vm = node.detail(id).await.unwrap().vm;
    assert_eq!(vm.nics, Some(now), "until its next start");
    assert_eq!(vm.defined.unwrap().nics, Some(Vec::new()));
    assert!(vm.metadata.unwrap().spec.nics.is_empty());
    node.fake.with(|s| s.guests_hold_on = false);
    let back = change(nic(Some(card("lan")), None), Direction::Back);
    job.on(&node, back.clone()).await.unwrap();
    job.on(&node, back).await.unwrap();
    let vm = node.detail(id).await.unwrap().vm;
    assert_eq!(vm.metadata.unwrap().spec.nics, [card("lan")]);
    assert_eq!(vm.defined.unwrap().nics.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_in_a_network_that_the_host_lacks_is_refused_and_nothing_is_changed() {
    let (_fleet, node, id) = edited().await;
    let add = change(nic(None, Some(card("dmz"))), Direction::Forward);
    let refused = Job::new(id, 3).on(&node, add).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NetworkMissing, "{refused}");
    let vm = node.detail(id).await.unwrap().vm;
    assert!(vm.metadata.unwrap().spec.nics.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_is_missing_is_told() {
    let (_fleet, node, _id) = edited().await;
    let request = node.client.request(http::Method::GET, EVENTS);
    let mut lines = request.send().await.unwrap().lines();
    let AgentEvent::Snapshot { facts, .. } = lines.next_json().await.unwrap().unwrap() else {
        panic!("the first event is a snapshot")
    };
    let lan = facts.network(&"lan".parse().unwrap()).unwrap();
    assert_eq!(
        lan.problem.as_deref(),
        Some("there is no bridge br-there-is-not")
    );
    let told = facts
        .warnings
        .iter()
        .any(|warning| warning.contains("network lan"));
    assert!(told, "{:?}", facts.warnings);
}
