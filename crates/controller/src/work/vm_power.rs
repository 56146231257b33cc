//! `vm-start`, `vm-stop` and `vm-restart`.

use super::{FleetJob, NoReport, OnVm, TakeEscrow, vm_locks};
use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_api::reports::StopReport;
use fleetward_api::tpm::VersionReason;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, Job, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::Request;
use fleetward_model::vm::StoppedBy;
use fleetward_model::{ErrorCode, Failure, HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Input of `vm-start`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StartInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) host: HostName,
    /// False for one that is paused.
    pub(crate) was_stopped: bool,
}

impl OnVm for StartInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }

    fn was_stopped(&self) -> bool {
        self.was_stopped
    }
}

/// The kind.
pub(crate) struct VmStart(pub(crate) Arc<World>);

impl JobKind for VmStart {
    const NAME: &'static str = "vm-start";
    type Input = StartInput;

    fn locks(input: &StartInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<StartInput> {
        Steps::new().step(StartVm(self.0.clone()))
    }
}

impl FleetJob for VmStart {
    type Report = NoReport;
    const ACCESS: Access = <verbs::VmStart as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::Start);

    fn target(input: &StartInput) -> String {
        input.name.to_string()
    }

    fn host(input: &StartInput) -> &HostName {
        &input.host
    }

    fn vm(input: &StartInput) -> Option<VmId> {
        Some(input.vm)
    }
}

/// Starts the VM of any job.
pub(super) struct StartVm(pub(super) Arc<World>);

#[async_trait]
impl<I: OnVm> Step<I> for StartVm {
    const NAME: &'static str = "start";
    type Output = ();

    async fn run(&self, cx: &StepContext<I>) -> Result<(), StepError> {
        let (vm, host) = (cx.input().vm(), cx.input().host());
        require_counting(&self.0, host, vm)?;
        self.0
            .agents
            .of(host)?
            .run(cx, vm, operation::Start {})
            .await?;
        self.0.refresh(host, vm).await;
        Ok(())
    }
}

#[async_trait]
impl<I: OnVm> UndoStep<I> for StartVm {
    /// A guest that did start is not cut off when its host is back, however much later that is.
    fn undo_absence(&self, cx: &StepContext<I>) -> Absence {
        Absence::Forgo(format!(
            "whether the VM started shows when host {} is back",
            cx.input().host()
        ))
    }

    async fn undo(&self, cx: &StepContext<I>) -> Result<(), StepError> {
        if !cx.input().was_stopped() {
            return Ok(());
        }
        let (vm, host) = (cx.input().vm(), cx.input().host());
        let operation = operation::Stop {
            force: true,
            deadline_seconds: 1,
            tell: false,
        };
        self.0.agents.of(host)?.run(cx, vm, operation).await?;
        self.0.refresh(host, vm).await;
        Ok(())
    }
}

/// A copy whose VM was rebuilt on another host never starts. The job holds the VM, so no recovery begins while this is
/// asked; what one that has ended made of the copy is in the store.
fn require_counting(world: &World, host: &HostName, vm: VmId) -> Result<(), Failure> {
    if !world.inventory.is_superseded(host, vm) {
        return Ok(());
    }
    let what = format!("the copy of VM {vm} on host {host} does not start");
    Err(Failure::new(ErrorCode::VmStateWrong, what)
        .because("the VM was rebuilt on another host while this one was lost")
        .fix(format!("fleetward vm show {vm}")))
}

/// What a forced stop locks: only other forced stops.
pub(crate) const POWER: &str = "vm-power/";

/// Input of `vm-stop`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StopInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) host: HostName,
    pub(crate) force: bool,
    pub(crate) deadline_seconds: u32,
}

impl OnVm for StopInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }
}

/// The kind. Nothing is taken back: a guest that was asked to shut down cannot be asked to forget it.
pub(crate) struct VmStop(pub(crate) Arc<World>);

impl JobKind for VmStop {
    const NAME: &'static str = "vm-stop";
    type Input = StopInput;

    /// A VM can be cut off whatever else is done with it: the host ends what is under way first, and the job that wanted
    /// that finds the VM stopped.
    fn locks(input: &StopInput) -> Vec<String> {
        match input.force {
            true => vec![format!("{POWER}{}", input.vm)],
            false => vm_locks(input.vm, &input.name),
        }
    }

    fn steps(&self) -> Steps<StopInput> {
        Steps::new()
            .check(StopVm(self.0.clone()))
            .check(TakeEscrow::new(self.0.clone(), VersionReason::Stopped))
    }
}

impl FleetJob for VmStop {
    type Report = StopReport;
    const ACCESS: Access = <verbs::VmStop as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::Stop);
    const WARNING_STEPS: &'static [&'static str] = &[TakeEscrow::<StopInput>::NAME];

    fn target(input: &StopInput) -> String {
        input.name.to_string()
    }

    fn host(input: &StopInput) -> &HostName {
        &input.host
    }

    fn vm(input: &StopInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn report(_input: &StopInput, job: &Job) -> Option<StopReport> {
        stop_report(job)
    }
}

/// How the guest ended, from the record of the step.
fn stop_report(job: &Job) -> Option<StopReport> {
    let ended: Ended = job.output(StopVm::STEP)?;
    Some(StopReport { by: ended.by })
}

/// Output of the step that stops a VM.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Ended {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<StoppedBy>,
}

/// Stops the VM of a job.
struct StopVm(Arc<World>);

impl StopVm {
    const STEP: &'static str = "stop";

    async fn stop<I: OnVm>(
        &self,
        cx: &StepContext<I>,
        force: bool,
        deadline_seconds: u32,
    ) -> Result<Ended, StepError> {
        let (vm, host) = (cx.input().vm(), cx.input().host());
        let operation = operation::Stop {
            force,
            deadline_seconds,
            tell: true,
        };
        let done = self.0.agents.of(host)?.run(cx, vm, operation).await;
        self.0.refresh(host, vm).await;
        Ok(Ended { by: done?.by })
    }
}

#[async_trait]
impl Step<StopInput> for StopVm {
    const NAME: &'static str = Self::STEP;
    type Output = Ended;

    async fn run(&self, cx: &StepContext<StopInput>) -> Result<Ended, StepError> {
        let input = cx.input();
        self.stop(cx, input.force, input.deadline_seconds).await
    }
}

#[async_trait]
impl Step<RestartInput> for StopVm {
    const NAME: &'static str = Self::STEP;
    type Output = Ended;

    async fn run(&self, cx: &StepContext<RestartInput>) -> Result<Ended, StepError> {
        let input = cx.input();
        self.stop(cx, input.force, input.deadline_seconds).await
    }
}

/// Input of `vm-restart`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RestartInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) host: HostName,
    pub(crate) force: bool,
    pub(crate) deadline_seconds: u32,
}

impl OnVm for RestartInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }

    /// It ran before: what started again is left running.
    fn was_stopped(&self) -> bool {
        false
    }
}

/// The kind. A guest that has shut down cannot be asked to forget it; the start is what is left to do, and a failure of it
/// leaves the VM stopped.
pub(crate) struct VmRestart(pub(crate) Arc<World>);

impl JobKind for VmRestart {
    const NAME: &'static str = "vm-restart";
    type Input = RestartInput;

    fn locks(input: &RestartInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<RestartInput> {
        Steps::new()
            .check(StopVm(self.0.clone()))
            .check(TakeEscrow::new(self.0.clone(), VersionReason::Stopped))
            .step(StartVm(self.0.clone()))
    }
}

impl FleetJob for VmRestart {
    type Report = StopReport;
    const ACCESS: Access = <verbs::VmRestart as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::Restart { force: false });
    const WARNING_STEPS: &'static [&'static str] = &[TakeEscrow::<RestartInput>::NAME];

    fn target(input: &RestartInput) -> String {
        input.name.to_string()
    }

    fn host(input: &RestartInput) -> &HostName {
        &input.host
    }

    fn vm(input: &RestartInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn report(_input: &RestartInput, job: &Job) -> Option<StopReport> {
        stop_report(job)
    }
}
