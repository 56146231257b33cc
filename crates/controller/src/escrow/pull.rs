//! Fetching bundles from hosts.

use crate::admission::claimants;
use crate::world::World;
use fleetward_api::tpm::{TpmVersion, VersionReason};
use fleetward_model::admission::disputed;
use fleetward_model::fit::TpmWriter;
use fleetward_model::{ErrorCode, Failure, HostName, VmId};

/// Fetches a VM's TPM from its host and keeps it. What goes wrong is remembered for `vm show`.
pub(crate) async fn take(
    world: &World,
    host: &HostName,
    vm: VmId,
    why: VersionReason,
    by: &str,
) -> Result<TpmVersion, Failure> {
    let taken = async {
        let claimants = claimants(world, vm);
        if !claimants.is_empty() {
            let name = world.inventory.vm(vm).map(|vm| vm.name.clone());
            return Err(match name {
                Some(name) => disputed(&name, &claimants),
                None => Failure::new(ErrorCode::VmNotFound, format!("no VM {vm}")),
            });
        }
        let bundle = world.agents.of(host)?.tpm(vm).await?;
        if bundle.vm != vm {
            let what = format!("the copy of the TPM of VM {vm} that host {host} sent");
            let because = format!("it is of VM {}, which was not asked for", bundle.vm);
            return Err(Failure::new(ErrorCode::EscrowCorrupt, what).because(because));
        }
        let writer = TpmWriter::of(host, world.inventory.seen(host).facts.as_deref());
        let kept = world.escrow.keep(&bundle, &writer, why, by).await?;
        crate::ek::note(world, &bundle).await;
        Ok(kept)
    };
    let taken = taken.await;
    if let Err(failure) = &taken
        && failure.code != ErrorCode::VmBusy
    {
        tracing::warn!(%host, %vm, what = failure.what, because = failure.because, "no copy of the TPM was taken");
        world.escrow.note_missed(vm, failure.clone());
    }
    taken
}
