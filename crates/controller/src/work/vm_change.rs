//! `vm-change`: whatever is changed of one VM that stays where it is.
//!
//! ```text
//!  check, place-images | clear-away, make-tpm, attach-tpm | last-copy, detach-tpm | change  ‖ remove-volumes, set-aside-tpm, escrow
//!          └ media ──┘   └──── TPM on ──────────────────┘   └──── TPM off ──────┘             └─ disks ────┘  └─ off ──────┘  └ on ┘
//! ```
//! The plan was made from what the host had last said, before the job; a step finds out itself what is done already. What
//! is taken back gets the value that it had, and only where nobody else has given it another meanwhile.

use super::place_images::{self, NeedsImages, PlaceImages};
use super::take_escrow::TakeEscrow;
use super::tpm::switch::{
    AttachTpm, ClearAway, DetachTpm, LastCopy, MakeTpm, PATIENCE, SetAsideTpm, SwitchesTpm, ask,
};
use super::{FleetJob, OnVm, name_lock, vm_locks};
use crate::debts::about;
use crate::networks::{changed_mac_locks, changed_macs};
use crate::world::World;
use fleetward_api::agent::operation::{ChangeVm, DropVolumes};
use fleetward_api::reports::ChangeReport;
use fleetward_api::tpm::VersionReason;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, Job, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::Request;
use fleetward_model::change::{self, ChangeKind, ChangeStep, Direction, Plan};
use fleetward_model::{ErrorCode, Failure, GroupName, HostName, Names, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Input of `vm-change`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ChangeInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) host: HostName,
    pub(crate) group: GroupName,
    pub(crate) plan: Plan,
}

impl ChangeInput {
    fn steps(&self) -> impl Iterator<Item = &ChangeStep> {
        self.plan.steps.iter().map(|planned| &planned.step)
    }
}

impl OnVm for ChangeInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }
}

impl NeedsImages for ChangeInput {
    fn images(&self, _world: &World) -> Vec<(String, String)> {
        place_images::of_media(self.plan.media())
    }
}

impl SwitchesTpm for ChangeInput {
    fn name(&self) -> &VmName {
        &self.name
    }

    fn group(&self) -> &GroupName {
        &self.group
    }

    fn switches_tpm(&self, on: bool) -> bool {
        self.plan.tpm() == Some(on)
    }
}

impl ChangeInput {
    /// The files of disks that go and whose volumes stay.
    fn kept(&self) -> Vec<String> {
        let kept = self.plan.disks().filter(|step| step.keep);
        kept.filter_map(|step| step.path.clone()).collect()
    }
}

/// The kind.
pub(crate) struct VmChange(pub(crate) Arc<World>);

impl JobKind for VmChange {
    const NAME: &'static str = "vm-change";
    type Input = ChangeInput;

    fn locks(input: &ChangeInput) -> Vec<String> {
        let mut locks = vm_locks(input.vm, &input.name);
        if let Some(name) = input.plan.name().filter(|name| **name != input.name) {
            locks.push(name_lock(name));
        }
        locks.extend(changed_mac_locks(input.steps()));
        locks
    }

    fn steps(&self) -> Steps<ChangeInput> {
        let world = &self.0;
        Steps::new()
            .check(CheckNames(world.clone()))
            .check(PlaceImages::<ChangeInput>::new(world.clone()))
            .check(ClearAway(world.clone()))
            .step(MakeTpm(world.clone()))
            .step(AttachTpm(world.clone()))
            .check(LastCopy(world.clone()))
            .step(DetachTpm(world.clone()))
            .step(Change(world.clone()))
            .forward(RemoveVolumes(world.clone()))
            .forward(SetAsideTpm(world.clone()))
            .forward(
                TakeEscrow::new(world.clone(), VersionReason::Enabled)
                    .when(|input: &ChangeInput| input.switches_tpm(true)),
            )
    }
}

impl FleetJob for VmChange {
    type Report = ChangeReport;
    const ACCESS: Access = <verbs::VmChange as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::Change);
    const WARNING_STEPS: &'static [&'static str] = &[
        <LastCopy as Step<ChangeInput>>::NAME,
        TakeEscrow::<ChangeInput>::NAME,
    ];

    fn target(input: &ChangeInput) -> String {
        input.name.to_string()
    }

    fn host(input: &ChangeInput) -> &HostName {
        &input.host
    }

    fn vm(input: &ChangeInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn report(input: &ChangeInput, job: &Job) -> Option<ChangeReport> {
        let changed: Changed = job.output(Change::NAME).unwrap_or_default();
        let kinds = input.plan.steps.iter().map(|planned| planned.step.kind());
        let (next_start, now) = kinds.partition(|kind| changed.next_start.contains(kind));
        Some(ChangeReport {
            vm: input.plan.name().unwrap_or(&input.name).clone(),
            host: input.host.clone(),
            now,
            next_start,
            kept: input.kept(),
        })
    }
}

/// Nobody else has the new name and the new addresses; from here on the job's locks keep them.
struct CheckNames(Arc<World>);

#[async_trait]
impl Step<ChangeInput> for CheckNames {
    const NAME: &'static str = "check";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = ();

    fn applies(&self, cx: &StepContext<ChangeInput>) -> bool {
        let input = cx.input();
        input.plan.name().is_some() || !changed_macs(input.steps()).is_empty()
    }

    async fn run(&self, cx: &StepContext<ChangeInput>) -> Result<(), StepError> {
        let input = cx.input();
        if let Some(name) = input.plan.name() {
            self.0.require_name_for(name, Some(input.vm)).await?;
        }
        Ok(self
            .0
            .require_macs(changed_macs(input.steps()), Some(input.vm))?)
    }
}

/// Specification and definition.
struct Change(Arc<World>);

impl Change {
    async fn ask(
        &self,
        cx: &StepContext<ChangeInput>,
        direction: Direction,
    ) -> Result<(), StepError> {
        let input = cx.input();
        let operation = ChangeVm {
            steps: input.plan.of_the_definition(),
            direction,
        };
        let done = ask(&self.0, cx, operation).await;
        done.map(drop).map_err(|error| match error.failure.code {
            ErrorCode::InvalidRequest => StepError::fatal(too_old(&input.host)),
            _ => error,
        })
    }
}

/// An agent that has not reported its versions yet, and is older than the operation, cannot read the request.
fn too_old(host: &HostName) -> Failure {
    let what = format!("the agent of host {host} is older than changes of a VM");
    Failure::new(ErrorCode::AgentTooOld, what).about(&Names::default().host(host))
}

/// What waits for the VM's next start after the change, whoever brought it about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    next_start: BTreeSet<ChangeKind>,
}

#[async_trait]
impl Step<ChangeInput> for Change {
    const NAME: &'static str = "change";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = Changed;

    fn applies(&self, cx: &StepContext<ChangeInput>) -> bool {
        !cx.input().plan.of_the_definition().is_empty()
    }

    async fn run(&self, cx: &StepContext<ChangeInput>) -> Result<Changed, StepError> {
        self.ask(cx, Direction::Forward).await?;
        // The guest may have shut down since the plan was made: what its host says now counts.
        let vm = self.0.inventory.vm(cx.input().vm);
        let waits = vm.iter().flat_map(|vm| change::pending(vm));
        Ok(Changed {
            next_start: waits.map(|pending| pending.change).collect(),
        })
    }
}

#[async_trait]
impl UndoStep<ChangeInput> for Change {
    /// See [`super::tpm::switch::of_the_vms_own_host`]. A VM that runs there runs on with what it has. A name that is taken
    /// back stays kept for it.
    fn undo_absence(&self, cx: &StepContext<ChangeInput>) -> Absence {
        let ChangeInput {
            vm,
            name,
            host,
            plan,
            ..
        } = cx.input();
        let debtor = match plan.name() {
            Some(_) => about(host, *vm).keeping(name_lock(name)),
            None => about(host, *vm),
        };
        let locks = changed_mac_locks(cx.input().steps());
        Absence::Owe(
            locks
                .into_iter()
                .fold(debtor, |debtor, lock| debtor.keeping(lock)),
        )
    }

    async fn undo(&self, cx: &StepContext<ChangeInput>) -> Result<(), StepError> {
        match self.ask(cx, Direction::Back).await {
            // An agent that does not know the operation has not done it.
            Err(error) if error.failure.code == ErrorCode::AgentTooOld => Ok(()),
            answer => answer,
        }
    }
}

/// Volumes of disks that are gone, or lie elsewhere now.
struct RemoveVolumes(Arc<World>);

#[async_trait]
impl Step<ChangeInput> for RemoveVolumes {
    const NAME: &'static str = "remove-volumes";
    type Output = ();

    fn applies(&self, cx: &StepContext<ChangeInput>) -> bool {
        !cx.input().plan.left_over().is_empty()
    }

    /// Nobody needs them, and nobody else finds them.
    fn absence(&self, cx: &StepContext<ChangeInput>) -> Absence {
        Absence::Owe(about(&cx.input().host, cx.input().vm))
    }

    async fn run(&self, cx: &StepContext<ChangeInput>) -> Result<(), StepError> {
        let disks = cx.input().plan.left_over();
        ask(&self.0, cx, DropVolumes { disks }).await.map(drop)
    }
}
