//! The pinned certificate of the fleet's authority, and the checks that use it.
//!
//! Agents pin it when they join, administrators get it as a file. This module has no private key.

use crate::identity::{self, FleetId, IdentityError};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use fleetward_durable::{self as durable, Access};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::{FromDer, X509Certificate};

/// SHA-256 of a certificate (DER), 32 bytes; as text 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate (DER).
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| TrustError::Fingerprint)?;
        Ok(Self(bytes))
    }
}

/// The pinned authority of one fleet. Cheap to clone.
#[derive(Clone)]
pub struct FleetTrust {
    certificate: CertificateDer<'static>,
    fleet: FleetId,
    public_key: Arc<[u8]>,
    roots: Arc<RootCertStore>,
}

impl FleetTrust {
    /// Accepts an authority's certificate (DER): self-signed, ECDSA P-256, allowed to sign, with a fleet id.
    ///
    /// That it is the *right* authority is known only from its [`fingerprint`](Self::fingerprint).
    pub fn from_der(der: &[u8]) -> Result<Self, TrustError> {
        let fleet = identity::fleet_of_authority(der)?;
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| TrustError::Certificate)?;
        let key = parsed.public_key();
        let curve = key
            .algorithm
            .parameters
            .as_ref()
            .and_then(|p| p.as_oid().ok());
        if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
            return Err(TrustError::Algorithm);
        }
        if !parsed.is_ca() || parsed.verify_signature(None).is_err() {
            return Err(TrustError::NotAnAuthority);
        }
        let certificate = CertificateDer::from(der.to_vec());
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate.clone())
            .map_err(|_| TrustError::Certificate)?;
        Ok(Self {
            fleet,
            public_key: key.subject_public_key.data.as_ref().into(),
            roots: Arc::new(roots),
            certificate,
        })
    }

    /// The same from PEM with exactly one certificate.
    pub fn from_pem(pem: &str) -> Result<Self, TrustError> {
        let mut certificates = CertificateDer::pem_slice_iter(pem.as_bytes());
        match (certificates.next(), certificates.next()) {
            (Some(Ok(certificate)), None) => Self::from_der(&certificate),
            _ => Err(TrustError::Certificate),
        }
    }

    /// The same from a PEM file.
    pub fn load(path: &Path) -> Result<Self, TrustError> {
        let pem = std::fs::read_to_string(path).map_err(|source| TrustError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_pem(&pem)
    }

    /// Writes the certificate as a PEM file, replacing what was there.
    pub fn store(&self, path: &Path) -> std::io::Result<()> {
        durable::replace(path, self.to_pem().as_bytes(), Access::PUBLIC)
    }

    /// The certificate as PEM.
    pub fn to_pem(&self) -> String {
        crate::credential::certificate_pem(&self.certificate)
    }

    /// The certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The fleet.
    pub fn fleet(&self) -> FleetId {
        self.fleet
    }

    /// What join tokens carry.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// The authority's public key: an uncompressed P-256 point, 65 bytes (SEC 1, 2.3.3).
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Checks a signature made by [`FleetAuthority::sign`](crate::FleetAuthority::sign).
    pub fn verify(&self, statement: &[u8], signature: &[u8]) -> Result<(), TrustError> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.public_key)
            .verify(statement, signature)
            .map_err(|_| TrustError::Signature)
    }

    pub(crate) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }
}

impl fmt::Debug for FleetTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetTrust")
            .field("fleet", &self.fleet)
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

/// Why something cannot be trusted in the name of a fleet's authority.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A certificate file that cannot be read.
    #[error("cannot read the authority's certificate {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not exactly one X.509 certificate.
    #[error("not one readable certificate")]
    Certificate,
    /// A certificate without a fleet id.
    #[error("not the certificate of a fleet's authority")]
    Identity(#[from] IdentityError),
    /// A key of another kind than ours.
    #[error("the authority's key is not ECDSA P-256")]
    Algorithm,
    /// Not self-signed, or not allowed to sign.
    #[error("the certificate is not that of an authority")]
    NotAnAuthority,
    /// A signature that does not fit.
    #[error("the signature was not made by the fleet's authority")]
    Signature,
    /// Not 64 hex digits.
    #[error("a fingerprint has 64 hex digits")]
    Fingerprint,
}
