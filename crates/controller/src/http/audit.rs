//! The audit trail: list and verify. Both fetch first what the hosts have recorded since.

use super::Answer;
use super::body::Params;
use crate::app::App;
use axum::Json;
use axum::extract::State;
use fleetward_api::controller::{AuditQuery, AuditVerdict};
use fleetward_model::audit::AuditRecord;
use fleetward_model::{ErrorCode, Failure};
use futures_util::future::join_all;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const FETCH_TIME: Duration = Duration::from_secs(5);

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
    Ok(Json(app.world.audit.verdict().await?))
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
