//! Keys and certificates, and what is asked with them.

use crate::{NOW, PASSWORD, Target};
use fleetward_link::{
    Fingerprint, FleetAuthority, Identity, JoinSecret, JoinToken, KeyRequest, Validity,
};
use fleetward_model::VmId;
use fleetward_protector::ek::{self, EkPublicKey};
use fleetward_protector::{Guardian, KeyProtector};
use fleetward_protector_open::pfx;
use fleetward_protector_open::{LocalGuardian, open};
use std::sync::LazyLock;
use time::Duration;
use zeroize::Zeroizing;

const STORED: &[u8] = include_bytes!("../fixtures/guardian");
/// One that its owner alone opens, and one of a group.
const PROTECTORS: [&[u8]; 2] = [
    include_bytes!("../fixtures/protector-alone.der"),
    include_bytes!("../fixtures/protector-group.der"),
];
const EK: &[u8] = include_bytes!("../fixtures/ek.der");
const EK_AUTHORITY: &[u8] = include_bytes!("../fixtures/ek-authority.der");
const EK_ROOT: &[u8] = include_bytes!("../fixtures/ek-root.der");

static GUARDIAN: LazyLock<LocalGuardian> =
    LazyLock::new(|| LocalGuardian::from_storage(STORED, None).unwrap());
static SECRET: LazyLock<Zeroizing<String>> = LazyLock::new(|| Zeroizing::new(PASSWORD.to_owned()));

pub(crate) const PFX: Target = Target {
    name: "pfx",
    run: |bytes| {
        if let Ok(read) = pfx::read(bytes, &SECRET) {
            let _ = pfx::assemble(read);
        }
    },
    seeds: Vec::new,
};

pub(crate) const KEY_PROTECTOR: Target = Target {
    name: "key_protector",
    run: |bytes| {
        if let Ok(read) = KeyProtector::from_der(bytes) {
            assert!(
                PROTECTORS.contains(&bytes),
                "an altered key protector was taken"
            );
            open(&read, VmId(uuid::Uuid::from_u128(7)), &GUARDIAN).unwrap();
        }
    },
    seeds: || PROTECTORS.map(<[u8]>::to_vec).into(),
};

pub(crate) const CERTIFICATES: Target = Target {
    name: "certificates",
    run: |bytes| {
        let ours = GUARDIAN.public();
        if let Ok(guardian) = Guardian::from_der(bytes, ours.encryption().der()) {
            assert!(guardian.id() != GUARDIAN.id() || bytes == ours.signing().der());
        }
        let _ = LocalGuardian::from_storage(bytes, None);
    },
    seeds: || {
        let ours = GUARDIAN.public();
        vec![
            ours.signing().der().to_vec(),
            ours.encryption().der().to_vec(),
            STORED.to_vec(),
        ]
    },
};

/// What hosts give with a TPM, and what their authorities are certified by.
pub(crate) const EK_CERTIFICATES: Target = Target {
    name: "ek_certificates",
    run: |bytes| {
        let leaf = ek::verify_chain(bytes, &[EK_AUTHORITY], EK_ROOT, NOW);
        assert!(leaf.is_err() || bytes == EK, "an altered EK");
        let middle = ek::verify_chain(EK, &[bytes], EK_ROOT, NOW);
        assert!(
            middle.is_err() || bytes == EK_AUTHORITY,
            "an altered authority"
        );
        let _ = ek::verify_chain(EK, &[EK_AUTHORITY], bytes, NOW);
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = EkPublicKey::from_swtpm(text);
        }
    },
    seeds: || {
        let point = "8".repeat(96);
        let public = format!("x={point},y={point},id=secp384r1");
        vec![
            EK.to_vec(),
            EK_AUTHORITY.to_vec(),
            EK_ROOT.to_vec(),
            public.into(),
        ]
    },
};

pub(crate) const JOIN_TOKEN: Target = Target {
    name: "join_token",
    run: |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Ok(token) = JoinToken::parse(text, NOW)
        {
            assert!(token.expires > NOW, "one that has ended");
        }
    },
    seeds: || {
        let token = JoinToken {
            controller: "controller.example:7440".into(),
            authority: Fingerprint::of(b"authority"),
            host: "alpha".parse().unwrap(),
            secret: JoinSecret::random().unwrap(),
            expires: NOW + Duration::hours(1),
        };
        vec![token.encode().as_bytes().to_vec()]
    },
};

/// Whatever a request says, the certificate names whom the controller meant.
pub(crate) const CERTIFICATE_REQUEST: Target = Target {
    name: "certificate_request",
    run: |bytes| {
        static AUTHORITY: LazyLock<FleetAuthority> = LazyLock::new(|| {
            let directory = tempfile::tempdir().unwrap();
            FleetAuthority::open(directory.path(), NOW).unwrap()
        });
        if let Ok(text) = std::str::from_utf8(bytes) {
            let validity = Validity::starting(NOW, Duration::hours(1));
            let _ = AUTHORITY.issue(text, &Identity::Controller, validity);
        }
    },
    seeds: || {
        let request = KeyRequest::generate().unwrap();
        vec![request.csr_pem().as_bytes().to_vec()]
    },
};
