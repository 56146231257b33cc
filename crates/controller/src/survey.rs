//! Many VMs against many hosts, from what hosts have reported: as a matrix, and as counts by host.
//!
//! All answers except CPU compatibility come from reports that are at most seconds old. For the matrix, hosts are asked only
//! about VMs that run under KVM on another CPU model than the destination's; for counts nobody is asked, and such a
//! destination counts as none. No key protector is opened, so a granted but damaged one shows only in the check of a single
//! VM, or in its migration.

use crate::admission::Disputes;
use crate::check::{AtHome, against, judge};
use crate::hosts::HostRecord;
use crate::unseen::Unseen;
use crate::world::{HostFactsNow, World};
use fleetward_api::controller::{CheckView, CodeCount, HostCheckView};
use fleetward_model::host::HostFacts;
use fleetward_model::preflight::{Incoming, Mode, Opening};
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, HostName, VmId, VmName};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Questions to hosts at once.
const ASKED_AT_ONCE: usize = 16;
/// Pairs that are judged before others get their turn.
const SLICE: usize = 100;

/// Checks each VM against its host; stopped VMs for a move while stopped.
///
/// # Errors
/// `HOST_NOT_FOUND`.
pub(crate) async fn survey(
    world: &World,
    pairs: &[(Arc<VmObserved>, &HostName)],
    offline: bool,
) -> Result<Vec<CheckView>, Failure> {
    let mut known = Known::of(world);
    for (vm, to) in pairs {
        known.learn(&vm.host)?;
        known.learn(to)?;
    }
    let known = &known;
    let mut of_vms = HashMap::new();
    for (vm, _) in pairs {
        of_vms.entry(vm.id).or_insert_with(|| known.unseen(vm));
    }
    let checks = pairs.iter().map(|(vm, to)| {
        let unseen = &of_vms[&vm.id];
        let offline = offline || vm.state.stands_still();
        async move {
            match known.judge(vm, unseen, to, offline) {
                Some(checked) => Ok(checked),
                None => against(world, &AtHome::ask(world, vm).await, to, offline).await,
            }
        }
    });
    let checks: Vec<_> = checks.collect();
    stream::iter(checks)
        .buffered(ASKED_AT_ONCE)
        .try_collect()
        .await
}

/// Counts, for each of `hosts`, which of its VMs can start there, and which another host of its group can take. A host that
/// leaves the fleet meanwhile is left out.
pub(crate) async fn by_host(world: &World, hosts: &[Arc<HostRecord>]) -> Vec<HostCheckView> {
    let mut known = Known::of(world);
    let mut pace = Pace::default();
    let mut counts = Vec::with_capacity(hosts.len());
    for host in hosts {
        if known.learn(&host.name).is_err() {
            continue;
        }
        let others = world.hosts.of_group(&host.group);
        // The next ones first, so that not all VMs of a group are tried on the same host.
        let (before, after): (Vec<_>, Vec<_>) = others
            .iter()
            .map(|other| &other.name)
            .filter(|other| **other != host.name)
            .partition(|other| **other < host.name);
        let others: Vec<_> = after.into_iter().chain(before).collect();
        let mut tally = Tally::default();
        for vm in world.inventory.vms_on(&host.name) {
            if !vm.is_managed() {
                continue;
            }
            tally.vms += 1;
            pace.step().await;
            let unseen = known.unseen(&vm);
            let mut remarks = Remarks::default();
            let here = known.judge(&vm, &unseen, &host.name, false);
            remarks.note(here.as_ref());
            match here {
                Some(checked) if checked.possible => tally.can_start += 1,
                checked => tally.refused(checked.as_ref()),
            }
            let offline = vm.state.stands_still();
            let mut first: Option<Option<CheckView>> = None;
            let mut moves = None;
            for to in &others {
                pace.step().await;
                if known.learn(to).is_err() {
                    continue;
                }
                match known.judge(&vm, &unseen, to, offline) {
                    Some(checked) if checked.possible => {
                        moves = Some(checked);
                        break;
                    }
                    checked => first = first.or(Some(checked)),
                }
            }
            let first = first.flatten();
            match &moves {
                Some(_) => tally.can_move += 1,
                None => tally.refused(first.as_ref()),
            }
            remarks.note(moves.as_ref().or(first.as_ref()));
            tally.remark(remarks);
        }
        counts.push(tally.of(host, world.inventory.seen(&host.name).online));
    }
    counts
}

/// Lets others have their turn now and then.
#[derive(Default)]
struct Pace(usize);

impl Pace {
    async fn step(&mut self) {
        self.0 += 1;
        if self.0.is_multiple_of(SLICE) {
            tokio::task::yield_now().await;
        }
    }
}

/// Counts of one host.
#[derive(Default)]
struct Tally {
    vms: u32,
    can_start: u32,
    can_move: u32,
    in_the_way: BTreeMap<ErrorCode, u32>,
    remarks: BTreeMap<ErrorCode, u32>,
}

/// What there is to know of one VM although it can start and move: each code once.
#[derive(Default)]
struct Remarks(BTreeSet<ErrorCode>);

impl Remarks {
    fn note(&mut self, checked: Option<&CheckView>) {
        let findings = checked.iter().flat_map(|checked| &checked.findings);
        let remarks = findings.filter(|finding| !finding.blocking);
        self.0.extend(remarks.map(|finding| finding.code));
    }
}

impl Tally {
    fn remark(&mut self, remarks: Remarks) {
        for code in remarks.0 {
            *self.remarks.entry(code).or_default() += 1;
        }
    }

    /// None: no other host is there to be judged, or none of the same CPU model.
    fn refused(&mut self, checked: Option<&CheckView>) {
        let code = checked.and_then(|checked| checked.code);
        let code = code.unwrap_or(ErrorCode::NoHostFits);
        *self.in_the_way.entry(code).or_default() += 1;
    }

    fn of(self, host: &HostRecord, online: bool) -> HostCheckView {
        HostCheckView {
            host: host.name.clone(),
            group: host.group.clone(),
            online,
            vms: self.vms,
            can_start: self.can_start,
            can_move: self.can_move,
            in_the_way: counts(self.in_the_way),
            remarks: counts(self.remarks),
            // of the host itself, said by who shows it
            warnings: Vec::new(),
        }
    }
}

fn counts(of: BTreeMap<ErrorCode, u32>) -> Vec<CodeCount> {
    let counts = of.into_iter();
    counts.map(|(code, vms)| CodeCount { code, vms }).collect()
}

/// What is known of hosts, looked up once each.
struct Known<'a> {
    world: &'a World,
    hosts: HashMap<HostName, Reported>,
    disputes: Disputes<'a>,
}

struct Reported {
    facts: HostFactsNow,
    /// Every domain there, also a copy that is not the VM.
    ids: HashSet<VmId>,
    /// Two may have one name, where Fleetward knows one of them by another than libvirt.
    names: HashMap<VmName, Vec<VmId>>,
    /// Whether it answers, and has to do anything for jobs that ended without it.
    owes: bool,
}

impl Reported {
    /// Whether another domain there has the VM's name.
    fn has_other_of(&self, vm: &VmObserved) -> bool {
        let named = self.names.get(&vm.name);
        named.is_some_and(|ids| ids.iter().any(|id| *id != vm.id))
    }
}

impl<'a> Known<'a> {
    fn of(world: &'a World) -> Self {
        Self {
            world,
            hosts: HashMap::new(),
            disputes: Disputes::now(world),
        }
    }

    /// # Errors
    /// `HOST_NOT_FOUND`.
    fn learn(&mut self, host: &HostName) -> Result<(), Failure> {
        if !self.hosts.contains_key(host) {
            let facts = HostFactsNow::of(self.world, host)?;
            let copies = self.world.inventory.copies_on(host);
            let mut names: HashMap<_, Vec<_>> = HashMap::new();
            for vm in &copies {
                names.entry(vm.name.clone()).or_default().push(vm.id);
            }
            let owes = facts.online() && !self.world.debts.of(host.as_str()).is_empty();
            let reported = Reported {
                facts,
                owes,
                ids: copies.iter().map(|vm| vm.id).collect(),
                names,
            };
            self.hosts.insert(host.clone(), reported);
        }
        Ok(())
    }

    /// What the rules do not see of a VM.
    fn unseen<'v>(&self, vm: &'v VmObserved) -> Unseen<'v>
    where
        'a: 'v,
    {
        Unseen::of(self.world, vm, None, self.disputes.refusal(vm))
    }

    /// One VM against one host; both hosts are known. None where the hosts have to be asked.
    fn judge(
        &self,
        vm: &VmObserved,
        unseen: &Unseen<'_>,
        to: &HostName,
        offline: bool,
    ) -> Option<CheckView> {
        let (source, there) = (&self.hosts[&vm.host].facts, &self.hosts[to]);
        let destination = &there.facts;
        let mode = match (offline, vm.host == *to) {
            (_, true) => Mode::Start,
            (true, false) => Mode::Stopped,
            (false, false) => Mode::Live,
        };
        if mode == Mode::Live && must_ask(vm, source.facts(), destination.facts()) {
            return None;
        }
        let incoming = destination.online().then(|| Incoming {
            uuid_taken: Some(there.ids.contains(&vm.id)),
            name_taken: Some(there.has_other_of(vm)),
            cpu_problem: None,
            flash_problem: None,
            opening: opening(vm, destination.facts()),
        });
        let at_home = source.facts().map(|facts| opening(vm, Some(facts)));
        let world = self.world;
        let checked = judge(world, mode, vm, source, destination, at_home, incoming);
        Some(unseen.add(mode, checked, there.owes))
    }
}

/// Under translation every CPU is the same; under KVM one of the same model is.
fn must_ask(vm: &VmObserved, here: Option<&HostFacts>, there: Option<&HostFacts>) -> bool {
    let (Some(here), Some(there)) = (here, there) else {
        return false; // said by the rules
    };
    vm.accelerator == "kvm" && here.cpu_model != there.cpu_model
}

/// Whether a host holds a private key that the VM's key is wrapped for.
fn opening(vm: &VmObserved, facts: Option<&HostFacts>) -> Opening {
    if !vm.tpm.enabled {
        return Opening::NoTpm;
    }
    let guardians = facts.map(|facts| facts.guardians.as_slice());
    let held = guardians
        .unwrap_or_default()
        .iter()
        .filter(|g| g.has_private_key);
    let mut held = held.filter(|g| vm.tpm.guardians.contains(&g.id));
    if held.next().is_some() {
        Opening::Yes
    } else {
        Opening::NotGranted
    }
}
