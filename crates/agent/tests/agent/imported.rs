//! A host with another host's guardian: it opens what is sealed to that one, while the agent runs on.

use crate::support::{Fleet, Job, Node, create_running, disks};
use fleetward_agent::audit::AuditLog;
use fleetward_agent::keyring::pfx::{self, Protection};
use fleetward_agent::keyring::{Keyring, Purpose, dependents};
use fleetward_agent::layout::Layout;
use fleetward_api::agent::operation;
use fleetward_api::agent::*;
use fleetward_model::vm::VmState;
use fleetward_model::{ErrorCode, GuardianId, VmId};
use std::collections::BTreeSet;
use std::sync::Arc;
use zeroize::Zeroizing;

fn by_hand() -> Purpose {
    Purpose {
        actor: "local:0".into(),
        reason: "by hand".into(),
        job: None,
    }
}

/// The guardian store of a host as the program beside the agent sees it.
fn keyring(node: &Node) -> Keyring {
    let layout = Layout::new(&node.config);
    let host: fleetward_model::HostName = node.name.parse().unwrap();
    let audit = Arc::new(AuditLog::new(layout.audit_log(), host.clone()));
    Keyring::open(&layout.guardians(), host, audit).unwrap()
}

fn own(node: &Node) -> GuardianId {
    keyring(node).facts()[0].id.clone()
}

/// Exports on `from` and imports on `to`, through the files.
fn carry_over(from: &Node, to: &Node) {
    let password = Zeroizing::new("a long password".to_owned());
    let keys = keyring(from)
        .export_pfx(&own(from), &password, Protection::Aes256, &by_hand())
        .map_err(|trouble| trouble.failure)
        .unwrap()
        .into_iter()
        .flat_map(|file| pfx::read(&file.content, &password).unwrap())
        .collect();
    let guardian = pfx::assemble(keys).unwrap();
    for new in [true, false] {
        let imported = keyring(to).import(&guardian, &by_hand());
        assert_eq!(imported.map_err(|t| t.failure).unwrap().new, new);
    }
}

fn removal(node: &Node, id: &GuardianId) -> Result<(), ErrorCode> {
    let found = dependents(&Layout::new(&node.config)).unwrap();
    keyring(node)
        .remove(id, &found, &by_hand())
        .map_err(|trouble| trouble.failure.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_beside_the_running_agent_lets_a_vm_in_and_the_own_guardian_is_put_beside() {
    let fleet = Fleet::start().await;
    let a = Node::start(&fleet, "a").await;
    let b = Node::start(&fleet, "b").await;
    let (spec, metadata) = create_running(&fleet, &a, "vm1").await;
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    let job = Job::new(spec.id, 5);
    job.on(&a, stop).await.unwrap();
    let prepare = || operation::PrepareIncoming {
        metadata: Box::new(metadata.clone()),
        disks: disks(true),
        live: false,
        from: a.peer(),
        former_states: Vec::new(),
    };
    assert_eq!(
        job.on(&b, prepare()).await.unwrap_err().code,
        ErrorCode::KeyNotGranted
    );

    let abandon = operation::AbandonIncoming {
        spec: spec.clone(),
        disks: disks(true),
    };
    job.on(&b, abandon).await.unwrap();

    carry_over(&a, &b);
    // Another job: an agent keeps the answer it gave to the first.
    let job = Job::new(spec.id, 6);
    job.on(&b, prepare()).await.unwrap();
    assert_eq!(removal(&b, &own(&a)), Err(ErrorCode::GuardianInUse));
    assert_eq!(removal(&b, &own(&b)), Err(ErrorCode::GuardianInUse));
    let send = operation::SendStopped {
        to: b.peer(),
        disks: disks(true),
    };
    job.on(&a, send).await.unwrap();
    job.on(&a, operation::Depart {}).await.unwrap();
    for _ in 0..2 {
        job.on(&b, operation::CommitIncoming { live: false })
            .await
            .unwrap();
    }
    let arrived = b.detail(spec.id).await.unwrap();
    assert_eq!(arrived.vm.tpm.owner, Some(own(&a)), "the owner stays");
    assert!(arrived.vm.tpm.guardians.contains(&own(&b)));

    // Asked where the fleet knows only b's guardian, b signs: the VM may go where a's is not known.
    let grant = operation::Grant {
        to: vec![fleet.endorsed("b", "default")],
    };
    let going = Job {
        owners: fleet.owners(&["b"]),
        ..Job::new(spec.id, 7)
    };
    going.on(&b, grant).await.unwrap();
    let taken_over = b.detail(spec.id).await.unwrap();
    assert_eq!(taken_over.vm.tpm.owner, Some(own(&b)));

    // The own one opens it now, so the imported one may go; the VM starts without it.
    assert_eq!(removal(&b, &own(&a)), Ok(()));
    Job::new(spec.id, 10)
        .on(&b, operation::Start {})
        .await
        .unwrap();
    let running = b.detail(spec.id).await.unwrap();
    assert_eq!(running.vm.state, VmState::Running);
    assert_eq!(running.can_open, CanOpen::Yes);

    let said = std::fs::read_to_string(Layout::new(&b.config).audit_log()).unwrap();
    for action in ["import-pfx", "remove-guardian"] {
        assert!(said.contains(action), "{action} is not on record");
    }
    let said = std::fs::read_to_string(Layout::new(&a.config).audit_log()).unwrap();
    assert!(said.contains("export-pfx"));
}

/// Stops the VM that runs on `node`.
async fn stopped(node: &Node, vm: VmId, generation: u64) {
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    Job::new(vm, generation).on(node, stop).await.unwrap();
}

/// The host is installed anew on the disk it had: its VMs are there, its membership and its guardian are not.
async fn reinstalled(node: &mut Node, fleet: &Fleet) {
    node.down().await;
    let layout = Layout::new(&node.config);
    for path in [layout.identity(), layout.guardians()] {
        std::fs::remove_dir_all(path).unwrap();
    }
    let joined = fleetward_agent::join::join(&node.config, &fleet.token(&node.name)).await;
    joined.unwrap();
    node.client = fleet.client(&node.name, &node.address);
    node.up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_starts_with_nothing_but_an_imported_guardian_of_this_fleet_or_another() {
    for same_fleet in [true, false] {
        let fleet = Fleet::start().await;
        let other = Fleet::start().await;
        let mut node = Node::start(&fleet, "a").await;
        let (spec, _) = create_running(&fleet, &node, "vm1").await;
        stopped(&node, spec.id, 5).await;
        let password = Zeroizing::new("a long password".to_owned());
        let files = keyring(&node)
            .export_pfx(&own(&node), &password, Protection::Legacy, &by_hand())
            .map_err(|trouble| trouble.failure)
            .unwrap();
        let former = own(&node);

        reinstalled(&mut node, if same_fleet { &fleet } else { &other }).await;
        assert_ne!(own(&node), former);
        let refused = Job::new(spec.id, 10).on(&node, operation::Start {}).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::KeyNotGranted);
        let before = node.detail(spec.id).await.unwrap().vm.tpm;
        assert_eq!(
            before.guardians,
            std::slice::from_ref(&former),
            "the own one cannot open it"
        );

        let keys = files
            .iter()
            .flat_map(|file| pfx::read(&file.content, &password).unwrap());
        let guardian = pfx::assemble(keys.collect()).unwrap();
        let imported = keyring(&node).import(&guardian, &by_hand());
        assert_eq!(imported.map_err(|t| t.failure).unwrap().guardian, former);
        // While only it opens the VM, it stays.
        assert_eq!(removal(&node, &former), Err(ErrorCode::GuardianInUse));
        Job::new(spec.id, 11)
            .on(&node, operation::Start {})
            .await
            .unwrap();
        let vm = node.detail(spec.id).await.unwrap().vm;
        assert_eq!(vm.state, VmState::Running);
        assert_eq!(vm.tpm.key_id, before.key_id, "the TPM is the one it had");
        // The start has put the own one beside it, so the VM starts without it from now on.
        let beside: BTreeSet<_> = vm.tpm.guardians.into_iter().collect();
        assert_eq!(beside, BTreeSet::from([former.clone(), own(&node)]));
        assert_eq!(removal(&node, &former), Ok(()));
        stopped(&node, spec.id, 12).await;
        let start = Job::new(spec.id, 13).on(&node, operation::Start {}).await;
        start.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_with_a_credential_encrypts_what_join_wrote_and_opens_as_before() {
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    stopped(&node, spec.id, 5).await;
    let id = own(&node);
    assert!(!keyring(&node).is_sealed());
    let key = fleet.dir.path().join("guardian-key");
    std::fs::write(&key, [9; 32]).unwrap();
    node.down().await;
    node.config.credential_file = Some(key.clone());
    node.up().await;
    Job::new(spec.id, 10)
        .on(&node, operation::Start {})
        .await
        .unwrap();
    let layout = Layout::new(&node.config);
    let open = |key: Option<&std::path::Path>| {
        let host: fleetward_model::HostName = "a".parse().unwrap();
        let audit = Arc::new(AuditLog::new(layout.audit_log(), host.clone()));
        Keyring::open_with(&layout.guardians(), host, audit, key)
    };
    let sealed = open(Some(&key)).unwrap();
    assert!(sealed.is_sealed(), "{:?}", sealed.lying_in_clear());
    assert_eq!(sealed.facts()[0].id, id);
    let refused = open(None).unwrap_err().failure("the guardian store");
    assert_eq!(refused.code, ErrorCode::GuardianStoreSealed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_is_on_record_as_one_and_not_as_a_new_tpm() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    stopped(&node, spec.id, 5).await;
    let to = vec![fleet.endorsed("a", "default")];
    let job = Job::new(spec.id, 6);
    job.on(&node, operation::PrepareRoll { to }).await.unwrap();
    let records: Vec<fleetward_model::audit::AuditRecord> =
        node.client.get("/v1/audit?after=0").await.unwrap();
    fleetward_model::audit::verify(None, &records).unwrap();
    let of_the_roll: Vec<_> = records.iter().filter(|r| r.job == Some(job.id)).collect();
    let actions: Vec<&str> = of_the_roll.iter().map(|r| r.action.into_str()).collect();
    assert_eq!(actions, ["open", "roll"]);
    for record in of_the_roll {
        assert_eq!(record.vm, Some(spec.id));
        assert_eq!(record.guardian, Some(own(&node)));
        assert!(record.reason.contains("TPM key"), "{record:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_protector_that_a_stranger_signed_is_refused_by_name() {
    let fleet = Fleet::start().await;
    let a = Node::start(&fleet, "a").await;
    let b = Node::start(&fleet, "b").await;
    let (spec, metadata) = create_running(&fleet, &a, "vm1").await;
    stopped(&a, spec.id, 5).await;
    let granted = |generation, owners: &[&str]| {
        let grant = operation::Grant {
            to: vec![fleet.endorsed("b", "default")],
        };
        let job = Job {
            owners: fleet.owners(owners),
            ..Job::new(spec.id, generation)
        };
        let a = &a;
        async move { job.on(a, grant).await.unwrap().key_protector }
    };
    let arrives = |generation, protector: String, owners: Option<String>| {
        let metadata = fleetward_model::vm::VmMetadata {
            key_protector: Some(protector),
            ..metadata.clone()
        };
        let prepare = operation::PrepareIncoming {
            metadata: Box::new(metadata),
            disks: disks(true),
            live: false,
            from: a.peer(),
            former_states: Vec::new(),
        };
        let abandon = operation::AbandonIncoming {
            spec: spec.clone(),
            disks: disks(true),
        };
        let job = Job {
            owners,
            ..Job::new(spec.id, generation)
        };
        let b = &b;
        async move {
            let outcome = job.on(b, prepare).await;
            job.on(b, abandon).await.unwrap();
            outcome.map(|_| ())
        }
    };

    // b could open it; that is not enough.
    let of_a = granted(6, &["a", "b"]).await;
    let refused = arrives(7, of_a.clone(), fleet.owners(&["b"]))
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::OwnerUnknown);
    assert!(refused.because.contains(own(&a).as_str()), "{refused}");
    assert!(
        refused.fix.contains("fleetward-agent guardian import-pfx"),
        "{refused}"
    );
    // Nor is a list that somebody else has signed.
    let forged = fleet
        .owners(&["a"])
        .unwrap()
        .replace("\"signature\":\"M", "\"signature\":\"N");
    let refused = arrives(8, of_a.clone(), Some(forged)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::OwnerUnknown);
    arrives(9, of_a.clone(), fleet.owners(&["a"]))
        .await
        .unwrap();
    // A controller of a former version cannot say it, and its VMs move on.
    arrives(10, of_a.clone(), None).await.unwrap();

    // Put back on its host, where a guardian of the host has signed it, it needs nobody's word.
    let put = operation::PutProtector {
        key_protector: of_a.clone(),
    };
    let job = Job {
        owners: fleet.owners(&[]),
        ..Job::new(spec.id, 11)
    };
    job.on(&a, put).await.unwrap();

    // One that was imported here by name counts here.
    carry_over(&a, &b);
    arrives(12, of_a, fleet.owners(&["b"])).await.unwrap();
}
