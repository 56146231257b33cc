//! The last report of each host: its facts, its VMs, and whether it answers. Reads come from memory; a copy in the
//! store lets a restarted controller answer before the hosts report.
//!
//! ```text
//!   a host:  unreachable ──first line of its events──► online ──connection lost, or 10 s of silence──► unreachable
//! ```
//!
//! During a migration two hosts have a copy of a VM. The copy without a transit mark is the VM. If both have one (the
//! source has departed, the destination is not committed yet), the arriving copy is the VM. A copy on a lost host of a
//! VM that was rebuilt elsewhere is superseded: it is ignored until it is ended. A copy that its host owes to remove is
//! ignored too.
//!
//! A host says what it has in two ways, over two connections: by events, in their order, and by answers to questions, such
//! as the one at the end of each job. Either may overtake the other. What is older is passed over: an answer by when it was
//! asked for, an event by the host's own clock; of the latter the host is asked again, because a clock may be set back.

mod catalogue;
mod claims;
mod feed;
mod heard;
mod held;
mod stored;
#[cfg(test)]
mod tests;
mod writing;

pub(crate) use self::feed::{News, Reader};
pub(crate) use self::stored::WITHOUT_HISTORY;

use self::catalogue::{Catalogue, Weight};
use self::claims::{own_word, same_name};
use self::feed::Feed;
use self::heard::{Heard, Told};
use self::held::{Difference, Held};
use crate::debts::vm_of;
use crate::presence::Presence;
use crate::refused_reports::RefusedReports;
use fleetward_api::agent::{AgentEvent, size_of};
use fleetward_jobs::DebtBook;
use fleetward_model::guardian::{GuardianFacts, GuardianStanding};
use fleetward_model::host::{HostFacts, Measurements};
use fleetward_model::vm::{VmObserved, VmSpec};
use fleetward_model::{ErrorCode, Failure, GroupName, HostName, VmId, VmName};
use fleetward_store::{Store, StoreError, Txn};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;

/// What is known of one host at the moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Answers, and owes nothing: it can be asked for anything.
    pub(crate) online: bool,
    /// Answers, and can be asked what it has.
    pub(crate) answers: bool,
    pub(crate) facts: Option<Arc<HostFacts>>,
    /// By this machine's clock, when `facts` arrived.
    pub(crate) reported: Option<OffsetDateTime>,
    /// The last sign of life.
    pub(crate) last_seen: Option<OffsetDateTime>,
    /// Snapshots received since the start.
    pub(crate) snapshots: u64,
    /// See [`Inventory::tried`].
    tried: bool,
}

/// A host with all that it said.
#[derive(Debug, Default)]
struct Reported {
    seen: Seen,
    vms: BTreeMap<VmId, Held>,
    /// What it said that was more than is taken.
    refused: RefusedReports,
    /// When its facts were written to the store.
    facts_written: Option<OffsetDateTime>,
}

impl Reported {
    /// Takes facts of so many bytes, or keeps those of before. Whether there are any then.
    fn learn(&mut self, facts: HostFacts, size: usize, now: OffsetDateTime) -> bool {
        if self.refused.judge_facts(size) {
            self.seen.facts = Some(Arc::new(facts));
            self.seen.reported = Some(now);
        }
        self.seen.facts.is_some()
    }

    /// Takes what was measured since the facts that are known; without any it is worth nothing.
    fn measure(&mut self, measured: &Measurements, now: OffsetDateTime) {
        if let Some(facts) = &mut self.seen.facts {
            Arc::make_mut(facts).measure(measured);
            self.seen.reported = Some(now);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    hosts: HashMap<HostName, Reported>,
    catalogue: Catalogue,
    /// VMs whose records are behind memory.
    dirty: BTreeSet<(HostName, VmId)>,
    /// Hosts whose VMs have conditions that are not in the store, and since when.
    behind: HashMap<HostName, Instant>,
    /// When it was last looked whose facts are to be written.
    facts_looked: Option<Instant>,
    superseded: BTreeMap<(HostName, VmId), Superseded>,
    /// Copies that hosts owe to remove, as the book of debts had them at `debts_seen`.
    owed: BTreeSet<(HostName, VmId)>,
    debts_seen: u64,
}

/// A copy on a host that was lost, of a VM that has been rebuilt elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Superseded {
    pub(crate) host: HostName,
    pub(crate) spec: VmSpec,
}

impl Superseded {
    fn id(&self) -> (HostName, VmId) {
        (self.host.clone(), self.spec.id)
    }
}

/// The inventory.
#[derive(Debug)]
pub(crate) struct Inventory {
    store: Arc<dyn Store>,
    presence: Arc<Presence>,
    debts: Arc<DebtBook>,
    debts_changed: watch::Receiver<u64>,
    state: RwLock<State>,
    changed: watch::Sender<u64>,
    feed: Feed,
    /// Held from taking what is to be written to its end, so that nothing older is written over something newer.
    writing: tokio::sync::Mutex<()>,
}

impl Inventory {
    /// Takes the host's word that `guardian` is its own from now on: the next report is seconds away, and until then its
    /// VMs would look as if their own host could not open them.
    pub(crate) fn guardian_adopted(&self, host: &HostName, guardian: GuardianFacts) {
        let mut state = self.write();
        let Some(facts) = state
            .hosts
            .get_mut(host)
            .and_then(|reported| reported.seen.facts.as_mut())
        else {
            return;
        };
        let guardians = &mut Arc::make_mut(facts).guardians;
        guardians.retain(|known| known.id != guardian.id);
        for former in guardians.iter_mut().filter(|known| known.own) {
            former.own = false;
            former.standing = GuardianStanding::Retired;
        }
        guardians.insert(0, guardian);
        drop(state);
        self.tell(&News::host(host));
    }

    /// Takes an event of `host`. Returns the VMs of which it tells old news, since an answer of the host's has overtaken it: that
    /// is passed over. The host has to be asked for these again, because its clock may have been set back meanwhile.
    pub(crate) fn apply(
        &self,
        host: &HostName,
        event: AgentEvent,
        now: OffsetDateTime,
    ) -> Vec<VmId> {
        // Before the lock: it takes a moment.
        let heard = Heard::of(host, event, now);
        self.presence.heard(host);
        let mut state = self.write();
        let reported = state.hosts.entry(host.clone()).or_default();
        reported.seen.last_seen = Some(now);
        let mut overtaken = Vec::new();
        let news = match heard {
            Heard::Snapshot { facts, vms } => {
                let mut news = News::host(host);
                news.vms = state.replace_all(host, vms, &mut overtaken);
                let reported = state.hosts.entry(host.clone()).or_default();
                let online = reported.learn(facts.0, facts.1, now);
                reported.seen.tried = true;
                reported.seen.snapshots += 1;
                state.set_online(host, online);
                news
            }
            Heard::Facts(facts, size) => {
                let before = reported.seen.facts.clone();
                reported.learn(facts, size, now);
                match (&before, &reported.seen.facts) {
                    (Some(before), Some(now)) if before.differ_in_measurements_only(now) => {
                        return overtaken;
                    }
                    _ => News::host(host),
                }
            }
            Heard::Alive(measured) => {
                reported.measure(&measured, now);
                return overtaken;
            }
            Heard::Changed(told) => {
                let (id, count) = (told.vm.id, reported.vms.len());
                if state.has_newer(host, &told) {
                    return vec![id];
                }
                match state.put(host, told.vm, told.size, count) {
                    true => News::vm(id),
                    false => return overtaken,
                }
            }
            Heard::Removed(id) => {
                state.remove(host, id);
                News::vm(id)
            }
            Heard::Nothing => return overtaken,
        };
        drop(state);
        self.tell(&news);
        overtaken
    }

    /// Takes what a host answered about one VM to a question of that time: none when it is not there. What was taken meanwhile
    /// may be newer.
    pub(crate) fn answer(
        &self,
        host: &HostName,
        id: VmId,
        answer: Option<VmObserved>,
        asked: Instant,
    ) {
        // An answer about another VM is none.
        if answer.as_ref().is_some_and(|vm| vm.id != id) {
            return;
        }
        let answer = answer.map(|vm| Told::of(host, vm, OffsetDateTime::now_utc()));
        let mut state = self.write();
        let reported = state.hosts.get(host);
        let count = reported.map_or(0, |host| host.vms.len());
        let known = reported.and_then(|host| host.vms.get(&id));
        let said = answer.as_ref().map(|told| &told.vm);
        if known.is_some_and(|known| !known.is_before(asked, said)) {
            return;
        }
        match answer {
            Some(Told { vm, size, at }) => {
                state.put(host, vm, size, count);
                let reported = state.hosts.get_mut(host);
                if let Some(held) = reported.and_then(|host| host.vms.get_mut(&id)) {
                    held.answered = Some(at);
                }
            }
            None => state.remove(host, id),
        }
        drop(state);
        self.tell(&News::vm(id));
    }

    /// Takes what the controller knows of one VM on a host before that host says it: none when it is not there. Older news is
    /// ignored.
    pub(crate) fn observe(&self, host: &HostName, id: VmId, vm: Option<VmObserved>) {
        // An answer about another VM is none.
        if vm.as_ref().is_some_and(|vm| vm.id != id) {
            return;
        }
        let mut state = self.write();
        match vm {
            Some(vm) => {
                let vm = own_word(host, vm, OffsetDateTime::now_utc());
                let size = size_of(&vm);
                let reported = state.hosts.get(host);
                let count = reported.map_or(0, |host| host.vms.len());
                let known = reported.and_then(|host| host.vms.get(&id));
                if known.is_none_or(|known| known.vm.observed <= vm.observed) {
                    state.put(host, vm, size, count);
                }
            }
            None => state.remove(host, id),
        }
        drop(state);
        self.tell(&News::vm(id));
    }

    /// Corrects what is known of one VM by what its host has just answered.
    pub(crate) fn amend(&self, host: &HostName, id: VmId, amend: impl FnOnce(&mut VmObserved)) {
        let mut state = self.write();
        let known = state.hosts.get_mut(host);
        let Some(held) = known.and_then(|reported| reported.vms.get_mut(&id)) else {
            return;
        };
        amend(Arc::make_mut(&mut held.vm));
        held.recorded = None;
        let vm = Arc::clone(&held.vm);
        state.file(host, id, Some(vm));
        state.dirty.insert((host.clone(), id));
        drop(state);
        self.tell(&News::vm(id));
    }

    /// Every domain of one host as it is there, also a copy that is not the VM.
    pub(crate) fn copies_on(&self, host: &HostName) -> Vec<Arc<VmObserved>> {
        let state = self.read();
        let reported = state.hosts.get(host);
        reported
            .into_iter()
            .flat_map(|reported| reported.vms.values())
            .map(|held| Arc::clone(&held.vm))
            .collect()
    }

    pub(crate) fn lost(&self, host: &HostName) {
        self.presence.lost(host);
        let mut state = self.write();
        let reported = state.hosts.entry(host.clone()).or_default();
        let news = reported.seen.online || !reported.seen.tried;
        reported.seen.tried = true;
        state.set_online(host, false);
        drop(state);
        if news {
            self.tell(&News::host(host));
        }
    }

    /// From now on these copies count for nothing; durably.
    pub(crate) async fn supersede(&self, copies: Vec<Superseded>) -> Result<(), StoreError> {
        if copies.is_empty() {
            return Ok(());
        }
        let mut txn = Txn::new();
        for copy in &copies {
            txn = txn.put_json(Superseded::key(&copy.host, copy.spec.id), copy)?;
        }
        let _ = self.store.commit(txn).await?;
        let mut state = self.write();
        for copy in copies {
            let id = copy.spec.id;
            state.superseded.insert(copy.id(), copy);
            state.choose(id);
        }
        drop(state);
        self.tell(&News::everything());
        Ok(())
    }

    /// Whether the VM was rebuilt elsewhere, and the copy on `host` is still to be ended.
    pub(crate) fn is_superseded(&self, host: &HostName, vm: VmId) -> bool {
        self.read().superseded.contains_key(&(host.clone(), vm))
    }

    /// Copies that are still to be ended.
    pub(crate) fn superseded(&self) -> Vec<Superseded> {
        self.read().superseded.values().cloned().collect()
    }

    /// The copy is gone: what the host says of the VM counts again.
    pub(crate) async fn settle(&self, host: &HostName, vm: VmId) -> Result<(), StoreError> {
        let txn = Txn::new().delete(Superseded::key(host, vm));
        let _ = self.store.commit(txn).await?;
        let mut state = self.write();
        state.superseded.remove(&(host.clone(), vm));
        state.choose(vm);
        drop(state);
        self.tell(&News::vm(vm));
        Ok(())
    }

    /// Hosts that have, or had when they were last heard, a copy that counts.
    pub(crate) fn hosts_with(&self, id: VmId) -> Vec<HostName> {
        let state = self.read();
        let copies = state.catalogue.counting(id).iter();
        copies.map(|vm| vm.host.clone()).collect()
    }

    /// Forgets all VMs, so that only what hosts say now counts.
    pub(crate) fn forget_vms(&self) {
        let mut state = self.write();
        let hosts: Vec<_> = state.hosts.keys().cloned().collect();
        for host in hosts {
            state.forget(&host);
        }
    }

    /// Whether a host answers.
    pub(crate) fn online(&self, host: &HostName) -> bool {
        self.read().online(host)
    }

    /// Whether a host was called since the start, with whatever success.
    pub(crate) fn tried(&self, host: &HostName) -> bool {
        let state = self.read();
        state.hosts.get(host).is_some_and(|host| host.seen.tried)
    }

    /// The last sign of life of a host.
    pub(crate) fn last_seen(&self, host: &HostName) -> Option<OffsetDateTime> {
        self.read().hosts.get(host)?.seen.last_seen
    }

    /// Since when the VM on that host has been as its host reports it.
    pub(crate) fn state_since(&self, vm: &VmObserved) -> OffsetDateTime {
        let state = self.read();
        let reported = state.hosts.get(&vm.host);
        let held = reported.and_then(|reported| reported.vms.get(&vm.id));
        held.map_or(vm.observed, |held| held.since)
    }

    pub(crate) fn seen(&self, host: &HostName) -> Seen {
        let reported = self.read().hosts.get(host).map(|host| host.seen.clone());
        let mut seen = reported.unwrap_or_default();
        seen.answers = seen.online;
        seen.online &= !self.debts.holds_up(host.as_str());
        seen
    }

    /// The VMs that agents ask for since their hosts have booted; of hosts that answer and owe nothing.
    pub(crate) fn asking(&self) -> Vec<(HostName, Vec<VmId>)> {
        let state = self.read();
        let online = state.hosts.iter().filter(|(_, host)| host.seen.online);
        let asking = online.filter_map(|(host, reported)| {
            let boot = reported.seen.facts.as_ref()?.boot.as_ref()?;
            (!boot.asking.is_empty()).then(|| (host.clone(), boot.asking.clone()))
        });
        asking
            .filter(|(host, _)| !self.debts.holds_up(host.as_str()))
            .collect()
    }

    /// Something that is not in here, and that whoever waits for a change waits for too, has changed.
    pub(crate) fn touch(&self) {
        self.tell(&News::everything());
    }

    /// No job works on the VM any more.
    pub(crate) fn released(&self, vm: VmId) {
        self.tell(&News::vm(vm));
    }

    /// Wakes at once, for what is known already, and at every change; a sign of life without news is none.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        let mut changes = self.changed.subscribe();
        changes.mark_changed();
        changes
    }

    /// What changes, from now on; everything at first.
    pub(crate) fn news(&self) -> Reader {
        self.feed.subscribe()
    }

    fn tell(&self, news: &News) {
        self.feed.send(news);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Every VM once, by name.
    pub(crate) fn vms(&self) -> Vec<Arc<VmObserved>> {
        self.read().catalogue.all().cloned().collect()
    }

    /// How many VMs Fleetward manages.
    pub(crate) fn managed(&self) -> usize {
        self.read().catalogue.managed()
    }

    /// The VMs of a group.
    pub(crate) fn vms_of(&self, group: &GroupName) -> Vec<Arc<VmObserved>> {
        let state = self.read();
        state.catalogue.of_group(group).cloned().collect()
    }

    /// At most so many VMs in the order of [`vms`](Self::vms), those that follow `vm` if it is given.
    pub(crate) fn some_after(&self, vm: Option<&VmObserved>, limit: usize) -> Vec<Arc<VmObserved>> {
        let catalogue = &self.read().catalogue;
        match vm {
            None => catalogue.all().take(limit).cloned().collect(),
            Some(vm) => catalogue.after(vm).take(limit).cloned().collect(),
        }
    }

    /// At most so many VMs in that order, from the first that is called `name` or would follow it.
    pub(crate) fn some_from(&self, name: &VmName, limit: usize) -> Vec<Arc<VmObserved>> {
        let catalogue = &self.read().catalogue;
        catalogue.from(name).take(limit).cloned().collect()
    }

    /// VMs by name and, of one name, by id, so that one which moves keeps its place: at least so many, and the others of the
    /// last one's name.
    pub(crate) fn by_name(&self, from: Bound<&VmName>, least: usize) -> Vec<Arc<VmObserved>> {
        let state = self.read();
        let catalogue = &state.catalogue;
        let following: Box<dyn Iterator<Item = &Arc<VmObserved>>> = match from {
            Bound::Unbounded => Box::new(catalogue.all()),
            Bound::Included(name) => Box::new(catalogue.from(name)),
            Bound::Excluded(name) => {
                let from = catalogue.from(name);
                Box::new(from.skip_while(move |vm| vm.name == *name))
            }
        };
        let mut some: Vec<Arc<VmObserved>> = Vec::new();
        for vm in following {
            if some.len() >= least && some.last().is_some_and(|last| last.name != vm.name) {
                break;
            }
            some.push(Arc::clone(vm));
        }
        some.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        some
    }

    /// One VM by its id.
    pub(crate) fn vm(&self, id: VmId) -> Option<Arc<VmObserved>> {
        self.read().catalogue.vm(id).cloned()
    }

    /// One VM by its name or id; ours before domains that others made, and the name that Fleetward gave a VM before the one
    /// that somebody gave its domain.
    pub(crate) fn find(&self, name_or_id: &str) -> Result<Arc<VmObserved>, Failure> {
        let missing = || Failure::new(ErrorCode::VmNotFound, format!("no VM {name_or_id}"));
        if let Ok(id) = name_or_id.parse::<VmId>() {
            return self.vm(id).ok_or_else(missing);
        }
        let name: VmName = name_or_id.parse().map_err(|error| {
            Failure::new(ErrorCode::InvalidArgument, "that is no VM's name")
                .because(error)
                .fix("fleetward vm list")
        })?;
        let vms = self.called(&name);
        let named = |vm: &&Arc<VmObserved>| vm.name == name;
        let ours = |vm: &&Arc<VmObserved>| vm.is_managed();
        let renamed = |vm: &&Arc<VmObserved>| vm.domain_name.as_deref() == Some(name.as_str());
        let mut same = vms.iter().filter(|vm| named(vm) && ours(vm));
        let found = same.next();
        if let (Some(one), Some(other)) = (found, same.next()) {
            return Err(same_name(&name, one, other));
        }
        let found = found.or_else(|| vms.iter().find(|vm| renamed(vm) && ours(vm)));
        let found = found.or_else(|| vms.iter().find(named));
        found.cloned().ok_or_else(missing)
    }

    /// VMs of which any copy, or its domain, has that name; each once, in the order of [`vms`](Self::vms).
    fn called(&self, name: &VmName) -> Vec<Arc<VmObserved>> {
        let state = self.read();
        let copies = state.catalogue.named(name.as_str());
        let mut vms: Vec<_> = copies
            .filter_map(|copy| state.catalogue.vm(copy.id).cloned())
            .collect();
        vms.sort_by(|a, b| (&a.name, &a.host, a.id).cmp(&(&b.name, &b.host, b.id)));
        vms.dedup_by_key(|vm| vm.id);
        vms
    }

    /// A copy of a domain of that name, on whatever host, of any VM but `except`.
    pub(crate) fn named(&self, name: &VmName, except: Option<VmId>) -> Option<(HostName, VmId)> {
        let state = self.read();
        let copies = state.catalogue.named(name.as_str());
        let found = copies
            .filter(|vm| Some(vm.id) != except)
            .find(|vm| vm.name == *name || vm.domain_name.as_deref() == Some(name.as_str()));
        found.map(|vm| (vm.host.clone(), vm.id))
    }

    /// The VMs of one host, each as what it counts: a copy that only waits to be cleaned up is not there.
    pub(crate) fn vms_on(&self, host: &HostName) -> Vec<Arc<VmObserved>> {
        self.read().catalogue.on(host).cloned().collect()
    }

    /// How many these are.
    pub(crate) fn count_on(&self, host: &HostName) -> usize {
        self.read().catalogue.count_on(host)
    }

    /// Takes note that a host's events were given up because of their size.
    pub(crate) fn refused_events(&self, host: &HostName, failure: &Failure) {
        let mut state = self.write();
        let reported = state.hosts.entry(host.clone()).or_default();
        reported.refused.events(failure);
    }

    /// What a host says that is more than is taken, as warnings.
    pub(crate) fn refused_reports(&self, host: &HostName) -> Vec<String> {
        let state = self.read();
        let reported = state.hosts.get(host);
        reported
            .map(|reported| reported.refused.warnings())
            .unwrap_or_default()
    }

    /// What is known now. Debts are kept elsewhere: which copies count is looked at anew after they have changed.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        let at = *self.debts_changed.borrow();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if state.debts_seen == at {
            return state;
        }
        drop(state);
        drop(self.write());
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let at = *self.debts_changed.borrow();
        if state.debts_seen != at {
            state.debts_seen = at;
            let debts = self.debts.all().into_iter();
            let removals = debts.filter(|debt| debt.debtor.removes);
            let owed = removals.filter_map(|debt| {
                let host = debt.debtor.key.parse().ok()?;
                Some((host, vm_of(&debt)?))
            });
            state.set_owed(owed.collect());
        }
        state
    }
}

impl State {
    /// Takes a report of so many bytes from a host with so many VMs, or leaves the VM as it was last seen. Whether anything is
    /// new.
    fn put(&mut self, host: &HostName, vm: VmObserved, size: usize, count: usize) -> bool {
        let reported = self.hosts.entry(host.clone()).or_default();
        let id = vm.id;
        let known = reported.vms.get(&id);
        if !reported.refused.judge(&vm, size, known.is_some(), count) {
            return false;
        }
        let difference = known.map_or(Difference::More, |known| {
            Difference::between(&known.vm, &vm)
        });
        let since = match known {
            Some(known) if known.vm.state == vm.state => known.since,
            Some(_) | None => vm.observed,
        };
        let recorded = known.and_then(|known| known.recorded);
        let has_moved = known.is_some_and(|known| known.has_moved);
        let vm = Arc::new(vm);
        let held = Held {
            vm: Arc::clone(&vm),
            since,
            recorded: recorded.filter(|_| difference != Difference::More),
            has_moved: has_moved || difference == Difference::Condition,
            at: Instant::now(),
            answered: None,
        };
        reported.vms.insert(id, held);
        match difference {
            Difference::Nothing => {}
            Difference::Condition => {
                let behind = self.behind.entry(host.clone());
                behind.or_insert_with(Instant::now);
            }
            Difference::More => {
                self.dirty.insert((host.clone(), id));
            }
        }
        self.file(host, id, Some(vm));
        difference != Difference::Nothing
    }

    fn remove(&mut self, host: &HostName, id: VmId) {
        let reported = self.hosts.entry(host.clone()).or_default();
        reported.vms.remove(&id);
        reported.refused.forget(id);
        self.file(host, id, None);
        self.dirty.insert((host.clone(), id));
    }

    /// Whether an answer that is here has overtaken that event.
    fn has_newer(&self, host: &HostName, event: &Told) -> bool {
        let reported = self.hosts.get(host);
        let known = reported.and_then(|host| host.vms.get(&event.vm.id));
        known.is_some_and(|known| known.overtook(event.at))
    }

    /// Takes all that a host has, and says of which VMs that is news. Those of which an answer is newer stay as they are.
    fn replace_all(
        &mut self,
        host: &HostName,
        vms: Vec<Told>,
        overtaken: &mut Vec<VmId>,
    ) -> HashSet<VmId> {
        let reported = self.hosts.entry(host.clone()).or_default();
        reported.refused = RefusedReports::default();
        let former: BTreeSet<_> = reported.vms.keys().copied().collect();
        let mut news = HashSet::new();
        let mut has = BTreeSet::new();
        for told in vms {
            let id = told.vm.id;
            if self.has_newer(host, &told) {
                overtaken.push(id);
            } else if self.put(host, told.vm, told.size, has.len()) {
                news.insert(id);
            }
            has.insert(id);
        }
        for id in former.difference(&has) {
            self.remove(host, *id);
            news.insert(*id);
        }
        news
    }

    /// Forgets all that a host has.
    fn forget(&mut self, host: &HostName) {
        let Some(reported) = self.hosts.get_mut(host) else {
            return;
        };
        for id in std::mem::take(&mut reported.vms).into_keys() {
            self.file(host, id, None);
            self.dirty.insert((host.clone(), id));
        }
    }

    fn file(&mut self, host: &HostName, id: VmId, vm: Option<Arc<VmObserved>>) {
        self.catalogue.put(host, id, vm);
        self.choose(id);
    }

    /// Looks anew which copy of a VM is the VM.
    fn choose(&mut self, id: VmId) {
        let Self {
            hosts,
            catalogue,
            superseded,
            owed,
            ..
        } = self;
        catalogue.choose(id, |vm| {
            let is_in_none = superseded.is_empty() && owed.is_empty();
            let waits = !is_in_none && {
                let copy = (vm.host.clone(), id);
                superseded.contains_key(&copy) || owed.contains(&copy)
            };
            let online = hosts.get(&vm.host).is_some_and(|host| host.seen.online);
            match (waits, online) {
                (true, _) => Weight::Nothing,
                (false, true) => Weight::Online,
                (false, false) => Weight::Away,
            }
        });
    }

    /// Of two copies the one whose host answers may be the VM.
    fn set_online(&mut self, host: &HostName, online: bool) {
        let Some(reported) = self.hosts.get_mut(host) else {
            return;
        };
        if std::mem::replace(&mut reported.seen.online, online) == online {
            return;
        }
        let ids = reported.vms.keys().copied();
        let shared: Vec<_> = ids.filter(|id| self.catalogue.is_shared(*id)).collect();
        for id in shared {
            self.choose(id);
        }
    }

    fn set_owed(&mut self, owed: BTreeSet<(HostName, VmId)>) {
        let former = std::mem::replace(&mut self.owed, owed);
        let changed: Vec<_> = former
            .symmetric_difference(&self.owed)
            .map(|(_, id)| *id)
            .collect();
        for id in changed {
            self.choose(id);
        }
    }

    fn online(&self, host: &HostName) -> bool {
        self.hosts.get(host).is_some_and(|host| host.seen.online)
    }
}
