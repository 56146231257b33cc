//! The inventory against what it stands for: all copies, walked through one by one.

use super::claims::wins;
use super::{Inventory, News, Superseded};
use crate::presence::Presence;
use fleetward_api::agent::AgentEvent;
use fleetward_jobs::DebtBook;
use fleetward_model::host::{HostFacts, Measurements};
use fleetward_model::vm::{VmObserved, VmReport, VmState};
use fleetward_model::{HostName, VmId};
use fleetward_store::{Range, SqliteStore, Store};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

const HOSTS: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 3] = ["web", "db", "mail"];

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time")
}

fn id(n: u8) -> VmId {
    VmId(Uuid::from_u128(u128::from(n) + 1))
}

fn name(text: &str) -> HostName {
    text.parse().expect("a name")
}

/// What one host has of one VM.
#[derive(Debug, Clone)]
struct Copy {
    vm: u8,
    name: &'static str,
    /// The domain's, where it is another.
    domain: Option<&'static str>,
    managed: bool,
    transit: Option<&'static str>,
    running: bool,
    group: &'static str,
    observed: i64,
}

impl Copy {
    /// A stopped VM like any other.
    const WEB: Self = Self {
        vm: 1,
        name: "web",
        domain: None,
        managed: true,
        transit: None,
        running: false,
        group: "default",
        observed: 0,
    };

    fn report(&self) -> VmReport {
        let created = "2026-01-01T00:00:00Z";
        let transit = self
            .transit
            .map(|side| json!({ "job": Uuid::nil(), "side": side }));
        let metadata = json!({
            "spec": {
                "id": id(self.vm), "name": self.name, "group": self.group, "profile": "linux", "cpus": 1,
                "memory": 1 << 30, "firmware": { "type": "uefi", "secure_boot": true }, "tpm": true,
                "disks": [], "created": created
            },
            "generation": 1, "transit": transit
        });
        let at = now() + time::Duration::seconds(self.observed);
        let at = at.format(&time::format_description::well_known::Rfc3339);
        serde_json::from_value(json!({
            "id": id(self.vm), "name": self.name, "domain_name": self.domain, "host": "x",
            "state": if self.running { "running" } else { "stopped" }, "reason": "booted",
            "metadata": if self.managed { metadata } else { Value::Null },
            "cpus": 1, "memory": 1 << 30, "firmware": null, "machine": "q35", "accelerator": "kvm",
            "disks": [], "observed": at.expect("a time"),
            "tpm": {
                "enabled": true, "version": "2.0", "model": "tpm-crb", "state_present": true,
                "key_id": null, "owner": null, "guardians": [], "ek_certificate": null
            }
        }))
        .expect("a VM")
    }
}

fn facts(host: &str) -> Box<HostFacts> {
    serde_json::from_value(json!({
        "host": host, "group": "default",
        "versions": { "libvirt": "11.3.0", "qemu": "10.0.2", "swtpm": "0.7.1", "agent": "0.1.0" },
        "accelerator": "kvm", "cpus": 1, "arch": "x86_64", "cpu_model": "x", "memory": 1, "memory_available": 1,
        "machines": [], "secure_boot": true, "pools": [], "guardians": [],
        "clock": "2026-01-01T00:00:00Z", "tpm_pool": 0
    }))
    .map(Box::new)
    .expect("facts")
}

/// What can happen to an inventory.
#[derive(Debug, Clone)]
enum Happens {
    Snapshot(usize, Vec<Copy>),
    Changed(usize, Copy),
    Removed(usize, u8),
    Lost(usize),
    Superseded(usize, u8),
    Settled(usize, u8),
    Left(usize),
}

fn a_copy() -> impl Strategy<Value = Copy> {
    let names = proptest::sample::select(&NAMES[..]);
    let sides =
        proptest::option::weighted(0.3, proptest::sample::select(&["incoming", "departed"][..]));
    let groups = proptest::sample::select(&["default", "other"][..]);
    let domains = proptest::option::weighted(0.3, proptest::sample::select(&NAMES[..]));
    let flags = (any::<bool>(), proptest::bool::weighted(0.8));
    (0..5_u8, names, domains, flags, sides, groups, 0..9_i64).prop_map(
        |(vm, name, domain, (running, managed), transit, group, observed)| Copy {
            vm,
            name,
            domain,
            managed,
            transit,
            running,
            group,
            observed,
        },
    )
}

fn something() -> impl Strategy<Value = Happens> {
    let host = || 0..HOSTS.len();
    let copies = || proptest::collection::vec(a_copy(), 0..4);
    prop_oneof![
        3 => (host(), copies()).prop_map(|(h, copies)| Happens::Snapshot(h, copies)),
        6 => (host(), a_copy()).prop_map(|(h, copy)| Happens::Changed(h, copy)),
        2 => (host(), 0..5_u8).prop_map(|(h, vm)| Happens::Removed(h, vm)),
        1 => host().prop_map(Happens::Lost),
        1 => (host(), 0..5_u8).prop_map(|(h, vm)| Happens::Superseded(h, vm)),
        1 => (host(), 0..5_u8).prop_map(|(h, vm)| Happens::Settled(h, vm)),
        1 => host().prop_map(Happens::Left),
    ]
}

async fn inventory() -> (tempfile::TempDir, Inventory) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(directory.path().join("store.db")).await;
    let inventory = open(Arc::new(store.expect("a store"))).await;
    (directory, inventory)
}

async fn open(store: Arc<dyn Store>) -> Inventory {
    let debts = Arc::new(DebtBook::default());
    let inventory = Inventory::open(store, Arc::<Presence>::default(), debts).await;
    inventory.expect("an inventory")
}

/// All copies and since when each is in its state, as of now.
fn known(inventory: &Inventory) -> Vec<(VmObserved, OffsetDateTime)> {
    let hosts = HOSTS.iter().map(|host| name(host));
    let copies = hosts.flat_map(|host| inventory.copies_on(&host));
    copies
        .map(|copy| {
            let since = inventory.state_since(&copy);
            let mut copy = (*copy).clone();
            // When the same was looked at again is not kept.
            copy.observed = now();
            (copy, since)
        })
        .collect()
}

async fn happen(inventory: &Inventory, what: Happens) {
    let host = |n: usize| name(HOSTS[n]);
    match what {
        Happens::Snapshot(h, copies) => {
            let facts = facts(HOSTS[h]);
            let vms = copies.iter().map(Copy::report).collect();
            let more = false;
            inventory.apply(&host(h), AgentEvent::Snapshot { facts, vms, more }, now());
        }
        Happens::Changed(h, copy) => {
            let vm = Box::new(copy.report());
            inventory.apply(&host(h), AgentEvent::VmChanged { vm }, now());
        }
        Happens::Removed(h, vm) => {
            inventory.apply(&host(h), AgentEvent::VmRemoved { id: id(vm) }, now());
        }
        Happens::Lost(h) => inventory.lost(&host(h)),
        Happens::Superseded(h, vm) => {
            let of = inventory.copies_on(&host(h)).into_iter();
            let copies = of.filter(|copy| copy.id == id(vm)).filter_map(|copy| {
                let spec = copy.metadata.as_ref()?.spec.clone();
                Some(Superseded {
                    host: host(h),
                    spec,
                })
            });
            inventory
                .supersede(copies.collect())
                .await
                .expect("written");
        }
        Happens::Settled(h, vm) => inventory.settle(&host(h), id(vm)).await.expect("written"),
        Happens::Left(h) => inventory.forget_host(&host(h)).await.expect("written"),
    }
}

/// Each copy that counts, with whether its host answers.
fn counting(inventory: &Inventory) -> Vec<(bool, Arc<VmObserved>)> {
    let hosts = HOSTS.iter().map(|host| name(host));
    let all = hosts.flat_map(|host| {
        let online = inventory.online(&host);
        let copies = inventory.copies_on(&host).into_iter();
        copies.map(move |copy| (online, copy))
    });
    all.filter(|(_, copy)| !inventory.is_superseded(&copy.host, copy.id))
        .collect()
}

fn check(inventory: &Inventory) {
    let copies = counting(inventory);
    let mut best: BTreeMap<VmId, (bool, Arc<VmObserved>)> = BTreeMap::new();
    let mut claims: BTreeMap<VmId, usize> = BTreeMap::new();
    for (online, copy) in &copies {
        *claims.entry(copy.id).or_default() += usize::from(copy.is_the_vm());
        match best.get(&copy.id) {
            Some((other, known)) if !wins(*online, copy, *other, known) => {}
            _ => drop(best.insert(copy.id, (*online, Arc::clone(copy)))),
        }
    }
    let rank = |online: bool, vm: &VmObserved| {
        let side = vm.metadata.as_ref().and_then(|m| m.transit).map(|t| t.side);
        (online, side, vm.state, vm.observed)
    };
    let listed = inventory.vms();
    assert_eq!(listed.len(), best.len());
    let order = |vm: &Arc<VmObserved>| (vm.name.clone(), vm.host.clone(), vm.id);
    assert!(listed.is_sorted_by_key(order), "by name, then host");
    for vm in &listed {
        // Of two that are equal either may be it.
        let (online, expected) = &best[&vm.id];
        assert_eq!(
            rank(*online, expected),
            rank(inventory.online(&vm.host), vm)
        );
        assert_eq!(inventory.vm(vm.id).as_ref(), Some(vm));
    }
    let disputed = claims.iter().filter(|(_, claims)| **claims > 1);
    let disputed: BTreeSet<_> = disputed.map(|(vm, _)| *vm).collect();
    assert_eq!(inventory.disputed(), disputed);
    for host in HOSTS.map(name) {
        let on: Vec<_> = listed
            .iter()
            .filter(|vm| vm.host == host)
            .cloned()
            .collect();
        assert_eq!(inventory.vms_on(&host), on);
        assert_eq!(inventory.count_on(&host), on.len());
    }
    for group in ["default", "other"] {
        let is = |vm: &&Arc<VmObserved>| {
            vm.metadata
                .as_ref()
                .is_some_and(|m| m.spec.group.as_str() == group)
        };
        let expected: BTreeSet<_> = listed.iter().filter(is).map(|vm| vm.id).collect();
        let of = inventory.vms_of(&group.parse().expect("a group"));
        assert_eq!(of.iter().map(|vm| vm.id).collect::<BTreeSet<_>>(), expected);
    }
    for called in NAMES {
        let called = called.parse().expect("a name");
        let has = |copy: &VmObserved| {
            copy.name == called || copy.domain_name.as_deref() == Some(called.as_str())
        };
        for except in [None, Some(id(1))] {
            let taken = copies
                .iter()
                .any(|(_, copy)| Some(copy.id) != except && has(copy));
            assert_eq!(inventory.named(&called, except).is_some(), taken);
        }
    }
    let mut paged = Vec::new();
    loop {
        let last = paged.last().map(Arc::clone);
        let some = inventory.some_after(last.as_deref(), 2);
        if some.is_empty() {
            break;
        }
        paged.extend(some);
    }
    assert_eq!(paged, listed, "the list in slices");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_index_says_what_walking_through_all_copies_says(
        happens in proptest::collection::vec(something(), 1..30)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (_directory, inventory) = inventory().await;
            for what in happens {
                happen(&inventory, what).await;
                check(&inventory);
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_store_that_was_written_says_what_memory_said(
        happens in proptest::collection::vec((something(), proptest::option::weighted(0.3, 0..4_usize)), 1..30)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (_directory, inventory) = inventory().await;
            for (what, write) in happens {
                happen(&inventory, what).await;
                match write {
                    None => {}
                    Some(3) => inventory.flush_due(now()).await.expect("written"),
                    Some(host) => inventory.flush_of(&name(HOSTS[host]), now()).await.expect("written"),
                }
            }
            inventory.flush(now()).await.expect("written");
            let again = open(Arc::clone(&inventory.store)).await;
            assert_eq!(known(&again), known(&inventory));
        });
    }
}

/// What is under a prefix, with the revision of each.
async fn stored(inventory: &Inventory, prefix: &str) -> Vec<(String, u64)> {
    let page = inventory.store.list(Range::prefix(prefix)).await;
    let entries = page.expect("a page").entries.into_iter();
    entries
        .map(|entry| (entry.key, entry.mod_revision.0))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_starts_and_stops_is_not_written_whole_each_time() {
    let (_directory, inventory) = inventory().await;
    let copy = |running, observed| Copy {
        running,
        observed,
        ..Copy::WEB
    };
    happen(&inventory, Happens::Snapshot(0, vec![copy(false, 0)])).await;
    inventory.flush_due(now()).await.expect("written");
    let record = stored(&inventory, "seen-vm/").await;
    assert_eq!(record.len(), 1);

    for at in 1..6 {
        happen(&inventory, Happens::Changed(0, copy(at % 2 == 1, at))).await;
        inventory.flush_due(now()).await.expect("written");
    }
    assert_eq!(stored(&inventory, "seen-vm/").await, record);
    let none_yet = stored(&inventory, "seen-now/").await;
    assert!(none_yet.is_empty(), "it waits: {none_yet:?}");
    let ended = open(Arc::clone(&inventory.store)).await;
    assert!(ended.copies_on(&name("a"))[0].state == VmState::Stopped);

    tokio::time::advance(std::time::Duration::from_secs(31)).await;
    inventory.flush_due(now()).await.expect("written");
    assert_eq!(stored(&inventory, "seen-vm/").await, record);
    let again = open(Arc::clone(&inventory.store)).await;
    assert_eq!(known(&again), known(&inventory), "as it is by now");

    // Of a host that is lost nobody tells it again.
    happen(&inventory, Happens::Changed(0, copy(false, 9))).await;
    happen(&inventory, Happens::Lost(0)).await;
    inventory.flush_due(now()).await.expect("written");
    let again = open(Arc::clone(&inventory.store)).await;
    assert_eq!(
        known(&again),
        known(&inventory),
        "as it was when it was lost"
    );

    // A condition of before is not mixed with a record that was written after it.
    happen(
        &inventory,
        Happens::Changed(
            0,
            Copy {
                group: "other",
                ..copy(true, 10)
            },
        ),
    )
    .await;
    inventory.flush_due(now()).await.expect("written");
    assert_ne!(stored(&inventory, "seen-vm/").await, record);
    let again = open(Arc::clone(&inventory.store)).await;
    assert_eq!(
        known(&again),
        known(&inventory),
        "of the newer record alone"
    );
}

#[tokio::test]
async fn a_host_that_leaves_takes_along_what_it_had_just_lost() {
    let (_directory, inventory) = inventory().await;
    let copy = Copy::WEB;
    happen(&inventory, Happens::Snapshot(0, vec![copy])).await;
    inventory.flush(now()).await.expect("written");
    happen(&inventory, Happens::Removed(0, 1)).await;
    happen(&inventory, Happens::Left(0)).await;
    let again = open(Arc::clone(&inventory.store)).await;
    assert_eq!(known(&again), []);
}

#[tokio::test]
async fn a_sign_of_life_is_no_news_and_a_change_is_news_of_one_vm() {
    let (_directory, inventory) = inventory().await;
    let host = name("a");
    let reader = inventory.news();
    assert!(
        reader.take().all,
        "whoever begins has everything to look at"
    );
    let copy = Copy::WEB;
    happen(&inventory, Happens::Snapshot(0, vec![copy.clone()])).await;
    let mut both = News::host(&host);
    both.vms.insert(id(1));
    assert_eq!(reader.take(), both);
    let before = *inventory.changes().borrow();
    let mut facts = facts("a");
    facts.clock += time::Duration::seconds(3);
    facts.memory_available = fleetward_model::ByteSize(7);
    let measured = facts.measurements();
    inventory.apply(&host, AgentEvent::Facts { facts, audit: None }, now());
    let measured = Measurements {
        memory_available: fleetward_model::ByteSize(8),
        ..measured
    };
    let alive = AgentEvent::Alive {
        measured: measured.clone(),
        audit: None,
    };
    inventory.apply(&host, alive.clone(), now());
    let known = inventory
        .seen(&host)
        .facts
        .map(|facts| facts.measurements());
    assert_eq!(known, Some(measured));
    let unknown = name("x");
    inventory.apply(&unknown, alive, now());
    assert_eq!(inventory.seen(&unknown).facts, None, "none were told");
    // The same, looked at later.
    let later = Copy {
        observed: 5,
        ..copy.clone()
    };
    happen(&inventory, Happens::Changed(0, later.clone())).await;
    happen(&inventory, Happens::Snapshot(0, vec![later.clone()])).await;
    assert_eq!(
        reader.take(),
        News::host(&host),
        "its host has told everything again"
    );
    assert_eq!(*inventory.changes().borrow(), before + 1);
    happen(
        &inventory,
        Happens::Changed(
            0,
            Copy {
                running: true,
                ..later
            },
        ),
    )
    .await;
    assert_eq!(reader.take(), News::vm(id(1)));
}

/// An inventory in which host `a` has the stopped VM of [`Copy::WEB`].
async fn with_web() -> (tempfile::TempDir, Inventory, HostName) {
    let dir = tempfile::tempdir().expect("directory");
    let store = SqliteStore::open(dir.path().join("store.db")).await;
    let store: Arc<dyn Store> = Arc::new(store.expect("store"));
    let inventory = open(store).await;
    let a = name("a");
    let snapshot = AgentEvent::Snapshot {
        facts: facts("a"),
        vms: vec![Copy::WEB.report()],
        more: false,
    };
    inventory.apply(&a, snapshot, now());
    (dir, inventory, a)
}

fn changed(copy: &Copy) -> AgentEvent {
    AgentEvent::VmChanged {
        vm: Box::new(copy.report()),
    }
}

fn state(inventory: &Inventory) -> Option<VmState> {
    inventory.vm(id(Copy::WEB.vm)).map(|vm| vm.state)
}

#[tokio::test]
async fn an_event_that_an_answer_has_overtaken_is_passed_over_and_asked_about() {
    let (_dir, inventory, a) = with_web().await;
    let web = id(Copy::WEB.vm);
    let running = Copy {
        running: true,
        observed: 10,
        ..Copy::WEB
    };
    // a job started it and asked; the event of its definition, from before, comes now
    inventory.answer(&a, web, Some(running.report().digested()), Instant::now());
    let defined = Copy {
        observed: 5,
        ..Copy::WEB
    };
    assert_eq!(inventory.apply(&a, changed(&defined), now()), [web]);
    assert_eq!(state(&inventory), Some(VmState::Running));
    let again = AgentEvent::Snapshot {
        facts: facts("a"),
        vms: vec![defined.report()],
        more: false,
    };
    assert_eq!(inventory.apply(&a, again, now()), [web]);
    assert_eq!(state(&inventory), Some(VmState::Running));

    // what is asked now is newer, whatever the host's clock says meanwhile
    let set_back = Copy {
        observed: -3600,
        ..Copy::WEB
    };
    assert_eq!(inventory.apply(&a, changed(&set_back), now()), [web]);
    let answer = Some(set_back.report().digested());
    inventory.answer(&a, web, answer, Instant::now());
    assert_eq!(state(&inventory), Some(VmState::Stopped));
    let started = Copy {
        observed: -3590,
        ..running
    };
    assert_eq!(inventory.apply(&a, changed(&started), now()), []);
    assert_eq!(state(&inventory), Some(VmState::Running));
}

#[tokio::test]
async fn an_answer_that_an_event_has_overtaken_is_passed_over() {
    let (_dir, inventory, a) = with_web().await;
    let web = id(Copy::WEB.vm);
    let asked = Instant::now();
    tokio::time::sleep(Duration::from_millis(2)).await;
    let running = Copy {
        running: true,
        observed: 10,
        ..Copy::WEB
    };
    assert_eq!(inventory.apply(&a, changed(&running), now()), []);
    // it was not there yet when the host was asked, or not running
    inventory.answer(&a, web, None, asked);
    assert_eq!(state(&inventory), Some(VmState::Running));
    let before = Some(Copy::WEB.report().digested());
    inventory.answer(&a, web, before, asked);
    assert_eq!(state(&inventory), Some(VmState::Running));
    inventory.answer(&a, web, None, Instant::now());
    assert_eq!(state(&inventory), None);
}
