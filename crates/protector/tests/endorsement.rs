//! What endorsements and the rules over them promise.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use fleetward_model::guardian::{CertificateRole, EndorsedGuardian};
use fleetward_model::{GroupName, GuardianId, HostName};
use fleetward_protector::endorsement::CONTEXT;
use fleetward_protector::key_protector::SigningFailed;
use fleetward_protector::rules::{
    AdmitRefusal, CertificateRefusal, Validity, admit, may_grant, may_use, validity,
};
use fleetward_protector::{
    AuthorityKey, CertificateError, Endorsement, EndorsementError, EndorsementStatement,
    ExpiredAllowed, GrantRefusal, Guardian, GuardianCertificate, GuardianError, KnownOwners,
};
use proptest::prelude::*;
use rcgen::{
    CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_RSA_SHA256, RsaKeySize, SerialNumber, SigningKey,
};
use std::sync::LazyLock;
use time::{Duration, OffsetDateTime};

const NOW: OffsetDateTime = time::macros::datetime!(2026-11-23 12:00 UTC);

static AUTHORITY: LazyLock<(KeyPair, Vec<u8>)> =
    LazyLock::new(|| authority(&PKCS_ECDSA_P256_SHA256));
static KEYS: LazyLock<[KeyPair; 2]> = LazyLock::new(|| {
    std::array::from_fn(|_| KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap())
});
static GUARDIAN: LazyLock<Guardian> =
    LazyLock::new(|| guardian(1, NOW - Duration::days(10), NOW + Duration::days(3650)));

fn authority(algorithm: &'static rcgen::SignatureAlgorithm) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let certificate = CertificateParams::new([])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    (key, certificate.der().to_vec())
}

fn certificate(key: &KeyPair, serial: u8, from: OffsetDateTime, to: OffsetDateTime) -> Vec<u8> {
    let mut params = CertificateParams::new([]).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "a guardian");
    params.serial_number = Some(SerialNumber::from_slice(&[serial]));
    (params.not_before, params.not_after) = (from, to);
    params.self_signed(key).unwrap().der().to_vec()
}

fn guardian(serial: u8, from: OffsetDateTime, to: OffsetDateTime) -> Guardian {
    Guardian::from_der(
        &certificate(&KEYS[0], serial, from, to),
        &certificate(&KEYS[1], serial + 1, from, to),
    )
    .unwrap()
}

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

fn host() -> HostName {
    "alpha".parse().unwrap()
}

fn endorsed(guardian: &Guardian) -> Endorsement {
    let statement = EndorsementStatement::new(
        guardian,
        host(),
        group("desktops"),
        NOW,
        NOW + Duration::days(30),
    );
    Endorsement::sign(statement, |bytes| {
        AUTHORITY.0.sign(bytes).map_err(|_| SigningFailed)
    })
    .unwrap()
}

fn key() -> AuthorityKey {
    AuthorityKey::from_certificate(&AUTHORITY.1).unwrap()
}

#[test]
fn an_endorsement_verifies_under_its_authority_and_no_other() {
    let endorsement = endorsed(&GUARDIAN);
    assert_eq!(
        Endorsement::verify(endorsement.text(), &key()).unwrap(),
        endorsement
    );
    let (_, other) = authority(&PKCS_ECDSA_P256_SHA256);
    let other = AuthorityKey::from_certificate(&other).unwrap();
    assert!(matches!(
        Endorsement::verify(endorsement.text(), &other),
        Err(EndorsementError::Signature)
    ));
    let (_, wrong_curve) = authority(&PKCS_ECDSA_P384_SHA384);
    assert!(matches!(
        AuthorityKey::from_certificate(&wrong_curve),
        Err(EndorsementError::Authority)
    ));
}

#[test]
fn a_signature_over_the_bare_statement_is_no_endorsement() {
    let endorsement = endorsed(&GUARDIAN);
    let statement = endorsement.statement().clone();
    let without_context = Endorsement::sign(statement, |bytes| {
        AUTHORITY
            .0
            .sign(bytes.strip_prefix(CONTEXT).unwrap())
            .map_err(|_| SigningFailed)
    })
    .unwrap();
    assert!(matches!(
        Endorsement::verify(without_context.text(), &key()),
        Err(EndorsementError::Signature)
    ));
}

#[test]
fn a_later_version_is_named() {
    let mut statement = endorsed(&GUARDIAN).statement().clone();
    statement.version = 2;
    let later = Endorsement::sign(statement, |bytes| {
        AUTHORITY.0.sign(bytes).map_err(|_| SigningFailed)
    })
    .unwrap();
    assert!(matches!(
        Endorsement::verify(later.text(), &key()),
        Err(EndorsementError::Version { found: 2 })
    ));
}

#[test]
fn a_grant_needs_an_endorsement_of_that_guardian_for_that_group_in_time() {
    let endorsement = endorsed(&GUARDIAN);
    let none = ExpiredAllowed::none();
    may_grant(&endorsement, &GUARDIAN, &group("desktops"), NOW, &none).unwrap();
    assert!(matches!(
        may_grant(&endorsement, &GUARDIAN, &group("servers"), NOW, &none),
        Err(GrantRefusal::OtherGroup { .. })
    ));
    let other = guardian(7, NOW, NOW + Duration::days(1));
    assert!(matches!(
        may_grant(&endorsement, &other, &group("desktops"), NOW, &none),
        Err(GrantRefusal::OtherGuardian { .. })
    ));
    let late = NOW + Duration::days(31);
    assert!(matches!(
        may_grant(&endorsement, &GUARDIAN, &group("desktops"), late, &none),
        Err(GrantRefusal::EndorsementExpired { .. })
    ));
    let early = NOW - Duration::hours(1);
    assert!(matches!(
        may_grant(&endorsement, &GUARDIAN, &group("desktops"), early, &none),
        Err(GrantRefusal::EndorsementNotYet { .. })
    ));
    may_grant(
        &endorsement,
        &GUARDIAN,
        &group("desktops"),
        NOW - Duration::minutes(4),
        &none,
    )
    .unwrap();
}

#[test]
fn an_expired_guardian_is_used_only_when_named() {
    let expired = guardian(20, NOW - Duration::days(3660), NOW - Duration::days(1));
    assert!(matches!(validity(&expired, NOW), Validity::Expired { .. }));
    assert!(matches!(
        may_use(&expired, NOW, &ExpiredAllowed::none()),
        Err(CertificateRefusal::Expired { .. })
    ));
    assert!(
        may_use(
            &expired,
            NOW,
            &ExpiredAllowed::named([GUARDIAN.id().clone()])
        )
        .is_err()
    );
    may_use(
        &expired,
        NOW,
        &ExpiredAllowed::named([expired.id().clone()]),
    )
    .unwrap();
    let future = guardian(30, NOW + Duration::days(1), NOW + Duration::days(2));
    assert!(may_use(&future, NOW, &ExpiredAllowed::named([future.id().clone()])).is_err());
    let ending = guardian(40, NOW, NOW + Duration::days(100));
    assert!(matches!(validity(&ending, NOW), Validity::EndsSoon { .. }));
    assert_eq!(validity(&GUARDIAN, NOW), Validity::Valid);
}

#[test]
fn wire_data_is_admitted_only_when_certificates_and_signature_bear_it_out() {
    let good = EndorsedGuardian {
        guardian: GUARDIAN.facts(host(), false, false),
        group: group("desktops"),
        endorsement: endorsed(&GUARDIAN).text().to_owned(),
    };
    let admit = |wire: &EndorsedGuardian| {
        admit(
            wire,
            &key(),
            &group("desktops"),
            NOW,
            &ExpiredAllowed::none(),
        )
    };
    assert_eq!(&admit(&good).unwrap(), &*GUARDIAN);

    let other = guardian(50, NOW, NOW + Duration::days(1000));
    let mut swapped = good.clone();
    swapped.guardian = other.facts(host(), false, false);
    assert!(matches!(
        admit(&swapped),
        Err(AdmitRefusal::Grant(GrantRefusal::OtherGuardian { .. }))
    ));
    swapped.guardian.id = GUARDIAN.id().clone();
    assert!(matches!(
        admit(&swapped),
        Err(AdmitRefusal::Guardian {
            source: GuardianError::WrongId { .. },
            ..
        })
    ));
    let mut unsigned = good;
    unsigned.endorsement = unsigned
        .endorsement
        .replace("signature\":\"M", "signature\":\"N");
    assert!(matches!(
        admit(&unsigned),
        Err(AdmitRefusal::Endorsement { .. })
    ));
}

#[test]
fn the_authoritys_word_for_owners_is_its_own_and_no_endorsement() {
    let stranger = GuardianId::from_digest([7; 32]);
    let owners = KnownOwners::new([GUARDIAN.id().clone()]);
    let text = owners
        .sign(|bytes| AUTHORITY.0.sign(bytes).map_err(|_| SigningFailed))
        .unwrap();
    let read = KnownOwners::verify(&text, &key()).unwrap();
    assert!(read.contains(GUARDIAN.id()) && !read.contains(&stranger));
    // Neither counts as the other, and no other key's word counts.
    assert!(Endorsement::verify(&text, &key()).is_err());
    let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let forged = owners
        .sign(|bytes| other.sign(bytes).map_err(|_| SigningFailed))
        .unwrap();
    assert!(matches!(
        KnownOwners::verify(&forged, &key()),
        Err(EndorsementError::Signature)
    ));
}

#[test]
fn unfit_certificates_are_refused_by_name() {
    let parse = |der: &[u8]| GuardianCertificate::from_der(CertificateRole::Signing, der);
    assert!(matches!(parse(&AUTHORITY.1), Err(CertificateError::NotRsa)));
    assert!(matches!(
        parse(&vec![0x30; 20_000]),
        Err(CertificateError::TooLarge { .. })
    ));
    let directory = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("/usr/bin/openssl")
        .args("req -x509 -newkey rsa:1024 -noenc -keyout key -subj /CN=weak -outform DER -out weak.der".split(' '))
        .current_dir(&directory)
        .output()
        .unwrap();
    assert!(made.status.success());
    let weak = std::fs::read(directory.path().join("weak.der")).unwrap();
    assert!(matches!(
        parse(&weak),
        Err(CertificateError::KeySize { bits: 1024 })
    ));
    let one = GUARDIAN.signing().der();
    assert!(matches!(
        Guardian::from_der(one, one),
        Err(GuardianError::SameCertificate)
    ));
}

#[test]
fn every_truncation_of_an_endorsement_is_refused() {
    let text = endorsed(&GUARDIAN).text().to_owned();
    for length in 0..text.len() {
        assert!(Endorsement::verify(&text[..length], &key()).is_err());
    }
    assert!(matches!(
        Endorsement::verify(&" ".repeat(10_000), &key()),
        Err(EndorsementError::TooLarge { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_no_endorsement(text in ".{0,300}") {
        prop_assert!(Endorsement::verify(&text, &key()).is_err());
    }

    #[test]
    fn an_altered_endorsement_is_refused(at in 0usize..900, byte in 0x20u8..0x7f) {
        let text = endorsed(&GUARDIAN).text().to_owned();
        let mut bytes = text.clone().into_bytes();
        let at = at % bytes.len();
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        let altered = String::from_utf8(bytes).unwrap();
        prop_assert!(Endorsement::verify(&altered, &key()).is_err());
    }
}
