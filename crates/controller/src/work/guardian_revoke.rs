//! `guardian-revoke`: a guardian loses a VM's key.
//!
//! Taking the wrapping away does not make anybody forget what it has opened, so the key is rolled too: at once where the VM
//! is stopped, at its next stop where it runs. That a roll is due lies in the VM's metadata (the revocation names the key that
//! was known), so nothing needs to remember it; the keeper sees the stopped VM and rolls.

use super::vm_locks;
use super::vm_migrate::unexpected;
use crate::roll;
use crate::world::World;
use fleetward_api::agent::{KeyRewrap, Operation, OperationResult, RewrapReason};
use fleetward_jobs::{Job, JobKind, Step, StepContext, StepError, Steps, async_trait};
use fleetward_model::vm::{Revocation, VmState};
use fleetward_model::{ErrorCode, Failure, GuardianId, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Who loses which key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RevokeInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    /// As it was asked for: a host or a guardian.
    pub(crate) from: String,
    pub(crate) guardians: Vec<GuardianId>,
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
        Steps::new()
            .check(Revoke(self.0.clone()))
            .check(Roll(self.0.clone()))
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
        let host = place(world, input)?.0;
        let change = KeyRewrap {
            add: Vec::new(),
            drop: input.guardians.clone(),
            expired: Vec::new(),
            why: RewrapReason::Revoked,
        };
        let agent = world.agents.of(&host)?;
        let operation = Operation::Rewrap { change };
        match agent.run(cx, input.vm, operation).await? {
            OperationResult::Protector { key_protector } => {
                world.note_protector(&host, input.vm, &key_protector);
                world.inventory.amend(&host, input.vm, |vm| {
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
            other => Err(unexpected("revocation", &other)),
        }
    }
}

/// Whether the key was rolled, and why not yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rolled {
    pub(crate) rolled: bool,
    #[serde(default)]
    pub(crate) code: Option<ErrorCode>,
    #[serde(default)]
    pub(crate) pending: String,
}

struct Roll(Arc<World>);

#[async_trait]
impl Step<RevokeInput> for Roll {
    const NAME: &'static str = "roll";
    type Output = Rolled;

    async fn run(&self, cx: &StepContext<RevokeInput>) -> Result<Rolled, StepError> {
        let (world, input) = (&self.0, cx.input());
        let (host, state) = place(world, input)?;
        if state != VmState::Stopped {
            return Ok(Rolled {
                rolled: false,
                code: Some(ErrorCode::VmRunning),
                pending: format!(
                    "VM {} runs; until its key is rolled, who has opened it before still knows it{}",
                    input.name,
                    if roll::POSSIBLE {
                        ". It is rolled when the VM stops"
                    } else {
                        ", and this version cannot roll keys"
                    }
                ),
            });
        }
        match roll::roll(world, cx, input.vm, &input.name, &host).await {
            Ok(()) => Ok(Rolled {
                rolled: true,
                code: None,
                pending: String::new(),
            }),
            Err(failure) => Ok(Rolled {
                rolled: false,
                code: Some(failure.code),
                pending: format!("{}: {}", failure.what, failure.because),
            }),
        }
    }
}

fn place(
    world: &World,
    input: &RevokeInput,
) -> Result<(fleetward_model::HostName, VmState), Failure> {
    let vm = world.inventory.vm(input.vm);
    let vm =
        vm.ok_or_else(|| Failure::new(ErrorCode::VmNotFound, format!("no VM {}", input.name)))?;
    Ok((vm.host.clone(), vm.state))
}

/// Whether the key was rolled.
pub(super) fn result(job: &Job) -> Option<serde_json::Value> {
    let rolled: Rolled = job.output(Roll::NAME)?;
    let mut result = serde_json::json!({
        "vm": job.input.get("name"),
        "from": job.input.get("from"),
        "guardians": job.input.get("guardians"),
        "rolled": rolled.rolled,
    });
    if !rolled.rolled {
        result["code"] = serde_json::json!(rolled.code);
        result["pending"] = serde_json::json!(rolled.pending);
    }
    Some(result)
}
