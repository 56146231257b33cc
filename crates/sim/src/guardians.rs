//! Guardians of simulated hosts. A host of a real fleet makes its own keys, which takes a second of processor time; many
//! simulated ones may share a pair, and then only the certificates differ.

use anyhow::{Context, Result};
use fleetward_model::HostName;
use fleetward_model::guardian::CertificateRole;
use fleetward_protector::Guardian;
use fleetward_protector::ek::RandomSerial;
use fleetward_protector::guardian::subject_common_name;
use fleetward_protector_open::LocalGuardian;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
    RsaKeySize,
};
use time::{Duration, OffsetDateTime};

/// Where the guardians of a fleet come from.
#[derive(Debug)]
pub enum Guardians {
    /// Each host has keys of its own.
    Own,
    /// All hosts have these.
    Shared(Box<SharedKeys>),
}

/// The keys of every guardian of a fleet. Such a fleet protects nothing.
#[derive(Debug)]
pub struct SharedKeys {
    signing: KeyPair,
    encryption: KeyPair,
}

impl Guardians {
    /// Keys for all hosts.
    pub fn shared() -> Result<Self> {
        let pair = || {
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072)
                .context("cannot make a guardian's keys")
        };
        let (signing, encryption) = (pair()?, pair()?);
        let keys = SharedKeys {
            signing,
            encryption,
        };
        Ok(Self::Shared(Box::new(keys)))
    }

    /// A guardian for a host. Takes a second of processor time where each host has its own.
    pub fn make(&self, host: &HostName) -> Result<LocalGuardian> {
        let now = OffsetDateTime::now_utc();
        Ok(match self {
            Self::Own => LocalGuardian::generate(host, now)?,
            Self::Shared(keys) => {
                let SharedKeys {
                    signing,
                    encryption,
                } = &**keys;
                let public = Guardian::from_der(
                    &certificate(CertificateRole::Signing, host, signing, now)?,
                    &certificate(CertificateRole::Encryption, host, encryption, now)?,
                )?;
                let (signing, encryption) = (signing.serialize_der(), encryption.serialize_der());
                LocalGuardian::from_pkcs8(public, &signing, &encryption)?
            }
        })
    }
}

fn certificate(
    role: CertificateRole,
    host: &HostName,
    key: &KeyPair,
    now: OffsetDateTime,
) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, subject_common_name(role, host));
    // By itself it would follow from the key, which others have too.
    params.serial_number = Some(RandomSerial::new(uuid::Uuid::new_v4().into_bytes()).into());
    params.not_before = now - Duration::hours(1);
    params.not_after = now + fleetward_protector_open::local_guardian::LIFETIME;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = match role {
        CertificateRole::Signing => vec![KeyUsagePurpose::DigitalSignature],
        CertificateRole::Encryption => vec![
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::DataEncipherment,
        ],
    };
    let made = params
        .self_signed(key)
        .context("cannot certify a guardian")?;
    Ok(made.der().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guardians_that_share_keys_have_ids_and_serial_numbers_of_their_own() {
        let guardians = Guardians::shared().expect("keys");
        let make = |host: &str| guardians.make(&host.parse().expect("name")).expect("made");
        let (a, b) = (make("a"), make("b"));
        assert_ne!(a.id(), b.id());
        let serial = |of: &LocalGuardian| {
            let facts = of.public().facts("a".parse().expect("name"), true, true);
            facts.certificates[0].serial.clone()
        };
        assert_ne!(serial(&a), serial(&b));
    }
}
