//! Scenarios: what happens in a simulated fleet, from a file.
//!
//! ```toml
//! [[change]]               # somebody does something to VMs, all over the fleet
//! per_second = 200
//! what = "state-reason"    # or "tpm": the guest writes its TPM
//!
//! [[fault]]                # something happens to hosts
//! kind = "silent"          # or "partition", "restart", "slow", "clock"
//! percent = 30             # of all hosts, always the same ones for the same seed
//! after_seconds = 60
//! for_seconds = 20
//! every_seconds = 120      # optional: again and again
//! ```

use crate::fleet::RunningFleet;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// What happens. Nothing, by default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    #[serde(default, rename = "change")]
    pub changes: Vec<Change>,
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
}

/// VMs that change.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub per_second: f64,
    #[serde(default)]
    pub what: Changed,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Changed {
    /// Why it is in its state, which only lists show.
    #[default]
    StateReason,
    /// The state of its TPM, of which the controller takes a copy.
    Tpm,
}

/// What happens to some hosts.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub kind: FaultKind,
    pub percent: f64,
    #[serde(default)]
    pub after_seconds: f64,
    #[serde(default = "Fault::shortest")]
    pub for_seconds: f64,
    pub every_seconds: Option<f64>,
    /// Of `slow` hosts: how long each answer takes.
    #[serde(default)]
    pub delay_ms: u64,
    /// Of hosts with a wrong `clock`: how far it is ahead.
    #[serde(default)]
    pub ahead_seconds: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Connections stay, and nothing comes: a host that hangs.
    Silent,
    /// Connections end, and new ones are refused.
    Partition,
    /// The agent ends and is there again after that time.
    Restart,
    /// Each answer takes `delay_ms`.
    Slow,
    /// The clock is `ahead_seconds` ahead.
    Clock,
}

impl Fault {
    fn shortest() -> f64 {
        1.0
    }
}

impl Scenario {
    pub fn read(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot read the scenario {}", path.display());
        let text = std::fs::read_to_string(path).with_context(cannot)?;
        Self::parse(&text).with_context(cannot)
    }

    /// # Errors
    /// What is no scenario, and numbers that nothing can be done with.
    pub fn parse(text: &str) -> Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        for change in &scenario.changes {
            if !(change.per_second > 0.0 && change.per_second <= 100_000.0) {
                bail!(
                    "per_second is {}: it is more than 0 and at most 100,000",
                    change.per_second
                );
            }
        }
        for fault in &scenario.faults {
            if !(0.0..=100.0).contains(&fault.percent) {
                bail!("percent is {}: it is 0 to 100", fault.percent);
            }
            let times = [
                Some(fault.after_seconds),
                Some(fault.for_seconds),
                fault.every_seconds,
            ];
            if let Some(wrong) = times
                .iter()
                .flatten()
                .find(|time| !(0.0..=1e6).contains(*time))
            {
                bail!("{wrong} seconds: times are 0 to 1,000,000");
            }
            if fault
                .every_seconds
                .is_some_and(|every| every <= fault.for_seconds)
            {
                bail!("every_seconds is not longer than for_seconds, so the fault would never end");
            }
        }
        Ok(scenario)
    }

    /// Begins all of it. It ends with the runtime.
    pub fn begin(self, fleet: &Arc<RunningFleet>) {
        for change in self.changes {
            tokio::spawn(keep_changing(fleet.clone(), change));
        }
        for (number, fault) in (0..).zip(self.faults) {
            tokio::spawn(keep_failing(fleet.clone(), fault, number));
        }
    }
}

/// Until the runtime ends.
pub(crate) async fn keep_changing(fleet: Arc<RunningFleet>, change: Change) {
    let vms = fleet.plan.all_vms();
    if vms == 0 {
        return;
    }
    let mut random = fastrand::Rng::with_seed(fleet.plan.random_seed);
    let begin = Instant::now();
    let mut due = interval(Duration::from_millis(10));
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut done = 0_u64;
    loop {
        due.tick().await;
        let wanted = (begin.elapsed().as_secs_f64() * change.per_second) as u64;
        while done < wanted {
            done += 1;
            let vm = random.u32(0..vms);
            match change.what {
                Changed::StateReason => fleet.touch(vm, format!("change {done}")),
                Changed::Tpm => fleet.write_tpm(vm),
            };
        }
    }
}

async fn keep_failing(fleet: Arc<RunningFleet>, fault: Fault, number: u64) {
    let hosts = fault.hosts(&fleet, number);
    sleep(Duration::from_secs_f64(fault.after_seconds)).await;
    loop {
        let begin = Instant::now();
        for host in &hosts {
            fault.begin(&fleet, *host);
        }
        tracing::info!(kind = ?fault.kind, hosts = hosts.len(), "a fault begins");
        sleep(Duration::from_secs_f64(fault.for_seconds)).await;
        for host in &hosts {
            if let Err(error) = fault.end(&fleet, *host).await {
                tracing::warn!(host = %fleet.hosts[*host].host, %error, "the host does not come back");
            }
        }
        tracing::info!(kind = ?fault.kind, hosts = hosts.len(), "a fault has ended");
        let Some(every) = fault.every_seconds else {
            return;
        };
        let next = Duration::from_secs_f64(every).saturating_sub(begin.elapsed());
        sleep(next).await;
    }
}

impl Fault {
    /// The hosts that it happens to.
    fn hosts(&self, fleet: &RunningFleet, number: u64) -> Vec<usize> {
        let mut random = fastrand::Rng::with_seed(fleet.plan.random_seed ^ (number + 1));
        let mut hosts: Vec<usize> = (0..fleet.hosts.len()).collect();
        random.shuffle(&mut hosts);
        let share = (hosts.len() as f64 * self.percent / 100.0).round() as usize;
        hosts.truncate(share);
        hosts
    }

    fn begin(&self, fleet: &RunningFleet, host: usize) {
        let host = &fleet.hosts[host];
        match self.kind {
            FaultKind::Silent => host.silence(true),
            FaultKind::Partition | FaultKind::Restart => host.cut(),
            FaultKind::Slow => {
                let delay = Duration::from_millis(self.delay_ms);
                host.look(|inner| inner.delay = delay);
            }
            FaultKind::Clock => {
                let ahead = time::Duration::seconds(self.ahead_seconds);
                host.look(|inner| inner.clock_ahead = ahead);
            }
        }
    }

    async fn end(&self, fleet: &RunningFleet, host: usize) -> std::io::Result<()> {
        let host = &fleet.hosts[host];
        match self.kind {
            FaultKind::Silent => host.silence(false),
            FaultKind::Partition | FaultKind::Restart => host.listen().await?,
            FaultKind::Slow => host.look(|inner| inner.delay = Duration::ZERO),
            FaultKind::Clock => host.look(|inner| inner.clock_ahead = time::Duration::ZERO),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_read_and_one_that_cannot_be_is_refused_with_the_reason() {
        let text = "[[change]]\nper_second = 5\n[[fault]]\nkind = \"silent\"\npercent = 30\n";
        let scenario = Scenario::parse(text).expect("a scenario");
        assert_eq!(scenario.changes[0].what, Changed::StateReason);
        assert_eq!(scenario.faults[0].kind, FaultKind::Silent);
        for (wrong, because) in [
            ("[[change]]\nper_second = -1", "per_second"),
            ("[[fault]]\nkind = \"silent\"\npercent = 130", "percent"),
            ("[[fault]]\nkind = \"melts\"\npercent = 1", "melts"),
            (
                "[[fault]]\nkind = \"slow\"\npercent = 1\nfor_seconds = 5\nevery_seconds = 4",
                "never end",
            ),
            (
                "[[fault]]\nkind = \"slow\"\npercent = 1\nfor_seconds = -5",
                "seconds",
            ),
        ] {
            let error = format!("{:#}", Scenario::parse(wrong).expect_err(wrong));
            assert!(error.contains(because), "{error}");
        }
    }
}
