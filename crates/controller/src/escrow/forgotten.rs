//! VMs that were deleted for good with their TPMs. What a host still keeps of such a TPM, from a time at which the VM was
//! there, is removed when that host reports it.

use super::Escrow;
use fleetward_api::tpm::TpmVersion;
use fleetward_model::{Failure, VmId};
use fleetward_store::{Range, Store, StoreError, Txn};
use std::collections::BTreeSet;
use std::ops::Bound;

/// `escrow-forgotten/<vm>`, with nothing in it. It stays: a host may come back after a year.
const FORGOTTEN: &str = "escrow-forgotten/";

/// VMs that are looked at before others get their turn.
const SLICE: usize = 1000;

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

    /// The newest version of every VM of which it is `wanted`, by id. Others have their turn in between.
    pub(crate) async fn newest_where(
        &self,
        wanted: impl Fn(&TpmVersion) -> bool,
    ) -> Vec<TpmVersion> {
        let mut found = Vec::new();
        let mut after = Bound::Unbounded;
        loop {
            let last = {
                let known = self.read();
                let some = known.versions.vms().range((after, Bound::Unbounded));
                let mut last = None;
                for (vm, versions) in some.take(SLICE) {
                    last = Some(*vm);
                    let newest = versions.values().next_back();
                    let newest = newest.filter(|indexed| wanted(&indexed.version));
                    found.extend(newest.map(|indexed| indexed.version.clone()));
                }
                last
            };
            let Some(last) = last else {
                return found;
            };
            after = Bound::Excluded(last);
            tokio::task::yield_now().await;
        }
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
