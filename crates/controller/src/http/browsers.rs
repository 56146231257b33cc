//! What is special about browsers: they send the session's cookie by themselves, also for pages of others, and they believe
//! what answers say of themselves.
//!
//! ```text
//!   a request with the cookie ─► for a page of ours? (Origin, Sec-Fetch-Site, no form) ─► whose session
//!   every answer              ─► not kept, not framed, not guessed at
//! ```
//! Sources: RFC 6265 (cookies), sections 4.1 and 5.4; the drafts that follow it for `SameSite` and `__Host-`; Fetch for
//! `Origin`; Fetch Metadata Request Headers for `Sec-Fetch-Site`.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use cookie::{Cookie, SameSite};
use fleetward_model::{ErrorCode, Failure};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, HOST, HeaderName, ORIGIN,
    REFERRER_POLICY, UPGRADE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method};

/// With this beginning a browser takes the cookie from this origin alone, over TLS, for all paths.
const NAME: &str = "__Host-fleetward";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The cookie of a session. It ends with the browser at the latest.
pub(super) fn cookie(secret: &str) -> HeaderValue {
    header(Cookie::build((NAME, secret)))
}

/// Takes the cookie away from a browser.
pub(super) fn no_cookie() -> HeaderValue {
    header(Cookie::build((NAME, "")).max_age(time::Duration::ZERO))
}

fn header(cookie: cookie::CookieBuilder<'_>) -> HeaderValue {
    let cookie = cookie
        .path("/")
        .secure(true)
        .http_only(true)
        .same_site(SameSite::Strict)
        .build();
    let mut value =
        HeaderValue::try_from(cookie.to_string()).expect("a name and base64url make a header");
    value.set_sensitive(true);
    value
}

/// The secret of a session that the request carries, if any.
///
/// # Errors
/// There are several.
pub(super) fn session_secret(headers: &HeaderMap) -> Result<Option<&str>, Failure> {
    let texts = headers.get_all(COOKIE).iter();
    let texts = texts.filter_map(|value| value.to_str().ok());
    let mut secrets = texts
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter_map(|(name, value)| (name == NAME).then_some(value));
    let first = secrets.next();
    if secrets.next().is_some() {
        return Err(Failure::new(
            ErrorCode::CredentialsRefused,
            "the request's credentials cannot be read",
        )
        .because("there is more than one session in it")
        .fix("log in again"));
    }
    Ok(first)
}

/// Whether a browser could have sent it for a page of somebody else. `bears` says that it carries a session: then it must say
/// for which page a change or a WebSocket is asked.
///
/// # Errors
/// It could, or it is the kind of body that a form sends.
pub(super) fn require_own_page(request: &Request, bears: bool) -> Result<(), Failure> {
    let refused = |because: String| {
        Err(Failure::new(
            ErrorCode::OriginRefused,
            "the request is not for a page of this controller",
        )
        .because(because))
    };
    let headers = request.headers();
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let is_change = !reads || headers.contains_key(UPGRADE);
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    match site {
        None | Some(b"same-origin") => {}
        // Typed into the address line.
        Some(b"none") if !is_change => {}
        Some(other) => {
            let other = String::from_utf8_lossy(other).into_owned();
            return refused(format!("Sec-Fetch-Site is {other}"));
        }
    }
    if !is_change {
        return Ok(());
    }
    match (one(headers, &ORIGIN), one(headers, &HOST)) {
        (Some(origin), Some(host)) if origin == format!("https://{host}") => {}
        (None, _) if !bears && !headers.contains_key(ORIGIN) => {}
        (Some(origin), host) => {
            let host = host.unwrap_or("nothing");
            return refused(format!("Origin is {origin}, and Host {host}"));
        }
        (None, _) => return refused("it does not say for which page (Origin)".to_owned()),
    }
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    match kind {
        None | Some(b"application/json" | b"application/octet-stream") => Ok(()),
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            Err(Failure::new(
                ErrorCode::InvalidRequest,
                "the request's body cannot be used",
            )
            .because(format!("its Content-Type is {other}, not application/json")))
        }
    }
}

/// The value of a header that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// Says how an answer may be used: not kept by caches, not as a part of another page, not as another kind of file.
pub(super) async fn answer(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (RESOURCE_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // What has a tag is asked for again with it, which keeping it is for.
    let entry = headers.entry(CACHE_CONTROL);
    entry.or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn request(method: Method, headers: &[(&str, &str)]) -> Request {
        let request = http::Request::builder().method(method).uri("/v1/x");
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        request.body(Body::empty()).expect("a request")
    }

    #[test]
    fn a_page_of_another_gets_nothing_done() {
        let host = ("host", "fleet.example:7480");
        let own = ("origin", "https://fleet.example:7480");
        let good: &[(Method, &[(&str, &str)])] = &[
            (Method::GET, &[host]),
            (Method::GET, &[host, ("sec-fetch-site", "none")]),
            (Method::POST, &[host, own]),
            (
                Method::POST,
                &[host, own, ("sec-fetch-site", "same-origin")],
            ),
            (Method::GET, &[host, own, ("upgrade", "websocket")]),
            (
                Method::PATCH,
                &[host, own, ("content-type", "application/json")],
            ),
        ];
        for (method, headers) in good {
            let request = request(method.clone(), headers);
            assert_eq!(require_own_page(&request, true), Ok(()), "{headers:?}");
        }
        let bad: &[(Method, &[(&str, &str)])] = &[
            (Method::GET, &[host, ("sec-fetch-site", "cross-site")]),
            (Method::GET, &[host, ("sec-fetch-site", "same-site")]),
            (Method::POST, &[host, own, ("sec-fetch-site", "none")]),
            (Method::POST, &[host]),
            (Method::POST, &[host, ("origin", "null")]),
            (
                Method::POST,
                &[host, ("origin", "http://fleet.example:7480")],
            ),
            (Method::POST, &[host, ("origin", "https://fleet.example")]),
            (
                Method::POST,
                &[host, ("origin", "https://fleet.example:7480.evil.example")],
            ),
            (Method::POST, &[host, own, own]),
            (Method::POST, &[own]),
            (Method::DELETE, &[host, ("origin", "https://evil.example")]),
            (Method::GET, &[host, ("upgrade", "websocket")]),
            (
                Method::GET,
                &[
                    host,
                    ("upgrade", "websocket"),
                    ("origin", "https://evil.example"),
                ],
            ),
        ];
        for (method, headers) in bad {
            let refused = require_own_page(&request(method.clone(), headers), true);
            let code = refused.expect_err(&format!("{headers:?}")).code;
            assert_eq!(code, ErrorCode::OriginRefused, "{method} {headers:?}");
        }
        for form in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
        ] {
            let request = request(Method::POST, &[host, own, ("content-type", form)]);
            let refused = require_own_page(&request, true).expect_err(form);
            assert_eq!(refused.code, ErrorCode::InvalidRequest);
        }
        // Programs that log in send no Origin; a page of another that logs somebody in does.
        let program = request(Method::POST, &[host]);
        assert_eq!(require_own_page(&program, false), Ok(()));
        let page = request(Method::POST, &[host, ("origin", "https://evil.example")]);
        require_own_page(&page, false).expect_err("refused");
    }

    #[test]
    fn the_cookie_is_for_this_origin_and_no_script() {
        let text = cookie("abc").to_str().expect("text").to_owned();
        assert_eq!(
            text,
            "__Host-fleetward=abc; HttpOnly; SameSite=Strict; Secure; Path=/"
        );
        assert!(no_cookie().to_str().expect("text").contains("Max-Age=0"));
    }

    #[test]
    fn one_session_is_read_and_two_are_refused() {
        let read = |texts: &[&str]| {
            let mut headers = HeaderMap::new();
            for text in texts {
                headers.append(COOKIE, text.parse().expect("a header"));
            }
            session_secret(&headers)
                .map(|found| found.map(str::to_owned))
                .map_err(|failure| failure.code)
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["fleetward=x; theme=dark"]), Ok(None));
        let one = read(&["theme=dark; __Host-fleetward=abc"]);
        assert_eq!(one, Ok(Some("abc".to_owned())));
        for two in [
            &["__Host-fleetward=a; __Host-fleetward=b"][..],
            &["__Host-fleetward=a", "__Host-fleetward=a"],
        ] {
            assert_eq!(read(two), Err(ErrorCode::CredentialsRefused));
        }
    }
}
