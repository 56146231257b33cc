//! Every parser of foreign bytes under mutation: no panic, no long thought, no acceptance of what was altered.
//!
//! Runs on the stable toolchain, without instrumentation: what stands in for coverage is that a mutant which is refused for
//! a reason not seen before joins the corpus. `FLEETWARD_FUZZ_SECONDS` is the time for each target, five unless said;
//! `FLEETWARD_FUZZ_SEED` repeats a run. A failure prints both and the bytes.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use fleetward_api::agent::{OperationLine, OperationRequest, Question};
use fleetward_api::controller::{
    JoinRequest, MigrateRequest, RecoverRequest, TokenRequest, VmCreateRequest,
};
use fleetward_api::tpm::{BundleParts, TpmBundle, TpmVersion};
use fleetward_link::{Fingerprint, JoinSecret, JoinToken};
use fleetward_model::audit::AuditRecord;
use fleetward_model::guardian::{CertificateRole, EndorsedGuardian};
use fleetward_model::vm::{VmMetadata, VmSpec};
use fleetward_model::{HostName, KeyId, VmId};
use fleetward_protector::{ExpiredAllowed, Guardian, KeyProtector};
use fleetward_protector_open::pfx::{self, Protection};
use fleetward_protector_open::{LocalGuardian, SealRequest, TpmKey, open, seal};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// Longest that one input may take: a million rounds of key derivation, in every part of a PFX file, on a busy machine.
const LONGEST: Duration = Duration::from_secs(60);

const PASSWORD: &str = "correct horse battery staple";

static GUARDIAN: LazyLock<LocalGuardian> = LazyLock::new(|| {
    let host: HostName = "alpha".parse().unwrap();
    LocalGuardian::generate(&host, OffsetDateTime::now_utc()).unwrap()
});

/// xorshift64*: repeatable, and good enough to choose bytes.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() >> 16).unwrap() % end.max(1)
    }
}

/// Bits, bytes, pieces: what damage and malice do.
fn mutate(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    const INTERESTING: [u8; 10] = [0, 1, 0x30, 0x7f, 0x80, 0x82, 0x84, 0xa0, 0xff, b'"'];
    let mut bytes = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len());
        let end = (at + 1 + dice.below(32)).min(bytes.len());
        match dice.below(8) {
            _ if bytes.is_empty() => bytes.push(INTERESTING[dice.below(10)]),
            0 | 1 => bytes[at] ^= 1 << dice.below(8),
            2 => bytes[at] = INTERESTING[dice.below(10)],
            3 => bytes[at] = bytes[at].wrapping_add(1),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => {
                let other = &corpus[dice.below(corpus.len())];
                let from = dice.below(other.len());
                let to = (from + dice.below(64)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn seconds() -> u64 {
    std::env::var("FLEETWARD_FUZZ_SECONDS").map_or(5, |text| text.parse().unwrap())
}

fn seed() -> u64 {
    std::env::var("FLEETWARD_FUZZ_SEED").map_or_else(
        |_| {
            u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() & i128::from(u64::MAX))
                .unwrap()
                | 1
        },
        |text| text.parse().unwrap(),
    )
}

/// Feeds mutants to `parse`, which gives the reason of its refusal, or panics where it must not accept.
fn fuzz(name: &str, mut corpus: Vec<Vec<u8>>, parse: impl Fn(&[u8]) -> String) {
    let (seed, end) = (seed(), Instant::now() + Duration::from_secs(seconds()));
    let mut dice = Dice(seed);
    let (mut seen, mut count) = (BTreeSet::new(), 0_u64);
    while Instant::now() < end {
        let input = mutate(&mut dice, &corpus);
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| parse(&input)));
        let took = started.elapsed();
        let Ok(reason) = outcome else {
            panic!("{name}: seed {seed}, input {}", hex::encode(&input));
        };
        assert!(
            took < LONGEST,
            "{name}: {took:?}, seed {seed}, input {}",
            hex::encode(&input)
        );
        // Numbers in a reason are not another reason.
        let reason: String = reason
            .chars()
            .filter(|c| !c.is_ascii_digit())
            .take(200)
            .collect();
        if seen.insert(reason) && corpus.len() < 512 && input.len() < 256 * 1024 {
            corpus.push(input);
        }
        count += 1;
    }
    println!(
        "{name}: {count} inputs, {} reasons, seed {seed}",
        seen.len()
    );
}

fn reason<T, E: std::fmt::Debug>(result: Result<T, E>) -> String {
    result.map_or_else(|error| format!("{error:?}"), |_| "accepted".to_owned())
}

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

#[test]
fn key_protectors() {
    let vm = VmId(uuid::Uuid::from_u128(7));
    let protector = seal(&SealRequest {
        vm_id: vm,
        key_id: KeyId(uuid::Uuid::from_u128(8)),
        tpm_key: &TpmKey::generate().unwrap(),
        owner: &GUARDIAN,
        recipients: &[],
        now: OffsetDateTime::now_utc(),
        expired: &ExpiredAllowed::none(),
    })
    .unwrap();
    let original = protector.der().to_vec();
    fuzz("key protector", vec![original.clone()], |bytes| {
        let read = KeyProtector::from_der(bytes);
        if let Ok(read) = &read {
            assert!(bytes == original, "an altered key protector was taken");
            open(read, vm, &GUARDIAN).unwrap();
        }
        reason(read)
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
