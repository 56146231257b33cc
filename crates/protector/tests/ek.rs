//! EK certificates: what OpenSSL and our own verifier say about them.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use fleetward_model::HostName;
use fleetward_protector::ek::{
    AT_ANY_TIME, EkAuthority, EkCertificate, EkChainError, EkIssueError, EkPublicKey, RandomSerial,
    Revocation, TpmIdentity, authority_host, make_crl, make_root, verify_chain,
};
use proptest::prelude::*;
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PublicKeyData};
use sha2::Digest;
use std::process::Command;
use std::sync::LazyLock;
use tempfile::TempDir;
use time::OffsetDateTime;

const NOW: OffsetDateTime = time::macros::datetime!(2026-11-23 12:00 UTC);

struct Fleet {
    root: Vec<u8>,
    root_key: KeyPair,
    intermediate: Vec<u8>,
    rsa_ek: Vec<u8>,
    ecc_ek: Vec<u8>,
}

static FLEET: LazyLock<Fleet> = LazyLock::new(|| fleet("one"));

fn serial(byte: u8) -> RandomSerial {
    RandomSerial::new([byte; 16])
}

fn p384() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()
}

fn host() -> HostName {
    "alpha".parse().unwrap()
}

fn rsa_key() -> EkPublicKey {
    let directory = tempfile::tempdir().unwrap();
    openssl(&directory, "genrsa -out key 2048").unwrap();
    let modulus = openssl(&directory, "rsa -in key -noout -modulus").unwrap();
    EkPublicKey::from_swtpm(modulus.trim().strip_prefix("Modulus=").unwrap()).unwrap()
}

fn ecc_key() -> EkPublicKey {
    let point = p384().der_bytes().to_vec();
    EkPublicKey::from_swtpm(&format!(
        "x={},y={},id=secp384r1",
        hex::encode(&point[1..49]),
        hex::encode(&point[49..])
    ))
    .unwrap()
}

fn fleet(name: &str) -> Fleet {
    let (root_key, host_key) = (p384(), p384());
    let root = make_root(name, &root_key, serial(1), NOW).unwrap();
    let fleet = EkAuthority::new(&root, &root_key).unwrap();
    let intermediate = fleet
        .issue_host_authority(&host(), &host_key.subject_public_key_info(), serial(2), NOW)
        .unwrap();
    let authority = EkAuthority::new(&intermediate, host_key).unwrap();
    let issue = |key: &EkPublicKey, byte| {
        authority
            .issue_ek(key, &TpmIdentity::default(), serial(byte), NOW)
            .unwrap()
    };
    Fleet {
        rsa_ek: issue(&rsa_key(), 3),
        ecc_ek: issue(&ecc_key(), 4),
        root,
        root_key,
        intermediate,
    }
}

fn openssl(directory: &TempDir, line: &str) -> Result<String, String> {
    let output = Command::new("/usr/bin/openssl")
        .args(line.split_whitespace())
        .current_dir(directory)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr))
    }
}

/// The fleet's certificates as PEM files.
fn written(fleet: &Fleet) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, der) in [
        ("root", &fleet.root),
        ("host", &fleet.intermediate),
        ("rsa", &fleet.rsa_ek),
        ("ecc", &fleet.ecc_ek),
    ] {
        std::fs::write(directory.path().join("der"), der).unwrap();
        openssl(
            &directory,
            &format!("x509 -inform DER -in der -out {name}.pem"),
        )
        .unwrap();
    }
    directory
}

/// Each certificate of the chain is looked up in the fleet's one list, an EK's by the name of the authority that issued it.
#[test]
fn openssl_reads_the_list_of_revoked_certificates() {
    let fleet = &*FLEET;
    let directory = written(fleet);
    let of = |der: &[u8]| Revocation::of(der, NOW).unwrap();
    let now = OffsetDateTime::now_utc();
    let verify = |revoked: &[Revocation], ek: &str| {
        let crl = make_crl(&fleet.root, &fleet.root_key, revoked, now).unwrap();
        std::fs::write(directory.path().join("crl.der"), crl).unwrap();
        openssl(&directory, "crl -inform DER -in crl.der -out crl.pem").unwrap();
        openssl(&directory, "crl -in crl.pem -noout -CAfile root.pem").unwrap();
        openssl(
            &directory,
            &format!(
                "verify -crl_check_all -extended_crl -CAfile root.pem -CRLfile crl.pem \
                 -untrusted host.pem {ek}.pem"
            ),
        )
    };
    verify(&[], "rsa").unwrap();
    verify(&[of(&fleet.ecc_ek)], "rsa").unwrap();
    let refused = verify(&[of(&fleet.ecc_ek)], "ecc").unwrap_err();
    assert!(refused.contains("certificate revoked"), "{refused}");
    let refused = verify(&[of(&fleet.intermediate)], "rsa").unwrap_err();
    assert!(refused.contains("certificate revoked"), "{refused}");
    let both = [of(&fleet.ecc_ek), of(&fleet.intermediate)];
    verify(&both, "ecc").unwrap_err();
    let text = openssl(&directory, "crl -in crl.pem -noout -text").unwrap();
    for told in [
        "Indirect CRL",
        "X509v3 Certificate Issuer",
        "X509v3 CRL Number",
    ] {
        assert!(text.contains(told), "{told} in {text}");
    }
    let another = make_crl(&fleet.root, &p384(), &[], now);
    assert!(matches!(another, Err(EkIssueError::IssuerKey)));
}

/// A verifier that looks up chain and list by itself finds them; each in the way that RFC 5280 has for it.
#[test]
fn an_ek_certificate_names_where_its_issuer_and_the_list_are_published() {
    let (root_key, host_key) = (p384(), p384());
    let root = make_root("published", &root_key, serial(1), NOW).unwrap();
    let key = host_key.subject_public_key_info();
    let intermediate = EkAuthority::new(&root, &root_key)
        .unwrap()
        .issue_host_authority(&host(), &key, serial(2), NOW)
        .unwrap();
    let longest = format!("http://pki.example/{}/", "x".repeat(180));
    let mut text = String::new();
    for address in [&longest, "http://pki.example/fleetward/"] {
        let authority = EkAuthority::new(&intermediate, &host_key)
            .unwrap()
            .published_at(Some(address.parse().unwrap()));
        let issue = |key: &EkPublicKey, byte| {
            let issued = authority.issue_ek(key, &TpmIdentity::default(), serial(byte), NOW);
            issued.unwrap()
        };
        let fleet = Fleet {
            rsa_ek: issue(&rsa_key(), 3),
            ecc_ek: issue(&ecc_key(), 4),
            root: root.clone(),
            root_key: p384(),
            intermediate: intermediate.clone(),
        };
        let directory = written(&fleet);
        let crl = make_crl(&root, &root_key, &[], OffsetDateTime::now_utc()).unwrap();
        std::fs::write(directory.path().join("crl.der"), crl).unwrap();
        openssl(&directory, "crl -inform DER -in crl.der -out crl.pem").unwrap();
        openssl(
            &directory,
            "verify -x509_strict -crl_check_all -extended_crl -CAfile root.pem -CRLfile crl.pem \
             -untrusted host.pem rsa.pem",
        )
        .unwrap();
        text = openssl(&directory, "x509 -in rsa.pem -noout -text").unwrap();
    }
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let authority = hex::encode(sha2::Sha256::digest(&intermediate));
    for told in [
        format!("CA Issuers - URI:http://pki.example/fleetward/{authority}.cer"),
        "Full Name: URI:http://pki.example/fleetward/ek.crl CRL Issuer: DirName:".to_owned(),
    ] {
        assert!(squeezed.contains(&told), "{told} in {squeezed}");
    }
}

#[test]
fn openssl_verifies_the_chain() {
    let directory = written(&FLEET);
    for ek in ["rsa", "ecc"] {
        // The directory name in a critical alternative name is TCG's; OpenSSL knows it.
        let verified = openssl(
            &directory,
            &format!("verify -x509_strict -CAfile root.pem -untrusted host.pem {ek}.pem"),
        )
        .unwrap();
        assert!(verified.contains(": OK"), "{verified}");
        assert!(
            openssl(&directory, &format!("verify -CAfile root.pem {ek}.pem")).is_err(),
            "the intermediate is needed"
        );
    }
    let other = written(&fleet("two"));
    std::fs::copy(
        other.path().join("root.pem"),
        directory.path().join("other.pem"),
    )
    .unwrap();
    assert!(
        openssl(
            &directory,
            "verify -CAfile other.pem -untrusted host.pem rsa.pem"
        )
        .is_err()
    );
}

#[test]
fn an_ek_certificate_holds_what_the_tcg_profile_asks_for() {
    let directory = written(&FLEET);
    for (ek, usage, kind) in [
        ("rsa", "Key Encipherment", "rsaEncryption"),
        ("ecc", "Key Agreement", "id-ecPublicKey"),
    ] {
        let text = openssl(&directory, &format!("x509 -in {ek}.pem -noout -text")).unwrap();
        let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for expected in [
            "Extended Key Usage: 2.23.133.8.1",
            "X509v3 Subject Alternative Name: critical DirName:/2.23.133.2.1=id:00001014/2.23.133.2.2=swtpm/2.23.133.2.3=id:20191023",
            "X509v3 Basic Constraints: critical CA:FALSE",
            "X509v3 Subject Directory Attributes:",
            "X509v3 Authority Key Identifier:",
            "X509v3 Subject Key Identifier:",
            "Not After : Dec 31 23:59:59 9999 GMT",
            &format!("X509v3 Key Usage: critical {usage} "),
            &format!("Public Key Algorithm: {kind}"),
        ] {
            assert!(
                squeezed.contains(expected),
                "{expected} is missing in\n{text}"
            );
        }
        let structure = openssl(&directory, &format!("asn1parse -in {ek}.pem")).unwrap();
        // TPMSpecification { "2.0", 0, 164 } as swtpm's own certificate tool encodes it.
        assert!(
            structure.contains("3019301706056781050210310E300C0C03322E30020100020200A4"),
            "{structure}"
        );
    }
}

#[test]
fn our_own_verifier_follows_the_chain() {
    for ek in [&FLEET.rsa_ek, &FLEET.ecc_ek] {
        let verified = verify_chain(ek, &[&FLEET.intermediate], &FLEET.root, NOW).unwrap();
        assert!(
            verified.issuer.contains("Fleetward EK authority alpha"),
            "{}",
            verified.issuer
        );
        assert!(matches!(
            verify_chain(ek, &[], &FLEET.root, NOW),
            Err(EkChainError::Chain(_))
        ));
        assert!(matches!(
            verify_chain(ek, &[&FLEET.intermediate], &fleet("two").root, NOW),
            Err(EkChainError::Chain(_))
        ));
        assert!(
            verify_chain(
                ek,
                &[&FLEET.intermediate],
                &FLEET.root,
                NOW - time::Duration::days(1)
            )
            .is_err(),
            "not before it was made"
        );
    }
}

#[test]
fn an_ek_certificate_says_who_issued_it_and_which_authority_that_is() {
    let read = EkCertificate::read(&FLEET.rsa_ek).unwrap();
    assert_eq!(read.issuer_host, Some(host()));
    assert_eq!(authority_host(&FLEET.intermediate), Some(host()));
    assert_eq!(authority_host(&FLEET.root), None);
    assert_eq!(
        read.facts.serial.as_str(),
        "43".to_owned() + &"03".repeat(15)
    );
    assert_eq!(read.facts.not_before, NOW - time::Duration::hours(1));
    assert_eq!(read.facts.not_after.year(), 9999);
    assert!(read.names(&FLEET.intermediate));
    let other = fleet("two");
    assert!(
        !read.names(&other.intermediate),
        "the same name, another key"
    );
    assert!(!read.names(&FLEET.root));
    assert!(!read.names(b"nothing"));
    assert!(EkCertificate::read(&FLEET.rsa_ek[1..]).is_err());
    // A clock that is behind is no reason to call it somebody else's.
    assert!(
        verify_chain(
            &FLEET.rsa_ek,
            &[&FLEET.intermediate],
            &FLEET.root,
            AT_ANY_TIME
        )
        .is_ok()
    );
    assert!(
        verify_chain(
            &FLEET.rsa_ek,
            &[&FLEET.intermediate],
            &other.root,
            AT_ANY_TIME
        )
        .is_err()
    );
}

#[test]
fn an_authority_is_no_endorsement_key_and_a_leaf_issues_nothing() {
    assert!(verify_chain(&FLEET.intermediate, &[], &FLEET.root, NOW).is_err());
    let rogue = p384();
    let root_key = p384();
    let root = make_root("rogue", &root_key, serial(9), NOW).unwrap();
    assert!(
        matches!(EkAuthority::new(&root, rogue), Err(EkIssueError::IssuerKey)),
        "another key than the certificate's"
    );

    // A host's authority may not make authorities below itself: its path length is zero.
    let (middle_key, low_key) = (p384(), p384());
    let top = EkAuthority::new(&root, root_key).unwrap();
    let middle = top
        .issue_host_authority(
            &host(),
            &middle_key.subject_public_key_info(),
            serial(10),
            NOW,
        )
        .unwrap();
    let low = EkAuthority::new(&middle, middle_key)
        .unwrap()
        .issue_host_authority(&host(), &low_key.subject_public_key_info(), serial(11), NOW)
        .unwrap();
    let ek = EkAuthority::new(&low, low_key)
        .unwrap()
        .issue_ek(&ecc_key(), &TpmIdentity::default(), serial(12), NOW)
        .unwrap();
    assert!(matches!(
        verify_chain(&ek, &[&low, &middle], &root, NOW),
        Err(EkChainError::Chain(_))
    ));
}

#[test]
fn an_oversized_identity_does_not_become_a_certificate_that_no_tpm_holds() {
    let key = p384();
    let root = make_root("big", &key, serial(1), NOW).unwrap();
    let authority = EkAuthority::new(&root, key).unwrap();
    let tpm = TpmIdentity {
        model: "m".repeat(2000),
        ..TpmIdentity::default()
    };
    assert!(matches!(
        authority.issue_ek(&ecc_key(), &tpm, serial(2), NOW),
        Err(EkIssueError::TooLarge { .. })
    ));
}

#[test]
fn no_truncation_of_an_ek_certificate_verifies() {
    for length in 0..FLEET.rsa_ek.len() {
        assert!(
            verify_chain(
                &FLEET.rsa_ek[..length],
                &[&FLEET.intermediate],
                &FLEET.root,
                NOW
            )
            .is_err()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn altered_ek_certificates_do_not_verify(at in 0usize..4096, bit in 0u8..8) {
        let mut altered = FLEET.rsa_ek.clone();
        let at = at % altered.len();
        altered[at] ^= 1 << bit;
        prop_assert!(verify_chain(&altered, &[&FLEET.intermediate], &FLEET.root, NOW).is_err());
    }

    #[test]
    fn arbitrary_bytes_and_texts_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), text in ".{0,200}") {
        prop_assert!(verify_chain(&bytes, &[&bytes], &FLEET.root, NOW).is_err());
        prop_assert!(verify_chain(&FLEET.rsa_ek, &[&FLEET.intermediate], &bytes, NOW).is_err());
        prop_assert!(EkCertificate::read(&bytes).is_err());
        let _ = authority_host(&bytes);
        let _ = EkPublicKey::from_der(&bytes);
        let _ = EkPublicKey::from_swtpm(&text);
        prop_assert!(EkAuthority::new(&bytes, p384_once()).is_err());
    }
}

fn p384_once() -> &'static KeyPair {
    static KEY: LazyLock<KeyPair> = LazyLock::new(p384);
    &KEY
}
