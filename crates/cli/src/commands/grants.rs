//! `fleetward guardian grant | revoke | rotate`

use super::Context;
use crate::args::{GrantArgs, RotateArgs, Wait};
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::{interrupt, messages, wait};
use fleetward_api::controller::{GrantRequest, JobView, Outcome, RevokeRequest, VmOutcome};
use fleetward_model::{ErrorCode, Failure, HostName, JobId, VmName};
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;

/// What a job on many VMs reports.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    results: Vec<VmOutcome>,
    summary: Summary,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Summary {
    succeeded: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    fn of(results: Vec<VmOutcome>) -> Self {
        let count = |outcome| results.iter().filter(|r| r.outcome == outcome).count();
        let summary = Summary {
            succeeded: count(Outcome::Succeeded),
            failed: count(Outcome::Failed),
            skipped: count(Outcome::Skipped),
        };
        Self { results, summary }
    }

    fn of_job(job: &JobView) -> Result<Self, Failure> {
        let told = job.result.as_ref().and_then(|r| r.get("results")).cloned();
        serde_json::from_value(told.unwrap_or_default())
            .map(Self::of)
            .map_err(|error| {
                Failure::new(
                    ErrorCode::Internal,
                    format!("job {} does not say what became of each VM", job.id),
                )
                .because(error)
            })
    }

    /// A line for each VM and a summary; one document for scripts.
    fn tell(self, context: &Context) -> Result<Exit, Stop> {
        for one in &self.results {
            let message = one.message.as_deref().unwrap_or_default();
            context.output.line(&match one.code {
                Some(code) => format!("{}: {code}: {message}", one.vm),
                None => format!("{}: {message}", one.vm),
            })?;
        }
        let Summary {
            succeeded,
            failed,
            skipped,
        } = self.summary;
        context
            .output
            .line(&messages::bulk_summary(succeeded, failed, skipped))?;
        if !context.output.is_table() {
            context.output.document(&self, String::new)?;
        }
        Ok(match (succeeded + skipped, failed) {
            (_, 0) => Exit::Done,
            _ => Exit::SomeFailed,
        })
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
    let request = GrantRequest {
        vms: args.names,
        all: args.all,
        to: args.to.clone(),
        dry_run: args.dry_run,
        expired: args.allow_expired,
    };
    let answer = context.controller.grant(&request).await?;
    let Some(job) = answer.job else {
        return Report::of(answer.plan).tell(context);
    };
    if args.wait.no_wait {
        context
            .output
            .document(&json!({ "job": job }), || job.to_string())?;
        return Ok(Exit::Done);
    }
    let view = ended(context, &args.to, job).await?;
    let mut report = Report::of_job(&view)?;
    // what the controller could not even plan for
    let known = |vm: &VmName| report.results.iter().any(|r| r.vm == *vm);
    let unplanned: Vec<_> = answer.plan.into_iter().filter(|r| !known(&r.vm)).collect();
    report.results.extend(unplanned);
    Report::of(report.results).tell(context)
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
    let accepted = context.controller.revoke(&request).await?;
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
    let hosts = match (args.host, args.expiring) {
        (Some(host), _) => vec![host],
        (None, within) => expiring(context, within.unwrap_or_default()).await?,
    };
    if args.dry_run || hosts.is_empty() {
        let text = if hosts.is_empty() {
            messages::NOTHING_EXPIRES.to_owned()
        } else {
            hosts
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        };
        context
            .output
            .document(&json!({ "hosts": hosts }), || text)?;
        return Ok(Exit::Done);
    }
    let mut exit = Exit::Done;
    let mut reports = Vec::new();
    for host in hosts {
        let accepted = context.controller.rotate(&host).await?;
        let Some(job) = accepted.job else { continue };
        if args.wait.no_wait {
            context.output.document(&accepted, || job.to_string())?;
            continue;
        }
        let view = ended(context, host.as_str(), job).await?;
        let failed = Report::of_job(&view)?.summary.failed;
        let result = view.result.unwrap_or_default();
        context.output.line(&messages::rotated(&host, &result))?;
        if failed > 0 {
            exit = Exit::SomeFailed;
        }
        reports.push(result);
    }
    if !context.output.is_table() && !args.wait.no_wait {
        context.output.document(&reports, String::new)?;
    }
    Ok(exit)
}

/// Hosts whose own guardian ends within that time, the most urgent first.
async fn expiring(
    context: &Context,
    within: std::time::Duration,
) -> Result<Vec<HostName>, Failure> {
    let now = OffsetDateTime::now_utc();
    let mut found: Vec<_> = context
        .controller
        .hosts()
        .await?
        .into_iter()
        .filter_map(|host| Some((host.facts?.own_guardian()?.not_after()?, host.name)))
        .filter(|(end, _)| *end - now <= within)
        .collect();
    found.sort();
    Ok(found.into_iter().map(|(_, host)| host).collect())
}
