//! Operations of the controller on a VM: one at a time for each VM; they continue when the requester disconnects.
//!
//! ```text
//!   request ── older generation ────────────────────────────────► STALE_GENERATION
//!      │  same job and operation as the one under way ──────────► attached to it
//!      │  another one under way: that one is cancelled ─┐
//!      ▼                                                ▼
//!   generation kept on the disk ──► waits for its turn ──► begin ── carried out ── end ──► Done | Failed
//! ```
//! Every operation and its undo can be repeated, also after a crash at any line: it inspects the present state and
//! does not rely on a record of its progress. [`table`] orders the operations of a VM. The other modules carry them
//! out: [`create`] volumes and definitions, [`change`] changes of them and [`disks`] of their volumes, [`copy`] the copies for clones and templates, [`tpm`] and [`tpm_change`]
//! TPMs, [`power`] start and stop, [`grant`] key protectors, [`incoming`] and [`outgoing`] the two sides of a
//! migration, [`send`] the files of a stopped VM, [`secure_boot`] certificates in UEFI variables, [`rebuild`] a VM whose host is lost.

mod change;
pub(crate) mod copy;
mod create;
mod disks;
mod grant;
pub(crate) mod incoming;
mod link;
mod outgoing;
mod power;
mod rebuild;
mod secure_boot;
mod send;
mod switch_over;
pub(crate) mod table;
mod tpm;
mod tpm_change;

use crate::ek::JudgedEk;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::keyring::Purpose;
use crate::record::{TransitRecord, VmRecord};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::operation::{HostOperation, Operation, OperationResult, Stopped};
use fleetward_api::agent::{EkWord, OperationLine};
use fleetward_hypervisor::{DomainObserved, DomainState, Error as HypervisorError, StopReason};
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
    /// Why the host does it without being asked; none for an operation of the controller.
    pub own: Option<&'static str>,
    pub cancel: CancellationToken,
    /// The authority's word for those who may own key protectors, as it came with the request.
    pub owners: Option<&'a str>,
    /// What the controller knows of the EK certificate that the operation brings.
    pub ek: Option<&'a EkWord>,
    lines: &'a watch::Sender<OperationLine>,
}

impl Task<'_> {
    /// Carries out `operation`.
    async fn carry_out(&self, operation: &Operation) -> Result<OperationResult> {
        match operation {
            Operation::CreateVolumes(o) => {
                answer(o, self.create_volumes(&o.spec, &o.sources).await)
            }
            Operation::DeleteVolumes(o) => answer(o, self.delete_volumes(&o.spec).await),
            Operation::CopyVm(o) => answer(
                o,
                self.copy_vm(&o.to, o.variables, o.tpm_state, o.linked)
                    .await,
            ),
            Operation::UncopyVm(o) => answer(o, self.uncopy_vm(&o.to).await),
            Operation::CopyTpm(o) => answer(o, self.copy_tpm(&o.recipients).await),
            Operation::PlaceVariables(o) => answer(o, self.place_variables(&o.sha256).await),
            Operation::MakeTpm(o) => answer(o, self.make_tpm(&o.recipients).await),
            Operation::RemoveTpm(o) => {
                answer(o, self.remove_tpm_and_history(o.keep, o.history).await)
            }
            Operation::Define(o) => answer(o, self.define(&o.metadata).await),
            Operation::ChangeVm(o) => answer(o, self.change_vm(&o.steps, o.direction).await),
            Operation::DropVolumes(o) => answer(o, self.drop_volumes(&o.disks).await),
            Operation::AttachTpm(o) => answer(o, self.attach_tpm().await),
            Operation::DetachTpm(o) => answer(o, self.detach_tpm().await),
            Operation::SetAsideTpm(o) => answer(o, self.set_aside_tpm().await),
            Operation::PrepareRoll(o) => answer(o, self.prepare_roll(&o.to).await),
            Operation::PrepareRestore(o) => answer(o, self.prepare_restore(&o.bundle).await),
            Operation::PrepareUnlock(o) => answer(o, self.prepare_unlock().await),
            Operation::CommitTpm(o) => answer(o, self.commit_tpm(&o.key_protector).await),
            Operation::AbandonTpm(o) => answer(o, self.abandon_tpm().await),
            Operation::Undefine(o) => answer(o, self.undefine().await),
            Operation::Start(o) => answer(o, self.start().await),
            Operation::Stop(o) => {
                let stopped = self.stop(o.force, o.deadline_seconds).await;
                let told = |stopped| if o.tell { stopped } else { Stopped::default() };
                answer(o, stopped.map(told))
            }
            Operation::Pause(o) => answer(o, self.pause().await),
            Operation::Resume(o) => answer(o, self.resume_paused().await),
            Operation::Grant(o) => answer(o, self.grant(&o.to).await),
            Operation::Rewrap(o) => answer(o, self.rewrap(&o.change).await),
            Operation::PutProtector(o) => answer(o, self.put_protector(&o.key_protector).await),
            Operation::EnrollCertificates(o) => answer(o, self.enroll_certificates().await),
            Operation::RestoreCertificates(o) => {
                answer(o, self.restore_certificates(o.of_this_job).await)
            }
            Operation::PrepareIncoming(o) => answer(o, self.prepare_incoming(o).await),
            Operation::AbandonIncoming(o) => answer(o, self.abandon_incoming(&o.spec).await),
            Operation::RebuildIncoming(o) => answer(
                o,
                self.rebuild_incoming(&o.metadata, o.bundle.as_deref(), &o.former_states)
                    .await,
            ),
            Operation::Supersede(o) => answer(o, self.supersede().await),
            Operation::MigrateLive(o) => {
                answer(o, self.migrate_live(&o.to, &o.disks, &o.networks).await)
            }
            Operation::SendStopped(o) => answer(o, self.send_stopped(&o.to, &o.disks).await),
            Operation::MigrationState(o) => answer(o, self.migration_state().await),
            Operation::Depart(o) => answer(o, self.depart().await),
            Operation::CommitIncoming(o) => answer(o, self.commit_incoming(o.live).await),
            Operation::CleanUpDeparted(o) => {
                answer(o, self.clean_up_departed(&o.spec, &o.disks).await)
            }
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
        match self.own {
            None => Purpose {
                actor: "controller".into(),
                reason: reason.to_owned(),
                job: Some(self.job),
            },
            Some(why) => Purpose {
                actor: "agent".into(),
                reason: why.to_owned(),
                job: None,
            },
        }
    }

    /// The domain, none when this host has none of that id. Refuses where a newer program wrote what it is: whatever this
    /// one did to it could lose a part that it does not know.
    async fn look(&self) -> Result<Option<DomainObserved>> {
        match self.host.hypervisor.inspect(self.vm).await {
            Ok(domain) => match &domain.newer {
                None => Ok(Some(domain)),
                Some(newer) => Err(newer.refusal(&domain.name, &self.host.member.host).into()),
            },
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
        if let Some(domain) = &domain {
            self.require_not_saved(domain)?;
        }
        match domain.as_ref().map(|domain| domain.state) {
            None | Some(DomainState::Stopped(_)) => Ok(domain),
            Some(DomainState::Running | DomainState::Paused { .. }) => Err(Trouble::refuse(
                ErrorCode::VmRunning,
                format!("VM {}", self.vm),
                "it runs on this host",
            )),
        }
    }

    fn saved(&self) -> Trouble {
        self.wrong_state("its memory is saved on the disk, and its next start goes on with it")
    }

    /// What a saved memory belongs to does not change under it.
    fn require_not_saved(&self, domain: &DomainObserved) -> Result<()> {
        match domain.state {
            DomainState::Stopped(StopReason::Saved) => Err(self.saved()),
            DomainState::Stopped(
                StopReason::Ordinary
                | StopReason::Crashed
                | StopReason::Migrated
                | StopReason::Failed,
            )
            | DomainState::Running
            | DomainState::Paused { .. } => Ok(()),
        }
    }

    fn wrong_state(&self, because: impl Into<String>) -> Trouble {
        Trouble::refuse(ErrorCode::VmStateWrong, format!("VM {}", self.vm), because)
    }

    /// See [`EkCertifier::judge`](crate::ek::EkCertifier::judge).
    fn judge_ek(&self, ek: Vec<u8>, metadata: &VmMetadata) -> Result<JudgedEk> {
        let vm = metadata.spec.name.as_str();
        self.host.ek.judge(ek, vm, self.ek)
    }

    /// The same for the one that comes in the metadata of a VM. Without one nothing is said of whose TPM it is.
    fn judge_ek_of(&self, metadata: &VmMetadata) -> Result<()> {
        let Some(text) = metadata.ek_certificate.as_deref() else {
            return Ok(());
        };
        // What is no base64 is no certificate either, and is refused as one that cannot be read.
        let ek = STANDARD.decode(text).unwrap_or_default();
        self.judge_ek(ek, metadata).map(drop)
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

/// The outcome of `_operation` as it is sent; the types hold the answer to the one that the operation declares.
fn answer<O: HostOperation>(_operation: &O, outcome: Result<O::Answer>) -> Result<OperationResult> {
    outcome.map(Into::into)
}
