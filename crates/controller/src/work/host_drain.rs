//! `host-drain`: moves every VM of a host to other hosts of its group, with child jobs. From before this job begins
//! until `host resume`, the host accepts no new VMs, whether or not the moves succeed.

use super::{About, FleetJob, MigrateInput, Reservation, VmMigrate, VmMigrateStopped};
use crate::admission::Disputes;
use crate::holders::Holder;
use crate::world::World;
use fleetward_api::reports::{DrainReport, DrainedVm};
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{Job, JobKind, JobState, Step, StepContext, StepError, Steps, async_trait};
use fleetward_model::error::Finding;
use fleetward_model::fit::Needs;
use fleetward_model::placement::Choice;
use fleetward_model::{ErrorCode, Failure, HostName, Names, VmId, VmName};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// More at once would only share the same wire.
const MOVES_AT_ONCE: usize = 2;

/// Which host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DrainInput {
    pub(crate) host: HostName,
}

/// The kind.
pub(crate) struct HostDrain(pub(crate) Arc<World>);

impl JobKind for HostDrain {
    const NAME: &'static str = "host-drain";
    type Input = DrainInput;

    fn locks(input: &DrainInput) -> Vec<String> {
        vec![format!("host/{}", input.host)]
    }

    fn steps(&self) -> Steps<DrainInput> {
        Steps::new()
            .check(Plan(self.0.clone()))
            .check(MoveVms(self.0.clone()))
    }
}

impl FleetJob for HostDrain {
    type Report = DrainReport;
    const ACCESS: Access = <verbs::HostDrain as Verb>::ACCESS;

    fn target(input: &DrainInput) -> String {
        input.host.to_string()
    }

    fn host(input: &DrainInput) -> &HostName {
        &input.host
    }

    fn report(input: &DrainInput, job: &Job) -> Option<DrainReport> {
        Some(DrainReport {
            host: input.host.clone(),
            moved: job.output(MoveVms::NAME)?,
        })
    }
}

/// Where each VM goes, decided once: a resumed job must find its own children again.
struct Plan(Arc<World>);

/// Where one VM goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Planned {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) live: bool,
    pub(crate) to: Result<HostName, Failure>,
    /// What the VM will take of that host. Recorded too: a child job that is submitted again has the same input.
    #[serde(default)]
    reservation: Option<Reservation>,
}

#[async_trait]
impl Step<DrainInput> for Plan {
    const NAME: &'static str = "plan";
    type Output = Vec<Planned>;

    async fn run(&self, cx: &StepContext<DrainInput>) -> Result<Vec<Planned>, StepError> {
        Ok(plan(&self.0, &cx.input().host))
    }
}

/// Where each VM of the host would go now.
pub(crate) fn plan(world: &World, host: &HostName) -> Vec<Planned> {
    let disputes = Disputes::now(world);
    let mut arrivals = Vec::new();
    let mut plan = Vec::new();
    let here = world.inventory.seen(host).facts;
    let elsewhere = Choice {
        except: Some(host.clone()),
        ..Choice::default()
    };
    for vm in world.inventory.vms_on(host) {
        if vm.metadata.is_none() {
            continue;
        }
        let needs = Needs {
            tpm_written: world.tpm_writer(&vm),
            ..Needs::as_it_is(&vm, here.as_deref())
        };
        let to = match disputes.refusal(&vm) {
            Some(failure) => Err(failure),
            None => world.place(&needs, &elsewhere, &arrivals),
        };
        let reservation = to.as_ref().ok().map(|host| {
            let arrival = Reservation::of(world, &needs, host);
            arrivals.push(arrival.clone());
            arrival
        });
        plan.push(Planned {
            vm: vm.id,
            name: vm.name.clone(),
            live: !vm.state.stands_still(),
            to,
            reservation,
        });
    }
    plan
}

struct MoveVms(Arc<World>);

#[async_trait]
impl Step<DrainInput> for MoveVms {
    const NAME: &'static str = "move-vms";
    type Output = Vec<DrainedVm>;

    async fn run(&self, cx: &StepContext<DrainInput>) -> Result<Vec<DrainedVm>, StepError> {
        let plan = cx.output::<Plan>()?;
        let (total, mut moved) = (plan.len(), Vec::new());
        let mut moves = stream::iter(plan)
            .map(|planned| self.run_one(cx, planned))
            .buffer_unordered(MOVES_AT_ONCE);
        while let Some(one) = moves.next().await {
            moved.push(one?);
            cx.progress()
                .text(format!("{} of {total} VMs moved", moved.len()));
        }
        drop(moves);
        let findings: Vec<_> = moved
            .iter()
            .filter_map(|one| {
                let failure = one.failure.as_ref()?;
                let what = format!("VM {}: {}", one.vm, one_line(failure));
                Some(Finding::blocking(failure.code, what, failure.fix.clone()))
            })
            .collect();
        if findings.is_empty() {
            return Ok(moved);
        }
        let what = format!(
            "{} of {total} VMs of host {} did not move",
            findings.len(),
            cx.input().host
        );
        let mut failure = Failure::new(ErrorCode::HostNotEmpty, what)
            .because(findings[0].what.clone())
            .about(&Names::default().host(&cx.input().host));
        failure.findings = findings;
        Err(StepError::fatal(failure))
    }
}

impl MoveVms {
    /// Fails only where the engine does; a VM that does not move is an outcome.
    async fn run_one(
        &self,
        cx: &StepContext<DrainInput>,
        planned: Planned,
    ) -> Result<DrainedVm, StepError> {
        let Planned {
            vm,
            name,
            live,
            to,
            reservation,
        } = planned;
        let to = match to {
            Ok(to) => to,
            Err(failure) => {
                return Ok(DrainedVm {
                    vm: name,
                    to: None,
                    failure: Some(failure),
                });
            }
        };
        let input = MigrateInput {
            vm,
            name: name.clone(),
            from: cx.input().host.clone(),
            to: to.clone(),
            live,
            reservation,
        };
        let child = format!("vm-{vm}");
        let started = if live {
            cx.start_child::<VmMigrate>(&child, &input).await
        } else {
            cx.start_child::<VmMigrateStopped>(&child, &input).await
        };
        let job = match started {
            Ok(job) => job,
            Err(error) if error.failure.code == ErrorCode::VmBusy => {
                return Ok(DrainedVm {
                    vm: name,
                    to: None,
                    failure: Some(error.failure),
                });
            }
            Err(error) => return Err(error),
        };
        let (kind, about) = if live {
            (VmMigrate::NAME, About::of::<VmMigrate>(&input))
        } else {
            (
                VmMigrateStopped::NAME,
                About::of::<VmMigrateStopped>(&input),
            )
        };
        let kind = kind.to_owned();
        self.0.holders.add(job, Holder { kind, about });
        let ended = cx.wait_for_child(job).await;
        self.0.release(job);
        let ended = ended?;
        let unexplained =
            || Failure::new(ErrorCode::Internal, format!("job {job} did not end well"));
        let failure =
            (ended.state != JobState::Done).then(|| ended.failure.unwrap_or_else(unexplained));
        Ok(DrainedVm {
            vm: name,
            to: Some(to),
            failure,
        })
    }
}

fn one_line(failure: &Failure) -> String {
    if failure.because.is_empty() {
        failure.what.clone()
    } else {
        format!("{} ({})", failure.what, failure.because)
    }
}
