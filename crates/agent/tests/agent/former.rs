//! An agent's data directory as an earlier version left it in the middle of its work: today's agent knows every VM as that
//! one knew it, and ends what that one began.

use crate::support::{Fleet, Job, Node, record_of};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::operation::{self, SourceState};
use fleetward_hypervisor::{DomainState, StopReason};
use fleetward_model::vm::{TransitSide, VmMetadata, VmState};
use fleetward_model::{ErrorCode, VmId};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/7917ca9")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Metadata of the VM of that name, from the definition that libvirt had.
fn metadata(host: &str, vm: &str) -> VmMetadata {
    let path = recorded().join(format!("hosts/{host}/domains/{vm}.xml"));
    let xml = std::fs::read_to_string(&path).unwrap();
    let text = |name: &str| {
        let (_, rest) = xml.split_once(&format!("<fleetward:{name}>"))?;
        let (text, _) = rest.split_once(&format!("</fleetward:{name}>"))?;
        Some(text.replace("&quot;", "\"").replace("&amp;", "&"))
    };
    let mut record: Value = serde_json::from_str(&text("record").unwrap()).unwrap();
    if let Some(protector) = text("key_protector") {
        record["key_protector"] = protector.into();
    }
    serde_json::from_value(record).unwrap()
}

/// A node that goes on where the host `host` of the earlier version was killed.
async fn after(fleet: &Fleet, host: &str, domains: &[(&str, DomainState)]) -> Node {
    let mut node = Node::start(fleet, host).await;
    node.down().await;
    let from = recorded().join("hosts").join(host);
    for name in ["vms", "generations", "history"] {
        // Where there was nothing, nothing was recorded.
        if from.join(name).is_dir() {
            copy(&from.join(name), &node.config.data_dir.join(name));
        }
    }
    for (vm, state) in domains {
        node.fake.define_as_it_was(metadata(host, vm), *state);
    }
    node.up().await;
    node
}

const STOPPED: DomainState = DomainState::Stopped(StopReason::Ordinary);

#[tokio::test(flavor = "multi_thread")]
async fn every_vm_is_known_with_its_tpm_its_guardians_and_who_lost_its_key() {
    let fleet = Fleet::start().await;
    let vms = [
        ("desk1", DomainState::Stopped(StopReason::Migrated)),
        ("linked1", STOPPED),
        ("moving1", DomainState::Running),
        ("off1", STOPPED),
        ("revoked1", DomainState::Running),
        ("rolling1", STOPPED),
        ("sending1", STOPPED),
    ];
    let node = after(&fleet, "a", &vms).await;
    for (name, _) in vms {
        let old = metadata("a", name);
        let seen = node.detail(old.spec.id).await.unwrap().vm;
        assert_eq!(seen.name.as_str(), name);
        let new = seen.metadata.as_ref().expect(name);
        assert_eq!(new.spec, old.spec, "{name}");
        assert_eq!(new.revoked, old.revoked, "{name}");
        assert_eq!(seen.tpm.enabled, name != "off1", "{name}");
        if let Some(text) = &old.key_protector {
            let der = STANDARD.decode(text).unwrap();
            let protector = fleetward_protector::KeyProtector::from_der(&der).unwrap();
            let said = protector.inspect();
            assert_eq!(seen.tpm.key_id, Some(said.binding.key_id), "{name}");
            let hosts = if name == "revoked1" { 2 } else { 3 };
            assert_eq!(seen.tpm.guardians.len(), hosts, "{name}");
        }
    }
    let revoked = node
        .detail(metadata("a", "revoked1").spec.id)
        .await
        .unwrap();
    assert_eq!(revoked.vm.clone().digested().roll_due().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_departure_goes_on_where_it_was_and_leaves_nothing() {
    let fleet = Fleet::start().await;
    let vms = [
        ("desk1", DomainState::Stopped(StopReason::Ordinary)),
        ("sending1", STOPPED),
    ];
    let node = after(&fleet, "a", &vms).await;
    let desk = metadata("a", "desk1");
    let generation = generation("a", desk.spec.id);
    let job = Job {
        id: job_in("a", desk.spec.id, "outgoing.json"),
        vm: desk.spec.id,
        generation: generation + 1,
        owners: None,
        ek: None,
    };
    // Written down by the earlier version; libvirt has forgotten it since.
    let state = job.on(&node, operation::MigrationState {}).await.unwrap();
    assert_eq!(state, SourceState::NotHere);
    job.on(&node, operation::Depart {}).await.unwrap();
    let departed = node.detail(desk.spec.id).await.unwrap().vm;
    let side = departed.metadata.and_then(|m| m.transit).map(|t| t.side);
    assert_eq!(side, Some(TransitSide::Departed));
    let refused = Job::new(desk.spec.id, generation + 2)
        .on(&node, operation::Start {})
        .await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::VmStateWrong);

    // The one that was marked already.
    let sending = metadata("a", "sending1");
    let job = Job {
        id: job_in("a", sending.spec.id, "transit.json"),
        vm: sending.spec.id,
        generation: self::generation("a", sending.spec.id),
        owners: None,
        ek: None,
    };
    let clean_up = operation::CleanUpDeparted {
        spec: sending.spec.clone(),
        disks: crate::support::disks(true),
    };
    job.on(&node, clean_up).await.unwrap();
    assert!(node.detail(sending.spec.id).await.is_err());
    assert!(!record_of(&node, sending.spec.id).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arrival_is_no_vm_until_it_is_committed_and_can_be_abandoned() {
    let fleet = Fleet::start().await;
    let paused = DomainState::Paused { incoming: false };
    let node = after(&fleet, "b", &[("desk1", paused), ("plain1", STOPPED)]).await;
    let desk = metadata("b", "desk1");
    let seen = node.detail(desk.spec.id).await.unwrap().vm;
    let side = seen.metadata.and_then(|m| m.transit).map(|t| t.side);
    assert_eq!(side, Some(TransitSide::Incoming));
    let job = Job {
        id: job_in("b", desk.spec.id, "transit.json"),
        vm: desk.spec.id,
        generation: generation("b", desk.spec.id),
        owners: None,
        ek: None,
    };
    let older = Job::new(desk.spec.id, job.generation - 1);
    let late = older
        .on(&node, operation::CommitIncoming { live: true })
        .await;
    assert_eq!(late.unwrap_err().code, ErrorCode::StaleGeneration);
    job.on(&node, operation::CommitIncoming { live: true })
        .await
        .unwrap();
    let seen = node.detail(desk.spec.id).await.unwrap().vm;
    assert_eq!(seen.state, VmState::Running);
    assert!(seen.clone().digested().is_the_vm());

    // Prepared, and nothing had arrived.
    let moving = metadata("a", "moving1");
    let job = Job {
        id: job_in("b", moving.spec.id, "transit.json"),
        vm: moving.spec.id,
        generation: generation("b", moving.spec.id),
        owners: None,
        ek: None,
    };
    let abandon = operation::AbandonIncoming {
        spec: moving.spec.clone(),
        disks: crate::support::disks(true),
    };
    job.on(&node, abandon).await.unwrap();
    assert!(!record_of(&node, moving.spec.id).exists());
    let plain = node.detail(metadata("b", "plain1").spec.id).await.unwrap();
    assert!(!plain.vm.tpm.enabled && plain.vm.clone().digested().is_the_vm());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_and_a_clone_that_are_half_done_can_be_taken_back() {
    let fleet = Fleet::start().await;
    let node = after(&fleet, "a", &[("rolling1", STOPPED)]).await;
    let rolling = metadata("a", "rolling1");
    let job = Job::new(rolling.spec.id, generation("a", rolling.spec.id) + 1);
    job.on(&node, operation::AbandonTpm {}).await.unwrap();
    assert!(!record_of(&node, rolling.spec.id).join("tpm-next").exists());
    let kept = node.config.data_dir.join("history");
    assert!(kept.join(rolling.spec.id.to_string()).exists());
    let seen = node.detail(rolling.spec.id).await.unwrap().vm;
    assert_eq!(seen.tpm.guardians.len(), 3);
}

fn generation(host: &str, vm: VmId) -> u64 {
    let path = recorded().join(format!("hosts/{host}/generations/{vm}"));
    std::fs::read_to_string(path)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// The job that a record of the agent names.
fn job_in(host: &str, vm: VmId, record: &str) -> fleetward_model::JobId {
    let path = recorded().join(format!("hosts/{host}/vms/{vm}/{record}"));
    let record: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    serde_json::from_value(record["job"].clone()).unwrap()
}
