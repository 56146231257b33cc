//! Scenarios: what happens in a simulated fleet, from a file.
//!
//! ```toml
//! [[change]]               # somebody does something to VMs, all over the fleet
//! per_second = 200
//! what = "state-reason"    # or "tpm": the guest writes its TPM; or "variables": its UEFI variables and its TPM
//!
//! [[fault]]                # something happens to hosts
//! kind = "silent"          # or another one of the table below
//! percent = 30             # of all hosts, always the same ones for the same seed
//!                          # or group = "group-00002": the hosts of that group
//! after_seconds = 60
//! for_seconds = 20
//! every_seconds = 120      # optional: again and again
//! ```
//!
//! | kind | what happens | what it takes |
//! |---|---|---|
//! | `silent` | connections stay, and nothing comes: a host that hangs | |
//! | `partition` | connections end, and new ones are refused | |
//! | `restart` | the agent ends, and is there again after `for_seconds` | |
//! | `flapping` | connections end and come again, each host in a rhythm of its own | `up_seconds`, `down_seconds` |
//! | `slow` | each answer takes its time | `delay_ms` |
//! | `clock` | the host's clock is wrong | `ahead_seconds` |
//! | `boot-storm` | the hosts lose their power and are back at once; the VMs that ran boot within `for_seconds`, and each writes its TPM | |
//! | `lying` | the host says what is not so | `lie` |
//!
//! | lie | what the host says |
//! |---|---|
//! | `others-vms` | that it has `vms` VMs of the next host |
//! | `any-vm` | asked for any VM, it answers with its first one: report and TPM, also where it does not have the VM |
//! | `growing-reports` | of its first VM, reports of 1 KiB, 2 KiB and so on up to 4 MiB |
//!
//! The module reads a scenario; [`events`] lets it happen.

mod events;
mod lies;

pub(crate) use events::{choose_hosts, keep_changing};

use crate::plan::FleetPlan;
use anyhow::{Context, Result, ensure};
use fleetward_model::GroupName;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

/// Every time of a scenario is shorter, seconds.
const LONGEST: f64 = 1e6;
/// A clock that is wrong by more is no clock: 30 years in seconds.
const FARTHEST_CLOCK: i64 = 30 * 365 * 86_400;
/// An answer that takes longer than any peer waits is silence, ms.
const LONGEST_DELAY: u64 = 600_000;
/// VMs of another host that one host claims.
const MOST_CLAIMS: u32 = 1000;

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
    #[serde(deserialize_with = "rate")]
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
    /// Its UEFI variables, and the state of its TPM with them.
    Variables,
}

/// What happens to some hosts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Fault {
    pub kind: FaultKind,
    pub whom: Whom,
    pub after: Duration,
    pub lasts: Duration,
    /// From one begin to the next; none: once.
    pub every: Option<Duration>,
}

/// The hosts of a fault.
#[derive(Debug, Clone, PartialEq)]
pub enum Whom {
    /// So many of a hundred of all hosts.
    Percent(f64),
    Group(GroupName),
}

/// What a host does meanwhile; the table of the module says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    Silent,
    Partition,
    Restart,
    Flapping { up: Duration, down: Duration },
    Slow { delay: Duration },
    Clock { ahead: time::Duration },
    BootStorm,
    Lying(Lie),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    OthersVms { vms: u32 },
    AnyVm,
    GrowingReports,
}

impl Scenario {
    pub fn read(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot read the scenario {}", path.display());
        let text = std::fs::read_to_string(path).with_context(cannot)?;
        Self::parse(&text).with_context(cannot)
    }

    /// # Errors
    /// A group that this fleet does not have.
    pub fn require_groups(&self, plan: &FleetPlan) -> Result<()> {
        for fault in &self.faults {
            if let Whom::Group(group) = &fault.whom {
                let there = (0..plan.hosts).any(|host| plan.group(host) == *group);
                ensure!(there, "a fault is of group {group}, which no host is of");
            }
        }
        Ok(())
    }

    /// # Errors
    /// What is no scenario, with the line and the reason.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }
}

/// A fault as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kind: Kind,
    #[serde(default, deserialize_with = "percent")]
    percent: Option<f64>,
    group: Option<GroupName>,
    #[serde(default, deserialize_with = "seconds")]
    after_seconds: Option<Duration>,
    #[serde(default, deserialize_with = "seconds")]
    for_seconds: Option<Duration>,
    #[serde(default, deserialize_with = "seconds")]
    every_seconds: Option<Duration>,
    #[serde(default, deserialize_with = "seconds")]
    up_seconds: Option<Duration>,
    #[serde(default, deserialize_with = "seconds")]
    down_seconds: Option<Duration>,
    #[serde(default, deserialize_with = "delay")]
    delay_ms: Option<Duration>,
    #[serde(default, deserialize_with = "clock")]
    ahead_seconds: Option<time::Duration>,
    lie: Option<LieKind>,
    #[serde(default, deserialize_with = "claims")]
    vms: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Silent,
    Partition,
    Restart,
    Flapping,
    Slow,
    Clock,
    BootStorm,
    Lying,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LieKind {
    OthersVms,
    AnyVm,
    GrowingReports,
}

impl TryFrom<Written> for Fault {
    type Error = String;

    fn try_from(mut written: Written) -> Result<Self, String> {
        let kind = written.take_kind()?;
        if let Some(field) = written.left() {
            return Err(format!("{field} is of another kind of fault than this one"));
        }
        let lasts = written.for_seconds.unwrap_or(Duration::from_secs(1));
        let every = written.every_seconds;
        if every.is_some_and(|every| every <= lasts) {
            return Err(
                "every_seconds is not longer than for_seconds, so the fault would never end".into(),
            );
        }
        let whom = match (written.percent, written.group) {
            (Some(percent), None) => Whom::Percent(percent),
            (None, Some(group)) => Whom::Group(group),
            _ => return Err("a fault needs either percent or group".into()),
        };
        Ok(Self {
            kind,
            whom,
            after: written.after_seconds.unwrap_or_default(),
            lasts,
            every,
        })
    }
}

impl Written {
    /// The kind, with what belongs to it taken out.
    fn take_kind(&mut self) -> Result<FaultKind, String> {
        Ok(match self.kind {
            Kind::Silent => FaultKind::Silent,
            Kind::Partition => FaultKind::Partition,
            Kind::Restart => FaultKind::Restart,
            Kind::Flapping => FaultKind::Flapping {
                up: rhythm("up_seconds", self.up_seconds.take())?,
                down: rhythm("down_seconds", self.down_seconds.take())?,
            },
            Kind::Slow => FaultKind::Slow {
                delay: needed("slow", "delay_ms", self.delay_ms.take())?,
            },
            Kind::Clock => FaultKind::Clock {
                ahead: needed("clock", "ahead_seconds", self.ahead_seconds.take())?,
            },
            Kind::BootStorm => FaultKind::BootStorm,
            Kind::Lying => FaultKind::Lying(match needed("lying", "lie", self.lie.take())? {
                LieKind::OthersVms => Lie::OthersVms {
                    vms: self.vms.take().unwrap_or(1),
                },
                LieKind::AnyVm => Lie::AnyVm,
                LieKind::GrowingReports => Lie::GrowingReports,
            }),
        })
    }

    /// What is there and belongs to another kind.
    fn left(&self) -> Option<&'static str> {
        let fields = [
            ("up_seconds", self.up_seconds.is_some()),
            ("down_seconds", self.down_seconds.is_some()),
            ("delay_ms", self.delay_ms.is_some()),
            ("ahead_seconds", self.ahead_seconds.is_some()),
            ("lie", self.lie.is_some()),
            ("vms", self.vms.is_some()),
        ];
        let left = fields.into_iter().find(|(_, is_there)| *is_there);
        left.map(|(field, _)| field)
    }
}

fn needed<T>(kind: &str, field: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("kind = \"{kind}\" needs {field}"))
}

/// A host that flaps faster than this is one that does not listen at all.
fn rhythm(field: &str, value: Option<Duration>) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(100);
    let time = needed("flapping", field, value)?;
    match time >= SHORTEST {
        true => Ok(time),
        false => Err(format!("{field} is at least 0.1")),
    }
}

/// A value of the file within bounds; the name of what is outside stands in the message, and the reader adds the line.
fn within<'de, T, D>(from: D, what: &str, bounds: RangeInclusive<T>) -> Result<T, D::Error>
where
    T: Deserialize<'de> + PartialOrd + std::fmt::Display,
    D: Deserializer<'de>,
{
    let value = T::deserialize(from)?;
    match bounds.contains(&value) {
        true => Ok(value),
        false => Err(D::Error::custom(format!(
            "{what} is {value}: it is {} to {}",
            bounds.start(),
            bounds.end()
        ))),
    }
}

fn rate<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    within(from, "per_second", 0.001..=100_000.0)
}

fn percent<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    within(from, "percent", 0.0..=100.0).map(Some)
}

fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let seconds = within(from, "a time in seconds", 0.0..=LONGEST)?;
    Ok(Some(Duration::from_secs_f64(seconds)))
}

fn delay<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let ms = within(from, "delay_ms", 1..=LONGEST_DELAY)?;
    Ok(Some(Duration::from_millis(ms)))
}

fn clock<'de, D: Deserializer<'de>>(from: D) -> Result<Option<time::Duration>, D::Error> {
    let ahead = within(from, "ahead_seconds", -FARTHEST_CLOCK..=FARTHEST_CLOCK)?;
    Ok(Some(time::Duration::seconds(ahead)))
}

fn claims<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    within(from, "vms", 1..=MOST_CLAIMS).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_is_read() {
        for (kind, read) in [
            ("\"silent\"", FaultKind::Silent),
            ("\"partition\"", FaultKind::Partition),
            ("\"restart\"", FaultKind::Restart),
            (
                "\"flapping\"\nup_seconds = 2\ndown_seconds = 0.5",
                FaultKind::Flapping {
                    up: Duration::from_secs(2),
                    down: Duration::from_millis(500),
                },
            ),
            (
                "\"slow\"\ndelay_ms = 700",
                FaultKind::Slow {
                    delay: Duration::from_millis(700),
                },
            ),
            (
                "\"clock\"\nahead_seconds = -60",
                FaultKind::Clock {
                    ahead: time::Duration::seconds(-60),
                },
            ),
            ("\"boot-storm\"", FaultKind::BootStorm),
            (
                "\"lying\"\nlie = \"others-vms\"\nvms = 3",
                FaultKind::Lying(Lie::OthersVms { vms: 3 }),
            ),
            ("\"lying\"\nlie = \"any-vm\"", FaultKind::Lying(Lie::AnyVm)),
            (
                "\"lying\"\nlie = \"growing-reports\"",
                FaultKind::Lying(Lie::GrowingReports),
            ),
        ] {
            let text =
                format!("[[change]]\nper_second = 5\n[[fault]]\npercent = 30\nkind = {kind}\n");
            let scenario = Scenario::parse(&text).expect(kind);
            assert_eq!(scenario.changes[0].what, Changed::StateReason);
            assert_eq!(scenario.faults[0].kind, read);
            assert_eq!(scenario.faults[0].lasts, Duration::from_secs(1));
        }
    }

    #[test]
    fn a_fault_can_be_of_the_hosts_of_a_group_that_the_fleet_has() {
        let text = "[[fault]]\nkind = \"partition\"\ngroup = \"group-00002\"\n";
        let scenario = Scenario::parse(text).expect("a scenario");
        let group = "group-00002".parse().expect("a name");
        assert_eq!(scenario.faults[0].whom, Whom::Group(group));
        let plan = |hosts| FleetPlan {
            hosts,
            vms: 0,
            hosts_per_group: 2,
            random_seed: 1,
            first_address: std::net::Ipv4Addr::LOCALHOST,
            port: 7443,
        };
        scenario.require_groups(&plan(3)).expect("it has it");
        scenario
            .require_groups(&plan(2))
            .expect_err("it has one group");
    }

    #[test]
    fn a_scenario_that_cannot_be_is_refused_with_the_line_and_the_reason() {
        let fault = |rest: &str| format!("\n[[fault]]\npercent = 1\n{rest}");
        for (wrong, line, because) in [
            ("[[change]]\nper_second = -1".to_owned(), 2, "per_second"),
            ("[[change]]\nper_second = nan".to_owned(), 2, "per_second"),
            (
                "[[change]]\nper_second = 5\nwhat = \"all\"".to_owned(),
                3,
                "all",
            ),
            ("[[chance]]\nper_second = 5".to_owned(), 1, "chance"),
            (
                "[[fault]]\nkind = \"silent\"\npercent = 130".to_owned(),
                3,
                "percent",
            ),
            ("[[fault]]\nkind = \"silent".to_owned(), 2, "string"),
            ("\u{0}\u{1}".to_owned(), 1, "key"),
            (fault("kind = \"melts\""), 4, "melts"),
            (fault("kind = \"silent\"\nfor_second = 1"), 5, "for_second"),
            (fault("kind = \"silent\"\nfor_seconds = -5"), 5, "seconds"),
            (
                fault("kind = \"silent\"\nfor_seconds = \"long\""),
                5,
                "string",
            ),
            (fault("kind = \"slow\"\ndelay_ms = 0"), 5, "delay_ms"),
            (
                fault("kind = \"clock\"\nahead_seconds = 9000000000"),
                5,
                "ahead_seconds",
            ),
            (fault("kind = \"lying\"\nlie = \"white\""), 5, "white"),
            (
                fault("kind = \"lying\"\nlie = \"others-vms\"\nvms = 0"),
                6,
                "vms",
            ),
            (
                "\n[[fault]]\nkind = \"silent\"\ngroup = \"no group!\"".to_owned(),
                4,
                "group",
            ),
            // What concerns several lines is told with the first of the fault.
            (
                "\n[[fault]]\nkind = \"silent\"".to_owned(),
                2,
                "either percent or group",
            ),
            (
                fault("kind = \"silent\"\ngroup = \"group-00001\""),
                2,
                "either percent or group",
            ),
            (fault("kind = \"slow\""), 2, "needs delay_ms"),
            (fault("kind = \"lying\""), 2, "needs lie"),
            (
                fault("kind = \"flapping\"\nup_seconds = 1"),
                2,
                "needs down_seconds",
            ),
            (
                fault("kind = \"flapping\"\nup_seconds = 0\ndown_seconds = 1"),
                2,
                "at least 0.1",
            ),
            (
                fault("kind = \"silent\"\ndelay_ms = 5"),
                2,
                "delay_ms is of another kind",
            ),
            (
                fault("kind = \"lying\"\nlie = \"any-vm\"\nvms = 2"),
                2,
                "vms is of another kind",
            ),
            (
                fault("kind = \"silent\"\nfor_seconds = 5\nevery_seconds = 4"),
                2,
                "never end",
            ),
        ] {
            let error = format!("{:#}", Scenario::parse(&wrong).expect_err(&wrong));
            assert!(
                error.contains(&format!("line {line}, ")),
                "{wrong}: {error}"
            );
            assert!(error.contains(because), "{wrong}: {error}");
        }
    }
}
