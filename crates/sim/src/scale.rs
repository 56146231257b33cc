//! Measures a controller at several sizes, each with a fleet and data of its own, and writes a table.

use crate::directory::{Directory, Fleet, Protectors};
use crate::fleet::RunningFleet;
use crate::measure::controller::Controller;
use crate::measure::copies::Copies;
use crate::measure::latencies::Summary;
use crate::measure::process::Usage;
use crate::measure::{self, Effort, Report};
use crate::plan::FleetPlan;
use crate::prepare::prepare;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// How many hosts, and VMs of each: `1000x25`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub hosts: u32,
    pub vms: u32,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size: HOSTSxVMS, for instance 1000x25");
        let (hosts, vms) = text.split_once('x').ok_or_else(wrong)?;
        let (hosts, vms) = (hosts.parse().ok(), vms.parse().ok());
        match (hosts, vms) {
            (Some(hosts @ 1..=crate::plan::MOST_HOSTS), Some(vms @ 0..=1000)) => {
                Ok(Self { hosts, vms })
            }
            _ => Err(wrong()),
        }
    }
}

/// What the sizes have in common.
#[derive(Debug, Clone)]
pub struct Setting {
    /// `fleetward`.
    pub program: PathBuf,
    /// Where the controller that is measured listens.
    pub listen: SocketAddr,
    pub plan: FleetPlan,
    pub protectors: Protectors,
    pub effort: Effort,
    pub commit: String,
}

/// A controller of its own below `work`, which is empty or does not exist, with a fleet whose hosts have joined and do not
/// run.
pub async fn begin(
    program: &Path,
    listen: SocketAddr,
    fleet: &Fleet,
    work: &Path,
) -> Result<(Controller, Directory)> {
    fleetward_durable::ensure_directory(work, 0o700)
        .with_context(|| format!("cannot make {}", work.display()))?;
    let mut controller = Controller::of_program(program, &work.join("controller"), listen);
    controller.spawn()?;
    controller.wait_ready().await?;
    let joined = prepare(&controller.client, fleet, &work.join("fleet"), |_| {}).await?;
    Ok((controller, joined.0))
}

/// Measures one size below `work`, which is empty or does not exist.
pub async fn measure_size(
    setting: &Setting,
    size: Size,
    work: &Path,
    say: impl Fn(&str),
) -> Result<Report> {
    let fleet = Fleet {
        plan: FleetPlan {
            hosts: size.hosts,
            vms: size.vms,
            ..setting.plan.clone()
        },
        shared_guardian: true,
        protectors: setting.protectors,
    };
    say("the hosts join");
    let (mut controller, directory) = begin(&setting.program, setting.listen, &fleet, work).await?;
    controller.kill().await?;
    let running = Arc::new(RunningFleet::start(&directory, &fleet).await?);
    say("the controller starts");
    let start = measure::time_start(&mut controller, &running).await?;
    let measured = measure::run(&mut controller, &running, &setting.effort, Some(start), say);
    let mut report = measured.await?;
    report.commit.clone_from(&setting.commit);
    running.stop();
    controller.kill().await?;
    Ok(report)
}

/// One row of the table: what it is called, and what it says of a report.
type Row = (&'static str, fn(&Report) -> String);

const ROWS: &[Row] = &[
    ("VMs", |r| r.fleet.vms.to_string()),
    ("start to first right answer, all online", |r| {
        start(r.start)
    }),
    ("controller's CPU until then", |r| cpu(r.start)),
    ("kill -9 to first right answer, all online", |r| {
        start(r.restart)
    }),
    ("controller's CPU until then, again", |r| cpu(r.restart)),
    ("resident, highest", |r| {
        format!("{:.0}, {:.0} MB", r.memory.resident_mb, r.memory.highest_mb)
    }),
    ("descriptors", |r| r.memory.descriptors.to_string()),
    ("idle CPU, one core = 100 %", |r| {
        format!("{:.1} %", r.idle.cpu_percent)
    }),
    ("idle disk writes", |r| {
        format!("{:.2} MB/s", r.idle.written_mb_per_second)
    }),
    ("status p50, p99; CPU", |r| requests(r, "status")),
    ("one VM", |r| requests(r, "vm")),
    ("100 VMs of the list", |r| requests(r, "vms_page")),
    ("VMs of a host", |r| requests(r, "vms_of_host")),
    ("one host", |r| requests(r, "host")),
    ("100 hosts of the list", |r| requests(r, "hosts_page")),
    ("100 jobs", |r| requests(r, "jobs_page")),
    ("metrics", |r| requests(r, "metrics")),
    ("check of a VM against a host", |r| requests(r, "check_vm")),
    ("check of 100 hosts, counts", |r| {
        requests(r, "check_hosts_page")
    }),
    ("beside each other, p99 alone and held up: status", |r| {
        beside(r, "status")
    }),
    ("the same: host list", |r| beside(r, "host_list")),
    ("the same: check --by-host", |r| beside(r, "check_by_host")),
    ("the same: metrics", |r| beside(r, "metrics")),
    ("the same: audit --vm", |r| beside(r, "audit_of_vm")),
    ("the same: one VM", |r| beside(r, "vm")),
    ("the same: 100 VMs of the list", |r| beside(r, "vms_page")),
    ("start of a VM: submit p50, p99", |r| summary(r.job_submit)),
    ("the same, job end to end", |r| summary(r.job)),
    ("change to visible, idle", |r| summary(r.event_to_visible)),
    ("change to visible under changes", |r| {
        r.under_changes
            .map_or_else(nothing, |under| summary(under.event_to_visible))
    }),
    ("CPU, disk writes under changes", |r| {
        r.under_changes.map_or_else(nothing, |under| {
            let Usage {
                cpu_percent,
                written_mb_per_second,
                ..
            } = under.usage;
            format!(
                "{cpu_percent:.0} %, {written_mb_per_second:.2} MB/s at {:.0}/s",
                under.changes_per_second
            )
        })
    }),
    ("first copies of TPMs", |r| {
        r.first_copies.map_or_else(nothing, copies)
    }),
    ("copies of TPMs that guests write", |r| {
        r.tpm_writes.map_or_else(nothing, |writes| {
            let rate = writes.writes_per_second;
            format!("{} at {rate:.0}/s", copies(writes.copies))
        })
    }),
    ("load of the machine, stolen", |r| {
        format!(
            "{:.1}, {:.1} %",
            r.machine.load[0], r.machine.stolen_percent
        )
    }),
];

fn copies(copies: Copies) -> String {
    format!(
        "{}: {:.0}/s, {:.1} ms CPU and {:.0} kB each",
        copies.copies, copies.per_second, copies.cpu_ms_each, copies.kb_each
    )
}

fn nothing() -> String {
    "-".to_owned()
}

fn start(start: Option<measure::Start>) -> String {
    start.map_or_else(nothing, |start| {
        let measure::Start {
            first_right_answer_s,
            all_online_s,
            ..
        } = start;
        format!("{first_right_answer_s:.2}, {all_online_s:.1} s")
    })
}

fn cpu(start: Option<measure::Start>) -> String {
    start.map_or_else(nothing, |start| format!("{:.1} s", start.cpu_seconds))
}

fn summary(summary: Summary) -> String {
    format!("{:.1}, {:.1} ms", summary.p50_ms, summary.p99_ms)
}

fn requests(report: &Report, name: &str) -> String {
    report.requests.get(name).map_or_else(nothing, |requests| {
        format!("{}; {:.2} ms", summary(requests.times), requests.cpu_ms)
    })
}

fn beside(report: &Report, name: &str) -> String {
    report.beside.get(name).map_or_else(nothing, |beside| {
        format!(
            "{:.1}, +{:.1} ms",
            beside.alone.p99_ms, beside.held_up_p99_ms
        )
    })
}

/// A table in Markdown with a column for each report.
pub fn table(reports: &[(Size, Report)]) -> String {
    let mut text = "| |".to_owned();
    for (Size { hosts, vms }, _) in reports {
        let _ = write!(text, " {hosts}x{vms} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(reports.len()));
    for (name, cell) in ROWS {
        let _ = write!(text, "\n| {name} |");
        for (_, report) in reports {
            let _ = write!(text, " {} |", cell(report));
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_hosts_times_vms() {
        let size = "1000x25".parse();
        assert_eq!(
            size,
            Ok(Size {
                hosts: 1000,
                vms: 25
            })
        );
        for wrong in ["1000", "0x5", "x", "-1x5", "5x5000"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
