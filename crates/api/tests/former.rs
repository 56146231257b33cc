//! Lines that an earlier version writes to its wires: today's types read each of them, and write all that they read.

use fleetward_api::agent::operation::{ChangeVm, Operation};
use fleetward_api::agent::*;
use fleetward_api::tpm::TpmBundle;
use fleetward_model::change::Direction;
use fleetward_model::host::Formats;
use fleetward_model::vm::{NewerSpec, VmReport, VmSpec, protector_sha256};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::PathBuf;

fn lines(name: &str) -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/7917ca9/wire")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    text.lines().map(str::to_owned).collect()
}

/// What `old` says and `new` does not. A member that is new does no harm: the earlier version ignores it.
fn lost(at: &str, old: &Value, new: &Value) -> Vec<String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => old
            .iter()
            .flat_map(|(name, value)| {
                let at = format!("{at}/{name}");
                match new.get(name) {
                    Some(new) => lost(&at, value, new),
                    // What both leave out means the same.
                    None if value.is_null() => Vec::new(),
                    None => vec![at],
                }
            })
            .collect(),
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => old
            .iter()
            .zip(new)
            .enumerate()
            .flat_map(|(n, (old, new))| lost(&format!("{at}/{n}"), old, new))
            .collect(),
        _ if old == new => Vec::new(),
        _ => vec![format!("{at}: {old} became {new}")],
    }
}

fn all_survive<T: DeserializeOwned + Serialize>(name: &str) -> Vec<T> {
    let mut read = Vec::new();
    for (number, line) in (1..).zip(lines(name)) {
        let value: T = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{name}, line {number}: {error}"));
        let old: Value = serde_json::from_str(&line).expect("JSON");
        let new = serde_json::to_value(&value).expect("JSON");
        assert_eq!(
            lost("", &old, &new),
            Vec::<String>::new(),
            "{name}, line {number}"
        );
        read.push(value);
    }
    assert!(!read.is_empty(), "{name} is empty");
    read
}

#[test]
fn what_an_earlier_agent_reports_is_read_whole() {
    let events: Vec<AgentEvent> = all_survive("events.jsonl");
    let Some(AgentEvent::Snapshot { facts, vms, .. }) = events.first() else {
        panic!("a snapshot comes first");
    };
    let own = facts.own_guardian().expect("the host has a guardian");
    let revoked = vms
        .iter()
        .find(|vm| vm.name.as_str() == "revoked1")
        .expect("it is in the snapshot");
    assert_eq!(revoked.tpm.owner.as_ref(), Some(&own.id));
    assert!(revoked.tpm.enabled && revoked.tpm.guardians.contains(&own.id));
    let revoked = VmReport::clone(revoked).digested();
    assert_eq!(revoked.roll_due().count(), 1, "who lost the key is known");
    assert!(revoked.is_the_vm());
    all_survive::<VmDetail>("details.jsonl");
}

/// The VMs of all events.
fn reported() -> Vec<VmReport> {
    let events = lines("events.jsonl").into_iter();
    let vms =
        events.flat_map(
            |line| match serde_json::from_str(line.as_str()).expect("an event") {
                AgentEvent::Snapshot { vms, .. } | AgentEvent::SnapshotPart { vms, .. } => vms,
                AgentEvent::VmChanged { vm } => vec![*vm],
                AgentEvent::Facts { .. }
                | AgentEvent::Alive { .. }
                | AgentEvent::VmRemoved { .. }
                | AgentEvent::Load { .. } => Vec::new(),
            },
        );
    vms.collect()
}

#[test]
fn of_the_custody_that_an_earlier_agent_sends_only_digests_are_kept() {
    let mut reduced = 0;
    for vm in reported() {
        let Some(metadata) = vm.metadata.clone() else {
            continue;
        };
        let kept = vm.digested();
        let text = metadata.key_protector.as_deref();
        assert_eq!(kept.tpm.protector_sha256, text.map(protector_sha256));
        let written = serde_json::to_string(&kept).expect("JSON");
        for custody in [metadata.key_protector, metadata.ek_certificate] {
            assert!(custody.is_none_or(|text| !written.contains(&text)));
        }
        let summary = kept.metadata.expect("it stays one of ours");
        assert_eq!(
            (summary.spec, summary.revoked),
            (metadata.spec, metadata.revoked)
        );
        reduced += 1;
    }
    assert!(reduced > 2, "{reduced} VMs");
}

#[test]
fn an_earlier_controller_gets_nothing_that_it_cannot_read() {
    let mut vms = reported();
    vms.retain(|vm| vm.metadata.is_some());
    let spec = &mut vms[0].metadata.as_mut().expect("ours").spec;
    spec.description = "Büro".parse().expect("short");
    let changed = |formats| -> Vec<VmReport> {
        let vm = Box::new(vms[0].clone());
        let told = Telling::to_reader_of(formats).tell(AgentEvent::VmChanged { vm });
        let Ok([AgentEvent::VmChanged { vm }]) = <[_; 1]>::try_from(told) else {
            panic!("one line")
        };
        let others = vms[1..].iter().cloned();
        let mut all = vec![*vm];
        all.extend(others.map(|vm| vm.readable_with(formats)));
        all
    };
    let old = changed(Formats::default());
    assert_eq!(old[0].newer, Some(NewerSpec { version: 2 }));
    assert_eq!(
        old[0].metadata, None,
        "shown as one that it does not manage"
    );
    assert_eq!(old[1..], vms[1..], "key protectors and all");
    assert!(
        !serde_json::to_string(&old)
            .expect("JSON")
            .contains("\"v2\"")
    );
    for vm in changed(Formats::KNOWN) {
        let metadata = vm.metadata.expect("known");
        assert_eq!(
            (metadata.key_protector, metadata.ek_certificate),
            (None, None)
        );
    }
}

#[test]
fn operations_and_answers_are_those_that_an_earlier_version_knows() {
    let requests: Vec<OperationRequest> = all_survive("operations.jsonl");
    let answers: Vec<OperationLine> = all_survive("answers.jsonl");
    assert_eq!((requests.len(), answers.len()), (37, 10));
}

#[test]
fn an_earlier_agent_is_asked_for_what_it_knows_and_for_nothing_newer() {
    let mut recovers = 0;
    for line in lines("operations.jsonl") {
        let request: OperationRequest = serde_json::from_str(&line).expect("a request");
        let name = request.operation.name();
        assert_eq!(request.operation.formats(), Formats::default(), "{name}");
        // The same of a VM that version 1 cannot describe, now or when its TPM was kept.
        let newer = |spec: &mut VmSpec| spec.autostart = true;
        let newer = match request.operation {
            Operation::Define(mut define) => {
                newer(&mut define.metadata.spec);
                Operation::from(define)
            }
            Operation::RebuildIncoming(mut rebuild) => {
                // none without a TPM
                let Some(bundle) = rebuild.bundle.as_mut() else {
                    continue;
                };
                recovers += 1;
                newer(&mut bundle.metadata.spec);
                Operation::from(rebuild)
            }
            _ => continue,
        };
        assert_eq!(newer.formats().spec, 2, "{name}");
    }
    assert!(recovers > 0);
    let change = Operation::from(ChangeVm {
        steps: Vec::new(),
        direction: Direction::Forward,
    });
    assert_eq!(change.formats().operations, Formats::CHANGE_VM);
}

#[test]
fn a_copy_of_a_tpm_that_an_earlier_version_made_is_whole() {
    let bundles: Vec<TpmBundle> = all_survive("bundle.jsonl");
    assert_eq!(bundles[0].digest(), bundles[0].sha256);
}

#[test]
fn the_other_lines_are_those_that_an_earlier_version_knows() {
    all_survive::<GuardianChange>("guardian-changes.jsonl");
    all_survive::<CancelRequest>("cancel.jsonl");
    all_survive::<Question>("questions.jsonl");
    all_survive::<IncomingAnswer>("question-answers.jsonl");
    all_survive::<AuditHead>("audit-heads.jsonl");
}

#[test]
fn the_comparison_finds_what_is_lost() {
    let json = |text: &str| -> Value { serde_json::from_str(text).expect("JSON") };
    let old = json(r#"{"a": 1, "b": {"c": [1, 2], "d": null}}"#);
    assert!(lost("", &old, &json(r#"{"a": 1, "b": {"c": [1, 2]}, "new": 1}"#)).is_empty());
    assert_eq!(
        lost("", &old, &json(r#"{"a": 1, "b": {"c": [1]}}"#)).len(),
        1
    );
    assert_eq!(lost("", &old, &json(r#"{"b": {"c": [1, 2]}}"#)), ["/a"]);
}

#[test]
fn a_large_snapshot_comes_in_parts_and_in_one_piece_to_an_earlier_controller() {
    let Some(AgentEvent::Snapshot { facts, .. }) = lines("events.jsonl")
        .into_iter()
        .map(|line| serde_json::from_str(line.as_str()).expect("an event"))
        .find(|event| matches!(event, AgentEvent::Snapshot { .. }))
    else {
        panic!("a snapshot");
    };
    let vm = reported().into_iter().next().expect("a VM");
    let vms: Vec<VmReport> = (0..100)
        .map(|n| VmReport {
            reason: format!("{n} {}", "x".repeat(50_000)),
            ..vm.clone()
        })
        .collect();
    let snapshot = AgentEvent::Snapshot {
        facts,
        vms: vms.clone(),
        more: false,
    };
    let told = |formats| Telling::to_reader_of(formats).tell(snapshot.clone());
    assert_eq!(told(Formats::default()).len(), 1);
    let parts = told(Formats::KNOWN);
    let mut seen = Vec::new();
    assert!(parts.len() > 1);
    for (at, part) in parts.iter().enumerate() {
        assert!(size_of(part) < PART + 100_000, "one line");
        let (some, more) = match (at, part) {
            (0, AgentEvent::Snapshot { vms, more, .. })
            | (1.., AgentEvent::SnapshotPart { vms, more }) => (vms, more),
            other => panic!("{other:?}"),
        };
        assert_eq!(*more, at + 1 < parts.len());
        seen.extend(some.iter().map(|vm| vm.reason.clone()));
    }
    let all: Vec<_> = vms.into_iter().map(|vm| vm.reason).collect();
    assert_eq!(seen, all);
}

#[test]
fn facts_that_a_reader_has_are_told_as_a_sign_of_life_and_now_and_then_as_a_whole() {
    let mut facts = lines("events.jsonl")
        .into_iter()
        .map(|line| serde_json::from_str(line.as_str()).expect("an event"))
        .find_map(|event| match event {
            AgentEvent::Snapshot { facts, .. } => Some(facts),
            _ => None,
        })
        .expect("a snapshot");
    let log = AuditHead {
        seq: 7,
        hash: "ab".into(),
    };
    let mut know = |formats: Formats| {
        let mut telling = Telling::to_reader_of(formats);
        let vms = Vec::new();
        let first = facts.clone();
        telling.tell(AgentEvent::Snapshot {
            facts: first,
            vms,
            more: false,
        });
        let mut kinds = String::new();
        for n in 0..60_u64 {
            facts.clock += time::Duration::seconds(3);
            facts.memory_available.0 += n;
            for pool in &mut facts.pools {
                pool.available.0 += n;
            }
            if n == 30 {
                facts.warnings.push("something new".into());
            }
            let event = AgentEvent::Facts {
                facts: facts.clone(),
                audit: Some(log.clone()),
            };
            for told in telling.tell(event) {
                kinds.push(match told {
                    AgentEvent::Alive { measured, audit } => {
                        assert_eq!(
                            (measured, audit.as_ref()),
                            (facts.measurements(), Some(&log))
                        );
                        '.'
                    }
                    AgentEvent::Facts { .. } => 'F',
                    other => panic!("{other:?}"),
                });
            }
        }
        kinds
    };
    let before = Formats {
        events: Formats::PARTS,
        ..Formats::KNOWN
    };
    assert_eq!(know(before), "F".repeat(60));
    let dots = |n| ".".repeat(n);
    let expected = [dots(20), dots(9), dots(20), dots(8)].join("F");
    assert_eq!(know(Formats::KNOWN), expected);
}
