//! Verifying an EK certificate up to the fleet's EK root.

use super::{EkPublicKey, TCG_KP_EK_CERTIFICATE};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::{ID_CE_EXT_KEY_USAGE, ID_CE_SUBJECT_ALT_NAME};
use der::{Decode, Encode};
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_cert::Certificate;
use x509_cert::ext::pkix::ExtendedKeyUsage;

/// Largest certificate of a chain taken, in bytes.
pub(super) const MAX_CERTIFICATE: usize = 16 * 1024;

/// Most authorities between EK certificate and root.
const MAX_INTERMEDIATES: usize = 4;

/// Why an EK certificate is not believed.
#[derive(Debug, thiserror::Error)]
pub enum EkChainError {
    #[error("an EK chain has too many or too large certificates")]
    TooLarge,
    #[error("the EK root certificate cannot be used")]
    Root(#[source] webpki::Error),
    #[error("the EK certificate cannot be read")]
    Malformed,
    #[error("the EK certificate was not issued under this fleet's EK root")]
    Chain(#[source] webpki::Error),
    #[error(
        "the certificate is not for an endorsement key: extended key usage 2.23.133.8.1 is missing"
    )]
    NotAnEk,
    #[error("the EK certificate does not name the TPM's maker")]
    NoMaker,
    #[error("the time is before 1970")]
    Clock,
}

/// An EK certificate that leads to the fleet's EK root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedEk {
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    pub public_key: EkPublicKey,
    /// Subject of the authority that issued it, RFC 4514 text.
    pub issuer: String,
}

/// Verifies `ek` over `intermediates` (in any order) to `root`, all DER, at time `now`.
pub fn verify_chain(
    ek: &[u8],
    intermediates: &[&[u8]],
    root: &[u8],
    now: OffsetDateTime,
) -> Result<VerifiedEk, EkChainError> {
    let sizes_fit = intermediates
        .iter()
        .chain([&ek, &root])
        .all(|der| der.len() <= MAX_CERTIFICATE);
    if !sizes_fit || intermediates.len() > MAX_INTERMEDIATES {
        return Err(EkChainError::TooLarge);
    }
    let seconds = u64::try_from(now.unix_timestamp()).map_err(|_| EkChainError::Clock)?;
    let root = CertificateDer::from(root);
    let anchors = [anchor_from_trusted_cert(&root).map_err(EkChainError::Root)?];
    let intermediates: Vec<CertificateDer<'_>> = intermediates
        .iter()
        .map(|der| CertificateDer::from(*der))
        .collect();
    let leaf_der = CertificateDer::from(ek);
    let leaf = EndEntityCert::try_from(&leaf_der).map_err(EkChainError::Chain)?;
    // The authorities carry no extended key usage; the leaf's own is demanded below.
    let usage = KeyUsage::required_if_present(&EK_USAGE_DER);
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &intermediates,
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)),
        usage,
        None,
        None,
    )
    .map_err(EkChainError::Chain)?;
    describe(ek)
}

/// Value bytes of the object identifier 2.23.133.8.1.
const EK_USAGE_DER: [u8; 5] = [0x67, 0x81, 0x05, 0x08, 0x01];

fn describe(ek: &[u8]) -> Result<VerifiedEk, EkChainError> {
    let certificate = Certificate::from_der(ek)
        .map_err(|_| EkChainError::Malformed)?
        .tbs_certificate;
    let extension = |oid: ObjectIdentifier| {
        certificate
            .extensions
            .iter()
            .flatten()
            .find(move |e| e.extn_id == oid)
            .map(|e| e.extn_value.as_bytes())
    };
    let usages = extension(ID_CE_EXT_KEY_USAGE)
        .and_then(|der| ExtendedKeyUsage::from_der(der).ok())
        .ok_or(EkChainError::NotAnEk)?;
    if !usages
        .0
        .iter()
        .any(|usage| usage.arcs().map(u64::from).eq(TCG_KP_EK_CERTIFICATE))
    {
        return Err(EkChainError::NotAnEk);
    }
    if extension(ID_CE_SUBJECT_ALT_NAME).is_none() {
        return Err(EkChainError::NoMaker);
    }
    let key = certificate
        .subject_public_key_info
        .to_der()
        .map_err(|_| EkChainError::Malformed)?;
    Ok(VerifiedEk {
        sha256: Sha256::digest(ek).into(),
        public_key: EkPublicKey::from_der(&key).map_err(|_| EkChainError::Malformed)?,
        issuer: certificate.issuer.to_string(),
    })
}
