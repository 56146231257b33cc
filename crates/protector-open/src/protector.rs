//! Sealing, opening and re-wrapping key protectors.
//!
//! A new content key encrypts the record once, and that content key is wrapped for each guardian. [`rewrap`] adds and
//! removes wrappings and signs again: it needs only the new certificates, keeps all other wrappings, and does not
//! change the encrypted record. `grant` and `revoke` are `rewrap` by the owner. `seal` encrypts anew. None of them
//! changes the TPM key: that is a roll, which also rewrites the TPM state.

use crate::aead::{self, AeadKey};
use crate::local_guardian::LocalGuardian;
use crate::record::{self, RecordError};
use crate::rsa_key::{self, RsaKeyError};
use crate::tpm_key::{RandomError, TpmKey};
use fleetward_model::guardian::CertificateRole;
use fleetward_model::{GuardianId, KeyId, VmId};
use fleetward_protector::envelope::{Envelope, WrappedKey};
use fleetward_protector::key_protector::Draft;
use fleetward_protector::rules::{CertificateRefusal, may_use};
use fleetward_protector::{
    Binding, ExpiredAllowed, Guardian, KeyProtector, KeyProtectorError, Recipient,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// Why a key protector did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the key protector belongs to VM {bound}, not to {expected}")]
    OtherVm { bound: VmId, expected: VmId },
    /// Hyper-V's error 10698: no certificate of this host opens it.
    #[error("none of this host's guardians was granted the key of VM {vm}")]
    NotGranted { vm: VmId },
    #[error("the key protector names guardian {}, but is not wrapped for its certificate", guardian.short())]
    OtherCertificate { guardian: GuardianId },
    #[error("the key of guardian {} does not open its wrapping", guardian.short())]
    Unwrap {
        guardian: GuardianId,
        #[source]
        source: RsaKeyError,
    },
    #[error("the encrypted record does not open with the unwrapped key")]
    Decrypt,
    #[error("the encrypted record cannot be read")]
    Record(#[from] RecordError),
    #[error("the encrypted record says something else than the key protector says outside")]
    RecordDiffers,
}

/// Why a key protector was not made.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("only the owner, guardian {}, can change the key protector; {} is not", owner.short(), given.short())]
    NotOwner {
        owner: GuardianId,
        given: GuardianId,
    },
    #[error("the owner, guardian {}, cannot be revoked; let another guardian take over first", owner.short())]
    OwnerRevoked { owner: GuardianId },
    #[error(transparent)]
    Certificate(#[from] CertificateRefusal),
    #[error("the key protector does not open")]
    Open(#[from] OpenError),
    #[error("the key was not wrapped for guardian {}", guardian.short())]
    Wrap {
        guardian: GuardianId,
        #[source]
        source: RsaKeyError,
    },
    #[error("the key protector was not encrypted")]
    Random(#[from] RandomError),
    #[error("the key protector was not assembled")]
    Assemble(#[from] KeyProtectorError),
}

/// What a new key protector is made of.
#[derive(Debug)]
pub struct SealRequest<'a> {
    pub vm_id: VmId,
    pub key_id: KeyId,
    pub tpm_key: &'a TpmKey,
    pub owner: &'a LocalGuardian,
    /// Whom else to wrap for; the owner is always added. Their endorsements are checked before (`rules::admit`).
    pub recipients: &'a [Guardian],
    pub now: OffsetDateTime,
    pub expired: &'a ExpiredAllowed,
}

/// An opened key protector.
#[derive(Debug)]
pub struct Opened {
    pub tpm_key: TpmKey,
    pub binding: Binding,
}

/// Seals a TPM key into a new key protector, revision 1.
pub fn seal(request: &SealRequest<'_>) -> Result<KeyProtector, SealError> {
    let created = request
        .now
        .replace_nanosecond(0)
        .expect("zero is a nanosecond");
    let binding = Binding {
        vm_id: request.vm_id,
        key_id: request.key_id,
        created,
    };
    encrypt_anew(
        binding,
        1,
        request.tpm_key,
        request.owner,
        request.recipients,
        request.now,
        request.expired,
    )
}

/// Opens a key protector that lies on VM `vm` with a guardian of this host. Expired guardians open too.
pub fn open(
    protector: &KeyProtector,
    vm: VmId,
    guardian: &LocalGuardian,
) -> Result<Opened, OpenError> {
    open_with_any(protector, vm, [guardian])
}

/// Opens with the first of `guardians` that the key was granted to.
pub fn open_with_any<'a>(
    protector: &KeyProtector,
    vm: VmId,
    guardians: impl IntoIterator<Item = &'a LocalGuardian>,
) -> Result<Opened, OpenError> {
    let inspection = protector.inspect();
    if inspection.binding.vm_id != vm {
        return Err(OpenError::OtherVm {
            bound: inspection.binding.vm_id,
            expected: vm,
        });
    }
    let guardian = guardians
        .into_iter()
        .find(|g| inspection.is_granted(g.id()))
        .ok_or(OpenError::NotGranted { vm })?;
    let content_key = content_key(protector, guardian)?;
    open_record(protector, &content_key)
}

/// Wraps the same TPM key for `new` guardians as well. Those that have it already stay as they are; when all have it,
/// the protector comes back unchanged.
pub fn grant(
    protector: &KeyProtector,
    vm: VmId,
    owner: &LocalGuardian,
    new: &[Guardian],
    now: OffsetDateTime,
    expired: &ExpiredAllowed,
) -> Result<KeyProtector, SealError> {
    require_owner(protector, owner)?;
    let change = Rewrap {
        opener: owner,
        owner,
        add: new,
        drop: &[],
        now,
        expired,
    };
    rewrap(protector, vm, &change)
}

/// Removes a guardian's wrapping. A guardian that has opened the protector still knows the TPM key, until it is
/// rolled.
pub fn revoke(
    protector: &KeyProtector,
    vm: VmId,
    owner: &LocalGuardian,
    guardian: &GuardianId,
    now: OffsetDateTime,
) -> Result<KeyProtector, SealError> {
    require_owner(protector, owner)?;
    let change = Rewrap {
        opener: owner,
        owner,
        add: &[],
        drop: std::slice::from_ref(guardian),
        now,
        expired: &ExpiredAllowed::none(),
    };
    rewrap(protector, vm, &change)
}

/// Who has a wrapping, and who signs for it.
#[derive(Debug)]
pub struct Rewrap<'a> {
    /// A guardian the key was granted to: opens the protector.
    pub opener: &'a LocalGuardian,
    /// Signs the new protector and so vouches for its recipients. Where it is not among them, it is added.
    pub owner: &'a LocalGuardian,
    /// Whom else to wrap for. Their endorsements are checked before (`rules::admit`).
    pub add: &'a [Guardian],
    /// Whose wrapping goes.
    pub drop: &'a [GuardianId],
    pub now: OffsetDateTime,
    pub expired: &'a ExpiredAllowed,
}

/// Adds and drops wrappings of the same TPM key, keeping all others, and signs with `change.owner`.
///
/// Returns the protector unchanged if there is nothing to add or remove; the owner does not change either.
pub fn rewrap(
    protector: &KeyProtector,
    vm: VmId,
    change: &Rewrap<'_>,
) -> Result<KeyProtector, SealError> {
    sign_again(protector, vm, change, false)
}

/// As [`rewrap`], and `change.owner` signs even if there is nothing to add or remove: the former owner's word does not
/// count where the VM goes.
pub fn take_over(
    protector: &KeyProtector,
    vm: VmId,
    change: &Rewrap<'_>,
) -> Result<KeyProtector, SealError> {
    sign_again(protector, vm, change, true)
}

fn sign_again(
    protector: &KeyProtector,
    vm: VmId,
    change: &Rewrap<'_>,
    always: bool,
) -> Result<KeyProtector, SealError> {
    let Rewrap { opener, owner, .. } = change;
    let inspection = protector.inspect();
    if change.drop.contains(owner.id()) {
        return Err(SealError::OwnerRevoked {
            owner: owner.id().clone(),
        });
    }
    let content_key = open_to_rewrap(protector, vm, opener)?;
    let wanted = change.add.iter().chain([owner.public()]);
    let added = distinct(wanted.filter(|g| !inspection.is_granted(g.id())));
    let (dropped, mut recipients): (Vec<Recipient>, Vec<Recipient>) = inspection
        .recipients
        .iter()
        .cloned()
        .partition(|r| change.drop.contains(&r.guardian));
    let asked_for = added.iter().any(|g| g.id() != owner.id());
    if !always && !asked_for && dropped.is_empty() {
        return Ok(protector.clone());
    }
    let mut envelope = protector.envelope().clone();
    envelope
        .wrapped
        .retain(|w| !dropped.iter().any(|r| r.serial == w.serial()));
    // Taking away is no granting: an owner that has expired may still do it.
    let vouches = (!added.is_empty()).then_some(owner.public());
    for guardian in added.iter().copied().chain(vouches) {
        may_use(guardian, change.now, change.expired)?;
    }
    for guardian in added {
        envelope.wrapped.push(wrap(guardian, &content_key)?);
        recipients.push(Recipient::of(guardian));
    }
    resign(protector, owner, recipients, envelope, change.now)
}

fn require_owner(protector: &KeyProtector, given: &LocalGuardian) -> Result<(), SealError> {
    let owner = protector.inspect().owner.id();
    if owner == given.id() {
        return Ok(());
    }
    Err(SealError::NotOwner {
        owner: owner.clone(),
        given: given.id().clone(),
    })
}

fn encrypt_anew(
    binding: Binding,
    revision: u64,
    tpm_key: &TpmKey,
    owner: &LocalGuardian,
    recipients: &[Guardian],
    now: OffsetDateTime,
    expired: &ExpiredAllowed,
) -> Result<KeyProtector, SealError> {
    let guardians = distinct([owner.public()].into_iter().chain(recipients));
    for guardian in &guardians {
        may_use(guardian, now, expired)?;
    }
    let content_key = aead::generate_key()?;
    let encrypted = aead::encrypt(&content_key, &[], &record::write(&binding, tpm_key))?;
    let envelope = Envelope {
        wrapped: guardians
            .iter()
            .map(|g| wrap(g, &content_key))
            .collect::<Result<_, _>>()?,
        nonce: encrypted.nonce,
        ciphertext: encrypted.ciphertext,
        tag: encrypted.tag,
    };
    let recipients = guardians.into_iter().map(Recipient::of).collect();
    let draft = Draft {
        binding,
        revision,
        owner: owner.public(),
        recipients,
        envelope,
        signed: now,
    };
    Ok(KeyProtector::assemble(draft, |bytes| {
        owner.key(CertificateRole::Signing).sign_pss(bytes)
    })?)
}

fn resign(
    old: &KeyProtector,
    owner: &LocalGuardian,
    recipients: Vec<Recipient>,
    envelope: Envelope,
    now: OffsetDateTime,
) -> Result<KeyProtector, SealError> {
    let inspection = old.inspect();
    let draft = Draft {
        binding: inspection.binding,
        revision: inspection.revision.saturating_add(1),
        owner: owner.public(),
        recipients,
        envelope,
        signed: now,
    };
    Ok(KeyProtector::assemble(draft, |bytes| {
        owner.key(CertificateRole::Signing).sign_pss(bytes)
    })?)
}

/// The content key, after the record has been opened with it and compared: nobody vouches for what it has not seen.
fn open_to_rewrap(
    protector: &KeyProtector,
    vm: VmId,
    opener: &LocalGuardian,
) -> Result<AeadKey, SealError> {
    let inspection = protector.inspect();
    if inspection.binding.vm_id != vm {
        return Err(OpenError::OtherVm {
            bound: inspection.binding.vm_id,
            expected: vm,
        }
        .into());
    }
    if !inspection.is_granted(opener.id()) {
        return Err(OpenError::NotGranted { vm }.into());
    }
    let content_key = content_key(protector, opener)?;
    open_record(protector, &content_key)?;
    Ok(content_key)
}

fn content_key(protector: &KeyProtector, guardian: &LocalGuardian) -> Result<AeadKey, OpenError> {
    let id = || guardian.id().clone();
    let wrapped = protector
        .envelope()
        .wrapping_for(guardian.public().encryption())
        .ok_or_else(|| OpenError::OtherCertificate { guardian: id() })?;
    let unwrapped = guardian
        .key(CertificateRole::Encryption)
        .unwrap(wrapped.encrypted_key())
        .map_err(|source| OpenError::Unwrap {
            guardian: id(),
            source,
        })?;
    let mut key = Zeroizing::new([0; 32]);
    if unwrapped.len() != key.len() {
        return Err(OpenError::Decrypt);
    }
    key.copy_from_slice(&unwrapped);
    Ok(key)
}

fn open_record(protector: &KeyProtector, content_key: &AeadKey) -> Result<Opened, OpenError> {
    let Envelope {
        nonce,
        ciphertext,
        tag,
        ..
    } = protector.envelope();
    let plaintext =
        aead::decrypt(content_key, &[], nonce, ciphertext, tag).ok_or(OpenError::Decrypt)?;
    let (binding, tpm_key) = record::read(&plaintext)?;
    if binding != protector.inspect().binding {
        return Err(OpenError::RecordDiffers);
    }
    Ok(Opened { tpm_key, binding })
}

fn wrap(guardian: &Guardian, content_key: &AeadKey) -> Result<WrappedKey, SealError> {
    let wrapped =
        rsa_key::wrap(guardian.encryption(), content_key.as_slice()).map_err(|source| {
            SealError::Wrap {
                guardian: guardian.id().clone(),
                source,
            }
        })?;
    Ok(WrappedKey::new(guardian.encryption(), wrapped))
}

/// Each guardian once, in the order given.
fn distinct<'a>(guardians: impl IntoIterator<Item = &'a Guardian>) -> Vec<&'a Guardian> {
    let mut seen = Vec::new();
    for guardian in guardians {
        if !seen.iter().any(|g: &&Guardian| g.id() == guardian.id()) {
            seen.push(guardian);
        }
    }
    seen
}
