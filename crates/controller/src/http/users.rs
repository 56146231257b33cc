//! Users: people who log in with a password.

use super::Answer;
use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use crate::app::App;
use crate::audit::Act;
use axum::Json;
use axum::extract::{Path, State};
use fleetward_api::controller::UserView;
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::UserName;
use fleetward_model::audit::AuditAction;
use time::OffsetDateTime;

serves! {
    UserAdd => add,
    UserList => list,
    UserSet => set,
    UserRemove => remove,
}

async fn add(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::UserAdd>,
) -> Answer<Json<UserView>> {
    let now = OffsetDateTime::now_utc();
    let added = app.world.people.add(request, peer.to_string(), now).await?;
    let why = format!("{}, {}", added.name, added.role);
    app.record(Act::new(&peer, AuditAction::AddUser, why))
        .await?;
    Ok(Json(added))
}

async fn list(
    State(app): State<App>,
    Asked(query): Asked<verbs::UserList>,
) -> Answer<Rows<UserView>> {
    let page = Page::new(query.limit, query.after)?;
    let all = app.world.people.list(OffsetDateTime::now_utc());
    Ok(Rows(page.of_named(all)))
}

async fn set(
    State(app): State<App>,
    peer: Peer,
    Path(name): Path<String>,
    Asked(change): Asked<verbs::UserSet>,
) -> Answer<Json<UserView>> {
    let name: UserName = super::parsed("user's name", &name)?;
    let mut why = name.to_string();
    if let Some(role) = change.role {
        why.push_str(&format!(", now {role}"));
    }
    if change.password.is_some() {
        why.push_str(", another password");
    }
    let changed = app
        .world
        .people
        .set(&name, change, OffsetDateTime::now_utc());
    let changed = changed.await?;
    app.record(Act::new(&peer, AuditAction::SetUser, why))
        .await?;
    Ok(Json(changed))
}

async fn remove(
    State(app): State<App>,
    peer: Peer,
    Path(name): Path<String>,
) -> Answer<Json<UserView>> {
    let name: UserName = super::parsed("user's name", &name)?;
    let removed = app.world.people.remove(&name, OffsetDateTime::now_utc());
    let removed = removed.await?;
    app.record(Act::new(&peer, AuditAction::RemoveUser, name.as_str()))
        .await?;
    Ok(Json(removed))
}
