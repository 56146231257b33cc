//! A small storm against the real program's controller: what a user sees stays right.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use fleetward_sim::directory::{Fleet, Protectors};
use fleetward_sim::fleet::RunningFleet;
use fleetward_sim::measure::controller::Controller;
use fleetward_sim::plan::FleetPlan;
use fleetward_sim::scale::begin;
use fleetward_sim::storm::{Report, Strength, run, table};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const HOSTS: u32 = 40;
const VMS: u32 = 5;

struct Trial {
    controller: Controller,
    fleet: Arc<RunningFleet>,
    _work: TempDir,
}

impl Trial {
    /// A controller of the program that is tested, with a fleet in addresses that nobody else of these tests has.
    async fn begin(hosts: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let place = std::process::id() % 8192 * 2 + NEXT.fetch_add(1, Ordering::Relaxed);
        let fleet = Fleet {
            plan: FleetPlan {
                hosts,
                vms: VMS,
                hosts_per_group: 2,
                random_seed: 1,
                first_address: Ipv4Addr::from_bits(
                    Ipv4Addr::new(127, 128, 0, 1).to_bits() + place * 64,
                ),
                port: 7443,
            },
            shared_guardian: true,
            protectors: Protectors::Sized,
        };
        // The controller has an address of its own, too, right behind the hosts'.
        let own = Ipv4Addr::from_bits(fleet.plan.first_address.to_bits() + hosts);
        let work = tempfile::tempdir().expect("directory");
        let program = Path::new(env!("CARGO_BIN_EXE_fleetward"));
        let begun = begin(program, SocketAddr::from((own, 7490)), &fleet, work.path()).await;
        let (controller, directory) = begun.expect("a controller with a fleet");
        let running = RunningFleet::start(&directory, &fleet).await;
        Self {
            controller,
            fleet: Arc::new(running.expect("hosts")),
            _work: work,
        }
    }

    async fn storm(&mut self, strength: &Strength) -> Report {
        let report = run(&mut self.controller, &self.fleet, strength, |_| {}).await;
        report.expect("a report")
    }
}

/// Small, and with room for a machine that is busy with other tests.
fn small() -> Strength {
    Strength {
        vanish_percent: 30.0,
        away: Duration::from_secs(1),
        changes_per_second: 500.0,
        changing: Duration::from_secs(2),
        jobs: HOSTS * VMS,
        within: Duration::from_secs(30),
        answers_within: Duration::from_secs(10),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_fleet_weathers_every_storm() {
    let mut trial = Trial::begin(HOSTS).await;
    let report = trial.storm(&small()).await;
    let told = table(&report);
    assert_eq!(report.broken, [""; 0], "{told}");
    assert_eq!(report.vanish.hosts, 12);
    let restart = report.restart.expect("the controller was killed");
    assert_eq!((restart.different, restart.seen.falsely_lost), (0, 0));
    let all = (HOSTS * VMS) as usize;
    let jobs = &report.jobs;
    assert_eq!(
        [jobs.submitted, jobs.accepted, jobs.done, jobs.performed],
        [all; 4]
    );
    assert!(jobs.seen.answers.vm.count > 0 && jobs.seen.answers.vms_page.count > 0);
    assert!(told.contains("Every claim holds."), "{told}");
}
