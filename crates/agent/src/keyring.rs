//! The host's guardians with their private keys, and everything that is done with them: open, seal, grant, export.
//!
//! Keys lie in `guardians/`, readable by root only, and encrypted where systemd hands over a credential named
//! `fleetward-guardian-key` (which systemd-creds can seal to the host's TPM). Every use is on record before it happens.

use crate::audit::{AuditLog, Use};
use crate::durable;
use crate::failure::{Result, Trouble, chain};
use fleetward_api::agent::CanOpen;
use fleetward_hypervisor::SecretText;
use fleetward_model::audit::AuditAction;
use fleetward_model::guardian::{CertificateRole, EndorsedGuardian, GuardianFacts};
use fleetward_model::{ErrorCode, Failure, GroupName, GuardianId, HostName, JobId, KeyId, VmId};
use fleetward_protector::{
    AuthorityKey, ExpiredAllowed, Guardian, KeyProtector, KeyProtectorError, rules,
};
use fleetward_protector_open::{LocalGuardian, SealRequest, StorageKey, TpmKey, pfx};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// The systemd credential that encrypts the store: 32 bytes.
const CREDENTIAL: &str = "fleetward-guardian-key";

/// This host's guardians. The first is its own, which owns what is made here.
pub struct Keyring {
    host: HostName,
    guardians: Vec<LocalGuardian>,
    audit: Arc<AuditLog>,
    sealed: bool,
}

/// A private key on its way out.
pub struct PfxFile {
    /// `VMSigning.pfx` or `VMEncryption.pfx`.
    pub name: &'static str,
    pub content: Zeroizing<Vec<u8>>,
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
    #[error("no guardian could be made: {0}")]
    Make(String),
    #[error("the credential {path} must be exactly 32 bytes")]
    StorageKey { path: PathBuf },
    #[error("this host has no guardian yet; it is made when the host joins a fleet")]
    Empty,
}

/// The key that encrypts the store, where the service manager gives one.
fn storage_key() -> Result<Option<StorageKey>, KeyringError> {
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
        return Ok(None);
    };
    let path = Path::new(&directory).join(CREDENTIAL);
    let content = durable::read(&path)
        .map(|content| content.map(Zeroizing::new))
        .map_err(|source| KeyringError::File {
            path: path.clone(),
            source,
        })?;
    let Some(content) = content else {
        return Ok(None);
    };
    let mut bytes: [u8; 32] = content
        .as_slice()
        .try_into()
        .map_err(|_| KeyringError::StorageKey { path })?;
    Ok(Some(StorageKey::from_bytes(&mut bytes)))
}

impl Keyring {
    /// Makes the host's own guardian if it has none. Takes a second when it does.
    pub fn ensure_own(
        directory: &Path,
        host: &HostName,
        audit: &AuditLog,
        purpose: &Purpose,
    ) -> Result<(), KeyringError> {
        let path = directory.join("own.guardian");
        if path.exists() {
            return Ok(());
        }
        let guardian = LocalGuardian::generate(host, OffsetDateTime::now_utc())
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
            .map_err(|source| KeyringError::File {
                path: path.clone(),
                source,
            })?;
        let key = storage_key()?;
        let stored = guardian
            .to_storage(key.as_ref())
            .map_err(|error| KeyringError::Make(chain(&error)))?;
        durable::write(&path, &stored).map_err(|source| KeyringError::File { path, source })
    }

    /// Reads the store.
    pub fn open(
        directory: &Path,
        host: HostName,
        audit: Arc<AuditLog>,
    ) -> Result<Self, KeyringError> {
        let key = storage_key()?;
        let path = directory.join("own.guardian");
        let stored = durable::read(&path)
            .map_err(|source| KeyringError::File {
                path: path.clone(),
                source,
            })?
            .map(Zeroizing::new)
            .ok_or(KeyringError::Empty)?;
        let own = LocalGuardian::from_storage(&stored, key.as_ref()).map_err(|error| {
            KeyringError::Unreadable {
                path,
                because: chain(&error),
            }
        })?;
        Ok(Self {
            host,
            guardians: vec![own],
            audit,
            sealed: key.is_some(),
        })
    }

    fn own(&self) -> &LocalGuardian {
        &self.guardians[0]
    }

    /// Whether private keys are encrypted on the disk.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// The guardians as lists show them, the own one first.
    pub fn facts(&self) -> Vec<GuardianFacts> {
        self.guardians
            .iter()
            .enumerate()
            .map(|(at, guardian)| guardian.public().facts(self.host.clone(), at == 0, true))
            .collect()
    }

    /// Whether a VM's key protector opens here. Opens it to find out; the key is wiped at once.
    pub(crate) fn can_open(&self, protector: Option<&str>, vm: VmId, purpose: &Purpose) -> CanOpen {
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
        match self.open_protector(&protector, vm, purpose) {
            Ok(_) => CanOpen::Yes,
            Err(Trouble { failure, .. }) if failure.code == ErrorCode::KeyNotGranted => {
                CanOpen::NotGranted
            }
            Err(Trouble { failure, .. }) => unreadable(failure.because),
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
        let Some(guardian) = self
            .guardians
            .iter()
            .find(|guardian| inspection.is_granted(guardian.id()))
        else {
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

    /// Seals a TPM key for a VM: owned by this host's guardian, wrapped for `recipients` too.
    pub(crate) fn seal(
        &self,
        vm: VmId,
        key: &TpmKey,
        recipients: &[Guardian],
        purpose: &Purpose,
    ) -> Result<KeyProtector> {
        self.record(AuditAction::MakeTpm, Some(vm), self.own().id(), purpose)?;
        for guardian in recipients.iter().filter(|g| g.id() != self.own().id()) {
            self.record(AuditAction::Grant, Some(vm), guardian.id(), purpose)?;
        }
        fleetward_protector_open::seal(&SealRequest {
            vm_id: vm,
            key_id: KeyId(uuid::Uuid::new_v4()),
            tpm_key: key,
            owner: self.own(),
            recipients,
            now: OffsetDateTime::now_utc(),
            expired: &ExpiredAllowed::none(),
        })
        .map_err(|error| {
            Trouble::refuse(
                ErrorCode::GuardianExpired,
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
            owner: self.own(),
            recipients: &[],
            now: OffsetDateTime::now_utc(),
            expired: &ExpiredAllowed::none(),
        })
        .map_err(|error| chain(&error))
    }

    /// Opens what [`seal_ahead`](Self::seal_ahead) sealed.
    pub(crate) fn open_ahead(&self, der: &[u8], placeholder: VmId) -> Result<TpmKey, String> {
        let protector = KeyProtector::from_der(der).map_err(|error| chain(&error))?;
        fleetward_protector_open::open(&protector, placeholder, self.own())
            .map(|opened| opened.tpm_key)
            .map_err(|error| chain(&error))
    }

    /// Wraps a VM's key for more guardians, keeping the key. When this host is not the owner it becomes it, keeping all
    /// recipients it can name.
    pub(crate) fn grant(
        &self,
        protector: &KeyProtector,
        vm: VmId,
        recipients: &[Guardian],
        purpose: &Purpose,
    ) -> Result<KeyProtector> {
        let inspection = protector.inspect();
        let new: Vec<Guardian> = recipients
            .iter()
            .filter(|guardian| !inspection.is_granted(guardian.id()))
            .cloned()
            .collect();
        if new.is_empty() {
            return Ok(protector.clone());
        }
        for guardian in &new {
            self.record(AuditAction::Grant, Some(vm), guardian.id(), purpose)?;
        }
        let now = OffsetDateTime::now_utc();
        let expired = ExpiredAllowed::none();
        let granted = if inspection.owner.id() == self.own().id() {
            fleetward_protector_open::grant(protector, vm, self.own(), &new, now, &expired)
        } else {
            let mut all = recipients.to_vec();
            all.push(inspection.owner.clone());
            // The former owner may have expired; what it could open it still opens.
            let expired = ExpiredAllowed::named([inspection.owner.id().clone()]);
            fleetward_protector_open::take_over(protector, vm, self.own(), &all, now, &expired)
        };
        granted.map_err(|error| {
            Trouble::refuse(
                ErrorCode::KeyProtectorUnreadable,
                format!("wrapping the TPM key of VM {vm} anew"),
                chain(&error),
            )
        })
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
        self.record(AuditAction::RemoveTpm, Some(vm), self.own().id(), purpose)
    }

    /// Records that a key protector was put back.
    pub(crate) fn record_put(&self, vm: VmId, owner: &GuardianId, purpose: &Purpose) -> Result<()> {
        self.record(AuditAction::PutProtector, Some(vm), owner, purpose)
    }

    /// The private keys of a guardian as two PFX files: name and content.
    pub fn export_pfx(
        &self,
        id: &GuardianId,
        password: &Zeroizing<String>,
        purpose: &Purpose,
    ) -> Result<Vec<PfxFile>> {
        let guardian = self
            .guardians
            .iter()
            .find(|guardian| guardian.id() == id)
            .ok_or_else(|| {
                Trouble::refuse(
                    ErrorCode::GuardianNotFound,
                    format!("guardian {id}"),
                    format!("host {} does not hold it", self.host),
                )
            })?;
        self.record(AuditAction::ExportPfx, None, id, purpose)?;
        [CertificateRole::Signing, CertificateRole::Encryption]
            .into_iter()
            .map(|role| {
                pfx::export(guardian, role, password)
                    .map(|content| PfxFile {
                        name: pfx::file_name(role),
                        content,
                    })
                    .map_err(|error| {
                        Trouble::refuse(ErrorCode::Internal, "the PFX file", chain(&error))
                    })
            })
            .collect()
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
                Trouble::refuse(
                    ErrorCode::Internal,
                    format!("{action} without an audit record"),
                    error.to_string(),
                )
            })
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring")
            .field("guardians", &self.guardians.len())
            .field("sealed", &self.sealed)
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

/// Guardians that may be wrapped for: endorsed by the pinned authority for the VM's group, and in time.
pub(crate) fn admit(
    endorsed: &[EndorsedGuardian],
    authority: &AuthorityKey,
    group: &GroupName,
) -> Result<Vec<Guardian>> {
    endorsed
        .iter()
        .map(|guardian| {
            rules::admit(
                guardian,
                authority,
                group,
                OffsetDateTime::now_utc(),
                &ExpiredAllowed::none(),
            )
            .map_err(|refusal| {
                let expired = matches!(
                    &refusal,
                    rules::AdmitRefusal::Grant(rules::GrantRefusal::Certificate(_))
                );
                let code = if expired {
                    ErrorCode::GuardianExpired
                } else {
                    ErrorCode::GuardianNotEndorsed
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
