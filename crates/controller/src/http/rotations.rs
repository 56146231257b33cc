//! Rotating guardians: that of one host, and those of all hosts that expire soon, one after the other.

use super::body::Asked;
use super::bulk::{Each, check, run};
use super::lines::lines;
use super::vms::accepted;
use super::{Answer, allowed};
use crate::app::App;
use crate::work::{GuardianRotate, RotateInput, may_rotate};
use crate::world::World;
use axum::extract::State;
use axum::response::Response;
use fleetward_api::bulk::{BulkEvent, BulkSummary, How, Plan, Target, Would, short};
use fleetward_api::controller::{Accepted, JobView, Role};
use fleetward_api::verbs;
use fleetward_jobs::JobError;
use fleetward_link::Peer;
use fleetward_model::{ErrorCode, Failure, HostName, Names};
use futures_util::stream;
use time::OffsetDateTime;

serves! {
    GuardianRotate => guardian_rotate,
    GuardianRotateExpiring => guardian_rotate_expiring,
}

async fn guardian_rotate(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::GuardianRotate>,
) -> Answer<Response> {
    if request.dry_run {
        may_rotate(&app.world, &request.host)?;
        return Ok(accepted(None));
    }
    let begun = rotate(&app, &peer.to_string(), request.host).await?;
    Ok(accepted(begun.job))
}

async fn guardian_rotate_expiring(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::GuardianRotateExpiring>,
) -> Answer<Response> {
    if !request.dry_run {
        allowed(&peer, Role::Keeper)?;
    }
    check(request.how.parallel)?;
    let hosts = match &request.only {
        Some(hosts) => hosts.clone(),
        None => expiring(&app.world, request.within_seconds),
    };
    if request.dry_run {
        let summary = BulkSummary {
            skipped: hosts.len(),
            ..BulkSummary::default()
        };
        let plans = hosts.into_iter().map(|host| plan(&app.world, host));
        let events = plans.map(BulkEvent::Planned);
        let events: Vec<_> = events.chain([BulkEvent::Summary(summary)]).collect();
        return Ok(lines(&app, stream::iter(events)));
    }
    let how = How {
        // A rotation re-wraps the keys of VMs on every host; two at once would meet at the same VMs.
        parallel: request.how.parallel.or(Some(1)),
        ..request.how
    };
    let each = EachHost {
        app: app.clone(),
        by: peer.to_string(),
    };
    let targets = hosts.into_iter().map(Target::Host).collect();
    Ok(run(&app, each, targets, how))
}

async fn rotate(app: &App, by: &str, host: HostName) -> Result<Accepted, Failure> {
    may_rotate(&app.world, &host)?;
    let input = RotateInput { host };
    match app.submit::<GuardianRotate>(&input, by).await {
        Ok(job) => Ok(Accepted { job: Some(job) }),
        Err(error @ JobError::Busy { .. }) => {
            let mut failure = error.to_failure();
            failure.code = ErrorCode::GuardianInUse;
            failure.what = format!(
                "the guardian of host {} is being rotated already",
                input.host
            );
            Err(failure)
        }
        Err(error) => Err(error.to_failure()),
    }
}

/// Hosts whose own guardian is unknown, then those whose own guardian ends within that time, the most urgent first.
fn expiring(world: &World, within_seconds: u64) -> Vec<HostName> {
    let within = i64::try_from(within_seconds).unwrap_or(i64::MAX);
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut hosts: Vec<_> = world
        .hosts
        .all()
        .into_iter()
        .map(|host| (end(world, &host.name), host.name.clone()))
        .filter(|(end, _)| end.is_none_or(|end| end.unix_timestamp() - now <= within))
        .collect();
    hosts.sort();
    hosts.into_iter().map(|(_, host)| host).collect()
}

/// The end of a host's own guardian; none where the host has not told it.
fn end(world: &World, host: &HostName) -> Option<OffsetDateTime> {
    let facts = world.inventory.seen(host).facts?;
    facts.own_guardian()?.not_after()
}

fn plan(world: &World, host: HostName) -> Plan {
    let expires = end(world, &host);
    let found = match expires {
        None => Err(unknown(&host)),
        Some(_) => may_rotate(world, &host),
    };
    let (would, message, failure) = match found {
        Ok(()) => (Would::Change, "would get a new guardian".to_owned(), None),
        Err(failure) => (Would::Fail, short(&failure), Some(failure)),
    };
    Plan {
        target: Target::Host(host),
        would,
        message,
        failure,
        expires,
        question: None,
    }
}

fn unknown(host: &HostName) -> Failure {
    let what = format!("the guardian of host {host} is unknown");
    Failure::new(ErrorCode::HostUnreachable, what)
        .because("the host has not reported since it joined")
        .about(&Names::default().host(host))
}

struct EachHost {
    app: App,
    by: String,
}

impl Each for EachHost {
    async fn begin(&self, target: &Target) -> Result<Accepted, Failure> {
        let Target::Host(host) = target else {
            let what = format!("{target} is no host");
            return Err(Failure::new(ErrorCode::InvalidArgument, what));
        };
        if end(&self.app.world, host).is_none() {
            return Err(unknown(host));
        }
        rotate(&self.app, &self.by, host.clone()).await
    }

    fn done(&self, _job: &JobView) -> String {
        "has a new guardian".to_owned()
    }

    fn already(&self) -> &'static str {
        "needs no new guardian"
    }
}
