//! The console, as a person uses it: in a real Chromium, with real VMs.

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, program_directory, text};
use fleetward_e2e::suite;
use std::path::PathBuf;
use std::process::ExitCode;

const CONSOLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../console");
const PASSWORD: &str = "correct horse battery";

fn main() -> ExitCode {
    let cases: &[suite::Case] = &[("a_person_starts_a_vm_sees_it_and_switches_it_off", journeys)];
    suite::run("e2e-console", &["--hosts", "1", "--console"], cases)
}

fn journeys(fleet: &Fleet) -> Result<()> {
    let secret = fleet.directory().join("password");
    #[expect(clippy::disallowed_methods, reason = "a file of this test alone")]
    std::fs::write(&secret, format!("{PASSWORD}\n"))?;
    let file = secret.to_str().context("a path of text")?;
    let add = "user add kim --role operator --password-file";
    let add: Vec<_> = add.split(' ').chain([file]).collect();
    fleet.cli(&add)?.ok()?;
    let create = "vm create desk --image lab-guest --memory 512M";
    let create: Vec<_> = create.split(' ').collect();
    fleet.cli(&create)?.ok()?;

    let status = fleet.json(&["status"])?;
    let url = text(&status["console"], "url")?;
    // Beside the programs, so that somebody can look at them afterwards.
    let shots = program_directory()?.join("console-screenshots");
    let script = PathBuf::from(CONSOLE).join("tests/journeys.mjs");
    let command = format!(
        "cd {CONSOLE} && exec node {} {url} {} <{file}",
        script.display(),
        shots.display()
    );
    let said = fleet.exec("controller", &["sh", "-c", &command])?;
    let said = said.ok()?;
    ensure!(said.stderr.is_empty(), "{}", said.stderr);
    Ok(())
}
