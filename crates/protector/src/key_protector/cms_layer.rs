//! The signed layer of a key protector: CMS SignedData (RFC 5652 section 5) with exactly one signer, the owner.
//!
//! Reads and writes one shape only. Certificates: the owner's two. Signed attributes: content type, message digest,
//! signing time, content hints. No unsigned attributes, no revocation lists, nothing detached.

use super::{KeyProtectorError, MAX_PROTECTOR, SigningFailed};
use crate::algorithm;
use crate::der_limits::within_limits;
use crate::guardian::Guardian;
use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use cms::cert::{CertificateChoices, IssuerAndSerialNumber};
use cms::content_info::{CmsVersion, ContentInfo};
use cms::signed_data::{
    CertificateSet, EncapsulatedContentInfo, SignedData, SignerIdentifier, SignerInfo, SignerInfos,
};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5911::{
    ID_CONTENT_TYPE, ID_CT_AUTH_ENVELOPED_DATA, ID_DATA, ID_MESSAGE_DIGEST, ID_SIGNED_DATA,
    ID_SIGNING_TIME,
};
use der::asn1::{GeneralizedTime, OctetString, OctetStringRef, SetOfVec, UtcTime};
use der::{Any, Decode, Encode, Sequence};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_cert::attr::{Attribute, Attributes};
use x509_cert::time::Time;

/// `id-aa-contentHint` of RFC 2634.
const ID_CONTENT_HINTS: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.4");

/// What the signed layer carries, its signature checked.
pub(super) struct Signed {
    pub(super) owner: Guardian,
    pub(super) signed: OffsetDateTime,
    pub(super) description: String,
    pub(super) content: Vec<u8>,
}

/// `ContentHints` of RFC 2634 section 2.9.
#[derive(Sequence)]
struct ContentHints {
    #[asn1(optional = "true")]
    description: Option<String>,
    content_type: ObjectIdentifier,
}

pub(super) fn verify(der: &[u8]) -> Result<Signed, KeyProtectorError> {
    debug_assert!(der.len() <= MAX_PROTECTOR);
    if !within_limits(der) {
        return Err(KeyProtectorError::Malformed(None));
    }
    let data = decode(der)?;
    let content = content_of(&data)?;
    let signer = signer_of(&data)?;
    let owner = owner_of(&data, signer)?;
    let attributes = signer
        .signed_attrs
        .as_ref()
        .ok_or(KeyProtectorError::Unexpected {
            part: "signature without attributes",
        })?;
    verify_signature(signer, attributes, &owner, &content)?;
    only_known(attributes)?;
    Ok(Signed {
        signed: signing_time(attributes)?,
        description: description(attributes)?,
        owner,
        content,
    })
}

pub(super) fn sign(
    content: &[u8],
    description: String,
    owner: &Guardian,
    signed: OffsetDateTime,
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, SigningFailed>,
) -> Result<Vec<u8>, KeyProtectorError> {
    let attributes = attributes(content, description, signed).map_err(malformed)?;
    let signature =
        sign(&attributes.to_der().map_err(malformed)?).map_err(KeyProtectorError::Signing)?;
    encode(content, attributes, signature, owner).map_err(malformed)
}

fn decode(der: &[u8]) -> Result<SignedData, KeyProtectorError> {
    let info = ContentInfo::from_der(der).map_err(malformed)?;
    if info.content_type != ID_SIGNED_DATA {
        return Err(KeyProtectorError::ContentType {
            found: info.content_type,
        });
    }
    let data: SignedData = info.content.decode_as().map_err(malformed)?;
    // The signature covers a re-encoding; only bytes that are their own re-encoding mean one thing.
    let again = Any::encode_from(&data)
        .and_then(|content| {
            ContentInfo {
                content_type: ID_SIGNED_DATA,
                content,
            }
            .to_der()
        })
        .map_err(malformed)?;
    if again == der {
        Ok(data)
    } else {
        Err(KeyProtectorError::NotCanonical)
    }
}

fn content_of(data: &SignedData) -> Result<Vec<u8>, KeyProtectorError> {
    let unexpected = |part| KeyProtectorError::Unexpected { part };
    if data.version != CmsVersion::V1 {
        return Err(unexpected("version"));
    }
    if data.crls.is_some() {
        return Err(unexpected("revocation lists"));
    }
    let [digest] = data.digest_algorithms.as_slice() else {
        return Err(unexpected("several digest algorithms"));
    };
    algorithm::expect_sha256("digest", digest)?;
    if data.encap_content_info.econtent_type != ID_DATA {
        return Err(unexpected("type of the content"));
    }
    let content = data
        .encap_content_info
        .econtent
        .as_ref()
        .ok_or(unexpected("detached content"))?;
    let octets: OctetStringRef<'_> = content.decode_as().map_err(malformed)?;
    Ok(octets.as_bytes().to_vec())
}

fn signer_of(data: &SignedData) -> Result<&SignerInfo, KeyProtectorError> {
    let [signer] = data.signer_infos.0.as_slice() else {
        return Err(KeyProtectorError::Unexpected {
            part: "none or several signers",
        });
    };
    if signer.version != CmsVersion::V1 || signer.unsigned_attrs.is_some() {
        return Err(KeyProtectorError::Unexpected {
            part: "version of the signer, or unsigned attributes",
        });
    }
    algorithm::expect_sha256("digest of the signer", &signer.digest_alg)?;
    algorithm::expect_pss_sha256(&signer.signature_algorithm)?;
    Ok(signer)
}

/// The two certificates: the one that the signer names signs, the other encrypts.
fn owner_of(data: &SignedData, signer: &SignerInfo) -> Result<Guardian, KeyProtectorError> {
    let certificates = data
        .certificates
        .as_ref()
        .map_or(&[][..], |set| set.0.as_slice());
    let [
        CertificateChoices::Certificate(one),
        CertificateChoices::Certificate(two),
    ] = certificates
    else {
        return Err(KeyProtectorError::Unexpected {
            part: "other certificates than the owner's two",
        });
    };
    let SignerIdentifier::IssuerAndSerialNumber(name) = &signer.sid else {
        return Err(KeyProtectorError::Unexpected {
            part: "signer named by key identifier",
        });
    };
    let named = |certificate: &x509_cert::Certificate| {
        IssuerAndSerialNumber {
            issuer: certificate.tbs_certificate.issuer.clone(),
            serial_number: certificate.tbs_certificate.serial_number.clone(),
        } == *name
    };
    let (signing, encryption) = match (named(one), named(two)) {
        (true, false) => (one, two),
        (false, true) => (two, one),
        (true, true) | (false, false) => {
            return Err(KeyProtectorError::Unexpected {
                part: "signer without its one certificate",
            });
        }
    };
    Guardian::from_der(
        &signing.to_der().map_err(malformed)?,
        &encryption.to_der().map_err(malformed)?,
    )
    .map_err(KeyProtectorError::Owner)
}

fn verify_signature(
    signer: &SignerInfo,
    attributes: &Attributes,
    owner: &Guardian,
    content: &[u8],
) -> Result<(), KeyProtectorError> {
    let message = attributes.to_der().map_err(malformed)?;
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, owner.signing().rsa_public_key())
        .verify(&message, signer.signature.as_bytes())
        .map_err(|_| KeyProtectorError::Signature)?;
    let content_type: ObjectIdentifier = value_of(attributes, ID_CONTENT_TYPE)?
        .decode_as()
        .map_err(malformed)?;
    let digest: OctetStringRef<'_> = value_of(attributes, ID_MESSAGE_DIGEST)?
        .decode_as()
        .map_err(malformed)?;
    if content_type == ID_DATA && digest.as_bytes() == Sha256::digest(content).as_slice() {
        Ok(())
    } else {
        Err(KeyProtectorError::Signature)
    }
}

fn only_known(attributes: &Attributes) -> Result<(), KeyProtectorError> {
    let known = [
        ID_CONTENT_TYPE,
        ID_MESSAGE_DIGEST,
        ID_SIGNING_TIME,
        ID_CONTENT_HINTS,
    ];
    if attributes.iter().all(|a| known.contains(&a.oid)) {
        Ok(())
    } else {
        Err(KeyProtectorError::Unexpected {
            part: "signed attribute",
        })
    }
}

fn signing_time(attributes: &Attributes) -> Result<OffsetDateTime, KeyProtectorError> {
    let time = Time::from_der(
        &value_of(attributes, ID_SIGNING_TIME)?
            .to_der()
            .map_err(malformed)?,
    )
    .map_err(malformed)?;
    i64::try_from(time.to_unix_duration().as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(KeyProtectorError::Unexpected {
            part: "signing time",
        })
}

fn description(attributes: &Attributes) -> Result<String, KeyProtectorError> {
    if !attributes.iter().any(|a| a.oid == ID_CONTENT_HINTS) {
        return Err(KeyProtectorError::BindingMissing);
    }
    let hints: ContentHints = value_of(attributes, ID_CONTENT_HINTS)?
        .decode_as()
        .map_err(malformed)?;
    if hints.content_type != ID_CT_AUTH_ENVELOPED_DATA {
        return Err(KeyProtectorError::Unexpected {
            part: "content hint",
        });
    }
    hints.description.ok_or(KeyProtectorError::BindingMissing)
}

/// The one value of the one attribute `oid`.
fn value_of(attributes: &Attributes, oid: ObjectIdentifier) -> Result<&Any, KeyProtectorError> {
    let unexpected = || KeyProtectorError::Unexpected {
        part: "missing or repeated signed attribute",
    };
    let mut found = attributes.iter().filter(|a| a.oid == oid);
    let (Some(attribute), None) = (found.next(), found.next()) else {
        return Err(unexpected());
    };
    match attribute.values.as_slice() {
        [value] => Ok(value),
        _ => Err(unexpected()),
    }
}

fn attributes(
    content: &[u8],
    description: String,
    signed: OffsetDateTime,
) -> Result<Attributes, der::Error> {
    let one = |oid, value: Any| {
        Ok::<_, der::Error>(Attribute {
            oid,
            values: SetOfVec::try_from(vec![value])?,
        })
    };
    let hints = ContentHints {
        description: Some(description),
        content_type: ID_CT_AUTH_ENVELOPED_DATA,
    };
    SetOfVec::try_from(vec![
        one(ID_CONTENT_TYPE, Any::from(ID_DATA))?,
        one(
            ID_MESSAGE_DIGEST,
            Any::encode_from(&OctetString::new(Sha256::digest(content).as_slice())?)?,
        )?,
        one(ID_SIGNING_TIME, Any::encode_from(&cms_time(signed)?)?)?,
        one(ID_CONTENT_HINTS, Any::encode_from(&hints)?)?,
    ])
}

fn encode(
    content: &[u8],
    attributes: Attributes,
    signature: Vec<u8>,
    owner: &Guardian,
) -> Result<Vec<u8>, der::Error> {
    let signer = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(owner.signing().issuer_and_serial()),
        digest_alg: algorithm::sha256(),
        signed_attrs: Some(attributes),
        signature_algorithm: algorithm::pss_sha256(),
        signature: OctetString::new(signature)?,
        unsigned_attrs: None,
    };
    let certificates = [owner.signing(), owner.encryption()]
        .map(|c| CertificateChoices::Certificate(c.parsed().clone()));
    let data = SignedData {
        version: CmsVersion::V1,
        digest_algorithms: SetOfVec::try_from(vec![algorithm::sha256()])?,
        encap_content_info: EncapsulatedContentInfo {
            econtent_type: ID_DATA,
            econtent: Some(Any::encode_from(&OctetString::new(content)?)?),
        },
        certificates: Some(CertificateSet(SetOfVec::try_from(certificates.to_vec())?)),
        crls: None,
        signer_infos: SignerInfos(SetOfVec::try_from(vec![signer])?),
    };
    ContentInfo {
        content_type: ID_SIGNED_DATA,
        content: Any::encode_from(&data)?,
    }
    .to_der()
}

/// UTCTime through 2049 and GeneralizedTime from then on, as RFC 5652 section 11.3 asks.
fn cms_time(moment: OffsetDateTime) -> Result<Time, der::Error> {
    let seconds = u64::try_from(moment.unix_timestamp()).map_err(|_| der::ErrorKind::DateTime)?;
    let since_epoch = std::time::Duration::from_secs(seconds);
    match UtcTime::from_unix_duration(since_epoch) {
        Ok(time) => Ok(Time::UtcTime(time)),
        Err(_) => Ok(Time::GeneralTime(GeneralizedTime::from_unix_duration(
            since_epoch,
        )?)),
    }
}

fn malformed(error: der::Error) -> KeyProtectorError {
    KeyProtectorError::Malformed(Some(error))
}
