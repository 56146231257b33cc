//! The step `escrow`: copies the VM's TPM to the controller at the end of a job.
//!
//! It never fails its job. If no copy can be made, the job has a warning, `vm show` shows it, and
//! [`crate::escrow::keeper`] tries again until the controller's copy is up to date.

use super::OnVm;
use crate::escrow::pull;
use crate::world::World;
use fleetward_api::tpm::VersionReason;
use fleetward_jobs::{Step, StepContext, StepError, async_trait};
use fleetward_model::HostName;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The step, for any job on one VM.
pub(crate) struct TakeEscrow<I> {
    world: Arc<World>,
    why: VersionReason,
    host: fn(&I) -> &HostName,
    when: fn(&I) -> bool,
}

impl<I: OnVm> TakeEscrow<I> {
    /// Of the VM on the job's host.
    pub(crate) fn new(world: Arc<World>, why: VersionReason) -> Self {
        Self::on(world, why, I::host)
    }

    /// Of the VM on another host of the job's input: where a migration brought it.
    pub(crate) fn on(world: Arc<World>, why: VersionReason, host: fn(&I) -> &HostName) -> Self {
        Self {
            world,
            why,
            host,
            when: |_| true,
        }
    }

    /// Only in jobs whose input says so.
    pub(crate) fn when(self, when: fn(&I) -> bool) -> Self {
        Self { when, ..self }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// The version that holds the TPM as it is now.
    version: Option<u64>,
    /// Why there is none.
    warning: Option<String>,
}

#[async_trait]
impl<I: OnVm> Step<I> for TakeEscrow<I> {
    const NAME: &'static str = "escrow";
    type Output = Taken;

    fn applies(&self, cx: &StepContext<I>) -> bool {
        (self.when)(cx.input())
    }

    async fn run(&self, cx: &StepContext<I>) -> Result<Taken, StepError> {
        let (vm, host) = (cx.input().vm(), (self.host)(cx.input()));
        self.world.refresh(host, vm).await;
        let observed = self.world.inventory.vm(vm);
        if observed.is_some_and(|vm| !vm.tpm.enabled) {
            return Ok(Taken::default());
        }
        Ok(
            match pull::take(&self.world, host, vm, self.why, cx.created_by()).await {
                Ok(version) => Taken {
                    version: Some(version.version),
                    warning: None,
                },
                Err(failure) => Taken {
                    version: None,
                    warning: Some(format!(
                        "the controller has no new copy of the TPM: {}: {}",
                        failure.what, failure.because
                    )),
                },
            },
        )
    }
}
