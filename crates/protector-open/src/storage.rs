//! The stored form of a local guardian: in clear text, or encrypted under a storage key.
//!
//! DER: `SEQUENCE { version INTEGER (1), signing OCTET STRING, encryption OCTET STRING, protection INTEGER, keys OCTET STRING }`.
//! The certificates are always readable. `keys` is `SEQUENCE { OCTET STRING, OCTET STRING }` of the two PKCS #8 keys:
//! in clear text (protection 0), or nonce, AES-256-GCM ciphertext and tag with the guardian's id authenticated
//! (protection 1). The caller provides the storage key (from systemd-creds or the host's TPM) and sets the file
//! permissions.

use crate::aead::{self, AeadKey};
use crate::local_guardian::{KeysDoNotFit, LocalGuardian};
use crate::rsa_key::{RsaKeyError, RsaPrivateKey};
use crate::tpm_key::RandomError;
use der::asn1::OctetStringRef;
use der::{Decode, Encode, Sequence};
use fleetward_model::GuardianId;
use fleetward_model::guardian::CertificateRole;
use fleetward_protector::algorithm::{GCM_NONCE, GCM_TAG};
use fleetward_protector::{Guardian, GuardianError};
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// Version of the layout.
const VERSION: u8 = 1;
const IN_CLEAR: u8 = 0;
const AES_256_GCM: u8 = 1;

/// Largest stored guardian taken, in bytes.
pub const MAX_STORED: usize = 64 * 1024;

/// Precedes the guardian's id in the authenticated data.
const CONTEXT: &str = "fleetward guardian store v1 ";

/// Why stored bytes are not a usable guardian, or were not made.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("stored guardian has {size} bytes, at most {MAX_STORED} are taken")]
    TooLarge { size: usize },
    #[error("stored guardian cannot be read")]
    Malformed(#[source] der::Error),
    #[error(
        "stored guardian has version {version} and protection {protection}, which this program does not know"
    )]
    Unknown { version: u8, protection: u8 },
    #[error("stored guardian's certificates cannot be used")]
    Guardian(#[source] GuardianError),
    #[error("the private keys are stored encrypted and no storage key was given")]
    KeyNeeded,
    #[error("the private keys do not open with this storage key, or the file was altered")]
    WrongKey,
    #[error("a private key of the stored guardian cannot be used")]
    PrivateKey(#[from] RsaKeyError),
    #[error(transparent)]
    Mismatch(#[from] KeysDoNotFit),
    #[error("the guardian was not encrypted")]
    Random(#[from] RandomError),
}

/// The key that encrypts private keys in the guardian store.
pub struct StorageKey(AeadKey);

impl StorageKey {
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self(aead::generate_key()?))
    }

    /// Takes the key out of `bytes` and wipes them.
    pub fn from_bytes(bytes: &mut [u8; 32]) -> Self {
        let key = Self(Zeroizing::new(*bytes));
        bytes.zeroize();
        key
    }

    /// The bytes, for sealing them elsewhere.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StorageKey([redacted])")
    }
}

#[derive(Sequence)]
struct Stored<'a> {
    version: u8,
    signing: OctetStringRef<'a>,
    encryption: OctetStringRef<'a>,
    protection: u8,
    keys: OctetStringRef<'a>,
}

#[derive(Sequence)]
struct Keys<'a> {
    signing: OctetStringRef<'a>,
    encryption: OctetStringRef<'a>,
}

impl LocalGuardian {
    /// The bytes to store. Without a storage key they hold the private keys in clear.
    pub fn to_storage(&self, key: Option<&StorageKey>) -> Result<Zeroizing<Vec<u8>>, StorageError> {
        let keys = self.encode_keys().map_err(StorageError::Malformed)?;
        let Protected { protection, bytes } = protect(&keys, key, &associated(self.id()))?;
        self.encode(protection, &bytes)
            .map_err(StorageError::Malformed)
    }

    /// Reads stored bytes. A storage key is needed where they are encrypted, and not used where they are not.
    pub fn from_storage(bytes: &[u8], key: Option<&StorageKey>) -> Result<Self, StorageError> {
        if bytes.len() > MAX_STORED {
            return Err(StorageError::TooLarge { size: bytes.len() });
        }
        let stored = Stored::from_der(bytes).map_err(StorageError::Malformed)?;
        let (version, protection) = (stored.version, stored.protection);
        if version != VERSION {
            return Err(StorageError::Unknown {
                version,
                protection,
            });
        }
        let public = Guardian::from_der(stored.signing.as_bytes(), stored.encryption.as_bytes())
            .map_err(StorageError::Guardian)?;
        let keys = unprotect(
            protection,
            stored.keys.as_bytes(),
            key,
            &associated(public.id()),
        )?
        .ok_or(StorageError::Unknown {
            version,
            protection,
        })?;
        let keys = Keys::from_der(&keys).map_err(StorageError::Malformed)?;
        let private = |octets: OctetStringRef<'_>| {
            RsaPrivateKey::from_pkcs8(Zeroizing::new(octets.as_bytes().to_vec()))
        };
        Ok(Self::from_parts(
            public,
            private(keys.signing)?,
            private(keys.encryption)?,
        )?)
    }

    /// Whether stored bytes hold their private keys encrypted; answered without the storage key.
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

    fn encode_keys(&self) -> der::Result<Zeroizing<Vec<u8>>> {
        let keys = Keys {
            signing: OctetStringRef::new(self.key(CertificateRole::Signing).pkcs8())?,
            encryption: OctetStringRef::new(self.key(CertificateRole::Encryption).pkcs8())?,
        };
        Ok(Zeroizing::new(keys.to_der()?))
    }

    fn encode(&self, protection: u8, keys: &[u8]) -> der::Result<Zeroizing<Vec<u8>>> {
        let stored = Stored {
            version: VERSION,
            signing: OctetStringRef::new(self.public().signing().der())?,
            encryption: OctetStringRef::new(self.public().encryption().der())?,
            protection,
            keys: OctetStringRef::new(keys)?,
        };
        Ok(Zeroizing::new(stored.to_der()?))
    }
}

/// Private keys as they are stored, and how.
pub(crate) struct Protected {
    pub(crate) protection: u8,
    pub(crate) bytes: Zeroizing<Vec<u8>>,
}

/// Whether that protection encrypts; none for one that is not known.
pub(crate) const fn encrypts(protection: u8) -> Option<bool> {
    match protection {
        IN_CLEAR => Some(false),
        AES_256_GCM => Some(true),
        _ => None,
    }
}

/// In clear, or encrypted under `key` with `associated` authenticated.
pub(crate) fn protect(
    clear: &[u8],
    key: Option<&StorageKey>,
    associated: &[u8],
) -> Result<Protected, RandomError> {
    let Some(StorageKey(key)) = key else {
        return Ok(Protected {
            protection: IN_CLEAR,
            bytes: Zeroizing::new(clear.to_vec()),
        });
    };
    let sealed = aead::encrypt(key, associated, clear)?;
    Ok(Protected {
        protection: AES_256_GCM,
        bytes: Zeroizing::new([&sealed.nonce[..], &sealed.ciphertext, &sealed.tag].concat()),
    })
}

/// What [`protect`] was given; none for a protection that is not known.
pub(crate) fn unprotect(
    protection: u8,
    stored: &[u8],
    key: Option<&StorageKey>,
    associated: &[u8],
) -> Result<Option<Zeroizing<Vec<u8>>>, StorageError> {
    match protection {
        IN_CLEAR => Ok(Some(Zeroizing::new(stored.to_vec()))),
        AES_256_GCM => {
            let StorageKey(key) = key.ok_or(StorageError::KeyNeeded)?;
            stored
                .split_first_chunk::<GCM_NONCE>()
                .and_then(|(nonce, rest)| {
                    rest.split_last_chunk::<GCM_TAG>()
                        .map(|(ciphertext, tag)| (nonce, ciphertext, tag))
                })
                .and_then(|(nonce, ciphertext, tag)| {
                    aead::decrypt(key, associated, nonce, ciphertext, tag)
                })
                .map(Some)
                .ok_or(StorageError::WrongKey)
        }
        _ => Ok(None),
    }
}

fn associated(guardian: &GuardianId) -> Vec<u8> {
    format!("{CONTEXT}{guardian}").into_bytes()
}
