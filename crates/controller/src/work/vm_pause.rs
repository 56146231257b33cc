//! `vm-pause` and `vm-resume`.

use super::{FleetJob, NoReport, OnVm, vm_locks};
use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::Request;
use fleetward_model::{HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Input of both.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PauseInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) host: HostName,
}

impl OnVm for PauseInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }
}

/// Stops the processors of a running VM.
pub(crate) struct VmPause(pub(crate) Arc<World>);

/// Lets a paused VM run on.
pub(crate) struct VmResume(pub(crate) Arc<World>);

macro_rules! kind {
    ($kind:ident, $name:literal, $step:ident, $request:expr) => {
        impl JobKind for $kind {
            const NAME: &'static str = $name;
            type Input = PauseInput;

            fn locks(input: &PauseInput) -> Vec<String> {
                vm_locks(input.vm, &input.name)
            }

            fn steps(&self) -> Steps<PauseInput> {
                Steps::new().step($step(self.0.clone()))
            }
        }

        impl FleetJob for $kind {
            type Report = NoReport;
            const ACCESS: Access = <verbs::$kind as Verb>::ACCESS;
            const REQUEST: Option<Request> = Some($request);

            fn target(input: &PauseInput) -> String {
                input.name.to_string()
            }

            fn host(input: &PauseInput) -> &HostName {
                &input.host
            }

            fn vm(input: &PauseInput) -> Option<VmId> {
                Some(input.vm)
            }
        }
    };
}

kind!(VmPause, "vm-pause", PauseVm, Request::Pause);
kind!(VmResume, "vm-resume", ResumeVm, Request::Resume);

async fn pause(world: &World, cx: &StepContext<PauseInput>) -> Result<(), StepError> {
    let PauseInput { vm, host, .. } = cx.input();
    let agent = world.agents.of(host)?;
    agent.run(cx, *vm, operation::Pause {}).await?;
    world.refresh(host, *vm).await;
    Ok(())
}

async fn resume(world: &World, cx: &StepContext<PauseInput>) -> Result<(), StepError> {
    let PauseInput { vm, host, .. } = cx.input();
    let agent = world.agents.of(host)?;
    agent.run(cx, *vm, operation::Resume {}).await?;
    world.refresh(host, *vm).await;
    Ok(())
}

/// Whether the guest stands still when its host is back is for people to decide.
fn shows_later(cx: &StepContext<PauseInput>) -> Absence {
    Absence::Forgo(format!(
        "whether the VM is paused shows when host {} is back",
        cx.input().host
    ))
}

struct PauseVm(Arc<World>);

#[async_trait]
impl Step<PauseInput> for PauseVm {
    const NAME: &'static str = "pause";
    type Output = ();

    async fn run(&self, cx: &StepContext<PauseInput>) -> Result<(), StepError> {
        pause(&self.0, cx).await
    }
}

#[async_trait]
impl UndoStep<PauseInput> for PauseVm {
    fn undo_absence(&self, cx: &StepContext<PauseInput>) -> Absence {
        shows_later(cx)
    }

    async fn undo(&self, cx: &StepContext<PauseInput>) -> Result<(), StepError> {
        resume(&self.0, cx).await
    }
}

struct ResumeVm(Arc<World>);

#[async_trait]
impl Step<PauseInput> for ResumeVm {
    const NAME: &'static str = "resume";
    type Output = ();

    async fn run(&self, cx: &StepContext<PauseInput>) -> Result<(), StepError> {
        resume(&self.0, cx).await
    }
}

#[async_trait]
impl UndoStep<PauseInput> for ResumeVm {
    fn undo_absence(&self, cx: &StepContext<PauseInput>) -> Absence {
        shows_later(cx)
    }

    async fn undo(&self, cx: &StepContext<PauseInput>) -> Result<(), StepError> {
        pause(&self.0, cx).await
    }
}
