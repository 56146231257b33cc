//! `fleetward guardian grant | revoke | rotate`

use super::Context;
use crate::args::{GrantArgs, RotateArgs, Wait};
use crate::bulk::{self, Again};
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::{interrupt, messages, wait};
use fleetward_api::bulk::{BulkEntry, BulkSummary, How, Plan, RotateExpiringRequest, Target};
use fleetward_api::controller::{
    GrantRequest, JobView, Outcome, RevokeRequest, RotateRequest, VmOutcome,
};
use fleetward_api::verbs::{GuardianGrant, GuardianRevoke, GuardianRotate, GuardianRotateExpiring};
use fleetward_model::{ErrorCode, Failure, HostName, JobId, VmName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a job on many VMs reports.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    results: Vec<VmOutcome>,
    summary: BulkSummary,
    /// How many more there are: the record of a job has its limits.
    #[serde(default, skip_serializing_if = "is_none")]
    not_listed: usize,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

impl Report {
    fn of(results: Vec<VmOutcome>) -> Self {
        let mut summary = BulkSummary::default();
        for one in &results {
            summary.count(one.outcome);
        }
        Self {
            results,
            summary,
            not_listed: 0,
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
            let BulkSummary {
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
    Report::of_job(&view)?.tell(context, only)
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
        dry_run: false,
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
    let within = match (args.host, args.expiring) {
        (Some(host), _) if args.dry_run => {
            let request = RotateRequest {
                host: host.clone(),
                dry_run: true,
            };
            let controller = &context.controller;
            controller.call::<GuardianRotate>([], &request).await?;
            return tell_expiring(context, &[host], Vec::new());
        }
        (Some(host), _) => return rotate_alone(context, &host, no_wait).await,
        (None, within) => within.unwrap_or_default(),
    };
    let mut request = RotateExpiringRequest {
        within_seconds: within.as_secs(),
        only: None,
        dry_run: true,
        how: How::default(),
    };
    let plans = bulk::plans::<GuardianRotateExpiring>(context, &request).await?;
    if args.dry_run || plans.is_empty() {
        let known = plans.iter().filter(|plan| plan.expires.is_some());
        let hosts: Vec<_> = known.filter_map(|plan| host_of(&plan.target)).collect();
        let unknown = plans.into_iter().filter(|plan| plan.expires.is_none());
        return tell_expiring(context, &hosts, unknown.collect());
    }
    let hosts = plans.iter().filter_map(|plan| host_of(&plan.target));
    request.only = Some(hosts.collect());
    request.dry_run = false;
    request.how.wait = !no_wait;
    rotate_all(context, request).await
}

fn host_of(target: &Target) -> Option<HostName> {
    match target {
        Target::Host(name) => Some(name.clone()),
        Target::Vm(_) => None,
    }
}

fn tell_expiring(context: &Context, hosts: &[HostName], unknown: Vec<Plan>) -> Result<Exit, Stop> {
    let text = match hosts {
        [] => messages::NOTHING_EXPIRES.to_owned(),
        hosts => hosts.iter().map(|h| format!("{h}\n")).collect(),
    };
    for failure in unknown.iter().filter_map(|plan| plan.failure.as_ref()) {
        context.progress.remark(&messages::failure(failure));
    }
    let unknown: Vec<_> = unknown
        .into_iter()
        .map(|plan| plan.target.to_string())
        .collect();
    let said = json!({ "hosts": hosts, "unknown": unknown });
    context.output.document(&said, || text)?;
    Ok(Exit::Done)
}

async fn rotate_alone(context: &Context, host: &HostName, no_wait: bool) -> Result<Exit, Stop> {
    let request = RotateRequest {
        host: host.clone(),
        dry_run: false,
    };
    let accepted = context
        .controller
        .call::<GuardianRotate>([], &request)
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

/// Each host with its report: what goes wrong with one does not concern the others.
async fn rotate_all(context: &Context, request: RotateExpiringRequest) -> Result<Exit, Stop> {
    let asked = |again: Option<Again>| {
        let mut request = request.clone();
        if let Some(Again { rest, jobs }) = again {
            request.only = Some(rest.iter().filter_map(host_of).collect());
            request.how.jobs = jobs;
        }
        request
    };
    let tell = |entry: &BulkEntry| {
        let line = match (&entry.result, entry.job) {
            (Some(result), _) => messages::rotated(&entry.target, result),
            (None, Some(job)) if entry.goes_on => format!("{}: {job}", entry.target),
            _ => messages::of_one(&entry.target, entry.code, &entry.message),
        };
        context.progress.around(|| context.output.line(&line))?;
        Ok(())
    };
    let entries = bulk::follow::<GuardianRotateExpiring>(context, asked, tell).await?;
    let mut summary = BulkSummary::default();
    for entry in &entries {
        summary.count(entry.outcome);
    }
    let some_vms_failed = entries.iter().any(|entry| {
        let result = entry.result.as_ref();
        result.is_some_and(|result| result["summary"]["failed"].as_u64() > Some(0))
    });
    if context.output.is_table() {
        let sum = messages::bulk_summary(summary.succeeded, summary.failed, summary.skipped);
        context.output.line(&sum)?;
    } else {
        let reports: Vec<_> = entries.iter().map(report_of).collect();
        context.output.document(&reports, String::new)?;
    }
    let left = entries
        .iter()
        .filter(|entry| entry.outcome == Outcome::Skipped);
    let left: Vec<_> = left.filter_map(|entry| entry.job).collect();
    match summary.failed > 0 || some_vms_failed {
        _ if !left.is_empty() => Err(Stop::Interrupted(left)),
        true => Ok(Exit::SomeFailed),
        false => Ok(Exit::Done),
    }
}

/// What goes into the document for scripts.
fn report_of(entry: &BulkEntry) -> Value {
    let mut report = match (&entry.result, &entry.failure, entry.job) {
        (Some(result), ..) => {
            let mut report = result.clone();
            report["outcome"] = json!(entry.outcome);
            report
        }
        (None, Some(failure), _) => json!({
            "outcome": entry.outcome, "code": entry.code, "message": entry.message, "fix": failure.fix,
        }),
        (None, None, Some(job)) => json!({ "job": job }),
        (None, None, None) => json!({ "outcome": entry.outcome, "message": entry.message }),
    };
    report["host"] = json!(entry.target.as_str());
    report
}
