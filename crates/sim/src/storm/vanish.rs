//! A share of the hosts vanishes at once, and returns at once.

use super::witness::Witness;
use super::{Claims, Seen, Strength, same};
use crate::agent::FakeAgent;
use crate::fleet::RunningFleet;
use crate::measure::controller::Controller;
use crate::scenario::choose_hosts;
use anyhow::Result;
use fleetward_model::HostName;
use futures_util::future::join_all;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use tokio::time::sleep;

/// Hosts that were away.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Vanished {
    pub hosts: usize,
    /// Until all of them were shown unreachable.
    pub shown_s: Option<f64>,
    /// From their return until none of them was.
    pub back_s: Option<f64>,
    /// After that, until every VM of the fleet was shown as its host has it.
    pub same_s: Option<f64>,
    #[serde(flatten)]
    pub seen: Seen,
}

pub(super) async fn storm(
    controller: &Controller,
    fleet: &Arc<RunningFleet>,
    strength: &Strength,
    claims: &mut Claims,
) -> Result<Vanished> {
    let mut random = fastrand::Rng::with_seed(fleet.plan.random_seed);
    let chosen = choose_hosts(fleet.hosts.len(), strength.vanish_percent, &mut random);
    let hosts: Vec<&FakeAgent> = chosen.into_iter().map(|host| &fleet.hosts[host]).collect();
    let names: BTreeSet<HostName> = hosts.iter().map(|host| host.host.clone()).collect();
    let witness = Witness::begin(controller, fleet);
    let limit = strength.within;
    let none = witness.until(limit, BTreeSet::is_empty).await;
    claims.require_within(
        none,
        limit,
        "all hosts are shown online before any vanishes",
    );

    let begin = Instant::now();
    hosts.iter().for_each(|host| host.cut());
    let shown_s = witness
        .until(limit, |shown| shown.is_superset(&names))
        .await;
    claims.require_within(
        shown_s,
        limit,
        "the hosts that vanished are shown unreachable",
    );
    sleep(strength.away.saturating_sub(begin.elapsed())).await;

    join_all(hosts.iter().map(|host| host.listen_again())).await;
    let back_s = witness
        .until(limit, |shown| shown.is_disjoint(&names))
        .await;
    claims.require_within(back_s, limit, "the hosts that vanished are back");
    let same = same::wait(&controller.client, fleet, limit).await?;
    claims.require_none(&same.differences, "after hosts vanished and returned");
    Ok(Vanished {
        hosts: names.len(),
        shown_s,
        back_s,
        same_s: same.seconds,
        seen: witness.end(fleet, &names, false, strength, claims),
    })
}
