//! The index of all versions, by VM and by the host that the newest came from.

use super::Indexed;
use fleetward_model::{HostName, VmId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// All versions of all VMs; of a VM oldest first.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// Of each VM at least one.
    vms: BTreeMap<VmId, BTreeMap<u64, Indexed>>,
    /// VMs by the host that their newest version came from.
    from: HashMap<HostName, BTreeSet<VmId>>,
}

impl Versions {
    /// Every VM of which there is a version.
    pub(super) const fn vms(&self) -> &BTreeMap<VmId, BTreeMap<u64, Indexed>> {
        &self.vms
    }

    /// The versions of a VM.
    pub(super) fn of(&self, vm: VmId) -> impl DoubleEndedIterator<Item = &Indexed> {
        let versions = self.vms.get(&vm);
        versions.into_iter().flat_map(BTreeMap::values)
    }

    pub(super) fn get(&self, vm: VmId, version: u64) -> Option<&Indexed> {
        self.vms.get(&vm)?.get(&version)
    }

    pub(super) fn newest(&self, vm: VmId) -> Option<&Indexed> {
        self.of(vm).next_back()
    }

    /// The newest versions of VMs that were last seen on `host`.
    pub(super) fn last_from(&self, host: &HostName) -> impl Iterator<Item = &Indexed> {
        let vms = self.from.get(host).into_iter().flatten();
        vms.filter_map(|vm| self.newest(*vm))
    }

    pub(super) fn put(&mut self, indexed: Indexed) {
        let (vm, version) = (indexed.version.vm, indexed.version.version);
        self.change(vm, |versions| drop(versions.insert(version, indexed)));
    }

    pub(super) fn remove(&mut self, vm: VmId, version: u64) {
        self.change(vm, |versions| drop(versions.remove(&version)));
    }

    pub(super) fn remove_all(&mut self, vm: VmId) {
        self.change(vm, BTreeMap::clear);
    }

    fn change(&mut self, vm: VmId, change: impl FnOnce(&mut BTreeMap<u64, Indexed>)) {
        let before = self.host_of(vm);
        let versions = self.vms.entry(vm).or_default();
        change(versions);
        if versions.is_empty() {
            self.vms.remove(&vm);
        }
        let now = self.host_of(vm);
        if before == now {
            return;
        }
        if let Some(host) = before
            && let Some(vms) = self.from.get_mut(&host)
        {
            vms.remove(&vm);
            if vms.is_empty() {
                self.from.remove(&host);
            }
        }
        if let Some(host) = now {
            self.from.entry(host).or_default().insert(vm);
        }
    }

    fn host_of(&self, vm: VmId) -> Option<HostName> {
        let newest = self.newest(vm)?;
        Some(newest.version.host.clone())
    }
}
