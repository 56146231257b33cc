//! Fetching bundles from hosts.

use crate::admission::claimants;
use crate::world::World;
use fleetward_api::tpm::{TpmBundle, TpmQuery, TpmVersion, VersionReason};
use fleetward_model::admission::disputed;
use fleetward_model::fit::TpmWriter;
use fleetward_model::{ErrorCode, Failure, HostName, VmId};

fn require_undisputed(world: &World, vm: VmId) -> Result<(), Failure> {
    let claimants = claimants(world, vm);
    if claimants.is_empty() {
        return Ok(());
    }
    let name = world.inventory.vm(vm).map(|vm| vm.name.clone());
    Err(match name {
        Some(name) => disputed(&name, &claimants),
        None => Failure::new(ErrorCode::VmNotFound, format!("no VM {vm}")),
    })
}

/// The VM's TPM as its host has it. UEFI variables that the newest copy has are taken from there.
async fn fetch(world: &World, host: &HostName, vm: VmId) -> Result<TpmBundle, Failure> {
    let agent = world.agents.of(host)?;
    let query = TpmQuery {
        variables: world.escrow.newest_variables(vm),
    };
    let bundle = agent.tpm(vm, &query).await?;
    if !bundle.same_variables {
        return Ok(bundle);
    }
    let newest = world.escrow.newest(vm).map(|newest| newest.version);
    if let Some(newest) = newest
        && let Ok(kept) = world.escrow.bundle(vm, newest).await
        && kept.variables_sha256() == query.variables
    {
        return Ok(bundle.with_variables(kept.uefi_variables));
    }
    // The copy went meanwhile, or cannot be read.
    agent.tpm(vm, &TpmQuery::default()).await
}

/// Fetches a VM's TPM from its host and keeps it. What goes wrong is remembered for `vm show`.
pub(crate) async fn take(
    world: &World,
    host: &HostName,
    vm: VmId,
    why: VersionReason,
    by: &str,
) -> Result<TpmVersion, Failure> {
    let taken = async {
        require_undisputed(world, vm)?;
        let bundle = fetch(world, host, vm).await?;
        if bundle.vm != vm {
            let what = format!("the copy of the TPM of VM {vm} that host {host} sent");
            let because = format!("it is of VM {}, which was not asked for", bundle.vm);
            return Err(Failure::new(ErrorCode::EscrowCorrupt, what).because(because));
        }
        // Another host may have claimed it meanwhile.
        require_undisputed(world, vm)?;
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
