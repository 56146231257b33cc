//! Storms: hosts that vanish and return together, a controller that is killed while its fleet changes, jobs that are submitted
//! at once. What is judged is what a user sees, and what hosts say that was done.
//!
//! | module | storm, or what all of them need |
//! |---|---|
//! | [`vanish`] | a share of the hosts vanishes at once, and returns at once |
//! | [`restart`] | kill -9 of the controller, while VMs change |
//! | [`jobs`] | jobs for many VMs at once |
//! | [`witness`] | asks all the while: which hosts are shown unreachable, how long answers take |
//! | [`same`] | whether every VM is shown as its host has it |
//! | [`table`] | the report for people |

mod jobs;
mod restart;
mod same;
mod table;
mod vanish;
mod witness;

pub use jobs::JobStorm;
pub use restart::Restarted;
pub use table::table;
pub use vanish::Vanished;
pub use witness::{Answers, Seen};

use crate::fleet::RunningFleet;
use crate::measure::controller::Controller;
use crate::measure::process::{Machine, MachineBegin};
use crate::measure::{self, FleetSize};
use anyhow::{Context, Result};
use fleetward_api::controller::Status;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// How hard it storms, and what is borne.
#[derive(Debug, Clone, PartialEq)]
pub struct Strength {
    /// Of all hosts, which vanish.
    pub vanish_percent: f64,
    /// How long they are away at least.
    pub away: Duration,
    /// Changes of VMs a second around the controller's restart.
    pub changes_per_second: f64,
    /// How long VMs change before the restart, and again after it.
    pub changing: Duration,
    /// Jobs that are submitted at once, each for a VM of its own; in a fleet of fewer VMs as many as those.
    pub jobs: u32,
    /// Within which the controller shows what has happened to hosts, and answers again.
    pub within: Duration,
    /// What 99 of 100 answers may take meanwhile.
    pub answers_within: Duration,
}

/// What was seen.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub commit: String,
    pub controller_version: String,
    pub machine: Machine,
    pub fleet: FleetSize,
    pub vanish: Vanished,
    /// None where the controller was given, and is not killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restarted>,
    pub jobs: JobStorm,
    /// A sentence for each claim that does not hold.
    pub broken: Vec<String>,
}

/// Claims, and those that do not hold.
#[derive(Debug, Default)]
struct Claims(Vec<String>);

impl Claims {
    fn require(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.0.push(otherwise());
        }
    }

    /// That nothing is in `found`, of which the first is named.
    fn require_none(&mut self, found: &[String], what: &str) {
        if let Some(first) = found.first() {
            self.0.push(match found.len() {
                1 => format!("{first} {what}"),
                more => format!("{first} {what}, and {} more", more - 1),
            });
        }
    }

    /// That something came to pass within `limit`.
    fn require_within(&mut self, seconds: Option<f64>, limit: Duration, what: &str) {
        self.require(seconds.is_some(), || {
            format!("{what}: not within {} s", limit.as_secs_f64())
        });
    }
}

/// The storms, one after the other. The controller is killed and started again only where it was started here.
pub async fn run(
    controller: &mut Controller,
    fleet: &Arc<RunningFleet>,
    strength: &Strength,
    say: impl Fn(&str),
) -> Result<Report> {
    let machine = MachineBegin::now()?;
    let mut claims = Claims::default();
    measure::wait_online(&controller.client, fleet).await?;
    let status: Status = controller.client.get("/v1/status").await?;
    say("hosts vanish and return");
    let vanish = vanish::storm(controller, fleet, strength, &mut claims).await;
    let vanish = vanish.context("hosts that vanish")?;
    let restart = match controller.is_ours() {
        true => {
            say("kill -9 of the controller under changes");
            let restart = restart::storm(controller, fleet, strength, &mut claims).await;
            Some(restart.context("the controller's restart")?)
        }
        false => None,
    };
    say("jobs at once");
    let jobs = jobs::storm(controller, fleet, strength, &mut claims).await;
    let jobs = jobs.context("jobs at once")?;
    Ok(Report {
        commit: String::new(),
        controller_version: status.version,
        machine: machine.end()?,
        fleet: FleetSize::of(fleet),
        vanish,
        restart,
        jobs,
        broken: claims.0,
    })
}
