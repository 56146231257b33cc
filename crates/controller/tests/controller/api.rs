//! Who may call what, and what comes of requests that are wrong.

use crate::fleet::{Controller, Joining, failure};
use fleetward_api::controller::{JoinReply, Role};
use fleetward_api::verbs::{Access, ENDPOINTS};
use fleetward_link::{Client, ClientError, ClientTls, Identity, LiveCredential};
use fleetward_model::ErrorCode;
use http::Method;
use serde_json::json;

/// A path of the list with its variables filled in.
pub(crate) fn concrete(path: &str) -> String {
    path.replace("{job}", "00000000-0000-0000-0000-000000000000")
        .replace("{guardian}", &"0".repeat(64))
        .replace('{', "no-")
        .replace('}', "")
}

fn method(text: &str) -> Method {
    text.parse().expect("method")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_refuses_without_credentials() {
    let controller = Controller::start().await;
    let anonymous = controller.anonymous();
    for endpoint in ENDPOINTS {
        let (status, failure) = failure(
            &anonymous,
            method(endpoint.method),
            &concrete(endpoint.path),
            &json!({}),
        )
        .await;
        match endpoint.access {
            Access::Role(_) => {
                assert_eq!(
                    (status, failure.code),
                    (401, ErrorCode::CredentialsMissing),
                    "{endpoint:?}"
                );
            }
            Access::JoinToken => assert_eq!(failure.code, ErrorCode::InvalidRequest),
            // Not at this listener.
            Access::Password => assert_eq!(status, 401, "{endpoint:?}"),
        }
    }
    let elsewhere = failure(&anonymous, Method::GET, "/v1/secrets", &json!({})).await;
    assert_eq!(elsewhere.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_reach_exactly_their_endpoints() {
    let controller = Controller::start().await;
    for role in [Role::Viewer, Role::Operator, Role::Keeper, Role::Admin] {
        let client = controller.admin(role.into_str(), role).await;
        reaches_exactly(&client, role).await;
    }
}

/// Who has that role gets where it leads, and nowhere else.
pub(crate) async fn reaches_exactly(client: &Client, role: Role) {
    for endpoint in ENDPOINTS {
        let Access::Role(needed) = endpoint.access else {
            continue;
        };
        let sent = client
            .request(method(endpoint.method), &concrete(endpoint.path))
            .json(&json!({"unknown": 1}))
            .send()
            .await;
        let refused =
            matches!(&sent, Err(ClientError::Status { code, .. }) if code.as_u16() == 403);
        assert_eq!(
            refused,
            !role.allows(needed),
            "{role:?} {endpoint:?} {sent:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_fleet_or_of_a_host_opens_nothing() {
    let (controller, other) = (Controller::start().await, Controller::start().await);
    let request = Joining::new("a");
    let token = other.token("a", "default").await.token;
    let reply: JoinReply = other
        .anonymous()
        .post("/v1/join", &request.body(&token, "127.0.0.1:1"))
        .await
        .expect("join");
    drop(reply);

    // an administrator of the other fleet
    let key = fleetward_link::KeyRequest::generate().expect("key");
    let body = json!({"name": "eve", "role": "admin", "csr": key.csr_pem()});
    let reply: fleetward_api::controller::AdminReply = other.post("/v1/admins", &body).await;
    let credential =
        LiveCredential::new(key.into_credential(&reply.certificate).expect("credential"));
    let tls = ClientTls::member(credential, controller.trust(), Identity::Controller);
    let client = Client::tls(controller.address.to_string(), tls);
    let refused = client
        .get::<serde_json::Value>("/v1/status")
        .await
        .expect_err("refused");
    assert!(
        matches!(refused, ClientError::Dial(_) | ClientError::Broken { .. }),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_may_not_use_the_api() {
    let controller = Controller::start().await;
    let agent = controller.join("a", "default").await;
    let client = agent.client_of(controller.address, controller.trust());
    let (status, failure) = failure(&client, Method::GET, "/v1/status", &json!({})).await;
    assert_eq!((status, failure.code), (403, ErrorCode::CredentialsRefused));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_and_names_are_refused_clearly() {
    let controller = Controller::start().await;
    let send = async |body: Vec<u8>| {
        let length = Some(body.len() as u64);
        let request = controller.local.request(Method::POST, "/v1/vms");
        let sent = request
            .upload(std::io::Cursor::new(body), length)
            .send()
            .await;
        let Err(ClientError::Status { code, body }) = sent else {
            panic!("{sent:?}")
        };
        let failure: fleetward_model::Failure = serde_json::from_slice(&body).expect("failure");
        (code.as_u16(), failure.code)
    };
    assert_eq!(
        send(b"not json".to_vec()).await,
        (400, ErrorCode::InvalidRequest)
    );
    assert_eq!(
        send(br#"{"name":"x","colour":"red"}"#.to_vec()).await,
        (400, ErrorCode::InvalidRequest)
    );
    assert_eq!(
        send(br#"{"name":"../x"}"#.to_vec()).await,
        (400, ErrorCode::InvalidRequest)
    );
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(10_000));
    assert_eq!(
        send(long.into_bytes()).await,
        (400, ErrorCode::InvalidRequest)
    );
    assert_eq!(
        send(vec![b' '; 100_000_000]).await,
        (400, ErrorCode::TooLarge)
    );

    for (method, path, code) in [
        (
            Method::GET,
            "/v1/vms/ghost".to_owned(),
            ErrorCode::VmNotFound,
        ),
        (
            Method::GET,
            "/v1/vms/..%2Fetc".to_owned(),
            ErrorCode::InvalidArgument,
        ),
        (
            Method::GET,
            format!("/v1/vms/{}", "x".repeat(10_000)),
            ErrorCode::InvalidArgument,
        ),
        (
            Method::GET,
            "/v1/hosts/ghost".to_owned(),
            ErrorCode::HostNotFound,
        ),
        (
            Method::GET,
            "/v1/jobs/1".to_owned(),
            ErrorCode::InvalidArgument,
        ),
        (
            Method::GET,
            "/v1/vms?tpm=perhaps".to_owned(),
            ErrorCode::InvalidArgument,
        ),
        (Method::GET, "/v2".to_owned(), ErrorCode::NotFound),
    ] {
        assert_eq!(
            controller.refusal(method, &path, &json!({})).await.code,
            code,
            "{path}"
        );
    }
    let (status, failure) = failure(&controller.local, Method::PATCH, "/v1/vms", &json!({})).await;
    assert_eq!((status, failure.code), (405, ErrorCode::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_a_wrong_clock_does_not_join_and_its_token_stays_good() {
    let controller = Controller::start().await;
    let token = controller.token("a", "default").await.token;
    let request = Joining::new("a");
    let mut body = request.body(&token, "127.0.0.1:1");
    for hours in [-2, 2] {
        let clock = time::OffsetDateTime::now_utc() + time::Duration::hours(hours);
        body.clock = Some(clock);
        let client = controller.anonymous();
        let (_, refused) = failure(&client, Method::POST, "/v1/join", &body).await;
        assert_eq!(refused.code, ErrorCode::ClocksApart, "{refused}");
        let (there, here) = (clock, time::OffsetDateTime::now_utc());
        for hour in [there, here] {
            let said = format!("T{:02}:", hour.hour());
            assert!(refused.because.contains(&said), "{hour}: {refused}");
        }
    }
    body.clock = Some(time::OffsetDateTime::now_utc());
    let _: JoinReply = controller
        .anonymous()
        .post("/v1/join", &body)
        .await
        .expect("join");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_good_once_and_unaltered() {
    let controller = Controller::start().await;
    let join = async |request: &Joining, token: &str| {
        let body = request.body(token, "127.0.0.1:1");
        failure(&controller.anonymous(), Method::POST, "/v1/join", &body)
            .await
            .1
            .code
    };
    let token = controller.token("a", "default").await.token;
    let first = Joining::new("a");
    let other = if token.ends_with('x') { 'y' } else { 'x' };
    let altered = format!("{}{other}", &token[..token.len() - 1]);
    assert_eq!(join(&first, &altered).await, ErrorCode::TokenInvalid);
    let newer = controller.token("a", "default").await.token;
    assert_eq!(
        join(&first, &token).await,
        ErrorCode::TokenInvalid,
        "replaced by a newer one"
    );
    let body = first.body(&newer, "127.0.0.1:1");
    let _: JoinReply = controller
        .anonymous()
        .post("/v1/join", &body)
        .await
        .expect("join");
    assert_eq!(join(&Joining::new("a"), &newer).await, ErrorCode::TokenUsed);
    let second = controller.token("b", "default").await.token;
    assert_eq!(join(&first, &second).await, ErrorCode::AlreadyJoined);
    let body = json!({"host": "a"});
    assert_eq!(
        controller
            .refusal(Method::POST, "/v1/host-tokens", &body)
            .await
            .code,
        ErrorCode::AlreadyJoined
    );

    let body = json!({"host": "c", "ttl_seconds": 1});
    let short: fleetward_api::controller::TokenView =
        controller.post("/v1/host-tokens", &body).await;
    let left = short.expires - time::OffsetDateTime::now_utc();
    tokio::time::sleep(left.max(time::Duration::ZERO).unsigned_abs()).await;
    assert_eq!(
        join(&Joining::new("c"), &short.token).await,
        ErrorCode::TokenExpired
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_taken_once_and_kept_over_a_restart() {
    let controller = Controller::start().await;
    let file = controller.dir.path().join("disk");
    crate::fleet::raw_disk(&file);
    let put = async |client: &Client, name: &str, content: Vec<u8>| {
        let path = format!("/v1/images/{name}");
        let length = Some(content.len() as u64);
        let sent = client
            .request(Method::PUT, &path)
            .upload(std::io::Cursor::new(content), length)
            .send()
            .await;
        match sent {
            Ok(response) => Ok(response.json::<serde_json::Value>().await.expect("image")),
            Err(ClientError::Status { body, .. }) => {
                Err(serde_json::from_slice::<fleetward_model::Failure>(&body)
                    .expect("failure")
                    .code)
            }
            Err(error) => panic!("{error:?}"),
        }
    };
    let disk = std::fs::read(&file).expect("read");
    let image = put(&controller.local, "disk", disk.clone())
        .await
        .expect("import");
    assert_eq!(
        (&image["format"], &image["virtual_size_bytes"]),
        (&json!("raw"), &json!(1 << 20))
    );
    assert_eq!(
        put(&controller.local, "disk", disk.clone()).await,
        Ok(image.clone()),
        "the same again"
    );
    let other: Vec<u8> = disk.iter().copied().chain([0; 512]).collect();
    assert_eq!(
        put(&controller.local, "disk", other).await,
        Err(ErrorCode::NameTaken)
    );
    assert_eq!(
        put(&controller.local, "text", b"hello".to_vec()).await,
        Err(ErrorCode::ImageInvalid)
    );

    let controller = controller.restart().await;
    let images: Vec<serde_json::Value> = controller.get("/v1/images").await;
    assert_eq!(images, [image]);
    controller
        .local
        .request(Method::DELETE, "/v1/images/disk")
        .send()
        .await
        .expect("delete");
    let left = std::fs::read_dir(controller.data().join("images"))
        .expect("directory")
        .count();
    assert_eq!(left, 0);
}
