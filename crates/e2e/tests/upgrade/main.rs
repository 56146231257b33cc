//! A fleet is upgraded while its VMs run: program by program, the controller first or the agents first. At each stage every
//! VM that the earlier version made does all that a VM does, and nothing of it is lost.
//!
//! ```text
//!   controller first   old+old+old ─ controller ─► new+old+old ─ agent a ─► new+new+old ─ agent b ─► new+new+new
//!   agents first       old+old+old ─ agent a ────► old+new+old ─ agent b ─► old+new+new ─ controller ► new+new+new
//! ```
//! Building the earlier version takes minutes, so this is a part of `make soak` (`FLEETWARD_E2E_SOAK=1`). `make test` reads
//! what that version left behind (`fixtures/`).

mod stage;
mod world;

use anyhow::{Context, Result};
use fleetward_e2e::suite::trial;
use libtest_mimic::Arguments;
use std::process::ExitCode;
use world::{Program, World};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    if std::env::var_os("FLEETWARD_E2E_SOAK").is_some() {
        trials.push(trial(
            "a_fleet_is_upgraded_controller_first_and_nothing_is_lost",
            controller_first,
        ));
        trials.push(trial(
            "a_fleet_is_upgraded_agents_first_and_nothing_is_lost",
            agents_first,
        ));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn controller_first() -> Result<()> {
    upgrade(
        "e2e-upgrade-c",
        [
            Program::Controller,
            Program::Agent("a"),
            Program::Agent("b"),
        ],
    )
}

fn agents_first() -> Result<()> {
    upgrade(
        "e2e-upgrade-a",
        [
            Program::Agent("a"),
            Program::Agent("b"),
            Program::Controller,
        ],
    )
}

/// Upgrades one program after the other. In front of each, a job is begun that ends after it.
fn upgrade(lab: &str, order: [Program; 3]) -> Result<()> {
    let mut world = World::of_the_former_version(lab)?;
    stage::make_vms(&world)?;
    stage::everything_works(&world, "the former version").context("before anything is upgraded")?;
    for program in order {
        let known = stage::Known::of(&world)?;
        let under_way = stage::begin_a_job(&world, program)?;
        world.upgrade(program)?;
        let shown = format!("after the upgrade of {program}");
        stage::the_job_ends(&world, &under_way).with_context(|| shown.clone())?;
        known
            .is_still_known(&world)
            .with_context(|| shown.clone())?;
        stage::everything_works(&world, &shown).with_context(|| shown.clone())?;
    }
    world.down()
}
