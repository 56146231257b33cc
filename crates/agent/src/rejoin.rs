//! A new certificate for a host of the fleet whose own has run out or was lost: with a token, by a request from this host.
//!
//! ```text
//!  member, without a good certificate ── token fits, guardian proves itself ──► host.pem replaced ──► the running agent
//!      ▲                                          │ a crash before that             presents it within seconds
//!      └──────────────────────────────────────────┘ (the token may be used up: another is made)
//! ```
//! Guardian, VMs, generations and the authority that was pinned at the join stay as they are.

use crate::audit::AuditLog;
use crate::config::Config;
use crate::failure::chain;
use crate::join::{bad_token, local_actor, membership, refused, strange};
use crate::keyring::{Keyring, Purpose};
use crate::layout::Layout;
use crate::membership::{Member, MembershipFiles};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::controller::{RejoinReply, RejoinRequest};
use fleetward_link::{Client, ClientTls, CredentialError, Identity, JoinToken, KeyRequest};
use fleetward_model::certificate::CertificateFacts;
use fleetward_model::{ErrorCode, Failure, Names};
use fleetward_protector::possession::RejoinProof;
use std::sync::Arc;
use time::OffsetDateTime;

/// What it has brought.
#[derive(Debug)]
pub struct Rejoined {
    pub member: Member,
    pub certificate: CertificateFacts,
}

/// Why an agent does not start without a certificate that can be used, and what brings it back.
pub fn credential_lost(config: &Config, error: &CredentialError) -> Failure {
    let failure = Failure::new(
        ErrorCode::HostCertificateUnusable,
        "the agent cannot speak to the fleet",
    )
    .because(chain(error));
    match MembershipFiles::new(&Layout::new(config)).member() {
        Ok(Some(member)) => failure.about(&Names::default().host(&member.host)),
        Ok(None) | Err(_) => failure,
    }
}

/// Gets this host another certificate from the fleet of which it is a member.
pub async fn rejoin(config: &Config, token: &str) -> Result<Rejoined, Failure> {
    let layout = Layout::new(config);
    let files = MembershipFiles::new(&layout);
    let member = files.member().map_err(membership)?.ok_or_else(|| {
        Failure::new(
            ErrorCode::InvalidArgument,
            "this host has not joined a fleet",
        )
        .because("only a host that was a member can come back as the one that it was")
        .fix("fleetward-agent join, with a token of fleetward host token")
    })?;
    let trust = files.trust().map_err(membership)?;
    // Whether it has expired is for the controller's clock to say.
    let parsed = JoinToken::parse(token, OffsetDateTime::UNIX_EPOCH).map_err(bad_token)?;
    if parsed.host != member.host {
        return Err(Failure::new(
            ErrorCode::TokenInvalid,
            format!(
                "the token is for host {}, and this is host {}",
                parsed.host, member.host
            ),
        )
        .fix(format!("fleetward host rejoin {}", member.host)));
    }
    if parsed.authority != trust.fingerprint() {
        return Err(
            Failure::new(ErrorCode::TokenInvalid, "the token is of another fleet").because(
                format!(
                    "host {} pinned the authority {} when it joined",
                    member.host,
                    trust.fingerprint()
                ),
            ),
        );
    }
    let internal =
        |error: &dyn std::error::Error| Failure::new(ErrorCode::Internal, "a key").because(error);
    let request = KeyRequest::generate().map_err(|error| internal(&error))?;
    let body = {
        let proof = RejoinProof::new(token, request.csr_pem());
        let (directory, host) = (layout.guardians(), member.host.clone());
        let audit = Arc::new(AuditLog::new(layout.audit_log(), host.clone()));
        let credential = config.credential_file.clone();
        let (guardian, signature) = tokio::task::spawn_blocking(move || {
            let keyring = Keyring::open_with(&directory, host, audit, credential.as_deref())
                .map_err(|error| error.failure("the host's guardian"))?;
            let purpose = Purpose {
                actor: local_actor(),
                reason: "the host proves itself, for another certificate".into(),
                job: None,
            };
            let proved = keyring.prove(&proof, &purpose);
            proved.map_err(|trouble| trouble.failure)
        })
        .await
        .expect("signing does not panic")?;
        RejoinRequest {
            token: token.trim().to_owned(),
            host_csr: request.csr_pem().to_owned(),
            guardian,
            proof: STANDARD.encode(signature),
            address: config.advertise.clone().unwrap_or(member.address.clone()),
            clock: OffsetDateTime::now_utc(),
        }
    };
    let client = Client::tls(parsed.controller.clone(), ClientTls::join(parsed.authority));
    let reply: RejoinReply = (client.post("/v1/rejoin", &body).await)
        .map_err(|error| refused(&parsed.controller, error))?;
    let credential = request
        .into_credential(&reply.host_certificate)
        .map_err(|error| strange(&parsed.controller, &chain(&error)))?;
    if credential.identity().identity != Identity::Host(member.host.clone())
        || !credential.is_of(&trust, OffsetDateTime::now_utc())
    {
        return Err(strange(
            &parsed.controller,
            "the certificate that it sent is not one of this host and this fleet that is good now",
        ));
    }
    let certificate = credential.facts().clone();
    let member = Member {
        controller: parsed.controller,
        address: body.address,
        ..member
    };
    files.renew(&member, &credential).map_err(membership)?;
    Ok(Rejoined {
        member,
        certificate,
    })
}
