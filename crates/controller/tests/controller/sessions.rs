//! People who log in with a password, as a browser does it: and those who guess, steal, or send forms from elsewhere.

use crate::api::concrete;
use crate::fleet::{Controller, failure};
use fleetward_api::controller::{Accepted, ConsoleView, Role, SessionView, Status, UserView};
use fleetward_api::verbs::{Access, ENDPOINTS};
use fleetward_model::audit::{AuditAction, AuditRecord};
use fleetward_model::{ErrorCode, Failure};
use http::Method;
use http::header::{CONTENT_TYPE, COOKIE, ORIGIN, RETRY_AFTER, SET_COOKIE, UPGRADE};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const PASSWORD: &str = "correct horse battery";

async fn add(controller: &Controller, name: &str, role: Role) -> UserView {
    let body = json!({ "name": name, "role": role, "password": PASSWORD });
    controller.post("/v1/users", &body).await
}

async fn listed(controller: &Controller) -> Vec<UserView> {
    controller.get("/v1/users").await
}

/// A browser with one page of the console open. It keeps the cookie that it was given.
struct Browser {
    http: reqwest::Client,
    url: String,
    cookie: Option<String>,
}

impl Browser {
    async fn at(controller: &Controller) -> Self {
        Self::of(controller, Ipv4Addr::LOCALHOST.into()).await
    }

    async fn of(controller: &Controller, from: IpAddr) -> Self {
        let status: Status = controller.get("/v1/status").await;
        let ConsoleView { url, .. } = status.console.expect("a console");
        // Whether another test was the first does not matter.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::builder()
            .danger_accept_invalid_certs(true)
            .local_address(from)
            // What ends a session cuts its connections; another request is not to be on one of them.
            .pool_max_idle_per_host(0)
            .build()
            .expect("a client");
        Self {
            http,
            url,
            cookie: None,
        }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.cookie {
            Some(cookie) => request.header(COOKIE, cookie),
            None => request,
        }
    }

    /// As a script of the console's own page does it.
    async fn sends(&self, method: Method, path: &str, body: &Value) -> reqwest::Response {
        let request = self
            .request(method, path)
            .header(ORIGIN, &self.url)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        request.send().await.expect("an answer")
    }

    /// None where the connection was as old as strangers' may be.
    async fn guesses(&self, user: &str) -> Option<reqwest::Response> {
        let body = json!({ "user": user, "password": "a guess of somebody" });
        let request = self.request(Method::POST, "/v1/session");
        request.body(body.to_string()).send().await.ok()
    }

    async fn log_in(&mut self, user: &str, password: &str) -> reqwest::Response {
        let body = json!({ "user": user, "password": password });
        let answer = self.sends(Method::POST, "/v1/session", &body).await;
        if let Some(cookie) = answer.headers().get(SET_COOKIE) {
            let text = cookie.to_str().expect("text");
            self.cookie = text.split(';').next().map(str::to_owned);
        }
        answer
    }

    async fn who(&self) -> Result<SessionView, ErrorCode> {
        let answer = self.request(Method::GET, "/v1/session").send().await;
        read(answer.expect("an answer")).await
    }
}

async fn logged_in(controller: &Controller, user: &str) -> Browser {
    let mut browser = Browser::at(controller).await;
    let answer = browser.log_in(user, PASSWORD).await;
    assert_eq!(answer.status(), 200);
    browser
}

async fn read<T: serde::de::DeserializeOwned>(answer: reqwest::Response) -> Result<T, ErrorCode> {
    let good = answer.status().is_success();
    let body = answer.bytes().await.expect("a body");
    match good {
        true => Ok(serde_json::from_slice(&body).expect("what was asked for")),
        false => Err(serde_json::from_slice::<Failure>(&body)
            .expect("a failure")
            .code),
    }
}

async fn code(answer: reqwest::Response) -> ErrorCode {
    read::<Value>(answer).await.expect_err("refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_logged_in_reaches_exactly_what_the_role_may_under_that_name() {
    let controller = Controller::start_with_console().await;
    let own = ["/v1/session", "/v1/session/password"];
    for role in [Role::Viewer, Role::Operator, Role::Keeper, Role::Admin] {
        add(&controller, role.into_str(), role).await;
        let browser = logged_in(&controller, role.into_str()).await;
        for endpoint in ENDPOINTS {
            let Access::Role(needed) = endpoint.access else {
                continue;
            };
            if own.contains(&endpoint.path) {
                continue;
            }
            let method: Method = endpoint.method.parse().expect("a method");
            let path = concrete(endpoint.path);
            let answer = browser.sends(method, &path, &json!({ "unknown": 1 })).await;
            let refused = answer.status() == 403;
            assert_eq!(
                refused,
                !role.allows(needed),
                "{role} {endpoint:?} {answer:?}"
            );
        }
        let who = browser.who().await.expect("known");
        assert_eq!((who.actor, who.role), (format!("user:{role}"), role));
        let left = who.expires.expect("an end") - time::OffsetDateTime::now_utc();
        assert_eq!(left.whole_hours(), 11);
    }
    let records: Vec<AuditRecord> = controller.get("/v1/audit").await;
    let came = |action| {
        let of = records.iter().filter(|record| record.action == action);
        of.map(|record| record.actor.as_str()).collect::<Vec<_>>()
    };
    assert!(
        came(AuditAction::LogIn).contains(&"user:viewer"),
        "{records:?}"
    );
    let text = serde_json::to_string(&records).expect("JSON");
    assert!(!text.contains(PASSWORD), "a password is in the log");
    // Logging in is for people, not for the fleet's own listener.
    let (status, _) = failure(&controller.local, Method::POST, "/v1/session", &json!({})).await;
    assert!([404, 405].contains(&status), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_that_was_stolen_opens_nothing_after_logout_and_its_streams_end() {
    let controller = Controller::start_with_console().await;
    add(&controller, "kim", Role::Operator).await;
    let (kim, elsewhere) = (
        logged_in(&controller, "kim").await,
        logged_in(&controller, "kim").await,
    );
    let mut thief = Browser::at(&controller).await;
    thief.cookie.clone_from(&kim.cookie);
    thief.who().await.expect("good as long as it lasts");
    assert_eq!(listed(&controller).await[0].sessions, 2);

    let agent = controller.join("a", "default").await;
    crate::jobs::create(&controller, json!({ "name": "web", "tpm": false })).await;
    agent.silence(true);
    let waits: Accepted = controller.post("/v1/vms/web/start", &json!({})).await;
    let path = format!("/v1/jobs/{}/events", waits.job.expect("a job"));
    let mut stream = thief
        .request(Method::GET, &path)
        .send()
        .await
        .expect("a stream");
    assert_eq!(stream.status(), 200);

    let answer = kim.sends(Method::DELETE, "/v1/session", &Value::Null).await;
    assert_eq!(answer.status(), 204);
    let cookie = answer.headers()[SET_COOKIE].to_str().expect("text");
    assert!(cookie.contains("Max-Age=0"), "{cookie}");
    let end = async { while let Ok(Some(_)) = stream.chunk().await {} };
    tokio::time::timeout(Duration::from_secs(5), end)
        .await
        .expect("the stream ends");
    for gone in [&kim, &elsewhere, &thief] {
        assert_eq!(gone.who().await, Err(ErrorCode::CredentialsRefused));
    }
    assert_eq!(listed(&controller).await[0].sessions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_somebody_else_chose_is_never_taken() {
    let controller = Controller::start_with_console().await;
    add(&controller, "kim", Role::Operator).await;
    let mut kim = Browser::at(&controller).await;
    let planted = format!("__Host-fleetward={}", "A".repeat(43));
    kim.cookie = Some(planted.clone());
    assert_eq!(kim.who().await, Err(ErrorCode::CredentialsRefused));
    kim.log_in("kim", PASSWORD).await;
    let first = kim.cookie.clone().expect("a cookie");
    assert_ne!(first, planted);
    kim.log_in("kim", PASSWORD).await;
    assert_ne!(
        kim.cookie,
        Some(first),
        "each login has a secret of its own"
    );
    let mut other = Browser::at(&controller).await;
    other.cookie = Some(planted);
    assert_eq!(other.who().await, Err(ErrorCode::CredentialsRefused));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_others_change_nothing_and_open_no_socket() {
    let controller = Controller::start_with_console().await;
    add(&controller, "kim", Role::Admin).await;
    let kim = logged_in(&controller, "kim").await;
    let forged = [
        None,
        Some("null"),
        Some("https://evil.example"),
        Some("http://127.0.0.1"),
    ];
    for origin in forged {
        let with = |request: reqwest::RequestBuilder| match origin {
            Some(origin) => request.header(ORIGIN, origin),
            None => request,
        };
        for (method, path) in [
            (Method::POST, "/v1/tokens"),
            (Method::DELETE, "/v1/users/kim"),
            (Method::DELETE, "/v1/session"),
        ] {
            let request = with(kim.request(method, path)).body("{}");
            let answer = request.send().await.expect("an answer");
            assert_eq!(answer.status(), 403);
            assert_eq!(
                code(answer).await,
                ErrorCode::OriginRefused,
                "{origin:?} {path}"
            );
        }
        let socket = with(kim.request(Method::GET, "/v1/vms/web/screen"))
            .header(UPGRADE, "websocket")
            .header("connection", "upgrade");
        let answer = socket.send().await.expect("an answer");
        assert_eq!(code(answer).await, ErrorCode::OriginRefused, "{origin:?}");
    }
    let form = kim
        .request(Method::POST, "/v1/tokens")
        .header(ORIGIN, &kim.url)
        .header(CONTENT_TYPE, "text/plain")
        .body(r#"{"name":"x","role":"admin"}"#);
    let answer = form.send().await.expect("an answer");
    assert_eq!(code(answer).await, ErrorCode::InvalidRequest);
    // Nor does a page of another log somebody in.
    let planted = Browser::at(&controller)
        .await
        .request(Method::POST, "/v1/session")
        .header(ORIGIN, "https://evil.example")
        .body(json!({ "user": "kim", "password": PASSWORD }).to_string());
    let answer = planted.send().await.expect("an answer");
    assert!(answer.headers().get(SET_COOKIE).is_none());
    assert_eq!(code(answer).await, ErrorCode::OriginRefused);
    kim.who().await.expect("all is as before");
    // What is answered is neither kept nor framed.
    let answer = kim.request(Method::GET, "/v1/session").send().await;
    let answer = answer.expect("an answer");
    for (name, value) in [
        ("content-security-policy", "frame-ancestors 'none'"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-"),
    ] {
        let said = answer.headers()[name].to_str().expect("text");
        assert!(said.contains(value), "{name}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_changed_or_removed_is_logged_out_at_once() {
    let controller = Controller::start_with_console().await;
    add(&controller, "kim", Role::Admin).await;
    let kim = logged_in(&controller, "kim").await;
    let change = json!({ "role": "viewer" });
    let sent = controller.local.request(Method::PATCH, "/v1/users/kim");
    let sent = sent.json(&change).send().await.expect("sent");
    let changed: UserView = sent.json().await.expect("it");
    assert_eq!((changed.role, changed.sessions), (Role::Viewer, 0));
    assert_eq!(kim.who().await, Err(ErrorCode::CredentialsRefused));
    let mut kim = logged_in(&controller, "kim").await;
    assert_eq!(kim.who().await.expect("known").role, Role::Viewer);

    let new = "another horse entirely";
    let body = json!({ "password": "wrong", "new_password": new });
    let answer = kim.sends(Method::PUT, "/v1/session/password", &body).await;
    assert_eq!(code(answer).await, ErrorCode::LoginRefused);
    let body = json!({ "password": PASSWORD, "new_password": "short" });
    let answer = kim.sends(Method::PUT, "/v1/session/password", &body).await;
    assert_eq!(code(answer).await, ErrorCode::InvalidArgument);
    let body = json!({ "password": PASSWORD, "new_password": new });
    let answer = kim.sends(Method::PUT, "/v1/session/password", &body).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().contains_key(SET_COOKIE), "a new session");
    assert_eq!(kim.who().await, Err(ErrorCode::CredentialsRefused));
    assert_eq!(
        code(kim.log_in("kim", PASSWORD).await).await,
        ErrorCode::LoginRefused
    );
    assert_eq!(kim.log_in("kim", new).await.status(), 200);

    let sent = controller.local.request(Method::DELETE, "/v1/users/kim");
    let removed: UserView = sent.send().await.expect("sent").json().await.expect("it");
    assert_eq!(removed.sessions, 2);
    assert_eq!(kim.who().await, Err(ErrorCode::CredentialsRefused));
    assert_eq!(
        code(kim.log_in("kim", new).await).await,
        ErrorCode::LoginRefused
    );
    // Who comes again under that name has nothing of the former.
    add(&controller, "kim", Role::Viewer).await;
    assert_eq!(
        code(kim.log_in("kim", new).await).await,
        ErrorCode::LoginRefused
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_a_restart_and_lie_nowhere_in_the_clear() {
    let controller = Controller::start_with_console().await;
    add(&controller, "kim", Role::Viewer).await;
    let kim = logged_in(&controller, "kim").await;
    let controller = controller.restart_with_console().await;
    let mut again = Browser::at(&controller).await;
    again.cookie.clone_from(&kim.cookie);
    again.who().await.expect("as good as before");
    assert_eq!(listed(&controller).await[0].sessions, 1);
    assert!(listed(&controller).await[0].last_login.is_some());
    // Neither the password nor the cookie lies anywhere.
    let secret = kim
        .cookie
        .as_deref()
        .and_then(|cookie| cookie.split_once('='));
    let (_, secret) = secret.expect("a cookie");
    for file in std::fs::read_dir(controller.data()).expect("files") {
        let file = file.expect("a file").path();
        if file.is_file() {
            let bytes = std::fs::read(&file).expect("readable");
            for text in [secret, PASSWORD] {
                let found = memchr::memmem::find(&bytes, text.as_bytes());
                assert_eq!(found, None, "{}", file.display());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_wrong_passwords_from_a_hundred_addresses_keep_the_right_user_out_for_seconds()
{
    let controller = Controller::start_with_console().await;
    add(&controller, "kim", Role::Operator).await;
    let mut guessers = tokio::task::JoinSet::new();
    for n in 0..100_u8 {
        let guesser = Browser::of(&controller, [127, 0, 1, n].into()).await;
        guessers.spawn(async move {
            let mut looked_at = 0;
            for _ in 0..100 {
                let Some(answer) = guesser.guesses("kim").await else {
                    continue;
                };
                match answer.status().as_u16() {
                    401 => looked_at += 1,
                    429 => {
                        let wait = answer.headers()[RETRY_AFTER].to_str().expect("text");
                        assert!(wait.parse::<u64>().expect("seconds") >= 1);
                    }
                    other => panic!("{other}"),
                }
            }
            looked_at
        });
    }
    let mut slowest = Duration::ZERO;
    let mut looked_at = 0;
    let mut logins = 0;
    loop {
        let begun = Instant::now();
        let mut kim = Browser::at(&controller).await;
        assert_eq!(kim.log_in("kim", PASSWORD).await.status(), 200);
        kim.who().await.expect("in");
        slowest = slowest.max(begun.elapsed());
        logins += 1;
        while let Some(ended) = guessers.try_join_next() {
            looked_at += ended.expect("no panic");
        }
        if guessers.is_empty() {
            break;
        }
    }
    // Each address gets five, and one more for each of the seconds that it waits.
    assert!(looked_at < 1_500, "{looked_at} guesses were looked at");
    assert!(
        logins > 1 && slowest < Duration::from_secs(30),
        "{logins} in {slowest:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_makes_no_user() {
    let controller = Controller::start_with_console().await;
    add(&controller, "kim", Role::Viewer).await;
    let long = "x y z w q ".repeat(30);
    for (body, code) in [
        (
            json!({ "name": "kim", "role": "admin", "password": PASSWORD }),
            ErrorCode::NameTaken,
        ),
        (
            json!({ "name": "lee", "role": "admin", "password": "short" }),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({ "name": "lee", "role": "admin", "password": long }),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({ "name": "../lee", "role": "admin", "password": PASSWORD }),
            ErrorCode::InvalidRequest,
        ),
        (
            json!({ "name": "lee", "role": "admin" }),
            ErrorCode::InvalidRequest,
        ),
    ] {
        let refused = controller.refusal(Method::POST, "/v1/users", &body).await;
        assert_eq!(refused.code, code, "{body}");
        assert!(!refused.to_string().contains(PASSWORD));
    }
    let missing = controller
        .refusal(Method::PATCH, "/v1/users/lee", &json!({ "role": "admin" }))
        .await;
    assert_eq!(missing.code, ErrorCode::UserNotFound);
    assert_eq!(listed(&controller).await.len(), 1);
}
