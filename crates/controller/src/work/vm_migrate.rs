//! `vm-migrate` (running VMs) and `vm-migrate-stopped`: move a VM to another host, or leave it unchanged.
//!
//! ```text
//!   check ─ grant ─ prepare-incoming ─ migrate-live │ hand-over ─ escrow ─ clean-up
//!                                      send-stopped │
//!                                                   └ point of no return
//! ```
//! Before the point of no return the source has the VM, and undo removes what arrived at the destination. After an
//! interrupted live migration the source decides: if it runs or holds the VM, it keeps it, and the arrival is removed.
//! If it does not, and the memory has arrived, the job goes forward. The destination's copy starts to run only in
//! `hand-over`.

use super::custody::ProtectorDigest;
use super::place_images;
use super::{FleetJob, OnVm, Reservation, TakeEscrow, vm_locks};
use crate::agents::Agent;
use crate::check::{AtHome, against};
use crate::debts::{about, removal, still_apart};
use crate::world::World;
use fleetward_api::agent::operation::{self, SourceState};
use fleetward_api::agent::{IncomingDisk, KeyRewrap, Peer, RewrapReason};
use fleetward_api::reports::MigrateReport;
use fleetward_api::tpm::VersionReason;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, Job, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::Request;
use fleetward_model::error::Class;
use fleetward_model::guardian::TrustMode;
use fleetward_model::vm::{Transit, TransitSide, VmMetadata, VmState, VmSummary};
use fleetward_model::{ErrorCode, Failure, HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;

/// What moves where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MigrateInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) from: HostName,
    pub(crate) to: HostName,
    pub(crate) live: bool,
    /// What it takes of the destination; none in a record of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reservation: Option<Reservation>,
}

impl OnVm for MigrateInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.from
    }
}

/// The kind for running VMs.
pub(crate) struct VmMigrate(pub(crate) Arc<World>);

impl JobKind for VmMigrate {
    const NAME: &'static str = "vm-migrate";
    type Input = MigrateInput;

    fn locks(input: &MigrateInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<MigrateInput> {
        let world = || self.0.clone();
        Steps::new()
            .check(Check(world()))
            .step(Grant(world()))
            .step(PrepareIncoming(world()))
            .step(MigrateLive(world()))
            .forward(HandOver(world()))
            .forward(arrived(world()))
            .forward(CleanUp(world()))
    }
}

impl FleetJob for VmMigrate {
    type Report = MigrateReport;
    const ACCESS: Access = <verbs::VmMigrate as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::MigrateLive);
    const WARNING_STEPS: &'static [&'static str] = &[TakeEscrow::<MigrateInput>::NAME];

    fn target(input: &MigrateInput) -> String {
        input.name.to_string()
    }

    fn host(input: &MigrateInput) -> &HostName {
        &input.to
    }

    fn vm(input: &MigrateInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn reservation(input: &MigrateInput) -> Option<Reservation> {
        input.reservation.clone()
    }

    fn report(input: &MigrateInput, job: &Job) -> Option<MigrateReport> {
        report(input, job)
    }
}

/// The kind for stopped VMs.
pub(crate) struct VmMigrateStopped(pub(crate) Arc<World>);

impl JobKind for VmMigrateStopped {
    const NAME: &'static str = "vm-migrate-stopped";
    type Input = MigrateInput;

    fn locks(input: &MigrateInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<MigrateInput> {
        let world = || self.0.clone();
        Steps::new()
            .check(Check(world()))
            .step(Grant(world()))
            .step(PrepareIncoming(world()))
            .step(SendStopped(world()))
            .forward(HandOver(world()))
            .forward(arrived(world()))
            .forward(CleanUp(world()))
    }
}

impl FleetJob for VmMigrateStopped {
    type Report = MigrateReport;
    const ACCESS: Access = <verbs::VmMigrate as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::MigrateOffline);
    const WARNING_STEPS: &'static [&'static str] = &[TakeEscrow::<MigrateInput>::NAME];

    fn target(input: &MigrateInput) -> String {
        input.name.to_string()
    }

    fn host(input: &MigrateInput) -> &HostName {
        &input.to
    }

    fn vm(input: &MigrateInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn reservation(input: &MigrateInput) -> Option<Reservation> {
        input.reservation.clone()
    }

    fn report(input: &MigrateInput, job: &Job) -> Option<MigrateReport> {
        report(input, job)
    }
}

/// Before the source's state is removed.
fn arrived(world: Arc<World>) -> TakeEscrow<MigrateInput> {
    TakeEscrow::on(world, VersionReason::Migrated, |input| &input.to)
}

/// Checks once more, now that nobody else can change the VM, and records what it is before anything is done to it.
struct Check(Arc<World>);

/// The VM before the move.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Before {
    metadata: VmSummary,
    /// None without a TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protector: Option<ProtectorDigest>,
    disks: Vec<IncomingDisk>,
    source: Peer,
    destination: Peer,
    /// Whether the key is yet to be wrapped for the destination.
    grant: bool,
}

#[async_trait]
impl Step<MigrateInput> for Check {
    const NAME: &'static str = "check";
    const RETRY_FOR: Duration = Duration::from_secs(30);
    type Output = Before;

    async fn run(&self, cx: &StepContext<MigrateInput>) -> Result<Before, StepError> {
        let (world, input) = (&self.0, cx.input());
        let missing = || Failure::new(ErrorCode::VmNotFound, format!("no VM {}", input.name));
        let vm = world.inventory.vm(input.vm).ok_or_else(missing)?;
        let home = AtHome::ask(world, &vm).await;
        let checked = against(world, &home, &input.to, !input.live).await?;
        let passing = |code| {
            matches!(
                code,
                ErrorCode::HostUnreachable | ErrorCode::CheckUnavailable
            )
        };
        let may_pass = checked
            .findings
            .iter()
            .filter(|f| f.blocking)
            .all(|f| passing(f.code));
        let what = format!("VM {} cannot move to host {}", input.name, input.to);
        if let Some(failure) = Failure::from_findings(what, checked.findings) {
            return Err(if may_pass {
                StepError::retryable(failure)
            } else {
                StepError::fatal(failure)
            });
        }
        let vm = home.vm;
        let metadata = vm.require_metadata()?.clone();
        let protector = ProtectorDigest::reported(&vm.tpm);
        let destination = world.hosts.of(&input.to)?;
        let there = world.inventory.seen(&input.to).facts;
        let pool_there = |disk: &fleetward_model::vm::DiskObserved| {
            let facts = there.as_ref();
            facts.and_then(|facts| facts.pool(&disk.pool))
        };
        let disks = vm
            .disks
            .iter()
            .map(|disk| {
                let pool = pool_there(disk);
                IncomingDisk {
                    target: disk.target.clone(),
                    copy: pool.is_none_or(|pool| pool.id != disk.pool_id),
                    io: pool.map(|pool| pool.io).unwrap_or_default(),
                }
            })
            .collect();
        Ok(Before {
            disks,
            source: Peer {
                host: input.from.clone(),
                address: world.hosts.of(&input.from)?.address.clone(),
            },
            // By hand, the check has found that the destination opens the key with a guardian it holds already.
            grant: world.trust == TrustMode::Auto
                && vm.tpm.enabled
                && !vm.tpm.guardians.contains(&destination.guardian.id),
            destination: Peer {
                host: input.to.clone(),
                address: destination.address.clone(),
            },
            metadata,
            protector,
        })
    }
}

/// Wraps the key for the destination where it is not yet.
struct Grant(Arc<World>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Granted {
    /// The key protector that travels; none without a TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protector: Option<ProtectorDigest>,
}

#[async_trait]
impl Step<MigrateInput> for Grant {
    const NAME: &'static str = "grant";
    type Output = Granted;

    async fn run(&self, cx: &StepContext<MigrateInput>) -> Result<Granted, StepError> {
        let (world, input, before) = (&self.0, cx.input(), cx.output::<Check>()?);
        if !before.grant {
            let protector = before.protector;
            return Ok(Granted { protector });
        }
        let to = world.recipients_of(&before.metadata, &input.to, OffsetDateTime::now_utc())?;
        let agent = world.agents.of(&input.from)?;
        let granted = agent.run(cx, input.vm, operation::Grant { to }).await?;
        Ok(Granted {
            protector: Some(ProtectorDigest::of(&granted.key_protector)),
        })
    }
}

#[async_trait]
impl UndoStep<MigrateInput> for Grant {
    fn undo_absence(&self, cx: &StepContext<MigrateInput>) -> Absence {
        let MigrateInput { name, from, to, .. } = cx.input();
        Absence::Forgo(format!(
            "host {from} does not answer: the key of VM {name} may stay wrapped for host {to}"
        ))
    }

    /// A wrapping for a host of the VM's own group that cannot be taken back does no harm: the next move would make it again.
    async fn undo(&self, cx: &StepContext<MigrateInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        let Some(before) = cx.output_if_done::<Check>()? else {
            return Ok(());
        };
        if !before.grant || before.protector.is_none() {
            return Ok(());
        }
        let source = world.agents.of(&input.from)?;
        let change = KeyRewrap {
            add: Vec::new(),
            drop: vec![world.hosts.of(&input.to)?.guardian.id.clone()],
            expired: Vec::new(),
            former: Vec::new(),
            why: RewrapReason::Automatic,
        };
        let operation = operation::Rewrap { change };
        match source.run(cx, input.vm, operation).await.map(drop) {
            Err(error) if error.failure.code.class() != Class::Unreachable => {
                tracing::warn!(vm = %input.name, %error, "the grant stays");
                Ok(())
            }
            done => done,
        }
    }
}

struct PrepareIncoming(Arc<World>);

#[async_trait]
impl Step<MigrateInput> for PrepareIncoming {
    const NAME: &'static str = "prepare-incoming";
    type Output = ();

    async fn run(&self, cx: &StepContext<MigrateInput>) -> Result<(), StepError> {
        let (input, before) = (cx.input(), cx.output::<Check>()?);
        // Its drives hold what they hold here.
        let images = place_images::of_media(before.metadata.spec.media());
        place_images::place(&self.0, cx, &input.to, &images).await?;
        let granted = cx.output::<Grant>()?;
        let metadata = match granted.protector {
            Some(digest) => digest.ask(&self.0, &input.from, before.metadata).await?,
            // Without a TPM there may still be certificates from before an enrolment.
            None => {
                let asked = self.0.agents.of(&input.from)?.custody(input.vm).await?;
                let custody = asked.and_then(|(_, custody)| custody).unwrap_or_default();
                before.metadata.with_custody(custody)
            }
        };
        let metadata = VmMetadata {
            generation: cx.generation(),
            transit: Some(Transit {
                job: cx.job(),
                side: TransitSide::Incoming,
            }),
            ..metadata
        };
        let has_seed = metadata.spec.drives.iter().any(|drive| drive.seed);
        let former_states = match metadata.spec.tpm {
            true => {
                let asked = self.0.agents.of(&input.from)?.custody(input.vm).await?;
                let seen = asked.map(|(detail, _)| detail.tpm_states);
                let mut states = self.0.escrow.states(input.vm);
                states.extend(seen.unwrap_or_default());
                states
            }
            false => Vec::new(),
        };
        let operation = operation::PrepareIncoming {
            metadata: Box::new(metadata),
            disks: before.disks,
            live: input.live,
            from: before.source,
            former_states,
        };
        let agent = self.0.agents.of(&input.to)?;
        agent.run(cx, input.vm, operation).await?;
        if has_seed {
            // The host knows of the arrival now, and removes the medium with it if it is abandoned.
            crate::seed::carry(&self.0.agents.of(&input.from)?, &agent, input.vm).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl UndoStep<MigrateInput> for PrepareIncoming {
    /// What has arrived is marked as incoming before anything else of it is there, and never runs. The mark names this job,
    /// and what was made for it is on record beside it: nothing else is removed, not even of a later move of the VM to that
    /// host, and no disk that both hosts share.
    fn undo_absence(&self, cx: &StepContext<MigrateInput>) -> Absence {
        removal(&cx.input().to, cx.input().vm)
    }

    async fn undo(&self, cx: &StepContext<MigrateInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        let Some(before) = cx.output_if_done::<Check>()? else {
            return Ok(());
        };
        if cx.pays_debt() {
            still_apart(
                world,
                &input.to,
                (input.vm, cx.job()),
                copied(&before.disks),
            )?;
        }
        let operation = operation::AbandonIncoming {
            spec: before.metadata.spec,
            disks: before.disks,
        };
        world
            .agents
            .of(&input.to)?
            .run(cx, input.vm, operation)
            .await?;
        world.refresh(&input.to, input.vm).await;
        world.refresh(&input.from, input.vm).await;
        Ok(())
    }
}

/// Which disks were copied.
fn copied(disks: &[IncomingDisk]) -> impl Fn(&str) -> bool {
    |target| disks.iter().any(|disk| disk.copy && disk.target == target)
}

/// The other host of a migration has been silent for so long that nobody waits for it any more.
const GONE: Duration = Duration::from_secs(8);

/// Whether the destination answers. Says so in a way that is not taken for the silence of the source.
async fn arrived_at_destination(
    world: &World,
    input: &MigrateInput,
) -> Result<Option<VmState>, StepError> {
    let asked = async { world.agents.of(&input.to)?.vm(input.vm).await };
    match asked.await {
        Ok(detail) => Ok(detail.map(|detail| detail.vm.state)),
        Err(failure) => {
            let what = format!(
                "host {} is asked whether VM {} has arrived",
                input.to, input.name
            );
            let failure = Failure::new(ErrorCode::MigrationFailed, what).because(failure.what);
            Err(StepError::retryable(failure))
        }
    }
}

fn destination_is_gone(world: &World, input: &MigrateInput) -> Option<Failure> {
    let silent = world.agents.silent_for(&input.to)?;
    (silent >= GONE).then(|| destination_lost(input))
}

fn destination_lost(input: &MigrateInput) -> Failure {
    let MigrateInput { name, from, to, .. } = input;
    Failure::new(
        ErrorCode::HostUnreachable,
        format!("VM {name} did not move: host {to} does not answer any more"),
    )
    .because(format!("it was lost while the VM moved there; the VM stays on host {from}"))
    .fix(format!("choose another host: fleetward host list; what host {to} has of it goes when it is back: fleetward host show {to}"))
}

/// What the transfer took.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Moved {
    total_ms: u64,
    downtime_ms: Option<u64>,
    transferred: u64,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
}

impl From<operation::Migrated> for Moved {
    fn from(migrated: operation::Migrated) -> Self {
        Self {
            total_ms: migrated.total_ms,
            downtime_ms: migrated.downtime_ms,
            transferred: migrated.transferred,
            at: OffsetDateTime::now_utc(),
        }
    }
}

struct MigrateLive(Arc<World>);

#[async_trait]
impl Step<MigrateInput> for MigrateLive {
    const NAME: &'static str = "migrate-live";
    const RETRY_FOR: Duration = Duration::from_secs(60);
    type Output = Moved;

    async fn run(&self, cx: &StepContext<MigrateInput>) -> Result<Moved, StepError> {
        let (input, before) = (cx.input(), cx.output::<Check>()?);
        let operation = operation::MigrateLive {
            to: before.destination,
            disks: before.disks,
            networks: self.0.places_on(&input.to),
        };
        let agent = self.0.agents.of(&input.from)?;
        let moved = agent.run(cx, input.vm, operation).await;
        Ok(moved.map_err(|error| judged(&self.0, input, error))?.into())
    }
}

/// Of a link that broke because the other host is gone, that is what is said, and nobody tries again.
fn judged(world: &World, input: &MigrateInput, error: StepError) -> StepError {
    let broke = error.failure.code == ErrorCode::LinkLost;
    match broke && world.agents.silent_for(&input.to).is_some() {
        true => StepError::fatal(destination_lost(input)),
        false => error,
    }
}

#[async_trait]
impl UndoStep<MigrateInput> for MigrateLive {
    /// The source still has the VM, with disks and TPM as they were when it stopped there, if it did; what has arrived is
    /// removed and never ran. So the VM is the source's copy, whether it still runs there, was left suspended, or stopped;
    /// that it goes on there is what is owed. Its memory is lost as with a power cut where only the destination had it.
    fn undo_absence(&self, cx: &StepContext<MigrateInput>) -> Absence {
        Absence::Owe(about(&cx.input().from, cx.input().vm))
    }

    async fn undo(&self, cx: &StepContext<MigrateInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        let source = world.agents.of(&input.from)?;
        match source
            .run(cx, input.vm, operation::MigrationState {})
            .await?
        {
            SourceState::Here => Ok(()),
            // the arrival was taken back without the source
            SourceState::NotHere if cx.pays_debt() => Ok(()),
            SourceState::NotHere => {
                let arrived = match arrived_at_destination(world, input).await {
                    // Nothing is committed: what is there never runs, and the copy here is whole but for its memory.
                    Err(_) if destination_is_gone(world, input).is_some() => None,
                    arrived => arrived?,
                };
                match arrived {
                    Some(VmState::Paused | VmState::Running) => Err(StepError::past_undo(format!(
                        "VM {} has left host {} and is whole on host {}",
                        input.name, input.from, input.to
                    ))),
                    // the guest ended by itself; its disks and its TPM are where they were
                    Some(
                        VmState::Stopped
                        | VmState::Saved
                        | VmState::Migrating
                        | VmState::Failed
                        | VmState::Unknown,
                    )
                    | None => Ok(()),
                }
            }
        }
    }
}

struct SendStopped(Arc<World>);

#[async_trait]
impl Step<MigrateInput> for SendStopped {
    const NAME: &'static str = "send-stopped";
    type Output = Moved;

    async fn run(&self, cx: &StepContext<MigrateInput>) -> Result<Moved, StepError> {
        let (input, before) = (cx.input(), cx.output::<Check>()?);
        let operation = operation::SendStopped {
            to: before.destination,
            disks: before.disks,
        };
        let agent = self.0.agents.of(&input.from)?;
        let moved = agent.run(cx, input.vm, operation).await;
        Ok(moved.map_err(|error| judged(&self.0, input, error))?.into())
    }
}

#[async_trait]
impl UndoStep<MigrateInput> for SendStopped {
    /// The source still has everything; what arrived goes with `prepare-incoming`.
    async fn undo(&self, _cx: &StepContext<MigrateInput>) -> Result<(), StepError> {
        Ok(())
    }
}

/// The source lets go, the destination takes over.
struct HandOver(Arc<World>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct HandedOver {
    /// False where the source could not be reached any more; it is told before it cleans up.
    departed: bool,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
}

#[async_trait]
impl Step<MigrateInput> for HandOver {
    const NAME: &'static str = "hand-over";
    type Output = HandedOver;

    /// Reached only where the destination died between the question and the commit: nobody knows whether it has committed.
    /// The VM is the copy there, and its host's to complete; the source has departed and never starts it. It can be rebuilt
    /// elsewhere meanwhile, as any VM of a host that is lost.
    fn absence(&self, cx: &StepContext<MigrateInput>) -> Absence {
        Absence::Owe(about(&cx.input().to, cx.input().vm).half_way())
    }

    async fn run(&self, cx: &StepContext<MigrateInput>) -> Result<HandedOver, StepError> {
        let (world, input) = (&self.0, cx.input());
        if cx.pays_debt() {
            return self.pay(cx).await;
        }
        self.see_destination(input).await?;
        let source = world.agents.of(&input.from)?;
        let departed = match source.run(cx, input.vm, operation::Depart {}).await {
            Ok(_) => true,
            // The source has certainly stopped, and this job's lock keeps anybody from starting it there: waiting for a
            // dead host would only keep the guest from going on.
            Err(error) if error.failure.code.class() == Class::Unreachable => false,
            Err(error) => return Err(error),
        };
        let operation = operation::CommitIncoming { live: input.live };
        world
            .agents
            .of(&input.to)?
            .run(cx, input.vm, operation)
            .await?;
        let at = OffsetDateTime::now_utc();
        world.refresh(&input.to, input.vm).await;
        Ok(HandedOver { departed, at })
    }
}

impl HandOver {
    /// Before anything is done that cannot be taken back: a destination that is gone gets nothing.
    async fn see_destination(&self, input: &MigrateInput) -> Result<(), StepError> {
        match arrived_at_destination(&self.0, input).await {
            Ok(_) => Ok(()),
            Err(error) => match destination_is_gone(&self.0, input) {
                Some(gone) if !self.has_departed(input).await => Err(StepError::not_begun(gone)),
                // an earlier attempt has come further: the destination may have committed
                Some(_) => Err(StepError::retryable(Failure::new(
                    ErrorCode::HostUnreachable,
                    format!("host {} does not answer", input.to),
                ))),
                None => Err(error),
            },
        }
    }

    /// Whether an earlier attempt came so far; where the source cannot say so, it counts as departed.
    async fn has_departed(&self, input: &MigrateInput) -> bool {
        let asked = async { self.0.agents.of(&input.from)?.vm(input.vm).await };
        let Ok(Some(detail)) = asked.await else {
            return true;
        };
        detail
            .vm
            .metadata
            .is_none_or(|metadata| metadata.transit.is_some())
    }

    /// The destination is back: the VM is there, unless it was rebuilt elsewhere. The job ended before its clean-up.
    async fn pay(&self, cx: &StepContext<MigrateInput>) -> Result<HandedOver, StepError> {
        let (world, input) = (&self.0, cx.input());
        let there = world.agents.of(&input.to)?;
        let at = OffsetDateTime::now_utc();
        if world.inventory.is_superseded(&input.to, input.vm) {
            let before = cx.output::<Check>()?;
            let operation = operation::AbandonIncoming {
                spec: before.metadata.spec,
                disks: before.disks,
            };
            return match there.run(cx, input.vm, operation).await {
                // committed before its host died: the copy is ended like any other that was superseded
                Err(error) if error.failure.code != ErrorCode::VmStateWrong => Err(error),
                _ => Ok(HandedOver { departed: true, at }),
            };
        }
        // The guest's memory is gone with the host's power, or has waited there: it runs on, or boots when it is started.
        let operation = operation::CommitIncoming { live: false };
        there.run(cx, input.vm, operation).await?;
        let source = world.agents.of(&input.from)?;
        clean_up(world, source, cx).await?;
        world.refresh(&input.to, input.vm).await;
        Ok(HandedOver { departed: true, at })
    }
}

struct CleanUp(Arc<World>);

/// Removes what the source still has.
async fn clean_up(
    world: &World,
    source: Agent,
    cx: &StepContext<MigrateInput>,
) -> Result<(), StepError> {
    let (input, before) = (cx.input(), cx.output::<Check>()?);
    if cx.pays_debt() {
        still_apart(
            world,
            &input.from,
            (input.vm, cx.job()),
            copied(&before.disks),
        )?;
    }
    let operation = operation::CleanUpDeparted {
        spec: before.metadata.spec,
        disks: before.disks,
    };
    source.run(cx, input.vm, operation).await?;
    world.inventory.observe(&input.from, input.vm, None);
    Ok(())
}

#[async_trait]
impl Step<MigrateInput> for CleanUp {
    const NAME: &'static str = "clean-up";
    type Output = ();

    /// The VM is committed at its destination. The source's copy has stopped, and its host is asked for nothing else before
    /// it has departed and is gone; a VM that came back there by a later move has made the debt void.
    fn absence(&self, cx: &StepContext<MigrateInput>) -> Absence {
        removal(&cx.input().from, cx.input().vm)
    }

    async fn run(&self, cx: &StepContext<MigrateInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        let source = world.agents.of(&input.from)?;
        if !cx.output::<HandOver>()?.departed {
            match source.run(cx, input.vm, operation::Depart {}).await {
                Err(error) if error.failure.code != ErrorCode::VmNotFound => return Err(error),
                _ => {}
            }
        }
        clean_up(world, source, cx).await?;
        world.refresh(&input.to, input.vm).await;
        Ok(())
    }
}

/// How long it took, how long the guest stood still, how much went over the wire.
fn report(input: &MigrateInput, job: &Job) -> Option<MigrateReport> {
    let moved: Moved = job
        .output(MigrateLive::NAME)
        .or_else(|| job.output(SendStopped::NAME))?;
    let over: HandedOver = job.output(HandOver::NAME)?;
    let hand_over_ms = u64::try_from((over.at - moved.at).whole_milliseconds()).unwrap_or(0);
    Some(MigrateReport {
        vm: input.name.clone(),
        from: input.from.clone(),
        to: input.to.clone(),
        live: input.live,
        total_ms: moved.total_ms + hand_over_ms,
        downtime_ms: moved.downtime_ms.map(|pause| pause + hand_over_ms),
        hand_over_ms,
        transferred_bytes: moved.transferred,
    })
}
