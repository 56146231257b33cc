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

mod claims;

use self::claims::{own_facts, own_word, same_name, wins};
use crate::debts::subject;
use crate::presence::Presence;
use crate::refused_reports::RefusedReports;
use fleetward_api::agent::{AgentEvent, size_of};
use fleetward_jobs::DebtBook;
use fleetward_model::guardian::{GuardianFacts, GuardianStanding};
use fleetward_model::host::HostFacts;
use fleetward_model::vm::{VmObserved, VmReport, VmSpec};
use fleetward_model::{ErrorCode, Failure, HostName, VmId, VmName};
use fleetward_store::{MAX_OPERATIONS, Store, StoreError, StoreExt, Txn};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use time::OffsetDateTime;
use tokio::sync::watch;

const VMS: &str = "seen-vm/";
const FACTS: &str = "seen-facts/";
const SUPERSEDED: &str = "superseded/";
/// What changes all the time, and is never asked for as it was.
pub(crate) const WITHOUT_HISTORY: &[&str] = &[VMS, FACTS];
/// Facts change with every report; this often is enough for a restart.
const FACTS_EVERY: time::Duration = time::Duration::seconds(60);

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
    /// Whether it was called since the start, with whatever success.
    pub(crate) tried: bool,
    vms: BTreeMap<VmId, Arc<VmObserved>>,
    /// Since when each VM has been in the state it is in.
    since: BTreeMap<VmId, OffsetDateTime>,
    /// What it said that was more than is taken.
    refused: RefusedReports,
}

impl Seen {
    /// Since when a VM that is reported so now has been in its state.
    fn since(&self, vm: &VmObserved) -> OffsetDateTime {
        match (self.vms.get(&vm.id), self.since.get(&vm.id)) {
            (Some(before), Some(since)) if before.state == vm.state => *since,
            (Some(before), None) if before.state == vm.state => before.observed,
            (Some(_) | None, Some(_) | None) => vm.observed,
        }
    }

    /// Takes a report of so many bytes, or leaves the VM as it was last seen.
    fn put(&mut self, vm: VmObserved, size: usize) {
        let known = self.vms.contains_key(&vm.id);
        if self.refused.judge(&vm, size, known, self.vms.len()) {
            self.since.insert(vm.id, self.since(&vm));
            self.vms.insert(vm.id, Arc::new(vm));
        }
    }

    fn remove(&mut self, id: VmId) {
        self.since.remove(&id);
        self.vms.remove(&id);
        self.refused.forget(id);
    }

    /// Takes facts of so many bytes, or keeps those of before. Whether there are any then.
    fn learn(&mut self, facts: HostFacts, size: usize, now: OffsetDateTime) -> bool {
        if self.refused.judge_facts(size) {
            self.facts = Some(Arc::new(facts));
            self.reported = Some(now);
        }
        self.facts.is_some()
    }
}

#[derive(Debug, Default)]
struct State {
    hosts: HashMap<HostName, Seen>,
    /// Keys of the store that are behind memory.
    dirty: BTreeSet<(HostName, VmId)>,
    facts_written: HashMap<HostName, OffsetDateTime>,
    superseded: BTreeMap<(HostName, VmId), Superseded>,
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

    fn key(host: &HostName, vm: VmId) -> String {
        format!("{SUPERSEDED}{host}/{vm}")
    }
}

/// The inventory.
#[derive(Debug)]
pub(crate) struct Inventory {
    store: Arc<dyn Store>,
    presence: Arc<Presence>,
    debts: Arc<DebtBook>,
    state: RwLock<State>,
    changed: watch::Sender<u64>,
    /// Held from taking what is to be written to its end, so that nothing older is written over something newer.
    writing: tokio::sync::Mutex<()>,
}

/// A change that is not in the store yet: the VM with the time since which it is in its state, `None` when it is gone.
type UnwrittenVm = (HostName, VmId, Option<(Arc<VmObserved>, OffsetDateTime)>);

/// A VM as it is stored; programs of before the moment read and write the VM alone.
#[derive(Serialize, Deserialize)]
struct StoredVm<V> {
    #[serde(flatten)]
    vm: V,
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    state_since: Option<OffsetDateTime>,
}

#[derive(Serialize, Deserialize)]
struct StoredFacts {
    facts: HostFacts,
    #[serde(with = "time::serde::rfc3339")]
    reported: OffsetDateTime,
}

impl Inventory {
    /// Remembers what was last seen before the controller ended; nobody counts as online.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        presence: Arc<Presence>,
        debts: Arc<DebtBook>,
    ) -> Result<Self, StoreError> {
        let mut state = State::default();
        for (_, found) in store.list_json::<StoredVm<VmObserved>>(VMS).await?.0 {
            let StoredVm { vm, state_since } = found.value;
            let vm = vm.by_its_specification();
            let seen = state.hosts.entry(vm.host.clone()).or_default();
            seen.since.insert(vm.id, state_since.unwrap_or(vm.observed));
            seen.vms.insert(vm.id, Arc::new(vm));
        }
        for (_, found) in store.list_json::<StoredFacts>(FACTS).await?.0 {
            let StoredFacts { facts, reported } = found.value;
            let seen = state.hosts.entry(facts.host.clone()).or_default();
            seen.facts = Some(Arc::new(facts));
            seen.reported = Some(reported);
            seen.last_seen = Some(reported);
        }
        for (_, found) in store.list_json::<Superseded>(SUPERSEDED).await?.0 {
            state.superseded.insert(found.value.id(), found.value);
        }
        Ok(Self {
            store,
            presence,
            debts,
            state: RwLock::new(state),
            changed: watch::Sender::new(0),
            writing: tokio::sync::Mutex::default(),
        })
    }

    /// Takes the host's word that `guardian` is its own from now on: the next report is seconds away, and until then its
    /// VMs would look as if their own host could not open them.
    pub(crate) fn guardian_adopted(&self, host: &HostName, guardian: GuardianFacts) {
        let mut state = self.write();
        let Some(facts) = state
            .hosts
            .get_mut(host)
            .and_then(|seen| seen.facts.as_mut())
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
    }

    /// Takes an event of `host`.
    pub(crate) fn apply(&self, host: &HostName, event: AgentEvent, now: OffsetDateTime) {
        // Before the lock: it takes a moment.
        let heard = Heard::of(host, event, now);
        let mut state = self.write();
        let State { hosts, dirty, .. } = &mut *state;
        let seen = hosts.entry(host.clone()).or_default();
        seen.last_seen = Some(now);
        self.presence.heard(host);
        match heard {
            Heard::Snapshot { facts, vms } => {
                seen.refused = RefusedReports::default();
                let mut new = BTreeMap::new();
                for (vm, size) in vms {
                    let former = seen.vms.get(&vm.id).cloned();
                    let known = former.is_some() || new.contains_key(&vm.id);
                    match seen.refused.judge(&vm, size, known, new.len()) {
                        true => new.insert(vm.id, Arc::new(vm)),
                        false => former.and_then(|former| new.insert(vm.id, former)),
                    };
                }
                for id in seen.vms.keys().chain(new.keys()) {
                    if seen.vms.get(id) != new.get(id) {
                        dirty.insert((host.clone(), *id));
                    }
                }
                seen.since = new.iter().map(|(id, vm)| (*id, seen.since(vm))).collect();
                seen.vms = new;
                seen.online = seen.learn(facts.0, facts.1, now);
                seen.tried = true;
                seen.snapshots += 1;
            }
            Heard::Facts(facts, size) => {
                seen.learn(facts, size, now);
            }
            Heard::Changed(vm, size) => {
                dirty.insert((host.clone(), vm.id));
                seen.put(*vm, size);
            }
            Heard::Removed(id) => {
                dirty.insert((host.clone(), id));
                seen.remove(id);
            }
            Heard::Nothing => {}
        }
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Takes what a host said of one VM outside its events: none when it is not there. Older news is ignored.
    pub(crate) fn observe(&self, host: &HostName, id: VmId, vm: Option<VmObserved>) {
        let mut state = self.write();
        let seen = state.hosts.entry(host.clone()).or_default();
        match vm {
            // An answer about another VM is none.
            Some(vm) if vm.id != id => return,
            Some(vm) => {
                let vm = own_word(host, vm, OffsetDateTime::now_utc());
                let size = size_of(&vm);
                let newer = seen
                    .vms
                    .get(&id)
                    .is_none_or(|known| known.observed <= vm.observed);
                if newer {
                    seen.put(vm, size);
                }
            }
            None => seen.remove(id),
        }
        state.dirty.insert((host.clone(), id));
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Corrects what is known of one VM by what its host has just answered.
    pub(crate) fn amend(&self, host: &HostName, id: VmId, amend: impl FnOnce(&mut VmObserved)) {
        let mut state = self.write();
        let seen = state.hosts.entry(host.clone()).or_default();
        let Some(vm) = seen.vms.get_mut(&id) else {
            return;
        };
        amend(Arc::make_mut(vm));
        state.dirty.insert((host.clone(), id));
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Every domain of one host as it is there, also a copy that is not the VM.
    pub(crate) fn copies_on(&self, host: &HostName) -> Vec<Arc<VmObserved>> {
        let state = self.read();
        let seen = state.hosts.get(host);
        seen.into_iter()
            .flat_map(|seen| seen.vms.values().cloned())
            .collect()
    }

    pub(crate) fn lost(&self, host: &HostName) {
        self.presence.lost(host);
        let mut state = self.write();
        let seen = state.hosts.entry(host.clone()).or_default();
        seen.online = false;
        seen.tried = true;
        drop(state);
        self.changed.send_modify(|n| *n += 1);
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
        state
            .superseded
            .extend(copies.into_iter().map(|copy| (copy.id(), copy)));
        drop(state);
        self.changed.send_modify(|n| *n += 1);
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
        self.write().superseded.remove(&(host.clone(), vm));
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Hosts that have, or had when they were last heard, a copy that counts.
    pub(crate) fn hosts_with(&self, id: VmId) -> Vec<HostName> {
        let state = self.read();
        let copies = self.copies(&state).filter(|(_, vm)| vm.id == id);
        copies.map(|(_, vm)| vm.host.clone()).collect()
    }

    /// Forgets a host that left the fleet.
    pub(crate) async fn forget_host(&self, host: &HostName) -> Result<(), StoreError> {
        let seen = self.write().hosts.remove(host).unwrap_or_default();
        for id in seen.vms.keys() {
            let _ = self
                .store
                .commit(Txn::new().delete(vm_key(host, *id)))
                .await?;
        }
        let _ = self
            .store
            .commit(Txn::new().delete(format!("{FACTS}{host}")))
            .await?;
        let superseded = self.superseded().into_iter();
        for copy in superseded.filter(|copy| copy.host == *host) {
            self.settle(host, copy.spec.id).await?;
        }
        Ok(())
    }

    /// Forgets one copy, on a host that left the fleet.
    pub(crate) async fn forget_copy(&self, host: &HostName, vm: VmId) -> Result<(), StoreError> {
        if let Some(seen) = self.write().hosts.get_mut(host) {
            seen.remove(vm);
        }
        let txn = Txn::new()
            .delete(vm_key(host, vm))
            .delete(Superseded::key(host, vm));
        let _ = self.store.commit(txn).await?;
        self.write().superseded.remove(&(host.clone(), vm));
        self.touch();
        Ok(())
    }

    /// Forgets all VMs, so that only what hosts say now counts.
    pub(crate) fn forget_vms(&self) {
        let mut state = self.write();
        let State { hosts, dirty, .. } = &mut *state;
        for (host, seen) in hosts.iter_mut() {
            for id in std::mem::take(&mut seen.vms).into_keys() {
                dirty.insert((host.clone(), id));
            }
        }
    }

    /// Whether a host answers.
    pub(crate) fn online(&self, host: &HostName) -> bool {
        self.read().online(host)
    }

    /// The last sign of life of a host.
    pub(crate) fn last_seen(&self, host: &HostName) -> Option<OffsetDateTime> {
        self.read().hosts.get(host)?.last_seen
    }

    /// Since when the VM on that host has been as its host reports it.
    pub(crate) fn state_since(&self, vm: &VmObserved) -> OffsetDateTime {
        let state = self.read();
        let seen = state.hosts.get(&vm.host);
        let since = seen.and_then(|seen| seen.since.get(&vm.id)).copied();
        since.unwrap_or(vm.observed)
    }

    pub(crate) fn seen(&self, host: &HostName) -> Seen {
        let mut seen = self.read().hosts.get(host).cloned().unwrap_or_default();
        seen.answers = seen.online;
        seen.online &= !self.debts.holds_up(host.as_str());
        seen
    }

    /// The VMs that agents ask for since their hosts have booted; of hosts that answer and owe nothing.
    pub(crate) fn asking(&self) -> Vec<(HostName, Vec<VmId>)> {
        let state = self.read();
        let online = state.hosts.iter().filter(|(_, seen)| seen.online);
        let asking = online.filter_map(|(host, seen)| {
            let boot = seen.facts.as_ref()?.boot.as_ref()?;
            (!boot.asking.is_empty()).then(|| (host.clone(), boot.asking.clone()))
        });
        asking
            .filter(|(host, _)| !self.debts.holds_up(host.as_str()))
            .collect()
    }

    /// Something that is not in here, and that whoever waits for a change waits for too, has changed.
    pub(crate) fn touch(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Wakes at every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Every VM once, by name.
    pub(crate) fn vms(&self) -> Vec<Arc<VmObserved>> {
        let state = self.read();
        let mut best: HashMap<VmId, Arc<VmObserved>> = HashMap::new();
        for (online, vm) in self.copies(&state) {
            match best.get(&vm.id) {
                Some(other) if !wins(online, vm, state.online(&other.host), other) => {}
                _ => {
                    best.insert(vm.id, vm.clone());
                }
            }
        }
        let mut vms: Vec<_> = best.into_values().collect();
        vms.sort_by(|a, b| (&a.name, &a.host).cmp(&(&b.name, &b.host)));
        vms
    }

    /// One VM by its id.
    pub(crate) fn vm(&self, id: VmId) -> Option<Arc<VmObserved>> {
        let state = self.read();
        let mut best: Option<(bool, &Arc<VmObserved>)> = None;
        for (host, seen) in &state.hosts {
            let Some(vm) = seen.vms.get(&id) else {
                continue;
            };
            if state.superseded.contains_key(&(host.clone(), id)) || self.owed(host, id) {
                continue;
            }
            if best.is_none_or(|(online, other)| wins(seen.online, vm, online, other)) {
                best = Some((seen.online, vm));
            }
        }
        best.map(|(_, vm)| vm.clone())
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
        let vms = self.vms();
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

    /// A copy of a domain of that name, on whatever host, of any VM but `except`.
    pub(crate) fn named(&self, name: &VmName, except: Option<VmId>) -> Option<(HostName, VmId)> {
        let state = self.read();
        let copies = self.copies(&state);
        let found = copies
            .filter(|(_, vm)| Some(vm.id) != except)
            .find(|(_, vm)| vm.name == *name || vm.domain_name.as_deref() == Some(name.as_str()));
        found.map(|(_, vm)| (vm.host.clone(), vm.id))
    }

    /// The VMs of one host, each as what it counts: a copy that only waits to be cleaned up is not there.
    pub(crate) fn vms_on(&self, host: &HostName) -> Vec<Arc<VmObserved>> {
        self.vms()
            .into_iter()
            .filter(|vm| vm.host == *host)
            .collect()
    }

    /// Takes note that a host's events were given up because of their size.
    pub(crate) fn refused_events(&self, host: &HostName, failure: &Failure) {
        let mut state = self.write();
        let seen = state.hosts.entry(host.clone()).or_default();
        seen.refused.events(failure);
    }

    /// What a host says that is more than is taken, as warnings.
    pub(crate) fn refused_reports(&self, host: &HostName) -> Vec<String> {
        let state = self.read();
        let seen = state.hosts.get(host);
        seen.map(|seen| seen.refused.warnings()).unwrap_or_default()
    }

    /// Writes what changed to the store; on its return everything seen before the call is there.
    pub(crate) async fn flush(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        let _turn = self.writing.lock().await;
        let (vms, facts) = self.take_dirty(now);
        // All are written again after a failure: which of them were is not worth knowing.
        if let Err(error) = self.write_vms(&vms).await {
            let still_behind = vms.into_iter().map(|(host, id, _)| (host, id));
            self.write().dirty.extend(still_behind);
            return Err(error);
        }
        for (host, facts, reported) in facts {
            let stored = StoredFacts {
                facts: HostFacts::clone(&facts),
                reported,
            };
            let txn = Txn::new().put_json(format!("{FACTS}{host}"), &stored)?;
            let _ = self.store.commit(txn).await?;
        }
        Ok(())
    }

    /// In as few transactions as hold them: no two VMs depend on each other.
    async fn write_vms(&self, vms: &[UnwrittenVm]) -> Result<(), StoreError> {
        for some in vms.chunks(MAX_OPERATIONS) {
            let mut txn = Txn::new();
            for (host, id, vm) in some {
                let key = vm_key(host, *id);
                txn = match vm {
                    Some((vm, since)) => {
                        let stored = StoredVm {
                            vm: &**vm,
                            state_since: Some(*since),
                        };
                        txn.put_json(key, &stored)?
                    }
                    None => txn.delete(key),
                };
            }
            let _ = self.store.commit(txn).await?;
        }
        Ok(())
    }

    #[expect(clippy::type_complexity, reason = "two lists for the one caller above")]
    fn take_dirty(
        &self,
        now: OffsetDateTime,
    ) -> (
        Vec<UnwrittenVm>,
        Vec<(HostName, Arc<HostFacts>, OffsetDateTime)>,
    ) {
        let mut state = self.write();
        let State {
            hosts,
            dirty,
            facts_written,
            ..
        } = &mut *state;
        let vms = std::mem::take(dirty)
            .into_iter()
            .map(|(host, id)| {
                let vm = hosts.get(&host).and_then(|seen| {
                    let vm = seen.vms.get(&id)?;
                    let since = seen.since.get(&id).copied();
                    Some((vm.clone(), since.unwrap_or(vm.observed)))
                });
                (host, id, vm)
            })
            .collect();
        let mut facts = Vec::new();
        for (host, seen) in hosts.iter() {
            let (Some(latest), Some(reported)) = (&seen.facts, seen.reported) else {
                continue;
            };
            let written = facts_written.get(host);
            if seen.snapshots > 0 && written.is_none_or(|at| now - *at >= FACTS_EVERY) {
                facts_written.insert(host.clone(), now);
                facts.push((host.clone(), latest.clone(), reported));
            }
        }
        (vms, facts)
    }

    /// All copies that count for something, with whether their host answers.
    fn copies<'a>(&'a self, state: &'a State) -> impl Iterator<Item = (bool, &'a Arc<VmObserved>)> {
        let debts = !self.debts.is_empty();
        let counts = move |vm: &VmObserved| !debts || !self.owed(&vm.host, vm.id);
        state.copies().filter(move |(_, vm)| counts(vm))
    }

    /// Whether the host owes to remove what it has of the VM.
    fn owed(&self, host: &HostName, vm: VmId) -> bool {
        !self.debts.is_empty() && self.debts.removes(host.as_str(), &subject(vm))
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn copies(&self) -> impl Iterator<Item = (bool, &Arc<VmObserved>)> {
        let hosts = self.hosts.values();
        let all = hosts.flat_map(|seen| seen.vms.values().map(move |vm| (seen.online, vm)));
        all.filter(|(_, vm)| {
            // cloning a name for each is only worth it when there is anything to look for
            self.superseded.is_empty() || !self.superseded.contains_key(&(vm.host.clone(), vm.id))
        })
    }

    fn online(&self, host: &HostName) -> bool {
        self.hosts.get(host).is_some_and(|seen| seen.online)
    }
}

/// An event, measured, with what a host may say under its own name.
enum Heard {
    Snapshot {
        facts: (HostFacts, usize),
        vms: Vec<(VmObserved, usize)>,
    },
    Facts(HostFacts, usize),
    Changed(Box<VmObserved>, usize),
    Removed(VmId),
    /// A part of a snapshot: who reads the events puts them together.
    Nothing,
}

impl Heard {
    fn of(host: &HostName, event: AgentEvent, now: OffsetDateTime) -> Self {
        let measured = |vm: VmReport| {
            let vm = own_word(host, vm.digested(), now);
            let size = size_of(&vm);
            (vm, size)
        };
        let measured_facts = |facts: HostFacts| {
            let facts = own_facts(host, facts);
            let size = size_of(&facts);
            (facts, size)
        };
        match event {
            AgentEvent::Snapshot { facts, vms, .. } => Self::Snapshot {
                facts: measured_facts(*facts),
                vms: vms.into_iter().map(measured).collect(),
            },
            AgentEvent::Facts { facts, .. } => {
                let (facts, size) = measured_facts(*facts);
                Self::Facts(facts, size)
            }
            AgentEvent::VmChanged { vm } => {
                let (vm, size) = measured(*vm);
                Self::Changed(Box::new(vm), size)
            }
            AgentEvent::VmRemoved { id } => Self::Removed(id),
            AgentEvent::SnapshotPart { .. } => Self::Nothing,
        }
    }
}

fn vm_key(host: &HostName, id: VmId) -> String {
    format!("{VMS}{host}/{id}")
}
