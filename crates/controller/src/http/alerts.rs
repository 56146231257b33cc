//! Alerts, and whom they are told to.

use super::Answer;
use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use crate::alerts;
use crate::app::App;
use crate::audit::Act;
use axum::Json;
use axum::extract::{Path, State};
use fleetward_api::controller::{AlertTargetView, AlertView};
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::AlertTargetName;
use fleetward_model::audit::AuditAction;

serves! {
    AlertList => list,
    AlertTargetList => targets,
    AlertTargetAdd => add,
    AlertTargetTest => test,
    AlertTargetRemove => remove,
}

const NAME: &str = "alert target's name";

async fn list(
    State(app): State<App>,
    Asked(query): Asked<verbs::AlertList>,
) -> Answer<Rows<AlertView>> {
    let page = Page::new(query.limit, query.after)?;
    Ok(Rows(page.of_listed(app.world.alerts.raised())?))
}

async fn targets(
    State(app): State<App>,
    Asked(query): Asked<verbs::AlertTargetList>,
) -> Answer<Rows<AlertTargetView>> {
    let page = Page::new(query.limit, query.after)?;
    Ok(Rows(page.of_named(app.world.alerts.targets())))
}

async fn add(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::AlertTargetAdd>,
) -> Answer<Json<AlertTargetView>> {
    let added = alerts::add(&app, request, peer.to_string()).await?;
    record(&app, &peer, AuditAction::AddAlertTarget, &added).await?;
    Ok(Json(added))
}

async fn test(
    State(app): State<App>,
    peer: Peer,
    Path(name): Path<String>,
) -> Answer<Json<AlertTargetView>> {
    let name: AlertTargetName = super::parsed(NAME, &name)?;
    let target = app.world.alerts.target(&name)?;
    record(&app, &peer, AuditAction::TestAlertTarget, &target).await?;
    Ok(Json(alerts::test(&app, &name).await?))
}

async fn remove(
    State(app): State<App>,
    peer: Peer,
    Path(name): Path<String>,
) -> Answer<Json<AlertTargetView>> {
    let name: AlertTargetName = super::parsed(NAME, &name)?;
    let removed = alerts::remove(&app, &name).await?;
    record(&app, &peer, AuditAction::RemoveAlertTarget, &removed).await?;
    Ok(Json(removed))
}

async fn record(
    app: &App,
    peer: &Peer,
    action: AuditAction,
    target: &AlertTargetView,
) -> Answer<()> {
    let AlertTargetView { name, kind, to, .. } = target;
    let why = format!("{name}, {} to {to}", kind.into_str());
    Ok(app.record(Act::new(peer, action, why)).await?)
}
