//! kill -9 of controller, source agent and destination agent at every point of every job.
//!
//! The walk knows no step by name: a free run of each scenario tells which points there are, and each is then visited
//! once for every process. A step that is added later is walked without anybody remembering it.
//!
//! After every kill and restart: the job ends done or undone; there is exactly one VM, or none, where it should be; the
//! guest that ran goes on; and no volume, secret, UEFI variable, TPM state or socket is left anywhere.

use anyhow::{Context, Result, bail, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{residue, suite};
use std::collections::BTreeSet;
use std::process::ExitCode;

const HOSTS: &[&str] = &["a", "b"];

fn main() -> ExitCode {
    suite::run(
        "e2e-walk",
        &["--hosts", "2"],
        &[
            ("create_survives_kill_9_everywhere", walk_create),
            ("start_survives_kill_9_everywhere", walk_start),
            ("stop_survives_kill_9_everywhere", walk_stop),
            (
                "a_live_migration_survives_kill_9_everywhere",
                walk_live_migration,
            ),
            (
                "a_stopped_migration_survives_kill_9_everywhere",
                walk_stopped_migration,
            ),
            ("delete_survives_kill_9_everywhere", walk_delete),
            ("every_kind_of_job_was_walked", every_kind_was_walked),
        ],
    )
}

/// One kind of job: how to get ready for it, how to start it, what must hold after it.
struct Scenario<'a> {
    fleet: &'a Fleet,
    /// Processes to kill: names for `fleetward-lab kill`.
    victims: &'a [&'a str],
    /// Brings everything to where the job starts from.
    prepare: &'a dyn Fn() -> Result<()>,
    /// Arguments of `fleetward` that start the job.
    command: &'a dyn Fn() -> Result<Vec<String>>,
    /// What must hold afterwards, whether the job was done.
    check: &'a dyn Fn(bool) -> Result<()>,
}

impl Scenario<'_> {
    fn walk(&self) -> Result<()> {
        let points = self.discover()?;
        ensure!(points.len() >= 2, "a free run passed no points: {points:?}");
        let mut failures = Vec::new();
        for point in &points {
            for victim in self.victims {
                // An agent's own points are about that agent; the controller's are about everybody.
                if point.starts_with("agent.") && *victim == "controller" {
                    continue;
                }
                if let Err(error) = self.kill_at(point, victim) {
                    let line = format!("kill -9 {victim} at {point}: {error:#}");
                    eprintln!("FAILED {line}");
                    failures.push(line);
                    ensure!(failures.len() < 5, "giving up after {failures:#?}");
                }
            }
        }
        eprintln!(
            "walked {} points with {} victims",
            points.len(),
            self.victims.len()
        );
        ensure!(failures.is_empty(), "{failures:#?}");
        Ok(())
    }

    /// Runs the job once, undisturbed; the points it passed.
    fn discover(&self) -> Result<BTreeSet<String>> {
        (self.prepare)()?;
        let holds = self.fleet.hold_directory();
        for entry in std::fs::read_dir(&holds)? {
            std::fs::remove_file(entry?.path())?;
        }
        let job = self.start()?;
        ensure!(self.ended(&job)? == "done", "the free run was not done");
        (self.check)(true)?;
        let passed = self.fleet.holds().reached()?;
        let wanted = |p: &String| {
            p.ends_with(".before") || p.ends_with(".after") || full() || p.starts_with("agent.")
        };
        // Points of background work (the pool of TPMs, other jobs) are not this job's.
        Ok(passed
            .into_iter()
            .filter(wanted)
            .filter(|p| p.starts_with("job.") || (full() && p.starts_with("agent.")))
            .collect())
    }

    fn kill_at(&self, point: &str, victim: &str) -> Result<()> {
        (self.prepare)().context("preparing")?;
        let holds = self.fleet.holds();
        holds.set(point)?;
        let result = (|| {
            let job = self.start()?;
            wait::until(&format!("{point} to be reached"), seconds(60), || {
                Ok(holds.is_reached(point).then_some(()))
            })?;
            self.fleet.kill(victim)?;
            holds.release(point)?;
            self.fleet.start(victim)?;
            let state = self.ended(&job)?;
            eprintln!("kill -9 {victim} at {point}: {state}");
            (self.check)(state == "done")
        })();
        holds.release(point)?;
        result
    }

    fn start(&self) -> Result<String> {
        let command = (self.command)()?;
        self.fleet
            .start_job(&command.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn ended(&self, job: &str) -> Result<String> {
        wait::until(&format!("job {job} to end"), seconds(120), || {
            let state = text(&self.fleet.json(&["job", "show", job])?, "state")?;
            Ok(matches!(state.as_str(), "done" | "undone" | "failed").then_some(state))
        })
        .with_context(|| {
            self.fleet
                .cli(&["job", "show", job])
                .map(|s| s.stdout)
                .unwrap_or_default()
        })
    }
}

/// Whether every kind of point is walked (`make soak`), or those of the controller's steps (`make test`).
fn full() -> bool {
    std::env::var_os("FLEETWARD_E2E_SOAK").is_some()
}

fn exists(fleet: &Fleet, vm: &str) -> Result<bool> {
    let list = fleet.json(&["vm", "list"])?;
    Ok(list
        .as_array()
        .into_iter()
        .flatten()
        .any(|v| v["name"] == vm))
}

/// Waits until no residue is left: clean-up after a restart of an agent may take a moment.
fn clean(fleet: &Fleet) -> Result<()> {
    wait::until(
        "hosts to hold exactly what the fleet says",
        seconds(20),
        || residue::none_anywhere(fleet, HOSTS).map(Some),
    )
}

fn gone(fleet: &Fleet, vm: &str) -> Result<()> {
    if exists(fleet, vm)? {
        fleet.cli(&["vm", "stop", vm, "--force"])?.ok()?;
        fleet.cli(&["vm", "delete", vm, "--yes"])?.ok()?;
    }
    Ok(())
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

const CREATE: &[&str] = &[
    "vm",
    "create",
    "walk",
    "--image",
    "lab-guest",
    "--memory",
    "512M",
    "--host",
    "a",
];

fn walk_create(fleet: &Fleet) -> Result<()> {
    Scenario {
        fleet,
        victims: &["controller", "a/agent"],
        prepare: &|| gone(fleet, "walk"),
        command: &|| Ok(strings(&[CREATE, &["--start"]].concat())),
        check: &|done| {
            ensure!(
                exists(fleet, "walk")? == done,
                "the job was {}, but the VM says otherwise",
                if done { "done" } else { "undone" }
            );
            if done {
                wait::until("walk to show as running", seconds(10), || {
                    Ok((fleet.place("walk")? == ("running".into(), "a".into())).then_some(()))
                })?;
            }
            clean(fleet)
        },
    }
    .walk()
}

/// A stopped VM with a TPM, on host a.
fn stopped(fleet: &Fleet) -> Result<()> {
    if !exists(fleet, "walk")? {
        fleet.cli(CREATE)?.ok()?;
    }
    fleet.cli(&["vm", "stop", "walk", "--force"])?.ok()?;
    Ok(())
}

fn walk_start(fleet: &Fleet) -> Result<()> {
    Scenario {
        fleet,
        victims: &["controller", "a/agent"],
        prepare: &|| stopped(fleet),
        command: &|| Ok(strings(&["vm", "start", "walk"])),
        check: &|done| {
            let wanted = if done { "running" } else { "stopped" };
            wait::until(&format!("walk to be {wanted}"), seconds(10), || {
                Ok((fleet.place("walk")?.0 == wanted).then_some(()))
            })?;
            clean(fleet)
        },
    }
    .walk()
}

fn walk_stop(fleet: &Fleet) -> Result<()> {
    Scenario {
        fleet,
        victims: &["controller", "a/agent"],
        prepare: &|| fleet.cli(&["vm", "start", "walk"])?.ok().map(drop),
        command: &|| Ok(strings(&["vm", "stop", "walk", "--force"])),
        check: &|done| {
            let wanted = if done { "stopped" } else { "running" };
            wait::until(&format!("walk to be {wanted}"), seconds(10), || {
                Ok((fleet.place("walk")?.0 == wanted).then_some(()))
            })?;
            clean(fleet)
        },
    }
    .walk()
}

fn other(host: &str) -> &'static str {
    if host == "a" { "b" } else { "a" }
}

fn walk_live_migration(fleet: &Fleet) -> Result<()> {
    fleet.cli(&["vm", "start", "walk"])?.ok()?;
    let first = guest::booted(fleet, "walk", 1)?;
    let newest = || -> Result<Tick> { guest::booted(fleet, "walk", first.boots) };
    Scenario {
        fleet,
        victims: &["controller", "a/agent", "b/agent"],
        prepare: &|| newest().map(drop),
        command: &|| {
            let (_, from) = fleet.place("walk")?;
            Ok(strings(&["vm", "migrate", "walk", "--to", other(&from)]))
        },
        check: &|_| {
            // The guest never stops, whatever was killed, and runs in exactly one place.
            wait::until("walk to show as running", seconds(10), || {
                Ok((fleet.place("walk")?.0 == "running").then_some(()))
            })?;
            let before = newest()?;
            ensure!(
                before.boots == first.boots && before.ek == first.ek,
                "{first:?} then {before:?}"
            );
            guest::goes_on(fleet, "walk", &before)?;
            clean(fleet)
        },
    }
    .walk()
}

fn walk_stopped_migration(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, "walk", 1)?;
    fleet.cli(&["vm", "stop", "walk", "--force"])?.ok()?;
    Scenario {
        fleet,
        victims: &["controller", "a/agent", "b/agent"],
        prepare: &|| Ok(()),
        command: &|| {
            let (_, from) = fleet.place("walk")?;
            Ok(strings(&[
                "vm",
                "migrate",
                "walk",
                "--to",
                other(&from),
                "--offline",
            ]))
        },
        check: &|_| {
            ensure!(fleet.place("walk")?.0 == "stopped");
            clean(fleet)
        },
    }
    .walk()?;
    fleet.cli(&["vm", "start", "walk"])?.ok()?;
    let after = guest::booted(fleet, "walk", before.boots + 1)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek,
        "{before:?} then {after:?}"
    );
    Ok(())
}

fn walk_delete(fleet: &Fleet) -> Result<()> {
    gone(fleet, "walk")?;
    Scenario {
        fleet,
        victims: &["controller", "a/agent"],
        prepare: &|| stopped(fleet),
        command: &|| Ok(strings(&["vm", "delete", "walk", "--yes"])),
        check: &|done| {
            ensure!(
                exists(fleet, "walk")? != done,
                "deleted and still there, or undone and gone"
            );
            clean(fleet)
        },
    }
    .walk()
}

fn every_kind_was_walked(fleet: &Fleet) -> Result<()> {
    let walked: BTreeSet<String> = fleet
        .json(&["job", "list"])?
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|j| j["kind"].as_str().map(str::to_owned))
        .collect();
    // host-drain is one migration job after the other and has no effect of its own.
    let exempt = ["host-drain"];
    let kinds = fleet.json(&["job", "kinds"])?;
    let kinds: Vec<String> = kinds
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|k| k["kind"].as_str().map(str::to_owned))
        .collect();
    if kinds.is_empty() {
        bail!("the controller names no kinds of jobs");
    }
    let missing: Vec<_> = kinds
        .iter()
        .filter(|k| !walked.contains(*k) && !exempt.contains(&k.as_str()))
        .collect();
    ensure!(
        missing.is_empty(),
        "kinds of jobs that no scenario walks: {missing:?}"
    );
    Ok(())
}
