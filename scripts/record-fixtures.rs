//! Writes every kind of line that the wires of a version know, with that version's own types. `record-fixtures` puts this
//! file into the sources of that version as an example of the crate `fleetward-api` and runs it there:
//!
//!     wire RECORDED        reads RECORDED/controller/store.jsonl, fills RECORDED/wire/

use fleetward_api::agent::*;
use fleetward_api::tpm::{BundleParts, TpmBundle};
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::host::HostFacts;
use fleetward_model::vm::*;
use fleetward_model::{ErrorCode, Failure, JobId, KeyId};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() {
    let recorded = PathBuf::from(std::env::args().nth(1).expect("RECORDED"));
    let store = std::fs::read_to_string(recorded.join("controller/store.jsonl")).expect("store");
    let values = |prefix: &str| -> Vec<serde_json::Value> {
        let lines = store.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let found = lines.filter(|line: &serde_json::Value| {
            line["key"].as_str().is_some_and(|key| key.starts_with(prefix))
        });
        found.map(|mut line| line["value"].take()).collect()
    };
    let vms: Vec<VmObserved> = values("seen-vm/a/")
        .into_iter()
        .map(|vm| serde_json::from_value(vm).expect("a VM"))
        .collect();
    let facts: HostFacts =
        serde_json::from_value(values("seen-facts/a")[0]["facts"].take()).expect("facts");
    let named = |name: &str| vms.iter().find(|vm| vm.name.as_str() == name).expect(name).clone();
    let (revoked, linked) = (named("revoked1"), named("linked1"));

    // Short texts stand for key protector and certificate: how they look is not this wire's business.
    let mut metadata = revoked.metadata.clone().expect("managed");
    metadata.key_protector = Some("cHJvdGVjdG9y".into());
    metadata.ek_certificate = Some("Y2VydGlmaWNhdGU=".into());
    metadata.transit = Some(Transit {
        job: job(),
        side: TransitSide::Incoming,
    });
    let mut spec = metadata.spec.clone();
    spec.cdrom = Some(CdromSpec {
        image: "installer".parse().expect("name"),
        sha256: "00".repeat(32),
    });
    metadata.spec = spec.clone();

    let wire = recorded.join("wire");
    std::fs::create_dir_all(&wire).expect("directory");
    let small = |vm: &VmObserved| {
        let mut vm = vm.clone();
        vm.metadata.as_mut().expect("managed").key_protector = metadata.key_protector.clone();
        vm
    };
    let events = [
        AgentEvent::Snapshot {
            facts: Box::new(facts.clone()),
            vms: vec![revoked.clone(), small(&linked)],
        },
        AgentEvent::Facts {
            facts: Box::new(facts.clone()),
        },
        AgentEvent::VmChanged {
            vm: Box::new(small(&revoked)),
        },
        AgentEvent::VmRemoved { id: revoked.id },
    ];
    write(&wire, "events.jsonl", &events);

    let guardian = EndorsedGuardian {
        guardian: facts.guardians[0].clone(),
        group: facts.group.clone(),
        endorsement: "ZW5kb3JzZW1lbnQ=".into(),
    };
    let parts = BundleParts {
        state: b"state".to_vec(),
        key_protector: b"protector".to_vec(),
        ek_certificate: Some(b"certificate".to_vec()),
        uefi_variables: Some(b"variables".to_vec()),
    };
    let bundle = TpmBundle::new(metadata.clone(), &parts);
    let requests: Vec<_> = operations(&metadata, &spec, &guardian, &bundle)
        .into_iter()
        .map(|operation| OperationRequest {
            job: job(),
            generation: 1_795_656_571_507,
            vm: spec.id,
            operation,
        })
        .collect();
    write(&wire, "operations.jsonl", &requests);
    write(&wire, "answers.jsonl", &answers(&metadata));
    write(&wire, "bundle.jsonl", &[bundle]);

    let changes = [
        GuardianChange::MakeSuccessor { job: job() },
        GuardianChange::DiscardSuccessor { job: job() },
        GuardianChange::Adopt {
            guardian: facts.guardians[0].id.clone(),
            job: job(),
        },
        GuardianChange::Retire {
            guardian: facts.guardians[0].id.clone(),
            job: job(),
        },
    ];
    write(&wire, "guardian-changes.jsonl", &changes);
    let cancel = CancelRequest {
        job: job(),
        vm: spec.id,
    };
    write(&wire, "cancel.jsonl", &[cancel]);
    let question = Question {
        metadata: metadata.clone(),
        cpu_xml: Some("<cpu/>".into()),
    };
    write(&wire, "questions.jsonl", &[question]);
    let can_open = [
        CanOpen::NoTpm,
        CanOpen::Yes,
        CanOpen::NotGranted,
        CanOpen::Unreadable {
            because: "it is damaged".into(),
        },
    ];
    let detail = VmDetail {
        vm: small(&revoked),
        cpu_xml: Some("<cpu/>".into()),
        can_open: CanOpen::Yes,
    };
    write(&wire, "details.jsonl", &[detail]);
    let replies = can_open.map(|can_open| IncomingAnswer {
        uuid_taken: Some(false),
        name_taken: Some(true),
        cpu_problem: None,
        can_open,
    });
    write(&wire, "question-answers.jsonl", &replies);
    let head = AuditHead {
        seq: 7,
        hash: "00".repeat(32),
    };
    write(&wire, "audit-heads.jsonl", &[head]);
}

fn job() -> JobId {
    "6f0f8a0e-1ac4-4b52-a3fb-0d7a3d3f2b11".parse().expect("a job's id")
}

fn write(wire: &Path, name: &str, lines: &[impl Serialize]) {
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{}", serde_json::to_string(line).expect("JSON")).expect("memory");
    }
    std::fs::write(wire.join(name), text).expect(name);
}

fn operations(
    metadata: &VmMetadata,
    spec: &VmSpec,
    guardian: &EndorsedGuardian,
    bundle: &TpmBundle,
) -> Vec<Operation> {
    let (spec, to) = (spec.clone(), vec![guardian.clone()]);
    let peer = Peer {
        host: "b".parse().expect("name"),
        address: "10.77.0.12:7443".into(),
    };
    let disks = vec![IncomingDisk {
        target: "vda".into(),
        copy: true,
    }];
    let key_protector = "cHJvdGVjdG9y".to_owned();
    let metadata = || Box::new(metadata.clone());
    let bundle = || Box::new(bundle.clone());
    let rewrap = |why| Operation::Rewrap {
        change: KeyRewrap {
            add: to.clone(),
            drop: vec![guardian.guardian.id.clone()],
            expired: vec![guardian.guardian.id.clone()],
            former: vec![guardian.guardian.id.clone()],
            why,
        },
    };
    let image = VolumeSource::Image {
        image: "lab-guest".parse().expect("name"),
        sha256: "00".repeat(32),
    };
    vec![
        Operation::CreateVolumes {
            spec: spec.clone(),
            sources: vec![image, VolumeSource::Empty],
        },
        Operation::DeleteVolumes { spec: spec.clone() },
        Operation::CopyVm {
            to: Box::new(spec.clone()),
            variables: true,
            tpm_state: true,
            linked: true,
        },
        Operation::UncopyVm {
            to: Box::new(spec.clone()),
        },
        Operation::CopyTpm {
            recipients: to.clone(),
        },
        Operation::PlaceVariables {
            sha256: "00".repeat(32),
        },
        Operation::MakeTpm {
            recipients: to.clone(),
        },
        Operation::RemoveTpm {
            keep: true,
            history: false,
        },
        Operation::RemoveTpm {
            keep: false,
            history: true,
        },
        Operation::AttachTpm,
        Operation::DetachTpm,
        Operation::SetAsideTpm,
        Operation::PrepareRoll { to: to.clone() },
        Operation::PrepareRestore { bundle: bundle() },
        Operation::CommitTpm {
            key_protector: key_protector.clone(),
        },
        Operation::AbandonTpm,
        Operation::Define {
            metadata: metadata(),
        },
        Operation::Undefine,
        Operation::Start,
        Operation::Stop {
            force: true,
            deadline_seconds: 120,
        },
        Operation::Grant { to: to.clone() },
        rewrap(RewrapReason::Automatic),
        rewrap(RewrapReason::Granted),
        rewrap(RewrapReason::Revoked),
        rewrap(RewrapReason::Rotated),
        Operation::PutProtector { key_protector },
        Operation::PrepareIncoming {
            metadata: metadata(),
            disks: disks.clone(),
            live: true,
            from: peer.clone(),
        },
        Operation::AbandonIncoming {
            spec: spec.clone(),
            disks: disks.clone(),
        },
        Operation::RebuildIncoming {
            metadata: metadata(),
            bundle: Some(bundle()),
        },
        Operation::RebuildIncoming {
            metadata: metadata(),
            bundle: None,
        },
        Operation::Supersede,
        Operation::MigrateLive {
            to: peer.clone(),
            disks: disks.clone(),
        },
        Operation::SendStopped {
            to: peer,
            disks: disks.clone(),
        },
        Operation::MigrationState,
        Operation::Depart,
        Operation::CommitIncoming { live: true },
        Operation::CleanUpDeparted { spec, disks },
    ]
}

fn answers(metadata: &VmMetadata) -> Vec<OperationLine> {
    let results = [
        OperationResult::Nothing,
        OperationResult::TpmMade {
            key_protector: "cHJvdGVjdG9y".into(),
            key_id: KeyId(metadata.spec.id.0),
            ek_certificate: "Y2VydGlmaWNhdGU=".into(),
        },
        OperationResult::Protector {
            key_protector: "cHJvdGVjdG9y".into(),
        },
        OperationResult::Copied {
            paused_ms: Some(12),
            variables: true,
            linked: true,
        },
        OperationResult::Migrated {
            total_ms: 1200,
            downtime_ms: Some(80),
            transferred: 1 << 30,
        },
        OperationResult::MigrationState {
            state: SourceState::Here,
        },
        OperationResult::MigrationState {
            state: SourceState::NotHere,
        },
        OperationResult::Committed,
    ];
    let failure = Failure::new(ErrorCode::VmStateWrong, "VM revoked1 cannot be stopped")
        .because("it is departed")
        .fix("fleetward vm show revoked1");
    let mut lines: Vec<_> = results
        .into_iter()
        .map(|result| OperationLine::Done { result })
        .collect();
    lines.push(OperationLine::Progress {
        done: 1,
        total: 2,
        text: "copying".into(),
    });
    lines.push(OperationLine::Failed {
        failure,
        transient: true,
    });
    lines
}
