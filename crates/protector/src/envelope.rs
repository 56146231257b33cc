//! The encrypted layer of a key protector: CMS AuthEnvelopedData (RFC 5083) with one KeyTransRecipientInfo per guardian.
//!
//! This module only encodes and decodes. It has no key and cannot decrypt; the callers wrap and unwrap.

use crate::algorithm::{self, GCM_NONCE, GCM_TAG, UnsupportedAlgorithm};
use crate::certificate::GuardianCertificate;
use crate::der_limits::within_limits;
use cms::cert::IssuerAndSerialNumber;
use cms::content_info::{CmsVersion, ContentInfo};
use cms::enveloped_data::{
    EncryptedContentInfo, KeyTransRecipientInfo, OriginatorInfo, RecipientIdentifier,
    RecipientInfo, RecipientInfos,
};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5911::{ID_CT_AUTH_ENVELOPED_DATA, ID_DATA};
use der::asn1::{OctetString, SetOfVec};
use der::{Any, Decode, Encode, Sequence};
use std::collections::BTreeSet;
use x509_cert::attr::Attributes;

/// Most guardians one protector wraps for. Groups beyond [`MANY_RECIPIENTS`] are better served by a guardian service.
pub const MAX_RECIPIENTS: usize = 128;

/// From this number of guardians on, the user is told that one wrapping for each host no longer suits the group.
pub const MANY_RECIPIENTS: usize = 50;

/// Largest envelope taken, in bytes of DER.
pub const MAX_ENVELOPE: usize = 160 * 1024;

/// Largest encrypted record taken, in bytes.
pub const MAX_CIPHERTEXT: usize = 4096;

/// Why bytes are not the encrypted layer of a key protector.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("encrypted layer has {size} bytes, at most {MAX_ENVELOPE} are taken")]
    TooLarge { size: usize },
    #[error("encrypted layer is not CMS in DER")]
    Malformed(#[source] Option<der::Error>),
    #[error("encrypted layer is not canonical DER")]
    NotCanonical,
    #[error("encrypted layer has content type {found}, AuthEnvelopedData is expected")]
    ContentType { found: ObjectIdentifier },
    #[error("encrypted layer has an unknown version, or parts that no key protector has: {part}")]
    Unexpected { part: &'static str },
    #[error(transparent)]
    Algorithm(#[from] UnsupportedAlgorithm),
    #[error("key is wrapped for {count} recipients; one to {MAX_RECIPIENTS} are taken")]
    RecipientCount { count: usize },
    #[error("two wrappings name the same certificate")]
    RecipientTwice,
}

/// The content key, wrapped for one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    name: IssuerAndSerialNumber,
    encrypted_key: Vec<u8>,
}

impl WrappedKey {
    pub fn new(recipient: &GuardianCertificate, encrypted_key: Vec<u8>) -> Self {
        Self {
            name: recipient.issuer_and_serial(),
            encrypted_key,
        }
    }

    /// Whether this wrapping names `certificate` (by issuer and serial number, the way CMS does).
    pub fn is_for(&self, certificate: &GuardianCertificate) -> bool {
        self.name == certificate.issuer_and_serial()
    }

    /// Serial number of the certificate, lower-case hex.
    pub fn serial(&self) -> String {
        hex::encode(self.name.serial_number.as_bytes())
    }

    /// RSA-OAEP ciphertext.
    pub fn encrypted_key(&self) -> &[u8] {
        &self.encrypted_key
    }
}

/// The encrypted layer, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub wrapped: Vec<WrappedKey>,
    pub nonce: [u8; GCM_NONCE],
    pub ciphertext: Vec<u8>,
    pub tag: [u8; GCM_TAG],
}

impl Envelope {
    /// Parses a DER `ContentInfo` holding `AuthEnvelopedData`.
    pub fn from_der(der: &[u8]) -> Result<Self, EnvelopeError> {
        if der.len() > MAX_ENVELOPE {
            return Err(EnvelopeError::TooLarge { size: der.len() });
        }
        if !within_limits(der) {
            return Err(EnvelopeError::Malformed(None));
        }
        let malformed = |e| EnvelopeError::Malformed(Some(e));
        let info = ContentInfo::from_der(der).map_err(malformed)?;
        if info.content_type != ID_CT_AUTH_ENVELOPED_DATA {
            return Err(EnvelopeError::ContentType {
                found: info.content_type,
            });
        }
        let data: AuthEnvelopedData = info.content.decode_as().map_err(malformed)?;
        // Compared in the form it came in: writers differ in how they spell absent parameters.
        let again = encode(&data).map_err(malformed)?;
        if again == der {
            Self::from_cms(data)
        } else {
            Err(EnvelopeError::NotCanonical)
        }
    }

    /// The DER `ContentInfo` that `openssl cms -decrypt` takes.
    pub fn to_der(&self) -> Result<Vec<u8>, EnvelopeError> {
        self.to_cms()
            .and_then(|data| encode(&data))
            .map_err(|e| EnvelopeError::Malformed(Some(e)))
    }

    /// The wrapping for `certificate`, if there is one.
    pub fn wrapping_for(&self, certificate: &GuardianCertificate) -> Option<&WrappedKey> {
        self.wrapped.iter().find(|w| w.is_for(certificate))
    }

    fn from_cms(data: AuthEnvelopedData) -> Result<Self, EnvelopeError> {
        let unexpected = |part| EnvelopeError::Unexpected { part };
        if data.version != CmsVersion::V0 {
            return Err(unexpected("version"));
        }
        if data.originator_info.is_some()
            || data.auth_attrs.is_some()
            || data.unauth_attrs.is_some()
        {
            return Err(unexpected("originator or attributes"));
        }
        let content = data.content;
        if content.content_type != ID_DATA {
            return Err(unexpected("type of the record"));
        }
        let ciphertext = content
            .encrypted_content
            .ok_or(unexpected("detached record"))?
            .into_bytes();
        if ciphertext.len() > MAX_CIPHERTEXT {
            return Err(unexpected("record of that size"));
        }
        let count = data.recipients.0.len();
        if count == 0 || count > MAX_RECIPIENTS {
            return Err(EnvelopeError::RecipientCount { count });
        }
        let wrapped = data
            .recipients
            .0
            .into_vec()
            .into_iter()
            .map(wrapped_from_cms)
            .collect::<Result<Vec<_>, _>>()?;
        let names: BTreeSet<_> = wrapped
            .iter()
            .map(|w| (w.serial(), w.name.issuer.to_string()))
            .collect();
        if names.len() != wrapped.len() {
            return Err(EnvelopeError::RecipientTwice);
        }
        Ok(Self {
            wrapped,
            nonce: algorithm::expect_aes256_gcm(&content.content_enc_alg)?,
            ciphertext,
            tag: data
                .mac
                .as_bytes()
                .try_into()
                .map_err(|_| unexpected("length of the authentication tag"))?,
        })
    }

    fn to_cms(&self) -> Result<AuthEnvelopedData, der::Error> {
        let recipients = self
            .wrapped
            .iter()
            .map(wrapped_to_cms)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(AuthEnvelopedData {
            version: CmsVersion::V0,
            originator_info: None,
            recipients: RecipientInfos(SetOfVec::try_from(recipients)?),
            content: EncryptedContentInfo {
                content_type: ID_DATA,
                content_enc_alg: algorithm::aes256_gcm(&self.nonce),
                encrypted_content: Some(OctetString::new(self.ciphertext.as_slice())?),
            },
            auth_attrs: None,
            mac: OctetString::new(self.tag.as_slice())?,
            unauth_attrs: None,
        })
    }
}

/// `AuthEnvelopedData` of RFC 5083 section 2.1.
#[derive(Clone, Debug, Sequence)]
struct AuthEnvelopedData {
    version: CmsVersion,
    #[asn1(
        context_specific = "0",
        tag_mode = "IMPLICIT",
        constructed = "true",
        optional = "true"
    )]
    originator_info: Option<OriginatorInfo>,
    recipients: RecipientInfos,
    content: EncryptedContentInfo,
    #[asn1(
        context_specific = "1",
        tag_mode = "IMPLICIT",
        constructed = "true",
        optional = "true"
    )]
    auth_attrs: Option<Attributes>,
    mac: OctetString,
    #[asn1(
        context_specific = "2",
        tag_mode = "IMPLICIT",
        constructed = "true",
        optional = "true"
    )]
    unauth_attrs: Option<Attributes>,
}

fn encode(data: &AuthEnvelopedData) -> der::Result<Vec<u8>> {
    ContentInfo {
        content_type: ID_CT_AUTH_ENVELOPED_DATA,
        content: Any::encode_from(data)?,
    }
    .to_der()
}

fn wrapped_from_cms(info: RecipientInfo) -> Result<WrappedKey, EnvelopeError> {
    let RecipientInfo::Ktri(info) = info else {
        return Err(EnvelopeError::Unexpected {
            part: "recipient of another kind than key transport",
        });
    };
    let RecipientIdentifier::IssuerAndSerialNumber(name) = info.rid else {
        return Err(EnvelopeError::Unexpected {
            part: "recipient named by key identifier",
        });
    };
    if info.version != CmsVersion::V0 {
        return Err(EnvelopeError::Unexpected {
            part: "version of a recipient",
        });
    }
    algorithm::expect_oaep_sha256(&info.key_enc_alg)?;
    Ok(WrappedKey {
        name,
        encrypted_key: info.enc_key.into_bytes(),
    })
}

fn wrapped_to_cms(wrapped: &WrappedKey) -> Result<RecipientInfo, der::Error> {
    Ok(RecipientInfo::Ktri(KeyTransRecipientInfo {
        version: CmsVersion::V0,
        rid: RecipientIdentifier::IssuerAndSerialNumber(wrapped.name.clone()),
        key_enc_alg: algorithm::oaep_sha256(),
        enc_key: OctetString::new(wrapped.encrypted_key.as_slice())?,
    }))
}
