//! EK certificates, over real TLS: which there are, what counts of them, and what administrators decide.

use crate::findings::is_fleet_wide;
use crate::fleet::Controller;
use crate::fleet::agent::FakeAgent;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::controller::{
    CheckView, EkAuthorityView, EkCertificateDetail, EkCertificateView, EkRevocationList,
    EkRevoked, EkStanding, VmView,
};
use fleetward_api::tpm::BundleParts;
use fleetward_model::{ErrorCode, KeyId, VmId};
use fleetward_protector::ExpiredAllowed;
use fleetward_protector::ek::{EkAuthority, EkPublicKey, RandomSerial, TpmIdentity};
use fleetward_protector_open::{LocalGuardian, SealRequest, TpmKey, seal};
use http::Method;
use rcgen::PublicKeyData;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

/// The certificate of a new TPM, by this authority.
fn issue(authority: &[u8], key: &rcgen::KeyPair, number: u8) -> Vec<u8> {
    let ek = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("key");
    let point = ek.der_bytes();
    let (x, y) = (hex::encode(&point[1..33]), hex::encode(&point[33..65]));
    let ek = EkPublicKey::from_swtpm(&format!("x={x},y={y},id=secp256r1")).expect("key");
    let authority = EkAuthority::new(authority, key).expect("authority");
    let (tpm, serial) = (TpmIdentity::default(), RandomSerial::new([number; 16]));
    let issued = authority.issue_ek(&ek, &tpm, serial, OffsetDateTime::now_utc());
    issued.expect("certificate")
}

fn of_agent(agent: &FakeAgent, number: u8) -> Vec<u8> {
    let authority = agent
        .look(|inner| inner.ek_authority.clone())
        .expect("joined");
    issue(&authority, agent.ek.as_ref().expect("joined"), number)
}

/// One of another fleet, whose host has the same name.
fn of_stranger(number: u8) -> Vec<u8> {
    let (root_key, key) = (
        rcgen::KeyPair::generate().expect("key"),
        rcgen::KeyPair::generate().expect("key"),
    );
    let (now, serial) = (OffsetDateTime::now_utc(), RandomSerial::new([1; 16]));
    let root = fleetward_protector::ek::make_root("other", &root_key, serial, now).expect("root");
    let root = EkAuthority::new(&root, root_key).expect("root");
    let host = "a".parse().expect("name");
    let authority = root.issue_host_authority(&host, &key.subject_public_key_info(), serial, now);
    issue(&authority.expect("authority"), &key, number)
}

/// A stopped VM on `agent` whose TPM has this certificate, of which the controller has a copy. The certificate's SHA-256.
async fn vm_with(controller: &Controller, agent: &FakeAgent, name: &str, ek: Vec<u8>) -> String {
    let sha256 = hex::encode(Sha256::digest(&ek));
    let body = json!({ "name": name, "host": agent.host, "disk_bytes": 1 << 30, "tpm": true });
    controller.done(Method::POST, "/v1/vms", &body).await;
    let vm: Value = controller.get(&format!("/v1/vms/{name}")).await;
    let id: VmId = serde_json::from_value(vm["id"].clone()).expect("id");
    let owner =
        LocalGuardian::generate(&"keeper".parse().expect("name"), OffsetDateTime::now_utc());
    let request = SealRequest {
        vm_id: id,
        key_id: KeyId(Uuid::from_u128(1)),
        tpm_key: &TpmKey::generate().expect("key"),
        owner: &owner.expect("guardian"),
        recipients: &[],
        now: OffsetDateTime::now_utc(),
        expired: &ExpiredAllowed::none(),
    };
    let parts = BundleParts {
        state: vec![2, 1, 0, 10, 0, 9, 0, 0, 0, 11, 1],
        key_protector: seal(&request).expect("seal").der().to_vec(),
        ek_certificate: Some(ek),
        uefi_variables: None,
    };
    agent.look(|inner| {
        let vm = inner.vms.get_mut(&id).expect("the VM");
        vm.metadata.key_protector = Some(STANDARD.encode(&parts.key_protector));
        vm.metadata.ek_certificate = parts.ek_certificate.as_ref().map(|ek| STANDARD.encode(ek));
        inner.parts.insert(id, parts);
        inner.tell(id);
    });
    let known = async || standing(controller, name).await.is_some();
    controller.wait("the certificate to be known", known).await;
    sha256
}

async fn view(controller: &Controller, name: &str) -> VmView {
    controller.get(&format!("/v1/vms/{name}")).await
}

async fn standing(controller: &Controller, name: &str) -> Option<EkStanding> {
    view(controller, name).await.ek
}

/// What a check of the VM against that host says of its certificate: which code, and whether it is in the way.
async fn checked(controller: &Controller, name: &str, to: &str) -> Option<(ErrorCode, bool)> {
    let checks: Vec<CheckView> = controller
        .get(&format!("/v1/check?vm={name}&to={to}"))
        .await;
    let all = checks.into_iter().flat_map(|check| check.findings);
    all.map(|finding| (finding.code, finding.blocking))
        .find(|(code, _)| matches!(code, ErrorCode::EkNotOfFleet | ErrorCode::EkRevoked))
}

async fn list(controller: &Controller, query: &str) -> Vec<EkCertificateView> {
    controller
        .get(&format!("/v1/ek/certificates?{query}"))
        .await
}

async fn crl(controller: &Controller) -> EkRevocationList {
    controller.get("/v1/ek/crl").await
}

async fn revoke(controller: &Controller, sha256: &str) -> EkRevoked {
    let path = format!("/v1/ek/certificates/{sha256}/revoke");
    controller.post(&path, &json!({ "reason": "a test" })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_listed_by_number_issuer_and_vm_with_their_chain() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    let web = vm_with(&controller, &a, "web", of_agent(&a, 3)).await;
    let db = vm_with(&controller, &b, "db", of_agent(&b, 4)).await;
    let all = list(&controller, "").await;
    assert_eq!(all.len(), 2);
    let serial = all
        .iter()
        .find(|one| one.sha256 == web)
        .expect("web's")
        .serial
        .clone();
    for query in [
        format!("serial={serial}"),
        "issuer=a".into(),
        "vm=web".into(),
    ] {
        let found = list(&controller, &query).await;
        assert_eq!(found.len(), 1, "{query}");
        assert_eq!(
            (&found[0].sha256, found[0].standing),
            (&web, EkStanding::Fleet)
        );
        assert_eq!(found[0].vms, ["web".parse().expect("name")]);
    }
    assert_eq!(list(&controller, "standing=foreign").await, []);
    let shown: EkCertificateDetail = controller.get(&format!("/v1/ek/certificates/{db}")).await;
    assert_eq!(shown.chain.matches("BEGIN CERTIFICATE").count(), 3);
    let authorities: Vec<EkAuthorityView> = controller.get("/v1/ek/authorities").await;
    let of: Vec<_> = authorities
        .iter()
        .map(|one| one.host.as_ref().map(ToString::to_string))
        .collect();
    assert_eq!(of, [None, Some("a".into()), Some("b".into())]);
    for one in &authorities[1..] {
        assert!(one.issues && shown.chain.contains(&authorities[0].certificate));
    }
    // What was known is known after a restart, also of a VM that is gone.
    controller
        .done(Method::DELETE, "/v1/vms/web", &json!({}))
        .await;
    let controller = controller.restart().await;
    let found = list(&controller, &format!("serial={serial}")).await;
    assert_eq!(
        (found[0].vms.len(), found[0].standing),
        (0, EkStanding::Fleet)
    );
    let path = format!("/v1/ek/certificates/{}", "0".repeat(64));
    let refusal = controller.refusal(Method::GET, &path, &json!({})).await;
    assert_eq!(refusal.code, ErrorCode::EkNotFound, "{refusal}");
}

/// The controller knows before the move what the destination would say.
#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_certificate_is_shown_and_foreseen_until_it_is_accepted() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let _b = controller.join("b", "default").await;
    let sha256 = vm_with(&controller, &a, "web", of_stranger(5)).await;
    let foreign = async || {
        assert_eq!(
            standing(&controller, "web").await,
            Some(EkStanding::Foreign)
        );
        let found = checked(&controller, "web", "b").await;
        assert_eq!(found, Some((ErrorCode::EkNotOfFleet, true)));
        let found = checked(&controller, "web", "a").await;
        assert_eq!(
            found,
            Some((ErrorCode::EkNotOfFleet, false)),
            "it may start"
        );
        is_fleet_wide(&controller, "a", ErrorCode::EkNotOfFleet, true).await;
        let findings = view(&controller, "web").await.findings;
        let told = findings
            .iter()
            .find(|one| one.code == ErrorCode::EkNotOfFleet);
        assert_eq!(
            told.expect("told").fix,
            format!("fleetward ek accept {sha256}")
        );
    };
    foreign().await;
    let accept = format!("/v1/ek/certificates/{sha256}/accept");
    let _: Value = controller.post(&accept, &json!({})).await;
    assert_eq!(
        standing(&controller, "web").await,
        Some(EkStanding::Accepted)
    );
    assert_eq!(checked(&controller, "web", "b").await, None);
    is_fleet_wide(&controller, "a", ErrorCode::EkNotOfFleet, false).await;
    let taken_back = revoke(&controller, &sha256).await;
    assert!(
        !taken_back.listed,
        "the fleet says nothing of what it did not issue"
    );
    foreign().await;
    assert_eq!(crl(&controller).await.entries, 0);
    let _: Value = controller.post(&accept, &json!({})).await;
    assert_eq!(
        standing(&controller, "web").await,
        Some(EkStanding::Accepted)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_is_published_and_shown_and_its_vm_goes_on() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let _b = controller.join("b", "default").await;
    let sha256 = vm_with(&controller, &a, "web", of_agent(&a, 3)).await;
    let path = format!("/v1/ek/certificates/{}/revoke", "0".repeat(64));
    let refusal = controller.refusal(Method::POST, &path, &json!({})).await;
    assert_eq!(refusal.code, ErrorCode::EkNotFound, "{refusal}");
    let body = json!({ "reason": "two\nlines" });
    let path = format!("/v1/ek/certificates/{sha256}/revoke");
    let refusal = controller.refusal(Method::POST, &path, &body).await;
    assert_eq!(refusal.code, ErrorCode::InvalidArgument, "{refusal}");
    assert_eq!(crl(&controller).await.entries, 0);

    let revoked = revoke(&controller, &sha256).await;
    assert!(revoked.listed);
    assert_eq!(revoked.vms, ["web".parse().expect("name")]);
    let again = revoke(&controller, &sha256).await;
    assert_eq!(again.decision.at, revoked.decision.at, "once is enough");
    let controller = controller.restart().await;
    controller.wait_online(&a.host, true).await;
    assert_eq!(
        standing(&controller, "web").await,
        Some(EkStanding::Revoked)
    );
    let list = crl(&controller).await;
    assert_eq!(list.entries, 1);
    assert!(
        list.crl.starts_with("-----BEGIN X509 CRL-----\n"),
        "{}",
        list.crl
    );
    let found = checked(&controller, "web", "b").await;
    assert_eq!(found, Some((ErrorCode::EkRevoked, false)), "a remark");
    is_fleet_wide(&controller, "a", ErrorCode::EkRevoked, true).await;
}

/// A host was broken into: what its authority made until then is known, what turns up later is not believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_authority_lets_in_what_was_known_of_it_and_nothing_else() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    vm_with(&controller, &a, "web", of_agent(&a, 3)).await;
    vm_with(&controller, &b, "db", of_agent(&b, 4)).await;
    let authorities: Vec<EkAuthorityView> = controller.get("/v1/ek/authorities").await;
    let of_a = authorities
        .iter()
        .find(|one| one.host.as_ref() == Some(&a.host));
    let revoked = revoke(&controller, &of_a.expect("a's").sha256).await;
    assert!(revoked.listed);
    assert_eq!(revoked.vms, ["web".parse().expect("name")]);
    assert_eq!(crl(&controller).await.entries, 1);
    assert_eq!(
        standing(&controller, "web").await,
        Some(EkStanding::Accepted)
    );
    assert_eq!(standing(&controller, "db").await, Some(EkStanding::Fleet));
    assert_eq!(checked(&controller, "web", "b").await, None);
    vm_with(&controller, &a, "late", of_agent(&a, 9)).await;
    assert_eq!(
        standing(&controller, "late").await,
        Some(EkStanding::Foreign)
    );
    let found = checked(&controller, "late", "b").await;
    assert_eq!(found, Some((ErrorCode::EkNotOfFleet, true)));
    let authorities: Vec<EkAuthorityView> = controller.get("/v1/ek/authorities").await;
    let of_a = authorities
        .iter()
        .find(|one| one.host.as_ref() == Some(&a.host));
    assert!(!of_a.expect("a's").issues && of_a.expect("a's").revoked.is_some());
}

/// A host that joined before authorities were kept: what it issued is a stranger's until it has told what with.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_becomes_known_makes_its_certificates_the_fleets() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let ek = of_agent(&a, 3);
    let authority = a.look(|inner| inner.ek_authority.take());
    let forget = |data: &std::path::Path| {
        std::fs::remove_file(data.join("ek-certificates.json")).expect("there");
    };
    let controller = controller.restart_after(forget).await;
    controller.wait_online(&a.host, true).await;
    vm_with(&controller, &a, "web", ek).await;
    assert_eq!(
        standing(&controller, "web").await,
        Some(EkStanding::Foreign)
    );
    let told = view(&controller, "web").await.findings;
    let told = told.iter().any(|one| one.code == ErrorCode::EkNotOfFleet);
    assert!(!told, "nobody judges it yet");
    a.look(|inner| inner.ek_authority = authority);
    a.cut();
    controller.wait_online(&a.host, false).await;
    a.comes_back().await;
    let ours = async || standing(&controller, "web").await == Some(EkStanding::Fleet);
    controller
        .wait("the certificate to be the fleet's", ours)
        .await;
}
