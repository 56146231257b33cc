//! Hosts: list, show, remove, drain, resume.

use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use super::{Answer, parsed, scope, view};
use crate::admission::admit;
use crate::app::App;
use crate::audit::Act;
use crate::certificates::{all_until, host_identity};
use crate::debts;
use crate::expulsion::{self, Expelled};
use crate::load;
use crate::tokens;
use crate::work::{self, DrainInput, HostDrain, PlannedMove, plan_drain};
use axum::Json;
use axum::extract::{Path, State};
use fleetward_api::bulk::{Plan, Target, Would, short};
use fleetward_api::controller::{DrainAnswer, ExpelAnswer, HostView};
use fleetward_api::verbs;
use fleetward_jobs::{Job, JobError, JobFilter};
use fleetward_link::Peer;
use fleetward_model::admission::Request;
use fleetward_model::audit::AuditAction;
use fleetward_model::certificate::WhyRefused;
use fleetward_model::host::HostState;
use fleetward_model::{ErrorCode, Failure, GroupName, HostName, JobId, VmId};
use http::StatusCode;
use std::collections::BTreeSet;
use time::OffsetDateTime;

serves! {
    HostList => host_list,
    HostShow => host_show,
    HostRemove => host_remove,
    HostExpel => host_expel,
    HostDrain => host_drain,
    HostResume => host_resume,
}

/// Hosts that are shown before others get their turn.
const SLICE: usize = 50;

async fn host_list(
    State(app): State<App>,
    peer: Peer,
    Asked(query): Asked<verbs::HostList>,
) -> Answer<Rows<HostView>> {
    let page = Page::new(query.limit, query.after)?;
    let world = &app.world;
    let now = OffsetDateTime::now_utc();
    // Only what is on the page is worth a view.
    let wanted = |state: HostState, group: &GroupName| {
        scope::sees_group(&peer, group)
            && query.state.is_none_or(|wanted| state == wanted)
            && query.group.as_ref().is_none_or(|wanted| *group == *wanted)
    };
    let joined = world.hosts.all();
    let joined: Vec<_> = joined
        .iter()
        .filter(|host| page.is_after(&[host.name.as_str()]))
        .filter(|host| wanted(world.state_of(host), &host.group))
        .take(page.limit())
        .collect();
    // Those that follow a full page are on another.
    let last = joined.last().filter(|_| joined.len() == page.limit());
    let waiting = match query.state {
        None | Some(HostState::Invited) => {
            let last = last.map(|host| &host.name);
            tokens::of_hosts(&*world.store, page.after(), last).await?
        }
        Some(HostState::Online | HostState::Drained | HostState::Unreachable) => Vec::new(),
    };
    let mut hosts = Vec::new();
    for host in joined {
        hosts.push(HostView {
            usage: query
                .usage
                .then(|| load::of_host(world, &host.name))
                .flatten(),
            ..view::host(world, host)
        });
        if hosts.len().is_multiple_of(SLICE) {
            tokio::task::yield_now().await;
        }
    }
    let waiting = waiting.into_iter();
    hosts.extend(
        waiting
            .filter(|token| !token.used && token.expires > now)
            .filter(|token| world.hosts.find(&token.host).is_none())
            .filter(|token| wanted(HostState::Invited, &token.group))
            .map(view::invited),
    );
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Rows(page.of_named(hosts)))
}

async fn host_show(State(app): State<App>, Path(host): Path<String>) -> Answer<Json<HostView>> {
    let host: HostName = parsed("host's name", &host)?;
    app.heard(std::slice::from_ref(&host)).await;
    let world = &app.world;
    let found = world.hosts.of(&host);
    let record = found.map_err(|missing| expulsion::told(world, &host, missing))?;
    Ok(Json(HostView {
        usage: load::of_host(world, &host),
        ..view::host(world, &record)
    }))
}

async fn host_remove(
    State(app): State<App>,
    peer: Peer,
    Path(host): Path<String>,
) -> Answer<StatusCode> {
    let host: HostName = parsed("host's name", &host)?;
    let world = &app.world;
    world.hosts.of(&host)?;
    let vms = world.inventory.vms_on(&host);
    let ours: Vec<_> = vms
        .iter()
        .filter(|vm| vm.is_managed())
        .map(|vm| vm.name.as_str())
        .collect();
    if !ours.is_empty() {
        let what = format!("host {host} still has {} VMs", ours.len());
        return Err(Failure::new(ErrorCode::HostNotEmpty, what)
            .because(ours.join(", "))
            .fix(format!(
                "fleetward host drain {host}, and try again when it is empty"
            ))
            .into());
    }
    // Nobody is left to pay them.
    let owed = world.debts.of(host.as_str());
    let told: Vec<_> = owed.iter().map(debts::told).collect();
    let reason = match told.is_empty() {
        true => format!("host {host}"),
        false => format!("host {host}; dropped what it owed: {}", told.join(", ")),
    };
    app.record(Act::new(&peer, AuditAction::RemoveHost, reason))
        .await?;
    app.engine.drop_debts(host.as_str()).await?;
    // Before anything else: the same name may be given to another machine as soon as this one is out.
    let now = OffsetDateTime::now_utc();
    let identity = host_identity(&host);
    let entry = all_until(&identity, WhyRefused::Removed, now);
    world.fleet.certificates.refuse(vec![entry], now).await?;
    app.watchers.forget(&host);
    let record = world.hosts.of(&host)?;
    let guardians = record.former.iter().chain([&record.guardian.id]).cloned();
    world.fleet.owners.keep(guardians).await?;
    world.hosts.remove(&host).await?;
    world.inventory.forget_host(&host).await?;
    world.audit.retire(&host, OffsetDateTime::now_utc()).await?;
    tracing::info!(%host, "a host was removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Nothing of it waits for the host. Each step is safe twice, and what refuses the host comes first.
async fn host_expel(
    State(app): State<App>,
    peer: Peer,
    Path(host): Path<String>,
    Asked(query): Asked<verbs::HostExpel>,
) -> Answer<Json<ExpelAnswer>> {
    let host: HostName = parsed("host's name", &host)?;
    let world = &app.world;
    let expelled = expulsion::guardians_of(world, &host)
        .map_err(|missing| expulsion::told(world, &host, missing))?;
    let mut answer = expulsion::consequences(world, &expelled);
    let active = JobFilter {
        active: Some(true),
        ..JobFilter::default()
    };
    let lost: BTreeSet<_> = answer.lost.iter().map(|vm| vm.id).collect();
    answer.jobs = jobs_with(&host, &lost, app.engine.list(&active).await?);
    if query.dry_run {
        return Ok(Json(answer));
    }
    let now = OffsetDateTime::now_utc();
    let why = format!(
        "host {host}; {} VMs lost, {} keys to be rolled",
        answer.lost.len(),
        answer.keys.len()
    );
    app.record(Act::new(&peer, AuditAction::ExpelHost, why))
        .await?;
    let entry = all_until(&host_identity(&host), WhyRefused::Expelled, now);
    world.fleet.certificates.refuse(vec![entry], now).await?;
    let by = peer.to_string();
    let expelled = Expelled { by, ..expelled };
    let guardians = expelled.guardians.clone();
    world.fleet.owners.keep(guardians).await?;
    world.expulsions.add(expelled).await?;
    for job in &answer.jobs {
        if let Err(error) = app.engine.cancel(*job, &peer.to_string()).await {
            tracing::warn!(%job, %error, "cannot cancel a job with an expelled host");
        }
    }
    app.engine.drop_debts(host.as_str()).await?;
    app.watchers.forget(&host);
    world.hosts.remove(&host).await?;
    world.agents.reconnect(&host);
    world.inventory.lost(&host);
    // What it claimed of VMs that others have disputes nothing any more.
    for copy in world.inventory.copies_on(&host) {
        let others = world.inventory.hosts_with(copy.id);
        if others.iter().any(|other| *other != host) {
            world.inventory.forget_copy(&host, copy.id).await?;
        }
    }
    world.audit.retire(&host, now).await?;
    tracing::warn!(%host, "a host was expelled");
    Ok(Json(answer))
}

/// Jobs under way that work on the host, or on a VM that was there.
fn jobs_with(host: &HostName, lost: &BTreeSet<VmId>, mut jobs: Vec<Job>) -> Vec<JobId> {
    jobs.retain(|job| {
        let about = work::about_job(job);
        about.host.as_ref() == Some(host) || about.vm.is_some_and(|vm| lost.contains(&vm))
    });
    jobs.iter().map(|job| job.id).collect()
}

async fn host_drain(
    State(app): State<App>,
    peer: Peer,
    Path(host): Path<String>,
    Asked(query): Asked<verbs::HostDrain>,
) -> Answer<(StatusCode, Json<DrainAnswer>)> {
    let host: HostName = parsed("host's name", &host)?;
    if query.dry_run {
        app.world.hosts.of(&host)?;
        let mut plan = Vec::new();
        for planned in plan_drain(&app.world, &host) {
            plan.push(plan_of(&app, planned).await);
        }
        return Ok((StatusCode::OK, Json(DrainAnswer { job: None, plan })));
    }
    app.world.hosts.set_drained(&host, true).await?;
    let job = match app
        .submit::<HostDrain>(&DrainInput { host }, &peer.to_string())
        .await
    {
        Ok(job) | Err(JobError::Busy { by: job, .. }) => job,
        Err(error) => return Err(error.into()),
    };
    let answer = DrainAnswer {
        job: Some(job),
        plan: Vec::new(),
    };
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

/// What a drain would do to one VM: its move is admitted like any other.
async fn plan_of(app: &App, planned: PlannedMove) -> Plan {
    let request = match planned.live {
        true => Request::MigrateLive,
        false => Request::MigrateOffline,
    };
    let admitted = match app.world.inventory.vm(planned.vm) {
        Some(vm) => admit(app, &vm, request).await.and(planned.to),
        None => planned.to,
    };
    let (would, message, failure) = match admitted {
        Ok(to) => (Would::Change, format!("would move to host {to}"), None),
        Err(failure) => (Would::Fail, short(&failure), Some(failure)),
    };
    Plan {
        target: Target::Vm(planned.name),
        would,
        message,
        failure,
        expires: None,
        question: None,
    }
}

async fn host_resume(State(app): State<App>, Path(host): Path<String>) -> Answer<Json<HostView>> {
    let host: HostName = parsed("host's name", &host)?;
    let record = app.world.hosts.set_drained(&host, false).await?;
    Ok(Json(view::host(&app.world, &record)))
}
