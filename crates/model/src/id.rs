//! Identifiers: opaque newtypes that cannot be mixed up.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// A VM's machine uuid; also libvirt's domain uuid and the uuid of its ephemeral secret.
    VmId
);
uuid_id!(
    /// A durable job.
    JobId
);
uuid_id!(
    /// One TPM key; a roll makes a new one, a re-wrap keeps it.
    KeyId
);

/// A guardian: SHA-256 over the pair of its certificates, 64 lower-case hex digits.
///
/// Never the subject: a reinstalled host makes a new pair with the same subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
pub struct GuardianId(String);

/// Why a text is not a guardian id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a guardian id: expected 64 hex digits")]
pub struct GuardianIdError;

impl GuardianId {
    /// From the SHA-256 digest of the pair (32 bytes).
    pub fn from_digest(digest: [u8; 32]) -> Self {
        Self(hex::encode(digest))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as tables show it.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl TryFrom<String> for GuardianId {
    type Error = GuardianIdError;
    fn try_from(text: String) -> Result<Self, GuardianIdError> {
        let lower = text.to_ascii_lowercase();
        if lower.len() == 64 && lower.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(lower))
        } else {
            Err(GuardianIdError)
        }
    }
}

impl From<GuardianId> for String {
    fn from(id: GuardianId) -> String {
        id.0
    }
}

impl FromStr for GuardianId {
    type Err = GuardianIdError;
    fn from_str(text: &str) -> Result<Self, GuardianIdError> {
        Self::try_from(text.to_owned())
    }
}

impl fmt::Display for GuardianId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
