//! A program's own certificate and private key: requesting, storing and replacing them at run time.
//!
//! ```text
//!   KeyRequest::generate ──csr_pem──► authority ──chain_pem──► into_credential ──► LiveCredential
//!            ▲                                                      │ store/load        │ replace
//!            └──────────────── renewal: from_credential ◄───────────┘                   └─► next handshake
//! ```

use crate::identity::{FleetIdentity, IdentityError};
use crate::live::Presented;
use crate::refused::MemberCertificate;
use crate::tls;
use crate::trust::FleetTrust;
use base64::Engine;
use fleetward_durable::{self as durable, Access};
use fleetward_model::certificate::CertificateFacts;
use rustls::Error as TlsError;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// A new key pair and the request to certify it. The authority chooses the identity, so the request contains none.
pub struct KeyRequest {
    key_pem: Zeroizing<String>,
    csr_pem: String,
}

impl KeyRequest {
    /// Makes an ECDSA P-256 key pair.
    pub fn generate() -> Result<Self, CredentialError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(CredentialError::Generate)?;
        Self::for_key(&key)
    }

    /// Requests a new certificate for the key of `credential`, before the old certificate expires.
    pub fn from_credential(credential: &Credential) -> Result<Self, CredentialError> {
        let key =
            rcgen::KeyPair::from_pem(&credential.key_pem).map_err(CredentialError::Generate)?;
        Self::for_key(&key)
    }

    fn for_key(key: &rcgen::KeyPair) -> Result<Self, CredentialError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr_pem = params
            .serialize_request(key)
            .and_then(|csr| csr.pem())
            .map_err(CredentialError::Generate)?;
        Ok(Self {
            key_pem: Zeroizing::new(key.serialize_pem()),
            csr_pem,
        })
    }

    /// The request, PEM (PKCS #10).
    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }

    /// Joins the key with the chain the authority answered.
    pub fn into_credential(self, chain_pem: &str) -> Result<Credential, CredentialError> {
        Credential::from_pem(chain_pem, &self.key_pem)
    }
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").finish_non_exhaustive()
    }
}

/// A certificate chain (own certificate first, the authority last) with its private key.
pub struct Credential {
    certified: Arc<CertifiedKey>,
    key_pem: Zeroizing<String>,
    certificate: MemberCertificate,
}

impl Credential {
    /// Combines a chain and a key, both PEM; they must belong together.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, CredentialError> {
        let certified = certified(chain_pem, key_pem)?;
        let own = certified.cert.first().ok_or(CredentialError::Chain)?;
        let certificate = MemberCertificate::from_der(own)?;
        Ok(Self {
            certified: Arc::new(certified),
            key_pem: Zeroizing::new(key_pem.to_owned()),
            certificate,
        })
    }

    /// Reads what [`store`](Self::store) wrote, or any PEM file with a chain and a key.
    pub fn load(path: &Path) -> Result<Self, CredentialError> {
        let text = read(path)?;
        Self::from_pem(&text, &text)
    }

    /// Reads chain and key from two PEM files, the form in which administrators store them.
    pub fn load_pair(chain: &Path, key: &Path) -> Result<Self, CredentialError> {
        Self::from_pem(&read(chain)?, &read(key)?)
    }

    /// Writes chain and key atomically into one file of mode 0600.
    pub fn store(&self, path: &Path) -> Result<(), CredentialError> {
        let text = Zeroizing::new(format!("{}{}", self.chain_pem(), self.key_pem.as_str()));
        durable::replace(path, text.as_bytes(), Access::PRIVATE).map_err(|source| {
            CredentialError::Write {
                path: path.to_owned(),
                source,
            }
        })
    }

    /// The chain as PEM, without the key.
    pub fn chain_pem(&self) -> String {
        self.certified
            .cert
            .iter()
            .map(|der| certificate_pem(der))
            .collect()
    }

    /// The identity in the certificate.
    pub fn identity(&self) -> &FleetIdentity {
        &self.certificate.identity
    }

    /// When the certificate expires.
    pub fn not_after(&self) -> OffsetDateTime {
        self.certificate.facts.not_after
    }

    /// Its serial number, beginning and end.
    pub fn facts(&self) -> &CertificateFacts {
        &self.certificate.facts
    }

    /// Whether `trust` vouches for it now, so that a member accepts it in a handshake; of hosts and the controller.
    pub fn is_of(&self, trust: &FleetTrust, now: OffsetDateTime) -> bool {
        tls::is_issued_by(trust, &self.certified.cert, now)
    }
}

impl Presented for Credential {
    fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("identity", &self.certificate.identity)
            .field("not_after", &self.certificate.facts.not_after)
            .finish_non_exhaustive()
    }
}

/// One certificate as PEM.
pub fn certificate_pem(der: &[u8]) -> String {
    pem("CERTIFICATE", der)
}

/// DER as PEM (RFC 7468).
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 64);
    pem.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in text.as_bytes().chunks(64) {
        let line = std::str::from_utf8(line).expect("base64 is ascii");
        writeln!(pem, "{line}").expect("strings take all writes");
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

/// A chain (its own certificate first) with its key, both PEM.
///
/// # Errors
/// One of them cannot be read, or they do not belong together.
pub(crate) fn certified(chain_pem: &str, key_pem: &str) -> Result<CertifiedKey, CredentialError> {
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| CredentialError::Chain)?;
    if chain.is_empty() {
        return Err(CredentialError::Chain);
    }
    let key =
        PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| CredentialError::Key)?;
    let signing = tls::provider()
        .key_provider
        .load_private_key(key)
        .map_err(|_| CredentialError::Key)?;
    let certified = CertifiedKey::new(chain, signing);
    certified
        .keys_match()
        .map_err(|_| CredentialError::Mismatch)?;
    Ok(certified)
}

fn read(path: &Path) -> Result<Zeroizing<String>, CredentialError> {
    std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|source| CredentialError::Read {
            path: path.to_owned(),
            source,
        })
}

/// Why a credential cannot be made, read or stored.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Making a key pair or request.
    #[error("cannot make a key and certificate request")]
    Generate(#[source] rcgen::Error),
    /// A file that cannot be read.
    #[error("cannot read the credential {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write the credential {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No readable certificate chain.
    #[error("the credential holds no readable certificate chain")]
    Chain,
    /// No readable private key of a kind we use.
    #[error("the credential holds no usable private key")]
    Key,
    /// Certificate and key of different pairs.
    #[error("certificate and private key do not belong together")]
    Mismatch,
    /// A certificate that names no fleet member.
    #[error("the certificate names no member of a fleet")]
    Identity(#[from] IdentityError),
}

impl From<CredentialError> for TlsError {
    fn from(error: CredentialError) -> Self {
        Self::General(error.to_string())
    }
}
