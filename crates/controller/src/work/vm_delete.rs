//! `vm-delete`: checks again that the VM is stopped, and then only goes forward.

use super::tpm::switch::keep_before;
use super::{FleetJob, NoReport, OnVm, vm_locks};
use crate::debts::removal;
use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_api::tpm::VersionReason;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{Absence, JobKind, Step, StepContext, StepError, Steps, async_trait};
use fleetward_model::admission::{Answer, Request, answer};
use fleetward_model::vm::VmSpec;
use fleetward_model::{Failure, HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use time::OffsetDateTime;

/// What is deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeleteInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) host: HostName,
    pub(crate) spec: VmSpec,
    pub(crate) keep_tpm_state: bool,
}

impl OnVm for DeleteInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }
}

/// The kind.
pub(crate) struct VmDelete(pub(crate) Arc<World>);

impl JobKind for VmDelete {
    const NAME: &'static str = "vm-delete";
    type Input = DeleteInput;

    fn locks(input: &DeleteInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<DeleteInput> {
        Steps::new()
            .check(SeeStopped(self.0.clone()))
            .check(KeepLast(self.0.clone()))
            .forward(Undefine(self.0.clone()))
            .forward(RemoveTpm(self.0.clone()))
            .forward(DeleteVolumes(self.0.clone()))
            .forward(Forget(self.0.clone()))
    }
}

impl FleetJob for VmDelete {
    type Report = NoReport;
    const ACCESS: Access = <verbs::VmDelete as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::Delete);
    const WARNING_STEPS: &'static [&'static str] = &[KeepLast::NAME];

    fn target(input: &DeleteInput) -> String {
        input.name.to_string()
    }

    fn host(input: &DeleteInput) -> &HostName {
        &input.host
    }

    fn vm(input: &DeleteInput) -> Option<VmId> {
        Some(input.vm)
    }
}

struct SeeStopped(Arc<World>);

#[async_trait]
impl Step<DeleteInput> for SeeStopped {
    const NAME: &'static str = "see-stopped";
    type Output = ();

    async fn run(&self, cx: &StepContext<DeleteInput>) -> Result<(), StepError> {
        let input = cx.input();
        let Some(detail) = self.0.agents.of(&input.host)?.vm(input.vm).await? else {
            return Ok(()); // the rest is still removed
        };
        match answer(detail.vm.state, Request::Delete) {
            Answer::Accept | Answer::Done => Ok(()),
            Answer::Refuse(reason) => {
                let what = format!("VM {} cannot be deleted", input.name);
                Err(Failure::new(reason.code, what)
                    .because(reason.because(&input.name, &input.host))
                    .fix(reason.fix(&input.name, &input.host))
                    .into())
            }
        }
    }
}

/// With `--keep-tpm-state`, the controller has it as it was in the end, or nothing is deleted.
struct KeepLast(Arc<World>);

#[async_trait]
impl Step<DeleteInput> for KeepLast {
    const NAME: &'static str = "escrow";
    type Output = Taken;

    async fn run(&self, cx: &StepContext<DeleteInput>) -> Result<Taken, StepError> {
        let input = cx.input();
        self.0.refresh(&input.host, input.vm).await;
        let observed = self.0.inventory.vm(input.vm);
        if !input.keep_tpm_state || observed.is_none_or(|vm| !vm.tpm.enabled) {
            return Ok(Taken::default());
        }
        let warning = keep_before(&self.0, cx, &input.name, VersionReason::Deleted).await?;
        Ok(Taken { warning })
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Taken {
    warning: Option<String>,
}

struct Undefine(Arc<World>);

#[async_trait]
impl Step<DeleteInput> for Undefine {
    const NAME: &'static str = "undefine";
    type Output = ();

    /// The VM is deleted: nothing brings its id back but what is removed here.
    fn absence(&self, cx: &StepContext<DeleteInput>) -> Absence {
        removal(&cx.input().host, cx.input().vm)
    }

    async fn run(&self, cx: &StepContext<DeleteInput>) -> Result<(), StepError> {
        let input = cx.input();
        let agent = self.0.agents.of(&input.host)?;
        agent
            .run(cx, input.vm, operation::Undefine {})
            .await
            .map(drop)
    }
}

struct RemoveTpm(Arc<World>);

#[async_trait]
impl Step<DeleteInput> for RemoveTpm {
    const NAME: &'static str = "remove-tpm";
    type Output = ();

    /// The VM is deleted: nothing brings its id back but what is removed here.
    fn absence(&self, cx: &StepContext<DeleteInput>) -> Absence {
        removal(&cx.input().host, cx.input().vm)
    }

    async fn run(&self, cx: &StepContext<DeleteInput>) -> Result<(), StepError> {
        // Also of a VM whose TPM is off: its host may have kept one.
        let input = cx.input();
        let operation = operation::RemoveTpm {
            keep: input.keep_tpm_state,
            history: !input.keep_tpm_state,
        };
        let agent = self.0.agents.of(&input.host)?;
        agent.run(cx, input.vm, operation).await.map(drop)
    }
}

struct DeleteVolumes(Arc<World>);

#[async_trait]
impl Step<DeleteInput> for DeleteVolumes {
    const NAME: &'static str = "delete-volumes";
    type Output = ();

    /// The VM is deleted: nothing brings its id back but what is removed here.
    fn absence(&self, cx: &StepContext<DeleteInput>) -> Absence {
        removal(&cx.input().host, cx.input().vm)
    }

    async fn run(&self, cx: &StepContext<DeleteInput>) -> Result<(), StepError> {
        let input = cx.input();
        let operation = operation::DeleteVolumes {
            spec: input.spec.clone(),
        };
        let agent = self.0.agents.of(&input.host)?;
        agent.run(cx, input.vm, operation).await.map(drop)
    }
}

/// So that the next list no longer shows it, and its name is free.
struct Forget(Arc<World>);

#[async_trait]
impl Step<DeleteInput> for Forget {
    const NAME: &'static str = "forget";
    type Output = ();

    async fn run(&self, cx: &StepContext<DeleteInput>) -> Result<(), StepError> {
        let input = cx.input();
        if !input.keep_tpm_state {
            let forgotten = self.0.escrow.forget(input.vm).await;
            forgotten.map_err(StepError::retryable)?;
        }
        let inventory = &self.0.inventory;
        inventory.observe(&input.host, input.vm, None);
        let written = inventory.flush(OffsetDateTime::now_utc()).await;
        written.map_err(|error| StepError::retryable(crate::store_failure(&error)))
    }
}
