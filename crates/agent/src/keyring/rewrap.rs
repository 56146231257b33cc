//! Changes the recipients of a VM's key: grant, revoke, replace a guardian by its successor. The key stays the same.
//!
//! ```text
//!   the owner's private key is here, and may sign ──────────► the owner signs
//!   another guardian of this host was granted the key, or
//!   the fleet does not know the owner ──────────────────────► the host's own guardian signs and is the owner from now on
//!   neither ────────────────────────────────────────────────► KEY_NOT_GRANTED
//! ```
//! All other recipients stay: their wrappings are carried over, so their certificates are not needed. The signature
//! says who vouched for the list of recipients. It does not make the key trustworthy, because every guardian that
//! opens a protector could make another one for the same key.

use super::{Keyring, OwnedProtector, Purpose, out_of_time};
use crate::failure::{Result, Trouble, chain};
use fleetward_model::audit::AuditAction;
use fleetward_model::guardian::GuardianStanding;
use fleetward_model::{ErrorCode, Failure, GuardianId, VmId};
use fleetward_protector::{ExpiredAllowed, Guardian, KeyProtector, KnownOwners, rules};
use fleetward_protector_open::{OpenError, Rewrap, SealError};
use time::OffsetDateTime;

/// What changes about a key protector's recipients.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipients<'a> {
    /// Admitted already: endorsed for the VM's group.
    pub add: &'a [Guardian],
    pub drop: &'a [GuardianId],
    pub expired: &'a ExpiredAllowed,
    /// Whose signature counts in the fleet. The present owner's that does not count is replaced by the host's own guardian's: the VM
    /// may be about to go where that one is not known. None leaves every owner.
    pub owners: Option<&'a KnownOwners>,
}

impl Keyring {
    /// Wraps a VM's key for more guardians, keeping the key and everybody who has it.
    pub(crate) fn grant(
        &self,
        protector: &KeyProtector,
        vm: VmId,
        recipients: &[Guardian],
        purpose: &Purpose,
    ) -> Result<OwnedProtector> {
        let change = Recipients {
            add: recipients,
            drop: &[],
            expired: &ExpiredAllowed::none(),
            owners: None,
        };
        self.rewrap(protector, vm, change, purpose)
    }

    /// Adds and drops recipients in one step; unchanged where that changes nothing.
    pub(crate) fn rewrap(
        &self,
        protector: &KeyProtector,
        vm: VmId,
        change: Recipients<'_>,
        purpose: &Purpose,
    ) -> Result<OwnedProtector> {
        let inspection = protector.inspect();
        let new: Vec<Guardian> = change
            .add
            .iter()
            .filter(|guardian| !inspection.is_granted(guardian.id()))
            .cloned()
            .collect();
        let gone: Vec<GuardianId> = change
            .drop
            .iter()
            .filter(|id| inspection.is_granted(id))
            .cloned()
            .collect();
        let owner = inspection.owner.id();
        let loaded = self.loaded();
        let unknown = change
            .owners
            .is_some_and(|known| !known.contains(owner) && loaded.own().id() != owner);
        if new.is_empty() && gone.is_empty() && !unknown {
            return Ok(OwnedProtector::in_place(protector.clone()));
        }
        let now = OffsetDateTime::now_utc();
        if gone.contains(loaded.own().id()) {
            let own = loaded.own().id().clone();
            return Err(self.not_rewrapped(vm, &SealError::OwnerRevoked { owner: own }));
        }
        let opener = loaded.opener(inspection).ok_or_else(|| -> Trouble {
            Failure::new(
                ErrorCode::KeyNotGranted,
                format!("the TPM key of VM {vm} on host {}", self.host),
            )
            .because("no guardian of this host is among those the key protector is wrapped for")
            .into()
        })?;
        // A retired owner's place is taken by the host's own guardian; an imported one stays the owner, and its key signs.
        let signer = loaded
            .find(owner)
            .filter(|held| held.standing != GuardianStanding::Retired && !gone.contains(owner))
            .filter(|_| !unknown)
            .filter(|held| {
                new.is_empty()
                    || rules::may_use(held.guardian.public(), now, change.expired).is_ok()
            })
            .map_or(loaded.own(), |held| &held.guardian);
        for guardian in &new {
            self.record(AuditAction::Grant, Some(vm), guardian.id(), purpose)?;
        }
        for guardian in &gone {
            self.record(AuditAction::Revoke, Some(vm), guardian, purpose)?;
        }
        if signer.id() != owner {
            let reason = format!("{}; the owner was {}", purpose.reason, owner.short());
            let purpose = Purpose {
                reason,
                ..purpose.clone()
            };
            self.record(AuditAction::TakeOver, Some(vm), signer.id(), &purpose)?;
        }
        let rewrap = Rewrap {
            opener,
            owner: signer,
            add: &new,
            drop: &gone,
            now,
            expired: change.expired,
        };
        let signed = match unknown {
            true => fleetward_protector_open::take_over(protector, vm, &rewrap),
            false => fleetward_protector_open::rewrap(protector, vm, &rewrap),
        };
        signed
            .map(OwnedProtector::signed_here)
            .map_err(|error| self.not_rewrapped(vm, &error))
    }

    fn not_rewrapped(&self, vm: VmId, error: &SealError) -> Trouble {
        let what = format!("wrapping the TPM key of VM {vm} anew");
        let code = match error {
            SealError::Certificate(certificate) => out_of_time(certificate),
            SealError::Open(OpenError::NotGranted { .. }) => ErrorCode::KeyNotGranted,
            SealError::OwnerRevoked { .. } => {
                return Failure::new(ErrorCode::GuardianInUse, what)
                    .because(format!(
                        "the VM is on host {}, whose own guardian is the one to be taken away",
                        self.host
                    ))
                    .fix(format!(
                        "migrate the VM to another host first; this shows where it can go: fleetward check {vm}"
                    ))
                    .into();
            }
            SealError::NotOwner { .. }
            | SealError::Open(_)
            | SealError::Wrap { .. }
            | SealError::Random(_)
            | SealError::Assemble(_) => ErrorCode::KeyProtectorUnreadable,
        };
        Trouble::refuse(code, what, chain(error))
    }
}
