//! Everything in the corpus, and what the targets begin with, through the targets: by the ordinary compiler, in seconds.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use fleetward_fuzz::{NOW, PASSWORD, TARGETS};
use fleetward_model::guardian::CertificateRole;
use fleetward_model::{HostName, KeyId, VmId};
use fleetward_protector::ek::{self, EkAuthority, EkPublicKey, RandomSerial, TpmIdentity};
use fleetward_protector::{ExpiredAllowed, Guardian};
use fleetward_protector_open::pfx::{self, Protection};
use fleetward_protector_open::{LocalGuardian, SealRequest, TpmKey, seal};
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PublicKeyData};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Longest that one input may take: a million rounds of key derivation, in every part of a PFX file, on a busy machine.
const LONGEST: Duration = Duration::from_secs(60);
/// Of everything in the repository, bytes.
const CORPUS_LIMIT: u64 = 512 << 10;

fn of_the_crate(place: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(place)
}

fn replay(target: &str, name: &str, bytes: &[u8]) {
    let run = fleetward_fuzz::target(target).unwrap().run;
    let started = Instant::now();
    let outcome = catch_unwind(|| run(bytes));
    assert!(outcome.is_ok(), "{target}: {name}: {}", hex::encode(bytes));
    let took = started.elapsed();
    assert!(took < LONGEST, "{target}: {name}: {took:?}");
}

#[test]
fn no_input_of_the_corpus_panics_takes_long_or_is_accepted_altered() {
    let mut all = 0;
    for target in TARGETS {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            replay(target.name, &format!("seed {number}"), &seed);
        }
        let directory = of_the_crate("corpus").join(target.name);
        let entries = std::fs::read_dir(&directory);
        let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        for entry in entries {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            all += bytes.len() as u64;
            replay(target.name, &path.display().to_string(), &bytes);
        }
    }
    assert!(all < CORPUS_LIMIT, "{all} bytes: scripts/fuzz minimise");
}

#[test]
fn every_directory_of_the_corpus_has_a_target() {
    for entry in std::fs::read_dir(of_the_crate("corpus")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(fleetward_fuzz::target(&name).is_some(), "{name}");
    }
}

/// Writes what a target begins with to `FLEETWARD_FUZZ_SEEDS`, for scripts/fuzz.
#[test]
#[ignore = "scripts/fuzz runs it"]
fn write_seeds() {
    let place = PathBuf::from(std::env::var_os("FLEETWARD_FUZZ_SEEDS").unwrap());
    for target in TARGETS {
        let directory = place.join(target.name);
        std::fs::create_dir_all(&directory).unwrap();
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}

/// How `fixtures/`, and the PFX files in the corpus, were made.
#[test]
#[ignore = "makes the fixtures anew, and with them an older corpus is worth less"]
fn make_fixtures() {
    let host: HostName = "alpha".parse().unwrap();
    let guardian = LocalGuardian::generate(&host, NOW).unwrap();
    let keep = |name: &str, bytes: &[u8]| {
        std::fs::write(of_the_crate("fixtures").join(name), bytes).unwrap();
    };
    keep("guardian", &guardian.to_storage(None).unwrap());
    let others = ["beta", "gamma", "delta"].map(|host| {
        let host: HostName = host.parse().unwrap();
        LocalGuardian::generate(&host, NOW).unwrap()
    });
    let others: Vec<_> = others.iter().map(|g| g.public().clone()).collect();
    let sealed = |recipients: &[Guardian]| {
        let request = SealRequest {
            vm_id: VmId(uuid::Uuid::from_u128(7)),
            key_id: KeyId(uuid::Uuid::from_u128(8)),
            tpm_key: &TpmKey::generate().unwrap(),
            owner: &guardian,
            recipients,
            now: NOW,
            expired: &ExpiredAllowed::none(),
        };
        seal(&request).unwrap().der().to_vec()
    };
    keep("protector-alone.der", &sealed(&[]));
    keep("protector-group.der", &sealed(&others));

    let p384 = || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let (root_key, host_key, ek_key) = (p384(), p384(), p384());
    let serial = |byte| RandomSerial::new([byte; 16]);
    let root = ek::make_root("one", &root_key, serial(1), NOW).unwrap();
    let authority = EkAuthority::new(&root, root_key)
        .unwrap()
        .issue_host_authority(&host, &host_key.subject_public_key_info(), serial(2), NOW)
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
        .issue_ek(&public, &TpmIdentity::default(), serial(3), NOW)
        .unwrap();
    ek::verify_chain(&certificate, &[&authority], &root, NOW).unwrap();
    keep("ek.der", &certificate);
    keep("ek-authority.der", &authority);
    keep("ek-root.der", &root);
    pfx_files(&guardian);
}

/// In the forms that other programs write.
fn pfx_files(guardian: &LocalGuardian) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let password = Zeroizing::new(PASSWORD.to_owned());
    std::fs::write(at("password"), PASSWORD).unwrap();
    let ours = pfx::export(
        guardian,
        CertificateRole::Signing,
        &password,
        Protection::Aes256,
    );
    std::fs::write(at("ours.pfx"), &*ours.unwrap()).unwrap();
    let openssl = |line: &str| {
        let status = Command::new("/usr/bin/openssl")
            .args(line.split(' '))
            .current_dir(directory.path())
            .status()
            .unwrap();
        assert!(status.success(), "{line}");
    };
    openssl("pkcs12 -in ours.pfx -passin file:password -nodes -out pair.pem");
    let forms = [
        "-certpbe AES-256-CBC",
        "-nomac",
        "-nokeys",
        "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-RC2-40 -macalg sha1",
        "-legacy -keypbe NONE -certpbe NONE -macalg sha1",
    ];
    let corpus = of_the_crate("corpus/pfx");
    std::fs::create_dir_all(&corpus).unwrap();
    for (number, form) in forms.iter().enumerate() {
        openssl(&format!(
            "pkcs12 -export -in pair.pem -passout file:password -iter 1 -out made.pfx {form}"
        ));
        std::fs::copy(at("made.pfx"), corpus.join(format!("openssl-{number}"))).unwrap();
    }
}
