//! Lists on their way out: a page as a JSON array, or with `Accept: application/x-ndjson` all rows, one a line.
//!
//! ```text
//!   GET /v1/vms, lines wanted ─► the list's handler, limit=1000 ─► 1,000 lines
//!                                the same, after=<its last row> ─► 1,000 lines ... until a page is not full
//! ```
//! Each page is asked for when the one before it is sent, so a list of any length takes the memory of one page. A list that
//! cannot be given to its end is cut off, not ended: a client sees that the answer is not whole.

use super::Refusal;
use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fleetward_api::NDJSON;
use fleetward_api::lists::{LONGEST_PAGE, Row};
use fleetward_model::{ErrorCode, Failure};
use futures_util::stream;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, VARY};
use http::request::Parts;
use http::{HeaderValue, Uri};
use serde::Serialize;
use serde_json::value::RawValue;
use std::io;
use tokio_util::sync::CancellationToken;

/// The rows of a page.
#[derive(Debug)]
pub(super) struct Rows<T>(pub(super) Vec<T>);

/// Where a page ended.
#[derive(Debug, Clone)]
struct PageEnd {
    rows: usize,
    cursor: Option<String>,
}

impl<T: Row + Serialize> IntoResponse for Rows<T> {
    fn into_response(self) -> Response {
        let end = PageEnd {
            rows: self.0.len(),
            cursor: self.0.last().map(Row::cursor),
        };
        let mut response = Json(self.0).into_response();
        response.extensions_mut().insert(end);
        response
    }
}

/// Gives a list as lines to who wants them. With a `limit` they are one page, without it they are all.
pub(super) async fn as_lines(
    State(stop): State<CancellationToken>,
    request: Request,
    next: Next,
) -> Response {
    let wants = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains(NDJSON));
    let by_accept = HeaderValue::from_static("accept");
    if !request.headers().get_all(ACCEPT).iter().any(wants) {
        let mut response = next.run(request).await;
        response.headers_mut().append(VARY, by_accept);
        return response;
    }
    let (parts, _) = request.into_parts();
    let mut pages = match Pages::of(parts, next) {
        Ok(pages) => pages,
        Err(refusal) => return refusal.into_response(),
    };
    // The first page tells whether there is a list at all.
    let mut response = match pages.next().await {
        Ok(response) => response,
        Err(refused) => return refused,
    };
    let first = Some(std::mem::take(response.body_mut()));
    let all = stream::try_unfold((first, pages), move |(first, mut pages)| {
        let stop = stop.clone();
        async move {
            let page = match first {
                Some(page) => page,
                None if pages.is_over => return io::Result::Ok(None),
                None => {
                    let page = stop.run_until_cancelled(pages.next()).await;
                    let page = page.ok_or_else(|| io::Error::other("the controller ends"))?;
                    page.map_err(|refused| cut_off(&refused))?.into_body()
                }
            };
            Ok(Some((lines(page).await?, (None, pages))))
        }
    });
    *response.body_mut() = Body::from_stream(all);
    response.headers_mut().remove(CONTENT_LENGTH);
    let ndjson = HeaderValue::from_static(NDJSON);
    response.headers_mut().insert(CONTENT_TYPE, ndjson);
    response.headers_mut().append(VARY, by_accept);
    response
}

/// A list that is asked for page by page, as its caller.
struct Pages {
    parts: Parts,
    next: Next,
    /// What was asked, without `after`, and with the longest page where no limit was given.
    query: Vec<(String, String)>,
    after: Option<String>,
    /// One page was asked for.
    only_one: bool,
    is_over: bool,
}

impl Pages {
    fn of(parts: Parts, next: Next) -> Result<Self, Refusal> {
        let query = parts.uri.query().unwrap_or_default();
        let query: Vec<(String, String)> =
            serde_html_form::from_str(query).map_err(|error| unusable(&error))?;
        let (after, mut query): (Vec<_>, Vec<_>) =
            query.into_iter().partition(|(name, _)| name == "after");
        let only_one = query.iter().any(|(name, _)| name == "limit");
        if !only_one {
            query.push(("limit".to_owned(), LONGEST_PAGE.to_string()));
        }
        Ok(Self {
            parts,
            next,
            query,
            after: after.into_iter().next().map(|(_, after)| after),
            only_one,
            is_over: false,
        })
    }

    /// The next page, or what its handler answered instead of one.
    async fn next(&mut self) -> Result<Response, Response> {
        let request = self.request().map_err(IntoResponse::into_response)?;
        let mut response = self.next.clone().run(request).await;
        let Some(end) = response.extensions_mut().remove::<PageEnd>() else {
            return Err(response);
        };
        self.is_over = self.only_one || end.rows < LONGEST_PAGE as usize;
        self.after = end.cursor;
        Ok(response)
    }

    fn request(&self) -> Result<Request, Refusal> {
        let after = self.after.iter().map(|after| ("after", after.as_str()));
        let query = self.query.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let query: Vec<_> = query.chain(after).collect();
        let query = serde_html_form::to_string(query).map_err(|error| unusable(&error))?;
        let uri = format!("{}?{query}", self.parts.uri.path());
        let mut parts = self.parts.clone();
        parts.uri = uri.parse::<Uri>().map_err(|error| unusable(&error))?;
        Ok(Request::from_parts(parts, Body::empty()))
    }
}

fn cut_off(refused: &Response) -> io::Error {
    let status = refused.status();
    tracing::warn!(%status, "a list was cut off: one of its pages was refused");
    io::Error::other("a page of the list was refused")
}

fn unusable(error: &dyn std::fmt::Display) -> Refusal {
    let what = "the request's query cannot be used";
    Refusal(Failure::new(ErrorCode::InvalidArgument, what).because(error))
}

/// The elements of a JSON array, one a line.
async fn lines(page: Body) -> io::Result<Bytes> {
    let page = to_bytes(page, usize::MAX).await.map_err(io::Error::other)?;
    let rows: Vec<&RawValue> = serde_json::from_slice(&page)?;
    let mut lines = Vec::with_capacity(page.len());
    for row in rows {
        lines.extend_from_slice(row.get().as_bytes());
        lines.push(b'\n');
    }
    Ok(lines.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::page::Page;
    use axum::extract::Query;
    use axum::{Router, middleware, routing::get};
    use serde::Deserialize;
    use tower::ServiceExt;

    #[derive(Debug, Serialize)]
    struct Numbered {
        n: usize,
    }

    impl Row for Numbered {
        fn cursor(&self) -> String {
            format!("{:05}", self.n)
        }
    }

    #[derive(Debug, Deserialize)]
    struct Asked {
        of: usize,
        limit: Option<u32>,
        after: Option<String>,
        #[serde(default)]
        refuse_after: Option<String>,
    }

    async fn list(Query(asked): Query<Asked>) -> Result<Rows<Numbered>, Refusal> {
        if asked.after.is_some() && asked.after == asked.refuse_after {
            return Err(Failure::new(ErrorCode::StoreFailed, "the store failed").into());
        }
        let page = Page::new(asked.limit, asked.after)?;
        Ok(Rows(page.of_named((0..asked.of).map(|n| Numbered { n }))))
    }

    async fn ask(uri: &str, accept: &str) -> Response {
        let stop = CancellationToken::new();
        let layer = middleware::from_fn_with_state(stop, as_lines);
        let router: Router = Router::new().route("/n", get(list)).layer(layer);
        let request = http::Request::get(uri).header(ACCEPT, accept);
        let request = request.body(Body::empty()).expect("a request");
        router.oneshot(request).await.expect("an answer")
    }

    async fn numbers(uri: &str) -> Vec<usize> {
        let response = ask(uri, "application/json, application/x-ndjson").await;
        assert_eq!(response.headers()[CONTENT_TYPE], NDJSON);
        let body = to_bytes(response.into_body(), usize::MAX).await;
        let body = body.expect("whole").to_vec();
        let lines = String::from_utf8(body).expect("text");
        let number = |line: &str| {
            let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
            row["n"].as_u64().expect("a number") as usize
        };
        lines.lines().map(number).collect()
    }

    #[tokio::test]
    async fn lines_are_all_rows_however_many_pages_they_take() {
        for of in [0, 1, 999, 1000, 1001, 2000, 2500] {
            let found = numbers(&format!("/n?of={of}")).await;
            assert_eq!(found, (0..of).collect::<Vec<_>>(), "{of}");
        }
        let found = numbers("/n?of=2500&after=01200").await;
        assert_eq!(found, (1201..2500).collect::<Vec<_>>());
        let found = numbers("/n?of=2500&limit=3&after=00007").await;
        assert_eq!(found, [8, 9, 10]);
    }

    #[tokio::test]
    async fn a_list_that_cannot_go_on_is_not_whole() {
        let refused = ask("/n?of=2500&refuse_after=00999", NDJSON).await;
        assert!(refused.status().is_success(), "the first page was there");
        assert!(to_bytes(refused.into_body(), usize::MAX).await.is_err());
        let refused = ask("/n?of=9&limit=0", NDJSON).await;
        assert_eq!(refused.status(), http::StatusCode::BAD_REQUEST);
        assert_eq!(refused.headers()[CONTENT_TYPE], "application/json");
    }

    #[tokio::test]
    async fn who_does_not_ask_for_lines_gets_an_array() {
        let response = ask("/n?of=2&limit=2", "*/*").await;
        let body = to_bytes(response.into_body(), usize::MAX).await;
        assert_eq!(body.expect("whole"), r#"[{"n":0},{"n":1}]"#);
    }
}
