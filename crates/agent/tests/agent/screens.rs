//! A VM's screen and keyboard over the agent's real API, with a hypervisor that echoes.

use crate::support::{Fleet, Job, Node, create_running, refusal};
use fleetward_api::agent::operation;
use fleetward_api::agent::{
    EVENTS, KeysRequest, MAX_STROKES, SCREEN_PROTOCOL, VM_KEYS, VM_SCREEN, VM_SCREENSHOT,
};
use fleetward_hypervisor::MachineSeen;
use fleetward_link::client::UpgradedIo;
use fleetward_model::keys::{KeyInput, chords};
use fleetward_model::vm::VmState;
use fleetward_model::{ErrorCode, Failure, VmId};
use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn path(pattern: &str, vm: VmId) -> String {
    pattern.replace("{id}", &vm.to_string())
}

async fn open(node: &Node, vm: VmId) -> Result<UpgradedIo, Failure> {
    let path = path(VM_SCREEN, vm);
    let request = node.client.request(Method::GET, &path);
    request.upgrade(SCREEN_PROTOCOL).await.map_err(refusal)
}

async fn press(node: &Node, vm: VmId, request: &serde_json::Value) -> Result<(), Failure> {
    let path = path(VM_KEYS, vm);
    let request = node.client.request(Method::POST, &path).json(request);
    request.send().await.map(drop).map_err(refusal)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screen_is_carried_both_ways_and_shared() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let mut screen = open(&node, spec.id).await.unwrap();
    // The viewer asks to be alone; the hypervisor, which echoes here, is told that it shares.
    screen.write_all(b"RFB 003.008\n\x01\x00").await.unwrap();
    let mut echoed = [0; 14];
    screen.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"RFB 003.008\n\x01\x01");
    let large = vec![7; 300_000];
    let (mut from, mut to) = tokio::io::split(screen);
    let sent = async { to.write_all(&large).await.unwrap() };
    let mut back = vec![0; large.len()];
    let (_, read) = tokio::join!(sent, from.read_exact(&mut back));
    read.unwrap();
    assert_eq!(back, large);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screen_takes_so_many_viewers_and_no_more() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let mut screens = Vec::new();
    let refused = loop {
        match open(&node, spec.id).await {
            Ok(screen) => screens.push(screen),
            Err(failure) => break failure,
        }
        assert!(screens.len() <= 16);
    };
    assert_eq!(
        (screens.len(), refused.code),
        (16, ErrorCode::TooManyViewers)
    );
    // One leaves, and another may come.
    drop(screens.pop());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while let Err(failure) = open(&node, spec.id).await {
        assert_eq!(failure.code, ErrorCode::TooManyViewers);
        assert!(
            std::time::Instant::now() < deadline,
            "the place is not free"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screenshot_is_a_png_file() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let path = path(VM_SCREENSHOT, spec.id);
    let response = node
        .client
        .request(Method::GET, &path)
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers["content-type"], "image/png");
    let file = response.bytes(1 << 20).await.unwrap();
    assert!(file.starts_with(b"\x89PNG"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_pressed_in_their_order_and_nonsense_is_refused_whole() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let strokes = chords(&[
        KeyInput::Text("aB".into()),
        KeyInput::Press("ctrl-alt-del".into()),
    ])
    .unwrap();
    let request = serde_json::to_value(KeysRequest { strokes }).unwrap();
    press(&node, spec.id, &request).await.unwrap();
    let wanted = [vec![30], vec![42, 48], vec![29, 56, 111]];
    assert_eq!(node.fake.with(|s| s.typed.clone()), wanted);
    for strokes in [
        json!([]),
        json!([[30], [0]]),
        json!([[30], [256]]),
        json!([[30], []]),
        json!([[30], vec![30; 17]]),
        json!(vec![vec![30]; MAX_STROKES + 1]),
    ] {
        let request = json!({ "strokes": strokes });
        let refused = press(&node, spec.id, &request).await.expect_err("nonsense");
        assert_eq!(refused.code, ErrorCode::InvalidRequest, "{request}");
    }
    assert_eq!(node.fake.with(|s| s.typed.clone()), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_does_not_run_has_no_screen_and_no_keyboard() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    node.fake.stop_by_itself(spec.id);
    let refused = open(&node, spec.id).await.map(drop).expect_err("stopped");
    assert_eq!(refused.code, ErrorCode::VmNotRunning);
    let request = json!({ "strokes": [[30]] });
    let refused = press(&node, spec.id, &request).await.expect_err("stopped");
    assert_eq!(refused.code, ErrorCode::VmNotRunning);
    let unknown = VmId(uuid::Uuid::new_v4());
    let refused = open(&node, unknown).await.map(drop).expect_err("unknown");
    assert_eq!(refused.code, ErrorCode::VmNotFound);
}

/// What somebody has stopped (`kill -STOP`) answers nothing: libvirt would wait for it, and the user for libvirt.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_stopped_is_asked_nothing_and_can_be_cut_off() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    // The agent looks at machines while somebody listens.
    let events = node.client.request(Method::GET, EVENTS);
    let _events = events.send().await.unwrap().lines();
    let stopped = MachineSeen {
        pid: Some(4711),
        stopped: true,
        ..MachineSeen::default()
    };
    node.fake
        .with(|s| s.silent_machines.insert(spec.id, stopped));
    let screenshot = async || {
        let path = path(VM_SCREENSHOT, spec.id);
        let request = node.client.request(Method::GET, &path);
        request.send().await.map(drop).map_err(refusal)
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let refused = loop {
        match screenshot().await {
            Err(refused) => break refused,
            Ok(()) => assert!(std::time::Instant::now() < deadline, "nobody notices"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let same = |refused: Failure| {
        assert_eq!(refused.code, ErrorCode::QemuNotAnswering, "{refused}");
        assert_eq!(refused.fix, "on host a: kill -CONT 4711");
        assert!(refused.because.contains("vm1"), "{refused}");
    };
    same(refused);
    same(open(&node, spec.id).await.map(drop).unwrap_err());
    let strokes = chords(&[KeyInput::Text("a".into())]).unwrap();
    let keys = serde_json::to_value(KeysRequest { strokes }).unwrap();
    same(press(&node, spec.id, &keys).await.unwrap_err());
    let job = Job::new(spec.id, 2);
    same(job.on(&node, operation::Pause {}).await.unwrap_err());
    let stop = |force| operation::Stop {
        force,
        deadline_seconds: 60,
        tell: false,
    };
    same(job.on(&node, stop(false)).await.unwrap_err());
    assert_eq!(node.fake.with(|s| (s.shutdowns, s.typed.len())), (0, 0));

    // It goes on, which is seen at once.
    node.fake.with(|s| s.silent_machines.clear());
    press(&node, spec.id, &keys).await.unwrap();
    node.fake
        .with(|s| s.silent_machines.insert(spec.id, stopped));
    let job = Job::new(spec.id, 3);
    job.on(&node, stop(true)).await.unwrap();
    assert_eq!(
        node.detail(spec.id).await.unwrap().vm.state,
        VmState::Stopped
    );
}
