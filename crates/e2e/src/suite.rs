//! A test program with one lab, which its cases share; they run one after the other.

use crate::fleet::Fleet;
use anyhow::Result;
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A case: its claim, and the function that proves it.
pub type Case = (&'static str, fn(&Fleet) -> Result<()>);

/// What proves a claim on a lab.
pub type Proof = Box<dyn Fn(&Fleet) -> Result<()> + Send>;

/// Runs the cases on a lab of that name; the lab is up only when a case really runs.
///
/// `FLEETWARD_E2E_FAIL_FAST=1` ends at the first failure and leaves the lab up for a look.
pub fn run(lab: &'static str, up: &'static [&'static str], cases: &[Case]) -> ExitCode {
    let cases = cases
        .iter()
        .map(|&(claim, case)| (claim, Box::new(case) as Proof));
    run_with(lab, up, Vec::new(), cases.collect())
}

/// The same, for cases from a table, and with tests of their own kind that need no lab.
pub fn run_with(
    lab: &'static str,
    up: &'static [&'static str],
    mut trials: Vec<Trial>,
    cases: Vec<(&'static str, Proof)>,
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let fleet: Arc<Mutex<Option<Fleet>>> = Arc::default();
    trials.extend(cases.into_iter().map(|(claim, case)| {
        let fleet = fleet.clone();
        Trial::test(claim, move || {
            let mut fleet = fleet
                .lock()
                .map_err(|_| Failed::from("an earlier case panicked"))?;
            if fleet.is_none() {
                *fleet = Some(Fleet::up(lab, up).map_err(shown)?);
            }
            let fleet = fleet.as_ref().expect("just brought up");
            let start = Instant::now();
            let result = case(fleet);
            eprintln!("{claim}: {:.1} s", start.elapsed().as_secs_f32());
            if let Err(error) = &result
                && std::env::var_os("FLEETWARD_E2E_FAIL_FAST").is_some()
            {
                eprintln!("{claim}: {error:#}\nthe lab {lab} is left up");
                std::process::exit(101);
            }
            result.map_err(shown)
        })
    }));
    let last = fleet.clone();
    trials.push(Trial::test(
        "taking_the_lab_down_leaves_nothing",
        move || match last.lock().ok().and_then(|mut fleet| fleet.take()) {
            Some(fleet) => fleet.down().map_err(shown),
            None => Ok(()),
        },
    ));
    let conclusion: Conclusion = libtest_mimic::run(&arguments, trials);
    drop(fleet.lock().ok().and_then(|mut fleet| fleet.take()));
    conclusion.exit_code()
}

/// A claim that needs no lab.
pub fn trial(claim: &'static str, proof: fn() -> Result<()>) -> Trial {
    Trial::test(claim, move || proof().map_err(shown))
}

fn shown(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}
