//! Logging in and out.

use super::body::Asked;
use super::{Answer, Refusal, browsers};
use crate::app::App;
use crate::audit::Act;
use crate::people::{Begun, IDLE, Refused, Session};
use axum::extract::{ConnectInfo, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use fleetward_api::controller::SessionView;
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::audit::AuditAction;
use fleetward_model::{ErrorCode, Failure};
use http::header::{RETRY_AFTER, SET_COOKIE};
use http::{HeaderValue, StatusCode};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use time::OffsetDateTime;

serves! {
    SessionBegin => begin,
    SessionShow => show,
    SessionEnd => end,
    PasswordChange => change_password,
}

/// From where a request comes; one over a Unix socket has no address.
type Address = Option<Extension<ConnectInfo<SocketAddr>>>;

async fn begin(
    State(app): State<App>,
    address: Address,
    Asked(login): Asked<verbs::SessionBegin>,
) -> Response {
    let from = ip(address);
    let now = OffsetDateTime::now_utc();
    let begun = match app.world.people.log_in(from, login, now).await {
        Ok(begun) => begun,
        Err(refused) => return refusal(refused),
    };
    welcomed(&app, begun, from, AuditAction::LogIn).await
}

async fn show(peer: Peer, session: Option<Extension<Arc<Session>>>) -> Answer<Json<SessionView>> {
    let session = session.map(|Extension(session)| session);
    Ok(Json(view(&peer, session.as_deref())?))
}

async fn end(State(app): State<App>, peer: Peer) -> Answer<Response> {
    let Peer::Person { user, .. } = &peer else {
        return Err(no_session(&peer).into());
    };
    app.world.people.log_out(user).await?;
    app.record(Act::new(&peer, AuditAction::LogOut, user.as_str()))
        .await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(SET_COOKIE, browsers::no_cookie());
    Ok(response)
}

async fn change_password(
    State(app): State<App>,
    peer: Peer,
    address: Address,
    Asked(change): Asked<verbs::PasswordChange>,
) -> Response {
    let Peer::Person { user, .. } = &peer else {
        return Refusal(no_session(&peer)).into_response();
    };
    let (from, now) = (ip(address), OffsetDateTime::now_utc());
    let begun = app.world.people.change_password(from, user, change, now);
    match begun.await {
        Ok(begun) => welcomed(&app, begun, from, AuditAction::SetUser).await,
        Err(refused) => refusal(refused),
    }
}

/// The session in its cookie, and who it is of.
async fn welcomed(app: &App, begun: Begun, from: IpAddr, action: AuditAction) -> Response {
    let Begun {
        secret,
        session,
        rights,
    } = begun;
    let peer = Peer::Person {
        user: session.user().clone(),
        rights,
    };
    let why = match action {
        AuditAction::LogIn => format!("password, from {from}"),
        _ => format!("{}, another password, by the user", session.user()),
    };
    let answer = async {
        app.record(Act::new(&peer, action, why)).await?;
        Ok::<_, Refusal>(Json(view(&peer, Some(&session))?))
    };
    let mut response = answer.await.into_response();
    if response.status().is_success() {
        let headers = response.headers_mut();
        headers.insert(SET_COOKIE, browsers::cookie(&secret));
    }
    response
}

fn view(peer: &Peer, session: Option<&Session>) -> Result<SessionView, Refusal> {
    let role = peer.role().ok_or_else(|| no_session(peer))?;
    Ok(SessionView {
        actor: peer.to_string(),
        role,
        groups: peer.groups().cloned(),
        expires: session.map(Session::expires),
        idle_seconds: session.map(|_| IDLE.as_secs() as u32),
    })
}

fn no_session(peer: &Peer) -> Failure {
    Failure::new(
        ErrorCode::InvalidRequest,
        format!("{peer} has not logged in with a password"),
    )
    .fix("log in at the address of --console with a user's name and password")
}

fn refusal(refused: Refused) -> Response {
    let mut response = Refusal(refused.failure).into_response();
    if let Some(wait) = refused.retry_after {
        let seconds = HeaderValue::from(wait.as_secs().max(1));
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response
}

fn ip(address: Address) -> IpAddr {
    address.map_or(
        Ipv4Addr::UNSPECIFIED.into(),
        |Extension(ConnectInfo(at))| at.ip(),
    )
}
