//! Rolling a VM's TPM key because a guardian that knew it has lost it: the one place where this slice meets the roll itself.

use crate::world::World;
use fleetward_jobs::{Data, StepContext};
use fleetward_model::{ErrorCode, Failure, HostName, VmId, VmName};
use std::sync::Arc;

/// Whether this version can: the keeper does not try what cannot work.
pub(crate) const POSSIBLE: bool = false;

/// Gives a stopped VM a new TPM key.
pub(crate) async fn roll<I: Data>(
    _world: &Arc<World>,
    _cx: &StepContext<I>,
    _vm: VmId,
    name: &VmName,
    _host: &HostName,
) -> Result<(), Failure> {
    Err(Failure::new(
        ErrorCode::VmStateWrong,
        format!("the TPM key of VM {name} was not rolled"),
    )
    .because("this version cannot roll keys: who has opened it before still knows it"))
}
