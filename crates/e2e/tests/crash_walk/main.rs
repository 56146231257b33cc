//! kill -9 of controller, source agent and destination agent at every point of every job.
//!
//! The walk has no list of steps: a run without kills finds the points of each scenario, and then each point is
//! visited once for every process. New steps are therefore included automatically. [`every_kind_of_job_is_walked`]
//! fails for a new kind of job until one of the tables has a scenario for it.
//!
//! After every kill and restart, the job ends done or undone; there is exactly one VM, or none, on the right host; a
//! guest that ran keeps running; and no volume, secret, UEFI variable, TPM state or socket is left over.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

mod chain;
mod change;
mod copies;
mod disks;
mod keys;
mod life;
mod migration;
mod points;
mod recover;
mod scenario;
mod secure_boot;
mod subject;
mod tpm;

use anyhow::{Result, ensure};
use chain::Chain;
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::suite::{self, Proof};
use points::Depth;
use scenario::Scenario;
use std::process::ExitCode;

/// One table a subject, walked in this order.
const TABLES: &[&[Scenario]] = &[
    life::SCENARIOS,
    change::SCENARIOS,
    disks::SCENARIOS,
    migration::SCENARIOS,
    keys::SCENARIOS,
    tpm::SCENARIOS,
    secure_boot::SCENARIOS,
    copies::SCENARIOS,
    recover::SCENARIOS,
];

/// Walked after those, and by `make soak` alone: steps and operations are those of scenarios that `make test` walks.
const IN_SOAK: &[&[Scenario]] = &[change::IN_SOAK, disks::IN_SOAK];

/// Jobs that the fleet starts by itself, and one that stops and starts the guest.
const CHAINS: &[&[Chain]] = &[keys::CHAINS, tpm::CHAINS, recover::CHAINS];

/// Kinds of jobs without a scenario, and why.
const EXEMPT: &[(&str, &str)] = &[(
    "host-drain",
    "it is one migration job after the other and has no effect of its own",
)];

fn main() -> ExitCode {
    let in_soak = match Depth::of_environment() {
        Depth::Test => &[][..],
        Depth::Soak => IN_SOAK,
    };
    let mut cases: Vec<(&'static str, Proof)> = TABLES
        .iter()
        .chain(in_soak)
        .copied()
        .flatten()
        .map(|scenario| {
            let walk = |fleet: &Fleet| scenario.walk(fleet);
            (scenario.claim, Box::new(walk) as Proof)
        })
        .collect();
    cases.extend(CHAINS.iter().copied().flatten().map(|chain| {
        let walk = |fleet: &Fleet| chain.walk(fleet);
        (chain.claim, Box::new(walk) as Proof)
    }));
    cases.push((
        "every_kind_of_job_is_walked",
        Box::new(every_kind_of_job_is_walked),
    ));
    let trials = vec![suite::trial(
        "test_and_soak_visit_what_they_should",
        points::test_and_soak_visit_what_they_should,
    )];
    suite::run_with("e2e-walk", &["--hosts", "2"], trials, cases)
}

fn every_kind_of_job_is_walked(fleet: &Fleet) -> Result<()> {
    let kinds = fleet.json(&["job", "kinds"])?;
    let kinds: Vec<&str> = kinds
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|kind| kind["kind"].as_str())
        .collect();
    ensure!(!kinds.is_empty(), "the controller names no kinds of jobs");
    let walked = |kind: &str| {
        let mut scenarios = TABLES.iter().copied().flatten();
        let mut chains = CHAINS.iter().copied().flatten();
        scenarios.any(|s| s.kind == kind || points::asked_for_by(s.kind).contains(&kind))
            || chains.any(|c| c.kind == kind)
    };
    let exempt = |kind: &str| EXEMPT.iter().any(|(name, _)| *name == kind);
    let missing: Vec<&str> = kinds
        .into_iter()
        .filter(|kind| !walked(kind) && !exempt(kind))
        .collect();
    ensure!(
        missing.is_empty(),
        "kinds of jobs that no scenario walks: {missing:?}"
    );
    Ok(())
}
