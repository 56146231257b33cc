//! The steps that switch the TPM of a VM on or off, for every job that does so: `tpm-enable`, `tpm-disable`, `vm-change`.
//!
//! In a job that switches it the other way, or not at all, they do not apply.

use crate::debts::about;
use crate::escrow::pull;
use crate::work::OnVm;
use crate::world::World;
use fleetward_api::agent::operation::{self, HostOperation};
use fleetward_api::tpm::VersionReason;
use fleetward_jobs::{Absence, Step, StepContext, StepError, UndoStep, async_trait};
use fleetward_model::{ErrorCode, Failure, GroupName, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;

/// A host that is away is waited for this long before the job turns back.
pub(in crate::work) const PATIENCE: Duration = Duration::from_secs(20);

/// Input of a job that switches the TPM of its VM.
pub(in crate::work) trait SwitchesTpm: OnVm {
    fn name(&self) -> &VmName;

    fn group(&self) -> &GroupName;

    /// Whether the job switches the TPM `on`, or off.
    fn switches_tpm(&self, on: bool) -> bool;
}

/// Asks the VM's host.
pub(in crate::work) async fn ask<I: OnVm, O: HostOperation>(
    world: &World,
    cx: &StepContext<I>,
    operation: O,
) -> Result<O::Answer, StepError> {
    let (vm, host) = (cx.input().vm(), cx.input().host());
    let answer = world.agents.of(host)?.run(cx, vm, operation).await;
    world.refresh(host, vm).await;
    answer
}

/// The VM is on the host that is away, and nothing is asked of it there before this is done, neither a start nor a change. A
/// VM that was rebuilt elsewhere meanwhile is not: its copy here is ended, and never starts.
pub(in crate::work) fn of_the_vms_own_host<I: OnVm>(cx: &StepContext<I>) -> Absence {
    Absence::Owe(about(cx.input().host(), cx.input().vm()))
}

/// Steps that are one operation, taken back by another; `on` tells in which jobs.
macro_rules! operation_step {
    ($(#[doc = $doc:literal])* $step:ident, $name:literal, on $on:literal, $operation:expr $(, undo $undo:expr)?) => {
        $(#[doc = $doc])*
        pub(in crate::work) struct $step(pub(in crate::work) Arc<World>);

        #[async_trait]
        impl<I: SwitchesTpm> Step<I> for $step {
            const NAME: &'static str = $name;
            const RETRY_FOR: Duration = PATIENCE;
            type Output = ();

            fn applies(&self, cx: &StepContext<I>) -> bool {
                cx.input().switches_tpm($on)
            }

            /// Past the point of no return only `set-aside-tpm` asks: the definition has no TPM any more.
            fn absence(&self, cx: &StepContext<I>) -> Absence {
                of_the_vms_own_host(cx)
            }

            async fn run(&self, cx: &StepContext<I>) -> Result<(), StepError> {
                ask(&self.0, cx, $operation).await.map(drop)
            }
        }
        $(
            #[async_trait]
            impl<I: SwitchesTpm> UndoStep<I> for $step {
                /// See [`of_the_vms_own_host`].
                fn undo_absence(&self, cx: &StepContext<I>) -> Absence {
                    of_the_vms_own_host(cx)
                }

                async fn undo(&self, cx: &StepContext<I>) -> Result<(), StepError> {
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
pub(in crate::work) struct MakeTpm(pub(in crate::work) Arc<World>);

#[async_trait]
impl<I: SwitchesTpm> Step<I> for MakeTpm {
    const NAME: &'static str = "make-tpm";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = ();

    fn applies(&self, cx: &StepContext<I>) -> bool {
        cx.input().switches_tpm(true)
    }

    async fn run(&self, cx: &StepContext<I>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        // An earlier step has just asked for what lies with the VM, and the job's lock keeps it so.
        let known = world.inventory.vm(input.vm());
        let revoked = known.and_then(|vm| Some(vm.metadata.as_ref()?.revoked.clone()));
        let revoked = revoked.ok_or_else(|| {
            Failure::new(ErrorCode::VmNotFound, format!("no VM {}", input.name()))
        })?;
        let now = OffsetDateTime::now_utc();
        let recipients =
            world.recipients_for_new_key(input.group(), input.host(), &revoked, now)?;
        let operation = operation::MakeTpm { recipients };
        ask(world, cx, operation).await.map(drop)
    }
}

#[async_trait]
impl<I: SwitchesTpm> UndoStep<I> for MakeTpm {
    /// See [`of_the_vms_own_host`].
    fn undo_absence(&self, cx: &StepContext<I>) -> Absence {
        of_the_vms_own_host(cx)
    }

    async fn undo(&self, cx: &StepContext<I>) -> Result<(), StepError> {
        let removal = operation::RemoveTpm {
            keep: false,
            history: false,
        };
        ask(&self.0, cx, removal).await.map(drop)
    }
}

/// The controller's copy of a TPM that is about to be taken away or replaced: what only the host keeps, no command brings
/// back, so without a copy the job turns back. Where there is no whole TPM, none is lost, and that is a warning.
pub(in crate::work) async fn keep_before<I: OnVm>(
    world: &World,
    cx: &StepContext<I>,
    name: &VmName,
    why: VersionReason,
) -> Result<Option<String>, StepError> {
    let (vm, host) = (cx.input().vm(), cx.input().host());
    let failure = match pull::take(world, host, vm, why, cx.created_by()).await {
        Ok(_) => return Ok(None),
        Err(failure) => failure,
    };
    let Failure { what, because, .. } = &failure;
    match failure.code {
        ErrorCode::TpmStateMissing
        | ErrorCode::TpmStateDamaged
        | ErrorCode::TpmStateOutdated
        | ErrorCode::TpmStateUnreadable
        | ErrorCode::TpmFailed => Ok(Some(format!(
            "VM {name} had no whole TPM to keep: {what}: {because}; host {host} keeps what there was"
        ))),
        // Nobody opens it as it is, so that no copy of it would be worth anything: it is set aside as it is, and what was
        // kept of it before its key protector was damaged stays.
        ErrorCode::KeyProtectorUnreadable => Ok(Some(format!(
            "the TPM that VM {name} had could not be kept: {what}: {because}; host {host} keeps what there was, and {}",
            match world.escrow.newest(vm) {
                Some(newest) =>
                    format!("version {} is the controller's newest copy", newest.version),
                None => "the controller has no copy".to_owned(),
            }
        ))),
        ErrorCode::HostUnreachable | ErrorCode::VmBusy => Err(StepError::retryable(failure)),
        code => {
            let stays =
                format!("the TPM of VM {name} stays: the controller could not keep a copy of it");
            let refusal = Failure::new(code, stays)
                .because(format!("{what}: {because}"))
                .fix(failure.fix.clone());
            Err(StepError::fatal(refusal))
        }
    }
}

/// The controller's copy of a TPM that is about to be switched off.
pub(in crate::work) struct LastCopy(pub(in crate::work) Arc<World>);

/// Why there is none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(in crate::work) struct Kept {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

#[async_trait]
impl<I: SwitchesTpm> Step<I> for LastCopy {
    const NAME: &'static str = "last-copy";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = Kept;

    fn applies(&self, cx: &StepContext<I>) -> bool {
        cx.input().switches_tpm(false)
    }

    async fn run(&self, cx: &StepContext<I>) -> Result<Kept, StepError> {
        let why = VersionReason::Disabled;
        let warning = keep_before(&self.0, cx, cx.input().name(), why).await?;
        Ok(Kept { warning })
    }
}
