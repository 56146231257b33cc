//! `vm-create`: copies the image to the host, makes volumes, TPM and definition, and starts the VM if requested.

use super::place_images::{NeedsImages, PlaceImages};
use super::vm_power::StartVm;
use super::{FleetJob, OnVm, Reservation, TakeEscrow, vm_locks};
use crate::debts::removal;
use crate::networks::nic_locks;
use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_api::reports::CreateReport;
use fleetward_api::tpm::VersionReason;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, Job, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::vm::{VmMetadata, VmSpec, VolumeSource};
use fleetward_model::{HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use time::OffsetDateTime;

/// What is created, decided before the job begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CreateInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) host: HostName,
    pub(crate) spec: VmSpec,
    /// One a disk, in the same order.
    pub(crate) sources: Vec<VolumeSource>,
    /// SHA-256 of the UEFI variables it begins with; none: the firmware's own.
    #[serde(default)]
    pub(crate) variables: Option<String>,
    /// Images that the host must have: hash and format.
    pub(crate) images: Vec<(String, String)>,
    pub(crate) start: bool,
    pub(crate) reservation: Reservation,
}

impl OnVm for CreateInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }
}

/// The kind.
pub(crate) struct VmCreate(pub(crate) Arc<World>);

impl JobKind for VmCreate {
    const NAME: &'static str = "vm-create";
    type Input = CreateInput;

    fn locks(input: &CreateInput) -> Vec<String> {
        let mut locks = vm_locks(input.vm, &input.name);
        locks.extend(nic_locks(&input.spec.nics));
        locks
    }

    fn steps(&self) -> Steps<CreateInput> {
        Steps::new()
            .check(ReserveName(self.0.clone()))
            .check(PlaceImages::<CreateInput>::new(self.0.clone()))
            .step(CreateVolumes(self.0.clone()))
            .step(MakeTpm(self.0.clone()))
            .step(Define(self.0.clone()))
            .check(TakeEscrow::new(self.0.clone(), VersionReason::Created))
            .step(FirstStart(StartVm(self.0.clone())))
    }
}

impl FleetJob for VmCreate {
    type Report = CreateReport;
    const ACCESS: Access = <verbs::VmCreate as Verb>::ACCESS;
    const WARNING_STEPS: &'static [&'static str] = &[TakeEscrow::<CreateInput>::NAME];

    fn target(input: &CreateInput) -> String {
        input.name.to_string()
    }

    fn host(input: &CreateInput) -> &HostName {
        &input.host
    }

    fn vm(input: &CreateInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn reservation(input: &CreateInput) -> Option<Reservation> {
        Some(input.reservation.clone())
    }

    fn report(input: &CreateInput, _job: &Job) -> Option<CreateReport> {
        Some(CreateReport {
            vm: input.name.clone(),
            id: input.vm,
            host: input.host.clone(),
        })
    }
}

/// The job's locks hold name and addresses against other jobs; this looks for what is there already.
struct ReserveName(Arc<World>);

#[async_trait]
impl Step<CreateInput> for ReserveName {
    const NAME: &'static str = "reserve-name";
    type Output = ();

    async fn run(&self, cx: &StepContext<CreateInput>) -> Result<(), StepError> {
        let CreateInput { name, spec, .. } = cx.input();
        self.0.require_name(name).await?;
        let macs = spec.nics.iter().map(|nic| nic.mac.as_str());
        Ok(self.0.require_macs(macs, Some(spec.id))?)
    }
}

impl NeedsImages for CreateInput {
    fn images(&self, _world: &World) -> Vec<(String, String)> {
        self.images.clone()
    }
}

struct CreateVolumes(Arc<World>);

#[async_trait]
impl Step<CreateInput> for CreateVolumes {
    const NAME: &'static str = "create-volumes";
    type Output = ();

    async fn run(&self, cx: &StepContext<CreateInput>) -> Result<(), StepError> {
        let input = cx.input();
        let operation = operation::CreateVolumes {
            spec: input.spec.clone(),
            sources: input.sources.clone(),
        };
        let done = self
            .0
            .agents
            .of(&input.host)?
            .run(cx, input.vm, operation)
            .await;
        done.map(drop)
    }
}

#[async_trait]
impl UndoStep<CreateInput> for CreateVolumes {
    /// Nobody but this job knows the VM's id, so what lies on the host under it is in nobody's way.
    fn undo_absence(&self, cx: &StepContext<CreateInput>) -> Absence {
        removal(&cx.input().host, cx.input().vm)
    }

    async fn undo(&self, cx: &StepContext<CreateInput>) -> Result<(), StepError> {
        let input = cx.input();
        let operation = operation::DeleteVolumes {
            spec: input.spec.clone(),
        };
        let done = self
            .0
            .agents
            .of(&input.host)?
            .run(cx, input.vm, operation)
            .await;
        done.map(drop)
    }
}

struct MakeTpm(Arc<World>);

#[async_trait]
impl Step<CreateInput> for MakeTpm {
    const NAME: &'static str = "make-tpm";
    type Output = ();

    fn applies(&self, cx: &StepContext<CreateInput>) -> bool {
        cx.input().spec.tpm
    }

    async fn run(&self, cx: &StepContext<CreateInput>) -> Result<(), StepError> {
        let input = cx.input();
        let now = OffsetDateTime::now_utc();
        let recipients = self
            .0
            .recipients_for_new_key(&input.spec.group, &input.host, &[], now)?;
        let operation = operation::MakeTpm { recipients };
        let done = self
            .0
            .agents
            .of(&input.host)?
            .run(cx, input.vm, operation)
            .await;
        done.map(drop)
    }
}

#[async_trait]
impl UndoStep<CreateInput> for MakeTpm {
    /// Nobody but this job knows the VM's id, so what lies on the host under it is in nobody's way.
    fn undo_absence(&self, cx: &StepContext<CreateInput>) -> Absence {
        removal(&cx.input().host, cx.input().vm)
    }

    async fn undo(&self, cx: &StepContext<CreateInput>) -> Result<(), StepError> {
        let input = cx.input();
        let operation = operation::RemoveTpm {
            keep: false,
            history: false,
        };
        let done = self
            .0
            .agents
            .of(&input.host)?
            .run(cx, input.vm, operation)
            .await;
        done.map(drop)
    }
}

/// The agent adds the key protector and the EK certificate it made.
struct Define(Arc<World>);

#[async_trait]
impl Step<CreateInput> for Define {
    const NAME: &'static str = "define";
    type Output = ();

    async fn run(&self, cx: &StepContext<CreateInput>) -> Result<(), StepError> {
        let input = cx.input();
        let metadata = VmMetadata {
            spec: input.spec.clone(),
            generation: cx.generation(),
            key_protector: None,
            ek_certificate: None,
            transit: None,
            revoked: Vec::new(),
            former_certificates: None,
            unknown: Default::default(),
        };
        if let Some(sha256) = &input.variables {
            let operation = operation::PlaceVariables {
                sha256: sha256.clone(),
            };
            self.0
                .agents
                .of(&input.host)?
                .run(cx, input.vm, operation)
                .await?;
        }
        let operation = operation::Define {
            metadata: Box::new(metadata),
        };
        self.0
            .agents
            .of(&input.host)?
            .run(cx, input.vm, operation)
            .await?;
        self.0.refresh(&input.host, input.vm).await;
        Ok(())
    }
}

#[async_trait]
impl UndoStep<CreateInput> for Define {
    /// Nobody but this job knows the VM's id, so what lies on the host under it is in nobody's way.
    fn undo_absence(&self, cx: &StepContext<CreateInput>) -> Absence {
        removal(&cx.input().host, cx.input().vm)
    }

    async fn undo(&self, cx: &StepContext<CreateInput>) -> Result<(), StepError> {
        let input = cx.input();
        self.0
            .agents
            .of(&input.host)?
            .run(cx, input.vm, operation::Undefine {})
            .await?;
        self.0.refresh(&input.host, input.vm).await;
        Ok(())
    }
}

struct FirstStart(StartVm);

#[async_trait]
impl Step<CreateInput> for FirstStart {
    const NAME: &'static str = "start";
    type Output = ();

    fn applies(&self, cx: &StepContext<CreateInput>) -> bool {
        cx.input().start
    }

    async fn run(&self, cx: &StepContext<CreateInput>) -> Result<(), StepError> {
        self.0.run(cx).await
    }
}

#[async_trait]
impl UndoStep<CreateInput> for FirstStart {
    /// It is stopped before it is removed; until then its host is asked for nothing else.
    fn undo_absence(&self, cx: &StepContext<CreateInput>) -> Absence {
        removal(&cx.input().host, cx.input().vm)
    }

    async fn undo(&self, cx: &StepContext<CreateInput>) -> Result<(), StepError> {
        self.0.undo(cx).await
    }
}
