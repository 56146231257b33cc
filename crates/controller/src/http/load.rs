//! What hosts and VMs have used.

use super::body::Asked;
use super::{Answer, parsed};
use crate::app::App;
use crate::load::{self, Span};
use axum::Json;
use axum::extract::{Path, State};
use fleetward_api::controller::{LoadHistory, LoadQuery};
use fleetward_api::verbs;
use fleetward_model::{ErrorCode, Failure, HostName};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

serves! {
    HostLoad => host_load,
    VmLoad => vm_load,
}

async fn host_load(
    State(app): State<App>,
    Path(host): Path<String>,
    Asked(query): Asked<verbs::HostLoad>,
) -> Answer<Json<LoadHistory>> {
    let host: HostName = parsed("host's name", &host)?;
    let span = span(&query)?;
    app.world.hosts.of(&host)?;
    Ok(Json(load::history_of_host(&app.world, &host, span).await))
}

async fn vm_load(
    State(app): State<App>,
    Path(vm): Path<String>,
    Asked(query): Asked<verbs::VmLoad>,
) -> Answer<Json<LoadHistory>> {
    let span = span(&query)?;
    let vm = app.world.inventory.find(&vm)?;
    Ok(Json(load::history_of_vm(&app.world, vm.id, span).await))
}

fn span(query: &LoadQuery) -> Result<Span, Failure> {
    let time = |text: &Option<String>| {
        let time = text
            .as_deref()
            .map(|text| OffsetDateTime::parse(text, &Rfc3339));
        time.transpose().map_err(|error| {
            let what = "a time of the history is no time";
            Failure::new(ErrorCode::InvalidArgument, what)
                .because(error)
                .fix("write times like 2026-01-31T09:00:00Z")
        })
    };
    let now = OffsetDateTime::now_utc();
    Span::new(time(&query.from)?, time(&query.to)?, query.step, now)
}
