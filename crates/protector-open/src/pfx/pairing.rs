//! Which certificate is a key's, and what it is for.
//!
//! By the public key, never by the `localKeyId` that programs write beside keys and certificates: some write another's. It
//! decides only between several certificates of one key. The other certificates of a file are none of our business.

use super::read::KeyWithCertificate;
use super::refusal::PfxReadError;
use crate::rsa_key::RsaPrivateKey;
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::ID_CE_KEY_USAGE;
use const_oid::db::rfc5912::{ID_EC_PUBLIC_KEY, ID_RSASSA_PSS, RSA_ENCRYPTION};
use der::asn1::{BitStringRef, OctetStringRef, UintRef};
use der::{Decode, Encode, Reader, Sequence, SliceReader};
use fleetward_model::guardian::CertificateRole;
use fleetward_protector::GuardianCertificate;
use fleetward_protector::certificate::{CertificateError, RSA_BITS};
use p12_keystore::{CertificateBag, Pkcs12Archive, PrivateKeyBag};
use spki::AlgorithmIdentifierRef;
use x509_cert::Certificate;
use zeroize::Zeroizing;

/// Every private key of the file with its certificate.
pub(super) fn pair_up(archive: &Pkcs12Archive) -> Result<Vec<KeyWithCertificate>, PfxReadError> {
    if archive.keys.is_empty() {
        return Err(PfxReadError::NoKey);
    }
    if archive.certs.is_empty() {
        return Err(PfxReadError::NoCertificate);
    }
    archive
        .keys
        .iter()
        .map(|key| with_certificate(key, &archive.certs))
        .collect()
}

fn with_certificate(
    bag: &PrivateKeyBag,
    certificates: &[CertificateBag],
) -> Result<KeyWithCertificate, PfxReadError> {
    let certificate = certificate_of(bag, &public_key(bag.key.as_der())?, certificates)?;
    // What is wrong with a key's certificate is said as that, before the key itself is refused without a reason.
    let parsed = GuardianCertificate::from_der(CertificateRole::Signing, certificate)
        .map_err(certificate_error)?;
    let pkcs8 = Zeroizing::new(bag.key.as_der().to_vec());
    let key = RsaPrivateKey::from_pkcs8(pkcs8).map_err(|_| PfxReadError::Key)?;
    if !key.belongs_to(&parsed) {
        return Err(PfxReadError::Key);
    }
    Ok(KeyWithCertificate::new(
        certificate.to_vec(),
        parsed.subject(),
        role_of(certificate),
        key,
    ))
}

/// The certificate for `public`, a PKCS #1 public key.
fn certificate_of<'a>(
    key: &PrivateKeyBag,
    public: &[u8],
    certificates: &'a [CertificateBag],
) -> Result<&'a [u8], PfxReadError> {
    let marked = |bag: &CertificateBag| {
        let ids = bag.local_key_id.as_ref().zip(key.local_key_id.as_ref());
        ids.is_some_and(|(of_bag, of_key)| of_bag.as_slice() == of_key.as_ref())
    };
    let mut own: Vec<&'a [u8]> = Vec::new();
    let mut own_and_marked = Vec::new();
    for bag in certificates {
        let der = bag.cert.as_der();
        match Certificate::from_der(der) {
            Ok(parsed) => {
                let spki = parsed.tbs_certificate.subject_public_key_info;
                if spki.subject_public_key.raw_bytes() == public && !own.contains(&der) {
                    own.push(der);
                    if marked(bag) {
                        own_and_marked.push(der);
                    }
                }
            }
            // Whose key it holds cannot be read; what is said of it is why.
            Err(error) if certificates.len() == 1 || marked(bag) => {
                return Err(PfxReadError::Form(CertificateError::Malformed(Some(error))));
            }
            Err(_) => {}
        }
    }
    match (own.as_slice(), own_and_marked.as_slice()) {
        ([], _) => Err(PfxReadError::NoCertificate),
        ([only], _) | (_, [only]) => Ok(only),
        (several, _) => Err(PfxReadError::SeveralCertificates {
            count: several.len(),
        }),
    }
}

fn certificate_error(error: CertificateError) -> PfxReadError {
    match error {
        CertificateError::KeySize { bits } if bits < *RSA_BITS.start() => {
            PfxReadError::WeakKey { bits }
        }
        CertificateError::KeySize { bits } => PfxReadError::LargeKey { bits },
        // The MAC has shown that the file is as it was made.
        CertificateError::NotRsa
        | CertificateError::NotCanonical
        | CertificateError::TooLarge { .. }
        | CertificateError::Malformed(_) => PfxReadError::Form(error),
    }
}

/// The PKCS #1 public key of a PKCS #8 key for RSA (RFC 5958 section 2, RFC 8017 appendix A.1). One that a guardian may not
/// have is named.
fn public_key(pkcs8: &[u8]) -> Result<Vec<u8>, PfxReadError> {
    #[derive(Sequence)]
    struct Public<'a> {
        modulus: UintRef<'a>,
        exponent: UintRef<'a>,
    }
    fn outer(pkcs8: &[u8]) -> der::Result<(ObjectIdentifier, &[u8])> {
        SliceReader::new(pkcs8)?.sequence(|inside| {
            let _version = u8::decode(inside)?;
            let algorithm = AlgorithmIdentifierRef::decode(inside)?;
            let key = OctetStringRef::decode(inside)?;
            let rest = inside.remaining_len();
            inside.read_slice(rest)?;
            Ok((algorithm.oid, key.as_bytes()))
        })
    }
    fn inner(key: &[u8]) -> der::Result<Vec<u8>> {
        SliceReader::new(key)?.sequence(|inside| {
            let _version = u8::decode(inside)?;
            let public = Public {
                modulus: UintRef::decode(inside)?,
                exponent: UintRef::decode(inside)?,
            };
            let rest = inside.remaining_len();
            inside.read_slice(rest)?;
            public.to_der()
        })
    }
    let (algorithm, key) = outer(pkcs8).map_err(|_| PfxReadError::Key)?;
    if algorithm != RSA_ENCRYPTION {
        let kind = kind_of(algorithm);
        return Err(PfxReadError::NotRsa { kind });
    }
    inner(key).map_err(|_| PfxReadError::Key)
}

/// What a key is that is none for RSA.
fn kind_of(algorithm: ObjectIdentifier) -> String {
    /// Ed25519 (RFC 8410) and ML-DSA with its three sizes (RFC 9881).
    const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
    const ML_DSA: [ObjectIdentifier; 3] = [
        ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.17"),
        ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.18"),
        ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.19"),
    ];
    match algorithm {
        ID_RSASSA_PSS => "an RSA key for PSS signatures alone".to_owned(),
        ID_EC_PUBLIC_KEY => "one for elliptic curves".to_owned(),
        ED25519 => "one for Ed25519".to_owned(),
        other if ML_DSA.contains(&other) => "one for ML-DSA".to_owned(),
        other => format!("one of algorithm {other}"),
    }
}

/// What a certificate is for: by its key usage (RFC 5280 section 4.2.1.3); where that says both or nothing, by its subject.
fn role_of(der: &[u8]) -> Option<CertificateRole> {
    let certificate = Certificate::from_der(der).ok()?;
    let usage = certificate
        .tbs_certificate
        .extensions
        .iter()
        .flatten()
        .find(|extension| extension.extn_id == ID_CE_KEY_USAGE)
        .and_then(|extension| BitStringRef::from_der(extension.extn_value.as_bytes()).ok())
        .and_then(|bits| bits.raw_bytes().first().copied())
        .unwrap_or(0);
    // Bits are numbered from the left: 0 digitalSignature, 2 keyEncipherment, 3 dataEncipherment.
    let (signs, encrypts) = (usage & 0x80 != 0, usage & 0x30 != 0);
    match (signs, encrypts) {
        (true, false) => Some(CertificateRole::Signing),
        (false, true) => Some(CertificateRole::Encryption),
        (true, true) | (false, false) => {
            let subject = certificate.tbs_certificate.subject.to_string();
            if subject.contains("Signing Certificate") {
                Some(CertificateRole::Signing)
            } else if subject.contains("Encryption Certificate") {
                Some(CertificateRole::Encryption)
            } else {
                None
            }
        }
    }
}
