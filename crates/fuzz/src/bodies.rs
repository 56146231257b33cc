//! Bodies of both HTTP APIs. An input is the name of a body in a line of its own, and the body.

use crate::Target;
use fleetward_api::agent::{
    AgentEvent, CertificateRequest, ConversionLine, ConverterState, IncomingAnswer, KeysRequest,
    OperationLine, OperationRequest, Peer, Question, VmDetail,
};
use fleetward_api::verbs::{self, Verb};
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_protector::Guardian;
use serde_json::from_slice;

/// The name and the body.
fn apart(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

/// What a verb takes and gives. What was read can be written, and read again.
fn verb<V: Verb>(body: &[u8]) {
    if let Ok(read) = from_slice::<V::Request>(body) {
        let written = serde_json::to_vec(&read).unwrap();
        assert!(from_slice::<V::Request>(&written).is_ok(), "not read again");
    }
    let _ = from_slice::<V::Answer>(body);
}

macro_rules! all {
    ($($verb:ident)*) => {
        fn of_a_verb(name: &str, body: &[u8]) {
            match name {
                $(<verbs::$verb as Verb>::OPERATION => verb::<verbs::$verb>(body),)*
                _ => {}
            }
        }

        const OPERATIONS: &[&str] = &[$(<verbs::$verb as Verb>::OPERATION),*];
    };
}
fleetward_api::each_verb!(all);

/// Bodies that do not begin as `{}` does.
const WANTED: &[(&str, &str)] = &[
    (
        "vm_create",
        r#"{"name":"web","image":"debian","cpus":2,"memory_bytes":4294967296,"labels":{"tier":"front"},"disks":[{"size":68719476736}],"start":true}"#,
    ),
    ("vm_migrate", r#"{"to":"b","offline":false,"check":true}"#),
    ("vm_stop", r#"{"force":true}"#),
    ("vm_list", "[]"),
];

pub(crate) const CONTROLLER: Target = Target {
    name: "controller_bodies",
    run: |bytes| {
        if let Some((name, body)) = apart(bytes) {
            of_a_verb(name, body);
        }
    },
    seeds: || {
        let empty = OPERATIONS.iter().map(|name| (*name, "{}"));
        let all = empty.chain(WANTED.iter().copied());
        all.map(|(name, body)| format!("{name}\n{body}").into_bytes())
            .collect()
    },
};

macro_rules! agents {
    ($($name:literal => $body:ty, $sample:literal;)*) => {
        fn of_the_agent(name: &str, body: &[u8]) {
            match name {
                $($name => drop(from_slice::<$body>(body)),)*
                "guardian" => {
                    if let Ok(endorsed) = from_slice::<EndorsedGuardian>(body) {
                        let _ = Guardian::from_facts(&endorsed.guardian);
                    }
                }
                _ => {}
            }
        }

        const SAMPLES: &[(&str, &str)] = &[$(($name, $sample)),*];
    };
}
agents! {
    "operation" => OperationRequest, r#"{"job":"00000000-0000-0000-0000-000000000001","generation":3,"operation":{"do":"grant","to":[]}}"#;
    "line" => OperationLine, r#"{"line":"progress","done":1,"total":2,"what":"disk"}"#;
    "event" => AgentEvent, r#"{"event":"heartbeat"}"#;
    "question" => Question, r#"{"ask":"what"}"#;
    "incoming" => IncomingAnswer, "{}";
    "keys" => KeysRequest, "{}";
    "certificate" => CertificateRequest, r#"{"csr":""}"#;
    "peer" => Peer, r#"{"host":"a","address":"127.0.0.1:1"}"#;
    "converter" => ConverterState, r#"{"room":1,"busy":0}"#;
    "conversion" => ConversionLine, r#"{"line":"progress","step":"wait","permille":0}"#;
    "detail" => VmDetail, "{}";
}

pub(crate) const AGENT: Target = Target {
    name: "agent_bodies",
    run: |bytes| {
        if let Some((name, body)) = apart(bytes) {
            of_the_agent(name, body);
        }
    },
    seeds: || {
        let all = SAMPLES.iter().chain(&[("guardian", "{}")]);
        all.map(|(name, body)| format!("{name}\n{body}").into_bytes())
            .collect()
    },
};
