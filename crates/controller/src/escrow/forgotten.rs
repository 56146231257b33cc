//! VMs that were deleted for good with their TPMs. What a host still keeps of such a TPM, from a time at which the VM was
//! there, is removed when that host reports it.

use super::Escrow;
use fleetward_api::tpm::TpmVersion;
use fleetward_model::{Failure, VmId};
use fleetward_store::{Range, Store, StoreError, Txn};
use std::collections::BTreeSet;

/// `escrow-forgotten/<vm>`, with nothing in it. It stays: a host may come back after a year.
const FORGOTTEN: &str = "escrow-forgotten/";

pub(super) fn key(vm: VmId) -> String {
    format!("{FORGOTTEN}{vm}")
}

pub(super) async fn read(store: &dyn Store) -> Result<BTreeSet<VmId>, StoreError> {
    let found = store.list(Range::prefix(FORGOTTEN)).await?.entries;
    let vms = found.iter().filter_map(|entry| {
        let vm = entry.key.strip_prefix(FORGOTTEN)?;
        vm.parse().ok()
    });
    Ok(vms.collect())
}

impl Escrow {
    /// Whether the VM was deleted for good with its TPM.
    pub(crate) fn is_forgotten(&self, vm: VmId) -> bool {
        self.read().forgotten.contains(&vm)
    }

    /// The newest version of every VM that is not there any more.
    pub(crate) fn without_vm(&self, is_there: impl Fn(VmId) -> bool) -> Vec<TpmVersion> {
        let known = self.read();
        let gone = known
            .versions
            .vms()
            .iter()
            .filter(|(vm, _)| !is_there(**vm));
        let newest = gone.filter_map(|(_, versions)| versions.values().next_back());
        let mut newest: Vec<_> = newest.map(|indexed| indexed.version.clone()).collect();
        newest.sort_by(|a, b| (&a.vm_name, a.vm).cmp(&(&b.vm_name, b.vm)));
        newest
    }

    /// The id is in use again.
    pub(super) async fn remember(&self, vm: VmId) -> Result<(), Failure> {
        if !self.is_forgotten(vm) {
            return Ok(());
        }
        let written = self.store.commit(Txn::new().delete(key(vm))).await;
        let _ = written.map_err(|error| crate::store_failure(&error))?;
        self.write().forgotten.remove(&vm);
        Ok(())
    }
}
