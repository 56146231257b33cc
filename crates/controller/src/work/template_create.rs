//! `template-create`: makes a template from a VM's disks. The VM may run, and its TPM stays on.
//!
//! ```text
//!   reserve-name ─ copy ─ collect ─ keep │ clean-up
//!                                        └ point of no return
//! ```
//! The job never requests TPM state. The host makes copies, the controller fetches them into its image content, and
//! the template then needs neither the VM nor the host.

use super::{FleetJob, OnVm, vm_locks};
use crate::debts::about;
use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_api::controller::{TemplateDisk, TemplateView};
use fleetward_api::reports::TemplateReport;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, Job, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::Request;
use fleetward_model::change::NicAsked;
use fleetward_model::vm::VmSpec;
use fleetward_model::{HostName, TemplateName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use time::OffsetDateTime;

/// What becomes a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TemplateInput {
    /// The source.
    pub(crate) vm: VmId,
    pub(crate) source: VmName,
    pub(crate) host: HostName,
    pub(crate) name: TemplateName,
    /// The source's specification under an id of the template's own, without a TPM.
    pub(crate) spec: VmSpec,
    pub(crate) source_had_tpm: bool,
    pub(crate) uefi_variables: bool,
}

impl OnVm for TemplateInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }
}

/// The kind.
pub(crate) struct TemplateCreate(pub(crate) Arc<World>);

impl JobKind for TemplateCreate {
    const NAME: &'static str = "template-create";
    type Input = TemplateInput;

    fn locks(input: &TemplateInput) -> Vec<String> {
        let mut locks = vm_locks(input.vm, &input.source);
        locks.push(format!("template/{}", input.name));
        locks
    }

    fn steps(&self) -> Steps<TemplateInput> {
        let world = || self.0.clone();
        Steps::new()
            .check(ReserveName(world()))
            .step(Copy(world()))
            .step(Collect(world()))
            .step(Keep(world()))
            .forward(CleanUp(world()))
    }
}

impl FleetJob for TemplateCreate {
    type Report = TemplateReport;
    const ACCESS: Access = <verbs::TemplateCreate as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::Template);

    fn target(input: &TemplateInput) -> String {
        input.name.to_string()
    }

    fn host(input: &TemplateInput) -> &HostName {
        &input.host
    }

    fn vm(input: &TemplateInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn report(input: &TemplateInput, job: &Job) -> Option<TemplateReport> {
        let copied: Option<Copied> = job.output(Copy::NAME);
        Some(TemplateReport {
            template: input.name.clone(),
            from: input.source.clone(),
            paused_ms: copied.and_then(|copied| copied.paused_ms),
        })
    }
}

struct ReserveName(Arc<World>);

#[async_trait]
impl Step<TemplateInput> for ReserveName {
    const NAME: &'static str = "reserve-name";
    type Output = ();

    async fn run(&self, cx: &StepContext<TemplateInput>) -> Result<(), StepError> {
        Ok(self.0.templates.require_name(&cx.input().name)?)
    }
}

struct Copy(Arc<World>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Copied {
    paused_ms: Option<u64>,
    variables: bool,
}

#[async_trait]
impl Step<TemplateInput> for Copy {
    const NAME: &'static str = "copy";
    type Output = Copied;

    async fn run(&self, cx: &StepContext<TemplateInput>) -> Result<Copied, StepError> {
        let input = cx.input();
        // A template leaves the host, so its disks stand alone.
        let operation = operation::CopyVm {
            linked: false,
            to: Box::new(input.spec.clone()),
            variables: input.uefi_variables,
            tpm_state: false,
        };
        let agent = self.0.agents.of(&input.host)?;
        let copied = agent.run(cx, input.vm, operation).await?;
        self.0.refresh(&input.host, input.vm).await;
        Ok(Copied {
            paused_ms: copied.paused_ms,
            variables: copied.variables,
        })
    }
}

#[async_trait]
impl UndoStep<TemplateInput> for Copy {
    /// The copies are named after the template's id, which nobody else knows.
    fn undo_absence(&self, cx: &StepContext<TemplateInput>) -> Absence {
        Absence::Owe(about(&cx.input().host, cx.input().vm))
    }

    async fn undo(&self, cx: &StepContext<TemplateInput>) -> Result<(), StepError> {
        remove_copy(&self.0, cx).await
    }
}

async fn remove_copy(world: &World, cx: &StepContext<TemplateInput>) -> Result<(), StepError> {
    let input = cx.input();
    let operation = operation::UncopyVm {
        to: Box::new(input.spec.clone()),
    };
    let agent = world.agents.of(&input.host)?;
    agent.run(cx, input.vm, operation).await?;
    world.refresh(&input.host, input.vm).await;
    Ok(())
}

/// Fetches the copies.
struct Collect(Arc<World>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Collected {
    template: TemplateView,
}

impl Collect {
    async fn fetch(
        &self,
        cx: &StepContext<TemplateInput>,
        item: &str,
        format: &str,
    ) -> Result<(u64, String), StepError> {
        let input = cx.input();
        cx.progress().text(format!("fetching {item}"));
        let response = self
            .0
            .agents
            .of(&input.host)?
            .copied_file(input.spec.id, item)
            .await?;
        let content = response.into_stream();
        let taking =
            async { Ok::<_, StepError>(self.0.images.take_content(format, content).await?) };
        cx.unless_cancelled(taking).await
    }
}

#[async_trait]
impl Step<TemplateInput> for Collect {
    const NAME: &'static str = "collect";
    type Output = Collected;

    async fn run(&self, cx: &StepContext<TemplateInput>) -> Result<Collected, StepError> {
        let (input, copied) = (cx.input(), cx.output::<Copy>()?);
        let mut disks = Vec::new();
        for disk in &input.spec.disks {
            let (file_bytes, sha256) = self.fetch(cx, &disk.target, "qcow2").await?;
            disks.push(TemplateDisk {
                id: Some(disk.id.clone()),
                target: disk.target.clone(),
                serial: disk.serial.clone(),
                bus: disk.bus,
                size: disk.size,
                file_bytes,
                sha256,
            });
        }
        let uefi_variables = if copied.variables {
            Some(self.fetch(cx, "variables", "raw").await?.1)
        } else {
            None
        };
        let template = TemplateView {
            name: input.name.clone(),
            from: input.source.clone(),
            profile: input.spec.profile,
            cpus: input.spec.cpus,
            memory_bytes: input.spec.memory,
            secure_boot: input.spec.firmware.secure_boot,
            source_had_tpm: input.source_had_tpm,
            disks,
            uefi_variables,
            clock: input.spec.clock,
            nics: Some(input.spec.nics.iter().map(NicAsked::from).collect()),
            created: OffsetDateTime::now_utc(),
        };
        Ok(Collected { template })
    }
}

#[async_trait]
impl UndoStep<TemplateInput> for Collect {
    async fn undo(&self, cx: &StepContext<TemplateInput>) -> Result<(), StepError> {
        if let Some(Collected { template }) = cx.output_if_done::<Self>()? {
            let disks = template.disks.into_iter().map(|disk| disk.sha256);
            let contents = disks.chain(template.uefi_variables).collect();
            self.0.drop_content(contents).await;
        }
        Ok(())
    }
}

/// From here on there is such a template.
struct Keep(Arc<World>);

#[async_trait]
impl Step<TemplateInput> for Keep {
    const NAME: &'static str = "keep";
    type Output = ();

    async fn run(&self, cx: &StepContext<TemplateInput>) -> Result<(), StepError> {
        let Collected { template } = cx.output::<Collect>()?;
        Ok(self.0.templates.keep(&template).await?)
    }
}

#[async_trait]
impl UndoStep<TemplateInput> for Keep {
    async fn undo(&self, cx: &StepContext<TemplateInput>) -> Result<(), StepError> {
        let contents = self.0.templates.remove(&cx.input().name).await?;
        self.0.drop_content(contents).await;
        Ok(())
    }
}

struct CleanUp(Arc<World>);

#[async_trait]
impl Step<TemplateInput> for CleanUp {
    const NAME: &'static str = "clean-up";
    type Output = ();

    /// As the undo of `copy`: the template is with the controller by now.
    fn absence(&self, cx: &StepContext<TemplateInput>) -> Absence {
        Absence::Owe(about(&cx.input().host, cx.input().vm))
    }

    async fn run(&self, cx: &StepContext<TemplateInput>) -> Result<(), StepError> {
        remove_copy(&self.0, cx).await
    }
}
