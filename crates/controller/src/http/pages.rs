//! The pages of the console: files that are in the program, for everybody; what they show comes through the API.
//!
//! ```text
//!   /v1/..., /metrics ─► the API
//!   /assets/NAME      ─► the file; its name has a digest of it, so it is kept for ever
//!   anything else     ─► index.html, which reads the path itself; asked for anew each time
//! ```
//! A program that was built without Node has no such files, and says how to get them.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fleetward_api::verbs::ENDPOINTS;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Method, StatusCode};
use rust_embed::RustEmbed;
use tower::ServiceExt;
use tower_http::compression::CompressionLayer;

#[derive(RustEmbed)]
#[folder = "../../console/dist"]
struct Files;

/// Nothing but what this controller sends: no script or style within a page, nothing from elsewhere, no frame around it.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const NOT_BUILT: &str = "This controller was built without its console. To get it, install Node 18 or newer with npm, \
run `make console`, and build the program again. Its API is at /v1.\n";

/// Answers what is not asked of the API.
pub(super) async fn first(State(pages): State<Router>, request: Request, next: Next) -> Response {
    if is_of_api(request.uri().path()) {
        return next.run(request).await;
    }
    let Ok(answer) = pages.oneshot(request).await;
    answer
}

/// Whether a path begins like one of the verbs: `/v1/...`, `/metrics`.
fn is_of_api(path: &str) -> bool {
    let first = |path: &str| path.split('/').nth(1).map(str::to_owned);
    let begins = first(path);
    ENDPOINTS
        .iter()
        .any(|endpoint| first(endpoint.path) == begins)
}

/// Every path that is not of the API. Compressed: there is nothing secret in it that its length could tell of.
pub(super) fn router() -> Router {
    let asked = async |request: Request| match *request.method() {
        Method::GET | Method::HEAD => page(request.uri().path().trim_start_matches('/')),
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    };
    Router::new().fallback(asked).layer(CompressionLayer::new())
}

fn page(path: &str) -> Response {
    let (name, kept) = match path.starts_with("assets/") {
        true => (path, "public, max-age=31536000, immutable"),
        false => ("index.html", "no-cache"),
    };
    let mut response = match Files::get(name) {
        Some(file) => {
            let kind = file.metadata.mimetype().to_owned();
            ([(CONTENT_TYPE, kind)], file.data).into_response()
        }
        None if name == "index.html" => (StatusCode::NOT_FOUND, NOT_BUILT).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (OPENER_POLICY, "same-origin"),
        (CACHE_CONTROL, kept),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_console_has_a_kind_that_browsers_use() {
        for name in Files::iter() {
            let kind = page(&name).headers()[CONTENT_TYPE].clone();
            let known = ["text/html", "text/javascript", "text/css"];
            assert!(known.iter().any(|known| kind == known), "{name}: {kind:?}");
        }
    }

    #[test]
    fn every_verb_is_the_apis_and_nothing_else_is() {
        for endpoint in ENDPOINTS {
            assert!(is_of_api(endpoint.path), "{endpoint:?}");
        }
        for path in ["/", "/vms", "/vms/v1", "/v1x", "/assets/v1", ""] {
            assert!(!is_of_api(path), "{path}");
        }
    }

    #[test]
    fn no_path_leads_out_of_the_console() {
        for path in [
            "assets/../Cargo.toml",
            "assets/none.js",
            "assets//etc/passwd",
        ] {
            assert_eq!(page(path).status(), StatusCode::NOT_FOUND, "{path}");
        }
        let policy = POLICY.to_str().expect("text").to_owned();
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
