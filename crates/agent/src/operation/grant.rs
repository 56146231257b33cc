//! Changes the recipients of a VM's key protector, or restores an earlier protector. The TPM key never changes here.

use super::Task;
use crate::failure::{HypervisorResult, Result, Trouble, chain};
use crate::keyring::{OwnedProtector, Recipients, admit, parse_protector};
use fleetward_api::agent::operation::Protector;
use fleetward_api::agent::{KeyRewrap, RewrapReason};
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::vm::{Revocation, VmMetadata};
use fleetward_model::{ErrorCode, Failure, GuardianId};
use fleetward_protector::{ExpiredAllowed, Guardian, KeyProtector, KnownOwners};

impl Task<'_> {
    /// Wraps the key for endorsed guardians too. Those who have it already stay as they are, and those it was taken away from
    /// by name do not get it again.
    pub(super) async fn grant(&self, to: &[EndorsedGuardian]) -> Result<Protector> {
        let change = KeyRewrap {
            add: to.to_vec(),
            drop: Vec::new(),
            expired: Vec::new(),
            former: Vec::new(),
            why: RewrapReason::Automatic,
        };
        self.rewrap(&change).await
    }

    /// Adds and drops recipients of the key in one step, and remembers whom it was taken away from.
    pub(super) async fn rewrap(&self, change: &KeyRewrap) -> Result<Protector> {
        let (_, metadata) = self.managed().await?;
        self.require_whole()?;
        let expired = ExpiredAllowed::named(change.expired.iter().cloned());
        let group = &metadata.spec.group;
        let mut add = admit(&change.add, &self.host.authority, group, &expired)?;
        if change.why == RewrapReason::Automatic {
            add.retain(|guardian| !metadata.is_revoked(guardian.id()));
        }
        let current = self.current_protector(&metadata)?;
        if change.why == RewrapReason::Rotated {
            self.require_successors(&metadata, &current, &add, &change.drop)?;
        }
        let reason = match change.why {
            RewrapReason::Automatic => {
                format!("endorsed by the fleet's authority for group {group}")
            }
            RewrapReason::Granted => {
                format!("asked for by name; endorsed by the fleet's authority for group {group}")
            }
            RewrapReason::Revoked => "revoked by name".to_owned(),
            RewrapReason::Rotated => "a guardian is exchanged for its successor".to_owned(),
        };
        let owners = self.known_owners()?;
        let recipients = Recipients {
            owners: owners.as_ref(),
            add: &add,
            drop: &change.drop,
            expired: &expired,
        };
        let new =
            self.host
                .keyring
                .rewrap(&current, self.vm, recipients, &self.purpose(&reason))?;
        let revoked = revocations(&metadata, &current, &add, change);
        if new.der() != current.der() || revoked != metadata.revoked {
            let metadata = VmMetadata {
                revoked,
                ..metadata
            };
            self.write_protector(metadata, &new).await?;
        }
        Ok(Protector {
            key_protector: new.to_base64(),
        })
    }

    /// Refuses new recipients of a roll: it keeps those who could open the key, and adds nobody, whoever asks. What the
    /// controller asks rests on what hosts report, and a host may lie about a VM of another.
    pub(super) fn require_known(
        &self,
        metadata: &VmMetadata,
        current: &KeyProtector,
        recipients: &[Guardian],
    ) -> Result<()> {
        let own = self.host.keyring.own_id();
        let known =
            |guardian: &GuardianId| current.inspect().is_granted(guardian) || *guardian == own;
        match recipients.iter().find(|guardian| !known(guardian.id())) {
            None => Ok(()),
            Some(stranger) => Err(added_by(metadata, stranger, "a roll")),
        }
    }

    /// Refuses new recipients of a rotation that do not come in the place of one who could open the key.
    fn require_successors(
        &self,
        metadata: &VmMetadata,
        current: &KeyProtector,
        add: &[Guardian],
        drop: &[GuardianId],
    ) -> Result<()> {
        let before = current.inspect();
        let new: Vec<_> = add.iter().filter(|g| !before.is_granted(g.id())).collect();
        let places = drop.iter().filter(|g| before.is_granted(g)).count();
        match new.first() {
            Some(stranger) if new.len() > places => Err(added_by(metadata, stranger, "a rotation")),
            Some(_) | None => Ok(()),
        }
    }

    /// The VM's key protector with this host's own guardian in it, where only an imported or retired one of the host opens
    /// it; none where there is nothing to do. The authority has endorsed the own guardian for the host's group, so a VM of
    /// another group is left as it is, and so is one whose key was taken away from the own guardian by name. It is a convenience for the day the other guardian is removed: that it cannot be done
    /// (the own guardian has expired) stops neither a start nor an arrival.
    pub(super) fn own_beside(&self, metadata: &VmMetadata) -> Option<OwnedProtector> {
        if !metadata.spec.tpm || metadata.spec.group != self.host.member.group {
            return None;
        }
        let protector = parse_protector(metadata.key_protector.as_deref()?, self.vm).ok()?;
        let purpose =
            self.purpose("this host opens it with a guardian that was imported or retired");
        match self.host.keyring.beside_own(&protector, metadata, &purpose) {
            Ok(beside) => beside,
            Err(trouble) => {
                tracing::warn!(vm = %self.vm, because = trouble.failure.because,
                    "the host's own guardian is not put beside the one that opens the VM's key protector");
                None
            }
        }
    }

    /// Writes [`own_beside`](Self::own_beside) where it is due.
    pub(super) async fn put_own_beside(&self, metadata: &VmMetadata) -> Result<()> {
        let (Some(beside), Ok(current)) =
            (self.own_beside(metadata), self.current_protector(metadata))
        else {
            return Ok(());
        };
        self.replace_protector(
            metadata,
            &current,
            &beside,
            "the host's own guardian is put beside",
        )
        .await
    }

    /// Puts back a key protector for the same key.
    pub(super) async fn put_protector(&self, text: &str) -> Result<()> {
        let (_, metadata) = self.managed().await?;
        self.require_whole()?;
        let current = self.current_protector(&metadata)?;
        let new = parse_protector(text, self.vm)?;
        // What an undo puts back was on the VM on this host, whoever signed it.
        let new = match self.record.protector_before()?.as_deref() == Some(new.der()) {
            true => OwnedProtector::in_place(new),
            false => self.judge_owner(new, metadata.spec.name.as_str())?,
        };
        if new.der() != current.der() {
            self.replace_protector(&metadata, &current, &new, "an earlier grant is undone")
                .await?;
            self.host.keyring.record_put(
                self.vm,
                new.inspect().owner.id(),
                &self.purpose("an earlier grant is undone"),
            )?;
        }
        Ok(())
    }

    pub(super) fn current_protector(&self, metadata: &VmMetadata) -> Result<KeyProtector> {
        let text = metadata.key_protector.as_deref().ok_or_else(|| {
            Failure::new(
                ErrorCode::KeyProtectorUnreadable,
                format!("VM {}", metadata.spec.name),
            )
            .because("it has no key protector")
        })?;
        parse_protector(text, self.vm)
    }

    /// Writes `new` where `current` is, once both were opened and hold the same key.
    async fn replace_protector(
        &self,
        metadata: &VmMetadata,
        current: &KeyProtector,
        new: &OwnedProtector,
        reason: &str,
    ) -> Result<()> {
        let refuse = |because: String| {
            Trouble::refuse(
                ErrorCode::KeyProtectorUnreadable,
                format!("replacing the key protector of VM {}", metadata.spec.name),
                because,
            )
        };
        let bound = new.inspect().binding;
        if bound.vm_id != self.vm {
            return Err(refuse(format!("it is bound to VM {}", bound.vm_id)));
        }
        let same =
            self.host
                .keyring
                .hold_the_same_key(current, new, self.vm, &self.purpose(reason))?;
        if !same || bound.key_id != current.inspect().binding.key_id {
            return Err(refuse(
                "it holds another TPM key than the VM's state is encrypted with".into(),
            ));
        }
        self.write_protector(metadata.clone(), new).await
    }

    /// Writes a key protector of which it is certain that it holds the VM's key.
    async fn write_protector(&self, mut metadata: VmMetadata, new: &OwnedProtector) -> Result<()> {
        if let Some(before) = &metadata.key_protector
            && let Ok(before) = parse_protector(before, self.vm)
        {
            self.record.keep_protector_before(before.der())?;
        }
        metadata.key_protector = Some(new.to_base64());
        metadata.generation = self.generation;
        self.host
            .hypervisor
            .write_metadata(self.vm, &metadata)
            .await
            .attempt(|| format!("writing the key protector of VM {}", metadata.spec.name))?;
        self.record.keep_protector(new)
    }

    /// Whose signature on a key protector counts, by the authority's word; none where it was not said.
    fn known_owners(&self) -> Result<Option<KnownOwners>> {
        let Some(text) = self.owners else {
            return Ok(None);
        };
        KnownOwners::verify(text, &self.host.authority)
            .map(Some)
            .map_err(|error| {
                Trouble::refuse(
                    ErrorCode::OwnerUnknown,
                    "the list of those who may own key protectors",
                    chain(&error),
                )
            })
    }

    /// See [`Keyring::judge_owner`](crate::keyring::Keyring::judge_owner).
    pub(super) fn judge_owner(&self, protector: KeyProtector, vm: &str) -> Result<OwnedProtector> {
        let known = self.known_owners()?;
        self.host.keyring.judge_owner(protector, vm, known.as_ref())
    }
}

fn added_by(metadata: &VmMetadata, stranger: &Guardian, what: &str) -> Trouble {
    let name = &metadata.spec.name;
    Failure::new(
        ErrorCode::KeyNotGranted,
        format!("the TPM key of VM {name}"),
    )
    .because(format!(
        "guardian {} could not open it, and {what} gives it to nobody new",
        stranger.id()
    ))
    .fix(format!("who can open it: fleetward vm show {name}"))
    .into()
}

/// Whom the key counts as taken away from, after a change.
fn revocations(
    metadata: &VmMetadata,
    current: &KeyProtector,
    added: &[Guardian],
    change: &KeyRewrap,
) -> Vec<Revocation> {
    let mut revoked = metadata.revoked.clone();
    match change.why {
        RewrapReason::Automatic | RewrapReason::Rotated => {}
        RewrapReason::Granted => {
            let present = current.inspect().binding.key_id;
            revoked.retain(|r| {
                let given_back = added.iter().any(|g| *g.id() == r.guardian);
                // What a former guardian knows of the present key it still knows, wherever that one is now.
                let of_the_past = change.former.contains(&r.guardian) && r.key_id != present;
                !given_back && !of_the_past
            });
        }
        RewrapReason::Revoked => {
            let inspection = current.inspect();
            for guardian in &change.drop {
                // One that has no wrapping now may have had one of this same key before: it stays as it is known.
                if !inspection.is_granted(guardian) && metadata.is_revoked(guardian) {
                    continue;
                }
                revoked.retain(|r| r.guardian != *guardian);
                revoked.push(Revocation {
                    guardian: guardian.clone(),
                    key_id: inspection.binding.key_id,
                });
            }
        }
    }
    revoked
}
