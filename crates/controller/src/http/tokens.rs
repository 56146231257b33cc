//! API tokens: made, listed, revoked.

use super::Answer;
use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use crate::app::App;
use crate::audit::Act;
use crate::web_server::Console;
use axum::Json;
use axum::extract::{Path, State};
use fleetward_api::controller::{ApiTokenMade, ApiTokenView};
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::TokenName;
use fleetward_model::audit::AuditAction;
use time::OffsetDateTime;

serves! {
    TokenCreate => create,
    TokenList => list,
    TokenRevoke => revoke,
}

async fn create(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::TokenCreate>,
) -> Answer<Json<ApiTokenMade>> {
    let now = OffsetDateTime::now_utc();
    let made = app.world.api_tokens.make(request, peer.to_string(), now);
    let (view, token) = made.await?;
    let why = format!(
        "{}, {}, until {}",
        view.name,
        super::scope::told(view.role, view.groups.as_ref()),
        crate::tokens::utc(view.expires)
    );
    app.record(Act::new(&peer, AuditAction::MakeApiToken, why))
        .await?;
    Ok(Json(ApiTokenMade {
        view,
        token: token.to_string(),
        console: app.console.as_ref().map(Console::view),
        console_certificate: app
            .console
            .as_ref()
            .and_then(Console::self_made_certificate),
    }))
}

async fn list(
    State(app): State<App>,
    Asked(query): Asked<verbs::TokenList>,
) -> Answer<Rows<ApiTokenView>> {
    let page = Page::new(query.limit, query.after)?;
    let all = app.world.api_tokens.list(OffsetDateTime::now_utc());
    Ok(Rows(page.of_named(all)))
}

async fn revoke(
    State(app): State<App>,
    peer: Peer,
    Path(name): Path<String>,
) -> Answer<Json<ApiTokenView>> {
    let name: TokenName = super::parsed("API token's name", &name)?;
    let revoked = app
        .world
        .api_tokens
        .revoke(&name, OffsetDateTime::now_utc());
    let revoked = revoked.await?;
    app.record(Act::new(&peer, AuditAction::RevokeApiToken, name.as_str()))
        .await?;
    Ok(Json(revoked))
}
