//! Moving a VM between two agents, through real tunnels, with hypervisors that are none. One copy runs, always.

use crate::support::{Fleet, Job, Node, create_running, disks, record_of};
use fleetward_api::agent::operation::{self, *};
use fleetward_api::agent::*;
use fleetward_hypervisor::{DomainState, MachineSeen, TpmAttention};
use fleetward_link::Identity;
use fleetward_model::vm::{VmMetadata, VmSpec, VmState};
use fleetward_model::{ErrorCode, Failure, VmId};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

struct Pair {
    fleet: Fleet,
    a: Node,
    b: Node,
    spec: VmSpec,
    job: Job,
}

impl Pair {
    /// A running VM on `a`, granted to `b`, prepared to arrive there.
    async fn prepared(live: bool) -> Self {
        let fleet = Fleet::start().await;
        let a = Node::start(&fleet, "a").await;
        let b = Node::start(&fleet, "b").await;
        let (spec, mut metadata) = create_running(&fleet, &a, "vm1").await;
        let job = Job::new(spec.id, 5);
        if !live {
            let stop = operation::Stop {
                force: true,
                deadline_seconds: 1,
                tell: false,
            };
            job.on(&a, stop).await.unwrap();
        }
        let to = vec![
            fleet.endorsed("a", "default"),
            fleet.endorsed("b", "default"),
        ];
        let granted = job.on(&a, operation::Grant { to }).await.unwrap();
        metadata.key_protector = Some(granted.key_protector);
        let pair = Self {
            fleet,
            a,
            b,
            spec,
            job,
        };
        pair.prepare(&metadata, live).await;
        pair
    }

    async fn prepare(&self, metadata: &VmMetadata, live: bool) {
        for _ in 0..2 {
            let prepare = operation::PrepareIncoming {
                metadata: Box::new(metadata.clone()),
                disks: disks(true),
                live,
                from: self.a.peer(),
                former_states: Vec::new(),
            };
            self.job.on(&self.b, prepare).await.unwrap();
        }
    }

    fn migrate(&self) -> MigrateLive {
        operation::MigrateLive {
            to: self.b.peer(),
            disks: disks(true),
            networks: Default::default(),
        }
    }

    fn clean_up(&self) -> CleanUpDeparted {
        operation::CleanUpDeparted {
            spec: self.spec.clone(),
            disks: disks(true),
        }
    }

    fn abandon(&self) -> AbandonIncoming {
        operation::AbandonIncoming {
            spec: self.spec.clone(),
            disks: disks(true),
        }
    }

    fn running(&self) -> Vec<&str> {
        [&self.a, &self.b]
            .into_iter()
            .filter(|node| runs(node, self.spec.id))
            .map(|node| node.name.as_str())
            .collect()
    }
}

fn runs(node: &Node, vm: VmId) -> bool {
    node.fake.with(|s| {
        s.domains
            .get(&vm)
            .is_some_and(|d| d.state == DomainState::Running)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_moves_every_step_repeated_and_nothing_stays_behind() {
    let pair = Pair::prepared(true).await;
    let (a, b, job) = (&pair.a, &pair.b, &pair.job);
    for _ in 0..2 {
        let moved = job.on(a, pair.migrate()).await.unwrap();
        assert_eq!(moved.downtime_ms, Some(3), "{moved:?}");
    }
    assert_eq!(
        pair.running(),
        Vec::<&str>::new(),
        "it waits for the commit"
    );
    assert_eq!(
        job.on(b, operation::Start {}).await.unwrap_err().code,
        ErrorCode::VmStateWrong
    );
    let observed = b.detail(pair.spec.id).await.unwrap().vm;
    assert!(
        observed
            .metadata
            .as_ref()
            .is_some_and(|m| m.transit.is_some())
    );

    for _ in 0..2 {
        job.on(a, operation::Depart {}).await.unwrap();
    }
    assert_eq!(
        job.on(a, operation::Start {}).await.unwrap_err().code,
        ErrorCode::VmStateWrong
    );
    for _ in 0..2 {
        job.on(b, operation::CommitIncoming { live: true })
            .await
            .unwrap();
    }
    assert_eq!(pair.running(), ["b"]);
    assert_eq!(
        job.on(b, pair.abandon()).await.unwrap_err().code,
        ErrorCode::VmStateWrong
    );
    assert_eq!(pair.running(), ["b"]);
    for _ in 0..2 {
        job.on(a, pair.clean_up()).await.unwrap();
    }
    assert_eq!(a.fake.rests(), Vec::<String>::new());
    assert!(!record_of(a, pair.spec.id).exists());
    assert!(
        std::fs::read_dir(a.config.run_dir.join("mig"))
            .unwrap()
            .next()
            .is_none()
    );
    assert!(
        std::fs::read_dir(b.config.run_dir.join("mig"))
            .unwrap()
            .next()
            .is_none()
    );
    let arrived = b.detail(pair.spec.id).await.unwrap();
    assert!(
        arrived
            .vm
            .metadata
            .as_ref()
            .is_some_and(|m| m.transit.is_none())
    );
    assert_eq!(arrived.can_open, CanOpen::Yes);

    // And back: b is not the owner of the key protector, and becomes it.
    let back = Job::new(pair.spec.id, 9);
    let to = vec![
        pair.fleet.endorsed("a", "default"),
        pair.fleet.endorsed("b", "default"),
    ];
    let granted = back.on(b, operation::Grant { to }).await.unwrap();
    let mut metadata = arrived.vm.metadata.unwrap();
    metadata.key_protector = Some(granted.key_protector);
    let prepare = operation::PrepareIncoming {
        metadata: Box::new(metadata),
        disks: disks(true),
        live: true,
        from: b.peer(),
        former_states: Vec::new(),
    };
    back.on(a, prepare).await.unwrap();
    back.on(
        b,
        operation::MigrateLive {
            to: a.peer(),
            disks: disks(true),
            networks: Default::default(),
        },
    )
    .await
    .unwrap();
    back.on(b, operation::Depart {}).await.unwrap();
    back.on(a, operation::CommitIncoming { live: true })
        .await
        .unwrap();
    back.on(b, pair.clean_up()).await.unwrap();
    assert_eq!(pair.running(), ["a"]);
    assert_eq!(b.fake.rests(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_arrival_leaves_the_vm_running_and_nothing_at_the_destination() {
    let pair = Pair::prepared(true).await;
    // It arrives, and the source never hears of it.
    pair.a.fake.with(|s| s.lose_report = true);
    let failed = pair.job.on(&pair.a, pair.migrate()).await.unwrap_err();
    assert_eq!(failed.code, ErrorCode::MigrationFailed);
    assert_eq!(pair.running(), ["a"]);
    let state = pair
        .job
        .on(&pair.a, operation::MigrationState {})
        .await
        .unwrap();
    assert_eq!(state, SourceState::Here);
    assert_eq!(
        pair.job
            .on(&pair.a, operation::Depart {})
            .await
            .unwrap_err()
            .code,
        ErrorCode::VmRunning
    );
    for _ in 0..2 {
        pair.job.on(&pair.b, pair.abandon()).await.unwrap();
    }
    assert_eq!(pair.b.fake.rests(), Vec::<String>::new());
    assert!(!record_of(&pair.b, pair.spec.id).exists());
    assert_eq!(pair.running(), ["a"]);
    assert_eq!(
        pair.job
            .on(&pair.a, pair.clean_up())
            .await
            .unwrap_err()
            .code,
        ErrorCode::VmStateWrong,
        "what has not departed is never cleaned up"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_attempt_finds_the_destination_ready_whatever_the_first_left() {
    let pair = Pair::prepared(true).await;
    pair.a.fake.with(|s| s.lose_report = true);
    pair.job.on(&pair.a, pair.migrate()).await.unwrap_err();
    assert_eq!(
        pair.b.fake.with(|s| s.domains.len()),
        1,
        "a paused copy stays"
    );
    pair.a.fake.with(|s| s.lose_report = false);
    pair.b.fake.with(|s| s.secrets.clear());
    pair.job.on(&pair.a, pair.migrate()).await.unwrap();
    pair.job.on(&pair.a, operation::Depart {}).await.unwrap();
    pair.job
        .on(&pair.b, operation::CommitIncoming { live: true })
        .await
        .unwrap();
    assert_eq!(pair.running(), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_destination_ends_a_migration_in_time_with_the_vm_running_here() {
    let mut pair = Pair::prepared(true).await;
    pair.a
        .fake
        .with(|s| s.migration_takes = Duration::from_secs(300));
    let begun = std::time::Instant::now();
    let request = pair.job.request(pair.migrate().into());
    let (client, a) = (pair.a.client.clone(), &pair.a);
    let migration = a.ask(&request);
    let cut = async {
        pair.a.fake.until("migration", |s| s.migrations > 0).await;
        pair.b.down().await;
    };
    let (failed, ()) = tokio::join!(migration, cut);
    drop(client);
    assert_eq!(failed.unwrap_err().code, ErrorCode::LinkLost);
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "{:?}",
        begun.elapsed()
    );
    assert!(runs(&pair.a, pair.spec.id));
    pair.b.up().await;
    pair.job.on(&pair.b, pair.abandon()).await.unwrap();
    assert_eq!(pair.b.fake.rests(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_migration_leaves_the_vm_running_here() {
    let pair = Pair::prepared(true).await;
    pair.a
        .fake
        .with(|s| s.migration_takes = Duration::from_secs(300));
    let cancel = async {
        pair.a.fake.until("migration", |s| s.migrations > 0).await;
        let cancel = CancelRequest {
            job: pair.job.id,
            vm: pair.spec.id,
        };
        let sent = pair
            .a
            .client
            .request(http::Method::POST, OPERATIONS_CANCEL)
            .json(&cancel);
        sent.send().await.unwrap();
    };
    let (failed, ()) = tokio::join!(pair.job.on(&pair.a, pair.migrate()), cancel);
    assert_eq!(failed.unwrap_err().code, ErrorCode::Cancelled);
    assert_eq!(pair.running(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_tpm_was_stopped_is_not_moved() {
    let pair = Pair::prepared(true).await;
    let id = pair.spec.id;
    pair.a.fake.with(|s| s.stopped_tpms.insert(id, 4711));
    let refused = pair.job.on(&pair.a, pair.migrate()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::TpmNotAnswering, "{refused}");
    assert_eq!(refused.fix, "on host a: kill -CONT 4711");
    assert_eq!(pair.running(), ["a"]);
    assert_eq!(pair.a.fake.with(|s| s.migrations), 0);
    pair.a.fake.with(|s| s.stopped_tpms.clear());
    pair.job.on(&pair.a, pair.migrate()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_tpm_does_not_read_is_not_moved_until_it_does() {
    let pair = Pair::prepared(true).await;
    let id = pair.spec.id;
    let unread = TpmAttention::Unread { pid: 4711 };
    pair.a.fake.with(|s| s.attention.insert(id, unread));
    let refused = pair.job.on(&pair.a, pair.migrate()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::TpmNotAnswering, "{refused}");
    assert!(refused.because.contains("swtpm, 4711"), "{refused}");
    assert_eq!(pair.a.fake.with(|s| s.migrations), 0);
    pair.a.fake.with(|s| s.attention.clear());
    pair.job.on(&pair.a, pair.migrate()).await.unwrap();
}

/// The guest stands still at the switch-over for what its TPM's process does; why the move ended.
async fn standstill(pair: &Pair, attention: TpmAttention) -> Failure {
    let id = pair.spec.id;
    let fake = &pair.a.fake;
    fake.with(|s| s.migration_takes = Duration::from_secs(300));
    let silence = async {
        fake.until("migration", |s| s.migrations > 0).await;
        let silent = MachineSeen {
            unanswered: Some(Duration::from_secs(11)),
            ..MachineSeen::default()
        };
        fake.with(|s| {
            s.attention.insert(id, attention);
            s.silent_machines.insert(id, silent);
        });
    };
    let begin = Instant::now();
    let (failed, ()) = tokio::join!(pair.job.on(&pair.a, pair.migrate()), silence);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(90), "it took {took:?}");
    assert_eq!(pair.running(), ["a"]);
    fake.with(|s| {
        s.silent_machines.clear();
        s.migration_takes = Duration::ZERO;
    });
    failed.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_tpm_does_not_read_goes_on_and_moves_when_it_reads() {
    let pair = Pair::prepared(true).await;
    let failed = standstill(&pair, TpmAttention::Unread { pid: 4711 }).await;
    assert_eq!(failed.code, ErrorCode::TpmNotAnswering, "{failed}");
    assert!(failed.because.contains("swtpm, 4711"), "{failed}");
    let again = format!("fleetward vm migrate {} --to b", pair.spec.name);
    assert!(failed.fix.ends_with(&again), "{failed}");
    assert_eq!(pair.a.fake.with(|s| s.cut_off.clone()), []);
    pair.job.on(&pair.a, pair.migrate()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_that_hangs_over_a_question_is_ended_and_the_guest_goes_on() {
    let pair = Pair::prepared(true).await;
    let failed = standstill(&pair, TpmAttention::Busy { pid: 4711 }).await;
    assert_eq!(failed.code, ErrorCode::TpmNotAnswering, "{failed}");
    assert!(failed.because.contains("swtpm, 4711"), "{failed}");
    let restart = format!("fleetward vm restart {} --force", pair.spec.name);
    assert_eq!(failed.fix, restart);
    assert_eq!(pair.a.fake.with(|s| s.cut_off.clone()), [pair.spec.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_arrives_that_was_not_announced() {
    let pair = Pair::prepared(true).await;
    pair.job.on(&pair.b, pair.abandon()).await.unwrap();
    let refused = pair.job.on(&pair.a, pair.migrate()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::CredentialsRefused, "{refused}");
    assert_eq!(pair.running(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arrival_of_a_stopped_vm_opens_no_channel_to_libvirt() {
    let pair = Pair::prepared(false).await;
    // The source asks for more than the controller announced.
    pair.job.on(&pair.a, operation::Start {}).await.unwrap();
    let refused = pair.job.on(&pair.a, pair.migrate()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::CredentialsRefused, "{refused}");
    assert!(refused.because.contains("comes as files"), "{refused}");
    assert_eq!(pair.running(), ["a"]);
    pair.job.on(&pair.b, pair.abandon()).await.unwrap();
    assert_eq!(pair.b.fake.rests(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_of_a_migration_are_for_nobody_else() {
    let pair = Pair::prepared(true).await;
    let run = pair.b.fake.root.join("run/mig");
    let arrival = run.join(pair.spec.id.to_string());
    let mode = std::fs::metadata(arrival).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o700, "what QEMU listens on");
    pair.job.on(&pair.a, pair.migrate()).await.unwrap();
    let modes = pair.a.fake.with(|s| s.socket_modes);
    // The one that QEMU itself connects to is QEMU's.
    assert_eq!(modes, Some((0o711, [0o600; 3])));
}

/// Yesterday's state is known again where the VM is today.
#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_state_from_before_a_move_is_refused_at_the_destination() {
    let pair = Pair::prepared(false).await;
    let (a, b, job) = (&pair.a, &pair.b, &pair.job);
    let vm = pair.spec.id;
    // The guest has written since, and that was seen.
    let yesterday = std::fs::read(a.fake.tpm(vm)).unwrap();
    job.on(a, operation::Start {}).await.unwrap();
    a.detail(vm).await.unwrap();
    let content = String::from_utf8_lossy(&yesterday[10..]).into_owned();
    let today = crate::support::fake::tpm_state(&format!("{content}, today"));
    std::fs::write(a.fake.tpm(vm), &today).unwrap();
    a.detail(vm).await.unwrap();
    a.fake.stop_by_itself(vm);
    let said = a.detail(vm).await.unwrap();
    assert!(said.tpm_states.len() >= 2, "{:?}", said.tpm_states);

    // What is no digest is not kept.
    let prepare = operation::PrepareIncoming {
        former_states: [said.tpm_states, vec!["../x".to_owned()]].concat(),
        metadata: Box::new(said.vm.metadata.unwrap()),
        disks: disks(true),
        live: false,
        from: a.peer(),
    };
    for _ in 0..2 {
        job.on(b, prepare.clone()).await.unwrap();
    }
    let send = operation::SendStopped {
        to: b.peer(),
        disks: disks(true),
    };
    job.on(a, send).await.unwrap();
    job.on(a, operation::Depart {}).await.unwrap();
    let commit = operation::CommitIncoming { live: false };
    job.on(b, commit).await.unwrap();
    job.on(a, pair.clean_up()).await.unwrap();
    assert_eq!(std::fs::read(b.fake.tpm(vm)).unwrap(), today);

    std::fs::write(b.fake.tpm(vm), &yesterday).unwrap();
    let start = async |generation| {
        let job = Job::new(vm, generation);
        job.on(b, operation::Start {}).await
    };
    let refused = start(20).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::TpmStateOutdated, "{refused}");
    assert_eq!(std::fs::read(b.fake.tpm(vm)).unwrap(), yesterday);
    std::fs::write(b.fake.tpm(vm), &today).unwrap();
    start(21).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_there_already_is_not_overwritten() {
    let pair = Pair::prepared(true).await;
    // Back onto the source itself: uuid, state and volume are all there.
    let metadata = pair
        .a
        .detail(pair.spec.id)
        .await
        .unwrap()
        .vm
        .metadata
        .unwrap();
    let job = Job::new(pair.spec.id, 9);
    let prepare = operation::PrepareIncoming {
        metadata: Box::new(metadata),
        disks: disks(true),
        live: true,
        from: pair.b.peer(),
        former_states: Vec::new(),
    };
    assert_eq!(
        job.on(&pair.a, prepare).await.unwrap_err().code,
        ErrorCode::UuidTaken
    );
    // The undo of that refused preparation touches nothing.
    job.on(&pair.a, pair.abandon()).await.unwrap();
    assert_eq!(pair.running(), ["a"]);
    assert!(
        pair.a
            .detail(pair.spec.id)
            .await
            .unwrap()
            .vm
            .tpm
            .state_present
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_wrapping_refuses_to_prepare() {
    let fleet = Fleet::start().await;
    let a = Node::start(&fleet, "a").await;
    let b = Node::start(&fleet, "b").await;
    let (spec, metadata) = create_running(&fleet, &a, "vm1").await;
    let job = Job::new(spec.id, 5);
    let prepare = operation::PrepareIncoming {
        metadata: Box::new(metadata.clone()),
        disks: disks(true),
        live: true,
        from: a.peer(),
        former_states: Vec::new(),
    };
    assert_eq!(
        job.on(&b, prepare).await.unwrap_err().code,
        ErrorCode::KeyNotGranted
    );
    let question = Question {
        metadata,
        cpu_xml: None,
        flash: None,
    };
    let answer: IncomingAnswer = b.client.post(QUESTIONS, &question).await.unwrap();
    assert_eq!(answer.can_open, CanOpen::NotGranted);
    let abandon = operation::AbandonIncoming {
        spec: spec.clone(),
        disks: disks(true),
    };
    job.on(&b, abandon).await.unwrap();
    assert_eq!(b.fake.rests(), Vec::<String>::new());
    assert!(!record_of(&b, spec.id).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_vm_moves_with_disk_variables_and_tpm_state() {
    let pair = Pair::prepared(false).await;
    let (a, b, job) = (&pair.a, &pair.b, &pair.job);
    let disk = a.fake.root.join("pool").join(&pair.spec.disks[0].volume);
    // Data, a hole of some megabytes, data.
    let file = std::fs::OpenOptions::new().write(true).open(&disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"disk end", 5 << 20).unwrap();
    let content = std::fs::read(&disk).unwrap();
    let tpm = std::fs::read(a.fake.tpm(pair.spec.id)).unwrap();
    let by_hand = "<sound model='ich9'/>";
    a.fake.with(|s| {
        let domain = s.domains.get_mut(&pair.spec.id).unwrap();
        domain.foreign = by_hand.into();
        domain.name = "renamed".into();
    });
    let seen = a.detail(pair.spec.id).await.unwrap().vm;
    assert_eq!(
        (seen.name, seen.domain_name.as_deref()),
        (pair.spec.name.clone(), Some("renamed"))
    );

    let early = job.on(b, operation::CommitIncoming { live: false }).await;
    assert_eq!(
        early.unwrap_err().code,
        ErrorCode::VmStateWrong,
        "nothing has arrived"
    );
    for _ in 0..2 {
        let send = operation::SendStopped {
            to: b.peer(),
            disks: disks(true),
        };
        job.on(a, send).await.unwrap();
        job.on(a, operation::Depart {}).await.unwrap();
        job.on(b, operation::CommitIncoming { live: false })
            .await
            .unwrap();
    }
    job.on(a, pair.clean_up()).await.unwrap();
    assert_eq!(a.fake.rests(), Vec::<String>::new());
    let arrived = b.fake.root.join("pool").join(&pair.spec.disks[0].volume);
    assert_eq!(std::fs::read(arrived).unwrap(), content);
    assert_eq!(std::fs::read(b.fake.tpm(pair.spec.id)).unwrap(), tpm);
    let foreign = b.fake.with(|s| s.domains[&pair.spec.id].foreign.clone());
    assert_eq!(foreign, by_hand, "what somebody wrote by hand moves too");
    let observed = b.detail(pair.spec.id).await.unwrap().vm;
    assert_eq!(observed.state, VmState::Stopped);
    assert!(
        observed
            .metadata
            .as_ref()
            .is_some_and(|m| m.transit.is_none())
    );
    Job::new(pair.spec.id, 10)
        .on(b, operation::Start {})
        .await
        .unwrap();
    assert_eq!(pair.running(), ["b"]);
}

/// A source that lies about what a file is: QEMU here would open what its header names.
#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_as_a_disk_and_is_none_is_not_taken() {
    let pair = Pair::prepared(false).await;
    let (a, b, job) = (&pair.a, &pair.b, &pair.job);
    let disk = a.fake.root.join("pool").join(&pair.spec.disks[0].volume);
    std::fs::write(&disk, "something else").unwrap();
    let send = operation::SendStopped {
        to: b.peer(),
        disks: disks(true),
    };
    job.on(a, send).await.unwrap_err();
    let arrived = b.fake.root.join("pool").join(&pair.spec.disks[0].volume);
    assert!(!arrived.exists());
    job.on(b, pair.abandon()).await.unwrap();
    assert_eq!(b.fake.rests(), Vec::<String>::new());
}

/// Another VM's volume, named in a specification: neither opened, written nor removed, whoever asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_another_vm_is_refused_on_every_way() {
    let fleet = Fleet::start().await;
    let a = Node::start(&fleet, "a").await;
    let (victim, mut metadata) = create_running(&fleet, &a, "victim").await;
    let volume = a.fake.root.join("pool").join(&victim.disks[0].volume);
    let content = std::fs::read(&volume).unwrap();
    let mut spec = victim.clone();
    spec.id = VmId(uuid::Uuid::from_u128(99));
    spec.name = "thief".parse().unwrap();
    spec.tpm = false;
    metadata.spec = spec.clone();
    metadata.key_protector = None;
    metadata.ek_certificate = None;
    let job = Job::new(spec.id, 9);
    let from = a.peer();
    let incoming = operation::PrepareIncoming {
        former_states: Vec::new(),
        metadata: Box::new(metadata.clone()),
        disks: disks(true),
        live: false,
        from,
    };
    let asked: [fleetward_api::agent::operation::Operation; 5] = [
        operation::CreateVolumes {
            spec: spec.clone(),
            sources: Vec::new(),
        }
        .into(),
        operation::Define {
            metadata: Box::new(metadata),
        }
        .into(),
        incoming.into(),
        operation::DeleteVolumes { spec: spec.clone() }.into(),
        operation::DropVolumes {
            disks: spec.disks.clone(),
        }
        .into(),
    ];
    for operation in asked {
        let name = operation.name();
        let refused = job.any(&a, operation).await.unwrap_err();
        assert_eq!(
            refused.code,
            ErrorCode::InvalidArgument,
            "{name}: {refused}"
        );
        assert!(refused.because.contains("no volume of this VM"), "{name}");
    }
    assert_eq!(std::fs::read(&volume).unwrap(), content);
}

/// What a QEMU that was taken over may put in the place of its UEFI variables.
#[tokio::test(flavor = "multi_thread")]
async fn what_qemu_plants_among_the_variables_is_neither_copied_nor_sent() {
    let pair = Pair::prepared(false).await;
    let (a, b, vm) = (&pair.a, &pair.b, pair.spec.id);
    let variables = a.fake.with(|s| s.domains[&vm].nvram.clone());
    // Encrypted, as its header says, and whole.
    std::fs::write(a.fake.tpm(vm), [2, 1, 0, 10, 0, 1, 0, 0, 0, 10]).unwrap();
    let secret = a.config.data_dir.join("identity/host.key");
    std::fs::write(&secret, b"a guardian's key").unwrap();
    let plants: [(&str, &dyn Fn()); 5] = [
        ("a link", &|| {
            std::os::unix::fs::symlink(&secret, &variables).unwrap()
        }),
        ("a second name", &|| {
            std::fs::hard_link(&secret, &variables).unwrap()
        }),
        ("a pipe", &|| {
            nix::unistd::mkfifo(&variables, nix::sys::stat::Mode::S_IRUSR).unwrap();
        }),
        ("a directory", &|| std::fs::create_dir(&variables).unwrap()),
        ("a file without end", &|| {
            let file = std::fs::File::create(&variables).unwrap();
            file.set_len(1 << 40).unwrap();
        }),
    ];
    let mut to = crate::support::spec("clone");
    to.disks[0].size = pair.spec.disks[0].size;
    let copy = || operation::CopyVm {
        to: Box::new(to.clone()),
        variables: true,
        tpm_state: false,
        linked: false,
    };
    let send = || operation::SendStopped {
        to: b.peer(),
        disks: disks(true),
    };
    let bundle = || async {
        let answer = a
            .client
            .request(http::Method::GET, &format!("/v1/vms/{vm}/tpm"));
        let answer = answer.send().await;
        answer.map(drop).map_err(crate::support::refusal)
    };
    for (what, plant) in plants {
        std::fs::remove_file(&variables).unwrap();
        plant();
        // Whoever waits for a pipe's other end waits for ever.
        let limit = Duration::from_secs(20);
        let tried = tokio::time::timeout(limit, async {
            let kept = bundle().await.unwrap_err();
            let copied = Job::new(vm, 5).on(a, copy()).await.unwrap_err();
            let sent = pair.job.on(a, send()).await.unwrap_err();
            [kept, copied, sent]
        });
        for failure in tried.await.expect(what) {
            assert_eq!(
                failure.code,
                ErrorCode::FileUnexpected,
                "{what}: {failure:?}"
            );
            let fix = failure.fix;
            assert!(fix.contains(&variables.display().to_string()), "{fix}");
        }
        let taken = a.fake.root.join("nvram").join(format!("{}_VARS.fd", to.id));
        assert!(!taken.exists(), "{what} was copied");
        assert_eq!(
            std::fs::read(&secret).unwrap(),
            b"a guardian's key",
            "{what}"
        );
        let _ = std::fs::remove_file(&variables).or_else(|_| std::fs::remove_dir(&variables));
        std::fs::write(&variables, b"vars").unwrap();
    }
    // With the variables back in their place all of it works.
    bundle().await.unwrap();
    assert!(Job::new(vm, 5).on(a, copy()).await.unwrap().variables);
    pair.job.on(a, send()).await.unwrap();
    pair.job.on(a, operation::Depart {}).await.unwrap();
    // The destination writes past whatever lies in the way there.
    let commit = operation::CommitIncoming { live: false };
    pair.job.on(b, commit).await.unwrap();
    let arrived = b.fake.root.join("nvram").join(format!("{vm}_VARS.fd"));
    assert_eq!(std::fs::read(arrived).unwrap(), b"vars");
}

/// A link in the place of the socket that memory arrives at leads the tunnel nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_qemu_plants_is_not_connected_to() {
    let pair = Pair::prepared(true).await;
    let directory = pair
        .b
        .config
        .run_dir
        .join("mig")
        .join(pair.spec.id.to_string());
    std::fs::create_dir_all(&directory).unwrap();
    let theirs = pair.b.fake.root.join("roots-own.sock");
    let listener = std::os::unix::net::UnixListener::bind(&theirs).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::os::unix::fs::symlink(&theirs, directory.join("memory.sock")).unwrap();
    let dialer = pair.fleet.dialer_of("a");
    let header = fleetward_link::tunnel::TunnelHeader::new("migration", pair.spec.id.to_string())
        .with_params(serde_json::json!({"job": pair.job.id, "channel": {"use": "memory"}}));
    let to = Identity::Host("b".parse().unwrap());
    let dialled = dialer.dial(&pair.b.address, &to, &header).await;
    assert!(dialled.is_err(), "no tunnel to it");
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
}

/// A host whose configuration names a directory of ours has VMs from before, with variables in libvirt's.
#[tokio::test(flavor = "multi_thread")]
async fn variables_from_before_stay_in_libvirts_directory_until_the_vm_moves() {
    let pair = Pair::prepared(false).await;
    let (a, b, vm) = (&pair.a, &pair.b, pair.spec.id);
    let name = format!("{vm}_VARS.fd");
    let former = a.config.former_nvram_dir.join(&name);
    std::fs::create_dir(&a.config.former_nvram_dir).unwrap();
    a.fake.with(|s| {
        let domain = s.domains.get_mut(&vm).unwrap();
        std::fs::rename(&domain.nvram, &former).unwrap();
        domain.nvram.clone_from(&former);
    });
    std::fs::write(&former, b"from before").unwrap();
    let mut to = crate::support::spec("clone");
    to.disks[0].size = pair.spec.disks[0].size;
    let copy = operation::CopyVm {
        to: Box::new(to.clone()),
        variables: true,
        tpm_state: false,
        linked: false,
    };
    assert!(Job::new(vm, 5).on(a, copy).await.unwrap().variables);
    let copied = a.config.nvram_dir.join(format!("{}_VARS.fd", to.id));
    assert_eq!(std::fs::read(copied).unwrap(), b"from before");
    let send = operation::SendStopped {
        to: b.peer(),
        disks: disks(true),
    };
    pair.job.on(a, send).await.unwrap();
    pair.job.on(a, operation::Depart {}).await.unwrap();
    let commit = operation::CommitIncoming { live: false };
    pair.job.on(b, commit).await.unwrap();
    let arrived = b.config.nvram_dir.join(&name);
    assert_eq!(std::fs::read(&arrived).unwrap(), b"from before");
    assert_eq!(b.fake.with(|s| s.domains[&vm].nvram.clone()), arrived);
    pair.job.on(a, pair.clean_up()).await.unwrap();
    assert!(!former.exists(), "nothing stays behind");
}
