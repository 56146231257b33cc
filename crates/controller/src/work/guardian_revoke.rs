//! `guardian-revoke`: removes a guardian's access to a VM's key.
//!
//! ```text
//!  revoke, prepare-roll ‖ commit-tpm, escrow
//! ```
//! A guardian that has opened the key still knows it after its wrapping is removed, so the key is also rolled: at once
//! if the VM is stopped, otherwise after its next stop. The VM's metadata says that a roll is due (the revocation
//! names the known key), so no other record is needed: the keeper finds the stopped VM and submits this job again.

use super::custody::commit_tpm;
use super::take_escrow::Taken;
use super::tpm::Prepared;
use super::{FleetJob, OnVm, TakeEscrow, vm_locks};
use crate::debts::about;
use crate::world::World;
use fleetward_api::agent::{KeyRewrap, RewrapReason, operation};
use fleetward_api::reports::RevokeReport;
use fleetward_api::tpm::VersionReason;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, Job, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::{Answer, Request, TpmChange, answer};
use fleetward_model::vm::Revocation;
use fleetward_model::{ErrorCode, Failure, GuardianId, HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;

/// A host that is away is waited for this long; then the key stays as it is, and the keeper tries again.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who loses which key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RevokeInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    /// Where it is; nothing moves it while the job holds it.
    pub(crate) host: HostName,
    /// As it was asked for: a host or a guardian.
    pub(crate) from: String,
    pub(crate) guardians: Vec<GuardianId>,
}

impl OnVm for RevokeInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.host
    }
}

/// The kind.
pub(crate) struct GuardianRevoke(pub(crate) Arc<World>);

impl JobKind for GuardianRevoke {
    const NAME: &'static str = "guardian-revoke";
    type Input = RevokeInput;

    fn locks(input: &RevokeInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<RevokeInput> {
        let world = &self.0;
        Steps::new()
            .check(Revoke(world.clone()))
            .step(PrepareRoll(world.clone()))
            .forward(CommitRoll(world.clone()))
            .forward(KeepCopy {
                rolled: TakeEscrow::new(world.clone(), VersionReason::Rolled),
                pending: TakeEscrow::new(world.clone(), VersionReason::Revoked),
            })
    }
}

impl FleetJob for GuardianRevoke {
    type Report = RevokeReport;
    const ACCESS: Access = <verbs::GuardianRevoke as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::Revoke);
    const WARNING_STEPS: &'static [&'static str] = &[KeepCopy::NAME];

    fn target(input: &RevokeInput) -> String {
        input.name.to_string()
    }

    fn host(input: &RevokeInput) -> &HostName {
        &input.host
    }

    fn vm(input: &RevokeInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn report(input: &RevokeInput, job: &Job) -> Option<RevokeReport> {
        let roll: Roll = job.output(PrepareRoll::NAME)?;
        let rolled = matches!(roll, Roll::Prepared(_));
        let (code, pending) = match roll {
            Roll::Prepared(_) => (None, None),
            Roll::Pending { code, because } => (Some(code), Some(because)),
        };
        Some(RevokeReport {
            vm: input.name.clone(),
            from: input.from.clone(),
            guardians: input.guardians.clone(),
            rolled,
            code,
            pending,
        })
    }
}

/// From here on nothing grants it again by itself. Not taken back when the job is cancelled: somebody wanted it gone.
struct Revoke(Arc<World>);

#[async_trait]
impl Step<RevokeInput> for Revoke {
    const NAME: &'static str = "revoke";
    type Output = ();

    async fn run(&self, cx: &StepContext<RevokeInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        let change = KeyRewrap {
            add: Vec::new(),
            drop: input.guardians.clone(),
            expired: Vec::new(),
            former: Vec::new(),
            why: RewrapReason::Revoked,
        };
        let agent = world.agents.of(&input.host)?;
        let operation = operation::Rewrap { change };
        let rewrapped = agent.run(cx, input.vm, operation).await?;
        world.note_protector(&input.host, input.vm, &rewrapped.key_protector);
        world.inventory.amend(&input.host, input.vm, |vm| {
            let (Some(metadata), Some(key_id)) = (&mut vm.metadata, vm.tpm.key_id) else {
                return;
            };
            for guardian in &input.guardians {
                if !metadata.is_revoked(guardian) {
                    metadata.revoked.push(Revocation {
                        guardian: guardian.clone(),
                        key_id,
                    });
                }
            }
        });
        Ok(())
    }
}

/// What became of the roll.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Roll {
    /// The key protector of the new key, which is proved and waits to be put in place.
    Prepared(Prepared),
    /// Why the VM keeps its key for now.
    Pending { code: ErrorCode, because: String },
}

/// Encrypts the TPM of a stopped VM under a new key. That it cannot be is no reason to give the key back to the guardian
/// that lost it, so it never fails the job.
struct PrepareRoll(Arc<World>);

#[async_trait]
impl Step<RevokeInput> for PrepareRoll {
    const NAME: &'static str = "prepare-roll";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = Roll;

    async fn run(&self, cx: &StepContext<RevokeInput>) -> Result<Roll, StepError> {
        match self.prepare(cx).await {
            Ok(prepared) => Ok(Roll::Prepared(prepared)),
            Err(error) if error.failure.code == ErrorCode::HostUnreachable => Err(error),
            Err(StepError { failure, .. }) => Ok(Roll::Pending {
                code: failure.code,
                because: match failure.because.is_empty() {
                    true => failure.what,
                    false => format!("{}: {}", failure.what, failure.because),
                },
            }),
        }
    }
}

impl PrepareRoll {
    async fn prepare(&self, cx: &StepContext<RevokeInput>) -> Result<Prepared, StepError> {
        let (world, input) = (&self.0, cx.input());
        let vm = world
            .inventory
            .vm(input.vm)
            .ok_or_else(|| Failure::new(ErrorCode::VmNotFound, format!("no VM {}", input.name)))?;
        let roll = Request::Tpm {
            change: TpmChange::Roll,
            restart: false,
        };
        if let Answer::Refuse(reason) = answer(vm.state, roll) {
            let what = format!("VM {} is {}", input.name, vm.state);
            return Err(Failure::new(reason.code, what)
                .because(
                    "until its key is rolled, who has opened it before still knows it. It is rolled when the VM stops",
                )
                .into());
        }
        let metadata = vm.require_metadata()?;
        let mut keep = vm.tpm.guardians.clone();
        keep.retain(|guardian| !input.guardians.contains(guardian));
        let to =
            world.remaining_recipients(metadata, &input.host, &keep, OffsetDateTime::now_utc())?;
        let agent = world.agents.of(&input.host)?;
        let operation = operation::PrepareRoll { to };
        Ok(agent.run(cx, input.vm, operation).await?.into())
    }
}

#[async_trait]
impl UndoStep<RevokeInput> for PrepareRoll {
    /// What is prepared lies beside the TPM and is not used; a newer roll makes the debt void.
    fn undo_absence(&self, cx: &StepContext<RevokeInput>) -> Absence {
        Absence::Owe(about(&cx.input().host, cx.input().vm))
    }

    async fn undo(&self, cx: &StepContext<RevokeInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        let agent = world.agents.of(&input.host)?;
        agent
            .run(cx, input.vm, operation::AbandonTpm {})
            .await
            .map(drop)
    }
}

/// Puts the new key in place.
struct CommitRoll(Arc<World>);

#[async_trait]
impl Step<RevokeInput> for CommitRoll {
    const NAME: &'static str = "commit-tpm";
    type Output = ();

    /// The prepared TPM waits on the host, and opens: the new key is put in place when the host is back, before the VM can
    /// be started there.
    fn absence(&self, cx: &StepContext<RevokeInput>) -> Absence {
        Absence::Owe(about(&cx.input().host, cx.input().vm).half_way())
    }

    async fn run(&self, cx: &StepContext<RevokeInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        let Roll::Prepared(Prepared { protector, .. }) = cx.output::<PrepareRoll>()? else {
            return Ok(());
        };
        commit_tpm(world, cx, &input.host, input.vm, &protector).await?;
        world.refresh(&input.host, input.vm).await;
        Ok(())
    }
}

/// A copy of the TPM as it is now: under a new key, or under the old one for fewer guardians.
struct KeepCopy {
    rolled: TakeEscrow<RevokeInput>,
    pending: TakeEscrow<RevokeInput>,
}

#[async_trait]
impl Step<RevokeInput> for KeepCopy {
    const NAME: &'static str = "escrow";
    type Output = Taken;

    async fn run(&self, cx: &StepContext<RevokeInput>) -> Result<Taken, StepError> {
        match cx.output::<PrepareRoll>()? {
            Roll::Prepared(_) => self.rolled.run(cx).await,
            Roll::Pending { .. } => self.pending.run(cx).await,
        }
    }
}
