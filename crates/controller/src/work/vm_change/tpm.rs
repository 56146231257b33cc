//! The steps of `vm-change` that switch a TPM on or off; in a job that does neither they have nothing to do.

use super::{ChangeInput, PATIENCE};
use crate::work::take_escrow::{TakeEscrow, Taken};
use crate::work::tpm::keep_before;
use crate::world::World;
use fleetward_api::agent::operation::{self, HostOperation};
use fleetward_api::tpm::VersionReason;
use fleetward_jobs::{Step, StepContext, StepError, UndoStep, async_trait};
use fleetward_model::{ErrorCode, Failure};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;

async fn ask<O: HostOperation>(
    world: &World,
    cx: &StepContext<ChangeInput>,
    operation: O,
) -> Result<O::Answer, StepError> {
    let input = cx.input();
    let agent = world.agents.of(&input.host)?;
    let answer = agent.run(cx, input.vm, operation).await;
    world.refresh(&input.host, input.vm).await;
    answer
}

/// Steps that are one operation, undone by another; `on` tells in which jobs.
macro_rules! operation_step {
    ($(#[doc = $doc:literal])* $step:ident, $name:literal, on $on:literal, $operation:expr $(, undo $undo:expr)?) => {
        $(#[doc = $doc])*
        pub(super) struct $step(pub(super) Arc<World>);

        #[async_trait]
        impl Step<ChangeInput> for $step {
            const NAME: &'static str = $name;
            const RETRY_FOR: Duration = PATIENCE;
            type Output = ();

            async fn run(&self, cx: &StepContext<ChangeInput>) -> Result<(), StepError> {
                if !cx.input().switches_tpm($on) {
                    return Ok(());
                }
                ask(&self.0, cx, $operation).await.map(drop)
            }
        }
        $(
            #[async_trait]
            impl UndoStep<ChangeInput> for $step {
                async fn undo(&self, cx: &StepContext<ChangeInput>) -> Result<(), StepError> {
                    if !cx.input().switches_tpm($on) {
                        return Ok(());
                    }
                    ask(&self.0, cx, $undo).await.map(drop)
                }
            }
        )?
    };
}

operation_step!(
    /// Moves a TPM that an earlier, abandoned change left into the history, so that it is not taken for the new one.
    ClearAway, "clear-away", on true, operation::SetAsideTpm {}
);
operation_step!(
    /// Defines the VM with its new TPM.
    AttachTpm, "attach-tpm", on true, operation::AttachTpm {}, undo operation::DetachTpm {}
);
operation_step!(
    /// Defines the VM without its TPM.
    DetachTpm, "detach-tpm", on false, operation::DetachTpm {}, undo operation::AttachTpm {}
);
operation_step!(
    /// Moves the TPM that the VM does not have any more into the history.
    SetAsideTpm, "set-aside-tpm", on false, operation::SetAsideTpm {}
);

/// A new TPM.
pub(super) struct MakeTpm(pub(super) Arc<World>);

#[async_trait]
impl Step<ChangeInput> for MakeTpm {
    const NAME: &'static str = "make-tpm";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = ();

    async fn run(&self, cx: &StepContext<ChangeInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        if !input.switches_tpm(true) {
            return Ok(());
        }
        let known = world.inventory.vm(input.vm);
        let revoked = known.and_then(|vm| Some(vm.metadata.as_ref()?.revoked.clone()));
        let revoked = revoked
            .ok_or_else(|| Failure::new(ErrorCode::VmNotFound, format!("no VM {}", input.name)))?;
        let now = OffsetDateTime::now_utc();
        let recipients = world.recipients_for_new_key(&input.group, &input.host, &revoked, now)?;
        ask(world, cx, operation::MakeTpm { recipients })
            .await
            .map(drop)
    }
}

#[async_trait]
impl UndoStep<ChangeInput> for MakeTpm {
    async fn undo(&self, cx: &StepContext<ChangeInput>) -> Result<(), StepError> {
        if !cx.input().switches_tpm(true) {
            return Ok(());
        }
        let removal = operation::RemoveTpm {
            keep: false,
            history: false,
        };
        ask(&self.0, cx, removal).await.map(drop)
    }
}

/// The controller's copy of a TPM that is about to be switched off.
pub(super) struct LastCopy(pub(super) Arc<World>);

/// Why there is none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Kept {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

#[async_trait]
impl Step<ChangeInput> for LastCopy {
    const NAME: &'static str = "last-copy";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = Kept;

    async fn run(&self, cx: &StepContext<ChangeInput>) -> Result<Kept, StepError> {
        if !cx.input().switches_tpm(false) {
            return Ok(Kept::default());
        }
        let why = VersionReason::Disabled;
        let warning = keep_before(&self.0, cx, &cx.input().name, why).await?;
        Ok(Kept { warning })
    }
}

/// The controller's copy of a new TPM.
pub(super) struct EscrowNew(TakeEscrow<ChangeInput>);

impl EscrowNew {
    pub(super) fn new(world: &Arc<World>) -> Self {
        Self(TakeEscrow::new(world.clone(), VersionReason::Enabled))
    }
}

#[async_trait]
impl Step<ChangeInput> for EscrowNew {
    const NAME: &'static str = "escrow";
    type Output = Taken;

    async fn run(&self, cx: &StepContext<ChangeInput>) -> Result<Taken, StepError> {
        match cx.input().switches_tpm(true) {
            true => self.0.run(cx).await,
            false => Ok(Taken::default()),
        }
    }
}
