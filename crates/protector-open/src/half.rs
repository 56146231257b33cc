//! One half of a guardian: a certificate with its private key that was imported alone and waits for the other half.
//!
//! A half cannot open or seal. It is stored, and becomes a guardian together with the matching half. Stored as DER:
//! `SEQUENCE { version INTEGER (1), role INTEGER (1 signing, 2 encryption), certificate OCTET STRING, protection
//! INTEGER, key OCTET STRING }`, with the key protected as in [`crate::storage`].

use crate::local_guardian::LocalGuardian;
use crate::pfx::PairError;
use crate::rsa_key::RsaPrivateKey;
use crate::storage::{
    MAX_STORED, Protected, StorageError, StorageKey, encrypts, protect, unprotect,
};
use der::asn1::OctetStringRef;
use der::{Decode, Encode, Sequence};
use fleetward_model::guardian::CertificateRole;
use fleetward_protector::{Guardian, GuardianCertificate, GuardianError};
use std::fmt;
use time::Duration;
use zeroize::Zeroizing;

const VERSION: u8 = 1;

/// Precedes the certificate's thumbprint in the authenticated data.
const CONTEXT: &str = "fleetward guardian half v1 ";

/// The certificates of one guardian are made together. Two that begin further apart are put together only by somebody
/// who names both: a host that was reinstalled has a new pair under the same subject.
const MADE_TOGETHER: Duration = Duration::days(1);

/// A certificate of a guardian with its private key. Wiped on drop, never cloned.
pub struct GuardianHalf {
    certificate: GuardianCertificate,
    key: RsaPrivateKey,
}

impl GuardianHalf {
    pub(crate) fn new(certificate: GuardianCertificate, key: RsaPrivateKey) -> Self {
        Self { certificate, key }
    }

    /// The half that everybody may see.
    pub fn certificate(&self) -> &GuardianCertificate {
        &self.certificate
    }

    pub fn role(&self) -> CertificateRole {
        self.certificate.role()
    }

    /// Whether the two look like one guardian's: one of each kind, of one host, made together.
    pub fn fits(&self, other: &Self) -> bool {
        let apart = self.certificate.not_before() - other.certificate.not_before();
        self.role() != other.role()
            && holder(&self.certificate.subject()) == holder(&other.certificate.subject())
            && apart.abs() <= MADE_TOGETHER
    }

    /// The guardian of both halves.
    pub fn join(self, other: Self) -> Result<LocalGuardian, PairError> {
        let (signing, encryption) = match (self.role(), other.role()) {
            (CertificateRole::Signing, CertificateRole::Encryption) => (self, other),
            (CertificateRole::Encryption, CertificateRole::Signing) => (other, self),
            (role, _) => return Err(PairError::Several { role, count: 2 }),
        };
        let subjects = [&signing, &encryption].map(|half| half.certificate.subject());
        if holder(&subjects[0]) != holder(&subjects[1]) {
            let [signing, encryption] = subjects;
            return Err(PairError::DifferentHosts {
                signing,
                encryption,
            });
        }
        let public = Guardian::from_der(signing.certificate.der(), encryption.certificate.der())
            .map_err(|error| PairError::NotAGuardian(error.to_string()))?;
        LocalGuardian::from_parts(public, signing.key, encryption.key)
            .map_err(|error| PairError::NotAGuardian(error.to_string()))
    }

    /// The bytes to store. Without a storage key they hold the private key in clear.
    pub fn to_storage(&self, key: Option<&StorageKey>) -> Result<Zeroizing<Vec<u8>>, StorageError> {
        let Protected { protection, bytes } =
            protect(self.key.pkcs8(), key, &associated(&self.certificate))?;
        let encode = || -> der::Result<Vec<u8>> {
            Stored {
                version: VERSION,
                role: number(self.role()),
                certificate: OctetStringRef::new(self.certificate.der())?,
                protection,
                key: OctetStringRef::new(&bytes)?,
            }
            .to_der()
        };
        encode()
            .map(Zeroizing::new)
            .map_err(StorageError::Malformed)
    }

    /// Whether stored bytes hold the private key encrypted; answered without the storage key.
    pub fn is_sealed(bytes: &[u8]) -> Result<bool, StorageError> {
        if bytes.len() > MAX_STORED {
            return Err(StorageError::TooLarge { size: bytes.len() });
        }
        let stored = Stored::from_der(bytes).map_err(StorageError::Malformed)?;
        encrypts(stored.protection).ok_or(StorageError::Unknown {
            version: stored.version,
            protection: stored.protection,
        })
    }

    /// Reads stored bytes. A storage key is needed where they are encrypted, and not used where they are not.
    pub fn from_storage(bytes: &[u8], key: Option<&StorageKey>) -> Result<Self, StorageError> {
        if bytes.len() > MAX_STORED {
            return Err(StorageError::TooLarge { size: bytes.len() });
        }
        let stored = Stored::from_der(bytes).map_err(StorageError::Malformed)?;
        let unknown = StorageError::Unknown {
            version: stored.version,
            protection: stored.protection,
        };
        let role = match (stored.version, stored.role) {
            (VERSION, 1) => CertificateRole::Signing,
            (VERSION, 2) => CertificateRole::Encryption,
            _ => return Err(unknown),
        };
        let certificate = GuardianCertificate::from_der(role, stored.certificate.as_bytes())
            .map_err(|source| {
                StorageError::Guardian(GuardianError::Certificate { role, source })
            })?;
        let pkcs8 = unprotect(
            stored.protection,
            stored.key.as_bytes(),
            key,
            &associated(&certificate),
        )?
        .ok_or(unknown)?;
        let key = RsaPrivateKey::from_pkcs8(pkcs8)?;
        if key.belongs_to(&certificate) {
            Ok(Self { certificate, key })
        } else {
            Err(crate::local_guardian::KeysDoNotFit.into())
        }
    }
}

impl fmt::Debug for GuardianHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardianHalf")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

#[derive(Sequence)]
struct Stored<'a> {
    version: u8,
    role: u8,
    certificate: OctetStringRef<'a>,
    protection: u8,
    key: OctetStringRef<'a>,
}

fn number(role: CertificateRole) -> u8 {
    match role {
        CertificateRole::Signing => 1,
        CertificateRole::Encryption => 2,
    }
}

fn associated(certificate: &GuardianCertificate) -> Vec<u8> {
    format!("{CONTEXT}{}", hex::encode(certificate.sha256())).into_bytes()
}

/// The host in a guardian's subject, `... (UntrustedGuardian) (HOST)`; none in other subjects.
fn holder(subject: &str) -> Option<&str> {
    subject
        .split_once("(UntrustedGuardian)")
        .map(|(_, host)| host.trim())
}
