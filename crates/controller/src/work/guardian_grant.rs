//! `guardian-grant` wraps the keys of many VMs for one more guardian; `guardian-rewrap` does that for a few VMs at a
//! time.
//!
//! ```text
//!   guardian-grant:  plan ─ grant            one job a host, in the list of jobs
//!                             └─ guardian-rewrap × n: each holds its VMs for as long as they take, a fraction of a second
//! ```
//! A job for very many VMs runs child jobs of kind guardian-grant one after the other, each for a part of the VMs.
//!
//! If a VM cannot be granted, because its host does not answer or another job works on it, that is an outcome and no
//! failure of the job. With automatic trust the keeper tries again later. Grants stay when a job is cancelled, because
//! each is allowed on its own.

use super::{FleetJob, NoReport, Outcomes};
use crate::admission::Disputes;
use crate::world::World;
use fleetward_api::agent::{KeyRewrap, RewrapReason, operation};
use fleetward_api::controller::{Outcome, VmOutcome};
use fleetward_api::reports::GrantReport;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Data, Job, JobKind, JobState, Recourse, Step, StepContext, StepError, Steps, async_trait,
};
use fleetward_model::admission::{Answer, Request, answer};
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, GuardianId, HostName, VmId, VmName};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

/// VMs that one `guardian-rewrap` holds: few, so that nobody waits long for one of them.
const VMS_AT_ONCE: usize = 24;
/// Of these, how many are asked for side by side.
const ASKED_AT_ONCE: usize = 4;
/// Batches under way at once, on different hosts where possible.
const BATCHES_AT_ONCE: usize = 3;
/// VMs whose plan one job's record has room for; a job on more of them has others do them, that many at a time.
const PIECE: usize = 120;
/// Of a failure's text, for the same reason.
const LONGEST_MESSAGE: usize = 300;
/// How long a VM that another job holds is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a host that went away in the middle is waited for.
const PATIENCE_WITH_HOSTS: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(500);

/// Who gets which keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct GrantInput {
    /// Whose guardian.
    pub(crate) host: HostName,
    /// By name; none: every VM of the host's group.
    pub(crate) vms: Option<Vec<VmId>>,
    /// The fleet does it by itself: no VM gets it that was taken away from this host by name.
    pub(crate) automatic: bool,
    /// Guardians that are used although they have expired.
    pub(crate) expired: Vec<GuardianId>,
    /// VMs that were named and refused at once. Only told, in the report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) refused: Vec<VmOutcome>,
}

/// One VM of a plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Planned {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    /// Where it is.
    pub(crate) host: HostName,
    /// Decided already: nothing is to be done, or it cannot be.
    pub(crate) decided: Option<VmOutcome>,
}

fn outcome(
    vm: &VmName,
    outcome: Outcome,
    code: Option<ErrorCode>,
    message: impl Into<String>,
) -> VmOutcome {
    VmOutcome {
        vm: vm.clone(),
        outcome,
        code,
        message: Some(message.into()),
    }
}

/// What a grant means for each VM, as far as is known now. VMs that it does not concern are left out unless they were named.
pub(crate) fn plan(world: &World, input: &GrantInput) -> Result<Vec<Planned>, Failure> {
    let target = world.hosts.of(&input.host)?;
    let named = input.vms.is_some();
    let mut vms = match &input.vms {
        Some(named) => {
            let named: BTreeSet<_> = named.iter().collect();
            let found = named.into_iter().filter_map(|vm| world.inventory.vm(*vm));
            found.collect()
        }
        None => world.inventory.vms_of(&target.group),
    };
    vms.sort_by(|a, b| (&a.name, &a.host).cmp(&(&b.name, &b.host)));
    let disputes = Disputes::now(world);
    let mut plan = Vec::new();
    for vm in vms {
        let Some(metadata) = &vm.metadata else {
            continue;
        };
        let skip = |why: &str| Some(outcome(&vm.name, Outcome::Skipped, None, why));
        let fail = |code, why: String| Some(outcome(&vm.name, Outcome::Failed, Some(code), why));
        let decided = if let Some(failure) = disputes.refusal(&vm) {
            fail(failure.code, failure.what)
        } else if !metadata.spec.tpm {
            skip("it has no TPM")
        } else if metadata.spec.group != target.group {
            fail(
                ErrorCode::GuardianNotEndorsed,
                format!(
                    "it belongs to group {}, host {} to group {}",
                    metadata.spec.group, target.name, target.group
                ),
            )
        } else if vm.tpm.guardians.contains(&target.guardian.id) && !target.is_revoked_for(metadata)
        {
            skip("granted already")
        } else if input.automatic && target.is_revoked_for(metadata) {
            skip("the key was revoked from that host by name")
        } else {
            let online = world.inventory.seen(&vm.host).online;
            match answer(vm.state.shown(online, false), Request::Grant) {
                Answer::Accept | Answer::Done => None,
                Answer::Refuse(reason) => fail(reason.code, reason.because(&vm.name, &vm.host)),
            }
        };
        let concerns = decided
            .as_ref()
            .is_none_or(|d| d.code == Some(ErrorCode::HostUnreachable));
        if named || concerns {
            plan.push(Planned {
                vm: vm.id,
                name: vm.name.clone(),
                host: vm.host.clone(),
                decided,
            });
        }
    }
    Ok(plan)
}

/// The kind.
pub(crate) struct GuardianGrant(pub(crate) Arc<World>);

impl JobKind for GuardianGrant {
    const NAME: &'static str = "guardian-grant";
    type Input = GrantInput;

    fn locks(input: &GrantInput) -> Vec<String> {
        // what the fleet does by itself it does once at a time
        let automatic = input
            .automatic
            .then(|| format!("guardian-grant/{}", input.host));
        automatic.into_iter().collect()
    }

    fn steps(&self) -> Steps<GrantInput> {
        Steps::new()
            .check(Plan(self.0.clone()))
            .check(Grant(self.0.clone()))
    }
}

impl FleetJob for GuardianGrant {
    type Report = GrantReport;
    const ACCESS: Access = <verbs::GuardianGrant as Verb>::ACCESS;

    fn target(input: &GrantInput) -> String {
        input.host.to_string()
    }

    fn host(input: &GrantInput) -> &HostName {
        &input.host
    }

    fn report(input: &GrantInput, job: &Job) -> Option<GrantReport> {
        let outcomes = Outcomes::recorded(job, Grant::NAME)?;
        Some(outcomes.and(&input.refused).of_host(&input.host))
    }
}

/// Which VMs, decided once: a resumed job must find its own children again.
struct Plan(Arc<World>);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Planning {
    Whole(Vec<Planned>),
    /// Too many to be written down here: how many, and how many jobs at least do them.
    InPieces {
        vms: usize,
        pieces: usize,
    },
}

#[async_trait]
impl Step<GrantInput> for Plan {
    const NAME: &'static str = "plan";
    type Output = Planning;

    async fn run(&self, cx: &StepContext<GrantInput>) -> Result<Planning, StepError> {
        // Who was asked for by name is waited for; what the fleet does by itself comes round again.
        let deadline = Instant::now() + PATIENCE_WITH_HOSTS;
        loop {
            let planned = plan(&self.0, cx.input())?;
            let away = planned.iter().filter_map(|p| p.decided.as_ref()?.code);
            let waits = away.into_iter().any(|c| c == ErrorCode::HostUnreachable);
            if !waits
                || cx.input().automatic
                || cx.cancelled().is_cancelled()
                || Instant::now() >= deadline
            {
                let vms = planned.len();
                return Ok(match vms <= PIECE {
                    true => Planning::Whole(planned),
                    false => Planning::InPieces {
                        vms,
                        pieces: vms.div_ceil(PIECE),
                    },
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

struct Grant(Arc<World>);

#[async_trait]
impl Step<GrantInput> for Grant {
    const NAME: &'static str = "grant";
    type Output = Outcomes;

    async fn run(&self, cx: &StepContext<GrantInput>) -> Result<Outcomes, StepError> {
        let input = cx.input();
        let plan = match cx.output::<Plan>()? {
            Planning::Whole(plan) => plan,
            Planning::InPieces { vms, pieces } => return self.in_pieces(cx, vms, pieces).await,
        };
        let change = Change {
            to: Some(input.host.clone()),
            drop: Vec::new(),
            expired: input.expired.clone(),
            why: if input.automatic {
                RewrapReason::Automatic
            } else {
                RewrapReason::Granted
            },
        };
        let outcomes = rewrap_all(&self.0, cx, plan, &change).await?;
        Ok(Outcomes::of(outcomes))
    }
}

impl Grant {
    /// One job after the other. Which VMs each has is in its own record, so that a resumed job goes on where it was: the
    /// same name is the same job.
    async fn in_pieces(
        &self,
        cx: &StepContext<GrantInput>,
        vms: usize,
        pieces: usize,
    ) -> Result<Outcomes, StepError> {
        let (world, input) = (&self.0, cx.input());
        let mut tried: BTreeSet<VmId> = BTreeSet::new();
        let mut outcomes = Vec::new();
        for piece in 0.. {
            let (few, rest): (Vec<_>, Vec<_>) = plan(world, input)?
                .into_iter()
                .filter(|planned| !tried.contains(&planned.vm))
                .partition(|planned| planned.decided.is_none());
            if few.is_empty() && piece >= pieces {
                outcomes.extend(rest.into_iter().filter_map(|planned| planned.decided));
                break;
            }
            let few = few.iter().take(PIECE).map(|planned| planned.vm).collect();
            let part = GrantInput {
                vms: Some(few),
                refused: Vec::new(),
                ..input.clone()
            };
            let child = cx
                .start_child::<GuardianGrant>(&format!("piece-{piece}"), &part)
                .await?;
            let job = cx.wait_for_child(child).await?;
            if cx.cancelled().is_cancelled() {
                return Err(StepError::cancelled());
            }
            let its: GrantInput = serde_json::from_value(job.input.clone()).unwrap_or(part);
            let its = its.vms.unwrap_or_default();
            match Outcomes::recorded(&job, Self::NAME) {
                Some(done) => outcomes.extend(done.results),
                None => {
                    let failure = ended_badly(&job);
                    let names = its.iter().filter_map(|vm| world.inventory.vm(*vm));
                    outcomes.extend(names.map(|vm| failed(&vm.name, &failure)));
                }
            }
            tried.extend(its);
            cx.progress()
                .text(format!("{} of {vms} VMs", outcomes.len()));
        }
        Ok(Outcomes::of(outcomes))
    }
}

fn ended_badly(job: &Job) -> Failure {
    job.failure.clone().unwrap_or_else(|| {
        Failure::new(
            ErrorCode::Internal,
            format!("job {} did not end well", job.id),
        )
    })
}

/// What is to change about the keys of many VMs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Change {
    /// The host whose guardian is added.
    pub(crate) to: Option<HostName>,
    pub(crate) drop: Vec<GuardianId>,
    pub(crate) expired: Vec<GuardianId>,
    pub(crate) why: RewrapReason,
}

/// Carries out a change for every undecided VM of a plan; returns the outcomes in the plan's order.
pub(super) async fn rewrap_all<I: Data>(
    world: &Arc<World>,
    cx: &StepContext<I>,
    plan: Vec<Planned>,
    change: &Change,
) -> Result<Vec<VmOutcome>, StepError> {
    let total = plan.len();
    let mut by_host: BTreeMap<HostName, Vec<&Planned>> = BTreeMap::new();
    for planned in plan.iter().filter(|planned| planned.decided.is_none()) {
        by_host
            .entry(planned.host.clone())
            .or_default()
            .push(planned);
    }
    // One batch of each host in turn, so that no host waits for another.
    let mut batches = Vec::new();
    for (host, vms) in by_host {
        for (turn, few) in vms.chunks(VMS_AT_ONCE).enumerate() {
            let vms = few.iter().map(|p| (p.vm, p.name.clone())).collect();
            let batch = BatchInput {
                host: host.clone(),
                vms,
                change: change.clone(),
            };
            batches.push((turn, batch));
        }
    }
    batches.sort_by_key(|(turn, _)| *turn);
    let mut done: BTreeMap<VmName, VmOutcome> = plan
        .iter()
        .filter_map(|p| Some((p.name.clone(), p.decided.clone()?)))
        .collect();
    let mut running = stream::iter(batches)
        .map(|(_, batch)| run_batch(world, cx, batch))
        .buffer_unordered(BATCHES_AT_ONCE);
    while let Some(ended) = running.next().await {
        for one in ended? {
            done.insert(one.vm.clone(), one);
        }
        cx.progress().text(format!("{} of {total} VMs", done.len()));
    }
    Ok(plan
        .into_iter()
        .filter_map(|planned| done.remove(&planned.name))
        .collect())
}

/// Says which VMs are in it: a plan that is made anew after a crash may cut other batches, and one of those must not be taken
/// for a job that was about other VMs.
fn batch_name(batch: &BatchInput) -> String {
    let vms: Vec<u8> = batch
        .vms
        .iter()
        .flat_map(|(vm, _)| *vm.0.as_bytes())
        .collect();
    format!(
        "{}-{}",
        batch.host,
        Uuid::new_v5(&Uuid::NAMESPACE_OID, &vms)
    )
}

async fn run_batch<I: Data>(
    world: &Arc<World>,
    cx: &StepContext<I>,
    batch: BatchInput,
) -> Result<Vec<VmOutcome>, StepError> {
    let name = batch_name(&batch);
    match cx.start_child::<GuardianRewrap>(&name, &batch).await {
        Ok(child) => return ended(cx, child, &batch).await,
        Err(error) if error.failure.code == ErrorCode::VmBusy => {}
        Err(error) => return Err(error),
    }
    // Somebody works on one of them: one by one, so that only that one waits.
    let mut outcomes = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    for (vm, vm_name) in &batch.vms {
        let alone = BatchInput {
            vms: vec![(*vm, vm_name.clone())],
            ..batch.clone()
        };
        let name = format!("vm-{vm}");
        loop {
            match cx.start_child::<GuardianRewrap>(&name, &alone).await {
                Ok(child) => outcomes.extend(ended(cx, child, &alone).await?),
                Err(error) if error.failure.code == ErrorCode::VmBusy => {
                    if Instant::now() < deadline {
                        cx.unless_cancelled(async {
                            tokio::time::sleep(PAUSE).await;
                            Ok::<(), StepError>(())
                        })
                        .await?;
                        continue;
                    }
                    let holder = world.holders.of(*vm);
                    let why = holder.map_or(error.failure.what, |(holder, kind)| {
                        format!("job {} ({kind}) works on it", holder.job)
                    });
                    outcomes.push(outcome(
                        vm_name,
                        Outcome::Failed,
                        Some(ErrorCode::VmBusy),
                        why,
                    ));
                }
                Err(error) => return Err(error),
            }
            break;
        }
    }
    Ok(outcomes)
}

async fn ended<I: Data>(
    cx: &StepContext<I>,
    child: fleetward_model::JobId,
    batch: &BatchInput,
) -> Result<Vec<VmOutcome>, StepError> {
    let job = cx.wait_for_child(child).await?;
    if job.state == JobState::Done
        && let Some(outcomes) = job.output::<Vec<VmOutcome>>(Rewrap::NAME)
    {
        return Ok(outcomes);
    }
    if cx.cancelled().is_cancelled() {
        return Err(StepError::cancelled());
    }
    let failure = ended_badly(&job);
    Ok(batch
        .vms
        .iter()
        .map(|(_, name)| failed(name, &failure))
        .collect())
}

fn failed(vm: &VmName, failure: &Failure) -> VmOutcome {
    let why = if failure.because.is_empty() {
        failure.what.clone()
    } else {
        format!("{}: {}", failure.what, failure.because)
    };
    let why: String = why.chars().take(LONGEST_MESSAGE).collect();
    outcome(vm, Outcome::Failed, Some(failure.code), why)
}

/// A few VMs of one host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BatchInput {
    pub(crate) host: HostName,
    pub(crate) vms: Vec<(VmId, VmName)>,
    pub(crate) change: Change,
}

/// The kind for a few VMs.
pub(crate) struct GuardianRewrap(pub(crate) Arc<World>);

impl JobKind for GuardianRewrap {
    const NAME: &'static str = "guardian-rewrap";
    type Input = BatchInput;

    fn locks(input: &BatchInput) -> Vec<String> {
        input.vms.iter().map(|(vm, _)| format!("vm/{vm}")).collect()
    }

    fn steps(&self) -> Steps<BatchInput> {
        Steps::new().check(Rewrap(self.0.clone()))
    }
}

impl FleetJob for GuardianRewrap {
    type Report = NoReport;
    const ACCESS: Access = <verbs::GuardianGrant as Verb>::ACCESS;

    fn target(input: &BatchInput) -> String {
        input.host.to_string()
    }

    fn host(input: &BatchInput) -> &HostName {
        &input.host
    }

    fn vm(input: &BatchInput) -> Option<VmId> {
        input.vms.first().map(|(vm, _)| *vm)
    }
}

struct Rewrap(Arc<World>);

#[async_trait]
impl Step<BatchInput> for Rewrap {
    const NAME: &'static str = "rewrap";
    type Output = Vec<VmOutcome>;

    async fn run(&self, cx: &StepContext<BatchInput>) -> Result<Vec<VmOutcome>, StepError> {
        let input = cx.input();
        let add = endorsed(&self.0, input.change.to.as_ref())?;
        let deadline = Instant::now() + PATIENCE_WITH_HOSTS;
        let outcomes = stream::iter(input.vms.clone())
            .map(|(vm, name)| {
                let add = add.clone();
                async move {
                    loop {
                        match rewrap_one(&self.0, cx, vm, add.clone()).await {
                            Ok(()) => return outcome(&name, Outcome::Succeeded, None, "done"),
                            Err(error)
                                if error.recourse == Recourse::Retry
                                    && Instant::now() < deadline
                                    && !cx.cancelled().is_cancelled() =>
                            {
                                tokio::time::sleep(PAUSE).await;
                            }
                            Err(error) => return failed(&name, &error.failure),
                        }
                    }
                }
            })
            .buffered(ASKED_AT_ONCE)
            .collect()
            .await;
        Ok(outcomes)
    }
}

fn endorsed(world: &World, to: Option<&HostName>) -> Result<Vec<EndorsedGuardian>, Failure> {
    let Some(to) = to else {
        return Ok(Vec::new());
    };
    let host = world.hosts.of(to)?;
    let now = OffsetDateTime::now_utc();
    let endorsed = world
        .fleet
        .endorse(&host.guardian, &host.name, &host.group, now)?;
    Ok(vec![endorsed])
}

async fn rewrap_one(
    world: &Arc<World>,
    cx: &StepContext<BatchInput>,
    vm: VmId,
    add: Vec<EndorsedGuardian>,
) -> Result<(), StepError> {
    let input = cx.input();
    // A VM that moved since the plan was made is done where it is now.
    let host = world
        .inventory
        .vm(vm)
        .map_or(input.host.clone(), |vm| vm.host.clone());
    let why = input.change.why;
    let to = input.change.to.as_ref();
    let former = match (why, to.and_then(|host| world.hosts.find(host))) {
        (RewrapReason::Granted, Some(host)) => host.former.clone(),
        _ => Vec::new(),
    };
    let change = KeyRewrap {
        add,
        drop: input.change.drop.clone(),
        expired: input.change.expired.clone(),
        former: former.clone(),
        why,
    };
    let granted: Vec<GuardianId> = change.add.iter().map(|g| g.guardian.id.clone()).collect();
    let agent = world.agents.of(&host)?;
    let rewrapped = agent.run(cx, vm, operation::Rewrap { change }).await?;
    world.note_protector(&host, vm, &rewrapped.key_protector);
    if why == RewrapReason::Granted {
        let forget = |vm: &mut VmObserved| forget(vm, &granted, &former);
        world.inventory.amend(&host, vm, forget);
    }
    Ok(())
}

/// What the host has just done with its record of revocations.
fn forget(vm: &mut VmObserved, granted: &[GuardianId], former: &[GuardianId]) {
    let present = vm.tpm.key_id;
    if let Some(metadata) = &mut vm.metadata {
        metadata.revoked.retain(|r| {
            let of_the_past = former.contains(&r.guardian) && Some(r.key_id) != present;
            !granted.contains(&r.guardian) && !of_the_past
        });
    }
}
