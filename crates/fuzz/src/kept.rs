//! What the controller and the hosts keep of VMs and read again later.

use crate::Target;
use fleetward_api::tpm::{BundleParts, TpmBundle, TpmVersion};
use fleetward_model::audit::AuditRecord;
use fleetward_model::vm::{VmMetadata, VmSpec};
use serde_json::{Value, from_slice, json};
use std::sync::LazyLock;

fn metadata() -> Value {
    json!({
        "spec": {
            "id": "00000000-0000-0000-0000-000000000007", "name": "web", "group": "default", "profile": "linux", "cpus": 1,
            "memory": 1 << 30, "firmware": { "type": "uefi", "secure_boot": true }, "tpm": true, "disks": [],
            "created": "2026-01-01T00:00:00Z"
        },
        "generation": 1
    })
}

static PARTS: LazyLock<BundleParts> = LazyLock::new(|| BundleParts {
    state: vec![2, 1, 0, 10, 0, 9, 0, 0, 0, 12, 1, 2],
    key_protector: vec![0x30, 0],
    ek_certificate: Some(vec![0x30, 1, 0]),
    uefi_variables: Some(vec![5; 64]),
});
static BUNDLE: LazyLock<TpmBundle> =
    LazyLock::new(|| TpmBundle::new(serde_json::from_value(metadata()).unwrap(), &PARTS));

/// Nothing else is ever taken for what was kept. The digest is against damage, and whoever writes a file can give it the right
/// one (a fuzzer that sees comparisons learns it, too): what has another digest is another bundle.
fn judge(read: &TpmBundle) {
    if let Ok(accepted) = read.check() {
        if read.sha256 == BUNDLE.sha256 {
            assert_eq!((read.vm, &accepted), (BUNDLE.vm, &*PARTS), "altered");
        }
        let again = TpmBundle::new(read.metadata.clone(), &accepted);
        assert_eq!(again.sha256, read.sha256, "read as something else");
    }
}

/// What `tpm restore` and `vm recover` put in place.
pub(crate) const TPM_BUNDLE: Target = Target {
    name: "tpm_bundle",
    run: |bytes| {
        let _ = fleetward_model::tpm_state::check(bytes);
        if let Ok(read) = from_slice(bytes) {
            judge(&read);
        }
    },
    seeds: || {
        // The right digest over something else, which a fuzzer finds at times only.
        let other = BundleParts {
            ek_certificate: None,
            ..PARTS.clone()
        };
        let other = TpmBundle::new(BUNDLE.metadata.clone(), &other);
        let json = |bundle: &TpmBundle| serde_json::to_vec(bundle).unwrap();
        vec![json(&BUNDLE), json(&other), PARTS.state.clone()]
    },
};

/// A file that is no longer what was written never gives a TPM that could be put in place.
pub(crate) const ESCROW_FILE: Target = Target {
    name: "escrow_file",
    run: |bytes| {
        // Also what lies below the compression, which few inputs get through.
        let packed = zstd::bulk::compress(bytes, 1).unwrap();
        for file in [bytes, &packed] {
            if let Ok(read) = fleetward_controller::read_escrow_file(file) {
                judge(&read);
            }
        }
    },
    seeds: || {
        let bundle = &*BUNDLE;
        let version = json!({
            "vm": bundle.vm, "vm_name": "web", "version": 1, "made": "2026-01-01T00:00:00Z", "by": "local:0",
            "why": "stopped", "size_bytes": 12, "key_id": "00000000-0000-0000-0000-000000000008", "host": "a",
            "sha256": bundle.sha256, "state_sha256": "00"
        });
        let json = serde_json::to_vec(&json!({ "version": version, "bundle": bundle })).unwrap();
        // One that says its size, and one that does not.
        let whole = zstd::bulk::compress(&json, 3).unwrap();
        let streamed = zstd::stream::encode_all(json.as_slice(), 3).unwrap();
        assert_eq!(
            &fleetward_controller::read_escrow_file(&whole).unwrap(),
            bundle
        );
        vec![json, whole, streamed]
    },
};

/// Records in files of ours, and in libvirt's.
pub(crate) const RECORDS: Target = Target {
    name: "records",
    run: |bytes| {
        let _ = from_slice::<VmMetadata>(bytes);
        let _ = from_slice::<VmSpec>(bytes);
        let _ = from_slice::<AuditRecord>(bytes);
        let _ = from_slice::<TpmVersion>(bytes);
    },
    seeds: || {
        let record = br#"{"seq":1,"time":"2026-01-01T00:00:00Z","host":"a","actor":"agent","action":"open","reason":"r","previous":"0","hash":"1"}"#;
        vec![metadata().to_string().into_bytes(), record.to_vec()]
    },
};
