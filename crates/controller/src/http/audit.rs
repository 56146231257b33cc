//! The audit log: list and verify. Both first fetch the new records of the hosts.

use super::Answer;
use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use crate::app::App;
use crate::audit::Wanted;
use crate::audit_follow::{self, News};
use crate::world::World;
use axum::Json;
use axum::extract::State;
use fleetward_api::controller::{AuditBreakView, AuditVerdict};
use fleetward_api::lists::AuditPlace;
use fleetward_api::verbs;
use fleetward_model::audit::AuditRecord;
use fleetward_model::error::Class;
use fleetward_model::{ErrorCode, Failure, HostName, VmId, VmName};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

serves! {
    AuditList => audit_list,
    AuditVerify => audit_verify,
}

const FETCH_TIME: Duration = Duration::from_secs(5);
const COMPARE_TIME: Duration = Duration::from_secs(30);

async fn audit_list(
    State(app): State<App>,
    Asked(query): Asked<verbs::AuditList>,
) -> Answer<Rows<AuditRecord>> {
    let page = Page::new(query.limit, query.after)?;
    let after = page.after().map(str::parse).transpose();
    let after: Option<AuditPlace> = after.map_err(|error| {
        Failure::new(
            ErrorCode::InvalidArgument,
            "after is no place in the audit log",
        )
        .because(error)
        .fix("ask again from the beginning, without `after`")
    })?;
    let since = query.since.map(|text| {
        OffsetDateTime::parse(&text, &Rfc3339).map_err(|error| {
            Failure::new(ErrorCode::InvalidArgument, "since is not a time")
                .because(error)
                .fix("--since 2026-01-31T00:00:00Z")
        })
    });
    let since = since.transpose()?;
    let vms = match &query.vm {
        Some(name) => Some(vms_of(&app.world, name).await?),
        None => None,
    };
    // The first page brings what is new; those that follow it show the same list.
    if page.is_first() {
        let asked = match &vms {
            Some(vms) => concerned(&app.world, vms).await?,
            None => every_host(&app.world),
        };
        fetch(&app.world, asked, News::Records).await;
    }
    let wanted = Wanted {
        vms: vms.as_ref(),
        since,
        after: after.as_ref(),
        limit: page.limit_given(),
    };
    Ok(Rows(app.world.audit.list(wanted).await?))
}

/// The VM of that name or id; where there is none, those that had it. Account is given of a VM that is gone too.
async fn vms_of(world: &World, name: &VmName) -> Answer<BTreeSet<VmId>> {
    let missing = match world.inventory.find(name.as_str()) {
        Ok(vm) => return Ok(BTreeSet::from([vm.id])),
        Err(missing) => missing,
    };
    if let Ok(id) = name.as_str().parse::<VmId>() {
        let wanted = Wanted {
            vms: Some(&BTreeSet::from([id])),
            limit: Some(1),
            ..Wanted::default()
        };
        let known = world.audit.list(wanted).await?;
        if !known.is_empty() {
            return Ok(BTreeSet::from([id]));
        }
    }
    let mut former = world.audit.named(name).await?;
    former.extend(world.escrow.named(name.as_str()));
    match former.is_empty() {
        true => Err(missing.into()),
        false => Ok(former),
    }
}

fn every_host(world: &World) -> BTreeSet<HostName> {
    let hosts = world.hosts.all().into_iter();
    hosts.map(|host| host.name.clone()).collect()
}

/// Hosts that may have news of these VMs: who has one, the others of its group, and who has told of it before; of a VM that is
/// gone, every host. Any other host's word comes with its next sign of life.
async fn concerned(world: &World, vms: &BTreeSet<VmId>) -> Answer<BTreeSet<HostName>> {
    let wanted = Wanted {
        vms: Some(vms),
        ..Wanted::default()
    };
    let told = world.audit.list(wanted).await?;
    let mut hosts: BTreeSet<_> = told.into_iter().map(|record| record.host).collect();
    for vm in vms {
        let Some(vm) = world.inventory.vm(*vm) else {
            return Ok(every_host(world));
        };
        let group = vm.metadata.as_ref().map(|metadata| &metadata.spec.group);
        let members = group.map(|group| world.hosts.of_group(group));
        hosts.extend(members.into_iter().flatten().map(|host| host.name.clone()));
        hosts.insert(vm.host.clone());
    }
    Ok(hosts)
}

async fn audit_verify(State(app): State<App>) -> Answer<Json<AuditVerdict>> {
    let world = &app.world;
    fetch(world, every_host(world), News::RecordsAndWitness).await;
    let hosts = world.hosts.all();
    let compared = join_all(hosts.iter().map(|host| async move {
        let position = world.audit.position(&host.name).await;
        let own = tokio::time::timeout(COMPARE_TIME, own_log(world, &host.name));
        match own.await {
            Ok(Ok(log)) => {
                let found = world.audit.compare(&host.name, position, &log).await;
                found.map(|found| found.map_or(Compared::Same, Compared::Differs))
            }
            Ok(Err(failure)) if failure.code.class() != Class::Unreachable => {
                Ok(Compared::Differs(unreadable(&host.name, &failure)))
            }
            Ok(Err(_)) | Err(_) => Ok(Compared::NotAsked),
        }
    }))
    .await;
    let mut verdict = world.audit.verdict().await?;
    for (host, compared) in hosts.into_iter().zip(compared) {
        match compared? {
            Compared::Same => {}
            Compared::Differs(found) => verdict.breaks.push(found),
            Compared::NotAsked => verdict.not_compared.push(host.name.clone()),
        }
    }
    // What could not be checked does not count as good.
    verdict.intact = verdict.breaks.is_empty() && verdict.not_compared.is_empty();
    verdict.broken = verdict.breaks.first().map(|found| found.what.clone());
    Ok(Json(verdict))
}

/// What came of holding a host's own log against the copy here.
enum Compared {
    Same,
    Differs(AuditBreakView),
    /// The host did not answer, or not in time.
    NotAsked,
}

/// A host that is there and cannot show its log is not believed.
fn unreadable(host: &HostName, failure: &Failure) -> AuditBreakView {
    let Failure { what, because, .. } = failure;
    AuditBreakView {
        chain: host.to_string(),
        kept_by: host.to_string(),
        seq: None,
        what: format!("the log on host {host} cannot be read: {what}: {because}"),
    }
}

/// Everything a host has recorded, as it lies there now; what the host remembers of the controller's is taken too.
async fn own_log(world: &World, host: &HostName) -> Result<Vec<AuditRecord>, Failure> {
    if !world.inventory.seen(host).answers {
        return Err(Failure::new(
            ErrorCode::HostUnreachable,
            format!("host {host} does not answer"),
        ));
    }
    let agent = world.agents.of(host)?;
    if let Some(seen) = agent.witness(None).await? {
        let taken = world.audit.take_witness(host, &seen).await;
        taken.map_err(|error| crate::store_failure(&error))?;
    }
    let mut log: Vec<AuditRecord> = Vec::new();
    loop {
        let after = log.iter().map(|record| record.seq).max().unwrap_or(0);
        let more = agent.audit_after(after).await?;
        if more.is_empty() {
            return Ok(log);
        }
        log.extend(more);
    }
}

/// Hosts that do not answer now are caught up with later.
async fn fetch(world: &Arc<World>, hosts: BTreeSet<HostName>, news: News) {
    let online = hosts
        .iter()
        .filter(|host| world.inventory.seen(host).answers);
    let fetched = join_all(online.map(|host| audit_follow::fetch(world, host, news)));
    let _ = tokio::time::timeout(FETCH_TIME, fetched).await;
}
