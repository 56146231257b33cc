//! One certificate of a guardian, parsed once and described the way certutil and Fleetward show it.
//!
//! Here a certificate is only a container for a public key: chains and names carry no trust, and the key of an expired
//! certificate still opens. Refused are more than [`MAX_CERTIFICATE`] bytes, non-canonical DER, and keys other than
//! RSA of 2048 to 8192 bits.

use crate::der_limits::within_limits;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cms::cert::IssuerAndSerialNumber;
use const_oid::db::rfc5912::RSA_ENCRYPTION;
use der::{Decode, Encode};
use fleetward_model::guardian::{CertificateFacts, CertificateRole};
use pkcs1::RsaPublicKey;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt;
use time::OffsetDateTime;
use x509_cert::Certificate;

/// Largest certificate taken, in bytes of DER.
pub const MAX_CERTIFICATE: usize = 16 * 1024;

/// Smallest and largest RSA modulus taken, in bits.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why bytes are not a guardian's certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("certificate has {size} bytes, at most {MAX_CERTIFICATE} are taken")]
    TooLarge { size: usize },
    #[error("not an X.509 certificate in DER")]
    Malformed(#[source] Option<der::Error>),
    #[error("certificate is not canonical DER")]
    NotCanonical,
    #[error("certificate holds no RSA key")]
    NotRsa,
    #[error("certificate holds an RSA key of {bits} bits; {} to {} are taken", RSA_BITS.start(), RSA_BITS.end())]
    KeySize { bits: usize },
}

/// A parsed certificate of a guardian.
#[derive(Clone, PartialEq, Eq)]
pub struct GuardianCertificate {
    role: CertificateRole,
    der: Vec<u8>,
    parsed: Certificate,
    rsa_bits: usize,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl GuardianCertificate {
    /// Parses DER. The role is the caller's word; a guardian's pair fixes it by position.
    pub fn from_der(role: CertificateRole, der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(CertificateError::TooLarge { size: der.len() });
        }
        if !within_limits(der) {
            return Err(CertificateError::Malformed(None));
        }
        let parsed =
            Certificate::from_der(der).map_err(|e| CertificateError::Malformed(Some(e)))?;
        // The certificate travels inside CMS re-encoded; its thumbprint must survive that.
        if parsed
            .to_der()
            .map_err(|e| CertificateError::Malformed(Some(e)))?
            != der
        {
            return Err(CertificateError::NotCanonical);
        }
        let rsa_bits = rsa_bits(&parsed)?;
        let validity = &parsed.tbs_certificate.validity;
        Ok(Self {
            role,
            der: der.to_vec(),
            not_before: moment(&validity.not_before)?,
            not_after: moment(&validity.not_after)?,
            rsa_bits,
            parsed,
        })
    }

    pub fn role(&self) -> CertificateRole {
        self.role
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Serial number, lower-case hex without separators.
    pub fn serial(&self) -> String {
        hex::encode(self.parsed.tbs_certificate.serial_number.as_bytes())
    }

    /// SHA-1 of the DER: certutil's `Cert Hash(sha1)`. A name, not a proof.
    pub fn sha1(&self) -> [u8; 20] {
        Sha1::digest(&self.der).into()
    }

    /// SHA-256 of the DER.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    /// The subject as RFC 4514 text.
    pub fn subject(&self) -> String {
        self.parsed.tbs_certificate.subject.to_string()
    }

    /// The issuer as RFC 4514 text.
    pub fn issuer(&self) -> String {
        self.parsed.tbs_certificate.issuer.to_string()
    }

    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Bits of the RSA modulus.
    pub fn rsa_bits(&self) -> usize {
        self.rsa_bits
    }

    /// The key as DER `RSAPublicKey` (PKCS #1).
    pub fn rsa_public_key(&self) -> &[u8] {
        self.parsed
            .tbs_certificate
            .subject_public_key_info
            .subject_public_key
            .raw_bytes()
    }

    /// The key as DER `SubjectPublicKeyInfo`.
    pub fn subject_public_key_info(&self) -> Vec<u8> {
        self.parsed
            .tbs_certificate
            .subject_public_key_info
            .to_der()
            .expect("a parsed key encodes again")
    }

    /// What [`CertificateFacts`] carries: the description without keys.
    pub fn facts(&self) -> CertificateFacts {
        CertificateFacts {
            role: self.role,
            serial: self.serial(),
            sha1: hex::encode(self.sha1()),
            sha256: hex::encode(self.sha256()),
            subject: self.subject(),
            issuer: self.issuer(),
            not_before: self.not_before,
            not_after: self.not_after,
            der_base64: STANDARD.encode(&self.der),
        }
    }

    /// How CMS names this certificate.
    pub(crate) fn issuer_and_serial(&self) -> IssuerAndSerialNumber {
        IssuerAndSerialNumber {
            issuer: self.parsed.tbs_certificate.issuer.clone(),
            serial_number: self.parsed.tbs_certificate.serial_number.clone(),
        }
    }

    pub(crate) fn parsed(&self) -> &Certificate {
        &self.parsed
    }
}

impl fmt::Debug for GuardianCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardianCertificate")
            .field("role", &self.role)
            .field("sha256", &hex::encode(self.sha256()))
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn rsa_bits(certificate: &Certificate) -> Result<usize, CertificateError> {
    let info = &certificate.tbs_certificate.subject_public_key_info;
    if info.algorithm.oid != RSA_ENCRYPTION {
        return Err(CertificateError::NotRsa);
    }
    let bytes = info
        .subject_public_key
        .as_bytes()
        .ok_or(CertificateError::NotRsa)?;
    let key = RsaPublicKey::from_der(bytes).map_err(|_| CertificateError::NotRsa)?;
    let modulus = key.modulus.as_bytes();
    let bits = modulus.len() * 8
        - modulus
            .first()
            .map_or(0, |first| first.leading_zeros() as usize);
    if RSA_BITS.contains(&bits) {
        Ok(bits)
    } else {
        Err(CertificateError::KeySize { bits })
    }
}

fn moment(time: &x509_cert::time::Time) -> Result<OffsetDateTime, CertificateError> {
    i64::try_from(time.to_unix_duration().as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(CertificateError::Malformed(None))
}
