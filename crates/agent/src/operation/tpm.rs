//! TPMs: made at most once for a VM; removed, or moved into the history.
//!
//! ```text
//!  nothing ── pool or swtpm ──► staged ── protector kept ──► protected ── state in place ──► made
//!     ▲                            │                            │                              │
//!     └──────────── RemoveTpm ─────┴────────────────────────────┴──────────────────────────────┘
//! ```
//! The key protector is on the disk before the state, because state without a protector could never be opened. If one
//! of the two is found and cannot be completed, no new TPM is made: a new TPM would hide the loss of the old one.

use super::Task;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::history;
use crate::keyring::{admit, parse_protector_der};
use crate::tpm_judge;
use crate::tpm_pool::ReadyTpm;
use fleetward_api::agent::operation::TpmMade;
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::{ErrorCode, Failure};
use fleetward_protector::{ExpiredAllowed, Guardian, KeyProtector};

impl Task<'_> {
    /// Makes a TPM for a VM that has none; a repeat gives the same answer.
    pub(super) async fn make_tpm(&self, recipients: &[EndorsedGuardian]) -> Result<TpmMade> {
        self.require_whole()?;
        let state = self.tpm_state_present().await?;
        let staged = ReadyTpm::at(self.record.staged_tpm());
        let protector = match (self.record.protector()?, state) {
            (Some(der), true) => parse_protector_der(&der, self.vm)?,
            (Some(der), false) if staged.is_whole() => {
                let protector = parse_protector_der(&der, self.vm)?;
                self.install(&staged).await?;
                protector
            }
            (Some(_), false) => {
                return Err(self.state_missing("its key protector is there, its TPM state is not"));
            }
            (None, true) => {
                return Err(
                    self.wrong_state("it has TPM state already, but no key protector is known")
                );
            }
            (None, false) => {
                if let Some(domain) = self.look().await?
                    && domain
                        .metadata
                        .is_some_and(|metadata| metadata.key_protector.is_some())
                {
                    return Err(self.state_missing(
                        "its definition holds a key protector, its TPM state is not there",
                    ));
                }
                let recipients = self.admit_recipients(recipients)?;
                let protector = self.make_staged(&staged, &recipients).await?;
                self.install(&staged).await?;
                protector
            }
        };
        let ek_certificate = self
            .record
            .ek_certificate()?
            .ok_or_else(|| self.wrong_state("the EK certificate of its TPM is not on record"))?;
        staged.remove()?;
        Ok(TpmMade {
            key_id: protector.inspect().binding.key_id,
            key_protector: protector.to_base64(),
            ek_certificate: ek_certificate.to_base64(),
        })
    }

    /// The VM is not defined yet, so the group is the one all recipients are endorsed for; this host's own must be it.
    fn admit_recipients(&self, recipients: &[EndorsedGuardian]) -> Result<Vec<Guardian>> {
        admit(
            recipients,
            &self.host.authority,
            &self.host.member.group,
            &ExpiredAllowed::none(),
        )
    }

    /// Takes a TPM made ahead, or makes one, and seals its key for the VM.
    async fn make_staged(
        &self,
        staged: &ReadyTpm,
        recipients: &[Guardian],
    ) -> Result<KeyProtector> {
        self.record.prepare()?;
        if !staged.is_whole() {
            staged.remove()?;
            self.progress(0, 0, "making the TPM");
            self.host.tpm_pool.take(self.host, staged).await?;
        }
        let key = staged.open(&self.host.keyring)?;
        let protector = self.host.keyring.seal(
            self.vm,
            &key,
            recipients,
            &self.purpose("a new TPM; recipients endorsed by the fleet's authority"),
        )?;
        drop(key);
        self.record.keep_ek_certificate(&staged.ek_certificate()?)?;
        self.record.keep_protector(&protector)?;
        let protector = KeyProtector::clone(&protector);
        if let Some((state, lockout)) = staged.proven() {
            tpm_judge::has_opened(self.host, self.vm, &protector, &state, lockout);
        }
        Ok(protector)
    }

    async fn install(&self, staged: &ReadyTpm) -> Result<()> {
        self.host
            .tpms
            .install(self.vm, &staged.state())
            .await
            .attempt(|| format!("putting the TPM of VM {} in place", self.vm))
    }

    pub(super) async fn tpm_state_present(&self) -> Result<bool> {
        self.host
            .tpms
            .state(self.vm)
            .await
            .map(|state| state.is_some())
            .attempt(|| format!("looking for the TPM state of VM {}", self.vm))
    }

    fn state_missing(&self, because: &str) -> Trouble {
        Failure::new(ErrorCode::TpmStateMissing, format!("VM {}", self.vm))
            .because(because)
            .into()
    }

    /// Removes the TPM as [`Self::remove_tpm`] does; with `history`, the VM's history too.
    pub(super) async fn remove_tpm_and_history(&self, keep: bool, history: bool) -> Result<()> {
        self.remove_tpm(keep).await?;
        if history {
            self.forget_history()?;
        }
        Ok(())
    }

    /// Removes the TPM; with `keep`, a copy of state and key protector goes into the history first.
    pub(super) async fn remove_tpm(&self, keep: bool) -> Result<()> {
        self.require_stopped().await?;
        self.require_whole()?;
        let state = self.tpm_state_present().await?;
        let protector = self.record.protector()?;
        if state || protector.is_some() {
            self.host.keyring.record_removal(
                self.vm,
                &self.purpose(if keep {
                    "kept in the history"
                } else {
                    "for good"
                }),
            )?;
        }
        if keep && state {
            self.keep_in_history(protector.as_deref()).await?;
        }
        // State first: a protector without state says clearly what is missing, should we be stopped here.
        self.host
            .tpms
            .remove(self.vm)
            .await
            .attempt(|| format!("removing the TPM state of VM {}", self.vm))?;
        ReadyTpm::at(self.record.staged_tpm()).remove()?;
        self.record.forget_tpm()?;
        self.record.tidy();
        Ok(())
    }

    pub(super) async fn keep_in_history(&self, protector: Option<&[u8]>) -> Result<()> {
        let tpms = &self.host.tpms;
        let state = match tpms.read_state(self.vm).await {
            Ok(state) => state,
            // Damaged state is replaced all the same, and is kept as it is; what the disk does not give back is lost already.
            Err(error) => {
                tracing::warn!(vm = %self.vm, error = &error as &dyn std::error::Error, "the TPM state is damaged");
                tpms.read_damaged_state(self.vm).await.unwrap_or_default()
            }
        };
        let ek_certificate = self.record.ek_certificate()?;
        let kept = history::Kept {
            state: &state,
            protector,
            ek_certificate: ek_certificate.as_deref(),
        };
        history::keep(&self.host.layout.history(), self.vm, &kept)
            .map_err(|error| self.history_trouble(&error))
    }

    pub(super) fn forget_history(&self) -> Result<()> {
        history::forget(&self.host.layout.history(), self.vm)
            .map_err(|error| self.history_trouble(&error))
    }

    fn history_trouble(&self, error: &std::io::Error) -> Trouble {
        let directory = self.host.layout.history();
        Trouble::file(format!("the history of VM {}", self.vm), &directory, error)
    }
}
