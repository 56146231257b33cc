//! One request for several VMs: a line as each ends, a summary, and exit code 3 when some failed. The controller decides
//! which VMs are meant, begins and follows their jobs; this module prints what it answers.
//!
//! A single VM that is named gets the request for one VM. There is no summary then: its failure is the command's, with its
//! own exit code.

mod follow;

pub(crate) use follow::{Again, follow};

use crate::commands::Context;
use crate::exit::{Exit, Stop};
use crate::{interrupt, messages, wait};
use fleetward_api::bulk::{
    BulkEntry, BulkEvent, BulkRequest, BulkSummary, Plan, Selection, Target, VmAction, Would,
};
use fleetward_api::controller::{Accepted, Outcome};
use fleetward_api::verbs::{
    SecureBootEnroll, SecureBootRestore, TpmDisable, TpmEnable, TpmRestore, TpmRoll, TpmUnlock,
    Verb, VmBulk, VmDelete, VmMigrate, VmRestart, VmStart, VmStop,
};
use fleetward_model::{ErrorCode, Failure, JobId, VmName};
use serde::Serialize;
use std::io;

#[derive(Debug, Serialize)]
struct Report {
    results: Vec<BulkEntry>,
    summary: BulkSummary,
}

impl Report {
    fn of(results: Vec<BulkEntry>) -> Self {
        let mut summary = BulkSummary::default();
        for entry in &results {
            summary.count(entry.outcome);
        }
        Self { results, summary }
    }
}

/// A job that was submitted; none where there was nothing to do.
#[derive(Debug, Serialize)]
struct SubmittedJob {
    vm: String,
    job: Option<JobId>,
}

/// Asks the same of VMs that were named.
pub(crate) async fn named(
    context: &Context,
    names: Vec<VmName>,
    action: VmAction,
    no_wait: bool,
) -> Result<Exit, Stop> {
    let mut request = BulkRequest {
        action,
        vms: Selection::Named(names),
        dry_run: false,
        how: Default::default(),
    };
    request.how.wait = !no_wait;
    run(context, request).await
}

/// Sends the request, and waits for the jobs unless it says otherwise.
pub(crate) async fn run(context: &Context, request: BulkRequest) -> Result<Exit, Stop> {
    let one = match &request.vms {
        Selection::Named(names) => names.first().filter(|one| names.iter().all(|n| n == *one)),
        Selection::All | Selection::Matching(_) | Selection::Planned(_) => None,
    };
    match (one, request.how.wait) {
        (Some(name), true) => alone(context, name, &request.action).await,
        (Some(name), false) => submit_alone(context, name, &request.action).await,
        (None, true) => several(context, request).await,
        (None, false) => submit_several(context, request).await,
    }
}

async fn alone(context: &Context, name: &VmName, action: &VmAction) -> Result<Exit, Stop> {
    let target = Target::Vm(name.clone());
    let interrupt = interrupt::on_ctrl_c();
    let (entry, stop) = match ask(context, name, action).await {
        Err(failure) => (
            BulkEntry::failed(target, &failure, None),
            Some(failure.into()),
        ),
        Ok(Accepted { job: None }) => {
            let entry = BulkEntry::new(target, Outcome::Skipped, action.already());
            (entry, None)
        }
        Ok(Accepted { job: Some(job) }) => {
            let (controller, progress) = (&context.controller, &context.progress);
            match wait::for_job(controller, progress, &interrupt, name.as_str(), job).await {
                Ok(view) => (BulkEntry::done(target, action.done(&view), &view), None),
                Err(Stop::Failure(failure)) => {
                    let entry = BulkEntry::failed(target, &failure, Some(job));
                    (entry, Some(failure.into()))
                }
                Err(stop) => (BulkEntry::left(target, job), Some(stop)),
            }
        }
    };
    // A single failure is printed on stderr, in full.
    if entry.outcome != Outcome::Failed {
        tell(context, &entry)?;
    }
    if !context.output.is_table() {
        let report = Report::of(vec![entry]);
        context.output.document(&report, String::new)?;
    }
    stop.map_or(Ok(Exit::Done), Err)
}

async fn submit_alone(context: &Context, name: &VmName, action: &VmAction) -> Result<Exit, Stop> {
    let Accepted { job } = ask(context, name, action).await?;
    match job {
        Some(job) if context.output.is_table() => {
            context.output.document(&job, || job.to_string())?;
        }
        None if context.output.is_table() => {}
        job => {
            let vm = name.to_string();
            let jobs = [SubmittedJob { vm, job }];
            context.output.document(&jobs, String::new)?;
        }
    }
    Ok(Exit::Done)
}

/// The request for one VM.
async fn ask(context: &Context, name: &VmName, action: &VmAction) -> Result<Accepted, Failure> {
    let (controller, path) = (&context.controller, [name.as_str()]);
    match action {
        VmAction::Start => controller.call::<VmStart>(path, &()).await,
        VmAction::Stop(request) => controller.call::<VmStop>(path, request).await,
        VmAction::Restart(request) => controller.call::<VmRestart>(path, request).await,
        VmAction::Delete(request) => controller.call::<VmDelete>(path, request).await,
        VmAction::Migrate(request) => controller.call::<VmMigrate>(path, request).await,
        VmAction::TpmEnable(request) => controller.call::<TpmEnable>(path, request).await,
        VmAction::TpmDisable(request) => controller.call::<TpmDisable>(path, request).await,
        VmAction::TpmRestore(request) => controller.call::<TpmRestore>(path, request).await,
        VmAction::TpmRoll(request) => controller.call::<TpmRoll>(path, request).await,
        VmAction::TpmUnlock(request) => controller.call::<TpmUnlock>(path, request).await,
        VmAction::SecureBootEnroll(request) => {
            controller.call::<SecureBootEnroll>(path, request).await
        }
        VmAction::SecureBootRestore(request) => {
            controller.call::<SecureBootRestore>(path, request).await
        }
    }
}

async fn several(context: &Context, request: BulkRequest) -> Result<Exit, Stop> {
    let followed = follow::<VmBulk>(
        context,
        |again| asked(&request, again),
        |entry| Ok(context.progress.around(|| tell(context, entry))?),
    );
    let report = Report::of(followed.await?);
    let BulkSummary {
        succeeded,
        failed,
        skipped,
    } = report.summary;
    let left: Vec<_> = report
        .results
        .iter()
        .filter_map(|entry| entry.job.filter(|_| entry.goes_on))
        .collect();
    context
        .output
        .line(&messages::bulk_summary(succeeded, failed, skipped))?;
    if !context.output.is_table() {
        context.output.document(&report, String::new)?;
    }
    match failed {
        _ if !left.is_empty() => Err(Stop::Interrupted(left)),
        0 => Ok(Exit::Done),
        _ => Ok(Exit::SomeFailed),
    }
}

async fn submit_several(context: &Context, request: BulkRequest) -> Result<Exit, Stop> {
    let print = |entry: &BulkEntry| {
        if let Some(failure) = &entry.failure {
            context.progress.remark(&messages::failure(failure));
        } else if let Some(job) = entry.job.filter(|_| context.output.is_table()) {
            context.output.document(&job, || job.to_string())?;
        }
        Ok(())
    };
    let entries = follow::<VmBulk>(context, |again| asked(&request, again), print).await?;
    let failed = entries.iter().any(|e| e.outcome == Outcome::Failed);
    if !context.output.is_table() {
        let accepted = entries.iter().filter(|e| e.outcome != Outcome::Failed);
        let jobs: Vec<_> = accepted
            .map(|entry| SubmittedJob {
                vm: entry.target.to_string(),
                job: entry.job,
            })
            .collect();
        context.output.document(&jobs, String::new)?;
    }
    Ok(if failed { Exit::SomeFailed } else { Exit::Done })
}

/// The request as it is sent first, or once more after the answer was cut off.
fn asked(request: &BulkRequest, again: Option<Again>) -> BulkRequest {
    let mut request = request.clone();
    if let Some(Again { rest, jobs }) = again {
        let names = rest.into_iter().filter_map(|target| match target {
            Target::Vm(name) => Some(name),
            Target::Host(_) => None,
        });
        let names = names.collect();
        request.vms = match request.vms.is_chosen() {
            true => Selection::Planned(names),
            false => Selection::Named(names),
        };
        request.how.jobs = jobs;
    }
    request
}

/// What the request would do, as the controller says.
pub(crate) async fn plans<V>(context: &Context, request: &V::Request) -> Result<Vec<Plan>, Failure>
where
    V: for<'a> Verb<Path<'a> = [&'a str; 0], Answer = BulkEvent>,
{
    let mut events = context.controller.follow::<V>([], request).await?;
    let mut plans = Vec::new();
    loop {
        match events.next().await? {
            Some(BulkEvent::Planned(plan)) => plans.push(plan),
            Some(BulkEvent::Summary(_)) => return Ok(plans),
            Some(_) => {}
            None => {
                let what = "the controller ended in the middle of its answer";
                return Err(Failure::new(ErrorCode::ControllerUnreachable, what));
            }
        }
    }
}

/// An entry of a dry run.
#[derive(Debug, Serialize)]
struct Planned {
    #[serde(flatten)]
    target: Target,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<ErrorCode>,
    message: String,
    would: Would,
}

/// What would happen to each VM, with the reason where nothing would: the same report, in which all are skipped.
pub(crate) fn dry_run(context: &Context, plans: Vec<Plan>) -> Result<Exit, Stop> {
    #[derive(Serialize)]
    struct Report {
        results: Vec<Planned>,
        summary: BulkSummary,
    }
    let mut results = Vec::new();
    let (mut change, mut fail, mut nothing) = (0, 0, 0);
    for plan in plans {
        match plan.would {
            Would::Change => change += 1,
            Would::Nothing => nothing += 1,
            Would::Fail => fail += 1,
        }
        let code = plan.failure.map(|failure| failure.code);
        context
            .output
            .line(&messages::of_one(&plan.target, code, &plan.message))?;
        results.push(Planned {
            target: plan.target,
            outcome: Outcome::Skipped,
            code,
            message: plan.message,
            would: plan.would,
        });
    }
    context
        .output
        .line(&messages::would_summary(change, fail, nothing))?;
    if !context.output.is_table() {
        let summary = BulkSummary {
            skipped: results.len(),
            ..BulkSummary::default()
        };
        let report = Report { results, summary };
        context.output.document(&report, String::new)?;
    }
    Ok(Exit::Done)
}

fn tell(context: &Context, entry: &BulkEntry) -> io::Result<()> {
    let line = messages::of_one(&entry.target, entry.code, &entry.message);
    context.output.line(&line)
}
