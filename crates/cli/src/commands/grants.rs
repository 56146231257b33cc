//! `fleetward guardian grant | revoke | rotate`

use super::Context;
use crate::args::{GrantArgs, RotateArgs, Wait};
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::{interrupt, messages, wait};
use fleetward_api::controller::{
    Accepted, GrantRequest, HostView, JobView, Outcome, RevokeRequest, RotateRequest, VmOutcome,
};
use fleetward_api::lists::HostQuery;
use fleetward_api::verbs::{GuardianGrant, GuardianRevoke, GuardianRotate, HostList};
use fleetward_model::host::{HostFacts, HostState};
use fleetward_model::{ErrorCode, Failure, HostName, JobId, Names, VmName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// What a job on many VMs reports.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    results: Vec<VmOutcome>,
    summary: Summary,
    /// How many more there are: the record of a job has its limits.
    #[serde(default, skip_serializing_if = "is_none")]
    not_listed: usize,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Summary {
    succeeded: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    fn of(results: Vec<VmOutcome>) -> Self {
        let mut report = Self {
            results: Vec::new(),
            summary: Summary::default(),
            not_listed: 0,
        };
        report.extend(results);
        report
    }

    fn extend(&mut self, results: Vec<VmOutcome>) {
        for one in results {
            match one.outcome {
                Outcome::Succeeded => self.summary.succeeded += 1,
                Outcome::Failed => self.summary.failed += 1,
                Outcome::Skipped => self.summary.skipped += 1,
            }
            self.results.push(one);
        }
    }

    fn of_job(job: &JobView) -> Result<Self, Failure> {
        serde_json::from_value(job.result.clone().unwrap_or_default()).map_err(|error| {
            Failure::new(
                ErrorCode::Internal,
                format!("job {} does not say what became of each VM", job.id),
            )
            .because(error)
        })
    }

    /// A line for each VM and a summary; one document for scripts. What became of the `only` VM that was named is what
    /// became of the command.
    fn tell(self, context: &Context, only: Option<&str>) -> Result<Exit, Stop> {
        let refusal = self
            .results
            .iter()
            .find(|one| one.outcome == Outcome::Failed)
            .zip(only)
            .map(|(one, to)| {
                let code = one.code.unwrap_or(ErrorCode::Internal);
                Failure::new(code, messages::not_granted(&one.vm, to))
                    .because(one.message.as_deref().unwrap_or_default())
            });
        for one in self.results.iter().filter(|_| refusal.is_none()) {
            let message = one.message.as_deref().unwrap_or_default();
            context.output.line(&match one.code {
                Some(code) => format!("{}: {code}: {message}", one.vm),
                None => format!("{}: {message}", one.vm),
            })?;
        }
        if only.is_none() {
            if self.not_listed > 0 {
                context
                    .output
                    .line(&messages::not_listed(self.not_listed))?;
            }
            let Summary {
                succeeded,
                failed,
                skipped,
            } = self.summary;
            context
                .output
                .line(&messages::bulk_summary(succeeded, failed, skipped))?;
        }
        if !context.output.is_table() {
            context.output.document(&self, String::new)?;
        }
        match refusal {
            Some(failure) => Err(failure.into()),
            None if self.summary.failed > 0 => Ok(Exit::SomeFailed),
            None => Ok(Exit::Done),
        }
    }
}

async fn ended(context: &Context, name: &str, job: JobId) -> Result<JobView, Stop> {
    let interrupt = interrupt::on_ctrl_c();
    wait::for_job(
        &context.controller,
        &context.progress,
        &interrupt,
        name,
        job,
    )
    .await
}

pub(super) async fn grant(context: &Context, args: GrantArgs) -> Result<Exit, Stop> {
    let mut names = args.names;
    names.sort();
    names.dedup();
    let only = (names.len() == 1).then_some(args.to.as_str());
    let request = GrantRequest {
        vms: names,
        all: args.all,
        to: args.to.clone(),
        dry_run: args.dry_run,
        expired: args.allow_expired,
    };
    let answer = context
        .controller
        .call::<GuardianGrant>([], &request)
        .await?;
    let Some(job) = answer.job else {
        return Report::of(answer.plan).tell(context, only);
    };
    if args.wait.no_wait {
        context
            .output
            .document(&json!({ "job": job }), || job.to_string())?;
        return Ok(Exit::Done);
    }
    let view = ended(context, &args.to, job).await?;
    let mut report = Report::of_job(&view)?;
    // VMs that there is nothing to plan for: no such name, not ours
    let known = |vm: &VmName| report.results.iter().any(|r| r.vm == *vm);
    let unplanned: Vec<_> = answer
        .plan
        .into_iter()
        .filter(|r| r.outcome == Outcome::Failed && !args.all && !known(&r.vm))
        .collect();
    report.extend(unplanned);
    report.tell(context, only)
}

pub(super) async fn revoke(
    context: &Context,
    vm: VmName,
    from: String,
    no_wait: Wait,
) -> Result<Exit, Stop> {
    confirm(context.yes, &messages::confirm_revoke(&vm, &from))?;
    let request = RevokeRequest {
        vm: vm.clone(),
        from: from.clone(),
    };
    let accepted = context
        .controller
        .call::<GuardianRevoke>([], &request)
        .await?;
    let Some(job) = accepted.job else {
        return Ok(Exit::Done);
    };
    if no_wait.no_wait {
        context.output.document(&accepted, || job.to_string())?;
        return Ok(Exit::Done);
    }
    let view = ended(context, vm.as_str(), job).await?;
    let result = view.result.unwrap_or_default();
    let pending = result["pending"].as_str();
    context
        .output
        .success(&result, || messages::revoked(&vm, &from, pending))?;
    Ok(Exit::Done)
}

pub(super) async fn rotate(context: &Context, args: RotateArgs) -> Result<Exit, Stop> {
    let no_wait = args.wait.no_wait;
    let (hosts, unknown) = match (args.host, args.expiring) {
        (Some(host), _) if args.dry_run => (vec![host], Vec::new()),
        (Some(host), _) => return rotate_alone(context, &host, no_wait).await,
        (None, within) => expiring(context, within.unwrap_or_default()).await?,
    };
    if args.dry_run || (hosts.is_empty() && unknown.is_empty()) {
        let text = match hosts.as_slice() {
            [] => messages::NOTHING_EXPIRES.to_owned(),
            hosts => hosts.iter().map(|h| format!("{h}\n")).collect(),
        };
        for host in &unknown {
            let remark = messages::failure(&unknown_guardian(host));
            context.progress.remark(&remark);
        }
        let said = json!({ "hosts": hosts, "unknown": unknown });
        context.output.document(&said, || text)?;
        return Ok(Exit::Done);
    }
    rotate_all(context, hosts, unknown, no_wait).await
}

async fn rotate_alone(context: &Context, host: &HostName, no_wait: bool) -> Result<Exit, Stop> {
    let accepted = context
        .controller
        .call::<GuardianRotate>([], &RotateRequest { host: host.clone() })
        .await?;
    let Some(job) = accepted.job else {
        return Ok(Exit::Done);
    };
    if no_wait {
        context.output.document(&accepted, || job.to_string())?;
        return Ok(Exit::Done);
    }
    let view = ended(context, host.as_str(), job).await?;
    let failed = Report::of_job(&view)?.summary.failed;
    let result = view.result.unwrap_or_default();
    context.output.line(&messages::rotated(host, &result))?;
    if !context.output.is_table() {
        context.output.document(&[result], String::new)?;
    }
    Ok(if failed > 0 {
        Exit::SomeFailed
    } else {
        Exit::Done
    })
}

/// How the rotation of one of several hosts went.
enum Rotation {
    Done(Box<JobView>),
    /// Its job goes on without us.
    Goes(JobId),
    Failed(Failure),
    NotBegun,
}

/// One host after the other, each with its report: what goes wrong with one is no matter of the others.
async fn rotate_all(
    context: &Context,
    hosts: Vec<HostName>,
    unknown: Vec<HostName>,
    no_wait: bool,
) -> Result<Exit, Stop> {
    let interrupt = interrupt::on_ctrl_c();
    let mut reports = Vec::new();
    let mut left = Vec::new();
    let (mut summary, mut some_vms_failed) = (Summary::default(), false);
    for host in unknown {
        let failure = unknown_guardian(&host);
        reports.push(tell_rotation(context, &host, &Rotation::Failed(failure))?);
        summary.failed += 1;
    }
    for host in hosts {
        let went = rotate_one(context, &host, no_wait, &interrupt).await;
        match &went {
            Rotation::Done(view) => {
                summary.succeeded += 1;
                let report = Report::of_job(view);
                some_vms_failed |= report.is_ok_and(|report| report.summary.failed > 0);
            }
            Rotation::Goes(_) if no_wait => summary.succeeded += 1,
            Rotation::Goes(job) => {
                left.push(*job);
                summary.skipped += 1;
            }
            Rotation::Failed(_) => summary.failed += 1,
            Rotation::NotBegun => summary.skipped += 1,
        }
        reports.push(tell_rotation(context, &host, &went)?);
    }
    let failed = summary.failed > 0 || some_vms_failed;
    if context.output.is_table() {
        let sum = messages::bulk_summary(summary.succeeded, summary.failed, summary.skipped);
        context.output.line(&sum)?;
    } else {
        context.output.document(&reports, String::new)?;
    }
    match failed {
        _ if !left.is_empty() => Err(Stop::Interrupted(left)),
        true => Ok(Exit::SomeFailed),
        false => Ok(Exit::Done),
    }
}

async fn rotate_one(
    context: &Context,
    host: &HostName,
    no_wait: bool,
    interrupt: &CancellationToken,
) -> Rotation {
    if interrupt.is_cancelled() {
        return Rotation::NotBegun;
    }
    let job = match context
        .controller
        .call::<GuardianRotate>([], &RotateRequest { host: host.clone() })
        .await
    {
        Ok(Accepted { job: Some(job) }) => job,
        Ok(Accepted { job: None }) => return Rotation::NotBegun,
        Err(failure) => return Rotation::Failed(failure),
    };
    if no_wait {
        return Rotation::Goes(job);
    }
    let Context {
        controller,
        progress,
        ..
    } = context;
    match wait::for_one_of_many(controller, progress, interrupt, host.as_str(), job).await {
        Ok(view) => Rotation::Done(Box::new(view)),
        Err(Stop::Failure(failure)) => Rotation::Failed(failure),
        Err(_) => Rotation::Goes(job),
    }
}

/// The line for people, and what goes into the document for scripts.
fn tell_rotation(context: &Context, host: &HostName, went: &Rotation) -> Result<Value, Stop> {
    let (line, mut report) = match went {
        Rotation::Done(view) => {
            let mut report = view.result.clone().unwrap_or_default();
            let line = messages::rotated(host, &report);
            report["outcome"] = json!(Outcome::Succeeded);
            (line, report)
        }
        Rotation::Goes(job) => (format!("{host}: {job}"), json!({ "job": job })),
        Rotation::Failed(failure) => {
            let why = match failure.because.as_str() {
                "" => failure.what.clone(),
                because => format!("{}: {because}", failure.what),
            };
            let line = format!("{host}: {}: {why}", failure.code);
            let outcome = Outcome::Failed;
            (
                line,
                json!({ "outcome": outcome, "code": failure.code, "message": why, "fix": failure.fix }),
            )
        }
        Rotation::NotBegun => (
            format!("{host}: {}", messages::NOT_STARTED),
            json!({ "outcome": Outcome::Skipped, "message": messages::NOT_STARTED }),
        ),
    };
    report["host"] = json!(host);
    context.progress.around(|| context.output.line(&line))?;
    Ok(report)
}

fn unknown_guardian(host: &HostName) -> Failure {
    Failure::new(ErrorCode::HostUnreachable, messages::guardian_unknown(host))
        .because("the host has not reported since it joined")
        .about(&Names::default().host(host))
}

/// Hosts whose own guardian ends within that time, the most urgent first; and those of which nothing is known.
async fn expiring(
    context: &Context,
    within: std::time::Duration,
) -> Result<(Vec<HostName>, Vec<HostName>), Failure> {
    let now = OffsetDateTime::now_utc();
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    for host in context
        .controller
        .list::<HostList, HostView>(HostQuery::default(), None)
        .await?
    {
        let end = |facts: &HostFacts| facts.own_guardian()?.not_after();
        match host.facts.as_ref().and_then(end) {
            Some(end) if end - now <= within => found.push((end, host.name)),
            Some(_) => {}
            // nothing of it is there yet
            None if host.state == HostState::Invited => {}
            None => unknown.push(host.name),
        }
    }
    found.sort();
    let found = found.into_iter().map(|(_, host)| host).collect();
    Ok((found, unknown))
}
