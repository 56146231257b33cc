//! `tpm-enable`, `tpm-disable`, `tpm-restore`, `tpm-roll` and `tpm-unlock`: change the TPM of an existing VM.
//!
//! ```text
//!  enable:   stop | set-aside, make-tpm, attach-tpm   ‖ escrow, restart
//!  disable:  stop | last-copy, detach-tpm             ‖ set-aside-tpm, restart
//!  restore:  stop | prepare-restore                   ‖ commit-tpm, escrow, restart
//!  roll:     stop | prepare-roll                      ‖ commit-tpm, escrow, restart
//!  unlock:   stop | prepare-unlock                    ‖ commit-tpm, escrow, restart
//! ```
//! Bulk commands submit one job for each VM: a failure affects one VM, and a repeated command skips finished ones. A
//! running VM is asked to shut down, and its power is never cut; undo starts it again. After the point of no return, a
//! VM that does not start again is a warning of the job, and the job does not retry.

pub(super) mod switch;

use super::custody::{ProtectorDigest, commit_tpm};
use super::take_escrow::TakeEscrow;
use super::{FleetJob, OnVm, vm_locks};
use crate::debts::about;
use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_api::reports::TpmReport;
use fleetward_api::tpm::VersionReason;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, Job, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::{Request, TpmChange};
use fleetward_model::vm::VmSummary;
use fleetward_model::{ErrorCode, Failure, GroupName, GuardianId, HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use switch::{
    AttachTpm, ClearAway, DetachTpm, LastCopy, MakeTpm, PATIENCE, SetAsideTpm, SwitchesTpm, ask,
    keep_before, of_the_vms_own_host,
};
use time::OffsetDateTime;

/// Input of all five, and of the jobs on certificates.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TpmInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) host: HostName,
    pub(crate) group: GroupName,
    /// It runs, and runs again afterwards.
    pub(crate) runs: bool,
    pub(crate) deadline_seconds: u32,
    /// What a restore brings back.
    pub(crate) version: Option<u64>,
    /// Who can open the key before a roll, and so after it.
    pub(crate) guardians: Vec<GuardianId>,
}

impl SwitchesTpm for TpmInput {
    fn name(&self) -> &VmName {
        &self.name
    }

    fn group(&self) -> &GroupName {
        &self.group
    }

    /// The kinds that have such steps do nothing else.
    fn switches_tpm(&self, _on: bool) -> bool {
        true
    }
}

impl OnVm for TpmInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }
}

/// Switches the TPM on: a new one.
pub(crate) struct TpmEnable(pub(crate) Arc<World>);
/// Switches it off; it stays in the history.
pub(crate) struct TpmDisable(pub(crate) Arc<World>);
/// Brings a kept version back.
pub(crate) struct TpmRestore(pub(crate) Arc<World>);
/// Gives it a new key.
pub(crate) struct TpmRoll(pub(crate) Arc<World>);
/// Clears its lockout counter.
pub(crate) struct TpmUnlock(pub(crate) Arc<World>);

impl JobKind for TpmEnable {
    const NAME: &'static str = "tpm-enable";
    type Input = TpmInput;

    fn locks(input: &TpmInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<TpmInput> {
        let world = &self.0;
        Steps::new()
            .step(ShutDown(world.clone()))
            .check(ClearAway(world.clone()))
            .step(MakeTpm(world.clone()))
            .step(AttachTpm(world.clone()))
            .forward(TakeEscrow::new(world.clone(), VersionReason::Enabled))
            .forward(StartAgain(world.clone()))
    }
}

impl FleetJob for TpmEnable {
    type Report = TpmReport;
    const ACCESS: Access = <verbs::TpmEnable as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(request(TpmChange::Enable));
    const WARNING_STEPS: &'static [&'static str] =
        &[TakeEscrow::<TpmInput>::NAME, StartAgain::NAME];

    fn target(input: &TpmInput) -> String {
        input.name.to_string()
    }

    fn host(input: &TpmInput) -> &HostName {
        &input.host
    }

    fn vm(input: &TpmInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn report(input: &TpmInput, _job: &Job) -> Option<TpmReport> {
        Some(report(input))
    }
}

impl JobKind for TpmDisable {
    const NAME: &'static str = "tpm-disable";
    type Input = TpmInput;

    fn locks(input: &TpmInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<TpmInput> {
        let world = &self.0;
        Steps::new()
            .step(ShutDown(world.clone()))
            .check(LastCopy(world.clone()))
            .step(DetachTpm(world.clone()))
            .forward(SetAsideTpm(world.clone()))
            .forward(StartAgain(world.clone()))
    }
}

impl FleetJob for TpmDisable {
    type Report = TpmReport;
    const ACCESS: Access = <verbs::TpmDisable as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(request(TpmChange::Disable));
    const WARNING_STEPS: &'static [&'static str] =
        &[<LastCopy as Step<TpmInput>>::NAME, StartAgain::NAME];

    fn target(input: &TpmInput) -> String {
        input.name.to_string()
    }

    fn host(input: &TpmInput) -> &HostName {
        &input.host
    }

    fn vm(input: &TpmInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn report(input: &TpmInput, _job: &Job) -> Option<TpmReport> {
        Some(report(input))
    }
}

impl JobKind for TpmRestore {
    const NAME: &'static str = "tpm-restore";
    type Input = TpmInput;

    fn locks(input: &TpmInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<TpmInput> {
        let world = &self.0;
        Steps::new()
            .step(ShutDown(world.clone()))
            .step(PrepareRestore(world.clone()))
            .forward(CommitTpm::<PrepareRestore>::new(world))
            .forward(TakeEscrow::new(world.clone(), VersionReason::Restored))
            .forward(StartAgain(world.clone()))
    }
}

impl FleetJob for TpmRestore {
    type Report = TpmReport;
    const ACCESS: Access = <verbs::TpmRestore as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(request(TpmChange::Restore));
    const WARNING_STEPS: &'static [&'static str] = &[
        PrepareRestore::NAME,
        TakeEscrow::<TpmInput>::NAME,
        StartAgain::NAME,
    ];

    fn target(input: &TpmInput) -> String {
        input.name.to_string()
    }

    fn host(input: &TpmInput) -> &HostName {
        &input.host
    }

    fn vm(input: &TpmInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn report(input: &TpmInput, _job: &Job) -> Option<TpmReport> {
        Some(report(input))
    }
}

impl JobKind for TpmRoll {
    const NAME: &'static str = "tpm-roll";
    type Input = TpmInput;

    fn locks(input: &TpmInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<TpmInput> {
        let world = &self.0;
        Steps::new()
            .step(ShutDown(world.clone()))
            .step(PrepareRoll(world.clone()))
            .forward(CommitTpm::<PrepareRoll>::new(world))
            .forward(TakeEscrow::new(world.clone(), VersionReason::Rolled))
            .forward(StartAgain(world.clone()))
    }
}

impl FleetJob for TpmRoll {
    type Report = TpmReport;
    const ACCESS: Access = <verbs::TpmRoll as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(request(TpmChange::Roll));
    const WARNING_STEPS: &'static [&'static str] =
        &[TakeEscrow::<TpmInput>::NAME, StartAgain::NAME];

    fn target(input: &TpmInput) -> String {
        input.name.to_string()
    }

    fn host(input: &TpmInput) -> &HostName {
        &input.host
    }

    fn vm(input: &TpmInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn report(input: &TpmInput, _job: &Job) -> Option<TpmReport> {
        Some(report(input))
    }
}

impl JobKind for TpmUnlock {
    const NAME: &'static str = "tpm-unlock";
    type Input = TpmInput;

    fn locks(input: &TpmInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<TpmInput> {
        let world = &self.0;
        Steps::new()
            .step(ShutDown(world.clone()))
            .step(PrepareUnlock(world.clone()))
            .forward(CommitTpm::<PrepareUnlock>::new(world))
            .forward(TakeEscrow::new(world.clone(), VersionReason::Unlocked))
            .forward(StartAgain(world.clone()))
    }
}

impl FleetJob for TpmUnlock {
    type Report = TpmReport;
    const ACCESS: Access = <verbs::TpmUnlock as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(request(TpmChange::Unlock));
    const WARNING_STEPS: &'static [&'static str] =
        &[TakeEscrow::<TpmInput>::NAME, StartAgain::NAME];

    fn target(input: &TpmInput) -> String {
        input.name.to_string()
    }

    fn host(input: &TpmInput) -> &HostName {
        &input.host
    }

    fn vm(input: &TpmInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn report(input: &TpmInput, _job: &Job) -> Option<TpmReport> {
        Some(report(input))
    }
}

const fn request(change: TpmChange) -> Request {
    Request::Tpm {
        change,
        restart: true,
    }
}

fn report(input: &TpmInput) -> TpmReport {
    TpmReport {
        vm: input.name.clone(),
        host: input.host.clone(),
        version: input.version,
    }
}

/// What lies with the VM now: an earlier step has just asked for it, and the job's lock keeps it so.
fn metadata_of(world: &World, input: &TpmInput) -> Result<VmSummary, Failure> {
    let known = world
        .inventory
        .vm(input.vm)
        .and_then(|vm| vm.metadata.clone());
    known.ok_or_else(|| Failure::new(ErrorCode::VmNotFound, format!("no VM {}", input.name)))
}

/// Nobody starts a VM by itself when its host is back, however much later that is.
fn stays_stopped(cx: &StepContext<TpmInput>) -> Absence {
    let TpmInput { name, host, .. } = cx.input();
    Absence::Forgo(format!(
        "VM {name} ran before and is not started again; when host {host} is back: fleetward vm start {name}"
    ))
}

/// An orderly end of a VM that runs.
pub(super) struct ShutDown(pub(super) Arc<World>);

#[async_trait]
impl Step<TpmInput> for ShutDown {
    const NAME: &'static str = "stop";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = ();

    async fn run(&self, cx: &StepContext<TpmInput>) -> Result<(), StepError> {
        if !cx.input().runs {
            return Ok(());
        }
        let operation = operation::Stop {
            force: false,
            deadline_seconds: cx.input().deadline_seconds,
            tell: false,
        };
        ask(&self.0, cx, operation).await.map(drop)
    }
}

#[async_trait]
impl UndoStep<TpmInput> for ShutDown {
    fn undo_absence(&self, cx: &StepContext<TpmInput>) -> Absence {
        stays_stopped(cx)
    }

    async fn undo(&self, cx: &StepContext<TpmInput>) -> Result<(), StepError> {
        if !cx.input().runs {
            return Ok(());
        }
        ask(&self.0, cx, operation::Start {}).await.map(drop)
    }
}

/// The VM ran before, so it runs again.
pub(super) struct StartAgain(pub(super) Arc<World>);

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Started {
    warning: Option<String>,
}

#[async_trait]
impl Step<TpmInput> for StartAgain {
    const NAME: &'static str = "restart";
    type Output = Started;

    fn applies(&self, cx: &StepContext<TpmInput>) -> bool {
        cx.input().runs
    }

    fn absence(&self, cx: &StepContext<TpmInput>) -> Absence {
        stays_stopped(cx)
    }

    async fn run(&self, cx: &StepContext<TpmInput>) -> Result<Started, StepError> {
        match ask(&self.0, cx, operation::Start {}).await {
            Ok(_) => Ok(Started::default()),
            // Its host may come back; all else somebody must look at.
            Err(error) if error.failure.code == ErrorCode::HostUnreachable => Err(error),
            Err(error) => Ok(Started {
                warning: Some(format!(
                    "the VM did not start again: {}: {}",
                    error.failure.what, error.failure.because
                )),
            }),
        }
    }
}

/// The new key protector's digest, which tells whether a commit has happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Prepared {
    pub(super) protector: ProtectorDigest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) warning: Option<String>,
}

impl From<operation::Protector> for Prepared {
    fn from(answer: operation::Protector) -> Self {
        Self {
            protector: ProtectorDigest::of(&answer.key_protector),
            warning: None,
        }
    }
}

struct PrepareRoll(Arc<World>);

#[async_trait]
impl Step<TpmInput> for PrepareRoll {
    const NAME: &'static str = "prepare-roll";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = Prepared;

    async fn run(&self, cx: &StepContext<TpmInput>) -> Result<Prepared, StepError> {
        let input = cx.input();
        let now = OffsetDateTime::now_utc();
        let metadata = metadata_of(&self.0, input)?;
        let to = self
            .0
            .remaining_recipients(&metadata, &input.host, &input.guardians, now)?;
        Ok(ask(&self.0, cx, operation::PrepareRoll { to })
            .await?
            .into())
    }
}

#[async_trait]
impl UndoStep<TpmInput> for PrepareRoll {
    /// What is prepared lies beside the TPM and is not used; a newer change makes the debt void.
    fn undo_absence(&self, cx: &StepContext<TpmInput>) -> Absence {
        of_the_vms_own_host(cx)
    }

    async fn undo(&self, cx: &StepContext<TpmInput>) -> Result<(), StepError> {
        ask(&self.0, cx, operation::AbandonTpm {}).await.map(drop)
    }
}

struct PrepareRestore(Arc<World>);

#[async_trait]
impl Step<TpmInput> for PrepareRestore {
    const NAME: &'static str = "prepare-restore";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = Prepared;

    async fn run(&self, cx: &StepContext<TpmInput>) -> Result<Prepared, StepError> {
        let (world, input) = (&self.0, cx.input());
        let version = input.version.unwrap_or_default();
        let bundle = Box::new(world.escrow.bundle(input.vm, version).await?);
        // What is there now is kept too, as the host last said it is.
        let enabled = world
            .inventory
            .vm(input.vm)
            .is_some_and(|vm| vm.tpm.enabled);
        let mut warning = None;
        if enabled {
            let why = VersionReason::Stopped;
            warning = keep_before(world, cx, &input.name, why).await?;
        }
        let answer = ask(world, cx, operation::PrepareRestore { bundle }).await?;
        Ok(Prepared {
            warning,
            ..answer.into()
        })
    }
}

#[async_trait]
impl UndoStep<TpmInput> for PrepareRestore {
    /// As for `prepare-roll`.
    fn undo_absence(&self, cx: &StepContext<TpmInput>) -> Absence {
        of_the_vms_own_host(cx)
    }

    async fn undo(&self, cx: &StepContext<TpmInput>) -> Result<(), StepError> {
        ask(&self.0, cx, operation::AbandonTpm {}).await.map(drop)
    }
}

struct PrepareUnlock(Arc<World>);

#[async_trait]
impl Step<TpmInput> for PrepareUnlock {
    const NAME: &'static str = "prepare-unlock";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = Prepared;

    async fn run(&self, cx: &StepContext<TpmInput>) -> Result<Prepared, StepError> {
        let (world, input) = (&self.0, cx.input());
        // What is there now is kept, so that a restore brings it back.
        let warning = keep_before(world, cx, &input.name, VersionReason::Stopped).await?;
        let answer = ask(world, cx, operation::PrepareUnlock {}).await?;
        Ok(Prepared {
            warning,
            ..answer.into()
        })
    }
}

#[async_trait]
impl UndoStep<TpmInput> for PrepareUnlock {
    /// As for `prepare-roll`.
    fn undo_absence(&self, cx: &StepContext<TpmInput>) -> Absence {
        of_the_vms_own_host(cx)
    }

    async fn undo(&self, cx: &StepContext<TpmInput>) -> Result<(), StepError> {
        ask(&self.0, cx, operation::AbandonTpm {}).await.map(drop)
    }
}

/// Puts in place what step `S` prepared.
struct CommitTpm<S> {
    world: Arc<World>,
    prepared: std::marker::PhantomData<fn() -> S>,
}

impl<S> CommitTpm<S> {
    fn new(world: &Arc<World>) -> Self {
        Self {
            world: world.clone(),
            prepared: std::marker::PhantomData,
        }
    }
}

#[async_trait]
impl<S: Step<TpmInput, Output = Prepared>> Step<TpmInput> for CommitTpm<S> {
    const NAME: &'static str = "commit-tpm";
    type Output = ();

    /// What was prepared waits on the host and is put in place when that is back, before the VM can be started there. The job
    /// was for this: it ends as failed.
    fn absence(&self, cx: &StepContext<TpmInput>) -> Absence {
        Absence::Owe(about(&cx.input().host, cx.input().vm).half_way())
    }

    async fn run(&self, cx: &StepContext<TpmInput>) -> Result<(), StepError> {
        let (world, input) = (&self.world, cx.input());
        let Prepared { protector, .. } = cx.output::<S>()?;
        let committed = commit_tpm(world, cx, &input.host, input.vm, &protector).await;
        world.refresh(&input.host, input.vm).await;
        committed
    }
}
