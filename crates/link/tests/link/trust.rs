//! Who is let in, who is believed, and that a slow stranger holds up nobody.

use crate::support::{Fleet, host, soon, until, whoami_text};
use fleetward_link::tunnel::{TunnelDialer, TunnelError, TunnelHeader};
use fleetward_link::{
    Client, ClientCertificates, ClientError, ClientTls, DialError, Fingerprint, Identity, Limits,
    Validity,
};
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn tls_refused(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Dial(
            DialError::TlsRefused { .. }
                | DialError::CertificateEnded { .. }
                | DialError::OutOfTimeThere { .. }
        )
    )
}

#[tokio::test]
async fn members_are_known_by_their_certificates() {
    let fleet = Fleet::new();
    let server = fleet.server(&host("a")).start().await;
    let admin = Identity::Admin {
        name: "kim".parse().expect("name"),
        role: fleetward_model::role::Role::Viewer,
    };
    for (member, shown) in [
        (Identity::Controller, "controller"),
        (host("b"), "host:b"),
        (admin, "admin:kim"),
    ] {
        let client = fleet.client(&member, server.address, &host("a"));
        assert_eq!(soon(whoami_text(&client)).await.expect("answer"), shown);
    }
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let server = ours.server(&host("a")).start().await;
    // It believes our server but shows a certificate of its own fleet.
    let tls = ClientTls::member(theirs.live(&Identity::Controller), ours.trust(), host("a"));
    for _ in 0..20 {
        let client = Client::tls(server.address.to_string(), tls.clone());
        let error = soon(whoami_text(&client)).await.expect_err("refused");
        assert!(tls_refused(&error), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let server = theirs.server(&host("a")).start().await;
    let client = ours.client(&Identity::Controller, server.address, &host("a"));
    let error = soon(whoami_text(&client)).await.expect_err("refused");
    assert!(tls_refused(&error), "{error:?}");
}

#[tokio::test]
async fn a_client_without_certificate_is_refused_where_one_is_required_and_anonymous_elsewhere() {
    let fleet = Fleet::new();
    let tls = ClientTls::join(fleet.trust().fingerprint());

    let strict = fleet.server(&Identity::Controller).start().await;
    let client = Client::tls(strict.address.to_string(), tls.clone());
    let error = soon(whoami_text(&client)).await.expect_err("refused");
    assert!(tls_refused(&error), "{error:?}");

    let mut open = fleet.server(&Identity::Controller);
    open.clients = ClientCertificates::Optional;
    let open = open.start().await;
    let client = Client::tls(open.address.to_string(), tls);
    let shown = soon(whoami_text(&client)).await.expect("answer");
    assert_eq!(shown, "anonymous");
}

#[tokio::test]
async fn a_foreign_certificate_is_refused_even_where_none_is_required() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let mut server = ours.server(&Identity::Controller);
    server.clients = ClientCertificates::Optional;
    let server = server.start().await;
    let tls = ClientTls::member(theirs.live(&host("x")), ours.trust(), Identity::Controller);
    let client = Client::tls(server.address.to_string(), tls);
    let error = soon(whoami_text(&client)).await.expect_err("refused");
    assert!(tls_refused(&error), "{error:?}");
}

#[tokio::test]
async fn another_member_at_the_address_is_refused_and_named() {
    let fleet = Fleet::new();
    let server = fleet.server(&host("b")).start().await;
    let client = fleet.client(&Identity::Controller, server.address, &host("a"));
    let error = soon(whoami_text(&client)).await.expect_err("refused");
    let ClientError::Dial(DialError::IdentityMismatch {
        expected, found, ..
    }) = error
    else {
        panic!("{error:?}");
    };
    assert_eq!((*expected, *found), (host("a"), host("b")));
}

#[tokio::test]
async fn an_administrators_certificate_cannot_pose_as_a_server() {
    let fleet = Fleet::new();
    let admin = Identity::Admin {
        name: "kim".parse().expect("name"),
        role: fleetward_model::role::Role::Admin,
    };
    let server = fleet.server(&admin).start().await;
    let client = fleet.client(&Identity::Controller, server.address, &admin);
    let error = soon(whoami_text(&client)).await.expect_err("refused");
    assert!(tls_refused(&error), "{error:?}");
}

#[tokio::test]
async fn expired_certificates_are_refused_on_both_sides() {
    let fleet = Fleet::new();
    let now = OffsetDateTime::now_utc();
    let past = Validity {
        not_before: now - time::Duration::hours(20),
        not_after: now - time::Duration::hours(1),
    };
    let server = fleet.server(&host("a")).start().await;
    let expired = fleet.credential_valid(&Identity::Controller, past);
    let tls = ClientTls::member(
        fleetward_link::LiveCredential::new(expired),
        fleet.trust(),
        host("a"),
    );
    let client = Client::tls(server.address.to_string(), tls);
    let error = soon(whoami_text(&client)).await.expect_err("refused");
    assert!(tls_refused(&error), "{error:?}");

    let old = fleet.server(&host("a"));
    old.credential
        .replace(fleet.credential_valid(&host("a"), past));
    let old = old.start().await;
    let client = fleet.client(&Identity::Controller, old.address, &host("a"));
    let error = soon(whoami_text(&client)).await.expect_err("refused");
    assert!(tls_refused(&error), "{error:?}");
}

#[tokio::test]
async fn a_joining_host_with_another_clock_than_the_controller_is_told_both_times() {
    let fleet = Fleet::old();
    let now = OffsetDateTime::now_utc();
    let year = time::Duration::days(365);
    for (begins, ends) in [(now - year * 2, now - year), (now + year, now + year * 2)] {
        let mut controller = fleet.server(&Identity::Controller);
        controller.clients = ClientCertificates::Optional;
        let validity = Validity {
            not_before: begins,
            not_after: ends,
        };
        let credential = fleet.credential_valid(&Identity::Controller, validity);
        controller.credential.replace(credential);
        let controller = controller.start().await;
        let tls = ClientTls::join(fleet.trust().fingerprint());
        let client = Client::tls(controller.address.to_string(), tls);
        let error = soon(whoami_text(&client)).await.expect_err("refused");
        let (named, clock) = match error {
            ClientError::Dial(DialError::CertificateEnded { ended, clock, .. }) => (ended, clock),
            ClientError::Dial(DialError::CertificateNotYet { begins, clock, .. }) => {
                (begins, clock)
            }
            other => panic!("{other:?}"),
        };
        let expected = if ends < now { ends } else { begins };
        assert_eq!(named, expected.truncate_to_second());
        assert!((clock - now).abs() < time::Duration::minutes(1));
    }
}

#[tokio::test]
async fn whoever_is_refused_by_a_clock_that_is_years_off_knows_that_it_is_the_clock() {
    let fleet = Fleet::old();
    let server = fleet.server(&host("a")).start().await;
    let now = OffsetDateTime::now_utc();
    let year = time::Duration::days(365);
    // As one looks that is good, to a server of 2010 or 2040.
    for (begins, ends) in [(now - year * 2, now - year), (now + year, now + year * 2)] {
        let validity = Validity {
            not_before: begins,
            not_after: ends,
        };
        let own = fleet.live(&Identity::Controller);
        own.replace(fleet.credential_valid(&Identity::Controller, validity));
        let tls = ClientTls::member(own, fleet.trust(), host("a"));
        let client = Client::tls(server.address.to_string(), tls);
        match soon(whoami_text(&client)).await.expect_err("refused") {
            ClientError::Dial(DialError::OutOfTimeThere { clock, .. }) => {
                assert!((clock - now).abs() < time::Duration::minutes(1));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_joining_host_believes_only_the_controller_of_the_authority_in_its_token() {
    let fleet = Fleet::new();
    let mut controller = fleet.server(&Identity::Controller);
    controller.clients = ClientCertificates::Optional;
    let controller = controller.start().await;
    let other = ClientTls::join(Fingerprint([9; 32]));
    let client = Client::tls(controller.address.to_string(), other);
    let error = soon(whoami_text(&client)).await.expect_err("refused");
    assert!(tls_refused(&error), "{error:?}");

    // A host of the same fleet, for example one that was taken over, is not the controller.
    let mut posing = fleet.server(&host("a"));
    posing.clients = ClientCertificates::Optional;
    let posing = posing.start().await;
    let tls = ClientTls::join(fleet.trust().fingerprint());
    let client = Client::tls(posing.address.to_string(), tls);
    let error = soon(whoami_text(&client)).await.expect_err("refused");
    assert!(
        matches!(error, ClientError::Dial(DialError::IdentityMismatch { .. })),
        "{error:?}"
    );
}

static OLD: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
static NEW: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

#[tokio::test]
async fn tls_1_2_is_refused() {
    let fleet = Fleet::new();
    let mut server = fleet.server(&Identity::Controller);
    server.clients = ClientCertificates::Optional;
    let server = server.start().await;

    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(fleet.trust().certificate().clone())
        .expect("authority");
    let connect = |versions: &'static [&'static rustls::SupportedProtocolVersion]| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("name");
        async move {
            let tcp = TcpStream::connect(server.address).await.expect("connect");
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            connector.connect(name, tcp).await.expect_err("refused")
        }
    };
    let error = soon(connect(&OLD)).await.to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
    // The same client gets as far as judging our certificate's name with the newer version.
    let error = soon(connect(&NEW)).await.to_string();
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_new_certificate_is_shown_while_old_connections_live_on() {
    let fleet = Fleet::new();
    let server = fleet.server(&host("a"));
    let credential = server.credential.clone();
    let server = server.start().await;
    let old = fleet.client(&Identity::Controller, server.address, &host("a"));
    assert_eq!(soon(whoami_text(&old)).await.expect("before"), "controller");

    // Renamed for the test only, so that it shows which certificate a connection saw.
    credential.replace(fleet.credential(&host("b")));
    let shown = soon(whoami_text(&old)).await;
    assert_eq!(shown.expect("the connection lives"), "controller");
    let new = fleet.client(&Identity::Controller, server.address, &host("b"));
    assert_eq!(soon(whoami_text(&new)).await.expect("after"), "controller");
    let late = fleet.client(&Identity::Controller, server.address, &host("a"));
    assert!(soon(whoami_text(&late)).await.is_err());
}

#[tokio::test]
async fn slow_handshakes_hold_up_nobody_and_are_cut_off() {
    let fleet = Fleet::new();
    let mut server = fleet.server(&host("a"));
    server.limits = Limits {
        handshake_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let server = server.start().await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut tcp = TcpStream::connect(server.address).await.expect("connect");
        tcp.write_all(&[0x16, 0x03]).await.expect("two bytes");
        slow.push(tcp);
    }
    let client = fleet.client(&Identity::Controller, server.address, &host("a"));
    let begun = Instant::now();
    soon(whoami_text(&client)).await.expect("answer");
    assert!(begun.elapsed() < Duration::from_millis(450));
    for mut tcp in slow {
        let mut rest = Vec::new();
        // An end or a reset, whichever the kernel chose.
        let _ = soon(tcp.read_to_end(&mut rest)).await;
    }
}

#[tokio::test]
async fn a_server_that_offers_no_tunnels_refuses_them() {
    let fleet = Fleet::new();
    let server = fleet.server(&host("a")).start().await;
    let dialer = TunnelDialer::new(fleet.live(&host("b")), fleet.trust());
    let address = server.address.to_string();
    let header = TunnelHeader::new("echo", "1");
    let error = soon(dialer.dial(&address, &host("a"), &header))
        .await
        .expect_err("refused");
    assert!(
        matches!(error, TunnelError::Dial(DialError::TlsRefused { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_stopped_server_finishes_and_frees_its_port() {
    let fleet = Fleet::new();
    let mut server = fleet.server(&host("a")).start().await;
    let client = fleet.client(&Identity::Controller, server.address, &host("a"));
    soon(whoami_text(&client)).await.expect("answer");
    server.stop.cancel();
    soon(&mut server.task)
        .await
        .expect("no panic")
        .expect("clean end");
    let error = soon(whoami_text(&client)).await.expect_err("gone");
    assert!(
        matches!(error, ClientError::Dial(DialError::Refused { .. })),
        "{error:?}"
    );
    until(|| std::net::TcpListener::bind(server.address).is_ok()).await;
}
