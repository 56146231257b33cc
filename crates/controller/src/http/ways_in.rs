//! Who makes a request that comes without a certificate of the fleet: it says so itself, and is believed or refused.
//!
//! ```text
//!   Authorization: Bearer fwt1... ──► ApiTokens ──► Peer::Program, until the token's end
//!   Cookie: __Host-fleetward=...  ──► for a page of ours? ──► Sessions ──► Peer::Person, until the session's end
//!   nothing                       ──► Peer::Anonymous, who may log in and nothing else
//! ```
//! Source: RFC 6750 (bearer tokens), sections 2.1 and 3. Tokens in addresses and bodies are not read: they end in logs.

use super::{Refusal, browsers};
use crate::app::App;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fleetward_api::verbs::{SessionBegin, Verb};
use fleetward_link::{Peer, Visit};
use fleetward_model::{ErrorCode, Failure};
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use time::OffsetDateTime;

/// What a request without credentials is told.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"fleetward\"");
/// What one is told whose credentials are not good.
const REFUSED: HeaderValue =
    HeaderValue::from_static("Bearer realm=\"fleetward\", error=\"invalid_token\"");

/// Finds out who makes a request.
pub(super) async fn identify(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let now = OffsetDateTime::now_utc();
    match peer(&app, &mut request, now) {
        Ok(Some(peer)) => {
            request.extensions_mut().insert(peer);
            next.run(request).await
        }
        Ok(None) => {
            let mut response = next.run(request).await;
            if response.status() == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
            }
            response
        }
        Err(failure) => {
            tracing::info!(because = failure.because, "a request with bad credentials");
            let is_other =
                [ErrorCode::OriginRefused, ErrorCode::InvalidRequest].contains(&failure.code);
            let mut response = Refusal(failure).into_response();
            if !is_other {
                *response.status_mut() = StatusCode::UNAUTHORIZED;
                response.headers_mut().insert(WWW_AUTHENTICATE, REFUSED);
            }
            response
        }
    }
}

fn peer(app: &App, request: &mut Request, now: OffsetDateTime) -> Result<Option<Peer>, Failure> {
    match bearer_token(request.headers())? {
        Some(text) => program(app, request, text, now).map(Some),
        None => person(app, request, now),
    }
}

/// Who has logged in, by the session in the cookie. Whoever logs in now is nobody yet, whatever cookie there is.
fn person(app: &App, request: &mut Request, now: OffsetDateTime) -> Result<Option<Peer>, Failure> {
    let logs_in = request.method() == Method::POST && request.uri().path() == SessionBegin::PATH;
    let secret = match logs_in {
        true => None,
        false => browsers::session_secret(request.headers())?,
    };
    browsers::require_own_page(request, secret.is_some())?;
    let Some(secret) = secret else {
        return Ok(None);
    };
    let (session, rights) = app.world.people.session(secret, now)?;
    if let Some(visit) = request.extensions().get::<Visit>() {
        visit.welcome(&session.label(), session.clone().end());
    }
    let user = session.user().clone();
    request.extensions_mut().insert(session);
    Ok(Some(Peer::Person { user, rights }))
}

fn program(app: &App, request: &Request, text: &str, now: OffsetDateTime) -> Result<Peer, Failure> {
    let bearer = app.world.api_tokens.bearer(text, now)?;
    if let Some(visit) = request.extensions().get::<Visit>() {
        visit.welcome(bearer.name.as_str(), bearer.end(now));
    }
    Ok(Peer::Program {
        token: bearer.name,
        rights: bearer.rights,
    })
}

/// The token that the headers carry, if any.
fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, Failure> {
    let refused = |because: &str| {
        Failure::new(
            ErrorCode::CredentialsRefused,
            "the request's credentials cannot be read",
        )
        .because(because)
        .fix("send one header: Authorization: Bearer TOKEN")
    };
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = given.next() else {
        return Ok(None);
    };
    if given.next().is_some() {
        return Err(refused("there is more than one Authorization header"));
    }
    let text = value.to_str().map_err(|_| refused("it is no text"))?;
    // The scheme is read without regard to case (RFC 9110, section 11.1).
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(refused("only the scheme Bearer is understood"));
    }
    Ok(Some(token.trim_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Option<String>, ErrorCode> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().expect("a header"));
        }
        match bearer_token(&headers) {
            Ok(token) => Ok(token.map(str::to_owned)),
            Err(failure) => Err(failure.code),
        }
    }

    #[test]
    fn one_bearer_token_is_read_and_nothing_else() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["Bearer abc"]), Ok(Some("abc".to_owned())));
        assert_eq!(read(&["bearer  abc "]), Ok(Some("abc".to_owned())));
        for bad in [&["Basic YTpi"][..], &["Bearer a", "Bearer b"], &["abc"]] {
            assert_eq!(read(bad), Err(ErrorCode::CredentialsRefused), "{bad:?}");
        }
    }
}
