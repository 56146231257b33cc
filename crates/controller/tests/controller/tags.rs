//! Tags of answers: who has an answer is told whether it is the same still.

use crate::fleet::Controller;
use fleetward_api::NDJSON;
use fleetward_link::client::{ClientError, Response};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderName,
    IF_NONE_MATCH, VARY,
};
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

async fn ask(
    controller: &Controller,
    path: &str,
    headers: &[(HeaderName, &str)],
) -> Result<Response, ClientError> {
    let mut request = controller.local.request(Method::GET, path);
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).expect("a value");
        request = request.header(name.clone(), value);
    }
    request.send().await
}

fn tag(response: &Response) -> String {
    let tag = response.headers.get(ETAG).expect("a tag");
    tag.to_str().expect("text").to_owned()
}

async fn tag_of(controller: &Controller, path: &str) -> String {
    tag(&ask(controller, path, &[]).await.expect("an answer"))
}

/// Whether the answer is the same still as the one of that tag; it has its tag then.
async fn is_unchanged(controller: &Controller, path: &str, known: &str) -> bool {
    let headers = [(IF_NONE_MATCH, known)];
    let response = ask(controller, path, &headers).await.expect("an answer");
    let is_unchanged = response.status == StatusCode::NOT_MODIFIED;
    assert_eq!(tag(&response) == known, is_unchanged, "{path}");
    let body = response.bytes(1 << 20).await.expect("a body");
    assert_eq!(body.is_empty(), is_unchanged, "{path}: {body:?}");
    is_unchanged
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_has_not_changed_is_not_sent_again() {
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    let create = async |name: &str| {
        let body = json!({ "name": name, "host": "a" });
        controller.done(Method::POST, "/v1/vms", &body).await;
    };
    create("web").await;
    let age = async || -> Option<u64> {
        let vm: Value = controller.get("/v1/vms/web").await;
        vm["escrow_age"].as_u64()
    };
    let kept = async || age().await >= Some(1);
    controller.wait("a copy of the TPM", kept).await;
    let paths = [
        "/v1/vms",
        "/v1/vms?limit=10",
        "/v1/vms/web",
        "/v1/check/hosts",
        "/v1/status",
        "/v1/openapi.json",
    ];
    for path in paths {
        // A copy of the TPM may still come.
        let same = async || {
            let tag = tag_of(&controller, path).await;
            is_unchanged(&controller, path, &tag).await
        };
        controller.wait("the same answer", same).await;
        let same_among_others = async || {
            let among = format!("\"x\", {}", tag_of(&controller, path).await);
            let headers = [(IF_NONE_MATCH, &*among)];
            let answer = ask(&controller, path, &headers).await.expect("an answer");
            answer.status == StatusCode::NOT_MODIFIED
        };
        controller.wait("the same answer", same_among_others).await;
        assert!(!is_unchanged(&controller, path, "\"x\"").await, "{path}");
    }
    // How old the copy of the TPM is at most counts seconds, and is no change.
    let (vms, counts) = ("/v1/vms", "/v1/check/hosts");
    assert!(tag_of(&controller, vms).await.starts_with("W/\""));
    assert!(tag_of(&controller, counts).await.starts_with('"'));
    let same_when_older = async || {
        let (tag, first) = (tag_of(&controller, vms).await, age().await);
        let older = async || age().await != first;
        controller.wait("the copy to be older", older).await;
        is_unchanged(&controller, vms, &tag).await
    };
    controller.wait("the same answer", same_when_older).await;

    let mut tags = Vec::new();
    for path in paths {
        tags.push(tag_of(&controller, path).await);
    }
    create("db").await;
    for (path, tag) in paths
        .iter()
        .zip(&tags)
        .filter(|(path, _)| **path != "/v1/vms/web")
    {
        let is_same = is_unchanged(&controller, path, tag).await;
        assert_eq!(is_same, *path == "/v1/openapi.json", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_compressed_form_has_a_weak_tag_of_the_same_answer() {
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    let path = "/v1/guardians";
    let plain = ask(&controller, path, &[]).await.expect("an answer");
    assert!(!plain.headers.contains_key(CONTENT_ENCODING));
    assert_eq!(plain.headers[CACHE_CONTROL], "private, no-cache");
    let strong = tag(&plain);
    assert!(strong.starts_with('"'), "{strong}");

    let gzip = (ACCEPT_ENCODING, "gzip");
    let packed = ask(&controller, path, std::slice::from_ref(&gzip)).await;
    let packed = packed.expect("an answer");
    assert_eq!(packed.headers[CONTENT_ENCODING], "gzip");
    assert_eq!(tag(&packed), format!("W/{strong}"));
    // Whichever is known stands for the answer, and the tag is that of the form that would be sent.
    for known in [strong.clone(), format!("W/{strong}")] {
        for (headers, expected) in [
            (vec![gzip.clone()], format!("W/{strong}")),
            (vec![], strong.clone()),
        ] {
            let headers = [headers, vec![(IF_NONE_MATCH, &*known)]].concat();
            let unchanged = ask(&controller, path, &headers).await.expect("an answer");
            assert_eq!(unchanged.status, StatusCode::NOT_MODIFIED);
            assert_eq!(tag(&unchanged), expected);
            assert!(!unchanged.headers.contains_key(CONTENT_ENCODING));
            assert!(unchanged.headers.contains_key(VARY));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_json_and_what_is_refused_has_no_tag() {
    let controller = Controller::start().await;
    let any = (IF_NONE_MATCH, "*");
    let lines = [(ACCEPT, NDJSON), any.clone()];
    for (path, headers) in [("/v1/vms", &lines[..]), ("/metrics", &lines[1..])] {
        let answer = ask(&controller, path, headers).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert!(!answer.headers.contains_key(ETAG), "{path}");
        assert_ne!(answer.headers[CONTENT_TYPE], "application/json");
    }
    let refused = ask(&controller, "/v1/vms/nobody", &[any]).await;
    assert!(
        matches!(refused, Err(ClientError::Status { code, .. }) if code == StatusCode::NOT_FOUND)
    );
}
