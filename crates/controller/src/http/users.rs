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
    let why = format!("{}, {}", added.name, told(&added));
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
    let (of_rights, of_password) = (
        change.role.is_some() || change.groups.is_some(),
        change.password.is_some(),
    );
    let changed = app
        .world
        .people
        .set(&name, change, OffsetDateTime::now_utc());
    let changed = changed.await?;
    let mut why = name.to_string();
    if of_rights {
        why.push_str(&format!(", now {}", told(&changed)));
    }
    if of_password {
        why.push_str(", another password");
    }
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

/// What the user may do, and where.
fn told(user: &UserView) -> String {
    super::scope::told(user.role, user.groups.as_ref())
}
