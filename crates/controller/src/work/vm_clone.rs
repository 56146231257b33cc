//! `vm-clone`: makes another VM with the disks of a running or stopped VM.
//!
//! ```text
//!   copy ─ make-tpm ─ define ─ move
//! ```
//! The clone is made on the source's host. A clone for another host then moves there with the job for stopped VMs. The
//! job's locks hold the source meanwhile. The guest of a linked clone's source sees only a short pause; the volumes of
//! its disks change.

use super::{FleetJob, MigrateInput, OnVm, Reservation, VmMigrateStopped, vm_locks};
use crate::debts::{about, removal};
use crate::networks::nic_locks;
use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_api::reports::CloneReport;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, Job, JobKind, JobState, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::Request;
use fleetward_model::clone::CloneTpm;
use fleetward_model::vm::{Revocation, VmMetadata, VmSpec};
use fleetward_model::{HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use time::OffsetDateTime;

/// What is cloned, and what it becomes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CloneInput {
    /// The source.
    pub(crate) vm: VmId,
    pub(crate) source: VmName,
    /// Where the source is, and the clone is made.
    pub(crate) host: HostName,
    /// The clone.
    pub(crate) name: VmName,
    pub(crate) spec: VmSpec,
    pub(crate) tpm: CloneTpm,
    /// Build on the source's disks, where that can be.
    #[serde(default)]
    pub(crate) linked: bool,
    /// Guardians that were cut off from the source: they do not get the clone's key either.
    #[serde(default)]
    pub(crate) revoked: Vec<Revocation>,
    /// Where the clone is to be.
    pub(crate) to: HostName,
    /// What it takes of that host; none in a record of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reservation: Option<Reservation>,
}

impl OnVm for CloneInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }
}

/// The kind.
pub(crate) struct VmClone(pub(crate) Arc<World>);

impl JobKind for VmClone {
    const NAME: &'static str = "vm-clone";
    type Input = CloneInput;

    fn locks(input: &CloneInput) -> Vec<String> {
        let mut locks = vm_locks(input.vm, &input.source);
        locks.extend(vm_locks(input.spec.id, &input.name));
        locks.extend(nic_locks(&input.spec.nics));
        locks
    }

    fn steps(&self) -> Steps<CloneInput> {
        let world = || self.0.clone();
        Steps::new()
            .check(ReserveName(world()))
            .step(Copy(world()))
            .step(MakeTpm(world()))
            .step(Define(world()))
            .step(Move)
    }
}

impl FleetJob for VmClone {
    type Report = CloneReport;
    const ACCESS: Access = <verbs::VmClone as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::Clone);

    fn target(input: &CloneInput) -> String {
        input.name.to_string()
    }

    fn host(input: &CloneInput) -> &HostName {
        &input.to
    }

    fn vm(input: &CloneInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn reservation(input: &CloneInput) -> Option<Reservation> {
        input.reservation.clone()
    }

    fn report(input: &CloneInput, job: &Job) -> Option<CloneReport> {
        let copied: Option<Copied> = job.output(Copy::NAME);
        Some(CloneReport {
            vm: input.name.clone(),
            id: input.spec.id,
            host: input.to.clone(),
            from: input.source.clone(),
            tpm: input.tpm,
            paused_ms: copied.as_ref().and_then(|copied| copied.paused_ms),
            linked: copied.is_some_and(|copied| copied.linked),
        })
    }
}

struct ReserveName(Arc<World>);

#[async_trait]
impl Step<CloneInput> for ReserveName {
    const NAME: &'static str = "reserve-name";
    type Output = ();

    async fn run(&self, cx: &StepContext<CloneInput>) -> Result<(), StepError> {
        let CloneInput { name, spec, .. } = cx.input();
        self.0.require_name(name).await?;
        let macs = spec.nics.iter().map(|nic| nic.mac.as_str());
        Ok(self.0.require_macs(macs, Some(spec.id))?)
    }
}

struct Copy(Arc<World>);

/// What the copy took of the source.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Copied {
    /// How long its guest stood still.
    paused_ms: Option<u64>,
    #[serde(default)]
    linked: bool,
}

#[async_trait]
impl Step<CloneInput> for Copy {
    const NAME: &'static str = "copy";
    type Output = Copied;

    async fn run(&self, cx: &StepContext<CloneInput>) -> Result<Copied, StepError> {
        let input = cx.input();
        let operation = operation::CopyVm {
            to: Box::new(input.spec.clone()),
            variables: true,
            tpm_state: input.tpm == CloneTpm::Copy,
            linked: input.linked,
        };
        let agent = self.0.agents.of(&input.host)?;
        let copied = agent.run(cx, input.vm, operation).await?;
        self.0.refresh(&input.host, input.vm).await;
        Ok(Copied {
            paused_ms: copied.paused_ms,
            linked: copied.linked,
        })
    }
}

#[async_trait]
impl UndoStep<CloneInput> for Copy {
    /// The copies are named after the clone's id, which nobody else knows; the source is left as it is.
    fn undo_absence(&self, cx: &StepContext<CloneInput>) -> Absence {
        Absence::Owe(about(&cx.input().host, cx.input().vm))
    }

    async fn undo(&self, cx: &StepContext<CloneInput>) -> Result<(), StepError> {
        let input = cx.input();
        let operation = operation::UncopyVm {
            to: Box::new(input.spec.clone()),
        };
        let agent = self.0.agents.of(&input.host)?;
        agent.run(cx, input.vm, operation).await?;
        self.0.refresh(&input.host, input.vm).await;
        Ok(())
    }
}

struct MakeTpm(Arc<World>);

#[async_trait]
impl Step<CloneInput> for MakeTpm {
    const NAME: &'static str = "make-tpm";
    type Output = ();

    fn applies(&self, cx: &StepContext<CloneInput>) -> bool {
        cx.input().tpm != CloneTpm::None
    }

    async fn run(&self, cx: &StepContext<CloneInput>) -> Result<(), StepError> {
        let input = cx.input();
        let now = OffsetDateTime::now_utc();
        // For the host it is to be on; the one that makes it has the key in any case.
        let recipients = || {
            self.0
                .recipients_for_new_key(&input.spec.group, &input.to, &input.revoked, now)
        };
        let agent = self.0.agents.of(&input.host)?;
        let clone = input.spec.id;
        let made = match input.tpm {
            CloneTpm::None => return Ok(()),
            CloneTpm::New => {
                let recipients = recipients()?;
                agent
                    .run(cx, clone, operation::MakeTpm { recipients })
                    .await
            }
            CloneTpm::Copy => {
                let recipients = recipients()?;
                agent
                    .run(cx, clone, operation::CopyTpm { recipients })
                    .await
            }
        };
        made.map(drop)
    }
}

#[async_trait]
impl UndoStep<CloneInput> for MakeTpm {
    /// As for `define`.
    fn undo_absence(&self, cx: &StepContext<CloneInput>) -> Absence {
        removal(&cx.input().host, cx.input().spec.id)
    }

    async fn undo(&self, cx: &StepContext<CloneInput>) -> Result<(), StepError> {
        let input = cx.input();
        let agent = self.0.agents.of(&input.host)?;
        let operation = operation::RemoveTpm {
            keep: false,
            history: false,
        };
        agent.run(cx, input.spec.id, operation).await.map(drop)
    }
}

struct Define(Arc<World>);

#[async_trait]
impl Step<CloneInput> for Define {
    const NAME: &'static str = "define";
    type Output = ();

    async fn run(&self, cx: &StepContext<CloneInput>) -> Result<(), StepError> {
        let input = cx.input();
        let metadata = VmMetadata {
            spec: input.spec.clone(),
            generation: cx.generation(),
            key_protector: None,
            ek_certificate: None,
            transit: None,
            revoked: input.revoked.clone(),
            former_certificates: None,
            unknown: Default::default(),
        };
        let operation = operation::Define {
            metadata: Box::new(metadata),
        };
        let agent = self.0.agents.of(&input.host)?;
        agent.run(cx, input.spec.id, operation).await?;
        self.0.refresh(&input.host, input.spec.id).await;
        Ok(())
    }
}

#[async_trait]
impl UndoStep<CloneInput> for Define {
    /// Nobody but this job knows the clone's id; a clone that has moved on is not taken back.
    fn undo_absence(&self, cx: &StepContext<CloneInput>) -> Absence {
        removal(&cx.input().host, cx.input().spec.id)
    }

    async fn undo(&self, cx: &StepContext<CloneInput>) -> Result<(), StepError> {
        let input = cx.input();
        let agent = self.0.agents.of(&input.host)?;
        agent.run(cx, input.spec.id, operation::Undefine {}).await?;
        self.0.refresh(&input.host, input.spec.id).await;
        Ok(())
    }
}

/// To the host it was asked for.
struct Move;

#[async_trait]
impl Step<CloneInput> for Move {
    const NAME: &'static str = "move";
    type Output = ();

    fn applies(&self, cx: &StepContext<CloneInput>) -> bool {
        cx.input().to != cx.input().host
    }

    async fn run(&self, cx: &StepContext<CloneInput>) -> Result<(), StepError> {
        let input = cx.input();
        let migration = MigrateInput {
            vm: input.spec.id,
            name: input.name.clone(),
            from: input.host.clone(),
            to: input.to.clone(),
            live: false,
            reservation: input.reservation.clone(),
        };
        cx.run_child::<VmMigrateStopped>("move", &migration)
            .await
            .map(drop)
    }
}

#[async_trait]
impl UndoStep<CloneInput> for Move {
    /// A clone that has arrived is done; there is nothing to go back to.
    async fn undo(&self, cx: &StepContext<CloneInput>) -> Result<(), StepError> {
        let input = cx.input();
        match cx.stop_child("move").await? {
            Some(job) if job.state == JobState::Done => Err(StepError::past_undo(format!(
                "VM {} is whole on host {}",
                input.name, input.to
            ))),
            Some(_) | None => Ok(()),
        }
    }
}
