//! The part of a key protector that can be read without a private key.
//!
//! Structure: CMS SignedData by the owner's signing key over an [`Envelope`]. The binding of the protector
//! ([`Binding`], revision, guardians) is in clear text in the signed attribute *content hints* (RFC 2634 section 2.9,
//! made to describe an encrypted inner layer), so the controller can read it but not change it. The encrypted record
//! repeats the binding; the agent compares the two when it opens the protector.
//!
//! A value of [`KeyProtector`] has a verified signature and a consistent structure; there is no unchecked state. The
//! caller decides whether to trust the *owner*: anybody can make a guardian.

mod cms_layer;

use crate::algorithm::UnsupportedAlgorithm;
use crate::envelope::{Envelope, EnvelopeError};
use crate::guardian::{Guardian, GuardianError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use const_oid::ObjectIdentifier;
use fleetward_model::{GuardianId, KeyId, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use time::OffsetDateTime;

/// Largest accepted key protector, in bytes of DER.
pub const MAX_PROTECTOR: usize = 256 * 1024;

/// `type` of the readable description and of the record inside.
pub const RECORD_TYPE: &str = "fleetward-key-protector";

/// Version of both.
pub const RECORD_VERSION: u32 = 1;

/// Why bytes are not a valid key protector.
#[derive(Debug, thiserror::Error)]
pub enum KeyProtectorError {
    #[error("key protector has {size} bytes, at most {MAX_PROTECTOR} are taken")]
    TooLarge { size: usize },
    #[error("key protector is not base64")]
    NotBase64(#[source] base64::DecodeError),
    #[error("key protector is not CMS SignedData in DER")]
    Malformed(#[source] Option<der::Error>),
    #[error("key protector is not canonical DER")]
    NotCanonical,
    #[error("key protector has content type {found}, SignedData is expected")]
    ContentType { found: ObjectIdentifier },
    #[error("key protector has an unknown version, or parts that no key protector has: {part}")]
    Unexpected { part: &'static str },
    #[error(transparent)]
    Algorithm(#[from] UnsupportedAlgorithm),
    #[error("the owner's certificates in the key protector cannot be used")]
    Owner(#[source] GuardianError),
    #[error("the owner's signature does not fit: the key protector was altered")]
    Signature,
    #[error("key protector does not say which VM and key it is for")]
    BindingMissing,
    #[error("what the key protector says about itself cannot be read")]
    BindingMalformed(#[source] serde_json::Error),
    #[error(
        "key protector is a {kind} of version {version}, this program reads {RECORD_TYPE} of version {RECORD_VERSION}"
    )]
    BindingVersion { kind: String, version: u32 },
    #[error("the guardians that the key protector lists are not those it is wrapped for")]
    RecipientsDiffer,
    #[error("the owner cannot open its own key protector: no wrapping for it")]
    OwnerNotRecipient,
    #[error("the encrypted layer cannot be read")]
    Envelope(#[from] EnvelopeError),
    #[error("the owner's key did not sign")]
    Signing(#[source] SigningFailed),
}

/// A signing closure failed. The reason stays with the owner of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the private key refused to sign")]
pub struct SigningFailed;

/// The binding of a key protector: in clear text outside, and repeated in the encrypted record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub vm_id: VmId,
    pub key_id: KeyId,
    /// When the TPM key was first sealed; whole seconds.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
}

/// A guardian that the key is wrapped for, as the owner lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipient {
    #[serde(rename = "id")]
    pub guardian: GuardianId,
    /// Serial number of the encryption certificate, lower-case hex.
    pub serial: String,
}

impl Recipient {
    pub fn of(guardian: &Guardian) -> Self {
        Self {
            guardian: guardian.id().clone(),
            serial: guardian.encryption().serial(),
        }
    }
}

/// The content of a key protector that is readable without opening it; its signature is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    pub binding: Binding,
    /// Counts re-wraps of this key for this VM, from 1: a lower one is an older protector.
    pub revision: u64,
    pub owner: Guardian,
    /// Every guardian that can open it, the owner included, sorted by id.
    pub recipients: Vec<Recipient>,
    /// When this revision was signed, by the owner's clock.
    pub signed: OffsetDateTime,
}

impl Inspection {
    /// Whether `guardian` can open it.
    pub fn is_granted(&self, guardian: &GuardianId) -> bool {
        self.recipients.iter().any(|r| r.guardian == *guardian)
    }

    /// The ids alone, for inventories.
    pub fn guardian_ids(&self) -> Vec<GuardianId> {
        self.recipients.iter().map(|r| r.guardian.clone()).collect()
    }
}

/// The content of a new or re-wrapped key protector; [`KeyProtector::assemble`] signs it.
#[derive(Debug)]
pub struct Draft<'a> {
    pub binding: Binding,
    pub revision: u64,
    pub owner: &'a Guardian,
    pub recipients: Vec<Recipient>,
    pub envelope: Envelope,
    pub signed: OffsetDateTime,
}

/// A key protector whose signature was verified.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyProtector {
    der: Vec<u8>,
    inspection: Inspection,
    envelope: Envelope,
}

impl KeyProtector {
    /// Parses DER and verifies the owner's signature and the structure's consistency.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyProtectorError> {
        if der.len() > MAX_PROTECTOR {
            return Err(KeyProtectorError::TooLarge { size: der.len() });
        }
        let signed = cms_layer::verify(der)?;
        let description = Description::parse(&signed.description)?;
        let envelope = Envelope::from_der(&signed.content)?;
        let recipients = description.matched_recipients(&envelope, &signed.owner)?;
        Ok(Self {
            der: der.to_vec(),
            inspection: Inspection {
                binding: description.binding(),
                revision: description.revision,
                owner: signed.owner,
                recipients,
                signed: signed.signed,
            },
            envelope,
        })
    }

    /// Parses the base64 text from a VM's metadata; ignores surrounding white space.
    pub fn from_base64(text: &str) -> Result<Self, KeyProtectorError> {
        if text.len() > MAX_PROTECTOR * 2 {
            return Err(KeyProtectorError::TooLarge { size: text.len() });
        }
        let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        Self::from_der(
            &STANDARD
                .decode(compact)
                .map_err(KeyProtectorError::NotBase64)?,
        )
    }

    /// Signs a draft with the owner's signing key: RSASSA-PSS, SHA-256, salt of 32 bytes.
    ///
    /// Reads the result again with [`KeyProtector::from_der`], so the returned protector is always readable.
    pub fn assemble(
        draft: Draft<'_>,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, SigningFailed>,
    ) -> Result<Self, KeyProtectorError> {
        let content = draft.envelope.to_der()?;
        let description = serde_json::to_string(&Description::new(&draft))
            .map_err(KeyProtectorError::BindingMalformed)?;
        let der = cms_layer::sign(&content, description, draft.owner, draft.signed, sign)?;
        Self::from_der(&der)
    }

    pub fn inspect(&self) -> &Inspection {
        &self.inspection
    }

    /// The encrypted layer.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub fn to_base64(&self) -> String {
        STANDARD.encode(&self.der)
    }
}

impl fmt::Debug for KeyProtector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyProtector")
            .field("binding", &self.inspection.binding)
            .field("revision", &self.inspection.revision)
            .field("owner", self.inspection.owner.id())
            .field("recipients", &self.inspection.recipients.len())
            .finish_non_exhaustive()
    }
}

/// The signed JSON in the content hints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    #[serde(rename = "type")]
    kind: String,
    version: u32,
    vm_id: VmId,
    key_id: KeyId,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    revision: u64,
    guardians: Vec<Recipient>,
}

/// Read first, so that a later version is reported as such and not as malformed.
#[derive(Deserialize)]
struct DescriptionVersion {
    #[serde(rename = "type")]
    kind: String,
    version: u32,
}

impl Description {
    fn new(draft: &Draft<'_>) -> Self {
        Self {
            kind: RECORD_TYPE.to_owned(),
            version: RECORD_VERSION,
            vm_id: draft.binding.vm_id,
            key_id: draft.binding.key_id,
            created: draft.binding.created,
            revision: draft.revision,
            guardians: draft.recipients.clone(),
        }
    }

    fn parse(text: &str) -> Result<Self, KeyProtectorError> {
        let found: DescriptionVersion =
            serde_json::from_str(text).map_err(KeyProtectorError::BindingMalformed)?;
        if found.kind != RECORD_TYPE || found.version != RECORD_VERSION {
            return Err(KeyProtectorError::BindingVersion {
                kind: found.kind,
                version: found.version,
            });
        }
        serde_json::from_str(text).map_err(KeyProtectorError::BindingMalformed)
    }

    fn binding(&self) -> Binding {
        Binding {
            vm_id: self.vm_id,
            key_id: self.key_id,
            created: self.created,
        }
    }

    /// The listed guardians, sorted, after a check that they match the wrappings one to one.
    fn matched_recipients(
        &self,
        envelope: &Envelope,
        owner: &Guardian,
    ) -> Result<Vec<Recipient>, KeyProtectorError> {
        let listed: BTreeSet<&Recipient> = self.guardians.iter().collect();
        let ids: BTreeSet<&GuardianId> = self.guardians.iter().map(|r| &r.guardian).collect();
        let mut listed_serials: Vec<String> =
            self.guardians.iter().map(|r| r.serial.clone()).collect();
        let mut wrapped_serials: Vec<String> =
            envelope.wrapped.iter().map(|w| w.serial()).collect();
        listed_serials.sort_unstable();
        wrapped_serials.sort_unstable();
        let one_each = ids.len() == self.guardians.len() && listed.len() == self.guardians.len();
        if !one_each || listed_serials != wrapped_serials {
            return Err(KeyProtectorError::RecipientsDiffer);
        }
        if !listed.contains(&Recipient::of(owner))
            || envelope.wrapping_for(owner.encryption()).is_none()
        {
            return Err(KeyProtectorError::OwnerNotRecipient);
        }
        Ok(listed.into_iter().cloned().collect())
    }
}
