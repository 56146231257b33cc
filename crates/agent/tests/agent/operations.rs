//! What an agent does for one VM, over its real API, with a hypervisor that is none.

use crate::support::{Fleet, Job, Node, create_running, record_of, refusal, spec};
use fleetward_api::agent::operation::{self, *};
use fleetward_api::agent::*;
use fleetward_hypervisor::StopReason;
use fleetward_link::Identity;
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::host::Formats;
use fleetward_model::vm::{NewerSpec, StoppedBy, VmReport, VmState, protector_sha256};
use fleetward_model::{ErrorCode, Failure, VmId};

pub(crate) fn code(result: Result<impl std::fmt::Debug, Failure>) -> ErrorCode {
    result.expect_err("refused").code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_made_started_stopped_and_deleted_and_every_step_may_be_repeated() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, metadata) = create_running(&fleet, &node, "vm1").await;
    let detail = node.detail(spec.id).await.unwrap();
    assert_eq!(detail.vm.state, VmState::Running);
    assert_eq!(detail.can_open, CanOpen::Yes);
    assert!(detail.vm.tpm.state_present);
    assert_eq!(node.fake.with(|s| s.secrets.len()), 1);

    let job = Job::new(spec.id, 2);
    for operation in [
        Operation::from(operation::Start {}),
        operation::Define {
            metadata: Box::new(metadata),
        }
        .into(),
        operation::Stop {
            force: true,
            deadline_seconds: 1,
            tell: false,
        }
        .into(),
        operation::Undefine {}.into(),
        operation::DeleteVolumes { spec: spec.clone() }.into(),
        operation::RemoveTpm {
            keep: false,
            history: false,
        }
        .into(),
    ] {
        for time in ["first", "second"] {
            job.any(&node, operation.clone())
                .await
                .unwrap_or_else(|f| panic!("{} the {time} time: {f}", operation.name()));
        }
    }
    assert_eq!(node.fake.rests(), Vec::<String>::new());
    assert!(!record_of(&node, spec.id).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_paused_and_resumed_twice_over_and_a_stopped_one_is_neither() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let job = Job::new(spec.id, 2);
    for (operation, state) in [
        (Operation::from(Pause {}), VmState::Paused),
        (Resume {}.into(), VmState::Running),
    ] {
        for time in ["first", "second"] {
            job.any(&node, operation.clone())
                .await
                .unwrap_or_else(|f| panic!("{} the {time} time: {f}", operation.name()));
            assert_eq!(node.detail(spec.id).await.unwrap().vm.state, state);
        }
    }
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: true,
    };
    let stopped = job.on(&node, stop.clone()).await.unwrap();
    assert_eq!(stopped.by, Some(StoppedBy::PowerOff));
    assert_eq!(job.on(&node, stop).await.unwrap().by, None, "it was off");
    assert_eq!(code(job.on(&node, Pause {}).await), ErrorCode::VmNotRunning);
    assert_eq!(
        code(job.on(&node, Resume {}).await),
        ErrorCode::VmNotRunning
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_kept_of_a_tpm_goes_with_its_vm_and_not_before() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let job = Job::new(spec.id, 2);
    let history = record_of(&node, spec.id)
        .ancestors()
        .nth(2)
        .unwrap()
        .join("history")
        .join(spec.id.to_string());
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    job.on(&node, stop).await.unwrap();
    job.on(&node, operation::DetachTpm {}).await.unwrap();
    job.on(&node, operation::SetAsideTpm {}).await.unwrap();
    let kept: Vec<_> = std::fs::read_dir(&history).unwrap().collect();
    assert_eq!(kept.len(), 1);
    let kept = kept.into_iter().next().unwrap().unwrap().path();
    for file in ["tpm2-00.permall", "protector.der", "ek.der"] {
        assert!(kept.join(file).exists(), "{file}");
    }
    // taking back an enable is no deletion
    let take_back = operation::RemoveTpm {
        keep: false,
        history: false,
    };
    job.on(&node, take_back).await.unwrap();
    assert!(kept.exists());
    // a VM that is here keeps what it has
    let path = fleetward_api::agent::VM_HISTORY.replace("{id}", &spec.id.to_string());
    let forget = async || {
        let asked = node
            .client
            .request(http::Method::DELETE, &path)
            .send()
            .await;
        asked.map(drop).map_err(refusal)
    };
    assert_eq!(code(forget().await), ErrorCode::VmStateWrong);
    assert!(kept.exists());
    job.on(&node, operation::Undefine {}).await.unwrap();
    // and what one that has left leaves behind goes when the controller says so
    let other = history.with_file_name("00000000-0000-0000-0000-000000000009");
    std::fs::create_dir(&other).unwrap();
    for _ in 0..2 {
        forget().await.unwrap();
        assert!(!history.exists() && other.exists());
    }
    let for_good = operation::RemoveTpm {
        keep: false,
        history: true,
    };
    for _ in 0..2 {
        job.on(&node, for_good.clone()).await.unwrap();
        assert!(!history.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_is_made_once_and_never_replaced() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, metadata) = create_running(&fleet, &node, "vm1").await;
    let job = Job::new(spec.id, 2);
    let make = || operation::MakeTpm { recipients: vec![] };

    let again = job.on(&node, make()).await.unwrap();
    assert_eq!(Some(again.key_protector), metadata.key_protector);

    // State lost: refused, in making and in starting.
    job.on(
        &node,
        operation::Stop {
            force: true,
            deadline_seconds: 1,
            tell: false,
        },
    )
    .await
    .unwrap();
    std::fs::rename(node.fake.tpm(spec.id), node.fake.root.join("aside")).unwrap();
    assert_eq!(
        code(job.on(&node, make()).await),
        ErrorCode::TpmStateMissing
    );
    assert_eq!(
        code(job.on(&node, operation::Start {}).await),
        ErrorCode::TpmStateMissing
    );
    std::fs::remove_dir_all(record_of(&node, spec.id)).unwrap();
    assert_eq!(
        code(job.on(&node, make()).await),
        ErrorCode::TpmStateMissing
    );

    // State there, protector lost everywhere: not replaced either.
    std::fs::rename(node.fake.root.join("aside"), node.fake.tpm(spec.id)).unwrap();
    assert_eq!(code(job.on(&node, make()).await), ErrorCode::VmStateWrong);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_a_newer_program_wrote_is_shown_and_nothing_is_changed_about_it() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, metadata) = create_running(&fleet, &node, "vm1").await;
    let newer = NewerSpec { version: 3 };
    node.fake.with(|s| {
        let domain = s.domains.get_mut(&spec.id).unwrap();
        domain.metadata = None;
        domain.newer = Some(newer.clone());
    });
    let shown = node.detail(spec.id).await.unwrap().vm;
    assert_eq!(
        (shown.metadata.as_ref(), shown.newer.as_ref()),
        (None, Some(&newer))
    );
    assert!(shown.is_managed());
    let before = node.fake.rests();
    let job = Job::new(spec.id, 2);
    let key_protector = metadata.key_protector.clone().unwrap();
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    let define = operation::Define {
        metadata: Box::new(metadata),
    };
    let remove = operation::RemoveTpm {
        keep: false,
        history: false,
    };
    let operations: [Operation; 10] = [
        operation::Start {}.into(),
        stop.into(),
        define.into(),
        remove.into(),
        operation::Undefine {}.into(),
        operation::DeleteVolumes { spec: spec.clone() }.into(),
        operation::DetachTpm {}.into(),
        operation::PutProtector { key_protector }.into(),
        operation::Depart {}.into(),
        operation::Supersede {}.into(),
    ];
    for operation in operations {
        let name = operation.name();
        let failure = job.any(&node, operation).await.expect_err(name);
        assert_eq!(failure.code, ErrorCode::SpecNewer, "{name}: {failure}");
        assert!(failure.fix.contains("fleetward host show a"), "{failure}");
    }
    assert_eq!(node.fake.rests(), before);
    let shown = node.detail(spec.id).await.unwrap().vm;
    assert_eq!((shown.state, shown.newer), (VmState::Running, Some(newer)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_generation_is_refused_and_disturbs_nothing() {
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    Job::new(spec.id, 9)
        .on(&node, operation::Start {})
        .await
        .unwrap();
    node.down().await;
    node.up().await;
    let late = Job::new(spec.id, 8);
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    assert_eq!(code(late.on(&node, stop).await), ErrorCode::StaleGeneration);
    assert_eq!(
        node.detail(spec.id).await.unwrap().vm.state,
        VmState::Running
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_attaches_and_the_operation_outlives_its_caller() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    node.fake.with(|s| s.ignore_shutdown = true);
    let job = Job::new(spec.id, 2);
    let stop = operation::Stop {
        force: false,
        deadline_seconds: 2,
        tell: false,
    };

    // The first caller goes away at once.
    let response = node
        .client
        .request(http::Method::POST, OPERATIONS)
        .json(&job.request(stop.clone().into()))
        .send()
        .await
        .unwrap();
    drop(response);
    node.fake.until("shutdown", |s| s.shutdowns == 1).await;
    assert_eq!(code(job.on(&node, stop).await), ErrorCode::ShutdownTimedOut);
    let asked = node.fake.with(|s| s.shutdowns);
    assert_eq!(asked, 1, "it was attached, not begun anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_a_wait() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    node.fake.with(|s| s.ignore_shutdown = true);
    let job = Job::new(spec.id, 2);
    let stop = operation::Stop {
        force: false,
        deadline_seconds: 600,
        tell: false,
    };
    let (stopped, ()) = tokio::join!(job.on(&node, stop), async {
        node.fake.until("shutdown", |s| s.shutdowns > 0).await;
        let cancel = CancelRequest {
            job: job.id,
            vm: spec.id,
        };
        let sent = node
            .client
            .request(http::Method::POST, OPERATIONS_CANCEL)
            .json(&cancel);
        sent.send().await.unwrap();
    });
    assert_eq!(code(stopped), ErrorCode::Cancelled);
    assert_eq!(
        node.detail(spec.id).await.unwrap().vm.state,
        VmState::Running
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guardian_without_a_valid_endorsement_gets_nothing() {
    let fleet = Fleet::start().await;
    let other = Fleet::start().await;
    let a = Node::start(&fleet, "a").await;
    let _b = Node::start(&fleet, "b").await;
    let _c = Node::start(&other, "c").await;
    let (spec, metadata) = create_running(&fleet, &a, "vm1").await;
    let job = Job::new(spec.id, 2);
    let mut swapped = fleet.endorsed("b", "default");
    swapped.guardian = other.endorsed("c", "default").guardian;
    for wrong in [
        fleet.endorsed("b", "another-group"),
        other.endorsed("c", "default"),
        swapped,
    ] {
        let refused = job.on(&a, operation::Grant { to: vec![wrong] }).await;
        assert_eq!(code(refused), ErrorCode::GuardianNotEndorsed);
    }
    let to = vec![fleet.endorsed("b", "default")];
    let granted = job
        .on(&a, operation::Grant { to: to.clone() })
        .await
        .unwrap();
    let repeated = job.on(&a, operation::Grant { to }).await.unwrap();
    assert_eq!(granted, repeated, "a repeated grant changes nothing");
    assert_eq!(a.detail(spec.id).await.unwrap().vm.tpm.guardians.len(), 2);

    // Undone, and again harmless when repeated.
    let former = metadata.key_protector.clone().unwrap();
    for _ in 0..2 {
        let put = operation::PutProtector {
            key_protector: former.clone(),
        };
        job.on(&a, put).await.unwrap();
    }
    assert_eq!(a.detail(spec.id).await.unwrap().vm.tpm.guardians.len(), 1);
}

/// Host `b` was installed anew or rotated after it lost the key, and its present guardian is granted it by name.
#[tokio::test(flavor = "multi_thread")]
async fn a_grant_by_name_forgives_former_guardians_unless_they_know_the_present_key() {
    let fleet = Fleet::start().await;
    let a = Node::start(&fleet, "a").await;
    let [_former, _present] = [
        Node::start(&fleet, "b").await,
        Node::start(&fleet, "c").await,
    ];
    let (former, present) = (
        fleet.endorsed("b", "default"),
        fleet.endorsed("c", "default"),
    );
    let (spec, _) = create_running(&fleet, &a, "vm1").await;
    let rewrap = |why, add: &[&EndorsedGuardian], drop: &[&EndorsedGuardian]| {
        let ids = |of: &[&EndorsedGuardian]| of.iter().map(|g| g.guardian.id.clone()).collect();
        operation::Rewrap {
            change: KeyRewrap {
                add: add.iter().map(|g| (*g).clone()).collect(),
                drop: ids(drop),
                expired: Vec::new(),
                former: ids(&[&former]),
                why,
            },
        }
    };
    let revoked = async || {
        a.detail(spec.id)
            .await
            .unwrap()
            .vm
            .metadata
            .unwrap()
            .revoked
    };
    for (generation, operation) in [
        (5, rewrap(RewrapReason::Granted, &[&former], &[])),
        (6, rewrap(RewrapReason::Revoked, &[], &[&former])),
        (7, rewrap(RewrapReason::Granted, &[&present], &[])),
    ] {
        Job::new(spec.id, generation)
            .on(&a, operation)
            .await
            .unwrap();
    }
    let known = revoked().await;
    assert_eq!(
        known.iter().map(|r| &r.guardian).collect::<Vec<_>>(),
        [&former.guardian.id],
        "it knows the key that the VM still has"
    );
    // with a new key that is past
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    Job::new(spec.id, 8).on(&a, stop).await.unwrap();
    let job = Job::new(spec.id, 9);
    let roll = operation::PrepareRoll {
        to: vec![present.clone()],
    };
    let key_protector = job.on(&a, roll).await.unwrap().key_protector;
    job.on(&a, operation::CommitTpm { key_protector })
        .await
        .unwrap();
    assert_eq!(revoked().await, known, "a roll forgives nobody");
    let again = rewrap(RewrapReason::Granted, &[&present], &[]);
    Job::new(spec.id, 10).on(&a, again).await.unwrap();
    assert_eq!(revoked().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_stop_gets_past_an_operation_that_hangs() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (source, _) = create_running(&fleet, &node, "vm1").await;
    node.fake.with(|s| s.hangs = true);
    let mut to = spec("vm2");
    to.disks[0].size = source.disks[0].size;
    let copy = operation::CopyVm {
        to: Box::new(to),
        variables: false,
        tpm_state: false,
        linked: false,
    };
    let copying = Job::new(source.id, 2);
    let stopping = async {
        node.fake.until("wait for QEMU", |s| s.waits).await;
        let stop = operation::Stop {
            force: true,
            deadline_seconds: 1,
            tell: false,
        };
        let job = Job::new(source.id, 3);
        let limit = std::time::Duration::from_secs(20);
        tokio::time::timeout(limit, job.on(&node, stop)).await
    };
    let (copied, stopped) = tokio::join!(copying.on(&node, copy), stopping);
    assert!(copied.is_err());
    let stopped = stopped.expect("in time").unwrap();
    assert_eq!(stopped.by, Some(StoppedBy::PowerOff));
    let state = node.detail(source.id).await.unwrap().vm.state;
    assert_eq!(state, VmState::Stopped);
}

/// What the controller asks rests on what hosts report, and a host may lie about a VM of another.
#[tokio::test(flavor = "multi_thread")]
async fn a_roll_and_a_rotation_give_the_key_to_nobody_new() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let _b = Node::start(&fleet, "b").await;
    let (spec, metadata) = create_running(&fleet, &node, "vm1").await;
    let (own, stranger) = (
        fleet.endorsed("a", "default"),
        fleet.endorsed("b", "default"),
    );
    let rotation = |drop: Vec<_>| operation::Rewrap {
        change: KeyRewrap {
            add: vec![stranger.clone()],
            drop,
            expired: Vec::new(),
            former: Vec::new(),
            why: RewrapReason::Rotated,
        },
    };
    let job = Job::new(spec.id, 2);
    for drop in [vec![], vec![stranger.guardian.id.clone()]] {
        let refused = code(job.on(&node, rotation(drop)).await);
        assert_eq!(refused, ErrorCode::KeyNotGranted);
    }
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    job.on(&node, stop).await.unwrap();
    let roll = operation::PrepareRoll {
        to: vec![own, stranger.clone()],
    };
    assert_eq!(code(job.on(&node, roll).await), ErrorCode::KeyNotGranted);
    let after = node.detail(spec.id).await.unwrap().vm.metadata.unwrap();
    assert_eq!(after.key_protector, metadata.key_protector);
}

#[tokio::test(flavor = "multi_thread")]
async fn saved_memory_is_gone_on_with_or_given_up_and_nothing_changes_under_it() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (source, _) = create_running(&fleet, &node, "vm1").await;
    let job = Job::new(source.id, 2);
    let mut to = spec("vm2");
    to.disks[0].size = source.disks[0].size;
    let copy = operation::CopyVm {
        to: Box::new(to),
        variables: false,
        tpm_state: false,
        linked: false,
    };
    let own = vec![fleet.endorsed("a", "default")];
    let stop = |force| operation::Stop {
        force,
        deadline_seconds: 1,
        tell: false,
    };
    let start = || operation::Start {};
    for resumed in [true, false] {
        node.fake.stop_because(source.id, StopReason::Saved);
        let under_it = [
            Operation::from(copy.clone()),
            operation::PrepareRoll { to: own.clone() }.into(),
            operation::DetachTpm {}.into(),
            stop(false).into(),
        ];
        for operation in under_it {
            let refused = code(job.any(&node, operation.clone()).await);
            assert_eq!(refused, ErrorCode::VmStateWrong, "{}", operation.name());
            let state = node.detail(source.id).await.unwrap().vm.state;
            assert_eq!(state, VmState::Saved, "{}", operation.name());
        }
        if resumed {
            job.on(&node, start()).await.unwrap();
            let state = node.detail(source.id).await.unwrap().vm.state;
            assert_eq!(state, VmState::Running);
        } else {
            job.on(&node, stop(true)).await.unwrap();
            let state = node.detail(source.id).await.unwrap().vm.state;
            assert_eq!(state, VmState::Stopped);
            job.on(&node, operation::PrepareRoll { to: own.clone() })
                .await
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_vms_key_protector_is_never_put_on_a_vm() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (first, _) = create_running(&fleet, &node, "vm1").await;
    let (_, other) = create_running(&fleet, &node, "vm2").await;
    let put = operation::PutProtector {
        key_protector: other.key_protector.unwrap(),
    };
    let refused = Job::new(first.id, 2).on(&node, put).await;
    assert_eq!(code(refused), ErrorCode::KeyProtectorUnreadable);
    let garbage = operation::PutProtector {
        key_protector: "AAAA".into(),
    };
    let refused = Job::new(first.id, 2).on(&node, garbage).await;
    assert_eq!(code(refused), ErrorCode::KeyProtectorUnreadable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_audit_log_stops_all_keys_until_it_is_closed_with_a_note() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let job = Job::new(spec.id, 2);
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    job.on(&node, stop).await.unwrap();
    let record = record_of(&node, spec.id);
    let path = record.ancestors().nth(2).unwrap().join("audit.log");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 20;
    bytes[last] = 0xff;
    std::fs::write(&path, &bytes).unwrap();
    let refused = job.on(&node, operation::Start {}).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::AuditDamaged, "{refused}");
    assert!(
        refused.fix.contains("fleetward-agent audit repair"),
        "{refused}"
    );

    // what `fleetward-agent audit repair` does beside the running agent
    let log = fleetward_agent::audit::AuditLog::new(path, "a".parse().unwrap());
    let repaired = log.repair("local:0", "a disk failed").unwrap().unwrap();
    assert_eq!(std::fs::read(&repaired.aside).unwrap(), bytes);
    job.on(&node, operation::Start {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_goes_when_the_vm_stops_by_itself_and_when_the_agent_finds_it() {
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    node.fake.stop_by_itself(spec.id);
    node.fake
        .until("secret dropped", |s| s.secrets.is_empty())
        .await;

    node.down().await;
    node.fake.with(|s| s.secrets.insert(spec.id, "left".into()));
    node.up().await;
    node.detail(spec.id).await.unwrap();
    assert!(node.fake.with(|s| s.secrets.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_begin_with_a_snapshot_and_tell_of_changes() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let response = node
        .client
        .request(http::Method::GET, EVENTS)
        .send()
        .await
        .unwrap();
    let mut lines = response.lines();
    let first: AgentEvent = lines.next_json().await.unwrap().unwrap();
    let AgentEvent::Snapshot { facts, vms, .. } = first else {
        panic!("{first:?}")
    };
    assert_eq!(facts.host.as_str(), "a");
    assert_eq!(facts.guardians.len(), 1);
    assert!(
        !facts.warnings.is_empty(),
        "an unsealed guardian store is said"
    );
    assert_eq!(vms.len(), 1);
    assert_eq!(vms[0].disks.len(), 1);

    let begun = std::time::Instant::now();
    node.fake.stop_by_itself(spec.id);
    loop {
        if let AgentEvent::VmChanged { vm } = lines.next_json().await.unwrap().unwrap()
            && vm.state == VmState::Stopped
        {
            break;
        }
    }
    assert!(begun.elapsed().as_secs_f32() < 2.0);

    // What a copy has taught is told, although nothing has changed the VM.
    let path = format!("/v1/vms/{}/tpm", spec.id);
    let request = node.client.request(http::Method::GET, &path);
    request.send().await.map_err(refusal).unwrap();
    let told = async {
        loop {
            if let AgentEvent::VmChanged { vm } = lines.next_json().await.unwrap().unwrap()
                && let Some(lockout) = vm.tpm.lockout
            {
                return lockout.counted;
            }
        }
    };
    let told = tokio::time::timeout(std::time::Duration::from_secs(20), told).await;
    assert_eq!(told.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_gets_what_it_knows_and_key_protectors_only_where_it_asks() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, metadata) = create_running(&fleet, &node, "vm1").await;
    let path = format!("/v1/vms/{}", spec.id);
    let ask = async |formats: Option<&'static str>| -> VmReport {
        let request = node.client.request(http::Method::GET, &path);
        let request = match formats {
            None => request,
            Some(known) => request.header(
                http::HeaderName::from_static(FORMATS),
                http::HeaderValue::from_static(known),
            ),
        };
        let detail: VmDetail = request.send().await.unwrap().json().await.unwrap();
        detail.vm
    };
    let text = metadata.key_protector.clone().unwrap();
    let sha256 = Some(protector_sha256(&text));
    // A controller from before versions says nothing and reads the text.
    let old = ask(None).await;
    assert_eq!(old.metadata.unwrap().key_protector, Some(text.clone()));
    let new = ask(Some("spec=2,custody=2")).await;
    assert_eq!(new.tpm.protector_sha256, sha256);
    let known = new.metadata.unwrap();
    assert_eq!((known.key_protector, known.ek_certificate), (None, None));
    assert_eq!(known.spec, spec);

    node.fake.with(|s| {
        let domain = s.domains.get_mut(&spec.id).unwrap();
        domain.metadata.as_mut().unwrap().spec.description = "büro".parse().unwrap();
    });
    let old = ask(None).await;
    assert_eq!(
        (old.metadata, old.newer),
        (None, Some(NewerSpec { version: 2 }))
    );
    let asked = ask(Some("spec=2,custody=1")).await.metadata.unwrap();
    assert_eq!(asked.spec.description.as_str(), "büro");
    assert_eq!(asked.key_protector, Some(text));
    let first = async |formats: &'static str| {
        let request = node.client.request(http::Method::GET, EVENTS).header(
            http::HeaderName::from_static(FORMATS),
            http::HeaderValue::from_static(formats),
        );
        let mut lines = request.send().await.unwrap().lines();
        let line: AgentEvent = lines.next_json().await.unwrap().unwrap();
        let AgentEvent::Snapshot { facts, vms, .. } = line else {
            panic!("{line:?}")
        };
        assert_eq!(facts.formats, Formats::KNOWN);
        vms.into_iter().next().unwrap().metadata
    };
    let seen = first("spec=2,custody=2").await.unwrap();
    assert_eq!(seen.key_protector, None);
    assert!(first("custody=2").await.is_none(), "no version 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_controller_may_call() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    for identity in [
        Identity::Host("a".parse().unwrap()),
        Identity::Admin {
            name: "kim".parse().unwrap(),
            role: fleetward_model::role::Role::Admin,
        },
    ] {
        let client = fleet.client_as(&identity, "a", &node.address);
        let refused = client.get::<serde_json::Value>("/v1/audit").await;
        assert_eq!(refusal(refused.unwrap_err()).code, ErrorCode::RoleMissing);
    }
    let stranger = Fleet::start().await.client("a", &node.address);
    assert!(
        stranger
            .get::<serde_json::Value>("/v1/audit")
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_named() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let post = async |body: serde_json::Value| {
        let response = node
            .client
            .request(http::Method::POST, OPERATIONS)
            .json(&body)
            .send()
            .await;
        refusal(response.expect_err("refused")).code
    };
    assert_eq!(
        post(serde_json::json!({"x": 1})).await,
        ErrorCode::InvalidRequest
    );
    assert_eq!(
        post(serde_json::json!("x".repeat(2 << 20))).await,
        ErrorCode::TooLarge
    );
    let missing = node.detail(VmId(uuid::Uuid::from_u128(1))).await;
    assert_eq!(code(missing), ErrorCode::VmNotFound);

    let mut escaping = spec("vm1");
    escaping.disks[0].volume = "../../etc/passwd".into();
    let create = operation::CreateVolumes {
        spec: escaping.clone(),
        sources: vec![],
    };
    assert_eq!(
        code(Job::new(escaping.id, 1).on(&node, create).await),
        ErrorCode::InvalidArgument
    );
    let mut elsewhere = spec("vm1");
    elsewhere.disks[0].pool = "nowhere".parse().unwrap();
    let create = operation::CreateVolumes {
        spec: elsewhere.clone(),
        sources: vec![],
    };
    assert_eq!(
        code(Job::new(elsewhere.id, 1).on(&node, create).await),
        ErrorCode::PoolMissing
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_kept_only_when_it_is_what_it_says() {
    use sha2::{Digest, Sha256};
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let put = async |sha256: String, content: &'static [u8]| {
        node.client
            .request(
                http::Method::PUT,
                &format!("/v1/images/{sha256}?format=qcow2"),
            )
            .upload(content, Some(content.len() as u64))
            .send()
            .await
            .map_err(refusal)
            .map(drop)
    };
    let good = hex::encode(Sha256::digest(b"disk content"));
    assert_eq!(
        code(put(good.clone(), b"disk c0ntent").await),
        ErrorCode::ImageInvalid
    );
    let text = hex::encode(Sha256::digest(b"a letter"));
    assert_eq!(code(put(text, b"a letter").await), ErrorCode::ImageInvalid);
    put(good.clone(), b"disk content").await.unwrap();
    put(good.clone(), b"disk content").await.unwrap();
    let images = node.config.data_dir.join("images");
    assert_eq!(std::fs::read_dir(&images).unwrap().count(), 1);
    node.client
        .request(http::Method::DELETE, &format!("/v1/images/{good}"))
        .send()
        .await
        .unwrap();
    assert_eq!(std::fs::read_dir(&images).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_use_of_a_key_is_on_record_and_the_chain_holds() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    let records: Vec<fleetward_model::audit::AuditRecord> =
        node.client.get("/v1/audit?after=0").await.unwrap();
    fleetward_model::audit::verify(None, &records).unwrap();
    let actions: Vec<&str> = records.iter().map(|r| r.action.into_str()).collect();
    for expected in ["make-guardian", "join", "make-tpm", "open"] {
        assert!(actions.contains(&expected), "{actions:?}");
    }
    assert!(records.iter().any(|r| r.vm == Some(spec.id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_once() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let again = fleetward_agent::join::join(&node.config, &fleet.token("a")).await;
    assert_eq!(code(again), ErrorCode::AlreadyJoined);
    let mut fresh = node.config.clone();
    fresh.data_dir = fleet.dir.path().join("fresh");
    let altered = fleet.token("b").replace("fwj1.e", "fwj1.f");
    let refused = fleetward_agent::join::join(&fresh, &altered).await;
    assert_eq!(code(refused), ErrorCode::TokenInvalid);
}
