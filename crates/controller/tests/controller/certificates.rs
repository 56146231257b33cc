//! The life of certificates, over real TLS: renewal, what ends it early, and the way back.

use crate::findings::is_fleet_wide;
use crate::fleet::Controller;
use crate::fleet::agent::{FakeAgent, TUNNEL};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::controller::{
    AdminCertificate, AdminRevoked, AdminStanding, ExpelAnswer, HostView, RejoinReply,
    RejoinRequest, Role, RollWhen, TokenView, VmView,
};
use fleetward_link::{Client, ClientError, ClientTls, Identity, KeyRequest, LiveCredential};
use fleetward_model::certificate::CertificateFacts;
use fleetward_model::{ErrorCode, HostName};
use fleetward_protector::possession::RejoinProof;
use http::Method;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn host(name: &str) -> Identity {
    Identity::Host(name.parse().expect("name"))
}

/// A certificate that began and ends so many hours from now.
fn certify(controller: &Controller, agent: &FakeAgent, begins: i64, ends: i64) {
    let identity = Identity::Host(agent.host.clone());
    let (begins, ends) = (
        now() + Duration::hours(begins),
        now() + Duration::hours(ends),
    );
    let credential = controller.credential(&identity, begins, ends);
    agent.credential.replace(credential);
}

async fn view(controller: &Controller, name: &HostName) -> HostView {
    controller.get(&format!("/v1/hosts/{name}")).await
}

/// What it presents now.
fn presents(agent: &FakeAgent) -> CertificateFacts {
    agent.credential.current().facts().clone()
}

/// The host's machine was off, and is on again.
async fn off_and_on(controller: &Controller, agent: &FakeAgent) {
    agent.cut();
    controller.wait_online(&agent.host, false).await;
    agent.serve().await;
}

/// Whether a member with that credential gets in at that host.
async fn gets_in(controller: &Controller, as_member: LiveCredential, at: &FakeAgent) -> bool {
    let expected = Identity::Host(at.host.clone());
    let tls = ClientTls::member(as_member, controller.trust(), expected);
    let client = Client::tls(at.address.to_string(), tls);
    // A refusal may also show as a connection that breaks; only who is let in gets an answer.
    matches!(
        client.get::<Value>("/v1/nothing").await,
        Ok(_) | Err(ClientError::Status { .. })
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_fleets_authority_is_told_two_years_before() {
    for (days, told) in [(17 * 365, false), (18 * 365 + 10, true)] {
        let controller = Controller::start_of_fleet(days).await;
        let a = controller.join("a", "default").await;
        let b = controller.join("b", "default").await;
        a.knows(&b);
        let body = json!({ "name": "web", "host": "a", "tpm": false });
        controller.done(Method::POST, "/v1/vms", &body).await;
        let status: Value = controller.get("/v1/status").await;
        let checks: Value = controller.get("/v1/check?vm=web&to=b&offline=true").await;
        for (found, of) in [
            (&status["findings"], &status),
            (&checks[0]["findings"], &checks),
        ] {
            let found = found.as_array().into_iter().flatten();
            let found = found.filter(|one| one["code"] == "AUTHORITY_ENDS");
            assert_eq!(found.count(), usize::from(told), "{of}");
        }
        is_fleet_wide(&controller, "a", ErrorCode::AuthorityEnds, told).await;
        assert_eq!(checks[0]["possible"], true, "{checks}");
        let until = status["authority_ends"].as_str().expect("an end");
        assert!(until.starts_with("20"), "{status}");
    }
}

/// With one look at each host for each that joins, a fleet of a thousand is never done.
#[tokio::test]
async fn hosts_that_join_do_not_make_the_others_be_looked_at() {
    let controller = Controller::start().await;
    let mut hosts = Vec::new();
    for n in 0..8 {
        hosts.push(controller.join(&format!("host{n}"), "default").await);
    }
    let given = || -> Vec<u64> {
        let given = |host: &FakeAgent| host.look(|inner| inner.lists_given);
        hosts.iter().map(given).collect()
    };
    let all = "every host to be looked at";
    controller
        .wait(all, async || given().iter().all(|n| *n > 0))
        .await;
    // Of the longest pace that a fleet of this size has.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(given(), [1; 8]);
    // What may be in use is known everywhere at once.
    let removed = format!("/v1/hosts/{}", hosts[7].host);
    let request = controller.local.request(Method::DELETE, &removed);
    request.send().await.expect("it is empty");
    let told = "every other host to know of it";
    controller
        .wait(told, async || given()[..7].iter().all(|n| *n > 1))
        .await;
}

#[tokio::test]
async fn a_certificate_is_renewed_at_two_thirds_and_the_former_one_is_refused_then() {
    let controller = Controller::start_of_old_fleet().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    let first = view(&controller, &a.host).await.certificate;
    assert_eq!(first, Some(presents(&a)));

    // Each begins after the one before, which is refused otherwise. Young enough: 23 of 36 hours.
    certify(&controller, &a, -23, 13);
    let young = presents(&a);
    off_and_on(&controller, &a).await;
    controller
        .wait("the certificate to be seen", async || {
            view(&controller, &a.host).await.certificate == Some(young.clone())
        })
        .await;
    assert_eq!(presents(&a), young, "not renewed");

    // old enough, but it gets none: the old one stays good, and the end is told when it is near
    a.look(|inner| inner.certificate.fails = true);
    certify(&controller, &a, -21, 4);
    let old = a.credential.current();
    off_and_on(&controller, &a).await;
    controller
        .wait("a warning", async || {
            let view = view(&controller, &a.host).await;
            view.state.into_str() == "online"
                && view.warnings.iter().any(|w| w.contains("was not renewed"))
        })
        .await;
    assert_eq!(presents(&a), *old.facts());

    a.look(|inner| inner.certificate.fails = false);
    off_and_on(&controller, &a).await;
    controller
        .wait("the renewal", async || {
            let known = view(&controller, &a.host).await.certificate;
            known.is_some_and(|known| known.not_after > now() + Duration::days(300))
        })
        .await;
    let renewed = presents(&a);
    assert_ne!(renewed.serial, old.facts().serial);
    assert_eq!(
        view(&controller, &a.host).await.certificate,
        Some(renewed.clone())
    );
    assert!(
        view(&controller, &a.host)
            .await
            .warnings
            .iter()
            .all(|w| !w.contains("certificate"))
    );
    let metrics = controller.metrics().await;
    let end = renewed.not_after.unix_timestamp();
    let line =
        format!("fleetward_host_certificate_not_after_timestamp_seconds{{host=\"a\"}} {end}");
    assert!(metrics.contains(&line), "{metrics}");

    // The other host learns that the former one is over.
    controller
        .wait("the former one to be refused", async || {
            let old = LiveCredential::new(controller.credential(
                &host("a"),
                old.facts().not_before,
                old.facts().not_after,
            ));
            !gets_in(&controller, old, &b).await
        })
        .await;
    assert!(gets_in(&controller, a.credential.clone(), &b).await);
}

#[tokio::test]
async fn a_host_that_was_off_when_its_certificate_ended_comes_back_with_a_token() {
    let controller = Controller::start_of_old_fleet().await;
    for (name, days) in [("a-day", 1), ("a-year", 365), ("years", 11 * 365)] {
        let agent = controller.join(name, "default").await;
        let path = format!("/v1/hosts/{name}/rejoin-token");
        let refused = controller.refusal(Method::POST, &path, &json!({})).await;
        assert_eq!(refused.code, ErrorCode::AlreadyJoined, "{refused}");

        certify(&controller, &agent, 24 * (-365 - days), 24 * -days);
        let ended = presents(&agent);
        off_and_on(&controller, &agent).await;
        // It listens, and nobody believes it. A controller that saw the certificate before says what to do.
        let told = format!("fleetward host rejoin {name}");
        controller
            .wait("the way back to be told", async || {
                let view = view(&controller, &agent.host).await;
                view.warnings
                    .iter()
                    .any(|w| w.contains(&told) && w.contains("has ended"))
            })
            .await;
        assert_eq!(presents(&agent), ended);

        let token: TokenView = controller.post(&path, &json!({})).await;
        let key = KeyRequest::generate().expect("key");
        let own = agent.own.clone().expect("a guardian");
        let proof = RejoinProof::new(&token.token, key.csr_pem());
        let signature = own.prove(&proof).expect("signature");
        let body = RejoinRequest {
            token: token.token.clone(),
            host_csr: key.csr_pem().to_owned(),
            guardian: own.id().clone(),
            proof: STANDARD.encode(&signature),
            address: agent.address.to_string(),
            clock: now(),
        };
        let refusal = async |body: &RejoinRequest| {
            crate::fleet::failure(&controller.anonymous(), Method::POST, "/v1/rejoin", body)
                .await
                .1
        };
        // A stranger with the token, another request under the same proof, a wrong clock: none uses it up.
        let other = fleetward_protector_open::LocalGuardian::generate(&agent.host, now());
        let other = other.expect("guardian");
        let stranger = RejoinRequest {
            proof: STANDARD.encode(other.prove(&proof).expect("signature")),
            ..body.clone()
        };
        let failure = refusal(&stranger).await;
        assert_eq!(failure.code, ErrorCode::TokenInvalid, "{failure}");
        assert!(failure.fix.contains("--reinstalled"), "{failure}");
        let swapped = RejoinRequest {
            host_csr: KeyRequest::generate().expect("key").csr_pem().to_owned(),
            ..body.clone()
        };
        assert_eq!(refusal(&swapped).await.code, ErrorCode::TokenInvalid);
        let late = RejoinRequest {
            clock: now() - Duration::days(days),
            ..body.clone()
        };
        assert_eq!(refusal(&late).await.code, ErrorCode::ClocksApart);
        // It is no join token, nor is one a token to come back with.
        let joining = crate::fleet::Joining::new(name).body(&token.token, "127.0.0.1:1");
        let (_, failure) =
            crate::fleet::failure(&controller.anonymous(), Method::POST, "/v1/join", &joining)
                .await;
        assert_eq!(failure.code, ErrorCode::TokenInvalid, "{failure}");
        assert!(failure.fix.contains("fleetward-agent rejoin"), "{failure}");

        let reply: RejoinReply =
            (controller.anonymous().post("/v1/rejoin", &body).await).expect("it comes back");
        let credential = key
            .into_credential(&reply.host_certificate)
            .expect("credential");
        agent.credential.replace(credential);
        controller.wait_online(&agent.host, true).await;
        let view = view(&controller, &agent.host).await;
        assert_eq!(view.certificate, Some(presents(&agent)));
        assert!(
            view.warnings.iter().all(|w| !w.contains(&told)),
            "{:?}",
            view.warnings
        );
        assert_eq!(refusal(&body).await.code, ErrorCode::TokenUsed);
    }
}

#[tokio::test]
async fn a_revoked_administrator_is_out_at_once_and_his_name_can_be_used_again() {
    let controller = Controller::start().await;
    let first = controller.admin("kim", Role::Operator).await;
    let second = controller.admin("kim", Role::Admin).await;
    let other = controller.admin("lee", Role::Viewer).await;
    let status = async |client: &Client| client.get::<Value>("/v1/status").await;
    for client in [&first, &second, &other] {
        status(client).await.expect("they are in");
    }
    let list = async || -> Vec<AdminCertificate> { controller.get("/v1/admins").await };
    let all = list().await;
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|one| one.standing == AdminStanding::Good));
    let failure = controller
        .refusal(Method::POST, "/v1/admins/nobody/revoke", &json!({}))
        .await;
    assert_eq!(failure.code, ErrorCode::AdminNotFound, "{failure}");

    // One of two, by its number: as other programs print it, too.
    let serial = all[0].certificate.serial.clone();
    let body = json!({ "serial": serial.as_str().to_uppercase() });
    let told: AdminRevoked = controller.post("/v1/admins/kim/revoke", &body).await;
    assert_eq!(told.revoked.len(), 1);
    let refused = |answer: Result<Value, ClientError>| match answer {
        Err(ClientError::Dial(_) | ClientError::Broken { .. }) => true,
        other => panic!("{other:?}"),
    };
    assert!(refused(status(&first).await), "its open connection too");
    status(&second).await.expect("the other of that name is in");

    let told: AdminRevoked = controller.post("/v1/admins/kim/revoke", &json!({})).await;
    assert_eq!(told.revoked.len(), 1);
    assert!(refused(status(&second).await));
    status(&other).await.expect("another name");
    let standing: Vec<_> = list().await.iter().map(|one| one.standing).collect();
    use AdminStanding::{Good, Revoked};
    assert_eq!(standing, [Revoked, Revoked, Good]);

    // The name is free for another certificate at once, and what was refused stays so after a restart.
    let third = controller.admin("kim", Role::Viewer).await;
    status(&third).await.expect("in");
    let controller = controller.restart().await;
    status(&third).await.expect("in");
    assert!(refused(status(&first).await));
    assert!(refused(status(&second).await));
    let audit: Vec<Value> = controller.get("/v1/audit").await;
    let revoked = audit.iter().filter(|act| act["action"] == "revoke-admin");
    assert_eq!(revoked.count(), 2);
}

#[tokio::test]
async fn an_old_key_under_a_name_that_is_used_again_is_refused() {
    let controller = Controller::start().await;
    let b = controller.join("b", "default").await;
    let former = controller.join("a", "default").await;
    assert!(gets_in(&controller, former.credential.clone(), &b).await);
    let removed = controller
        .local
        .request(Method::DELETE, "/v1/hosts/a")
        .send();
    removed.await.expect("removed");
    controller
        .wait("every host to learn it", async || {
            !gets_in(&controller, former.credential.clone(), &b).await
        })
        .await;

    // Another machine of that name, at the former one's address at first: nobody is taken in by it.
    let new = controller.join("a", "default").await;
    assert!(gets_in(&controller, new.credential.clone(), &b).await);
    assert!(!gets_in(&controller, former.credential.clone(), &b).await);
    let status = former.client_of(controller.address, controller.trust());
    let answer = status.get::<Value>("/v1/status").await;
    assert!(
        matches!(
            answer,
            Err(ClientError::Dial(_) | ClientError::Broken { .. })
        ),
        "{answer:?}"
    );
    // The former machine answers at the new one's address.
    let old = former.credential.current().facts().clone();
    let old = controller.credential(&host("a"), old.not_before, old.not_after);
    new.credential.replace(old);
    off_and_on(&controller, &new).await;
    controller
        .wait("the old key to be noticed", async || {
            let view = view(&controller, &new.host).await;
            view.warnings
                .iter()
                .any(|w| w.contains("not good any more"))
        })
        .await;
}

/// The hosts whose own guardian opens the VM's key.
async fn opens(controller: &Controller, vm: &str, agent: &FakeAgent) -> bool {
    let vm: VmView = controller.get(&format!("/v1/vms/{vm}")).await;
    let own = agent.look(|inner| inner.facts.guardians[0].id.clone());
    vm.tpm.guardians.contains(&own)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expelled_host_that_keeps_talking_gets_nothing_and_loses_every_key() {
    let controller = Controller::start().await;
    let (a, b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    for (name, host, start) in [("web", "a", true), ("db", "b", true), ("off", "b", false)] {
        let body = json!({ "name": name, "host": host, "start": start });
        controller.done(Method::POST, "/v1/vms", &body).await;
        let both =
            async || opens(&controller, name, &a).await && opens(&controller, name, &b).await;
        controller.wait("both to open it", both).await;
    }
    let refused = controller.refusal(Method::DELETE, "/v1/hosts/a", &()).await;
    assert_eq!(refused.code, ErrorCode::HostNotEmpty, "{refused}");

    let path = "/v1/hosts/a/expel";
    let would: ExpelAnswer = controller.post(&format!("{path}?dry_run=true"), &()).await;
    let names: Vec<_> = would.lost.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["web"]);
    let keys: Vec<_> = would
        .keys
        .iter()
        .map(|key| (key.name.as_str(), key.roll))
        .collect();
    assert_eq!(
        keys,
        [("db", RollWhen::NextStop), ("off", RollWhen::AtOnce)]
    );
    assert!(
        gets_in(&controller, a.credential.clone(), &b).await,
        "a dry run"
    );

    // A connection that the host holds open to the other one, as a tunnel is.
    let to_b = {
        let tls = ClientTls::member(a.credential.clone(), controller.trust(), host("b"));
        Client::tls(b.address.to_string(), tls)
    };
    let stream = to_b
        .request(Method::GET, TUNNEL)
        .send()
        .await
        .expect("open");
    let mut lines = stream.lines();
    lines.next().await.expect("a first line");

    let done: ExpelAnswer = controller.post(path, &()).await;
    assert_eq!(done.keys, would.keys);
    // It keeps talking, to whom it can: the stream that is open breaks, nobody takes it in, nobody asks it for anything.
    let broken = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while let Ok(Some(_)) = lines.next().await {}
    });
    broken.await.expect("the open connection is cut");
    assert!(!gets_in(&controller, a.credential.clone(), &b).await);
    let itself = a.client_of(controller.address, controller.trust());
    let answer = itself.get::<Value>("/v1/status").await;
    assert!(
        matches!(
            answer,
            Err(ClientError::Dial(_) | ClientError::Broken { .. })
        ),
        "{answer:?}"
    );
    let gone = controller.refusal(Method::GET, "/v1/hosts/a", &()).await;
    assert_eq!(gone.code, ErrorCode::HostExpelled, "{gone}");

    // Its guardian loses every key: of the VM that is off with a roll; the keeper rolls the other when it stops.
    for vm in ["off", "db"] {
        let lost = async || !opens(&controller, vm, &a).await;
        controller.wait("its guardian to lose the key", lost).await;
    }
    let rolls = |agent: &FakeAgent| {
        agent.look(|inner| {
            inner
                .asked
                .iter()
                .filter(|one| **one == "prepare-roll")
                .count()
        })
    };
    controller
        .wait("the roll of the one that is off", async || rolls(&b) == 1)
        .await;

    // It does not come back: neither as itself, nor under another name.
    let no = controller
        .refusal(Method::POST, "/v1/hosts/a/rejoin-token", &json!({}))
        .await;
    assert_eq!(no.code, ErrorCode::HostExpelled, "{no}");
    let controller = controller.restart().await;
    controller.wait_online(&b.host, true).await;
    let token = controller.token("again", "default").await.token;
    let guardian = a.look(|inner| inner.facts.guardians[0].clone());
    let mut joining = crate::fleet::Joining::new("again").body(&token, "127.0.0.1:1");
    joining.guardian = guardian;
    let (_, no) =
        crate::fleet::failure(&controller.anonymous(), Method::POST, "/v1/join", &joining).await;
    assert_eq!(no.code, ErrorCode::HostExpelled, "{no}");
    assert!(!gets_in(&controller, a.credential.clone(), &b).await);

    // Its VM is lost, not forgotten. Another machine gets the name when it is rebuilt.
    let web: VmView = controller.get("/v1/vms/web").await;
    assert_eq!((web.host.as_str(), web.host_state), ("a", None));
    let token = controller.token("a", "default").await.token;
    let joining = crate::fleet::Joining::new("a").body(&token, "127.0.0.1:1");
    let (_, no) =
        crate::fleet::failure(&controller.anonymous(), Method::POST, "/v1/join", &joining).await;
    assert_eq!(no.code, ErrorCode::HostNotEmpty, "{no}");
    assert!(no.fix.contains("fleetward vm recover web"), "{no}");
    b.look(|inner| inner.opens.insert(web.id));
    let body = json!({ "to": "b" });
    controller
        .done(Method::POST, "/v1/vms/web/recover", &body)
        .await;
    let web: VmView = controller.get("/v1/vms/web").await;
    assert_eq!(web.host.as_str(), "b");
    let all: Vec<VmView> = controller.get("/v1/vms").await;
    assert_eq!(all.len(), 3);
    let new = controller.join("a", "default").await;
    assert!(gets_in(&controller, new.credential.clone(), &b).await);
    assert!(!gets_in(&controller, a.credential.clone(), &b).await);
}
