//! Every parser of foreign bytes under mutation: no panic, no long thought, no acceptance of what was altered.
//!
//! Runs on the stable toolchain, without instrumentation: what stands in for coverage is that a mutant which is refused for
//! a reason not seen before joins the corpus. `FLEETWARD_FUZZ_SECONDS` is the time for each target, five unless said;
//! `FLEETWARD_FUZZ_SEED` repeats a run. A failure prints both and the bytes.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

#[path = "support/mutation.rs"]
mod mutation;

use fleetward_api::agent::{OperationLine, OperationRequest, Question};
use fleetward_api::controller::{
    JoinRequest, MigrateRequest, RecoverRequest, TokenRequest, VmCreateRequest,
};
use fleetward_api::tpm::{BundleParts, TpmBundle, TpmVersion};
use fleetward_link::{Fingerprint, JoinSecret, JoinToken};
use fleetward_model::audit::AuditRecord;
use fleetward_model::guardian::{CertificateRole, EndorsedGuardian};
use fleetward_model::image::{self, Content, Layered, NamesOnly, Standalone};
use fleetward_model::vm::{VmMetadata, VmSpec};
use fleetward_model::{HostName, KeyId, VmId};
use fleetward_protector::ek::{self, EkAuthority, EkPublicKey, RandomSerial, TpmIdentity};
use fleetward_protector::{ExpiredAllowed, Guardian, KeyProtector};
use fleetward_protector_open::pfx::{self, Protection};
use fleetward_protector_open::{LocalGuardian, SealRequest, TpmKey, open, seal};
use mutation::{fuzz, reason};
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PublicKeyData};
use std::process::Command;
use std::sync::LazyLock;
use time::OffsetDateTime;
use zeroize::Zeroizing;

const PASSWORD: &str = "correct horse battery staple";

static GUARDIAN: LazyLock<LocalGuardian> = LazyLock::new(|| {
    let host: HostName = "alpha".parse().unwrap();
    LocalGuardian::generate(&host, OffsetDateTime::now_utc()).unwrap()
});

#[test]
fn pfx_files() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let password = Zeroizing::new(PASSWORD.to_owned());
    std::fs::write(at("password"), PASSWORD).unwrap();
    let ours = pfx::export(
        &GUARDIAN,
        CertificateRole::Signing,
        &password,
        Protection::Aes256,
    )
    .unwrap();
    std::fs::write(at("ours.pfx"), &*ours).unwrap();
    let openssl = |line: &str| {
        let status = Command::new("/usr/bin/openssl")
            .args(line.split(' '))
            .current_dir(directory.path())
            .status()
            .unwrap();
        assert!(status.success(), "{line}");
    };
    openssl("pkcs12 -in ours.pfx -passin file:password -nodes -out pair.pem");
    let mut corpus = Vec::new();
    for form in [
        "-certpbe AES-256-CBC",
        "-nomac",
        "-nokeys",
        "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-RC2-40 -macalg sha1",
        "-legacy -keypbe NONE -certpbe NONE -macalg sha1",
    ] {
        openssl(&format!(
            "pkcs12 -export -in pair.pem -passout file:password -iter 1 -out made.pfx {form}"
        ));
        corpus.push(std::fs::read(at("made.pfx")).unwrap());
    }
    fuzz("pfx", corpus, |bytes| {
        reason(pfx::read(bytes, &password).map(pfx::assemble))
    });
}

/// Headers that an image from outside may have. What is accepted must be safe for QEMU to open.
#[test]
fn image_headers() {
    let header = |version: u8| {
        let mut head = vec![0_u8; image::HEAD];
        head[..4].copy_from_slice(b"QFI\xfb");
        (head[7], head[23], head[29]) = (version, 16, 1);
        head
    };
    let mut backed = header(3);
    (backed[14], backed[19]) = (2, 9);
    let corpus = vec![header(2), header(3), backed, b"vhdxfile".to_vec()];
    fuzz("image header", corpus, |bytes| {
        let bytes = &bytes[..bytes.len().min(image::HEAD)];
        if let Ok(Content::Qcow2(found)) = image::read::<Standalone>(bytes) {
            assert_eq!(bytes[8..16], [0; 8], "a backing file");
            assert_eq!(bytes[32..36], [0; 4], "encrypted");
            assert!(
                bytes[7] == 2 || bytes[79] & 0b110 == 0,
                "corrupt, or data elsewhere"
            );
            assert!((1..=1 << 50).contains(&found.virtual_size));
        }
        if let Ok(Content::Qcow2(found)) = image::read::<NamesOnly>(bytes) {
            assert!(found.base.is_none_or(|base| base.length <= 1023));
        }
        reason(image::read::<Layered>(bytes))
    });
}

#[test]
fn key_protectors() {
    let vm = VmId(uuid::Uuid::from_u128(7));
    let now = OffsetDateTime::now_utc();
    let others = ["beta", "gamma", "delta"].map(|host| {
        let host: HostName = host.parse().unwrap();
        LocalGuardian::generate(&host, now).unwrap()
    });
    let others: Vec<_> = others.iter().map(|g| g.public().clone()).collect();
    let sealed = |recipients: &[Guardian]| {
        let request = SealRequest {
            vm_id: vm,
            key_id: KeyId(uuid::Uuid::from_u128(8)),
            tpm_key: &TpmKey::generate().unwrap(),
            owner: &GUARDIAN,
            recipients,
            now,
            expired: &ExpiredAllowed::none(),
        };
        seal(&request).unwrap().der().to_vec()
    };
    // One that its owner alone opens, and one of a group.
    let originals = vec![sealed(&[]), sealed(&others)];
    fuzz("key protector", originals.clone(), |bytes| {
        let read = KeyProtector::from_der(bytes);
        if let Ok(read) = &read {
            let ours = originals.iter().any(|original| bytes == original);
            assert!(ours, "an altered key protector was taken");
            open(read, vm, &GUARDIAN).unwrap();
        }
        reason(read)
    });
}

/// What hosts give with a TPM, and what their authorities are certified by.
#[test]
fn ek_certificates() {
    let now = OffsetDateTime::now_utc();
    let p384 = || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let (root_key, host_key, ek_key) = (p384(), p384(), p384());
    let serial = |byte| RandomSerial::new([byte; 16]);
    let root = ek::make_root("one", &root_key, serial(1), now).unwrap();
    let host = "alpha".parse().unwrap();
    let authority = EkAuthority::new(&root, root_key)
        .unwrap()
        .issue_host_authority(&host, &host_key.subject_public_key_info(), serial(2), now)
        .unwrap();
    let point = ek_key.der_bytes();
    let public = EkPublicKey::from_swtpm(&format!(
        "x={},y={},id=secp384r1",
        hex::encode(&point[1..49]),
        hex::encode(&point[49..])
    ))
    .unwrap();
    let certificate = EkAuthority::new(&authority, host_key)
        .unwrap()
        .issue_ek(&public, &TpmIdentity::default(), serial(3), now)
        .unwrap();
    ek::verify_chain(&certificate, &[&authority], &root, now).unwrap();
    let corpus = vec![certificate.clone(), authority.clone(), root.clone()];
    fuzz("EK certificates", corpus, |bytes| {
        let leaf = ek::verify_chain(bytes, &[&authority], &root, now);
        assert!(leaf.is_err() || bytes == certificate, "an altered EK");
        let middle = ek::verify_chain(&certificate, &[bytes], &root, now);
        assert!(
            middle.is_err() || bytes == authority,
            "an altered authority"
        );
        let top = ek::verify_chain(&certificate, &[&authority], bytes, now);
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let public = EkPublicKey::from_swtpm(text).map(drop);
        [reason(leaf), reason(middle), reason(top), reason(public)].join(",")
    });
}

#[test]
fn certificates_and_stored_guardians() {
    let signing = GUARDIAN.public().signing().der().to_vec();
    let encryption = GUARDIAN.public().encryption().der().to_vec();
    let stored = GUARDIAN.to_storage(None).unwrap().to_vec();
    fuzz(
        "certificates",
        vec![signing.clone(), encryption.clone(), stored],
        |bytes| {
            let guardian = Guardian::from_der(bytes, &encryption);
            if let Ok(guardian) = &guardian {
                assert!(guardian.id() != GUARDIAN.id() || bytes == signing);
            }
            reason(guardian) + &reason(LocalGuardian::from_storage(bytes, None))
        },
    );
}

#[test]
fn join_tokens() {
    let now = OffsetDateTime::now_utc();
    let token = JoinToken {
        controller: "controller.example:7440".into(),
        authority: Fingerprint::of(b"authority"),
        host: "alpha".parse().unwrap(),
        secret: JoinSecret::random().unwrap(),
        expires: now + time::Duration::hours(1),
    };
    let text = token.encode();
    fuzz("join token", vec![text.as_bytes().to_vec()], |bytes| {
        let Ok(read) = std::str::from_utf8(bytes) else {
            return "no text".into();
        };
        reason(JoinToken::parse(read, now).map(drop))
    });
}

#[test]
fn bodies_of_the_apis_and_records() {
    let facts = GUARDIAN
        .public()
        .facts("alpha".parse().unwrap(), true, true);
    let endorsed = EndorsedGuardian {
        guardian: facts.clone(),
        group: "default".parse().unwrap(),
        endorsement: "text".into(),
    };
    let samples = [
        serde_json::to_vec(&endorsed).unwrap(),
        serde_json::to_vec(&facts).unwrap(),
        br#"{"name":"web","image":"debian","cpus":2,"memory_bytes":4294967296,"labels":{"tier":"front"},"disks":[{"size":68719476736}],"start":true}"#.to_vec(),
        br#"{"job":"00000000-0000-0000-0000-000000000001","generation":3,"operation":{"do":"grant","to":[]}}"#.to_vec(),
        br#"{"to":"b","offline":false,"check":true}"#.to_vec(),
        br#"{"line":"progress","done":1,"total":2,"what":"disk"}"#.to_vec(),
        br#"{"seq":1,"time":"2026-01-01T00:00:00Z","host":"a","actor":"agent","action":"open","reason":"r","previous":"0","hash":"1"}"#.to_vec(),
    ];
    fuzz("bodies", samples.to_vec(), |bytes| {
        let read = |found: serde_json::Result<()>| {
            found.map_or_else(|e| format!("{:?}", e.classify()), |()| "ok".into())
        };
        let guardian = serde_json::from_slice::<EndorsedGuardian>(bytes).map(|endorsed| {
            let _ = Guardian::from_facts(&endorsed.guardian);
        });
        [
            read(guardian),
            read(serde_json::from_slice::<OperationRequest>(bytes).map(drop)),
            read(serde_json::from_slice::<OperationLine>(bytes).map(drop)),
            read(serde_json::from_slice::<Question>(bytes).map(drop)),
            read(serde_json::from_slice::<JoinRequest>(bytes).map(drop)),
            read(serde_json::from_slice::<TokenRequest>(bytes).map(drop)),
            read(serde_json::from_slice::<VmCreateRequest>(bytes).map(drop)),
            read(serde_json::from_slice::<MigrateRequest>(bytes).map(drop)),
            read(serde_json::from_slice::<RecoverRequest>(bytes).map(drop)),
            read(serde_json::from_slice::<TpmVersion>(bytes).map(drop)),
            read(serde_json::from_slice::<VmMetadata>(bytes).map(drop)),
            read(serde_json::from_slice::<VmSpec>(bytes).map(drop)),
            read(serde_json::from_slice::<AuditRecord>(bytes).map(drop)),
        ]
        .join(",")
    });
}

/// What `tpm restore` and `vm recover` put in place: nothing that was altered is ever taken for what was kept.
#[test]
fn tpm_bundles_of_the_history() {
    let metadata: VmMetadata = serde_json::from_str(
        r#"{"spec": {"id": "00000000-0000-0000-0000-000000000007", "name": "web", "group": "default", "profile": "linux",
            "cpus": 1, "memory": 1073741824, "firmware": {"type": "uefi", "secure_boot": true}, "tpm": true, "disks": [],
            "created": "2026-01-01T00:00:00Z"}, "generation": 1}"#,
    )
    .unwrap();
    let parts = BundleParts {
        state: vec![2, 1, 0, 10, 0, 9, 0, 0, 0, 12, 1, 2],
        key_protector: vec![0x30, 0],
        ek_certificate: Some(vec![0x30, 1, 0]),
        uefi_variables: Some(vec![5; 64]),
    };
    let bundle = TpmBundle::new(metadata, &parts);
    assert_eq!(bundle.check().as_ref(), Ok(&parts));
    let corpus = vec![serde_json::to_vec(&bundle).unwrap(), parts.state.clone()];
    fuzz("TPM bundle", corpus, |bytes| {
        let state = reason(fleetward_model::tpm_state::check(bytes).map(drop));
        let Ok(mutant) = serde_json::from_slice::<TpmBundle>(bytes) else {
            return state;
        };
        match mutant.check() {
            Ok(accepted) => {
                assert_eq!((mutant.vm, &accepted), (bundle.vm, &parts), "altered");
                "ok".into()
            }
            Err(problem) => format!("{:?}", std::mem::discriminant(&problem)),
        }
    });
}
