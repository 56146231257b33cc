//! kill -9 of the controller while VMs change, and another start at once.

use super::witness::Witness;
use super::{Claims, Seen, Strength, same};
use crate::fleet::RunningFleet;
use crate::measure::controller::Controller;
use crate::measure::{self, Start};
use crate::scenario::{Change, Changed, keep_changing};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// A controller that was killed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Restarted {
    pub changes_per_second: f64,
    pub start: Start,
    /// From the last change until every VM was shown as its host has it.
    pub same_s: Option<f64>,
    /// VMs that were not.
    pub different: usize,
    /// Since the new controller's first answer.
    #[serde(flatten)]
    pub seen: Seen,
}

pub(super) async fn storm(
    controller: &mut Controller,
    fleet: &Arc<RunningFleet>,
    strength: &Strength,
    claims: &mut Claims,
) -> Result<Restarted> {
    let change = Change {
        per_second: strength.changes_per_second,
        what: Changed::StateReason,
    };
    let mut changing = JoinSet::new();
    changing.spawn(keep_changing(fleet.clone(), change));
    sleep(strength.changing).await;

    controller.kill().await?;
    let witness = Witness::begin(controller, fleet);
    let start = measure::time_start(controller, fleet).await?;
    let limit = strength.within;
    for (seconds, what) in [
        (
            start.first_right_answer_s,
            "the new controller answers rightly",
        ),
        (
            start.all_online_s,
            "the new controller shows every host online",
        ),
    ] {
        let in_time = (seconds <= limit.as_secs_f64()).then_some(seconds);
        claims.require_within(in_time, limit, what);
    }
    sleep(strength.changing).await;
    changing.shutdown().await;

    let same = same::wait(&controller.client, fleet, limit).await?;
    claims.require_none(&same.differences, "after the controller was killed");
    Ok(Restarted {
        changes_per_second: strength.changes_per_second,
        start,
        same_s: same.seconds,
        different: same.differences.len(),
        seen: witness.end(fleet, &BTreeSet::new(), true, strength, claims),
    })
}
