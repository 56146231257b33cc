//! The host's guardians with their private keys, and all uses of them: open, seal, grant, export.
//!
//! A host has its own guardian, its retired guardians (from before a rotation), and imported guardians of other hosts.
//! All of them open; only the own one seals and takes over. Another process may change the store while an agent runs;
//! the agent reads it again at the next use.
//!
//! Keys are in `guardians/`, readable by root only, and encrypted if there is a storage key: see `sealing`. Every use
//! is recorded in the audit log before it happens.

mod custody;
mod dependents;
mod owner;
mod rewrap;
mod rotation;
mod sealing;
mod store;

pub use custody::{HalfImported, Imported, PfxFile};
pub use dependents::{Dependent, Survey, dependents, survey};
/// Reading PFX files, for the program that hands them to [`Keyring::import`].
pub use fleetward_protector_open::pfx;
pub(crate) use owner::OwnedProtector;
pub(crate) use rewrap::Recipients;

use self::store::{Held, Stamp, Store};
use crate::audit::{AuditLog, Use};
use crate::failure::{Result, Trouble, chain};
use fleetward_api::agent::CanOpen;
use fleetward_durable as durable;
use fleetward_hypervisor::SecretText;
use fleetward_model::audit::AuditAction;
use fleetward_model::guardian::{EndorsedGuardian, GuardianFacts, GuardianStanding};
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure, GroupName, GuardianId, HostName, JobId, KeyId, VmId};
use fleetward_protector::possession::RejoinProof;
use fleetward_protector::{
    AuthorityKey, ExpiredAllowed, Guardian, Inspection, KeyProtector, KeyProtectorError, rules,
};
use fleetward_protector_open::{LocalGuardian, SealError, SealRequest, TpmKey};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use time::OffsetDateTime;

/// This host's guardians.
pub struct Keyring {
    host: HostName,
    store: Store,
    audit: Arc<AuditLog>,
    loaded: Mutex<Arc<Loaded>>,
}

/// One version of the store, in memory.
struct Loaded {
    /// The own one first, then retired ones, then imported ones.
    held: Vec<Held>,
    stamp: Option<Stamp>,
}

impl Loaded {
    fn read(store: &Store) -> Result<Self, KeyringError> {
        // Looked at before it is read: what changes meanwhile is read again at the next use.
        let stamp = store.stamp();
        Ok(Self {
            held: store.load()?,
            stamp,
        })
    }

    fn own(&self) -> &LocalGuardian {
        &self.held[0].guardian
    }

    fn find(&self, id: &GuardianId) -> Option<&Held> {
        self.held.iter().find(|held| held.guardian.id() == id)
    }

    /// The first that the key was wrapped for.
    fn opener(&self, inspection: &Inspection) -> Option<&LocalGuardian> {
        self.held
            .iter()
            .map(|held| &held.guardian)
            .find(|guardian| inspection.is_granted(guardian.id()))
    }
}

/// Who uses a key, and why that is allowed.
#[derive(Debug, Clone)]
pub struct Purpose {
    /// `controller`, `local:0`, `agent`.
    pub actor: String,
    pub reason: String,
    pub job: Option<JobId>,
}

/// Why the guardian store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("cannot read or write {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("the guardian in {path} cannot be read: {because}")]
    Unreadable { path: PathBuf, because: String },
    #[error("the key protector in {path} cannot be read: {because}")]
    Protector { path: PathBuf, because: String },
    #[error("no guardian could be made: {0}")]
    Make(String),
    #[error("a use of a guardian without an audit record")]
    Audit(#[source] io::Error),
    #[error("the credential {path} must be exactly 32 bytes")]
    StorageKey { path: PathBuf },
    #[error("the private keys in {path} are encrypted, and the key to them was not given")]
    Sealed { path: PathBuf },
    #[error(
        "the private keys in {path} do not open with the key that was given, or the file was altered"
    )]
    OtherKey { path: PathBuf },
    #[error("this host has no guardian yet; it is made when the host joins a fleet")]
    Empty,
}

impl KeyringError {
    /// The error for the caller. If the store is encrypted, its fix says how to provide the key.
    pub fn failure(&self, what: impl Into<String>) -> Failure {
        let code = match self {
            Self::Sealed { .. } | Self::OtherKey { .. } | Self::StorageKey { .. } => {
                ErrorCode::GuardianStoreSealed
            }
            Self::File { .. }
            | Self::Unreadable { .. }
            | Self::Protector { .. }
            | Self::Make(_)
            | Self::Audit(_)
            | Self::Empty => ErrorCode::Internal,
        };
        Failure::new(code, what).because(chain(self))
    }
}

impl Keyring {
    /// Makes the host's own guardian if it has none that is valid `now`: one that an earlier attempt to join made under a
    /// wrong clock would be refused by others for hours, or for good. It stays, and still opens. Takes a second when it makes
    /// one.
    pub fn ensure_own(
        directory: &Path,
        host: &HostName,
        audit: &AuditLog,
        purpose: &Purpose,
        credential_file: Option<&Path>,
        now: OffsetDateTime,
    ) -> Result<(), KeyringError> {
        let store = Store::new(directory, sealing::key(credential_file)?);
        let is_there = store.has_own()?;
        if is_there {
            // The own one comes first.
            let held = store.load()?;
            let valid = rules::validity(held[0].guardian.public(), now);
            if matches!(
                valid,
                rules::Validity::Valid | rules::Validity::EndsSoon { .. }
            ) {
                return Ok(());
            }
        }
        let guardian = LocalGuardian::generate(host, now)
            .map_err(|error| KeyringError::Make(chain(&error)))?;
        audit
            .record(Use {
                actor: purpose.actor.clone(),
                action: AuditAction::MakeGuardian,
                vm: None,
                guardian: Some(guardian.id().clone()),
                reason: purpose.reason.clone(),
                job: None,
            })
            .map_err(KeyringError::Audit)?;
        if is_there {
            store.replace_own(&guardian)
        } else {
            store.add(&guardian, GuardianStanding::Own).map(|_| ())
        }
    }

    /// Reads the store, with the key that the service manager gives to it, if any.
    pub fn open(
        directory: &Path,
        host: HostName,
        audit: Arc<AuditLog>,
    ) -> Result<Self, KeyringError> {
        Self::open_with(directory, host, audit, None)
    }

    /// Reads the store, with the key to it in a file.
    pub fn open_with(
        directory: &Path,
        host: HostName,
        audit: Arc<AuditLog>,
        credential_file: Option<&Path>,
    ) -> Result<Self, KeyringError> {
        let store = Store::new(directory, sealing::key(credential_file)?);
        let loaded = Loaded::read(&store)?;
        Ok(Self {
            host,
            store,
            audit,
            loaded: Mutex::new(Arc::new(loaded)),
        })
    }

    /// The guardians as they are on the disk now. What cannot be read changes nothing.
    fn loaded(&self) -> Arc<Loaded> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.store.stamp();
        if stamp != loaded.stamp {
            match Loaded::read(&self.store) {
                Ok(read) => {
                    tracing::info!(
                        guardians = read.held.len(),
                        "the guardian store has changed"
                    );
                    *loaded = Arc::new(read);
                }
                Err(error) => {
                    tracing::error!(
                        error = chain(&error),
                        "the changed guardian store cannot be read"
                    );
                }
            }
        }
        loaded.clone()
    }

    /// Whether there is a key to encrypt the store with.
    pub fn has_credential(&self) -> bool {
        self.store.key.is_some()
    }

    /// Whether all private keys in the store are encrypted on the disk.
    pub fn is_sealed(&self) -> bool {
        self.lying_in_clear().is_empty()
    }

    /// Names of the store's files whose private keys are not encrypted, or not known to be.
    pub fn lying_in_clear(&self) -> Vec<String> {
        self.store.lying_in_clear()
    }

    /// Encrypts what lies in clear, where there is a key to do it with; how many files that were. Safe to be killed at any
    /// line, and to be repeated.
    pub fn seal_what_lies_in_clear(&self) -> Result<usize, KeyringError> {
        self.store.seal_what_lies_in_clear()
    }

    /// Whether private keys of this guardian are on this host.
    pub fn holds(&self, id: &GuardianId) -> bool {
        self.loaded().find(id).is_some()
    }

    /// The guardians as lists show them, the own one first.
    pub fn facts(&self) -> Vec<GuardianFacts> {
        self.loaded()
            .held
            .iter()
            .map(|held| {
                let own = held.standing == GuardianStanding::Own;
                GuardianFacts {
                    standing: held.standing,
                    ..held.guardian.public().facts(self.host.clone(), own, true)
                }
            })
            .collect()
    }

    /// Whether a VM's key protector opens here.
    ///
    /// No key is used for the answer, so it leaves no record: the owner's signature says that nothing was changed, and the
    /// recipients for whom it is. Whoever may only look can ask as often as they like.
    pub(crate) fn can_open(&self, protector: Option<&str>, vm: VmId) -> CanOpen {
        let Some(text) = protector else {
            return CanOpen::Unreadable {
                because: "the VM has a TPM but no key protector".into(),
            };
        };
        let unreadable = |because| CanOpen::Unreadable { because };
        let protector = match KeyProtector::from_base64(text) {
            Ok(protector) => protector,
            Err(error) => return unreadable(chain(&error)),
        };
        let inspection = protector.inspect();
        if inspection.binding.vm_id != vm {
            return unreadable(format!("it is the one of VM {}", inspection.binding.vm_id));
        }
        match self.loaded().opener(inspection) {
            Some(_) => CanOpen::Yes,
            None => CanOpen::NotGranted,
        }
    }

    /// Opens a key protector and gives the text that swtpm takes.
    pub(crate) fn open_secret(
        &self,
        protector: &KeyProtector,
        vm: VmId,
        purpose: &Purpose,
    ) -> Result<SecretText> {
        let key = self.open_protector(protector, vm, purpose)?;
        Ok(SecretText::new(key.expose_base64()))
    }

    pub(crate) fn open_protector(
        &self,
        protector: &KeyProtector,
        vm: VmId,
        purpose: &Purpose,
    ) -> Result<TpmKey> {
        let inspection = protector.inspect();
        let loaded = self.loaded();
        let Some(guardian) = loaded.opener(inspection) else {
            return Err(Failure::new(
                ErrorCode::KeyNotGranted,
                format!("the TPM key of VM {vm} on host {}", self.host),
            )
            .because("no guardian of this host is among those the key protector is wrapped for")
            .into());
        };
        self.record(AuditAction::Open, Some(vm), guardian.id(), purpose)?;
        fleetward_protector_open::open(protector, vm, guardian)
            .map(|opened| opened.tpm_key)
            .map_err(|error| {
                Trouble::refuse(
                    ErrorCode::KeyProtectorUnreadable,
                    format!("the key protector of VM {vm}"),
                    chain(&error),
                )
            })
    }

    /// Seals the key of a VM's new TPM: owned by this host's guardian, wrapped for `recipients` too.
    pub(crate) fn seal(
        &self,
        vm: VmId,
        key: &TpmKey,
        recipients: &[Guardian],
        purpose: &Purpose,
    ) -> Result<OwnedProtector> {
        self.seal_as(AuditAction::MakeTpm, vm, key, recipients, purpose)
    }

    /// Signs, with this host's own guardian, the proof that it is here.
    pub(crate) fn prove(
        &self,
        proof: &RejoinProof,
        purpose: &Purpose,
    ) -> Result<(GuardianId, Vec<u8>)> {
        let loaded = self.loaded();
        let own = loaded.own();
        self.record(AuditAction::Join, None, own.id(), purpose)?;
        let signature = own.prove(proof).map_err(|error| {
            let what = "the proof of the host's guardian";
            Trouble::refuse(ErrorCode::Internal, what, error.to_string())
        })?;
        Ok((own.id().clone(), signature))
    }

    /// The guardian that this host makes key protectors with.
    pub(crate) fn own_id(&self) -> GuardianId {
        self.loaded().own().id().clone()
    }

    /// The same for a new key of the TPM that the VM has.
    pub(crate) fn seal_rolled(
        &self,
        vm: VmId,
        key: &TpmKey,
        recipients: &[Guardian],
        purpose: &Purpose,
    ) -> Result<OwnedProtector> {
        self.seal_as(AuditAction::Roll, vm, key, recipients, purpose)
    }

    fn seal_as(
        &self,
        action: AuditAction,
        vm: VmId,
        key: &TpmKey,
        recipients: &[Guardian],
        purpose: &Purpose,
    ) -> Result<OwnedProtector> {
        let loaded = self.loaded();
        let own = loaded.own();
        self.record(action, Some(vm), own.id(), purpose)?;
        for guardian in recipients.iter().filter(|g| g.id() != own.id()) {
            self.record(AuditAction::Grant, Some(vm), guardian.id(), purpose)?;
        }
        fleetward_protector_open::seal(&SealRequest {
            vm_id: vm,
            key_id: KeyId(uuid::Uuid::new_v4()),
            tpm_key: key,
            owner: own,
            recipients,
            now: OffsetDateTime::now_utc(),
            expired: &ExpiredAllowed::none(),
        })
        .map(OwnedProtector::signed_here)
        .map_err(|error| {
            let code = match &error {
                SealError::Certificate(certificate) => out_of_time(certificate),
                _ => ErrorCode::Internal,
            };
            Trouble::refuse(
                code,
                format!("sealing the TPM key of VM {vm}"),
                chain(&error),
            )
        })
    }

    /// Seals a key that nothing uses yet, for this host alone: a TPM made ahead of time.
    pub(crate) fn seal_ahead(
        &self,
        placeholder: VmId,
        key: &TpmKey,
    ) -> Result<KeyProtector, String> {
        fleetward_protector_open::seal(&SealRequest {
            vm_id: placeholder,
            key_id: KeyId(uuid::Uuid::new_v4()),
            tpm_key: key,
            owner: self.loaded().own(),
            recipients: &[],
            now: OffsetDateTime::now_utc(),
            expired: &ExpiredAllowed::none(),
        })
        .map_err(|error| chain(&error))
    }

    /// Opens what [`seal_ahead`](Self::seal_ahead) sealed.
    pub(crate) fn open_ahead(&self, der: &[u8], placeholder: VmId) -> Result<TpmKey, String> {
        let protector = KeyProtector::from_der(der).map_err(|error| chain(&error))?;
        let loaded = self.loaded();
        let guardians = loaded.held.iter().map(|held| &held.guardian);
        fleetward_protector_open::open_with_any(&protector, placeholder, guardians)
            .map(|opened| opened.tpm_key)
            .map_err(|error| chain(&error))
    }

    /// The key protector with the host's own guardian in it, where only an imported or retired one of this host opens it;
    /// none where nothing is to be done. What the host can open it may keep open: nobody else gains anything.
    pub(crate) fn beside_own(
        &self,
        protector: &KeyProtector,
        vm: &VmMetadata,
        purpose: &Purpose,
    ) -> Result<Option<OwnedProtector>> {
        let loaded = self.loaded();
        let (own, inspection) = (loaded.own(), protector.inspect());
        if inspection.is_granted(own.id())
            || vm.is_revoked(own.id())
            || loaded.opener(inspection).is_none()
        {
            return Ok(None);
        }
        let own = own.public().clone();
        self.grant(protector, vm.spec.id, &[own], purpose).map(Some)
    }

    /// Whether both hold the same TPM key; opens both to know.
    pub(crate) fn hold_the_same_key(
        &self,
        first: &KeyProtector,
        second: &KeyProtector,
        vm: VmId,
        purpose: &Purpose,
    ) -> Result<bool> {
        let first = self.open_protector(first, vm, purpose)?;
        Ok(first.same_as(&self.open_protector(second, vm, purpose)?))
    }

    /// Records that a TPM was removed.
    pub(crate) fn record_removal(&self, vm: VmId, purpose: &Purpose) -> Result<()> {
        let loaded = self.loaded();
        self.record(AuditAction::RemoveTpm, Some(vm), loaded.own().id(), purpose)
    }

    /// Records that a key protector was put back.
    pub(crate) fn record_put(&self, vm: VmId, owner: &GuardianId, purpose: &Purpose) -> Result<()> {
        self.record(AuditAction::PutProtector, Some(vm), owner, purpose)
    }

    fn record(
        &self,
        action: AuditAction,
        vm: Option<VmId>,
        guardian: &GuardianId,
        purpose: &Purpose,
    ) -> Result<()> {
        self.audit
            .record(Use {
                actor: purpose.actor.clone(),
                action,
                vm,
                guardian: Some(guardian.clone()),
                reason: purpose.reason.clone(),
                job: purpose.job,
            })
            .map_err(|error| {
                let code = match error.kind() {
                    io::ErrorKind::InvalidData => ErrorCode::AuditDamaged,
                    _ if durable::is_full(&error) => ErrorCode::NoSpace,
                    _ => ErrorCode::Internal,
                };
                let what = format!("{action} on host {} without an audit record", self.host);
                Failure::new(code, what).because(error).into()
            })
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring")
            .field("guardians", &self.loaded().held.len())
            .field("sealed", &self.is_sealed())
            .finish_non_exhaustive()
    }
}

/// Reads the base64 text of a VM's key protector.
pub(crate) fn parse_protector(text: &str, vm: VmId) -> Result<KeyProtector> {
    KeyProtector::from_base64(text).map_err(|error| unreadable(vm, &error))
}

/// Reads a key protector kept as DER.
pub(crate) fn parse_protector_der(der: &[u8], vm: VmId) -> Result<KeyProtector> {
    KeyProtector::from_der(der).map_err(|error| unreadable(vm, &error))
}

fn unreadable(vm: VmId, error: &KeyProtectorError) -> Trouble {
    Trouble::refuse(
        ErrorCode::KeyProtectorUnreadable,
        format!("the key protector of VM {vm}"),
        chain(error),
    )
}

/// What it means that certificates are not valid now: their time is over, or a clock is wrong.
pub(crate) fn out_of_time(refusal: &rules::CertificateRefusal) -> ErrorCode {
    match refusal {
        rules::CertificateRefusal::Expired { .. } => ErrorCode::GuardianExpired,
        rules::CertificateRefusal::NotYet { .. } => ErrorCode::ClocksApart,
    }
}

/// Guardians that may be wrapped for: endorsed by the pinned authority for the VM's group, and in time.
pub(crate) fn admit(
    endorsed: &[EndorsedGuardian],
    authority: &AuthorityKey,
    group: &GroupName,
    expired: &ExpiredAllowed,
) -> Result<Vec<Guardian>> {
    endorsed
        .iter()
        .map(|guardian| {
            rules::admit(
                guardian,
                authority,
                group,
                OffsetDateTime::now_utc(),
                expired,
            )
            .map_err(|refusal| {
                use rules::{AdmitRefusal, GrantRefusal};
                let code = match &refusal {
                    AdmitRefusal::Grant(GrantRefusal::Certificate(certificate)) => {
                        out_of_time(certificate)
                    }
                    AdmitRefusal::Grant(GrantRefusal::EndorsementNotYet { .. }) => {
                        ErrorCode::ClocksApart
                    }
                    AdmitRefusal::Guardian { .. }
                    | AdmitRefusal::Endorsement { .. }
                    | AdmitRefusal::Grant(_) => ErrorCode::GuardianNotEndorsed,
                };
                Trouble::refuse(
                    code,
                    format!("granting guardian {}", guardian.guardian.id.short()),
                    chain(&refusal),
                )
            })
        })
        .collect()
}
