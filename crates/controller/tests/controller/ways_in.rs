//! The listener for programs: API tokens, and those who have none, a bad one, or one that is good no longer.

use crate::api::{concrete, reaches_exactly};
use crate::fleet::{Controller, failure};
use fleetward_api::controller::{Accepted, ApiTokenMade, ApiTokenView, ConsoleView, Role, Status};
use fleetward_api::verbs::{Access, ENDPOINTS};
use fleetward_link::{Client, ClientError, ClientTls};
use fleetward_model::ErrorCode;
use fleetward_model::audit::{AuditAction, AuditRecord};
use futures_util::TryStreamExt;
use http::Method;
use serde_json::json;
use std::time::{Duration, Instant};

async fn make(controller: &Controller, name: &str, role: Role) -> ApiTokenMade {
    let body = json!({ "name": name, "role": role });
    controller.post("/v1/tokens", &body).await
}

/// A client of the console, before it says who it is.
fn stranger(console: &ConsoleView, certificate: &str) -> Client {
    let address = console.url.strip_prefix("https://").expect("https");
    let tls = ClientTls::web("127.0.0.1", Some(certificate.as_bytes())).expect("usable");
    Client::tls(address, tls)
}

fn bearer(made: &ApiTokenMade) -> Client {
    anybody(made).with_token(&made.token).expect("a header")
}

pub(crate) fn anybody(made: &ApiTokenMade) -> Client {
    let certificate = made.console_certificate.as_ref().expect("made there");
    stranger(made.console.as_ref().expect("a console"), certificate)
}

async fn status_of(client: &Client) -> Result<Status, ErrorCode> {
    match client.get::<Status>("/v1/status").await {
        Ok(status) => Ok(status),
        Err(ClientError::Status { code, body }) => {
            assert_eq!(code.as_u16(), 401);
            let failure: fleetward_model::Failure =
                serde_json::from_slice(&body).expect("a failure");
            Err(failure.code)
        }
        Err(other) => panic!("{other:?}"),
    }
}

async fn listed(controller: &Controller) -> Vec<ApiTokenView> {
    controller.get("/v1/tokens").await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_or_with_a_bad_one_nothing_is_served_there() {
    let controller = Controller::start_with_console().await;
    let made = make(&controller, "ci", Role::Admin).await;
    let nobody = anybody(&made);
    for endpoint in ENDPOINTS {
        let method: Method = endpoint.method.parse().expect("method");
        let path = concrete(endpoint.path);
        let (status, failure) = failure(&nobody, method, &path, &json!({})).await;
        // Not even hosts join there. People log in, who have to say who they are.
        let expected = match endpoint.access {
            Access::Password => (400, ErrorCode::InvalidRequest),
            Access::Role(_) | Access::JoinToken => (401, ErrorCode::CredentialsMissing),
        };
        assert_eq!((status, failure.code), expected, "{endpoint:?}");
    }
    let cut = &made.token[..made.token.len() - 1];
    let other = Controller::start_with_console().await;
    let foreign = make(&other, "ci", Role::Admin).await;
    for bad in [cut, &foreign.token, "fwt1.AAAA.AAAA", "x"] {
        let client = anybody(&made).with_token(bad).expect("a header");
        let refused = status_of(&client).await;
        assert_eq!(refused.expect_err(bad), ErrorCode::CredentialsRefused);
    }
    // In an address it would end in logs, and counts for nothing.
    let path = format!("/v1/status?access_token={}", made.token);
    let (status, _) = failure(&nobody, Method::GET, &path, &json!({})).await;
    assert_eq!(status, 401);
    // Nor is it good among the members of the fleet.
    let member = controller.anonymous().with_token(&made.token);
    let (status, _) = failure(&member.expect("a header"), Method::GET, "/v1/status", &()).await;
    assert_eq!(status, 401);
    status_of(&bearer(&made))
        .await
        .expect("the right one is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_reaches_exactly_what_its_role_may_under_its_own_name() {
    let controller = Controller::start_with_console().await;
    for role in [Role::Viewer, Role::Operator, Role::Keeper, Role::Admin] {
        let made = make(&controller, role.into_str(), role).await;
        reaches_exactly(&bearer(&made), role).await;
    }
    let made = make(&controller, "robot", Role::Admin).await;
    let inner: ApiTokenMade = bearer(&made)
        .post(
            "/v1/tokens",
            &json!({ "name": "made-by-robot", "role": "viewer" }),
        )
        .await
        .expect("an administrator makes tokens");
    assert_eq!(inner.view.made_by, "token:robot");
    let records: Vec<AuditRecord> = controller.get("/v1/audit").await;
    let record = records
        .iter()
        .find(|record| record.actor == "token:robot" && record.action == AuditAction::MakeApiToken)
        .expect("in the audit log under its name");
    assert!(record.reason.contains("made-by-robot"), "{record:?}");
    let text = serde_json::to_string(&records).expect("JSON");
    assert!(!text.contains(&made.token[5..40]), "a secret is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_refused_at_once_and_its_streams_end() {
    let controller = Controller::start_with_console().await;
    let (gone, stays) = (
        make(&controller, "gone", Role::Operator).await,
        make(&controller, "stays", Role::Operator).await,
    );
    let (client, other) = (bearer(&gone), bearer(&stays));
    // What goes on: the events of a job that waits for a host that does not answer.
    let agent = controller.join("a", "default").await;
    crate::jobs::create(&controller, json!({ "name": "web", "tpm": false })).await;
    agent.silence(true);
    let waits: Accepted = controller.post("/v1/vms/web/start", &json!({})).await;
    let path = format!("/v1/jobs/{}/events", waits.job.expect("a job"));
    let sent = client.request(Method::GET, &path).send().await;
    let mut stream = Box::pin(sent.expect("a stream").into_stream());

    let revoked: ApiTokenView = controller
        .local
        .request(Method::DELETE, "/v1/tokens/gone")
        .send()
        .await
        .expect("revoked")
        .json()
        .await
        .expect("what it was");
    assert_eq!(revoked.name.as_str(), "gone");
    let end = async { while let Ok(Some(_)) = stream.try_next().await {} };
    tokio::time::timeout(Duration::from_secs(5), end)
        .await
        .expect("the stream ends");
    let refused = status_of(&client).await.expect_err("refused");
    assert_eq!(refused, ErrorCode::CredentialsRefused);
    status_of(&other)
        .await
        .expect("another token is as good as before");
    let names: Vec<_> = listed(&controller)
        .await
        .into_iter()
        .map(|one| one.name)
        .collect();
    assert_eq!(names, ["stays".parse().expect("a name")]);
    // The name is free, and what it was before is still refused.
    make(&controller, "gone", Role::Admin).await;
    status_of(&client).await.expect_err("the former secret");
    let missing = controller
        .refusal(Method::DELETE, "/v1/tokens/none", &())
        .await;
    assert_eq!(missing.code, ErrorCode::ApiTokenNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_their_last_use_outlive_a_restart() {
    let controller = Controller::start_with_console().await;
    let made = make(&controller, "ci", Role::Viewer).await;
    assert_eq!(listed(&controller).await[0].last_used, None);
    status_of(&bearer(&made)).await.expect("served");
    let controller = controller.restart_with_console().await;
    let [kept] = &listed(&controller).await[..] else {
        panic!("one token");
    };
    assert!(kept.last_used.is_some(), "{kept:?}");
    assert_eq!(kept.expires, made.view.expires);
    let status: Status = controller.get("/v1/status").await;
    let console = status.console.expect("a console");
    assert_eq!(
        console.sha256,
        made.console.as_ref().expect("before").sha256
    );
    let certificate = made.console_certificate.as_ref().expect("made there");
    let client = stranger(&console, certificate).with_token(&made.token);
    status_of(&client.expect("a header"))
        .await
        .expect("as good as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_tokens_by_the_thousand_lock_nobody_out() {
    let controller = Controller::start_with_console().await;
    let made = make(&controller, "ci", Role::Viewer).await;
    let right = bearer(&made);
    let guessers = (0..10).map(|n| {
        let client = anybody(&made)
            .with_token(&format!("fwt1.{n}.x"))
            .expect("a header");
        tokio::spawn(async move {
            for _ in 0..200 {
                status_of(&client).await.expect_err("a guess");
            }
        })
    });
    let guessers = futures_util::future::join_all(guessers.collect::<Vec<_>>());
    let mut guessers = std::pin::pin!(guessers);
    let mut slowest = Duration::ZERO;
    loop {
        tokio::select! {
            ended = guessers.as_mut() => {
                ended.into_iter().for_each(|guesser| guesser.expect("no panic"));
                break;
            }
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
        let begun = Instant::now();
        status_of(&right).await.expect("served as ever");
        slowest = slowest.max(begun.elapsed());
    }
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_needs_a_name_of_its_own_and_an_end() {
    let controller = Controller::start_with_console().await;
    make(&controller, "ci", Role::Viewer).await;
    for (body, code) in [
        (
            json!({ "name": "ci", "role": "viewer" }),
            ErrorCode::NameTaken,
        ),
        (
            json!({ "name": "x", "role": "viewer", "ttl_seconds": 59 }),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({ "name": "x", "role": "viewer", "ttl_seconds": 31_622_401 }),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({ "name": "../x", "role": "viewer" }),
            ErrorCode::InvalidRequest,
        ),
        (
            json!({ "name": "x", "role": "king" }),
            ErrorCode::InvalidRequest,
        ),
        (json!({ "name": "x" }), ErrorCode::InvalidRequest),
    ] {
        let refused = controller.refusal(Method::POST, "/v1/tokens", &body).await;
        assert_eq!(refused.code, code, "{body}");
    }
    assert_eq!(listed(&controller).await.len(), 1);
}
