//! `vm-start` and `vm-stop`.

use super::{FleetJob, NoReport, OnVm, TakeEscrow, vm_locks};
use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_api::tpm::VersionReason;
use fleetward_jobs::{
    Absence, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::Request;
use fleetward_model::{HostName, VmId, VmName};
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
        };
        self.0.agents.of(host)?.run(cx, vm, operation).await?;
        self.0.refresh(host, vm).await;
        Ok(())
    }
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
    type Report = NoReport;
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
}

struct StopVm(Arc<World>);

#[async_trait]
impl Step<StopInput> for StopVm {
    const NAME: &'static str = "stop";
    type Output = ();

    async fn run(&self, cx: &StepContext<StopInput>) -> Result<(), StepError> {
        let input = cx.input();
        let operation = operation::Stop {
            force: input.force,
            deadline_seconds: input.deadline_seconds,
        };
        let done = self
            .0
            .agents
            .of(&input.host)?
            .run(cx, input.vm, operation)
            .await;
        self.0.refresh(&input.host, input.vm).await;
        done.map(drop)
    }
}
