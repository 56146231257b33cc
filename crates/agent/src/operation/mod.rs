//! Operations: what the controller asks of a VM, one at a time for each VM, whoever is still listening.
//!
//! ```text
//!   request ── older generation ────────────────────────────────► STALE_GENERATION
//!      │  same job and operation as the one under way ──────────► attached to it
//!      │  another one under way: that one is cancelled ─┐
//!      ▼                                                ▼
//!   generation kept on the disk ──► waits for its turn ──► begin ── carried out ── end ──► Done | Failed
//! ```
//! Every operation, and every operation that undoes another, may be repeated, and may be repeated after a crash at any of
//! its lines: it looks at what is there, not at what it remembers having done. [`table`] owns the turns, the other modules
//! own what is done: [`create`] volumes and definitions, [`copy`] what clones and templates begin with, [`tpm`] and
//! [`tpm_change`] TPMs, [`power`] starting and stopping, [`grant`] key
//! protectors, [`incoming`] and [`outgoing`] the two sides of a migration, [`send`] the files of a stopped VM, [`rebuild`] a VM
//! whose host is lost.

pub(crate) mod copy;
mod create;
mod grant;
pub(crate) mod incoming;
mod link;
mod outgoing;
mod power;
mod rebuild;
mod send;
pub(crate) mod table;
mod tpm;
mod tpm_change;

use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::keyring::Purpose;
use crate::record::{TransitRecord, VmRecord};
use fleetward_api::agent::{Operation, OperationLine, OperationResult};
use fleetward_hypervisor::{DomainObserved, DomainState, Error as HypervisorError};
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure, JobId, VmId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One operation being carried out.
pub(crate) struct Task<'a> {
    pub host: &'a Host,
    pub job: JobId,
    pub generation: u64,
    pub vm: VmId,
    pub record: VmRecord,
    pub cancel: CancellationToken,
    lines: &'a watch::Sender<OperationLine>,
}

impl Task<'_> {
    /// Carries out `operation`.
    async fn carry_out(&self, operation: &Operation) -> Result<OperationResult> {
        match operation {
            Operation::CreateVolumes { spec, sources } => self.create_volumes(spec, sources).await,
            Operation::DeleteVolumes { spec } => self.delete_volumes(spec).await,
            Operation::CopyVm {
                to,
                variables,
                tpm_state,
                linked,
            } => self.copy_vm(to, *variables, *tpm_state, *linked).await,
            Operation::UncopyVm { to } => self.uncopy_vm(to).await,
            Operation::CopyTpm { recipients } => self.copy_tpm(recipients).await,
            Operation::PlaceVariables { sha256 } => self.place_variables(sha256).await,
            Operation::MakeTpm { recipients } => self.make_tpm(recipients).await,
            Operation::RemoveTpm { keep, history } => {
                let removed = self.remove_tpm(*keep).await?;
                if *history {
                    self.forget_history()?;
                }
                Ok(removed)
            }
            Operation::Define { metadata } => self.define(metadata).await,
            Operation::AttachTpm => self.attach_tpm().await,
            Operation::DetachTpm => self.detach_tpm().await,
            Operation::SetAsideTpm => self.set_aside_tpm().await,
            Operation::PrepareRoll { to } => self.prepare_roll(to).await,
            Operation::PrepareRestore { bundle } => self.prepare_restore(bundle).await,
            Operation::CommitTpm { key_protector } => self.commit_tpm(key_protector).await,
            Operation::AbandonTpm => self.abandon_tpm().await,
            Operation::Undefine => self.undefine().await,
            Operation::Start => self.start().await,
            Operation::Stop {
                force,
                deadline_seconds,
            } => self.stop(*force, *deadline_seconds).await,
            Operation::Grant { to } => self.grant(to).await,
            Operation::Rewrap { change } => self.rewrap(change).await,
            Operation::PutProtector { key_protector } => self.put_protector(key_protector).await,
            Operation::PrepareIncoming {
                metadata,
                disks,
                live,
                from,
            } => self.prepare_incoming(metadata, disks, *live, from).await,
            Operation::AbandonIncoming { spec, disks: _ } => self.abandon_incoming(spec).await,
            Operation::RebuildIncoming { metadata, bundle } => {
                self.rebuild_incoming(metadata, bundle.as_deref()).await
            }
            Operation::Supersede => self.supersede().await,
            Operation::MigrateLive { to, disks } => self.migrate_live(to, disks).await,
            Operation::SendStopped { to, disks } => self.send_stopped(to, disks).await,
            Operation::MigrationState => self.migration_state().await,
            Operation::Depart => self.depart().await,
            Operation::CommitIncoming { live } => self.commit_incoming(*live).await,
            Operation::CleanUpDeparted { spec, disks } => self.clean_up_departed(spec, disks).await,
        }
    }

    /// Says how far it is.
    fn progress(&self, done: u64, total: u64, text: &str) {
        self.lines.send_replace(OperationLine::Progress {
            done,
            total,
            text: text.to_owned(),
        });
    }

    /// Why keys are used in this operation.
    fn purpose(&self, reason: &str) -> Purpose {
        Purpose {
            actor: "controller".into(),
            reason: reason.to_owned(),
            job: Some(self.job),
        }
    }

    /// The domain, none when this host has none of that id.
    async fn look(&self) -> Result<Option<DomainObserved>> {
        match self.host.hypervisor.inspect(self.vm).await {
            Ok(domain) => Ok(Some(domain)),
            Err(HypervisorError::NoDomain(_)) => Ok(None),
            Err(error) => Err(Trouble::hypervisor(
                format!("looking at VM {}", self.vm),
                &error,
            )),
        }
    }

    /// The domain with our metadata; a domain that Fleetward did not make is never touched.
    async fn managed(&self) -> Result<(DomainObserved, VmMetadata)> {
        let domain = self.look().await?.ok_or_else(|| {
            Failure::new(ErrorCode::VmNotFound, format!("VM {}", self.vm))
                .because(format!("host {} has no such VM", self.host.member.host))
        })?;
        let metadata = domain.metadata.clone().ok_or_else(|| {
            Failure::new(
                ErrorCode::VmNotManaged,
                format!("VM {} ({})", domain.name, self.vm),
            )
            .because("its definition holds no metadata of Fleetward that can be read")
        })?;
        Ok((domain, metadata))
    }

    /// Refuses while this copy is half of a migration.
    fn require_whole(&self) -> Result<()> {
        let because = match self.record.transit()? {
            None => return Ok(()),
            Some(TransitRecord::Incoming(_)) => "this copy is arriving and is not the VM yet",
            Some(TransitRecord::Departed { .. }) => "the VM has left this host",
        };
        Err(self.wrong_state(because))
    }

    /// Refuses unless the domain is stopped, or absent.
    async fn require_stopped(&self) -> Result<Option<DomainObserved>> {
        let domain = self.look().await?;
        match domain.as_ref().map(|domain| domain.state) {
            None | Some(DomainState::Stopped(_)) => Ok(domain),
            Some(DomainState::Running | DomainState::Paused { .. }) => Err(Trouble::refuse(
                ErrorCode::VmRunning,
                format!("VM {}", self.vm),
                "it runs on this host",
            )),
        }
    }

    fn wrong_state(&self, because: impl Into<String>) -> Trouble {
        Trouble::refuse(ErrorCode::VmStateWrong, format!("VM {}", self.vm), because)
    }

    /// Forgets the libvirt secret.
    async fn drop_secret(&self) -> Result<()> {
        self.host
            .hypervisor
            .drop_secret(self.vm)
            .await
            .attempt(|| format!("dropping the secret of VM {}", self.vm))
    }

    /// The refusal of work that was cancelled.
    fn cancelled(&self) -> Trouble {
        Failure::new(ErrorCode::Cancelled, format!("VM {}", self.vm)).into()
    }
}
