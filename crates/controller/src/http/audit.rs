//! The audit trail: list and verify. Both fetch first what the hosts have recorded since.

use super::body::Params;
use super::{Answer, Refusal};
use crate::app::App;
use crate::world::World;
use axum::Json;
use axum::extract::State;
use fleetward_api::controller::{AuditQuery, AuditVerdict};
use fleetward_model::audit::AuditRecord;
use fleetward_model::{ErrorCode, Failure, HostName};
use futures_util::future::join_all;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const FETCH_TIME: Duration = Duration::from_secs(5);
const COMPARE_TIME: Duration = Duration::from_secs(30);

/// Records of all hosts and of the controller, oldest first.
#[utoipa::path(
    get, path = "/v1/audit",
    params(("vm" = Option<String>, Query), ("since" = Option<String>, Query, description = "RFC 3339")),
    responses((status = 200, body = Vec<AuditRecord>))
)]
pub(super) async fn audit_list(
    State(app): State<App>,
    Params(query): Params<AuditQuery>,
) -> Answer<Json<Vec<AuditRecord>>> {
    let since = query.since.map(|text| {
        OffsetDateTime::parse(&text, &Rfc3339).map_err(|error| {
            Failure::new(ErrorCode::InvalidArgument, "since is not a time")
                .because(error)
                .fix("--since 2026-01-31T00:00:00Z")
        })
    });
    let since = since.transpose()?;
    let vm = match &query.vm {
        Some(name) => Some(app.world.inventory.find(name.as_str())?.id),
        None => None,
    };
    fetch(&app).await;
    Ok(Json(app.world.audit.list(vm, since).await?))
}

#[utoipa::path(get, path = "/v1/audit/verify", responses((status = 200, body = AuditVerdict)))]
pub(super) async fn audit_verify(State(app): State<App>) -> Answer<Json<AuditVerdict>> {
    fetch(&app).await;
    let world = &app.world;
    let compared = join_all(world.hosts.all().into_iter().map(|host| async move {
        let position = world.audit.position(&host.name).await;
        let own = tokio::time::timeout(COMPARE_TIME, own_log(world, &host.name));
        match own.await {
            Ok(Ok(log)) => Ok(world.audit.compare(&host.name, position, &log).await?),
            Ok(Err(_)) | Err(_) => Err(Refusal::from(Failure::new(
                ErrorCode::HostUnreachable,
                host.name.to_string(),
            ))),
        }
    }))
    .await;
    let mut verdict = world.audit.verdict().await?;
    for (host, compared) in world.hosts.all().into_iter().zip(compared) {
        match compared {
            Ok(found) => verdict.breaks.extend(found),
            Err(_) => verdict.not_compared.push(host.name),
        }
    }
    verdict.intact = verdict.breaks.is_empty();
    verdict.broken = verdict.breaks.first().map(|found| found.what.clone());
    Ok(Json(verdict))
}

/// Everything a host has recorded, as it lies there now; what the host remembers of the controller's is taken too.
async fn own_log(world: &World, host: &HostName) -> Result<Vec<AuditRecord>, Failure> {
    if !world.inventory.seen(host).online {
        return Err(Failure::new(
            ErrorCode::HostUnreachable,
            format!("host {host} does not answer"),
        ));
    }
    let agent = world.agents.of(host)?;
    if let Ok(Some(seen)) = agent.witness(None).await {
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
async fn fetch(app: &App) {
    let world = &app.world;
    let hosts: Vec<_> = world.hosts.all();
    let online = hosts
        .iter()
        .filter(|host| world.inventory.seen(&host.name).online);
    let fetched = join_all(online.map(|host| crate::watch::fetch_audit(world, &host.name)));
    let _ = tokio::time::timeout(FETCH_TIME, fetched).await;
}
