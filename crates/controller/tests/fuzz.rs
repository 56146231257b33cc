//! What the controller reads of others' making, under mutation: escrow files, and the requests of joining hosts and of
//! administrators. How it is done: `agent/tests/fuzz.rs`.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

#[path = "../../agent/tests/support/mutation.rs"]
mod mutation;

use fleetward_api::tpm::{BundleParts, TpmBundle};
use fleetward_link::{FleetAuthority, Identity, KeyRequest, Validity};
use mutation::{fuzz, reason};
use serde_json::json;
use time::{Duration, OffsetDateTime};

/// A file that is no longer what was written never gives a TPM that could be put in place.
#[test]
fn escrow_files() {
    let metadata = json!({
        "spec": {
            "id": "00000000-0000-0000-0000-000000000007", "name": "web", "group": "default", "profile": "linux", "cpus": 1,
            "memory": 1 << 30, "firmware": { "type": "uefi", "secure_boot": true }, "tpm": true, "disks": [],
            "created": "2026-01-01T00:00:00Z"
        },
        "generation": 1
    });
    let parts = BundleParts {
        state: vec![2, 1, 0, 10, 0, 9, 0, 0, 0, 12, 1, 2],
        key_protector: vec![0x30, 0],
        ek_certificate: Some(vec![0x30, 1, 0]),
        uefi_variables: Some(vec![5; 64]),
    };
    let bundle = TpmBundle::new(serde_json::from_value(metadata).unwrap(), &parts);
    let version = json!({
        "vm": bundle.vm, "vm_name": "web", "version": 1, "made": "2026-01-01T00:00:00Z", "by": "local:0", "why": "stopped",
        "size_bytes": 12, "key_id": "00000000-0000-0000-0000-000000000008", "host": "a", "sha256": bundle.sha256,
        "state_sha256": "00"
    });
    let json = serde_json::to_vec(&json!({ "version": version, "bundle": bundle })).unwrap();
    let file = zstd::bulk::compress(&json, 3).unwrap();
    // A frame that says nothing of its size, and one that swells: half a gigabyte of nothing.
    let streamed = zstd::stream::encode_all(json.as_slice(), 3).unwrap();
    let swollen = zstd::bulk::compress(&vec![b' '; 512 << 20], 3).unwrap();
    assert_eq!(
        fleetward_controller::read_escrow_file(&file).unwrap(),
        bundle
    );
    let refused = fleetward_controller::read_escrow_file(&swollen).unwrap_err();
    assert!(refused.contains("more than"), "{refused}");
    fuzz("escrow file", vec![file, streamed, json], |bytes| {
        // Also what lies below the compression, which few mutants get through.
        let packed = zstd::bulk::compress(bytes, 1).unwrap();
        let read = |bytes| match fleetward_controller::read_escrow_file(bytes) {
            Ok(read) => match read.check() {
                Ok(accepted) => {
                    assert_eq!((read.vm, &accepted), (bundle.vm, &parts), "altered");
                    "accepted".to_owned()
                }
                Err(problem) => format!("{:?}", std::mem::discriminant(&problem)),
            },
            Err(because) => because,
        };
        [read(bytes), read(&packed)].join(",")
    });
}

/// Whatever a request says, the certificate names whom the controller meant.
#[test]
fn certificate_requests() {
    let directory = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let authority = FleetAuthority::open(directory.path(), now).unwrap();
    let request = KeyRequest::generate().unwrap();
    let pem = request.csr_pem().as_bytes().to_vec();
    let bare = b"-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n".to_vec();
    fuzz("certificate request", vec![pem, bare], |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return "no text".into();
        };
        let validity = Validity::starting(now, Duration::hours(1));
        reason(
            authority
                .issue(text, &Identity::Controller, validity)
                .map(drop),
        )
    });
}
