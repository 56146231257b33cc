//! The agent's own certificate: renewal that survives a kill at any step, others' that are refused, and the way back.

use crate::support::{Fleet, Node, now, refusal};
use fleetward_agent::rejoin;
use fleetward_api::agent::{self, CertificateAnswer, CertificateRequest, RefusedHeld};
use fleetward_link::authority::MEMBER_LIFETIME;
use fleetward_link::tunnel::{TunnelError, TunnelHeader};
use fleetward_link::*;
use fleetward_model::certificate::{
    CertificateFacts, Refused, RefusedCertificates, Serial, Which, WhyRefused,
};
use fleetward_model::{ErrorCode, Failure};
use http::Method;
use serde::Serialize;
use time::Duration;

fn host(name: &str) -> Identity {
    Identity::Host(name.parse().unwrap())
}

/// What the agent presents, over a connection of its own.
async fn presents(fleet: &Fleet, node: &Node) -> Result<CertificateFacts, ClientError> {
    fleet
        .client(&node.name, &node.address)
        .get(agent::CERTIFICATE)
        .await
}

async fn put<A: serde::de::DeserializeOwned>(
    node: &Node,
    path: &str,
    body: &impl Serialize,
) -> Result<A, Failure> {
    let request = node.client.request(Method::PUT, path).json(body);
    let response = request.send().await.map_err(refusal)?;
    Ok(response.json().await.unwrap())
}

async fn asks(node: &Node) -> CertificateRequest {
    node.client.post(agent::CERTIFICATE, &()).await.unwrap()
}

fn certified(fleet: &Fleet, csr: &str, identity: &Identity) -> CertificateAnswer {
    let validity = Validity::starting(now(), MEMBER_LIFETIME);
    let chain = fleet.authority.issue(csr, identity, validity).unwrap();
    CertificateAnswer { chain }
}

/// Kills the agent, as far as its files can tell, and starts it again.
async fn restart(fleet: &Fleet, node: &mut Node) {
    node.down().await;
    node.up().await;
    node.client = fleet.client(&node.name, &node.address);
}

#[tokio::test]
async fn a_renewal_that_is_killed_at_any_step_leaves_a_certificate_that_works() {
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    let first = presents(&fleet, &node).await.unwrap();

    // Killed between the request and its answer: the key is forgotten, the first certificate works.
    let request = asks(&node).await;
    restart(&fleet, &mut node).await;
    assert_eq!(presents(&fleet, &node).await.unwrap(), first);
    let answer = certified(&fleet, &request.csr, &host("a"));
    let failure = put::<CertificateFacts>(&node, agent::CERTIFICATE, &answer)
        .await
        .unwrap_err();
    assert_eq!(failure.code, ErrorCode::InvalidRequest, "{failure}");
    assert_eq!(presents(&fleet, &node).await.unwrap(), first);

    // Wrong answers change nothing: another host's name, another fleet, another key.
    let other = Fleet::start().await;
    let stranger = KeyRequest::generate().unwrap();
    let wrong: [&dyn Fn(&str) -> CertificateAnswer; 4] = [
        &|csr| certified(&fleet, csr, &host("b")),
        &|csr| certified(&other, csr, &host("a")),
        &|_| certified(&fleet, stranger.csr_pem(), &host("a")),
        &|_| CertificateAnswer {
            chain: "nonsense".to_owned(),
        },
    ];
    for answer in wrong {
        let request = asks(&node).await;
        let failure =
            put::<CertificateFacts>(&node, agent::CERTIFICATE, &answer(&request.csr)).await;
        assert_eq!(failure.unwrap_err().code, ErrorCode::InvalidRequest);
        assert_eq!(presents(&fleet, &node).await.unwrap(), first);
    }

    // Stored, and killed before or after it is presented: the second is in the file.
    let request = asks(&node).await;
    let answer = certified(&fleet, &request.csr, &host("a"));
    let second: CertificateFacts = put(&node, agent::CERTIFICATE, &answer).await.unwrap();
    assert_ne!(second.serial, first.serial);
    assert_eq!(presents(&fleet, &node).await.unwrap(), second);
    restart(&fleet, &mut node).await;
    assert_eq!(presents(&fleet, &node).await.unwrap(), second);
}

#[tokio::test]
async fn what_the_controller_names_is_refused_at_once_and_after_a_restart() {
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    let gone = fleet.credential_of(&host("gone"));
    let old = fleet.credential_of(&host("old"));
    let good = fleet.credential_of(&host("good"));
    let trust = fleet.authority.trust().clone();
    let header = TunnelHeader::new("libvirt-rpc", "nothing");
    let expected = host("a");
    let refused = async |credential: &LiveCredential, address: &str| {
        let dialer = tunnel::TunnelDialer::new(credential.clone(), trust.clone());
        match dialer.dial(address, &expected, &header).await {
            // No such arrival: the certificate was taken.
            Err(TunnelError::Refused { .. }) => false,
            Err(TunnelError::Dial(DialError::TlsRefused { .. }) | TunnelError::Stream(_)) => true,
            other => panic!("{other:?}"),
        }
    };
    for credential in [&gone, &old, &good] {
        assert!(!refused(credential, &node.address).await);
    }
    let entry = |which| Refused {
        which,
        why: WhyRefused::Expelled,
        at: now(),
        until: now() + Duration::days(365),
    };
    let list = RefusedCertificates {
        entries: vec![
            entry(Which::Earlier {
                member: "host/gone".into(),
                before: now() + Duration::days(1),
            }),
            entry(Which::Serial {
                serial: old.current().facts().serial.clone(),
            }),
        ],
    };
    let held: RefusedHeld = put(&node, agent::REFUSED_CERTIFICATES, &list)
        .await
        .unwrap();
    assert_eq!(held.entries, 2);
    // A shorter list takes nothing back.
    let held: RefusedHeld = put(
        &node,
        agent::REFUSED_CERTIFICATES,
        &RefusedCertificates::default(),
    )
    .await
    .unwrap();
    assert_eq!(held.entries, 2);
    for _ in 0..2 {
        assert!(refused(&gone, &node.address).await);
        assert!(refused(&old, &node.address).await);
        assert!(!refused(&good, &node.address).await);
        restart(&fleet, &mut node).await;
    }
    let many = RefusedCertificates {
        entries: (0..5000u32)
            .map(|n| {
                entry(Which::Serial {
                    serial: Serial::from_bytes(&n.to_be_bytes()),
                })
            })
            .collect(),
    };
    let failure = put::<RefusedHeld>(&node, agent::REFUSED_CERTIFICATES, &many).await;
    assert_eq!(failure.unwrap_err().code, ErrorCode::TooLarge);
}

#[tokio::test]
async fn a_host_whose_certificate_ended_comes_back_while_its_agent_runs() {
    let begun = now() - Duration::days(5 * 365);
    let (fleet, other) = (Fleet::begun(begun).await, Fleet::start().await);
    let mut node = Node::start(&fleet, "a").await;
    for days in [1, 365] {
        let identity = node.config.data_dir.join("identity");
        let directory = node.config.data_dir.join("guardians");
        let guardians = || std::fs::read_dir(&directory).unwrap();
        let kept = guardians().count();
        node.down().await;
        let request = KeyRequest::generate().unwrap();
        let validity = Validity {
            not_before: now() - Duration::days(365 + days),
            not_after: now() - Duration::days(days),
        };
        let chain = fleet
            .authority
            .issue(request.csr_pem(), &host("a"), validity);
        let ended = request.into_credential(&chain.unwrap()).unwrap();
        ended.store(&identity.join("host.pem")).unwrap();
        node.up().await;
        let error = presents(&fleet, &node).await.unwrap_err();
        assert!(
            matches!(error, ClientError::Dial(DialError::CertificateEnded { .. })),
            "{error:?}"
        );

        // Tokens that are not for this host of this fleet.
        let failure = rejoin::rejoin(&node.config, &fleet.token("b"))
            .await
            .unwrap_err();
        assert_eq!(failure.code, ErrorCode::TokenInvalid, "{failure}");
        assert_eq!(failure.fix, "fleetward host rejoin a");
        let failure = rejoin::rejoin(&node.config, &other.token("a"))
            .await
            .unwrap_err();
        assert_eq!(failure.code, ErrorCode::TokenInvalid, "{failure}");

        let back = rejoin::rejoin(&node.config, &fleet.token("a"))
            .await
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            match presents(&fleet, &node).await {
                Ok(facts) => break assert_eq!(facts, back.certificate),
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error:?}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(guardians().count(), kept);

        // A lost credential: the agent says what to do, and the same way leads back.
        node.down().await;
        std::fs::remove_file(identity.join("host.pem")).unwrap();
        let error = CredentialError::Chain;
        let failure = rejoin::credential_lost(&node.config, &error);
        assert!(failure.fix.contains("fleetward host rejoin a"), "{failure}");
        rejoin::rejoin(&node.config, &fleet.token("a"))
            .await
            .unwrap();
        node.up().await;
        presents(&fleet, &node).await.unwrap();
    }
}
