//! Request bodies (JSON of limited size) and queries. Every error in them is a `Failure`.

use super::Refusal;
use axum::extract::{FromRequest, FromRequestParts, Request};
use fleetward_api::MAX_BODY;
use fleetward_api::verbs::{Carried, Verb};
use fleetward_model::{ErrorCode, Failure};
use futures_util::StreamExt;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// How much of a body that is too large is still taken in, so that the caller reads the refusal and not a broken pipe.
const DRAIN: u64 = 256 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// What the caller of `V` sent, in the form that the verb declares. A verb with an upload reads [`Params`] and the body.
pub(crate) struct Asked<V: Verb>(pub(crate) V::Request);

impl<V: Verb, S: Send + Sync> FromRequest<S> for Asked<V> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match V::CARRIED {
            Carried::Body => {
                let Body(asked) = Body::from_request(request, state).await?;
                Ok(Self(asked))
            }
            Carried::Query | Carried::Upload | Carried::Nowhere => {
                let (mut parts, _) = request.into_parts();
                let Params(asked) = Params::from_request_parts(&mut parts, state).await?;
                Ok(Self(asked))
            }
        }
    }
}

/// A JSON body of at most [`MAX_BODY`] bytes.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refusal> {
        let announced = request
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let mut too_large = announced.is_some_and(|length| length > MAX_BODY as u64);
        let mut pieces = request.into_body().into_data_stream();
        let mut body = Vec::new();
        while let (false, Some(piece)) = (too_large, pieces.next().await) {
            let piece = piece.map_err(|error| invalid("it did not arrive whole", &error))?;
            too_large = body.len() + piece.len() > MAX_BODY;
            body.extend_from_slice(&piece);
        }
        if too_large {
            let drain = async {
                let mut left = DRAIN;
                while let Some(Ok(piece)) = pieces.next().await {
                    left = left.saturating_sub(piece.len() as u64);
                    if left == 0 {
                        break;
                    }
                }
            };
            // the refusal is the same however much came
            let _ = tokio::time::timeout(DRAIN_TIME, drain).await;
            let what = format!("the request's body has more than {MAX_BODY} bytes");
            return Err(Refusal(Failure::new(ErrorCode::TooLarge, what)));
        }
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|error| invalid("it is not what this endpoint takes", &error))
    }
}

/// The query of a request.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let query = parts.uri.query().unwrap_or_default();
        serde_html_form::from_str(query).map(Self).map_err(|error| {
            let what = "the request's query cannot be used";
            Refusal(Failure::new(ErrorCode::InvalidArgument, what).because(error.to_string()))
        })
    }
}

fn invalid(what: &str, error: &dyn std::fmt::Display) -> Refusal {
    let failure = Failure::new(
        ErrorCode::InvalidRequest,
        "the request's body cannot be used",
    );
    Refusal(failure.because(format!("{what}: {error}")))
}
