//! EK certificates that come with TPMs: this fleet's, accepted ones, and those of strangers.

use crate::support::{Fleet, Job, Node, create_running, disks, record_of};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_agent::layout::Layout;
use fleetward_api::agent::operation;
use fleetward_api::agent::*;
use fleetward_api::tpm::{BundleParts, TpmBundle};
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure, VmId};
use sha2::{Digest, Sha256};

/// What the controller says of a certificate that this host issued.
async fn word_for(node: &Node) -> EkWord {
    let held: EkAuthorityHeld = node.client.get(EK_AUTHORITY).await.unwrap();
    EkWord {
        authorities: vec![held.certificate],
        ..EkWord::default()
    }
}

fn sha256_of(ek: &str) -> String {
    hex::encode(Sha256::digest(STANDARD.decode(ek).unwrap()))
}

fn job(vm: VmId, generation: u64, word: Option<EkWord>) -> Job {
    Job {
        ek: word,
        ..Job::new(vm, generation)
    }
}

async fn stop(node: &Node, vm: VmId, generation: u64) {
    let stop = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    Job::new(vm, generation).on(node, stop).await.unwrap();
}

fn files_below(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// The same VM with a certificate that somebody else issued, under this fleet's names.
async fn with_strangers_ek(name: &str) -> String {
    let strangers = Fleet::start().await;
    let a = Node::start(&strangers, "a").await;
    let (_, metadata) = create_running(&strangers, &a, name).await;
    metadata.ek_certificate.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_arrives_only_with_an_ek_certificate_of_the_fleet_or_an_accepted_one() {
    let fleet = Fleet::start().await;
    let a = Node::start(&fleet, "a").await;
    let b = Node::start(&fleet, "b").await;
    let (spec, metadata) = create_running(&fleet, &a, "vm1").await;
    stop(&a, spec.id, 5).await;
    let to = vec![fleet.endorsed("b", "default")];
    let granted = Job::new(spec.id, 6)
        .on(&a, operation::Grant { to })
        .await
        .unwrap();
    let metadata = VmMetadata {
        key_protector: Some(granted.key_protector),
        ..metadata
    };
    let arrives = |generation, live, ek: Option<String>, word: Option<EkWord>| {
        let prepare = operation::PrepareIncoming {
            former_states: Vec::new(),
            metadata: Box::new(VmMetadata {
                ek_certificate: ek,
                ..metadata.clone()
            }),
            disks: disks(true),
            live,
            from: a.peer(),
        };
        let abandon = operation::AbandonIncoming {
            spec: spec.clone(),
            disks: disks(true),
        };
        let job = job(spec.id, generation, word);
        let b = &b;
        async move {
            let outcome: Result<(), Failure> = job.on(b, prepare).await.map(|_| ());
            if outcome.is_err() {
                let left = files_below(&record_of(b, job.vm));
                assert!(left.is_empty(), "{left:?}");
            }
            job.on(b, abandon).await.unwrap();
            outcome
        }
    };
    let own = metadata.ek_certificate.clone();
    let nobody = || Some(EkWord::default());
    let strangers = Some(with_strangers_ek("vm1").await);
    for (generation, live) in [(10, false), (20, true)] {
        let of_a = word_for(&a).await;
        arrives(generation, live, own.clone(), Some(of_a.clone()))
            .await
            .unwrap();
        // The root alone does not lead to it, and a stranger who calls its authority the same is not believed.
        for (step, ek, word) in [
            (1, own.clone(), nobody()),
            (2, strangers.clone(), Some(of_a.clone())),
            (3, strangers.clone(), nobody()),
            (4, Some(STANDARD.encode(b"no certificate")), nobody()),
            (5, Some("no base64".to_owned()), nobody()),
        ] {
            let refused = arrives(generation + step, live, ek, word)
                .await
                .unwrap_err();
            assert_eq!(refused.code, ErrorCode::EkNotOfFleet, "{step}: {refused}");
        }
        let refused = arrives(generation + 6, live, strangers.clone(), Some(of_a.clone()))
            .await
            .unwrap_err();
        let sha256 = sha256_of(strangers.as_deref().unwrap());
        assert!(
            refused.because.contains("Fleetward EK authority a"),
            "{refused}"
        );
        assert!(
            refused
                .fix
                .ends_with(&format!("fleetward ek accept {sha256}")),
            "{refused}"
        );
        let accepted = EkWord {
            accepted: [sha256].into(),
            ..of_a
        };
        arrives(generation + 7, live, strangers.clone(), Some(accepted))
            .await
            .unwrap();
        // Without a certificate nothing is claimed; a controller of a former version says nothing.
        arrives(generation + 8, live, None, nobody()).await.unwrap();
        arrives(generation + 9, live, strangers.clone(), None)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_tpm_with_a_strangers_ek_certificate_is_neither_restored_nor_rebuilt() {
    let fleet = Fleet::start().await;
    let a = Node::start(&fleet, "a").await;
    let (spec, metadata) = create_running(&fleet, &a, "vm1").await;
    stop(&a, spec.id, 5).await;
    let kept: TpmBundle = a
        .client
        .get(&VM_TPM.replace("{id}", &spec.id.to_string()))
        .await
        .unwrap();
    let strangers = with_strangers_ek("vm1").await;
    let forged = {
        let parts = BundleParts {
            ek_certificate: Some(STANDARD.decode(&strangers).unwrap()),
            ..kept.check().unwrap()
        };
        Box::new(TpmBundle::new(kept.metadata.clone(), &parts))
    };
    let before = files_below(&record_of(&a, spec.id));
    let restore = operation::PrepareRestore {
        bundle: forged.clone(),
    };
    let refused = job(spec.id, 6, Some(EkWord::default()))
        .on(&a, restore)
        .await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::EkNotOfFleet);
    assert_eq!(files_below(&record_of(&a, spec.id)), before);
    let restore = operation::PrepareRestore {
        bundle: Box::new(kept),
    };
    let restoring = job(spec.id, 7, Some(EkWord::default()));
    restoring.on(&a, restore).await.unwrap();
    restoring.on(&a, operation::AbandonTpm {}).await.unwrap();

    // The VM's own definition is good; its copy is not.
    let undefined = Job::new(spec.id, 8);
    undefined.on(&a, operation::Undefine {}).await.unwrap();
    let remove = operation::RemoveTpm {
        keep: false,
        history: false,
    };
    undefined.on(&a, remove).await.unwrap();
    let rebuild = operation::RebuildIncoming {
        former_states: Vec::new(),
        metadata: Box::new(metadata),
        bundle: Some(forged),
    };
    let refused = job(spec.id, 9, Some(EkWord::default()))
        .on(&a, rebuild)
        .await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::EkNotOfFleet);
    let left = files_below(&record_of(&a, spec.id));
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_made_ahead_in_another_fleet_is_not_used() {
    let (fleet, other) = (Fleet::start().await, Fleet::start().await);
    let mut node = Node::start(&fleet, "a").await;
    let layout = Layout::new(&node.config);
    let pool = node.config.data_dir.join("tpm-pool");
    let ready = || {
        let all = files_below(&pool).into_iter();
        let names = all.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        names
            .filter(|name| !name.starts_with("making-"))
            .collect::<Vec<_>>()
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while ready().is_empty() {
        assert!(std::time::Instant::now() < deadline, "no TPM made ahead");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    node.down().await;
    let of_former = ready();
    std::fs::remove_dir_all(layout.identity()).unwrap();
    let joined = fleetward_agent::join::join(&node.config, &other.token("a")).await;
    joined.unwrap();
    node.client = other.client("a", &node.address);
    node.up().await;
    let (spec, metadata) = create_running(&other, &node, "vm1").await;
    stop(&node, spec.id, 5).await;
    assert!(ready().iter().all(|name| !of_former.contains(name)));
    // The one it got is of the fleet that the host is in: it is taken as one from elsewhere would be.
    let define = operation::Define {
        metadata: Box::new(metadata),
    };
    std::fs::remove_file(record_of(&node, spec.id).join("ek.der")).unwrap();
    let word = word_for(&node).await;
    job(spec.id, 6, Some(word)).on(&node, define).await.unwrap();
}
