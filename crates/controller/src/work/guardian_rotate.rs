//! `guardian-rotate` replaces a host's own guardian with a new pair while its VMs run; `guardian-settle` completes
//! that for VMs whose hosts did not answer.
//!
//! ```text
//!   guardian-rotate:  make-successor │ adopt ─ settle ─ retire
//!                                    └ point of no return: the authority vouches for the successor
//!   guardian-settle:                           settle ─ retire
//! ```
//! *settle* replaces the former guardian's wrapping with the successor's on every VM that has it, on every host. The
//! former pair opens these VMs until that is done, and continues to open on its own host; it is just no longer needed.

use super::guardian_grant::{Change, Planned, rewrap_all};
use super::{FleetJob, Outcomes};
use crate::admission::Disputes;
use crate::audit::{Act, CONTROLLER};
use crate::world::World;
use fleetward_api::agent::{GuardianChange, RewrapReason};
use fleetward_api::controller::{Outcome, VmOutcome};
use fleetward_api::reports::RotateReport;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, Debtor, Job, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::audit::AuditAction;
use fleetward_model::guardian::GuardianFacts;
use fleetward_model::{ErrorCode, Failure, GuardianId, HostName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use time::OffsetDateTime;

/// Whose guardian.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RotateInput {
    pub(crate) host: HostName,
}

fn locks(input: &RotateInput) -> Vec<String> {
    vec![format!("guardian/{}", input.host)]
}

/// The kind.
pub(crate) struct GuardianRotate(pub(crate) Arc<World>);

impl JobKind for GuardianRotate {
    const NAME: &'static str = "guardian-rotate";
    type Input = RotateInput;

    fn locks(input: &RotateInput) -> Vec<String> {
        locks(input)
    }

    fn steps(&self) -> Steps<RotateInput> {
        Steps::new()
            .step(MakeSuccessor(self.0.clone()))
            .forward(Adopt(self.0.clone()))
            .forward(Settle(self.0.clone()))
            .forward(Retire(self.0.clone()))
    }
}

impl FleetJob for GuardianRotate {
    type Report = RotateReport;
    const ACCESS: Access = <verbs::GuardianRotate as Verb>::ACCESS;

    fn target(input: &RotateInput) -> String {
        input.host.to_string()
    }

    fn host(input: &RotateInput) -> &HostName {
        &input.host
    }

    fn report(input: &RotateInput, job: &Job) -> Option<RotateReport> {
        report(input, job)
    }
}

/// The kind that finishes a rotation.
pub(crate) struct GuardianSettle(pub(crate) Arc<World>);

impl JobKind for GuardianSettle {
    const NAME: &'static str = "guardian-settle";
    type Input = RotateInput;

    fn locks(input: &RotateInput) -> Vec<String> {
        locks(input)
    }

    fn steps(&self) -> Steps<RotateInput> {
        Steps::new()
            .check(Settle(self.0.clone()))
            .check(Retire(self.0.clone()))
    }
}

impl FleetJob for GuardianSettle {
    type Report = RotateReport;
    const ACCESS: Access = <verbs::GuardianRotate as Verb>::ACCESS;

    fn target(input: &RotateInput) -> String {
        input.host.to_string()
    }

    fn host(input: &RotateInput) -> &HostName {
        &input.host
    }

    fn report(input: &RotateInput, job: &Job) -> Option<RotateReport> {
        report(input, job)
    }
}

/// The host makes a new pair, which counts for nothing yet.
struct MakeSuccessor(Arc<World>);

#[async_trait]
impl Step<RotateInput> for MakeSuccessor {
    const NAME: &'static str = "make-successor";
    const RETRY_FOR: std::time::Duration = std::time::Duration::from_secs(30);
    type Output = GuardianFacts;

    async fn run(&self, cx: &StepContext<RotateInput>) -> Result<GuardianFacts, StepError> {
        let host = &cx.input().host;
        let record = self.0.hosts.of(host)?;
        let job = cx.job();
        let agent = self.0.agents.of(host)?;
        let made = agent
            .guardian(cx, &GuardianChange::MakeSuccessor { job })
            .await?;
        // whatever is wrong with it shows while there is a way back
        let now = OffsetDateTime::now_utc();
        self.0.fleet.endorse(&made, host, &record.group, now)?;
        Ok(made)
    }
}

#[async_trait]
impl UndoStep<RotateInput> for MakeSuccessor {
    /// A successor that was not adopted opens nothing and is wrapped for by nobody.
    fn undo_absence(&self, cx: &StepContext<RotateInput>) -> Absence {
        Absence::Owe(Debtor::new(cx.input().host.as_str()))
    }

    async fn undo(&self, cx: &StepContext<RotateInput>) -> Result<(), StepError> {
        let agent = self.0.agents.of(&cx.input().host)?;
        let job = cx.job();
        agent
            .guardian(cx, &GuardianChange::DiscardSuccessor { job })
            .await?;
        Ok(())
    }
}

/// The authority vouches for it, and the host makes it its own.
struct Adopt(Arc<World>);

#[async_trait]
impl Step<RotateInput> for Adopt {
    const NAME: &'static str = "adopt";
    type Output = GuardianId;

    async fn run(&self, cx: &StepContext<RotateInput>) -> Result<GuardianId, StepError> {
        let (world, host) = (&self.0, &cx.input().host);
        let made = cx.output::<MakeSuccessor>()?;
        let id = made.id.clone();
        let made = GuardianFacts {
            host: host.clone(),
            own: true,
            ..made
        };
        let before = world.hosts.of(host)?;
        if before.guardian.id != id {
            let act = Act {
                guardian: Some(id.clone()),
                job: Some(cx.job()),
                ..Act::new(
                    CONTROLLER,
                    AuditAction::Endorse,
                    format!(
                        "successor of guardian {} of host {host}",
                        before.guardian.id.short()
                    ),
                )
            };
            world.audit.own(act).await?;
            world.hosts.set_guardian(host, made).await?;
        }
        let change = GuardianChange::Adopt {
            guardian: id.clone(),
            job: cx.job(),
        };
        let adopted = world.agents.of(host)?.guardian(cx, &change).await?;
        world.inventory.guardian_adopted(host, adopted);
        Ok(id)
    }
}

/// Every VM that depends on a former guardian gets the successor's wrapping in its place.
struct Settle(Arc<World>);

#[async_trait]
impl Step<RotateInput> for Settle {
    const NAME: &'static str = "settle";
    type Output = Outcomes;

    async fn run(&self, cx: &StepContext<RotateInput>) -> Result<Outcomes, StepError> {
        let (world, host) = (&self.0, &cx.input().host);
        let former = world.hosts.of(host)?.unsettled.clone();
        let change = Change {
            to: Some(host.clone()),
            drop: former.clone(),
            expired: Vec::new(),
            why: RewrapReason::Rotated,
        };
        let outcomes = rewrap_all(world, cx, depending(world, &former), &change).await?;
        Ok(Outcomes::of(outcomes))
    }
}

/// The VMs whose key is wrapped for one of `guardians`.
pub(crate) fn depending(world: &World, guardians: &[GuardianId]) -> Vec<Planned> {
    let vms = world.inventory.vms();
    let disputes = Disputes::now(world);
    vms.iter()
        .filter(|vm| vm.tpm.guardians.iter().any(|g| guardians.contains(g)))
        .map(|vm| {
            let away = !world.inventory.seen(&vm.host).online;
            let unreachable = || {
                let what = format!("host {} does not answer", vm.host);
                Failure::new(ErrorCode::HostUnreachable, what)
            };
            let failure = disputes.refusal(vm).or_else(|| away.then(unreachable));
            let decided = failure.map(|failure| VmOutcome {
                vm: vm.name.clone(),
                outcome: Outcome::Failed,
                code: Some(failure.code),
                message: Some(failure.what),
            });
            Planned {
                vm: vm.id,
                name: vm.name.clone(),
                host: vm.host.clone(),
                decided,
            }
        })
        .collect()
}

/// The former guardian is put on record as no longer needed, once nothing depends on it.
struct Retire(Arc<World>);

/// Which former guardians are done with, and which VMs keep others from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Retired {
    retired: Vec<GuardianId>,
    /// Still needed.
    waiting: usize,
}

#[async_trait]
impl Step<RotateInput> for Retire {
    const NAME: &'static str = "retire";
    type Output = Retired;

    async fn run(&self, cx: &StepContext<RotateInput>) -> Result<Retired, StepError> {
        let (world, host) = (&self.0, &cx.input().host);
        let mut retired = Vec::new();
        let mut waiting = 0;
        for guardian in world.hosts.of(host)?.unsettled.clone() {
            waiting += depending(world, std::slice::from_ref(&guardian)).len();
            if waiting > 0 {
                continue;
            }
            let change = GuardianChange::Retire {
                guardian: guardian.clone(),
                job: cx.job(),
            };
            match world.agents.of(host)?.guardian(cx, &change).await {
                Ok(_) => retired.push(guardian),
                Err(failure) if failure.code == ErrorCode::GuardianInUse => waiting += 1,
                Err(failure) => return Err(failure.into()),
            }
        }
        world.hosts.settle(host, &retired).await?;
        Ok(Retired { retired, waiting })
    }
}

/// What became of each VM, and of the pairs.
fn report(input: &RotateInput, job: &Job) -> Option<RotateReport> {
    let retired: Retired = job.output(Retire::NAME)?;
    Some(RotateReport {
        vms: Outcomes::recorded(job, Settle::NAME)?.of_host(&input.host),
        guardian: job.output(Adopt::NAME),
        retired: retired.retired,
        still_needed_by: retired.waiting,
    })
}

/// Whether a host's guardian can be rotated now.
pub(crate) fn may_rotate(world: &World, host: &HostName) -> Result<(), Failure> {
    world.hosts.of(host)?;
    if world.inventory.seen(host).online {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::HostUnreachable,
        format!("the guardian of host {host} cannot be rotated"),
    )
    .because("the host does not answer, and only it can make its keys"))
}
