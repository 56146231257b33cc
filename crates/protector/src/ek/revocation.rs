//! Revoked EK certificates, as other programs learn of them: a certificate revocation list (CRL).
//!
//! One list for the whole fleet, signed by the EK root: the hosts' authorities that issue EK certificates have their keys on
//! hosts that may be off, or gone. It is an *indirect* CRL (RFC 5280 section 5.2.5): an entry names the issuer of its
//! certificate (section 5.3.3). An EK certificate names the root as the issuer of its list (`cRLIssuer`, section 4.2.1.13).

use super::certificate;
use super::{EkChainError, EkIssueError};
use const_oid::AssociatedOid;
use const_oid::db::rfc5280::{ID_CE_CERTIFICATE_ISSUER, ID_CE_ISSUING_DISTRIBUTION_POINT};
use der::asn1::{BitString, GeneralizedTime, Ia5String, OctetString, Uint, UtcTime};
use der::{Decode, Encode};
use rcgen::SigningKey;
use std::time::Duration;
use time::OffsetDateTime;
use x509_cert::Certificate;
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::ext::pkix::crl::dp::{DistributionPoint, IssuingDistributionPoint};
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName, GeneralNames};
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, CrlDistributionPoints, CrlNumber, SubjectKeyIdentifier,
};
use x509_cert::ext::{Extension, Extensions};
use x509_cert::name::Name;
use x509_cert::time::Time;
use x509_cert::{TbsCertificate, Version};

/// For how long a list counts before a newer one is expected.
pub const CRL_LIFETIME: time::Duration = time::Duration::days(7);

/// One entry: which certificate, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    issuer: Name,
    serial: x509_cert::serial_number::SerialNumber,
    since: OffsetDateTime,
}

impl Revocation {
    /// Of a certificate in DER: an EK's, or a host's authority.
    ///
    /// # Errors
    /// [`EkChainError::Malformed`] and [`EkChainError::TooLarge`].
    pub fn of(der: &[u8], since: OffsetDateTime) -> Result<Self, EkChainError> {
        let certificate = certificate::read(der)?;
        Ok(Self {
            issuer: certificate.issuer,
            serial: certificate.serial_number,
            since,
        })
    }
}

/// The list of `revoked`, DER, of the authority with the certificate `root` (DER) and its `key`.
///
/// Its number is the second at which it is made, which never goes back as long as the clock does not.
///
/// # Errors
/// When `root` is not a certificate of `key`, and when it cannot be signed.
pub fn make_crl(
    root: &[u8],
    key: &impl SigningKey,
    revoked: &[Revocation],
    now: OffsetDateTime,
) -> Result<Vec<u8>, EkIssueError> {
    let unreadable = |_| EkIssueError::Issuer(rcgen::Error::CouldNotParseCertificate);
    let root = Certificate::from_der(root).map_err(unreadable)?;
    let of_root = &root.tbs_certificate;
    let certified = of_root.subject_public_key_info.to_der();
    if certified.map_err(EkIssueError::Attribute)? != key.subject_public_key_info() {
        return Err(EkIssueError::IssuerKey);
    }
    let list = list(of_root, revoked, now).map_err(EkIssueError::Attribute)?;
    let signed = list.to_der().map_err(EkIssueError::Attribute)?;
    let signature = key.sign(&signed);
    let signature = signature.map_err(|source| EkIssueError::Certificate {
        what: "list of revoked EK",
        source,
    })?;
    let signature = BitString::from_bytes(&signature).map_err(EkIssueError::Attribute)?;
    let whole = CertificateList {
        // It signed itself: the algorithm is the key's.
        signature_algorithm: root.signature_algorithm.clone(),
        tbs_cert_list: list,
        signature,
    };
    whole.to_der().map_err(EkIssueError::Attribute)
}

fn list(
    root: &TbsCertificate,
    revoked: &[Revocation],
    now: OffsetDateTime,
) -> der::Result<TbsCertList> {
    let scope = IssuingDistributionPoint {
        distribution_point: None,
        only_contains_user_certs: false,
        only_contains_ca_certs: false,
        only_some_reasons: None,
        indirect_crl: true,
        only_contains_attribute_certs: false,
    };
    let number = u64::try_from(now.unix_timestamp()).unwrap_or(0);
    let number = CrlNumber(Uint::new(&number.to_be_bytes())?);
    let mut extensions = vec![
        // x509-cert 0.2 has another extension's number for the type.
        extension(ID_CE_ISSUING_DISTRIBUTION_POINT, true, &scope)?,
        extension(CrlNumber::OID, false, &number)?,
    ];
    if let Ok(Some((_, key))) = root.get::<SubjectKeyIdentifier>() {
        let signer = AuthorityKeyIdentifier {
            key_identifier: Some(key.0),
            ..AuthorityKeyIdentifier::default()
        };
        extensions.push(extension(AuthorityKeyIdentifier::OID, false, &signer)?);
    }
    let entries: der::Result<Vec<_>> = revoked.iter().map(entry).collect();
    Ok(TbsCertList {
        version: Version::V2,
        signature: root.signature.clone(),
        issuer: root.subject.clone(),
        this_update: moment(now)?,
        next_update: Some(moment(now + CRL_LIFETIME)?),
        revoked_certificates: Some(entries?).filter(|entries| !entries.is_empty()),
        crl_extensions: Some(extensions),
    })
}

fn entry(revoked: &Revocation) -> der::Result<RevokedCert> {
    let issuer: GeneralNames = vec![GeneralName::DirectoryName(revoked.issuer.clone())];
    let extensions: Extensions = vec![extension(ID_CE_CERTIFICATE_ISSUER, true, &issuer)?];
    Ok(RevokedCert {
        serial_number: revoked.serial.clone(),
        revocation_date: moment(revoked.since)?,
        crl_entry_extensions: Some(extensions),
    })
}

fn extension(
    extn_id: const_oid::ObjectIdentifier,
    critical: bool,
    value: &impl Encode,
) -> der::Result<Extension> {
    Ok(Extension {
        extn_id,
        critical,
        extn_value: OctetString::new(value.to_der()?)?,
    })
}

/// Where certificates are revoked: in the list of `above`, who issued their authority's own certificate, at that address
/// if it is published.
pub(super) fn listed_by_issuer_of(above: &Name, address: Option<&str>) -> der::Result<Vec<u8>> {
    let by: GeneralNames = vec![GeneralName::DirectoryName(above.clone())];
    let place = address.map(|address| {
        let place = GeneralName::UniformResourceIdentifier(Ia5String::new(address)?);
        Ok::<_, der::Error>(DistributionPointName::FullName(vec![place]))
    });
    CrlDistributionPoints(vec![DistributionPoint {
        distribution_point: place.transpose()?,
        reasons: None,
        crl_issuer: Some(by),
    }])
    .to_der()
}

/// RFC 5280 section 5.1.2.4: UTCTime up to the year 2049.
fn moment(at: OffsetDateTime) -> der::Result<Time> {
    let seconds = u64::try_from(at.unix_timestamp()).unwrap_or(0);
    let since = Duration::from_secs(seconds);
    match UtcTime::from_unix_duration(since) {
        Ok(short) => Ok(Time::UtcTime(short)),
        Err(_) => Ok(Time::GeneralTime(GeneralizedTime::from_unix_duration(
            since,
        )?)),
    }
}
