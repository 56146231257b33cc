//! Answers that come over time: one JSON value a line.

use crate::app::App;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fleetward_api::NDJSON;
use futures_util::{Stream, StreamExt, stream};
use http::header::CONTENT_TYPE;
use serde::Serialize;
use std::convert::Infallible;
use std::time::Duration;

/// A blank line this often says that the stream is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Ends with `values`, or with the controller.
pub(super) fn lines<T: Serialize>(
    app: &App,
    values: impl Stream<Item = T> + Send + 'static,
) -> Response {
    let lines = stream::unfold(Box::pin(values), |mut values| async move {
        let line = match tokio::time::timeout(KEEP_ALIVE, values.next()).await {
            Err(_) => Bytes::from_static(b"\n"),
            Ok(Some(value)) => {
                let mut line = serde_json::to_vec(&value).ok()?;
                line.push(b'\n');
                line.into()
            }
            Ok(None) => return None,
        };
        Some((Ok::<_, Infallible>(line), values))
    });
    let lines = lines.take_until(app.stop.clone().cancelled_owned());
    ([(CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response()
}
