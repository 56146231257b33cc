//! Starting, stopping, pausing.

use super::Task;
use crate::failure::chain;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::keyring::OwnedProtector;
use crate::machines;
use crate::tpm_judge;
use fleetward_api::agent::operation::Stopped;
use fleetward_hypervisor::{DomainObserved, DomainState, Shutdown, StopReason};
use fleetward_model::vm::{StoppedBy, VmMetadata};
use fleetward_model::{ErrorCode, Failure};
use std::time::Duration;
use tokio::time::Instant;

/// A guest that is still in its firmware does not hear the power button: it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(5);

/// A guest whose agent took the request gets so long before its power button is pressed, at most half of its time.
const AGENT_FIRST: Duration = Duration::from_secs(30);

/// A forced stop waits so long for the TPM to shut down: what hangs is what people force to stop.
const TPM_PATIENCE: Duration = Duration::from_secs(4);

/// How often a stopping guest is looked at.
const LOOK: Duration = Duration::from_millis(200);

impl Task<'_> {
    /// Opens the key protector, loads the secret, starts. A running VM is left alone.
    pub(super) async fn start(&self) -> Result<()> {
        let (domain, metadata) = self.managed().await?;
        self.require_whole()?;
        match domain.state {
            DomainState::Running => return Ok(()),
            DomainState::Paused { incoming: true } => {
                return Err(self.wrong_state("its memory is still arriving"));
            }
            DomainState::Paused { incoming: false } => {
                self.resume().await?;
                return Ok(());
            }
            DomainState::Stopped(_) => {}
        }
        self.make_variables(&domain)?;
        let metadata = match domain.tpm {
            true => self.settle_tpm(metadata).await?,
            false => metadata,
        };
        self.boot(&metadata, domain.tpm).await?;
        Ok(())
    }

    /// Starts a stopped domain, its secret loaded for as long as it runs.
    pub(super) async fn boot(&self, metadata: &VmMetadata, has_tpm: bool) -> Result<()> {
        if has_tpm {
            let name = &metadata.spec.name;
            tpm_judge::whole(self.host, self.vm, name).await?;
            let strays = self.host.tpms.remove_strays(self.vm).await;
            strays.attempt(|| format!("clearing the TPM's directory of VM {name}"))?;
            let protector = OwnedProtector::in_place(self.current_protector(metadata)?);
            self.load_secret(metadata, &protector, "the VM starts")
                .await?;
            self.put_own_beside(metadata).await?;
        }
        self.progress(0, 0, "starting");
        let started = self.host.hypervisor.start(self.vm).await;
        if has_tpm && started.is_err() {
            // The start's error is the one to tell; a secret that stays is dropped when the operation has ended.
            let _ = self.drop_secret().await;
            // swtpm says of a TPM that it refuses only a number; why is found out here.
            let name = &metadata.spec.name;
            let state = tpm_judge::whole(self.host, self.vm, name).await?;
            let purpose = self.purpose("the VM did not start: its TPM is tried");
            tpm_judge::opens(self.host, self.vm, metadata, &state, &purpose).await?;
        }
        started.attempt(|| format!("starting VM {}", metadata.spec.name))
    }

    /// Opens the VM's key protector with a guardian of this host and hands the key to the hypervisor. The key protector
    /// has proved good then, and is kept as such.
    pub(super) async fn load_secret(
        &self,
        metadata: &VmMetadata,
        protector: &OwnedProtector,
        reason: &str,
    ) -> Result<()> {
        let secret = self
            .host
            .keyring
            .open_secret(protector, self.vm, &self.purpose(reason))?;
        self.host
            .hypervisor
            .load_secret(self.vm, &secret)
            .await
            .attempt(|| format!("loading the secret of VM {}", metadata.spec.name))?;
        if self.record.protector()?.as_deref() != Some(protector.der()) {
            self.record.keep_protector(protector)?;
        }
        Ok(())
    }

    pub(super) async fn resume(&self) -> Result<()> {
        self.host
            .hypervisor
            .resume(self.vm)
            .await
            .attempt(|| format!("letting VM {} run", self.vm))
    }

    /// Stops the processors. A paused VM is left alone.
    pub(super) async fn pause(&self) -> Result<()> {
        let (domain, metadata) = self.managed().await?;
        self.require_whole()?;
        match domain.state {
            DomainState::Running => {}
            DomainState::Paused { incoming: false } => return Ok(()),
            DomainState::Paused { incoming: true } => {
                return Err(self.wrong_state("its memory is still arriving"));
            }
            DomainState::Stopped(_) => return Err(self.not_running(&metadata)),
        }
        machines::require_answer(self.host, self.vm, &metadata.spec.name).await?;
        self.host
            .hypervisor
            .suspend(self.vm)
            .await
            .attempt(|| format!("pausing VM {}", metadata.spec.name))
    }

    /// Lets a paused VM run on. A running VM is left alone.
    pub(super) async fn resume_paused(&self) -> Result<()> {
        let (domain, metadata) = self.managed().await?;
        self.require_whole()?;
        match domain.state {
            DomainState::Running => Ok(()),
            DomainState::Paused { incoming: false } => {
                machines::require_answer(self.host, self.vm, &metadata.spec.name).await?;
                self.resume().await
            }
            DomainState::Paused { incoming: true } => {
                Err(self.wrong_state("its memory is still arriving"))
            }
            DomainState::Stopped(_) => Err(self.not_running(&metadata)),
        }
    }

    fn not_running(&self, metadata: &VmMetadata) -> Trouble {
        Trouble::refuse(
            ErrorCode::VmNotRunning,
            format!("VM {}", metadata.spec.name),
            "it is stopped",
        )
    }

    /// Cuts the power, or asks the guest and waits until the deadline.
    pub(super) async fn stop(&self, force: bool, deadline_seconds: u32) -> Result<Stopped> {
        let Some(domain) = self.look().await? else {
            return Ok(Stopped::default());
        };
        let saved = match domain.state {
            DomainState::Stopped(StopReason::Saved) => true,
            DomainState::Stopped(_) => {
                self.drop_secret_unless_arriving().await?;
                return Ok(Stopped::default());
            }
            DomainState::Running | DomainState::Paused { .. } => false,
        };
        if saved && !force {
            return Err(self.saved());
        }
        if domain.metadata.is_none() {
            return Err(
                Failure::new(ErrorCode::VmNotManaged, format!("VM {}", domain.name)).into(),
            );
        }
        self.require_whole()?;
        let by = if saved {
            self.host
                .hypervisor
                .discard_saved(self.vm)
                .await
                .attempt(|| format!("giving up the saved memory of VM {}", self.vm))?;
            StoppedBy::PowerOff
        } else if force {
            self.end_tpm(&domain).await;
            self.destroy().await?;
            StoppedBy::PowerOff
        } else {
            machines::require_answer(self.host, self.vm, &domain.name).await?;
            let patience = Duration::from_secs(deadline_seconds.into());
            self.shut_down(patience, domain.guest_agent).await?
        };
        self.drop_secret().await?;
        Ok(Stopped { by: Some(by) })
    }

    async fn drop_secret_unless_arriving(&self) -> Result<()> {
        match self.record.incoming()? {
            Some(_) => Ok(()),
            None => self.drop_secret().await,
        }
    }

    /// Lets the TPM shut down before the power is cut, where QEMU and swtpm still listen. A TPM counts any other end like a
    /// wrong guess, and a few of those lock it.
    async fn end_tpm(&self, domain: &DomainObserved) {
        // Asking one that hangs would take half a minute, and hold up what comes next.
        if !domain.tpm || !self.host.machines.answers(self.vm) {
            return;
        }
        let ended = async {
            if domain.state == DomainState::Running {
                self.host.hypervisor.suspend(self.vm).await?;
            }
            self.host.hypervisor.end_tpm(self.vm).await
        };
        let told = match tokio::time::timeout(TPM_PATIENCE, ended).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "it does not answer in time".to_owned(),
        };
        tracing::warn!(vm = %self.vm, error = told, "the power of a VM is cut without an orderly end of its TPM");
    }

    pub(super) async fn destroy(&self) -> Result<()> {
        self.host
            .hypervisor
            .destroy(self.vm)
            .await
            .attempt(|| format!("stopping VM {}", self.vm))
    }

    /// Asks the guest's agent, if there is one, and after a while the guest with the power button. Answers who was asked last.
    async fn shut_down(&self, patience: Duration, agent: bool) -> Result<StoppedBy> {
        let deadline = Instant::now() + patience;
        let mut by = StoppedBy::Acpi;
        let mut press = Instant::now();
        if agent && self.ask_agent_to_shut_down().await {
            by = StoppedBy::GuestAgent;
            press += AGENT_FIRST.min(patience / 2);
        }
        self.progress(0, 0, "waiting for the guest to shut down");
        loop {
            match self.look().await?.map(|domain| domain.state) {
                None | Some(DomainState::Stopped(_)) => return Ok(by),
                Some(DomainState::Running | DomainState::Paused { .. }) => {}
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(
                    Failure::new(ErrorCode::ShutdownTimedOut, format!("VM {}", self.vm))
                        .because(format!(
                            "the guest still runs after {} s",
                            patience.as_secs()
                        ))
                        .into(),
                );
            }
            if now >= press {
                press = now + PRESS_AGAIN;
                by = StoppedBy::Acpi;
                let pressed = self
                    .host
                    .hypervisor
                    .request_shutdown(self.vm, Shutdown::Acpi);
                match pressed.await {
                    // It may have ended since we looked.
                    Ok(()) | Err(fleetward_hypervisor::Error::WrongState { .. }) => {}
                    Err(error) => {
                        return Err(Trouble::hypervisor(
                            format!("asking VM {} to shut down", self.vm),
                            &error,
                        ));
                    }
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => return Err(self.cancelled()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Whether the guest's agent took the request. The hypervisor bounds how long that takes.
    async fn ask_agent_to_shut_down(&self) -> bool {
        self.progress(0, 0, "asking the guest's agent to shut down");
        let asked = self
            .host
            .hypervisor
            .request_shutdown(self.vm, Shutdown::GuestAgent);
        match asked.await {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(vm = %self.vm, error = %chain(&error), "the guest's agent does not shut it down");
                false
            }
        }
    }
}
