//! The switch-over of a live migration, at the source: a guest that stands still there is let go on.
//!
//! At the switch-over QEMU waits for its TPM, whose process is swtpm, without a limit, and does nothing else meanwhile: libvirt
//! gets no answer, and an abort does not get through.
//!
//! ```text
//!  stands still for 20 s ──► abort ─┬─ swtpm was stopped ──────────────────► it is continued
//!                                   ├─ it has not read what it was asked ──► that is taken back; it stays as it is
//!                                   └─ it has read it, for 20 s more ──────► it is ended; no TPM until the VM is restarted
//!                                                                            │
//!            the guest goes on at the source ◄── QEMU gives the migration up ┘
//! ```

use super::Task;
use super::outgoing::{CALL, migrating};
use crate::failure::Result;
use crate::machines;
use crate::tpm_process;
use fleetward_api::agent::Peer;
use fleetward_hypervisor::{DomainObserved, MigrationOutcome, TpmAttention};
use fleetward_model::vm::{TpmProcess, VmMetadata};
use fleetward_model::{ErrorCode, Failure, VmName};
use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// At the switch-over the guest is paused, for less than a second as a rule. One that stands still for so long waits for
/// something that does not answer: its TPM's process at either end, or QEMU at the destination.
const STANDSTILL: Duration = Duration::from_secs(20);

/// What libvirt may take to tell what it knows without QEMU.
const LOOK: Duration = Duration::from_secs(5);

/// Between two looks at what a TPM's process does.
const PACE: Duration = Duration::from_millis(500);

/// A TPM that has read a question answers within this: the longest, a new RSA key, takes seconds.
const WORKS: Duration = Duration::from_secs(20);

impl Task<'_> {
    /// Refuses to move a VM whose TPM's process does not answer: at the switch-over its guest would stand still.
    pub(super) async fn require_tpm_that_answers(
        &self,
        domain: &DomainObserved,
        metadata: &VmMetadata,
    ) -> Result<()> {
        if !domain.tpm {
            return Ok(());
        }
        let (name, host) = (&metadata.spec.name, &self.host.member.host);
        if let Some(process) = tpm_process::now(self.host, self.vm).await {
            let finding = process.finding(name, host);
            return Err(Failure::new(finding.code, migrating(name))
                .because(finding.what)
                .fix(finding.fix)
                .into());
        }
        let attention = self.host.tpms.attention(self.vm).await;
        if let Ok(TpmAttention::Unread { pid }) = attention {
            return Err(Failure::new(ErrorCode::TpmNotAnswering, migrating(name))
                .because(format!(
                    "the process of its TPM (swtpm, {pid}) on host {host} runs, and has not read for a second what the guest \
                     asks it"
                ))
                .fix(look_at(pid, host))
                .into());
        }
        Ok(())
    }

    /// Returns when the guest has stood still for too long, and says so.
    pub(super) async fn stands_still(&self, name: &VmName) -> Failure {
        let (mut since, mut stopped) = (None, None);
        let failed =
            |because| Failure::new(ErrorCode::MigrationFailed, migrating(name)).because(because);
        loop {
            tokio::time::sleep(CALL).await;
            // libvirt still calls a guest running whose QEMU waits for this one.
            if let Some(TpmProcess::Stopped { pid }) = tpm_process::now(self.host, self.vm).await {
                if long(&mut stopped) {
                    return failed(format!(
                        "the process of its TPM (swtpm, {pid}) was stopped on this host for {} s, and the guest stands still \
                         at the switch-over until it answers",
                        STANDSTILL.as_secs()
                    ));
                }
            } else {
                stopped = None;
            }
            match self.may_stand_still().await {
                Some(true) if long(&mut since) => {
                    return failed(format!(
                        "its guest stood still at the switch-over for {} s: the process of its TPM (swtpm) or QEMU does not \
                         answer, on this host or at the destination",
                        STANDSTILL.as_secs()
                    ));
                }
                // libvirt is away: what was seen before counts.
                Some(true) | None => {}
                Some(false) => since = None,
            }
        }
    }

    /// Whether the guest is paused, or QEMU has not answered libvirt for a while; none where that cannot be seen.
    async fn may_stand_still(&self) -> Option<bool> {
        let paused = self.host.hypervisor.is_paused(self.vm);
        let paused = tokio::time::timeout(LOOK, paused).await;
        if matches!(paused, Ok(Ok(true))) {
            return Some(true);
        }
        let looked = tokio::time::timeout(LOOK, machines::look(self.host)).await;
        if looked.is_ok() && !self.host.machines.answers(self.vm) {
            return Some(true);
        }
        paused.ok()?.ok()
    }

    /// A QEMU that waits for a TPM which was stopped does not even end a migration: it is let go on.
    pub(super) async fn wake_tpm(&self) {
        let Some(TpmProcess::Stopped { pid }) = tpm_process::now(self.host, self.vm).await else {
            return;
        };
        tracing::warn!(vm = %self.vm, pid, "the guest waits for its TPM, whose process was stopped: it is continued");
        if let Err(error) = self.host.tpms.wake(self.vm, pid).await {
            tracing::warn!(vm = %self.vm, pid, %error, "it cannot be continued");
        }
    }

    /// Waits for the end of a migration that was aborted, and frees QEMU from a TPM that does not answer. Says what was done
    /// about that TPM, if anything was.
    pub(super) async fn freed_from_tpm(
        &self,
        mut migration: Pin<
            &mut impl Future<Output = fleetward_hypervisor::Result<MigrationOutcome>>,
        >,
        name: &VmName,
        to: &Peer,
    ) -> (
        fleetward_hypervisor::Result<MigrationOutcome>,
        Option<Failure>,
    ) {
        let (sender, done) = watch::channel(None);
        let outcome = tokio::select! {
            outcome = &mut migration => outcome,
            never = self.free_from_tpm(sender, name, to) => match never {},
        };
        let done = done.borrow().clone();
        (outcome, done)
    }

    async fn free_from_tpm(
        &self,
        done: watch::Sender<Option<Failure>>,
        name: &VmName,
        to: &Peer,
    ) -> Infallible {
        let (host, mut works) = (&self.host.member.host, None);
        let failed =
            |because| Failure::new(ErrorCode::TpmNotAnswering, migrating(name)).because(because);
        loop {
            let attention = self.host.tpms.take_back(self.vm).await;
            match attention {
                Ok(TpmAttention::Unread { pid }) => {
                    works = None;
                    tracing::warn!(vm = %self.vm, pid, "the guest waits for its TPM, which does not read: a question was taken back");
                    done.send_replace(Some(
                        failed(format!(
                            "the process of its TPM (swtpm, {pid}) on host {host} did not answer at the switch-over; what it was \
                             asked was taken back, and the guest goes on there"
                        ))
                        .fix(format!(
                            "{}; once it answers: fleetward vm migrate {name} --to {}",
                            look_at(pid, host),
                            to.host
                        )),
                    ));
                }
                Ok(TpmAttention::Busy { pid }) => {
                    let since = *works.get_or_insert_with(Instant::now);
                    // Ended is only what a guest waits for.
                    if since.elapsed() >= WORKS && self.may_stand_still().await == Some(true) {
                        works = None;
                        tracing::warn!(vm = %self.vm, pid, "the guest waits for its TPM, whose process hangs: it is ended");
                        match self.host.tpms.cut_off(self.vm).await {
                            Ok(()) => {
                                done.send_replace(Some(
                                    failed(format!(
                                        "the process of its TPM (swtpm, {pid}) on host {host} hung at the switch-over and was \
                                         ended; the guest goes on there without a TPM, whose state is on the disk"
                                    ))
                                    .fix(format!("fleetward vm restart {name} --force")),
                                ));
                            }
                            Err(error) => {
                                tracing::warn!(vm = %self.vm, pid, %error, "it cannot be ended");
                            }
                        }
                    }
                }
                Ok(TpmAttention::Idle) => works = None,
                Err(error) => {
                    tracing::warn!(vm = %self.vm, %error, "what the TPM's process does cannot be seen");
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }
}

/// How to find out what keeps a process from reading.
fn look_at(pid: u32, host: &fleetward_model::HostName) -> String {
    format!(
        "on host {host}, see what it waits for: grep State /proc/{pid}/status; cat /proc/{pid}/stack"
    )
}

/// Whether this has been so for too long, from the first time on.
fn long(since: &mut Option<Instant>) -> bool {
    since.get_or_insert_with(Instant::now).elapsed() >= STANDSTILL
}
