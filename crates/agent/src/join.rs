//! Joining a fleet: once, with a token, by a request from this host to the controller.
//!
//! ```text
//!  not joined ── token fits, controller answers ──► guardian made, files stored, member.json last ──► joined
//!      ▲                                                  │ a crash before member.json
//!      └──────────────────────────────────────────────────┘ (the guardian stays and is used by the next attempt)
//! ```

use crate::audit::{AuditLog, Use};
use crate::config::Config;
use crate::failure::chain;
use crate::keyring::{Keyring, KeyringError, Purpose};
use crate::layout::Layout;
use crate::membership::{Member, MembershipError, MembershipFiles};
use fleetward_api::controller::{JoinReply, JoinRequest};
use fleetward_link::{
    Client, ClientError, ClientTls, DialError, FleetTrust, JoinToken, KeyRequest, TokenError,
};
use fleetward_model::audit::AuditAction;
use fleetward_model::{ErrorCode, Failure, GuardianId};
use std::io;
use std::sync::Arc;
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// What joining has brought.
#[derive(Debug)]
pub struct Joined {
    pub member: Member,
    pub guardian: GuardianId,
    /// SHA-256 of the pinned authority.
    pub authority: String,
}

/// Joins the fleet that made the token.
pub async fn join(config: &Config, token: &str) -> Result<Joined, Failure> {
    let layout = Layout::new(config);
    layout.prepare().map_err(|error| {
        Failure::new(
            ErrorCode::Internal,
            format!("preparing {}", config.data_dir.display()),
        )
        .because(error)
    })?;
    let files = MembershipFiles::new(&layout);
    if let Some(member) = files.member().map_err(membership)? {
        return Err(Failure::new(
            ErrorCode::AlreadyJoined,
            format!("host {} is a member of fleet {}", member.host, member.fleet),
        )
        .because("a host joins one fleet, once")
        .fix(format!(
            "to join again: fleetward host remove {}, then remove {} on this host",
            member.host,
            layout.identity().display()
        )));
    }
    let token_text = token;
    // Whether it has expired is for the controller's clock to say: this host's may be wrong, which is then told.
    let token = JoinToken::parse(token, OffsetDateTime::UNIX_EPOCH).map_err(bad_token)?;
    let address = config.advertise.clone().ok_or_else(|| {
        Failure::new(ErrorCode::InvalidArgument, "joining without an address")
            .because("the configuration does not say where other machines reach this host")
            .fix("set advertise, for example to \"192.0.2.11:7443\", in the agent's configuration")
    })?;

    let audit = Arc::new(AuditLog::new(layout.audit_log(), token.host.clone()));
    audit.set_aside_of_another_host().map_err(|error| {
        Failure::new(
            ErrorCode::Internal,
            "the audit log of an earlier membership",
        )
        .because(error)
    })?;
    let purpose = Purpose {
        actor: local_actor(),
        reason: "the host joins a fleet".into(),
        job: None,
    };
    let guardian = {
        let (directory, host, audit) = (layout.guardians(), token.host.clone(), audit.clone());
        let credential = config.credential_file.clone();
        tokio::task::spawn_blocking(move || {
            let now = OffsetDateTime::now_utc();
            Keyring::ensure_own(
                &directory,
                &host,
                &audit,
                &purpose,
                credential.as_deref(),
                now,
            )?;
            Keyring::open_with(&directory, host, audit, credential.as_deref())
        })
        .await
        .expect("making a guardian does not panic")
        .map_err(|error: KeyringError| error.failure("the host's guardian"))?
        .facts()
        .swap_remove(0)
    };

    let internal =
        |error: &dyn std::error::Error| Failure::new(ErrorCode::Internal, "a key").because(error);
    let request = KeyRequest::generate().map_err(|error| internal(&error))?;
    let ek_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|error| internal(&error))?;
    let ek_csr = rcgen::CertificateParams::default()
        .serialize_request(&ek_key)
        .and_then(|csr| csr.pem())
        .map_err(|error| internal(&error))?;
    let guardian_id = guardian.id.clone();
    let body = JoinRequest {
        token: token_text.trim().to_owned(),
        host_csr: request.csr_pem().to_owned(),
        ek_csr,
        guardian,
        address: address.clone(),
        clock: Some(OffsetDateTime::now_utc()),
    };
    let client = Client::tls(token.controller.clone(), ClientTls::join(token.authority));
    let reply: JoinReply = match client.post("/v1/join", &body).await {
        Err(error) if knows_no_clock(&error) => {
            let body = JoinRequest {
                clock: None,
                ..body
            };
            client.post("/v1/join", &body).await
        }
        answered => answered,
    }
    .map_err(|error| refused(&token.controller, error))?;

    let trust = FleetTrust::from_pem(&reply.authority_certificate)
        .map_err(|error| strange(&token.controller, &chain(&error)))?;
    if trust.fingerprint() != token.authority {
        return Err(strange(
            &token.controller,
            "the authority it sent is not the one the token names",
        ));
    }
    let credential = request
        .into_credential(&reply.host_certificate)
        .map_err(|error| strange(&token.controller, &chain(&error)))?;
    let member = Member {
        host: reply.host,
        group: reply.group,
        fleet: reply.fleet,
        controller: token.controller.clone(),
        address,
    };
    if member.host != token.host {
        return Err(strange(
            &token.controller,
            "it named this host differently than the token does",
        ));
    }
    audit
        .record(Use {
            actor: local_actor(),
            action: AuditAction::Join,
            vm: None,
            guardian: Some(guardian_id.clone()),
            reason: format!("authority {} pinned", trust.fingerprint()),
            job: None,
        })
        .map_err(|error: io::Error| {
            Failure::new(ErrorCode::Internal, "joining without an audit record").because(error)
        })?;
    let ek_chain = format!("{}{}", reply.ek_certificate, reply.ek_root_certificate);
    files
        .store(
            &member,
            &credential,
            &trust,
            &ek_chain,
            &Zeroizing::new(ek_key.serialize_pem()),
        )
        .map_err(membership)?;
    Ok(Joined {
        member,
        guardian: guardian_id,
        authority: trust.fingerprint().to_string(),
    })
}

/// Who runs this process, for audit records.
pub fn local_actor() -> String {
    format!("local:{}", nix::unistd::getuid())
}

pub(crate) fn membership(error: MembershipError) -> Failure {
    Failure::new(ErrorCode::Internal, "the host's membership").because(chain(&error))
}

pub(crate) fn bad_token(error: TokenError) -> Failure {
    let code = match error {
        TokenError::Expired { .. } => ErrorCode::TokenExpired,
        _ => ErrorCode::TokenInvalid,
    };
    Failure::new(code, "joining with that token").because(error)
}

pub(crate) fn strange(controller: &str, because: &str) -> Failure {
    Failure::new(
        ErrorCode::TokenInvalid,
        format!("joining through {controller}"),
    )
    .because(because)
}

/// A controller from before the field refuses it by its name, before it looks at anything else.
fn knows_no_clock(error: &ClientError) -> bool {
    let ClientError::Status { body, .. } = error else {
        return false;
    };
    String::from_utf8_lossy(body).contains("unknown field `clock`")
}

pub(crate) fn refused(controller: &str, error: ClientError) -> Failure {
    if let ClientError::Status { body, .. } = &error
        && let Ok(failure) = serde_json::from_slice::<Failure>(body)
    {
        return failure;
    }
    let what = format!("joining through {controller}");
    // The controller makes its certificate when it starts, and renews it: one that is out of time is a wrong clock.
    if let ClientError::Dial(
        DialError::CertificateEnded { .. } | DialError::CertificateNotYet { .. },
    ) = &error
    {
        return Failure::new(ErrorCode::ClocksApart, what).because(chain(&error));
    }
    Failure::new(ErrorCode::ControllerUnreachable, what)
        .because(chain(&error))
        .fix(
            "check that the controller runs, and that this host can reach its address in the token",
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_controller_of_another_time_is_a_matter_of_clocks_and_says_both() {
        let (clock, address) = (datetime!(2026-11-27 09:00 UTC), "192.0.2.1:7443".to_owned());
        let of_2010 = DialError::CertificateEnded {
            address: address.clone(),
            ended: datetime!(2011-01-01 00:00 UTC),
            clock,
        };
        let of_2040 = DialError::CertificateNotYet {
            address,
            begins: datetime!(2040-01-01 00:00 UTC),
            clock,
        };
        for (error, year) in [(of_2010, "2011-01-01"), (of_2040, "2040-01-01")] {
            let failure = refused("192.0.2.1:7443", ClientError::Dial(error));
            assert_eq!(failure.code, ErrorCode::ClocksApart, "{failure}");
            for said in [year, "2026-11-27"] {
                assert!(failure.because.contains(said), "{failure}");
            }
        }
    }
}
