//! Endorsements: statements, signed by the fleet's authority, that a guardian belongs to a host of a group.
//!
//! An agent wraps a TPM key only for guardians with an endorsement that verifies under the authority it pinned at join.
//! Text form: JSON `{"statement": base64 of JSON, "signature": base64}`; ECDSA P-256 with SHA-256, ASN.1 signature, over
//! [`CONTEXT`] followed by the statement's bytes. Signing takes a closure: this crate holds no key.

use crate::guardian::Guardian;
use crate::key_protector::SigningFailed;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use const_oid::db::rfc5912::{ID_EC_PUBLIC_KEY, SECP_256_R_1};
use der::{Decode, asn1::ObjectIdentifier};
use fleetward_model::{GroupName, GuardianId, HostName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use x509_cert::Certificate;

/// Prefix of every signed statement, so that no other signature of the authority can be used as an endorsement.
pub const CONTEXT: &[u8] = b"fleetward guardian endorsement v1\0";

/// Largest accepted endorsement text, in bytes.
pub const MAX_ENDORSEMENT: usize = 8 * 1024;

/// Version of the statement.
pub const STATEMENT_VERSION: u32 = 1;

/// Why a text is not an endorsement by the authority.
#[derive(Debug, thiserror::Error)]
pub enum EndorsementError {
    #[error("endorsement has {size} bytes, at most {limit} are taken")]
    TooLarge { size: usize, limit: usize },
    #[error("endorsement is not the expected JSON")]
    Malformed(#[source] serde_json::Error),
    #[error("endorsement is not base64 where it should be")]
    NotBase64(#[source] base64::DecodeError),
    #[error("endorsement was not signed by this fleet's authority")]
    Signature,
    #[error("endorsement has version {found}, this program reads version {STATEMENT_VERSION}")]
    Version { found: u32 },
    #[error("the authority's certificate holds no ECDSA P-256 key")]
    Authority,
    #[error("the authority did not sign")]
    Signing(#[source] SigningFailed),
}

/// The signed statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndorsementStatement {
    pub version: u32,
    pub guardian: GuardianId,
    /// SHA-256 of the signing certificate, hex.
    pub signing_sha256: String,
    /// SHA-256 of the encryption certificate, hex.
    pub encryption_sha256: String,
    pub host: HostName,
    pub group: GroupName,
    #[serde(with = "time::serde::rfc3339")]
    pub issued: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

impl EndorsementStatement {
    pub fn new(
        guardian: &Guardian,
        host: HostName,
        group: GroupName,
        issued: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Self {
        Self {
            version: STATEMENT_VERSION,
            guardian: guardian.id().clone(),
            signing_sha256: hex::encode(guardian.signing().sha256()),
            encryption_sha256: hex::encode(guardian.encryption().sha256()),
            host,
            group,
            issued,
            not_after,
        }
    }

    /// Whether the statement names exactly this guardian's certificates.
    pub fn is_about(&self, guardian: &Guardian) -> bool {
        self.guardian == *guardian.id()
            && self.signing_sha256 == hex::encode(guardian.signing().sha256())
            && self.encryption_sha256 == hex::encode(guardian.encryption().sha256())
    }
}

/// A verified endorsement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endorsement {
    statement: EndorsementStatement,
    text: String,
}

/// Base64 fields on the wire.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    statement: String,
    signature: String,
}

impl Endorsement {
    /// Signs a statement. `sign` makes an ASN.1 ECDSA P-256 SHA-256 signature over the bytes it is given.
    pub fn sign(
        statement: EndorsementStatement,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, SigningFailed>,
    ) -> Result<Self, EndorsementError> {
        let bytes = serde_json::to_vec(&statement).map_err(EndorsementError::Malformed)?;
        Ok(Self {
            text: seal(CONTEXT, &bytes, sign)?,
            statement,
        })
    }

    /// Parses a text and verifies it against the authority. The statement is decoded only after its signature is
    /// verified.
    pub fn verify(text: &str, authority: &AuthorityKey) -> Result<Self, EndorsementError> {
        let bytes = open(CONTEXT, text, MAX_ENDORSEMENT, authority)?;
        Ok(Self {
            statement: serde_json::from_slice(&bytes).map_err(EndorsementError::Malformed)?,
            text: text.to_owned(),
        })
    }

    pub fn statement(&self) -> &EndorsementStatement {
        &self.statement
    }

    /// The text to send and store.
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[derive(Deserialize)]
struct StatementVersion {
    version: u32,
}

/// The fleet authority's public key: what an agent pins at join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityKey {
    /// Uncompressed point, 65 bytes.
    point: Vec<u8>,
}

impl AuthorityKey {
    /// From the authority's CA certificate in DER.
    pub fn from_certificate(der: &[u8]) -> Result<Self, EndorsementError> {
        let certificate = Certificate::from_der(der).map_err(|_| EndorsementError::Authority)?;
        let info = certificate.tbs_certificate.subject_public_key_info;
        let curve = info
            .algorithm
            .parameters
            .as_ref()
            .and_then(|p| p.decode_as::<ObjectIdentifier>().ok());
        match info.subject_public_key.as_bytes() {
            Some(point)
                if info.algorithm.oid == ID_EC_PUBLIC_KEY && curve == Some(SECP_256_R_1) =>
            {
                Ok(Self {
                    point: point.to_vec(),
                })
            }
            _ => Err(EndorsementError::Authority),
        }
    }
}

/// Signs a statement of the authority and puts both into one text.
pub(crate) fn seal(
    context: &[u8],
    statement: &[u8],
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, SigningFailed>,
) -> Result<String, EndorsementError> {
    let signature = sign(&[context, statement].concat()).map_err(EndorsementError::Signing)?;
    let wire = Wire {
        statement: STANDARD.encode(statement),
        signature: STANDARD.encode(signature),
    };
    serde_json::to_string(&wire).map_err(EndorsementError::Malformed)
}

/// The bytes of a statement that the authority signed; its version is one that this program reads.
pub(crate) fn open(
    context: &[u8],
    text: &str,
    limit: usize,
    authority: &AuthorityKey,
) -> Result<Vec<u8>, EndorsementError> {
    if text.len() > limit {
        let size = text.len();
        return Err(EndorsementError::TooLarge { size, limit });
    }
    let wire: Wire = serde_json::from_str(text).map_err(EndorsementError::Malformed)?;
    let bytes = STANDARD
        .decode(wire.statement)
        .map_err(EndorsementError::NotBase64)?;
    let signature = STANDARD
        .decode(wire.signature)
        .map_err(EndorsementError::NotBase64)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &authority.point)
        .verify(&[context, bytes.as_slice()].concat(), &signature)
        .map_err(|_| EndorsementError::Signature)?;
    let found: StatementVersion =
        serde_json::from_slice(&bytes).map_err(EndorsementError::Malformed)?;
    match found.version {
        STATEMENT_VERSION => Ok(bytes),
        found => Err(EndorsementError::Version { found }),
    }
}
