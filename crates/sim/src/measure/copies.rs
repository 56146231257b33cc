//! Copies of TPMs: what a controller needs for the first ones of a fleet, and for those of guests that write their TPMs.

use super::controller::Controller;
use super::process::{Moment, Usage, megabytes};
use crate::agent::Given;
use crate::fleet::RunningFleet;
use crate::scenario::{Change, Changed, keep_changing};
use anyhow::Result;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// None comes any more: a controller takes a copy of one VM every five seconds at most.
const REST: Duration = Duration::from_secs(8);
/// What is given up waiting for.
const LONGEST: Duration = Duration::from_secs(1800);

/// Copies that a controller took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Copies {
    pub copies: u64,
    /// Until the last one.
    pub seconds: f64,
    pub per_second: f64,
    /// Processor time of the controller for one, without what it uses anyway.
    pub cpu_ms_each: f64,
    /// What the hosts sent for them.
    pub mb_from_hosts: f64,
    pub kb_each: f64,
    /// Copies without the UEFI variables, which were there already.
    pub without_variables: u64,
    pub written_mb_per_second: f64,
}

/// Copies while guests wrote their TPMs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TpmWrites {
    pub writes: u64,
    pub writes_per_second: f64,
    /// What the hosts sent for one write: several of one VM within seconds make one copy.
    pub kb_per_write: f64,
    #[serde(flatten)]
    pub copies: Copies,
}

/// What hosts gave and the controller used, up to one moment.
struct Mark {
    at: Instant,
    given: Given,
    used: Moment,
}

impl Mark {
    fn now(controller: &Controller, fleet: &RunningFleet) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            given: fleet.given(),
            used: controller.watched()?.now()?,
        })
    }

    /// The moment of the last copy: none came for a while after it.
    async fn at_rest(controller: &Controller, fleet: &RunningFleet) -> Result<Self> {
        let begin = Instant::now();
        let mut last = Self::now(controller, fleet)?;
        while last.at.elapsed() < REST && begin.elapsed() < LONGEST {
            sleep(Duration::from_millis(100)).await;
            if fleet.given().copies > last.given.copies {
                last = Self::now(controller, fleet)?;
            }
        }
        Ok(last)
    }

    fn since(&self, before: &Self, anyway: Option<&Usage>) -> Copies {
        let usage = self.used.since(&before.used);
        let copies = self.given.copies - before.given.copies;
        let bytes = self.given.bytes - before.given.bytes;
        let anyway = anyway.map_or(0.0, |idle| idle.cpu_percent / 100.0 * usage.seconds);
        let each = copies.max(1) as f64;
        Copies {
            copies,
            seconds: usage.seconds,
            per_second: copies as f64 / usage.seconds,
            cpu_ms_each: (usage.cpu_seconds - anyway).max(0.0) * 1000.0 / each,
            mb_from_hosts: megabytes(bytes),
            kb_each: bytes as f64 / 1000.0 / each,
            without_variables: self.given.without_variables - before.given.without_variables,
            written_mb_per_second: usage.written_mb_per_second,
        }
    }
}

/// Those that are taken from now on until no more are; none where there are none.
pub async fn first(controller: &Controller, fleet: &RunningFleet) -> Result<Option<Copies>> {
    let begin = Mark::now(controller, fleet)?;
    let copies = Mark::at_rest(controller, fleet).await?.since(&begin, None);
    Ok((copies.copies > 0).then_some(copies))
}

/// Guests all over the fleet write their TPMs for that time.
pub async fn while_guests_write(
    controller: &Controller,
    fleet: &Arc<RunningFleet>,
    per_second: f64,
    time: Duration,
    idle: &Usage,
) -> Result<TpmWrites> {
    let (begin, before) = (Mark::now(controller, fleet)?, fleet.tpm_writes());
    let change = Change {
        per_second,
        what: Changed::Tpm,
    };
    // Ends with its set.
    let mut writing = JoinSet::new();
    writing.spawn(keep_changing(fleet.clone(), change));
    sleep(time).await;
    writing.shutdown().await;
    let writes = fleet.tpm_writes() - before;
    let copies = Mark::at_rest(controller, fleet)
        .await?
        .since(&begin, Some(idle));
    Ok(TpmWrites {
        writes,
        writes_per_second: writes as f64 / time.as_secs_f64(),
        kb_per_write: copies.mb_from_hosts * 1000.0 / writes.max(1) as f64,
        copies,
    })
}
