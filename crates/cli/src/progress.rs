//! Progress on stderr: bars on a terminal, plain lines elsewhere, nothing when it should be quiet.

use crate::exit::say;
use crate::plain;
use fleetward_api::controller::{JobState, JobView};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::Duration;

/// Plain lines tell of every so many per cent.
const LINE_EVERY_PERCENT: u64 = 25;
const TICK: Duration = Duration::from_millis(120);

/// Shows what runs.
#[derive(Debug, Clone)]
pub(crate) enum Progress {
    Silent,
    Lines,
    Bars(MultiProgress),
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        if quiet {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Bars(MultiProgress::new())
        } else {
            Self::Lines
        }
    }

    /// Begins to show one thing, by its name.
    pub(crate) fn task(&self, name: &str) -> Task {
        Task {
            name: name.to_owned(),
            shown: match self {
                Self::Silent => Shown::Silent,
                Self::Lines => Shown::Lines(Mutex::default()),
                Self::Bars(bars) => {
                    let bar = bars.add(ProgressBar::new_spinner().with_style(spinner()));
                    bar.set_prefix(plain::line(name).into_owned());
                    bar.enable_steady_tick(TICK);
                    Shown::Bar(bar)
                }
            },
        }
    }

    /// A remark, above the bars where there are any.
    pub(crate) fn remark(&self, text: &str) {
        match self {
            Self::Silent => {}
            Self::Lines => say(text),
            Self::Bars(bars) => bars.suspend(|| say(text)),
        }
    }

    /// Writes to stdout without a bar in the way.
    pub(crate) fn around<T>(&self, write: impl FnOnce() -> T) -> T {
        match self {
            Self::Bars(bars) => bars.suspend(write),
            Self::Silent | Self::Lines => write(),
        }
    }
}

/// One thing that is shown. Dropping it takes its bar away.
#[derive(Debug)]
pub(crate) struct Task {
    name: String,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Silent,
    /// The line printed last, so that none is printed twice.
    Lines(Mutex<String>),
    Bar(ProgressBar),
}

/// What is counted of something that is partly done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    Bytes,
    /// Parts of the whole, of which only the percentage says something.
    Shares,
}

impl Task {
    /// Shows a job's step and how far it is.
    pub(crate) fn job(&self, job: &JobView) {
        // Between its last step and its end a job has nothing to say.
        let Some(step) = describe(job) else { return };
        match &self.shown {
            Shown::Silent => {}
            Shown::Lines(last) => {
                let going = job.state != JobState::Undoing;
                let progress = job.progress.as_ref().filter(|_| going);
                let percent = progress.and_then(|p| percent(p.done, p.total));
                self.line(last, &with_percent(&step, percent));
            }
            Shown::Bar(bar) => {
                match job.progress.as_ref().filter(|p| p.total > 0) {
                    Some(progress) => fill(bar, Counted::Bytes, progress.done, progress.total),
                    None => bar.set_style(spinner()),
                }
                bar.set_message(plain::line(&step).into_owned());
            }
        }
    }

    /// Shows what is done of something, and how much of it.
    pub(crate) fn part(&self, text: &str, counted: Counted, done: u64, total: u64) {
        match &self.shown {
            Shown::Silent => {}
            Shown::Lines(last) => self.line(last, &with_percent(text, percent(done, total))),
            Shown::Bar(bar) => {
                fill(bar, counted, done, total);
                bar.set_message(plain::line(text).into_owned());
            }
        }
    }

    fn line(&self, last: &Mutex<String>, text: &str) {
        let mut last = last.lock().expect("nothing panics while holding it");
        if *last != text {
            text.clone_into(&mut last);
            say(&plain::line(&format!("{}: {text}", self.name)));
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

/// `step 3/7 make-tpm`, and what it says of itself; none between steps.
fn describe(job: &JobView) -> Option<String> {
    if job.state.has_ended() {
        return None;
    }
    if let Some(reason) = &job.waiting {
        return Some(format!("waiting: {reason}"));
    }
    let current = job.current.as_ref()?;
    if job.state == JobState::Undoing {
        // What the step said of itself was said going forward.
        return Some(format!("undoing {current}"));
    }
    let at = job.steps.iter().position(|step| &step.name == current);
    // One that has not begun may have nothing to do, and is skipped then.
    if at.is_some_and(|at| job.steps[at].state == "pending") {
        return None;
    }
    let text = match at {
        Some(at) => format!("step {}/{} {current}", at + 1, job.steps.len()),
        None => current.clone(),
    };
    Some(match &job.progress {
        Some(progress) if !progress.text.is_empty() => format!("{text}: {}", progress.text),
        _ => text,
    })
}

/// In the coarse steps of plain lines.
fn percent(done: u64, total: u64) -> Option<u64> {
    let exact = done.saturating_mul(100).checked_div(total)?;
    Some(exact.min(100) / LINE_EVERY_PERCENT * LINE_EVERY_PERCENT)
}

fn with_percent(text: &str, percent: Option<u64>) -> String {
    match percent {
        Some(percent) => format!("{text}, {percent} %"),
        None => text.to_owned(),
    }
}

fn fill(bar: &ProgressBar, counted: Counted, done: u64, total: u64) {
    let template = match counted {
        Counted::Bytes => {
            "{prefix} [{bar:16}] {percent:>3} % {binary_bytes}/{binary_total_bytes} {wide_msg}"
        }
        Counted::Shares => "{prefix} [{bar:16}] {percent:>3} % {wide_msg}",
    };
    let style = ProgressStyle::with_template(template).expect("a good template");
    bar.set_style(style.progress_chars("=> "));
    bar.set_length(total);
    bar.set_position(done.min(total));
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} {spinner} {elapsed} {wide_msg}")
        .expect("a good template")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_has_not_begun_is_not_shown() {
        let shown = |state: &str| {
            let job = serde_json::json!({
                "id": "00000000-0000-0000-0000-000000000001", "kind": "vm-change", "target": "web",
                "state": "running", "created_by": "local:0", "created": "2026-11-26T08:00:00Z", "ended": null,
                "steps": [{"name": "make-tpm", "state": state, "attempts": 0, "started": null, "ended": null}],
                "current": "make-tpm", "progress": null, "waiting": null, "cancellable": true,
                "failure": null, "warnings": [], "result": null,
            });
            describe(&serde_json::from_value(job).expect("a job"))
        };
        assert_eq!(shown("pending"), None, "it may be skipped");
        assert_eq!(shown("running").as_deref(), Some("step 1/1 make-tpm"));
    }

    #[test]
    fn a_total_of_nothing_has_no_percentage() {
        assert_eq!(percent(0, 0), None);
        assert_eq!(percent(74, 100), Some(50));
        assert_eq!(percent(120, 100), Some(100));
        assert!(percent(u64::MAX, u64::MAX).is_some(), "no overflow");
    }
}
