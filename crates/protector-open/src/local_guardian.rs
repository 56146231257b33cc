//! A guardian whose private keys are on this host: creation, signing and unwrapping.

use crate::rsa_key::{RsaKeyError, RsaPrivateKey};
use crate::storage::StorageError;
use crate::tpm_key::RandomError;
use fleetward_model::guardian::CertificateRole;
use fleetward_model::{GuardianId, HostName};
use fleetward_protector::ek::RandomSerial;
use fleetward_protector::guardian::subject_common_name;
use fleetward_protector::key_protector::SigningFailed;
use fleetward_protector::possession::RejoinProof;
use fleetward_protector::{Guardian, GuardianError};
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// How long a new guardian's certificates last: ten years, as on Hyper-V.
pub const LIFETIME: Duration = Duration::days(3652);

/// Certificates start this much before they are made, for hosts whose clocks are behind.
const BACKDATE: Duration = Duration::hours(1);

/// Why a guardian was not made.
#[derive(Debug, thiserror::Error)]
pub enum GuardianMakeError {
    #[error("no RSA key was made for a guardian")]
    Key(#[from] RsaKeyError),
    #[error("no serial number was drawn for a guardian's certificate")]
    Random(#[from] RandomError),
    #[error("a guardian's certificate was not made")]
    Certificate(#[source] rcgen::Error),
    #[error("the certificates that were made are no guardian")]
    Guardian(#[source] GuardianError),
}

/// The keys given do not belong to the certificates given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the private keys do not belong to the guardian's certificates")]
pub struct KeysDoNotFit;

/// A guardian with both private keys. Wiped on drop, never cloned.
#[derive(Debug)]
pub struct LocalGuardian {
    public: Guardian,
    signing: RsaPrivateKey,
    encryption: RsaPrivateKey,
}

impl LocalGuardian {
    /// Makes two RSA-3072 keys and their self-signed certificates, valid for [`LIFETIME`] from `now`.
    ///
    /// Takes seconds of processor time: not for a thread that others wait on.
    pub fn generate(host: &HostName, now: OffsetDateTime) -> Result<Self, GuardianMakeError> {
        let signing = RsaPrivateKey::generate()?;
        let encryption = RsaPrivateKey::generate()?;
        let public = Guardian::from_der(
            &self_signed(CertificateRole::Signing, host, &signing, now)?,
            &self_signed(CertificateRole::Encryption, host, &encryption, now)?,
        )
        .map_err(GuardianMakeError::Guardian)?;
        Ok(Self {
            public,
            signing,
            encryption,
        })
    }

    /// A guardian of keys that were made elsewhere, PKCS #8 in DER, and the certificates that belong to them.
    ///
    /// # Errors
    /// A key cannot be read, or is not the one that its certificate names.
    pub fn from_pkcs8(
        public: Guardian,
        signing: &[u8],
        encryption: &[u8],
    ) -> Result<Self, StorageError> {
        let private = |der: &[u8]| RsaPrivateKey::from_pkcs8(Zeroizing::new(der.to_vec()));
        Ok(Self::from_parts(
            public,
            private(signing)?,
            private(encryption)?,
        )?)
    }

    pub(crate) fn from_parts(
        public: Guardian,
        signing: RsaPrivateKey,
        encryption: RsaPrivateKey,
    ) -> Result<Self, KeysDoNotFit> {
        if signing.belongs_to(public.signing()) && encryption.belongs_to(public.encryption()) {
            Ok(Self {
                public,
                signing,
                encryption,
            })
        } else {
            Err(KeysDoNotFit)
        }
    }

    /// The half that everybody may see.
    pub fn public(&self) -> &Guardian {
        &self.public
    }

    pub fn id(&self) -> &GuardianId {
        self.public.id()
    }

    /// Signs a host's proof that it has this guardian.
    ///
    /// # Errors
    /// Where the key does not sign.
    pub fn prove(&self, proof: &RejoinProof) -> Result<Vec<u8>, SigningFailed> {
        self.signing.sign_pss(proof.message())
    }

    pub(crate) fn key(&self, role: CertificateRole) -> &RsaPrivateKey {
        match role {
            CertificateRole::Signing => &self.signing,
            CertificateRole::Encryption => &self.encryption,
        }
    }
}

fn self_signed(
    role: CertificateRole,
    host: &HostName,
    key: &RsaPrivateKey,
    now: OffsetDateTime,
) -> Result<Vec<u8>, GuardianMakeError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| RandomError)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, subject_common_name(role, host));
    params.serial_number = Some(RandomSerial::new(serial).into());
    params.not_before = now - BACKDATE;
    params.not_after = now + LIFETIME;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = match role {
        CertificateRole::Signing => vec![KeyUsagePurpose::DigitalSignature],
        CertificateRole::Encryption => vec![
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::DataEncipherment,
        ],
    };
    let certificate = params
        .self_signed(key)
        .map_err(GuardianMakeError::Certificate)?;
    Ok(certificate.der().to_vec())
}
