//! What the controller needs for twice as many hosts: some more than twice the processor time, for whatever it is asked and
//! while nothing happens. A square in it is four times as much, on any machine.
//!
//! Processor time and not time on a clock, so that a busy machine changes little.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

#[expect(dead_code, reason = "each test program uses its own part")]
#[path = "controller/fleet/mod.rs"]
mod fleet;

use fleet::Controller;
use fleetward_model::ErrorCode;
use fleetward_sim::directory::{Fleet, Protectors};
use fleetward_sim::fleet::RunningFleet;
use fleetward_sim::measure::budget::Budget;
use fleetward_sim::measure::controller::Controller as Measured;
use fleetward_sim::measure::{ask, wait_online};
use fleetward_sim::plan::FleetPlan;
use fleetward_sim::prepare::prepare;
use http::Method;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// For twice the hosts: 2 for what goes through all of them, and some room for chance. A square is 4.
const MOST_GROWTH: f64 = 2.3;

/// Goes through every VM and adds up by guardian: what 100 hosts have fits the caches, and what 200 have does not. Beyond that
/// it is in proportion: with the release profile 2.4 µs a VM at 500 hosts, 2.6 µs at 1,000 (`docs/performance.md`).
const OUT_OF_CACHES: (&str, f64) = ("metrics", 3.7);

/// What is too little to be told apart from chance: milliseconds a request, percent of a core while nothing happens.
const LITTLE_MS: f64 = 2.0;
const LITTLE_PERCENT: f64 = 15.0;

/// What 200 hosts of 25 VMs may take, in a development build.
const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/growth.toml");

const REQUESTS: u32 = 50;

/// Of one kind.
const LONGEST: Duration = Duration::from_secs(1);

/// The body of the test by which this program becomes a controller.
#[tokio::test(flavor = "multi_thread")]
async fn the_controller() {
    fleet::be_the_controller().await;
}

/// Processor time by name: of each kind of request in milliseconds, and `idle` in percent of a core.
async fn needed(hosts: u32) -> BTreeMap<String, f64> {
    let holds = tempfile::tempdir().expect("directory");
    let controller = Controller::spawn(holds.path()).await;
    let plan = FleetPlan {
        hosts,
        vms: 25,
        hosts_per_group: 2,
        random_seed: 1,
        first_address: addresses(),
        port: 7443,
    };
    let fleet = Fleet {
        plan,
        shared_guardian: true,
        protectors: Protectors::Sized,
    };
    let kept = holds.path().join("fleet");
    let joined = prepare(&controller.local, &fleet, &kept, |_| {});
    let (directory, _) = joined.await.expect("joined");
    let running = RunningFleet::start(&directory, &fleet).await;
    let running = running.expect("the hosts listen");
    wait_online(&controller.local, &running)
        .await
        .expect("online");
    tokio::time::sleep(Duration::from_secs(3)).await;

    let measured = Measured::attach(&controller.data().join("controller.sock")).await;
    let measured = measured.expect("the controller");
    let watched = measured.watched().expect("its process");
    let idle = watched.over(Duration::from_secs(6)).await.expect("usage");
    let mut needed = BTreeMap::from([("idle".to_owned(), idle.cpu_percent)]);
    // The least of some rounds is what it takes by itself.
    for _ in 0..2 {
        let asked = ask(&measured, &running, REQUESTS, LONGEST, &idle).await;
        for (name, requests) in asked.expect("answers") {
            let least = needed.entry(name).or_insert(f64::INFINITY);
            *least = least.min(requests.cpu_ms);
        }
    }
    let matrix = controller.refusal(Method::GET, "/v1/check", &()).await;
    assert_eq!(matrix.code, ErrorCode::TooLarge, "{hosts} hosts");
    running.stop();
    needed
}

/// Loopback addresses that no other process of this test uses now.
fn addresses() -> Ipv4Addr {
    let place = std::process::id() % 8192;
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 1).to_bits() + place * 512)
}

#[tokio::test(flavor = "multi_thread")]
async fn twice_the_hosts_take_twice_the_processor_time_and_not_four_times() {
    let budget = Budget::read(Path::new(BUDGET)).expect("a budget");
    let (small, large) = (needed(100).await, needed(200).await);
    let mut wrong = budget.exceeded(&report(&large));
    for (name, large) in &large {
        let small = small[name];
        println!(
            "{name}: {small:.2} and {large:.2}, {:.2} times",
            large / small
        );
        let little = match name.as_str() {
            "idle" => LITTLE_PERCENT,
            _ => LITTLE_MS,
        };
        let growth = match name.as_str() {
            name if name == OUT_OF_CACHES.0 => OUT_OF_CACHES.1,
            _ => MOST_GROWTH,
        };
        if *large > little && *large > small.max(little / growth) * growth {
            wrong.push(format!(
                "{name}: {small:.2} for 100 hosts, {large:.2} for 200"
            ));
        }
    }
    assert_eq!(wrong, [""; 0], "{small:?} {large:?}");
}

/// What was needed, under the names that it has in the report of `fleetward-sim measure`.
fn report(needed: &BTreeMap<String, f64>) -> Value {
    let requests = needed.iter().filter(|(name, _)| *name != "idle");
    let requests = requests.map(|(name, ms)| (name.clone(), json!({ "cpu_ms": ms })));
    json!({
        "idle": { "cpu_percent": needed["idle"] },
        "requests": requests.collect::<Map<_, _>>(),
    })
}
