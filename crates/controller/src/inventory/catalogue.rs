//! All copies of all VMs, by what is asked for: id, name, host, group. Kept up to date copy by copy, so that no question
//! walks the fleet.
//!
//! ```text
//!   a host's word of one VM ──► put ──► choose: which copy is the VM, who claims it ──► the views: by name, host, group
//! ```

use super::claims::wins;
use fleetward_model::vm::VmObserved;
use fleetward_model::{GroupName, HostName, VmId, VmName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

/// Where a VM stands in a list: VMs are listed by name, then host; before the first of a name there is no host.
type Place = (VmName, Option<HostName>, VmId);

/// One VM: what each host has of it, and which of these it is.
#[derive(Debug, Default)]
struct Entry {
    /// In no order, one for each host.
    copies: Vec<Arc<VmObserved>>,
    /// Those of `copies` that count for something.
    counting: Vec<Arc<VmObserved>>,
    chosen: Option<Arc<VmObserved>>,
}

/// Everything that hosts have.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    entries: HashMap<VmId, Entry>,
    /// Every VM once.
    listed: BTreeMap<Place, Arc<VmObserved>>,
    /// VMs of each host, by name.
    hosts: HashMap<HostName, BTreeSet<(VmName, VmId)>>,
    groups: HashMap<GroupName, BTreeSet<VmId>>,
    /// Names that VMs and their domains have, whichever copy says so.
    names: HashMap<String, Vec<VmId>>,
    /// VMs that more than one host says it has.
    disputed: BTreeSet<VmId>,
    managed: usize,
}

/// What a copy counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// It waits to be removed.
    Nothing,
    /// Its host does not answer.
    Away,
    Online,
}

impl Catalogue {
    /// Takes what `host` has of a VM, or that it has nothing; [`choose`](Self::choose) has to follow.
    pub(super) fn put(&mut self, host: &HostName, id: VmId, vm: Option<Arc<VmObserved>>) {
        let entry = self.entries.entry(id).or_default();
        let at = entry.copies.iter().position(|copy| copy.host == *host);
        let former = at.map(|at| entry.copies.swap_remove(at));
        entry.copies.extend(vm.clone());
        let same_names = former
            .as_ref()
            .zip(vm.as_ref())
            .is_some_and(|(a, b)| a.name == b.name && a.domain_name == b.domain_name);
        if same_names {
            return;
        }
        for name in former.iter().flat_map(|copy| names_of(copy)) {
            let kept = self.entries.get(&id);
            let others = kept.into_iter().flat_map(|entry| &entry.copies);
            if others
                .flat_map(|copy| names_of(copy))
                .any(|other| other == name)
            {
                continue;
            }
            if let Some(ids) = self.names.get_mut(name) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.names.remove(name);
                }
            }
        }
        for name in vm.iter().flat_map(|copy| names_of(copy)) {
            let ids = self.names.entry(name.to_owned()).or_default();
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }

    /// Looks anew which copy of a VM is the VM.
    pub(super) fn choose(&mut self, id: VmId, weight: impl Fn(&VmObserved) -> Weight) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let weighed = entry.copies.iter().map(|vm| (weight(vm), vm));
        let counting: Vec<_> = weighed.filter(|(w, _)| *w != Weight::Nothing).collect();
        let mut best: Option<(bool, &Arc<VmObserved>)> = None;
        for (weight, vm) in &counting {
            let online = *weight == Weight::Online;
            if best.is_none_or(|(other_online, other)| wins(online, vm, other_online, other)) {
                best = Some((online, vm));
            }
        }
        let chosen = best.map(|(_, vm)| Arc::clone(vm));
        let counting: Vec<_> = counting.into_iter().map(|(_, vm)| Arc::clone(vm)).collect();
        let claims = counting.iter().filter(|vm| vm.is_the_vm()).count();
        let former = std::mem::replace(&mut entry.chosen, chosen.clone());
        entry.counting = counting;
        if entry.copies.is_empty() {
            self.entries.remove(&id);
        }
        match claims > 1 {
            true => self.disputed.insert(id),
            false => self.disputed.remove(&id),
        };
        self.list(former, chosen);
    }

    fn list(&mut self, former: Option<Arc<VmObserved>>, chosen: Option<Arc<VmObserved>>) {
        let managed = |vm: &Option<Arc<VmObserved>>| {
            usize::from(vm.as_ref().is_some_and(|vm| vm.is_managed()))
        };
        self.managed = self.managed + managed(&chosen) - managed(&former);
        let same_place = former.as_ref().zip(chosen.as_ref()).is_some_and(|(a, b)| {
            a.name == b.name && a.host == b.host && group_of(a) == group_of(b)
        });
        if let Some(vm) = former.filter(|_| !same_place) {
            self.listed.remove(&place(&vm));
            remove(&mut self.hosts, &vm.host, &(vm.name.clone(), vm.id));
            if let Some(group) = group_of(&vm) {
                remove(&mut self.groups, group, &vm.id);
            }
        }
        if let Some(vm) = chosen {
            if !same_place {
                let on = self.hosts.entry(vm.host.clone()).or_default();
                on.insert((vm.name.clone(), vm.id));
                if let Some(group) = group_of(&vm) {
                    self.groups.entry(group.clone()).or_default().insert(vm.id);
                }
            }
            self.listed.insert(place(&vm), vm);
        }
    }

    /// The copy that is the VM.
    pub(super) fn vm(&self, id: VmId) -> Option<&Arc<VmObserved>> {
        self.entries.get(&id)?.chosen.as_ref()
    }

    /// All copies of a VM that count for something.
    pub(super) fn counting(&self, id: VmId) -> &[Arc<VmObserved>] {
        self.entries.get(&id).map_or(&[], |entry| &entry.counting)
    }

    /// Whether more than one host has anything of it.
    pub(super) fn is_shared(&self, id: VmId) -> bool {
        let entry = self.entries.get(&id);
        entry.is_some_and(|entry| entry.copies.len() > 1)
    }

    /// Every VM once, by name, then host.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<VmObserved>> {
        self.listed.values()
    }

    /// The same of those that follow one in that order.
    pub(super) fn after(&self, vm: &VmObserved) -> impl Iterator<Item = &Arc<VmObserved>> {
        let from = Bound::Excluded(place(vm));
        let following = self.listed.range((from, Bound::Unbounded));
        following.map(|(_, vm)| vm)
    }

    /// The same from the first of a name, or where it would stand.
    pub(super) fn from(&self, name: &VmName) -> impl Iterator<Item = &Arc<VmObserved>> {
        let from = (name.clone(), None, VmId(uuid::Uuid::nil()));
        self.listed.range(from..).map(|(_, vm)| vm)
    }

    /// How many of them Fleetward manages.
    pub(super) const fn managed(&self) -> usize {
        self.managed
    }

    /// The VMs of a host, by name.
    pub(super) fn on(&self, host: &HostName) -> impl Iterator<Item = &Arc<VmObserved>> {
        let on = self.hosts.get(host);
        let ids = on.into_iter().flatten();
        ids.filter_map(|(_, id)| self.vm(*id))
    }

    pub(super) fn count_on(&self, host: &HostName) -> usize {
        self.hosts.get(host).map_or(0, BTreeSet::len)
    }

    /// The VMs of a group.
    pub(super) fn of_group(&self, group: &GroupName) -> impl Iterator<Item = &Arc<VmObserved>> {
        let ids = self.groups.get(group).into_iter().flatten();
        ids.filter_map(|id| self.vm(*id))
    }

    /// Every copy that counts for something of VMs of which any copy, or its domain, has that name.
    pub(super) fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Arc<VmObserved>> {
        let ids = self.names.get(name).into_iter().flatten();
        ids.flat_map(|id| self.counting(*id))
    }

    /// VMs that more than one host says it has.
    pub(super) fn disputed(&self) -> &BTreeSet<VmId> {
        &self.disputed
    }
}

fn names_of(vm: &VmObserved) -> impl Iterator<Item = &str> {
    std::iter::once(vm.name.as_str()).chain(vm.domain_name.as_deref())
}

fn group_of(vm: &VmObserved) -> Option<&GroupName> {
    vm.metadata.as_ref().map(|metadata| &metadata.spec.group)
}

fn place(vm: &VmObserved) -> Place {
    (vm.name.clone(), Some(vm.host.clone()), vm.id)
}

fn remove<K: std::hash::Hash + Eq, V: Ord>(sets: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
