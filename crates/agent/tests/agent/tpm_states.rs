//! TPMs in whatever state their file is: tried, damaged, from before, locked.

use crate::operations::code;
use crate::support::fake::tpm_state;
use crate::support::{Fleet, Job, Node, create_running, record_of, refusal};
use fleetward_api::agent::operation::{self, *};
use fleetward_api::agent::*;
use fleetward_hypervisor::{DomainState, StopReason};
use fleetward_model::vm::{StoppedBy, VmMetadata};
use fleetward_model::{ErrorCode, Failure};

/// An empty file is what a power cut leaves of a TPM, and bringing the TPM back is the cure for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_tpm_is_replaced_and_taken_away_as_any_other() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    Job::new(spec.id, 2).on(&node, stop).await.unwrap();
    let history = || {
        let kept = record_of(&node, spec.id)
            .ancestors()
            .nth(2)
            .unwrap()
            .join("history")
            .join(spec.id.to_string());
        std::fs::read_dir(kept).map_or(0, Iterator::count)
    };
    let roll = || operation::PrepareRoll { to: vec![] };
    // abandoned
    let job = Job::new(spec.id, 3);
    job.on(&node, roll()).await.unwrap();
    let whole = std::fs::read(node.fake.tpm(spec.id)).unwrap();
    std::fs::write(node.fake.tpm(spec.id), b"").unwrap();
    job.on(&node, operation::AbandonTpm {}).await.unwrap();
    // replaced
    std::fs::write(node.fake.tpm(spec.id), &whole).unwrap();
    let job = Job::new(spec.id, 4);
    let key_protector = job.on(&node, roll()).await.unwrap().key_protector;
    std::fs::write(node.fake.tpm(spec.id), b"").unwrap();
    for _ in 0..2 {
        let key_protector = key_protector.clone();
        let commit = operation::CommitTpm { key_protector };
        job.on(&node, commit).await.unwrap();
    }
    assert!(!std::fs::read(node.fake.tpm(spec.id)).unwrap().is_empty());
    assert_eq!(history(), 1, "what was there is kept");
    // taken away
    std::fs::write(node.fake.tpm(spec.id), b"").unwrap();
    let job = Job::new(spec.id, 5);
    job.on(&node, operation::DetachTpm {}).await.unwrap();
    job.on(&node, operation::SetAsideTpm {}).await.unwrap();
    assert_eq!(history(), 2);
    assert!(!node.fake.tpm(spec.id).exists());
}

/// Three power cuts lock the TPM of a guest that uses a PIN. What is cleared is a copy, and only what the guest allows.
#[tokio::test(flavor = "multi_thread")]
async fn the_lockout_of_a_stopped_vms_tpm_is_told_and_cleared_where_the_guest_allows_it() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let counted = async || {
        let detail = node.detail(spec.id).await.unwrap();
        detail.vm.tpm.lockout.map(|lockout| lockout.counted)
    };
    let bundle = async || {
        let path = format!("/v1/vms/{}/tpm", spec.id);
        let request = node.client.request(http::Method::GET, &path);
        request.send().await.map_err(refusal).unwrap();
    };
    let place = node.fake.tpm(spec.id);
    let whole = std::fs::read(&place).unwrap();
    let content = String::from_utf8_lossy(&whole[10..]).into_owned();
    let job = Job::new(spec.id, 2);
    let running = job.on(&node, operation::PrepareUnlock {}).await;
    assert_eq!(running.unwrap_err().code, ErrorCode::VmRunning);
    node.fake.stop_by_itself(spec.id);

    let guarded = tpm_state(&format!("{content}, locked, guarded"));
    std::fs::write(&place, &guarded).unwrap();
    let job = Job::new(spec.id, 3);
    let refused = job.on(&node, operation::PrepareUnlock {}).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::TpmLockoutGuarded);
    job.on(&node, operation::AbandonTpm {}).await.unwrap();
    assert_eq!(std::fs::read(&place).unwrap(), guarded, "nothing changed");

    let locked = tpm_state(&format!("{content}, locked"));
    std::fs::write(&place, &locked).unwrap();
    assert_eq!(counted().await, None, "nobody has looked at this state");
    bundle().await;
    assert_eq!(counted().await, Some(3));
    let job = Job::new(spec.id, 4);
    let key_protector = job.on(&node, operation::PrepareUnlock {}).await.unwrap();
    assert_eq!(
        std::fs::read(&place).unwrap(),
        locked,
        "only a copy is cleared"
    );
    for _ in 0..2 {
        let key_protector = key_protector.key_protector.clone();
        let commit = operation::CommitTpm { key_protector };
        job.on(&node, commit).await.unwrap();
    }
    assert_eq!(std::fs::read(&place).unwrap(), whole);
    bundle().await;
    assert_eq!(counted().await, Some(0));
    Job::new(spec.id, 5)
        .on(&node, operation::Start {})
        .await
        .unwrap();
    assert_eq!(counted().await, None, "a guest that runs counts by itself");
}

/// A TPM counts an end without its shutdown like a wrong guess.
#[tokio::test(flavor = "multi_thread")]
async fn a_forced_stop_lets_the_tpm_shut_down_and_waits_for_none_that_hangs() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    for hangs in [false, true] {
        let (spec, _) = create_running(&fleet, &node, if hangs { "deaf" } else { "web" }).await;
        node.fake
            .with(|s| s.domains.get_mut(&spec.id).unwrap().tpm_hangs = hangs);
        let stop = operation::Stop {
            force: true,
            deadline_seconds: 1,
            tell: true,
        };
        let stopped = Job::new(spec.id, 2).on(&node, stop).await.unwrap();
        assert_eq!(stopped.by, Some(StoppedBy::PowerOff));
        let (ended, state) = node
            .fake
            .with(|s| (s.domains[&spec.id].tpm_ended, s.domains[&spec.id].state));
        assert_eq!(ended, !hangs);
        assert!(matches!(state, DomainState::Stopped(_)), "{state:?}");
    }
}

/// A bulk operation makes a copy of each new TPM, and trying one takes a process of swtpm.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_tpm_is_tried_when_it_is_made_and_its_first_copy_is_not() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let place = node.fake.tpm(spec.id);
    let tried = |state: &[u8]| {
        let is_it = |proved: &&Vec<u8>| proved.as_slice() == state;
        node.fake.with(|s| s.proved.iter().filter(is_it).count())
    };
    let bundle = async || {
        let path = format!("/v1/vms/{}/tpm", spec.id);
        let request = node.client.request(http::Method::GET, &path);
        request.send().await.map(drop)
    };
    let state = std::fs::read(&place).unwrap();
    bundle().await.unwrap();
    bundle().await.unwrap();
    assert_eq!(tried(&state), 1, "when it was made");
    let content = String::from_utf8_lossy(&state[10..]).into_owned();
    let written = tpm_state(&format!("{content}, written"));
    std::fs::write(&place, &written).unwrap();
    bundle().await.unwrap();
    bundle().await.unwrap();
    assert_eq!(tried(&written), 1, "what the guest wrote is another");
    // the first one is known, though nobody has tried it as a VM's
    std::fs::write(&place, &state).unwrap();
    node.fake.stop_by_itself(spec.id);
    let judged = node.detail(spec.id).await.unwrap().tpm_state;
    let Some(TpmStateJudged::Refused { failure }) = judged else {
        panic!("{judged:?}");
    };
    assert_eq!(failure.code, ErrorCode::TpmStateOutdated);
}

/// Yesterday's file is whole and opens: only by its digest is it known again.
#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_state_from_before_is_refused_until_a_restore_brings_one_back_on_purpose() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let place = node.fake.tpm(spec.id);
    let bundle = async || {
        let path = format!("/v1/vms/{}/tpm", spec.id);
        let request = node.client.request(http::Method::GET, &path);
        request
            .send()
            .await
            .map_err(refusal)?
            .json()
            .await
            .map_err(refusal)
    };
    let yesterday = std::fs::read(&place).unwrap();
    node.detail(spec.id).await.unwrap();
    let kept: fleetward_api::tpm::TpmBundle = bundle().await.unwrap();
    // The guest writes, and that is seen.
    let content = String::from_utf8_lossy(&yesterday[10..]).into_owned();
    let today = tpm_state(&format!("{content}, today"));
    std::fs::write(&place, &today).unwrap();
    let said = async || node.detail(spec.id).await.unwrap().tpm_state;
    assert_eq!(said().await, None, "its guest writes it when it likes");
    node.fake.stop_by_itself(spec.id);
    assert_eq!(said().await, Some(TpmStateJudged::Untried));

    std::fs::write(&place, &yesterday).unwrap();
    match said().await {
        Some(TpmStateJudged::Refused { failure }) => {
            assert_eq!(failure.code, ErrorCode::TpmStateOutdated);
        }
        other => panic!("{other:?}"),
    }
    let to = crate::support::spec("clone");
    let copy = operation::CopyVm {
        to: Box::new(to),
        variables: false,
        tpm_state: true,
        linked: false,
    };
    let operations: [Operation; 4] = [
        operation::Start {}.into(),
        copy.into(),
        operation::PrepareRoll { to: vec![] }.into(),
        operation::PrepareUnlock {}.into(),
    ];
    for (n, operation) in operations.into_iter().enumerate() {
        let name = operation.name();
        let refused = Job::new(spec.id, 3 + n as u64).any(&node, operation).await;
        assert_eq!(
            refused.unwrap_err().code,
            ErrorCode::TpmStateOutdated,
            "{name}"
        );
        assert_eq!(std::fs::read(&place).unwrap(), yesterday, "{name}");
    }
    let refused: Result<fleetward_api::tpm::TpmBundle, Failure> = bundle().await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::TpmStateOutdated);

    // A restore goes back on purpose: then it is the newest, and the other is the one from before.
    let job = Job::new(spec.id, 9);
    let prepare = operation::PrepareRestore {
        bundle: Box::new(kept),
    };
    let key_protector = job.on(&node, prepare).await.unwrap().key_protector;
    let commit = operation::CommitTpm { key_protector };
    job.on(&node, commit).await.unwrap();
    std::fs::write(&place, &today).unwrap();
    let start = async |generation| {
        let job = Job::new(spec.id, generation);
        job.on(&node, operation::Start {}).await
    };
    assert_eq!(
        start(10).await.unwrap_err().code,
        ErrorCode::TpmStateOutdated
    );
    std::fs::write(&place, &yesterday).unwrap();
    start(11).await.unwrap();
}

/// Switching a TPM off is one way out of a damaged key protector. It comes back with the last good one.
#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_with_a_damaged_key_protector_is_switched_off_and_on_again() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, metadata) = create_running(&fleet, &node, "vm1").await;
    let good = metadata.key_protector.clone();
    let damaged = VmMetadata {
        key_protector: Some("AAAA".into()),
        ..metadata
    };
    let stopped = DomainState::Stopped(StopReason::Ordinary);
    node.fake.define_as_it_was(damaged, stopped);
    let job = Job::new(spec.id, 2);
    let start = job.on(&node, operation::Start {}).await;
    assert_eq!(code(start), ErrorCode::KeyProtectorUnreadable);
    job.on(&node, operation::DetachTpm {}).await.unwrap();
    job.on(&node, operation::AttachTpm {}).await.unwrap();
    let now = node.detail(spec.id).await.unwrap().vm.metadata.unwrap();
    assert_eq!(now.key_protector, good);
    job.on(&node, operation::Start {}).await.unwrap();
}

/// A host that cannot run swtpm beside a VM still makes TPMs, and the first copy is tried as any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_tpm_that_could_not_be_tried_is_tried_for_its_first_copy() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    node.fake.with(|s| s.proves_nothing = true);
    // what was made before is used up first
    let mut made = Vec::new();
    for n in 0..6 {
        made.push(create_running(&fleet, &node, &format!("vm{n}")).await.0);
    }
    node.fake.with(|s| s.proves_nothing = false);
    let last = made.pop().unwrap();
    let state = std::fs::read(node.fake.tpm(last.id)).unwrap();
    let tried = || node.fake.with(|s| s.proved.contains(&state));
    assert!(!tried(), "it could not be");
    let path = format!("/v1/vms/{}/tpm", last.id);
    let request = node.client.request(http::Method::GET, &path);
    request.send().await.map_err(refusal).unwrap();
    assert!(tried());
}
