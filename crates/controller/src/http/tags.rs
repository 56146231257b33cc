//! Tags of answers: who asks again for what it has is told that it is the same still, in a few bytes (RFC 9110, 8.8.3 and
//! 13.1.2).
//!
//! ```text
//!   handler ─► tagged: a digest of the JSON ─► compressed, for who takes that ─► unless_known: 304 for who has it
//! ```
//! A tag is of the bytes before they are compressed, so the same answer has one digest in both forms. The compressed form has it
//! as a weak tag, because other bytes may stand for the same answer, and so has an answer with ages: these are no part of the
//! digest, because they grow while nothing changes.

use super::Refusal;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fleetward_model::{ErrorCode, Failure};
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderValue, Method, StatusCode};
use memchr::memmem;
use sha2::{Digest, Sha256};

/// How JSON begins a field that counts seconds, wherever it stands. Within a text a quotation mark has a backslash before it,
/// so no text has this; a label may be called so, but its value is a text.
const AGE: &[u8] = b"\"escrow_age\":";

/// Bytes of a digest that make a tag.
const LENGTH: usize = 16;

/// Bytes that are digested before others get their turn.
const SLICE: usize = 1 << 20;

/// Tags an answer that is one JSON value.
pub(super) async fn tagged(request: Request, next: Next) -> Response {
    let is_read = request.method() == Method::GET;
    let response = next.run(request).await;
    let json = HeaderValue::from_static("application/json");
    let is_json = response.headers().get(CONTENT_TYPE) == Some(&json);
    if !is_read || !is_json || response.status() != StatusCode::OK {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // It lies in memory already, in one piece.
    let bytes = match to_bytes(body, usize::MAX).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let failure = Failure::new(ErrorCode::Internal, "the answer is not whole");
            return Refusal(failure.because(error)).into_response();
        }
    };
    if let Ok(tag) = HeaderValue::try_from(tag_of(&bytes).await) {
        parts.headers.insert(ETAG, tag);
        let asked_each_time = HeaderValue::from_static("private, no-cache");
        parts.headers.insert(CACHE_CONTROL, asked_each_time);
    }
    Response::from_parts(parts, Body::from(bytes))
}

/// Answers 304 without a body to who has that very answer.
pub(super) async fn unless_known(request: Request, next: Next) -> Response {
    let known = request.headers().get_all(IF_NONE_MATCH).iter();
    let known: Vec<HeaderValue> = known.cloned().collect();
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let Some(tag) = headers.get(ETAG).and_then(|tag| tag.to_str().ok()) else {
        return response;
    };
    let is_known = known.iter().any(|known| names(known, tag));
    let weak = HeaderValue::try_from(format!("W/{}", opaque(tag)));
    if headers.contains_key(CONTENT_ENCODING)
        && let Ok(weak) = weak
    {
        headers.insert(ETAG, weak);
    }
    if !is_known {
        return response;
    }
    // What was compressed is not: its body is read as it is sent.
    let mut unchanged = StatusCode::NOT_MODIFIED.into_response();
    for name in [ETAG, CACHE_CONTROL, VARY] {
        for value in headers.get_all(&name) {
            unchanged.headers_mut().append(&name, value.clone());
        }
    }
    unchanged
}

/// Whether the value of an `If-None-Match` names the tag. Of our own tags none has a comma in it.
fn names(known: &HeaderValue, tag: &str) -> bool {
    let known = known.to_str().unwrap_or_default().split(',').map(str::trim);
    let mut known = known.map(|known| known == "*" || opaque(known) == opaque(tag));
    known.any(|same| same)
}

/// A tag without its mark of weakness.
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

async fn tag_of(json: &[u8]) -> String {
    let mut digest = Sha256::new();
    let (mut rest, mut has_ages) = (json, false);
    while let Some(at) = memmem::find(rest, AGE) {
        let (before, age) = rest.split_at(at + AGE.len());
        add(&mut digest, before).await;
        rest = age;
        if matches!(age.first(), Some(b'0'..=b'9' | b'n')) {
            has_ages = true;
            let end = age.iter().position(|byte| matches!(byte, b',' | b'}'));
            rest = &age[end.unwrap_or(age.len())..];
        }
    }
    add(&mut digest, rest).await;
    let digest = hex::encode(&digest.finalize()[..LENGTH]);
    let weak = if has_ages { "W/" } else { "" };
    format!("{weak}\"{digest}\"")
}

async fn add(digest: &mut Sha256, bytes: &[u8]) {
    for (n, slice) in bytes.chunks(SLICE).enumerate() {
        if n > 0 {
            tokio::task::yield_now().await;
        }
        digest.update(slice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    async fn tag(value: &Value) -> String {
        tag_of(&serde_json::to_vec(value).expect("JSON")).await
    }

    #[tokio::test]
    async fn only_ages_make_no_difference_and_they_make_a_tag_weak() {
        let vms = |age: Value, text: &str| {
            let vm = json!({ "escrow_age": age, "text": text });
            json!([vm, { "a": { "escrow_age": 7 } }, { "text": text }])
        };
        let one = tag(&vms(json!(1), "a")).await;
        assert!(one.starts_with("W/\""), "{one}");
        assert_eq!(tag(&vms(json!(123_456), "a")).await, one);
        assert_eq!(tag(&vms(Value::Null, "a")).await, one);
        assert_ne!(tag(&vms(json!(1), "b")).await, one);
        // a label that is called so
        let label = |value: &str| json!({ "labels": { "escrow_age": value } });
        assert_ne!(tag(&label("1")).await, tag(&label("2")).await);
        // a text that looks like one
        let text = |n: u32| json!({ "text": format!("{{\"escrow_age\":{n}}}") });
        let (one, other) = (tag(&text(1)).await, tag(&text(2)).await);
        assert_ne!(one, other);
        assert!(one.starts_with('"'), "{one}");
    }

    #[test]
    fn a_tag_is_known_in_any_form_and_among_others() {
        let known = |value: &'static str| names(&HeaderValue::from_static(value), "\"ab\"");
        for value in ["\"ab\"", "W/\"ab\"", "\"x\", W/\"ab\" , \"y\"", "*"] {
            assert!(known(value), "{value}");
        }
        for value in ["", "\"a\"", "ab", "\"x\",\"abc\""] {
            assert!(!known(value), "{value}");
        }
    }
}
