//! Who may own a key protector: a statement, signed by the fleet's authority, of the guardians that it has endorsed.
//!
//! An endorsement ([`crate::endorsement`]) says whom a key may be wrapped for, holds for a day, and is about the present
//! guardian of a host. An owner may be the guardian of a host that has gone, or from before a rotation, and the VMs that it
//! signed for go on. So this statement has no end, names guardians by id alone (the id is a digest of both certificates),
//! and allows nothing but to have signed.
//!
//! Text form as of an endorsement: JSON `{"statement": base64 of JSON, "signature": base64}`; ECDSA P-256 with SHA-256,
//! ASN.1 signature, over [`CONTEXT`] followed by the statement's bytes.

use crate::endorsement::{self, AuthorityKey, EndorsementError};
use crate::key_protector::SigningFailed;
use fleetward_model::GuardianId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Prefix of the signed bytes.
pub const CONTEXT: &[u8] = b"fleetward key protector owners v1\0";

/// Largest accepted text, in bytes: some ten thousand guardians.
pub const MAX_OWNERS: usize = 1 << 20;

/// The guardians whose signature on a key protector counts in the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KnownOwners(BTreeSet<GuardianId>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    version: u32,
    guardians: BTreeSet<GuardianId>,
}

impl KnownOwners {
    pub fn new(guardians: impl IntoIterator<Item = GuardianId>) -> Self {
        Self(guardians.into_iter().collect())
    }

    pub fn contains(&self, guardian: &GuardianId) -> bool {
        self.0.contains(guardian)
    }

    /// The signed text. `sign` makes an ASN.1 ECDSA P-256 SHA-256 signature over the bytes it is given.
    ///
    /// # Errors
    /// [`EndorsementError::Signing`].
    pub fn sign(
        &self,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, SigningFailed>,
    ) -> Result<String, EndorsementError> {
        let statement = Statement {
            version: endorsement::STATEMENT_VERSION,
            guardians: self.0.clone(),
        };
        let bytes = serde_json::to_vec(&statement).map_err(EndorsementError::Malformed)?;
        endorsement::seal(CONTEXT, &bytes, sign)
    }

    /// Reads a text and verifies it against the authority.
    ///
    /// # Errors
    /// Why it is not the authority's statement.
    pub fn verify(text: &str, authority: &AuthorityKey) -> Result<Self, EndorsementError> {
        let bytes = endorsement::open(CONTEXT, text, MAX_OWNERS, authority)?;
        let statement: Statement =
            serde_json::from_slice(&bytes).map_err(EndorsementError::Malformed)?;
        Ok(Self(statement.guardians))
    }
}
