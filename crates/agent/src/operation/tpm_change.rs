//! The TPM of an existing VM: attach, detach, roll, restore, unlock.
//!
//! ```text
//!  off ── MakeTpm ── AttachTpm ──► on ── DetachTpm ── SetAsideTpm (history) ──► off
//!  PrepareRoll | PrepareRestore | PrepareUnlock ──► tpm-next/ {state, protector} proved ── CommitTpm ──► in place
//! ```
//! A replacement is made and proved in `tpm-next` first. [`commit`](Task::commit_tpm) then renames the state into
//! place, and the key protector after it. Between the two, `tpm-next` still has the key protector that opens the
//! installed state, so a crash at any line leaves either the old or the new TPM complete. All of this is for stopped
//! VMs only.

use super::Task;
use crate::ek::JudgedEk;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::keyring::{OwnedProtector, admit, parse_protector_der};
use crate::tpm_judge;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::operation::Protector;
use fleetward_api::tpm::TpmBundle;
use fleetward_durable::{self as durable, Access};
use fleetward_hypervisor::{DomainChange, Error as HypervisorError, SecretText};
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure};
use fleetward_protector::ExpiredAllowed;
use fleetward_protector_open::TpmKey;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// A TPM that is proved and waits to be put in place.
struct NextTpm {
    state: Vec<u8>,
    protector: OwnedProtector,
    ek_certificate: Option<JudgedEk>,
    /// SHA-256 of the state it was made from; none when it does not depend on what is in place.
    base: Option<String>,
}

/// The TPM state that a VM has.
enum InPlace {
    Nothing,
    /// Something that is no TPM state.
    Damaged,
    Whole(Vec<u8>),
}

impl InPlace {
    fn whole(&self) -> Option<&[u8]> {
        match self {
            Self::Whole(state) => Some(state),
            Self::Nothing | Self::Damaged => None,
        }
    }
}

impl Task<'_> {
    /// Defines the VM with the TPM that was made for it.
    pub(super) async fn attach_tpm(&self) -> Result<()> {
        self.require_stopped().await?;
        self.require_whole()?;
        let (_, mut metadata) = self.managed().await?;
        let missing = |because: &str| {
            Trouble::refuse(
                ErrorCode::TpmStateMissing,
                format!("VM {}", metadata.spec.name),
                because,
            )
        };
        let protector = self
            .record
            .protector()?
            .ok_or_else(|| missing("no TPM has been made for it"))?;
        if !self.tpm_state_present().await? {
            return Err(missing("there is no TPM state on this host"));
        }
        metadata.key_protector = Some(STANDARD.encode(&protector));
        let ek_certificate = self.record.ek_certificate()?;
        metadata.ek_certificate = ek_certificate.map(|ek| ek.to_base64());
        metadata.spec.tpm = true;
        metadata.generation = self.generation;
        self.redefine(&metadata, &tpm_device(true)).await?;
        Ok(())
    }

    /// Defines the VM without a TPM; state and key protector stay where they are.
    pub(super) async fn detach_tpm(&self) -> Result<()> {
        self.require_stopped().await?;
        self.require_whole()?;
        let (_, mut metadata) = self.managed().await?;
        if metadata.spec.tpm
            && let Some(text) = &metadata.key_protector
        {
            // Attaching it again needs the protector that is in use, not an older one.
            let der = STANDARD.decode(text).unwrap_or_default();
            match parse_protector_der(&der, self.vm) {
                Ok(protector) => self
                    .record
                    .keep_protector(&OwnedProtector::in_place(protector))?,
                // Whoever switches a TPM off may do so because of this; the last good one stays in the record.
                Err(damaged) => {
                    tracing::warn!(vm = %self.vm, because = damaged.failure.because, "the key protector is damaged");
                }
            }
            if let Some(ek) = metadata
                .ek_certificate
                .as_deref()
                .and_then(|text| STANDARD.decode(text).ok())
            {
                self.record.keep_ek_certificate(&JudgedEk::in_place(ek))?;
            }
        }
        metadata.spec.tpm = false;
        metadata.key_protector = None;
        metadata.ek_certificate = None;
        metadata.generation = self.generation;
        self.redefine(&metadata, &tpm_device(false)).await?;
        self.drop_secret().await?;
        Ok(())
    }

    /// Moves the TPM of a VM that is defined without one into the history.
    pub(super) async fn set_aside_tpm(&self) -> Result<()> {
        let (_, metadata) = self.managed().await?;
        if metadata.spec.tpm {
            return Err(self.wrong_state("its definition has a TPM, which is in use"));
        }
        self.remove_tpm(true).await
    }

    /// Encrypts the state under a new key, wrapped for this host and for `to`.
    pub(super) async fn prepare_roll(&self, to: &[EndorsedGuardian]) -> Result<Protector> {
        self.require_stopped().await?;
        self.require_whole()?;
        let (_, metadata) = self.managed().await?;
        let recipients = admit(
            to,
            &self.host.authority,
            &metadata.spec.group,
            &ExpiredAllowed::none(),
        )?;
        let current = self.current_protector(&metadata)?;
        self.require_known(&metadata, &current, &recipients)?;
        let purpose = self.purpose("the TPM key is replaced");
        let old = self.host.keyring.open_secret(&current, self.vm, &purpose)?;
        let key = TpmKey::generate()
            .map_err(|error| Failure::new(ErrorCode::Internal, "a new TPM key").because(error))?;
        let protector = self
            .host
            .keyring
            .seal_rolled(self.vm, &key, &recipients, &purpose)?;
        let new = SecretText::new(key.expose_base64());
        let before = tpm_judge::whole(self.host, self.vm, &metadata.spec.name).await?;
        self.progress(0, 0, "encrypting the TPM under its new key");
        let state = self.reencrypt(&before, &old, &new).await?;
        self.keep_next(&NextTpm {
            state,
            protector: protector.clone(),
            ek_certificate: None,
            base: Some(digest(&before)),
        })?;
        Ok(Protector {
            key_protector: protector.to_base64(),
        })
    }

    /// Proves that a kept version is of this VM and opens here, and lays it ready.
    pub(super) async fn prepare_restore(&self, bundle: &TpmBundle) -> Result<Protector> {
        self.require_stopped().await?;
        self.require_whole()?;
        let (_, metadata) = self.managed().await?;
        let what = || format!("the kept TPM of VM {}", metadata.spec.name);
        let parts = bundle.check().map_err(|problem| {
            Trouble::refuse(ErrorCode::EscrowCorrupt, what(), problem.to_string())
        })?;
        if bundle.vm != self.vm {
            return Err(Trouble::refuse(
                ErrorCode::EscrowCorrupt,
                what(),
                format!("it is of VM {}", bundle.vm),
            ));
        }
        let protector = parse_protector_der(&parts.key_protector, self.vm)?;
        let protector = self.judge_owner(protector, metadata.spec.name.as_str())?;
        let ek_certificate = match parts.ek_certificate {
            Some(ek) => Some(self.judge_ek(ek, &metadata)?),
            None => None,
        };
        let purpose = self.purpose("an earlier version of the TPM is brought back");
        let secret = self
            .host
            .keyring
            .open_secret(&protector, self.vm, &purpose)?;
        self.host
            .tpms
            .prove_state(&parts.state, &secret)
            .await
            .attempt(what)?;
        self.keep_next(&NextTpm {
            state: parts.state,
            protector: protector.clone(),
            ek_certificate,
            base: None,
        })?;
        Ok(Protector {
            key_protector: protector.to_base64(),
        })
    }

    /// Clears the lockout counter of a copy, and lays it ready: the same TPM under the same key.
    pub(super) async fn prepare_unlock(&self) -> Result<Protector> {
        self.require_stopped().await?;
        self.require_whole()?;
        let (_, metadata) = self.managed().await?;
        let protector = self.current_protector(&metadata)?;
        let purpose = self.purpose("the lockout of the TPM is cleared");
        let secret = self
            .host
            .keyring
            .open_secret(&protector, self.vm, &purpose)?;
        let before = tpm_judge::whole(self.host, self.vm, &metadata.spec.name).await?;
        let state = self
            .host
            .tpms
            .clear_lockout(&before, &secret)
            .await
            .attempt(|| format!("clearing the lockout of VM {}'s TPM", metadata.spec.name))?;
        self.keep_next(&NextTpm {
            state,
            protector: OwnedProtector::in_place(protector.clone()),
            ek_certificate: None,
            base: Some(digest(&before)),
        })?;
        Ok(Protector {
            key_protector: protector.to_base64(),
        })
    }

    /// Puts what was prepared in place; what was there goes into the history first.
    pub(super) async fn commit_tpm(&self, key_protector: &str) -> Result<()> {
        self.require_stopped().await?;
        self.require_whole()?;
        let (_, metadata) = self.managed().await?;
        let Some(next) = self.next()? else {
            // An earlier attempt came to the end, or there is nothing to come to an end.
            return match metadata.key_protector.as_deref() == Some(key_protector) {
                true => Ok(()),
                false => Err(self.wrong_state("the TPM that was prepared is not there any more")),
            };
        };
        let in_place = self.tpm_in_place().await?;
        let next = self
            .brought_up_to_date(&metadata, next, in_place.whole())
            .await?;
        if in_place.whole() != Some(next.state.as_slice()) {
            if !matches!(in_place, InPlace::Nothing) {
                let current = match &metadata.key_protector {
                    Some(text) => STANDARD.decode(text).ok(),
                    None => self.record.protector()?,
                };
                self.keep_in_history(current.as_deref()).await?;
            }
            self.host
                .tpms
                .replace_state(self.vm, &next.state)
                .await
                .attempt(|| format!("putting the TPM of VM {} in place", metadata.spec.name))?;
            // State and key protector are of different keys now; `settle_tpm` and a repeated commit know it.
            fleetward_failpoint::hold("agent.commit-tpm.replaced").await;
        }
        self.finish_commit(metadata, &next).await?;
        Ok(())
    }

    /// Drops what was prepared, unless its state is in place already: then only forward leads out.
    pub(super) async fn abandon_tpm(&self) -> Result<()> {
        if let Some(next) = self.next()?
            && self.tpm_in_place().await?.whole() == Some(next.state.as_slice())
        {
            let (_, metadata) = self.managed().await?;
            self.finish_commit(metadata, &next).await?;
            return Ok(());
        }
        self.forget_next()?;
        self.record.tidy();
        Ok(())
    }

    /// Before a start: a change that was broken off between state and key protector is brought to its end.
    pub(super) async fn settle_tpm(&self, metadata: VmMetadata) -> Result<VmMetadata> {
        let Some(next) = self.next()? else {
            return Ok(metadata);
        };
        if self.tpm_in_place().await?.whole() == Some(next.state.as_slice()) {
            return self.finish_commit(metadata, &next).await;
        }
        Ok(metadata)
    }

    /// The VM ran since its new state was made: the state it has now is encrypted instead.
    async fn brought_up_to_date(
        &self,
        metadata: &VmMetadata,
        next: NextTpm,
        in_place: Option<&[u8]>,
    ) -> Result<NextTpm> {
        let (Some(base), Some(in_place)) = (&next.base, in_place) else {
            return Ok(next);
        };
        if in_place == next.state || digest(in_place) == *base {
            return Ok(next);
        }
        let purpose = self.purpose("the TPM key is replaced");
        let current = self.current_protector(metadata)?;
        let keyring = &self.host.keyring;
        let old = keyring.open_secret(&current, self.vm, &purpose)?;
        let state = match current.der() == next.protector.der() {
            // The lockout was to be cleared. A TPM whose guest forbids that by now stays as it is.
            true => match self.host.tpms.clear_lockout(in_place, &old).await {
                Err(HypervisorError::TpmLockoutGuarded) => in_place.to_vec(),
                cleared => cleared.attempt(|| format!("clearing the lockout of VM {}", self.vm))?,
            },
            false => {
                let new = keyring.open_secret(&next.protector, self.vm, &purpose)?;
                self.reencrypt(in_place, &old, &new).await?
            }
        };
        let next = NextTpm {
            state,
            base: Some(digest(in_place)),
            ..next
        };
        // The base last: until it is there, this is done again.
        let directory = self.next_directory();
        durable::replace(&directory.join("state"), &next.state, Access::PRIVATE)
            .and_then(|()| {
                let base = next.base.as_deref().unwrap_or_default();
                durable::replace(&directory.join("base"), base.as_bytes(), Access::PRIVATE)
            })
            .map_err(|error| self.next_trouble(&error))?;
        Ok(next)
    }

    /// The second half of a commit: key protector and definition follow the state.
    async fn finish_commit(&self, mut metadata: VmMetadata, next: &NextTpm) -> Result<VmMetadata> {
        self.record.keep_protector(&next.protector)?;
        tpm_judge::accept(self.host, self.vm, &next.state)?;
        metadata.key_protector = Some(STANDARD.encode(next.protector.der()));
        if let Some(ek) = &next.ek_certificate {
            self.record.keep_ek_certificate(ek)?;
            metadata.ek_certificate = Some(ek.to_base64());
        }
        metadata.spec.tpm = true;
        metadata.generation = self.generation;
        self.redefine(&metadata, &tpm_device(true)).await?;
        self.forget_next()?;
        Ok(metadata)
    }

    async fn reencrypt(&self, state: &[u8], old: &SecretText, new: &SecretText) -> Result<Vec<u8>> {
        self.host
            .tpms
            .reencrypt_state(state, old, new)
            .await
            .attempt(|| format!("encrypting the TPM of VM {} under a new key", self.vm))
    }

    /// What a change would replace. That it is damaged is no reason not to: often it is the reason for the change.
    async fn tpm_in_place(&self) -> Result<InPlace> {
        if !self.tpm_state_present().await? {
            return Ok(InPlace::Nothing);
        }
        Ok(match self.host.tpms.read_state(self.vm).await {
            Ok(state) => InPlace::Whole(state),
            Err(error) => {
                tracing::warn!(vm = %self.vm, error = &error as &dyn std::error::Error, "the TPM state is damaged");
                InPlace::Damaged
            }
        })
    }

    fn next_directory(&self) -> PathBuf {
        self.host.layout.vm(self.vm).join("tpm-next")
    }

    fn keep_next(&self, next: &NextTpm) -> Result<()> {
        self.forget_next()?;
        self.record.prepare()?;
        let directory = self.next_directory();
        // Whole under its own name, or not there.
        let making = directory.with_extension("making");
        let optional = |name: &str, content: Option<&[u8]>| match content {
            Some(content) => durable::replace(&making.join(name), content, Access::PRIVATE),
            None => Ok(()),
        };
        durable::remove_tree(&making)
            .and_then(|()| durable::make_directory(&making, 0o700))
            .and_then(|()| durable::replace(&making.join("state"), &next.state, Access::PRIVATE))
            .and_then(|()| {
                durable::replace(
                    &making.join("protector.der"),
                    next.protector.der(),
                    Access::PRIVATE,
                )
            })
            .and_then(|()| optional("ek.der", next.ek_certificate.as_deref()))
            .and_then(|()| optional("base", next.base.as_deref().map(str::as_bytes)))
            .and_then(|()| durable::rename(&making, &directory))
            .map_err(|error| self.next_trouble(&error))
    }

    fn next(&self) -> Result<Option<NextTpm>> {
        let directory = self.next_directory();
        let read = |name: &str| {
            durable::read(&directory.join(name)).map_err(|error| self.next_trouble(&error))
        };
        let (Some(state), Some(protector)) = (read("state")?, read("protector.der")?) else {
            return Ok(None);
        };
        Ok(Some(NextTpm {
            state,
            protector: OwnedProtector::kept(&protector, self.vm)?,
            ek_certificate: read("ek.der")?.map(JudgedEk::kept),
            base: read("base")?.and_then(|text| String::from_utf8(text).ok()),
        }))
    }

    fn forget_next(&self) -> Result<()> {
        let directory = self.next_directory();
        durable::remove_tree(&directory)
            .and_then(|()| durable::remove_tree(&directory.with_extension("making")))
            .map_err(|error| self.next_trouble(&error))
    }

    fn next_trouble(&self, error: &std::io::Error) -> Trouble {
        Trouble::file(
            format!("the new TPM of VM {}", self.vm),
            self.next_directory(),
            error,
        )
    }
}

fn tpm_device(there: bool) -> DomainChange {
    DomainChange {
        tpm: Some(there),
        ..DomainChange::default()
    }
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
