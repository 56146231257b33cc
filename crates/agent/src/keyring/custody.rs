//! Importing, retiring and removing guardians, and exporting private keys.
//!
//! Each of these is recorded in the audit log before it happens. The callers check permissions: root on the host, or a
//! job.

use super::dependents::Dependent;
use super::store::{HalfAdded, thumbprint};
use super::{Keyring, KeyringError, Purpose};
use crate::audit::Use;
use crate::failure::{Result, Trouble, chain};
use fleetward_model::audit::AuditAction;
use fleetward_model::guardian::{CertificateFacts, CertificateRole, GuardianStanding};
use fleetward_model::{ErrorCode, Failure, GuardianId};
use fleetward_protector_open::{GuardianHalf, LocalGuardian, pfx};
use zeroize::Zeroizing;

/// A private key on its way out.
pub struct PfxFile {
    /// `VMSigning.pfx` or `VMEncryption.pfx`.
    pub name: &'static str,
    pub content: Zeroizing<Vec<u8>>,
}

/// What came of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub guardian: GuardianId,
    /// What it is to the host now; `Own` or `Retired` where it had been here all along.
    pub standing: GuardianStanding,
    /// False when it was here already, and nothing was changed.
    pub new: bool,
}

/// What came of importing one half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HalfImported {
    /// It waits for the other half, and is no guardian until that comes.
    Waits { new: bool },
    /// It completed a guardian, or belongs to one that is here already.
    Guardian(Imported),
}

impl Keyring {
    /// The private keys of a guardian as two PFX files: name and content.
    pub fn export_pfx(
        &self,
        id: &GuardianId,
        password: &Zeroizing<String>,
        protection: pfx::Protection,
        purpose: &Purpose,
    ) -> Result<Vec<PfxFile>> {
        let loaded = self.loaded();
        let guardian = loaded.find(id).map(|held| &held.guardian).ok_or_else(|| {
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
                pfx::export(guardian, role, password, protection)
                    .map(|content| PfxFile {
                        name: pfx::file_name(role),
                        content,
                    })
                    .map_err(|error| {
                        let code = match error {
                            pfx::PfxError::PasswordTooShort | pfx::PfxError::PasswordCharacters => {
                                ErrorCode::InvalidArgument
                            }
                            pfx::PfxError::Write(_) => ErrorCode::Internal,
                        };
                        Trouble::refuse(code, "the PFX file", chain(&error))
                    })
            })
            .collect()
    }

    /// Takes another host's guardian in. It opens what it was granted, and seals nothing new.
    pub fn import(&self, guardian: &LocalGuardian, purpose: &Purpose) -> Result<Imported> {
        let id = guardian.id();
        self.record(AuditAction::ImportPfx, None, id, purpose)?;
        let new = self
            .store
            .add(guardian, GuardianStanding::Imported)
            .map_err(|error| {
                Trouble::refuse(
                    ErrorCode::Internal,
                    format!("keeping guardian {}", id.short()),
                    chain(&error),
                )
            })?;
        let standing = self.loaded().find(id).map(|held| held.standing);
        Ok(Imported {
            guardian: id.clone(),
            standing: standing.ok_or_else(|| self.not_held(id))?,
            new,
        })
    }

    /// Takes one half of another host's guardian in. It waits, and counts for nothing, until the other half comes.
    pub fn import_half(&self, half: GuardianHalf, purpose: &Purpose) -> Result<HalfImported> {
        let sha256 = thumbprint(half.certificate());
        let facts = self.facts();
        let whole = facts.iter().find(|facts| {
            let mut certificates = facts.certificates.iter();
            certificates.any(|certificate| certificate.sha256 == sha256)
        });
        if let Some(whole) = whole {
            // The import that brought it may have been stopped before it was done with the halves.
            self.store.tidy().map_err(|error| {
                Trouble::refuse(ErrorCode::Internal, "the guardian store", chain(&error))
            })?;
            return Ok(HalfImported::Guardian(Imported {
                guardian: whole.id.clone(),
                standing: whole.standing,
                new: false,
            }));
        }
        let subject = half.certificate().subject();
        let on_record = |guardian: Option<&GuardianId>| {
            let what = match guardian {
                Some(_) => "the half that was missing",
                None => "half a guardian, which waits for the other",
            };
            let used = Use {
                actor: purpose.actor.clone(),
                action: AuditAction::ImportPfx,
                vm: None,
                guardian: guardian.cloned(),
                reason: format!("{}: {what}: {subject} (SHA-256 {sha256})", purpose.reason),
                job: purpose.job,
            };
            self.audit.record(used).map_err(KeyringError::Audit)
        };
        let not_a_pair = |because: String| -> Trouble {
            Failure::new(ErrorCode::PfxNotAPair, format!("importing {subject}"))
                .because(because)
                .fix("give both files of the guardian in one command: fleetward-agent guardian import-pfx VMSigning.pfx VMEncryption.pfx")
                .into()
        };
        let added = self.store.add_half(half, on_record).map_err(|error| {
            Trouble::refuse(
                ErrorCode::Internal,
                format!("keeping the certificate {subject}"),
                chain(&error),
            )
        })?;
        match added {
            HalfAdded::Waits => Ok(HalfImported::Waits { new: true }),
            HalfAdded::WaitedBefore => Ok(HalfImported::Waits { new: false }),
            HalfAdded::Ambiguous => Err(not_a_pair(
                "several halves that wait here could be the other one".into(),
            )),
            HalfAdded::NotAPair(error) => Err(not_a_pair(chain(&error))),
            HalfAdded::Completed(guardian) => Ok(HalfImported::Guardian(Imported {
                guardian: guardian.id().clone(),
                standing: GuardianStanding::Imported,
                new: true,
            })),
        }
    }

    /// Certificates that came in without the other half of their guardian, and wait for it.
    pub fn halves(&self) -> Result<Vec<CertificateFacts>, KeyringError> {
        let halves = self.store.halves()?;
        Ok(halves
            .iter()
            .map(|half| half.certificate().facts())
            .collect())
    }

    /// Removes a half that waits, with its private key.
    pub fn remove_half(&self, certificate: &CertificateFacts, purpose: &Purpose) -> Result<()> {
        let refused = |error: String| {
            Trouble::refuse(
                ErrorCode::Internal,
                format!("removing the certificate {}", certificate.subject),
                error,
            )
        };
        let used = Use {
            actor: purpose.actor.clone(),
            action: AuditAction::RemoveGuardian,
            vm: None,
            guardian: None,
            reason: format!(
                "{}: half a guardian: {} (SHA-256 {})",
                purpose.reason, certificate.subject, certificate.sha256
            ),
            job: purpose.job,
        };
        self.audit
            .record(used)
            .map_err(|error| refused(error.to_string()))?;
        self.store
            .remove_half(&certificate.sha256)
            .map_err(|error| refused(chain(&error)))
    }

    /// Makes `guardian` the host's own; the former own one is retired, and opens as before.
    pub fn replace_own(&self, guardian: &LocalGuardian, purpose: &Purpose) -> Result<()> {
        self.record(AuditAction::MakeGuardian, None, guardian.id(), purpose)?;
        self.store.replace_own(guardian).map_err(|error| {
            Trouble::refuse(
                ErrorCode::Internal,
                format!("keeping guardian {}", guardian.id().short()),
                chain(&error),
            )
        })
    }

    /// Removes a guardian and its private keys from this host. The own one stays, and so does every one without which a VM
    /// of this host, or a TPM kept in its history, would not open any more.
    pub fn remove(
        &self,
        id: &GuardianId,
        dependents: &[Dependent],
        purpose: &Purpose,
    ) -> Result<()> {
        let loaded = self.loaded();
        let held = loaded.find(id).ok_or_else(|| self.not_held(id))?;
        let refuse = |because: String, fix: String| -> Trouble {
            Failure::new(ErrorCode::GuardianInUse, format!("guardian {}", id.short()))
                .because(because)
                .fix(fix)
                .into()
        };
        if held.standing == GuardianStanding::Own {
            return Err(refuse(
                format!("it is the own guardian of host {}", self.host),
                format!("fleetward guardian rotate --host {}", self.host),
            ));
        }
        let depending: Vec<String> = dependents
            .iter()
            .filter(|dependent| dependent.opens_only_with(id, |other| self.holds(other)))
            .map(ToString::to_string)
            .collect();
        if !depending.is_empty() {
            return Err(refuse(
                format!(
                    "without it these would not open on this host any more: {}",
                    depending.join(", ")
                ),
                format!(
                    "wrap them for the host's own guardian first: fleetward guardian grant --all --to {}",
                    self.host
                ),
            ));
        }
        self.record(AuditAction::RemoveGuardian, None, id, purpose)?;
        self.store.remove(id).map_err(|error| {
            Trouble::refuse(
                ErrorCode::Internal,
                format!("removing guardian {}", id.short()),
                chain(&error),
            )
        })
    }

    fn not_held(&self, id: &GuardianId) -> Trouble {
        Trouble::refuse(
            ErrorCode::GuardianNotFound,
            format!("guardian {id}"),
            format!("host {} does not hold it", self.host),
        )
    }
}
