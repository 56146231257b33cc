//! The report of storms for people.

use super::{Report, Seen};
use crate::measure::latencies::Summary;
use std::fmt::Write;

/// A column: the name of a storm, and what was seen during it.
type Column<'r> = (&'static str, &'r Seen);

/// A table in Markdown, and below it what does not hold.
pub fn table(report: &Report) -> String {
    let mut text = format!("{} hosts, {} VMs\n\n", report.fleet.hosts, report.fleet.vms);
    let mut columns: Vec<Column<'_>> = vec![("hosts vanish", &report.vanish.seen)];
    columns.extend(
        report
            .restart
            .iter()
            .map(|restart| ("kill -9", &restart.seen)),
    );
    columns.push(("jobs at once", &report.jobs.seen));
    let names: Vec<String> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    row(&mut text, "", &names);
    row(&mut text, "---", &vec!["---".to_owned(); columns.len()]);
    for (name, cell) in [
        (
            "one VM, p50 and p99",
            (|seen| times(seen.answers.vm)) as fn(&Seen) -> String,
        ),
        ("100 VMs of the list", |seen| times(seen.answers.vms_page)),
        ("requests without an answer", |seen| {
            seen.answers.failed.to_string()
        }),
        ("hosts there, and shown unreachable", |seen| {
            seen.falsely_lost.to_string()
        }),
        ("hosts there, and called again", |seen| {
            seen.called_again.to_string()
        }),
    ] {
        let cells: Vec<String> = columns.iter().map(|(_, seen)| cell(seen)).collect();
        row(&mut text, name, &cells);
    }
    text.push('\n');
    facts(&mut text, report);
    match report.broken.is_empty() {
        true => text.push_str("\nEvery claim holds.\n"),
        false => text.push_str("\nWhat does not hold:\n"),
    }
    for sentence in &report.broken {
        let _ = writeln!(text, "- {sentence}");
    }
    text
}

fn facts(text: &mut String, report: &Report) {
    let vanish = &report.vanish;
    let _ = writeln!(
        text,
        "- {} hosts vanished: shown so after {}, back {} after their return, every VM as its host has it {} later",
        vanish.hosts,
        seconds(vanish.shown_s),
        seconds(vanish.back_s),
        seconds(vanish.same_s)
    );
    match &report.restart {
        Some(restart) => {
            let _ = writeln!(
                text,
                "- kill -9 at {:.0} changes a second: the first right answer after {:.2} s, all hosts online after {:.1} s, every \
                 VM as its host has it {} after the last change",
                restart.changes_per_second,
                restart.start.first_right_answer_s,
                restart.start.all_online_s,
                seconds(restart.same_s)
            );
        }
        None => text.push_str("- the controller was given, and was not killed\n"),
    }
    let jobs = &report.jobs;
    let _ = writeln!(
        text,
        "- {} jobs at once: {} accepted ({} each), {} ended well, {} done by hosts, all within {:.1} s",
        jobs.submitted,
        jobs.accepted,
        times(jobs.submit),
        jobs.done,
        jobs.performed,
        jobs.seconds
    );
    let _ = writeln!(
        text,
        "- load of the machine {:.1}, stolen {:.1} %",
        report.machine.load[0], report.machine.stolen_percent
    );
}

fn row(text: &mut String, name: &str, cells: &[String]) {
    let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
}

fn times(times: Summary) -> String {
    format!("{:.1}, {:.1} ms", times.p50_ms, times.p99_ms)
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(
        || "not in time".to_owned(),
        |seconds| format!("{seconds:.1} s"),
    )
}
