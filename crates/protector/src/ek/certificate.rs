//! What an EK certificate says of itself, whether it is true or not: number, validity, who is said to have issued it.

use super::{AUTHORITY_NAME, EkChainError};
use const_oid::db::rfc4519::COMMON_NAME;
use der::asn1::{PrintableStringRef, Utf8StringRef};
use der::{Decode, Encode};
use fleetward_model::HostName;
use fleetward_model::certificate::{CertificateFacts, Serial};
use sha2::{Digest, Sha256};
use std::time::{Duration, UNIX_EPOCH};
use time::OffsetDateTime;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, SubjectKeyIdentifier};
use x509_cert::name::Name;
use x509_cert::{Certificate, TbsCertificate};

/// An EK certificate as it was read; [`super::verify_chain`] says whether it is true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EkCertificate {
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    pub facts: CertificateFacts,
    /// RFC 4514 text; empty of an EK's, which names the TPM elsewhere.
    pub subject: String,
    /// Subject of the authority that is said to have issued it, RFC 4514 text.
    pub issuer: String,
    /// The host whose EK authority that is, if it is named as this fleet's are.
    pub issuer_host: Option<HostName>,
    issuer_name: Vec<u8>,
    issuer_key: Option<Vec<u8>>,
}

impl EkCertificate {
    /// # Errors
    /// [`EkChainError::Malformed`] and [`EkChainError::TooLarge`].
    pub fn read(der: &[u8]) -> Result<Self, EkChainError> {
        let certificate = read(der)?;
        let malformed = |_| EkChainError::Malformed;
        let key = certificate.get::<AuthorityKeyIdentifier>();
        Ok(Self {
            sha256: Sha256::digest(der).into(),
            facts: CertificateFacts {
                serial: Serial::from_bytes(certificate.serial_number.as_bytes()),
                not_before: moment(certificate.validity.not_before.to_unix_duration())?,
                not_after: moment(certificate.validity.not_after.to_unix_duration())?,
            },
            subject: certificate.subject.to_string(),
            issuer: certificate.issuer.to_string(),
            issuer_host: host_in(&certificate.issuer),
            issuer_name: certificate.issuer.to_der().map_err(malformed)?,
            issuer_key: key
                .map_err(malformed)?
                .and_then(|(_, key)| key.key_identifier)
                .map(|key| key.as_bytes().to_vec()),
        })
    }

    /// Whether `authority`, a certificate, has the name and the key that this one names as its issuer's. Its signature is
    /// not looked at.
    pub fn names(&self, authority: &[u8]) -> bool {
        let Ok(authority) = read(authority) else {
            return false;
        };
        let key = match authority.get::<SubjectKeyIdentifier>() {
            Ok(key) => key.map(|(_, key)| key.0.as_bytes().to_vec()),
            Err(_) => return false,
        };
        let same_key = match (&self.issuer_key, &key) {
            (Some(named), Some(key)) => named == key,
            _ => true,
        };
        let subject = authority.subject.to_der();
        same_key && subject.is_ok_and(|subject| subject == self.issuer_name)
    }
}

/// The host whose EK authority a certificate says it is of.
pub fn authority_host(authority: &[u8]) -> Option<HostName> {
    host_in(&read(authority).ok()?.subject)
}

pub(super) fn read(der: &[u8]) -> Result<TbsCertificate, EkChainError> {
    if der.len() > super::chain::MAX_CERTIFICATE {
        return Err(EkChainError::TooLarge);
    }
    let certificate = Certificate::from_der(der).map_err(|_| EkChainError::Malformed)?;
    Ok(certificate.tbs_certificate)
}

fn moment(since: Duration) -> Result<OffsetDateTime, EkChainError> {
    UNIX_EPOCH
        .checked_add(since)
        .map(OffsetDateTime::from)
        .ok_or(EkChainError::Malformed)
}

fn host_in(name: &Name) -> Option<HostName> {
    let parts = name.0.iter().flat_map(|part| part.0.iter());
    let named = parts
        .filter(|part| part.oid == COMMON_NAME)
        .find_map(|part| {
            let utf8 = part.value.decode_as::<Utf8StringRef<'_>>();
            let text = utf8.map(|text| text.as_str().to_owned());
            let plain = || part.value.decode_as::<PrintableStringRef<'_>>();
            text.or_else(|_| plain().map(|text| text.as_str().to_owned()))
                .ok()
        })?;
    named.strip_prefix(AUTHORITY_NAME)?.parse().ok()
}
