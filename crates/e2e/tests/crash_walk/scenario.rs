//! One kind of job: how to prepare and start it, and what must hold afterwards; and the walk along its points.
//!
//! ```text
//!   prepare ─ command ──► passes points, is killed at one, started again ──► done | undone ─ check
//! ```
//! A run without kills finds the points; each is then visited once for every victim. For the way *back* a real fault
//! makes the job undo, and the points of its undos are visited.

use crate::points::Depth;
use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest::Tick;
use fleetward_e2e::wait::{self, seconds};
use std::time::Duration;

/// A row of the tables in the modules beside this one.
pub(crate) struct Scenario {
    /// The name of the test.
    pub(crate) claim: &'static str,
    /// The kind of job that `command` starts.
    pub(crate) kind: &'static str,
    /// Processes to kill: names for `fleetward-lab kill`.
    pub(crate) victims: &'static [&'static str],
    /// Brings everything to where the job starts from, from wherever an earlier scenario left it.
    pub(crate) prepare: fn(&Fleet) -> Result<Before>,
    /// Arguments of `fleetward` that start the job; `--no-wait` is added.
    pub(crate) command: fn(&Fleet) -> Result<Vec<String>>,
    /// What makes the job turn round; without it the way forward is walked.
    pub(crate) fault: Option<Fault>,
    /// What must hold after every run.
    pub(crate) check: fn(&Fleet, &Before, Ended) -> Result<()>,
    /// What must hold once, when everything was walked.
    pub(crate) finally: Option<fn(&Fleet, &Before) -> Result<()>>,
}

/// What `prepare` saw and `check` compares with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Before {
    /// The guest's newest line, where it ran.
    pub(crate) guest: Option<Tick>,
    /// Of the TPM: its key, which a roll replaces; or who can open that, which a rotation changes.
    pub(crate) key: String,
}

/// A real fault in the last step that can be undone.
pub(crate) struct Fault {
    /// The job is held here while it strikes.
    pub(crate) at: &'static str,
    pub(crate) strike: fn(&Fleet) -> Result<()>,
}

/// Which points of a job are of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Forward,
    Back,
}

/// How a job ended. Given up (`failed`) is no end that a crash may lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Done,
    Undone,
}

/// From one point to the next.
const REACHED: Duration = seconds(60);
/// From a restart to the job's end.
const END: Duration = seconds(120);
/// So many different failures say enough.
const ENOUGH: usize = 5;

impl Scenario {
    pub(crate) fn walk(&self, fleet: &Fleet) -> Result<()> {
        let points = self.discover(fleet)?;
        ensure!(points.len() >= 2, "a free run passed no points: {points:?}");
        let mut failures = Vec::new();
        for point in &points {
            for victim in self.victims {
                if !Depth::of_environment().kills(victim, point) {
                    continue;
                }
                if let Err(error) = self.kill_at(fleet, point, victim) {
                    let line = format!("kill -9 {victim} at {point}: {error:#}");
                    eprintln!("FAILED {line}");
                    failures.push(line);
                    ensure!(failures.len() < ENOUGH, "giving up after {failures:#?}");
                }
            }
        }
        eprintln!(
            "walked {} points with {} victims",
            points.len(),
            self.victims.len()
        );
        ensure!(failures.is_empty(), "{failures:#?}");
        match self.finally {
            Some(finally) => finally(fleet, &(self.prepare)(fleet)?),
            None => Ok(()),
        }
    }

    fn way(&self) -> Way {
        match self.fault {
            None => Way::Forward,
            Some(_) => Way::Back,
        }
    }

    /// Runs the job once without a kill; the points it passed, in order.
    fn discover(&self, fleet: &Fleet) -> Result<Vec<String>> {
        let before = (self.prepare)(fleet).context("preparing")?;
        let holds = fleet.holds();
        for entry in std::fs::read_dir(fleet.hold_directory())? {
            std::fs::remove_file(entry?.path())?;
        }
        let ended = self.run(fleet, || Ok(()))?;
        let wanted = match self.way() {
            Way::Forward => Ended::Done,
            Way::Back => Ended::Undone,
        };
        ensure!(ended == wanted, "the free run was {ended:?}");
        (self.check)(fleet, &before, ended).context("after the free run")?;
        let passed = holds.reached()?;
        let struck = self.fault.as_ref().map(|fault| fault.at);
        let after_fault = struck.and_then(|at| passed.iter().position(|p| p == at));
        let depth = Depth::of_environment();
        Ok(passed
            .iter()
            .skip(after_fault.map_or(0, |at| at + 1))
            .filter(|point| depth.visits(point, self.kind, self.way()))
            .cloned()
            .collect())
    }

    fn kill_at(&self, fleet: &Fleet, point: &str, victim: &str) -> Result<()> {
        let before = (self.prepare)(fleet).context("preparing")?;
        let holds = fleet.holds();
        holds.set(point)?;
        let ended = self.run(fleet, || {
            wait::until(&format!("{point} to be reached"), REACHED, || {
                Ok(holds.is_reached(point).then_some(()))
            })?;
            fleet.kill(victim)?;
            holds.release(point)?;
            fleet.start(victim)
        })?;
        eprintln!("kill -9 {victim} at {point}: {ended:?}");
        ensure!(
            self.way() == Way::Forward || ended == Ended::Undone,
            "the job turned back and is {ended:?}"
        );
        (self.check)(fleet, &before, ended)
    }

    /// Starts the job, lets the fault strike, disturbs it, waits for its end.
    fn run(&self, fleet: &Fleet, disturb: impl Fn() -> Result<()>) -> Result<Ended> {
        let holds = fleet.holds();
        if let Some(fault) = &self.fault {
            holds.set(fault.at)?;
        }
        let command = (self.command)(fleet)?;
        let job = fleet.start_job(&command.iter().map(String::as_str).collect::<Vec<_>>())?;
        let struck = match &self.fault {
            Some(fault) => self.strike(fleet, fault),
            None => Ok(()),
        };
        let disturbed = struck.and_then(|()| disturb());
        // Whatever went wrong: the next scenario finds no job under way.
        for file in std::fs::read_dir(fleet.hold_directory())? {
            let file = file?.path();
            if file.extension().is_some_and(|end| end == "hold") {
                std::fs::remove_file(file)?;
            }
        }
        let job = wait::until(&format!("job {job} to end"), END, || {
            let job = fleet.json(&["job", "show", &job])?;
            let state = text(&job, "state")?;
            Ok(matches!(state.as_str(), "done" | "undone" | "failed").then_some(job))
        })
        .with_context(|| {
            let shown = fleet.cli(&["job", "show", &job]);
            shown.map(|said| said.stdout).unwrap_or_default()
        });
        disturbed?;
        let job = job?;
        let (kind, state) = (text(&job, "kind")?, text(&job, "state")?);
        ensure!(kind == self.kind, "{command:?} started a {kind} job");
        match state.as_str() {
            "done" => Ok(Ended::Done),
            "undone" => Ok(Ended::Undone),
            _ => anyhow::bail!("the job is {state}: {job}"),
        }
    }

    /// Holds the job where it is to fail, makes it fail there, and lets it go on.
    fn strike(&self, fleet: &Fleet, fault: &Fault) -> Result<()> {
        let holds = fleet.holds();
        let struck = wait::until(&format!("{} to be reached", fault.at), REACHED, || {
            Ok(holds.is_reached(fault.at).then_some(()))
        })
        .and_then(|()| (fault.strike)(fleet));
        holds.release(fault.at)?;
        struck.context("the fault")
    }
}
