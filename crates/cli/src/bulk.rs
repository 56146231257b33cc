//! One request for several VMs: a line as each ends, a summary, and exit code 3 when some failed.
//!
//! With a single name there is no summary: its failure is the command's, with its own exit code.

use crate::commands::Context;
use crate::exit::{Exit, Stop};
use crate::{interrupt, messages, wait};
use fleetward_api::controller::{Accepted, JobView};
use fleetward_api::plans::{VmPlan, Would};
use fleetward_model::{ErrorCode, Failure, JobId, VmName};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use std::io;

/// The VMs asked for, each once.
pub(crate) struct Targets {
    names: Vec<VmName>,
    /// One, by its name: its failure is the command's.
    alone: bool,
}

impl Targets {
    /// VMs that were not named but chosen by what they have in common: several, however many there are.
    pub(crate) fn chosen(names: Vec<VmName>) -> Self {
        Self {
            alone: false,
            ..Self::from(names)
        }
    }
}

impl From<Vec<VmName>> for Targets {
    fn from(names: Vec<VmName>) -> Self {
        let mut seen = std::collections::BTreeSet::new();
        let first = |name: &VmName| seen.insert(name.clone());
        let names: Vec<_> = names.into_iter().filter(first).collect();
        Self {
            alone: names.len() == 1,
            names,
        }
    }
}

/// Requests under way at once; the jobs behind them run side by side in the controller.
const AT_ONCE: usize = 16;

/// What is said of VMs that the request went well for.
pub(crate) struct Words<'a> {
    pub(crate) done: &'a dyn Fn(&JobView) -> String,
    /// Nothing had to be done.
    pub(crate) already: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Succeeded,
    Failed,
    Skipped,
}

#[derive(Debug, Serialize)]
struct Entry {
    vm: VmName,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<ErrorCode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<JobId>,
    /// What the job reports: a migration's `downtime_ms`, `total_ms`, `transferred`.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<serde_json::Value>,
    /// In a dry run: `change`, `nothing` or `fail`.
    #[serde(skip_serializing_if = "Option::is_none")]
    would: Option<Would>,
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    succeeded: usize,
    failed: usize,
    skipped: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    results: Vec<Entry>,
    summary: Summary,
}

/// How one VM's part ended.
enum End {
    Done(Box<JobView>),
    Already,
    /// With the job that failed, or waits for its host.
    Failed(Failure, Option<JobId>),
    /// Its job goes on without us.
    Left(JobId),
    NotBegun,
}

/// Sends `request` for each VM and waits for the jobs.
pub(crate) async fn run<R>(
    context: &Context,
    targets: impl Into<Targets>,
    words: Words<'_>,
    request: impl Fn(VmName) -> R,
) -> Result<Exit, Stop>
where
    R: Future<Output = Result<Accepted, Failure>>,
{
    run_at_once(context, targets, AT_ONCE, words, request).await
}

/// The same, with at most `at_once` of them under way.
pub(crate) async fn run_at_once<R>(
    context: &Context,
    targets: impl Into<Targets>,
    at_once: usize,
    words: Words<'_>,
    request: impl Fn(VmName) -> R,
) -> Result<Exit, Stop>
where
    R: Future<Output = Result<Accepted, Failure>>,
{
    let Targets { names, alone } = targets.into();
    let interrupt = interrupt::on_ctrl_c();

    let one = |(index, name): (usize, VmName)| {
        let (request, interrupt) = (&request, &interrupt);
        async move {
            if interrupt.is_cancelled() {
                return (index, name, End::NotBegun);
            }
            let end = match request(name.clone()).await {
                Err(failure) => End::Failed(failure, None),
                Ok(Accepted { job: None }) => End::Already,
                Ok(Accepted { job: Some(job) }) => {
                    let (controller, progress) = (&context.controller, &context.progress);
                    let ended = if alone {
                        wait::for_job(controller, progress, interrupt, name.as_str(), job).await
                    } else {
                        wait::for_one_of_many(controller, progress, interrupt, name.as_str(), job)
                            .await
                    };
                    match ended {
                        Ok(view) => End::Done(Box::new(view)),
                        Err(Stop::Failure(failure)) => End::Failed(failure, Some(job)),
                        Err(_) => End::Left(job),
                    }
                }
            };
            (index, name, end)
        }
    };
    let mut ends = stream::iter(names.into_iter().enumerate())
        .map(one)
        .buffer_unordered(at_once);

    let mut entries = Vec::new();
    let mut left = Vec::new();
    let mut refusal = None;
    while let Some((index, name, end)) = ends.next().await {
        if let End::Left(job) = end {
            left.push(job);
        }
        let entry = entry_of(name, &end, &words);
        context.progress.around(|| tell(context, &entry, alone))?;
        entries.push((index, entry));
        if let End::Failed(failure, _) = end {
            refusal = Some(failure);
        }
    }
    entries.sort_by_key(|(index, _)| *index);
    let results: Vec<Entry> = entries.into_iter().map(|(_, entry)| entry).collect();
    let summary = summary_of(&results);
    let failed = summary.failed;
    if !alone {
        context.output.line(&messages::bulk_summary(
            summary.succeeded,
            summary.failed,
            summary.skipped,
        ))?;
    }
    if !context.output.is_table() {
        let report = Report { results, summary };
        context.output.document(&report, String::new)?;
    }

    match refusal {
        _ if !left.is_empty() => Err(Stop::Interrupted(left)),
        Some(failure) if alone => Err(failure.into()),
        _ if failed > 0 => Ok(Exit::SomeFailed),
        _ => Ok(Exit::Done),
    }
}

/// Sends `request` for each VM and prints the jobs' ids.
pub(crate) async fn submit<R>(
    context: &Context,
    targets: impl Into<Targets>,
    request: impl Fn(VmName) -> R,
) -> Result<Exit, Stop>
where
    R: Future<Output = Result<Accepted, Failure>>,
{
    let Targets { names, alone } = targets.into();
    let mut jobs = Vec::new();
    let mut failed = false;
    for name in names {
        match request(name.clone()).await {
            Ok(Accepted { job }) => {
                if let Some(job) = job.filter(|_| context.output.is_table()) {
                    context.output.document(&job, || job.to_string())?;
                }
                jobs.push(Submitted { vm: name, job });
            }
            Err(failure) if alone => return Err(failure.into()),
            Err(failure) => {
                context.progress.remark(&messages::failure(&failure));
                failed = true;
            }
        }
    }
    if !context.output.is_table() {
        context.output.document(&jobs, String::new)?;
    }
    Ok(if failed { Exit::SomeFailed } else { Exit::Done })
}

/// What would happen to each VM, with the reason where nothing would: the same report, in which all are skipped.
pub(crate) fn dry_run(context: &Context, plans: Vec<VmPlan>) -> Result<Exit, Stop> {
    let mut results = Vec::new();
    let (mut change, mut fail, mut nothing) = (0, 0, 0);
    for plan in plans {
        match plan.would {
            Would::Change => change += 1,
            Would::Nothing => nothing += 1,
            Would::Fail => fail += 1,
        }
        let entry = Entry {
            vm: plan.vm,
            outcome: Outcome::Skipped,
            code: plan.code,
            message: Some(plan.message),
            job: None,
            result: None,
            would: Some(plan.would),
        };
        tell(context, &entry, false)?;
        results.push(entry);
    }
    context
        .output
        .line(&messages::would_summary(change, fail, nothing))?;
    let summary = summary_of(&results);
    if !context.output.is_table() {
        let report = Report { results, summary };
        context.output.document(&report, String::new)?;
    }
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Submitted {
    vm: VmName,
    job: Option<JobId>,
}

fn entry_of(vm: VmName, end: &End, words: &Words<'_>) -> Entry {
    let entry = |outcome, message: &str| Entry {
        vm: vm.clone(),
        outcome,
        code: None,
        message: Some(message.to_owned()),
        job: None,
        result: None,
        would: None,
    };
    match end {
        End::Done(job) => Entry {
            job: Some(job.id),
            result: job.result.clone(),
            ..entry(Outcome::Succeeded, &(words.done)(job))
        },
        End::Already => entry(Outcome::Skipped, words.already),
        End::Failed(failure, job) => Entry {
            code: Some(failure.code),
            job: *job,
            ..entry(Outcome::Failed, &short(failure))
        },
        End::Left(job) => Entry {
            job: Some(*job),
            ..entry(Outcome::Skipped, &messages::job_goes_on(*job))
        },
        End::NotBegun => entry(Outcome::Skipped, messages::NOT_STARTED),
    }
}

fn short(failure: &Failure) -> String {
    if failure.because.is_empty() {
        failure.what.clone()
    } else {
        format!("{}: {}", failure.what, failure.because)
    }
}

fn tell(context: &Context, entry: &Entry, alone: bool) -> io::Result<()> {
    // A single failure is printed on stderr, in full.
    if alone && entry.outcome == Outcome::Failed {
        return Ok(());
    }
    let message = entry.message.as_deref().unwrap_or_default();
    context.output.line(&match entry.code {
        Some(code) => format!("{}: {code}: {message}", entry.vm),
        None => format!("{}: {message}", entry.vm),
    })
}

fn summary_of(results: &[Entry]) -> Summary {
    let count = |outcome| results.iter().filter(|e| e.outcome == outcome).count();
    Summary {
        succeeded: count(Outcome::Succeeded),
        failed: count(Outcome::Failed),
        skipped: count(Outcome::Skipped),
    }
}
