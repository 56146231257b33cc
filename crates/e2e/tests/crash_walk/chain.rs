//! Jobs that take long to set up, killed at all of their points in one run.
//!
//! ```text
//!   prepare ─ provoke ─► held at a point ─ every victim killed and started ─► held at the next ─ … ─► done ─ check
//! ```
//! A [`Scenario`](crate::scenario::Scenario) needs one run for each point; this needs one run for all. It is for jobs
//! that the fleet starts itself, and for jobs that stop and start a guest. The points are those of all steps that the
//! controller names, so new steps are included.

use crate::scenario::Before;
use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::wait::{self, seconds};
use serde_json::Value;

/// One job and what leads to it.
pub(crate) struct Chain {
    /// The name of the test.
    pub(crate) claim: &'static str,
    pub(crate) kind: &'static str,
    /// Killed at each point, one after the other; the controller last, so that the job goes on from there.
    pub(crate) victims: &'static [&'static str],
    pub(crate) prepare: fn(&Fleet) -> Result<Before>,
    /// Makes the fleet start the job, and does not wait for it.
    pub(crate) provoke: fn(&Fleet) -> Result<()>,
    pub(crate) check: fn(&Fleet, &Before) -> Result<()>,
}

impl Chain {
    pub(crate) fn walk(&self, fleet: &Fleet) -> Result<()> {
        let points = self.points(fleet)?;
        let before = (self.prepare)(fleet).context("preparing")?;
        let earlier = self.jobs(fleet)?;
        let holds = fleet.holds();
        let walked = (|| -> Result<()> {
            holds.set(&points[0])?;
            (self.provoke)(fleet)?;
            for (at, point) in points.iter().enumerate() {
                wait::until(&format!("{point} to be reached"), seconds(120), || {
                    Ok(holds.is_reached(point).then_some(()))
                })?;
                let last = self.victims.len() - 1;
                for (n, victim) in self.victims.iter().enumerate() {
                    fleet.kill(victim)?;
                    if n == last {
                        if let Some(next) = points.get(at + 1) {
                            holds.set(next)?;
                        }
                        holds.release(point)?;
                    }
                    fleet.start(victim)?;
                }
                eprintln!("kill -9 {:?} at {point}", self.victims);
            }
            Ok(())
        })();
        // Whatever went wrong: nothing is held for ever.
        for point in &points {
            holds.release(point)?;
        }
        walked?;
        wait::until(
            &format!("the {} job to end", self.kind),
            seconds(120),
            || {
                let jobs = self.jobs(fleet)?;
                let new = jobs
                    .iter()
                    .find(|job| !earlier.iter().any(|e| e["id"] == job["id"]));
                let Some(job) = new else { return Ok(None) };
                match text(job, "state")?.as_str() {
                    "done" => Ok(Some(())),
                    "undone" | "failed" => anyhow::bail!("it did not end well: {job}"),
                    _ => Ok(None),
                }
            },
        )?;
        (self.check)(fleet, &before)
    }

    /// Before and after each step of the kind.
    fn points(&self, fleet: &Fleet) -> Result<Vec<String>> {
        let kinds = fleet.json(&["job", "kinds"])?;
        let kinds = kinds.as_array().into_iter().flatten();
        let kind = kinds.into_iter().find(|kind| kind["kind"] == self.kind);
        let steps = kind.and_then(|kind| kind["steps"].as_array());
        let names = steps.into_iter().flatten().map(|step| {
            let name = step.as_str().or_else(|| step["name"].as_str());
            name.map(str::to_owned).context("a step without a name")
        });
        let names: Vec<String> = names.collect::<Result<_>>()?;
        ensure!(!names.is_empty(), "no steps of {} are known", self.kind);
        let points = names.iter().flat_map(|step| {
            ["before", "after"].map(|place| format!("job.{}.{step}.{place}", self.kind))
        });
        Ok(points.collect())
    }

    fn jobs(&self, fleet: &Fleet) -> Result<Vec<Value>> {
        let all = fleet.json(&["job", "list"])?;
        let all = all.as_array().cloned().unwrap_or_default();
        Ok(all
            .into_iter()
            .filter(|job| job["kind"] == self.kind)
            .collect())
    }
}
