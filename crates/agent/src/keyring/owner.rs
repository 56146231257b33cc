//! Whose signature on a key protector counts on this host.
//!
//! ```text
//!   arrives, is restored, is put back ──judge: endorsed by the fleet, or held here──► OwnedProtector ──► the VM
//!   made or signed here ──────────────────────────────────────────────────────────► OwnedProtector ──► the VM
//!   was on the VM on this host before ────────────────────────────────────────────► OwnedProtector ──► the VM
//! ```
//! Whatever puts a key protector on a VM takes an [`OwnedProtector`], and this file makes them all. The signature does not make
//! the key trustworthy; it makes it somebody's whom the fleet can name.

use super::{Keyring, parse_protector_der};
use crate::failure::{Result, Trouble};
use fleetward_model::{ErrorCode, Failure, VmId};
use fleetward_protector::{KeyProtector, KnownOwners};
use std::ops::Deref;

/// A key protector whose owner may own key protectors of this host's VMs.
#[derive(Debug, Clone)]
pub(crate) struct OwnedProtector(KeyProtector);

impl OwnedProtector {
    /// One that a guardian of this host has just signed.
    pub(super) fn signed_here(protector: KeyProtector) -> Self {
        Self(protector)
    }

    /// The one that the VM has on this host already, or had when its TPM was switched off. Whose it is was judged when it
    /// came; one from before that was judged at all goes on.
    pub(crate) fn in_place(protector: KeyProtector) -> Self {
        Self(protector)
    }

    /// The same from a file of the agent's own, where only a judged one is put.
    pub(crate) fn kept(der: &[u8], vm: VmId) -> Result<Self> {
        parse_protector_der(der, vm).map(Self)
    }
}

impl Deref for OwnedProtector {
    type Target = KeyProtector;

    fn deref(&self) -> &KeyProtector {
        &self.0
    }
}

impl Keyring {
    /// Lets a key protector from elsewhere be put on a VM.
    ///
    /// `known` is the authority's word; none where a controller of a former version asks, which cannot give it.
    ///
    /// # Errors
    /// `OWNER_UNKNOWN` names the owner.
    pub(crate) fn judge_owner(
        &self,
        protector: KeyProtector,
        vm: &str,
        known: Option<&KnownOwners>,
    ) -> Result<OwnedProtector> {
        let owner = &protector.inspect().owner;
        let counts = match known {
            Some(known) => known.contains(owner.id()) || self.holds(owner.id()),
            None => true,
        };
        if counts {
            return Ok(OwnedProtector(protector));
        }
        let signing = owner.signing();
        Err(Trouble::from(
            Failure::new(
                ErrorCode::OwnerUnknown,
                format!("the key protector of VM {vm} on host {}", self.host),
            )
            .because(format!(
                "guardian {} ({}, SHA-256 of its signing certificate {}) signed it, which the fleet's authority has not \
                 endorsed and host {} does not hold",
                owner.id(),
                signing.subject(),
                hex::encode(signing.sha256()),
                self.host,
            )),
        ))
    }
}
