//! The host's own certificate while the agent runs, and the list of others' that are refused.
//!
//! ```text
//!   good ──asked for a request──► a new key pair, in memory ──certificate arrives──► host.pem replaced ──► presented
//!     ▲                             │ the agent ends: forgotten, asked for again
//!     └─────────────────────────────┘
//! ```
//! The file holds certificate and key of one pair and is replaced as a whole, so a crash at any line leaves one that works:
//! the former one is good until the controller has seen the new one. The controller says when: its clock decides about the
//! end as well.

use crate::failure::chain;
use crate::host::Host;
use crate::layout::Layout;
use crate::membership::MembershipFiles;
use fleetward_api::agent::{CertificateAnswer, CertificateRequest, RefusedHeld};
use fleetward_durable::{self as durable, Access};
use fleetward_link::{Credential, Identity, KeyRequest, Refusals};
use fleetward_model::certificate::{CertificateFacts, MAX_REFUSED, RefusedCertificates};
use fleetward_model::{ErrorCode, Failure};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// A certificate that `rejoin` has stored is presented after at most this long.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// How often an end that is near, or has come, is told in the log.
const REMIND_EVERY: Duration = Duration::from_secs(3600);

/// What a renewal needs to remember, and the list of refused certificates.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    /// The key pair of a request that was not answered yet.
    asked: Mutex<Option<KeyRequest>>,
    /// Held while the list is written.
    writing: Mutex<()>,
}

/// The refused certificates that this host has learned of, as it wrote them down.
pub(crate) fn refusals(layout: &Layout) -> io::Result<Refusals> {
    let list: Option<RefusedCertificates> = durable::read_json(&layout.refused_certificates())?;
    Ok(Refusals::new(list.unwrap_or_default()))
}

/// A request for a new certificate, for a new key pair.
pub(crate) fn request(host: &Host) -> Result<CertificateRequest, Failure> {
    let request = KeyRequest::generate().map_err(|error| {
        Failure::new(ErrorCode::Internal, "a key for the host's certificate").because(chain(&error))
    })?;
    let csr = request.csr_pem().to_owned();
    *lock(&host.certificates.asked) = Some(request);
    Ok(CertificateRequest { csr })
}

/// Stores the certificate that answers the last request, and presents it from now on.
pub(crate) async fn install(
    host: &Host,
    answer: &CertificateAnswer,
) -> Result<CertificateFacts, Failure> {
    let refuse = |because: String| {
        Failure::new(ErrorCode::InvalidRequest, "the host's new certificate").because(because)
    };
    let asked = lock(&host.certificates.asked).take();
    let asked = asked.ok_or_else(|| refuse("nobody has asked for one".to_owned()))?;
    let credential = asked
        .into_credential(&answer.chain)
        .map_err(|error| refuse(chain(&error)))?;
    let identity = credential.identity();
    if identity.identity != Identity::Host(host.member.host.clone()) {
        return Err(refuse(format!("it is of {}", identity.identity)));
    }
    if !credential.is_of(&host.trust, OffsetDateTime::now_utc()) {
        return Err(refuse(
            "the authority that this host has pinned does not vouch for it now".to_owned(),
        ));
    }
    fleetward_failpoint::hold("agent.certificate.received").await;
    let file = MembershipFiles::new(&host.layout).credential();
    credential.store(&file).map_err(|error| {
        Failure::new(
            ErrorCode::Internal,
            "the host's new certificate cannot be stored",
        )
        .because(chain(&error))
    })?;
    fleetward_failpoint::hold("agent.certificate.stored").await;
    let facts = credential.facts().clone();
    host.credential.replace(credential);
    tracing::info!(serial = %facts.serial, until = %facts.not_after, "the host has a new certificate");
    Ok(facts)
}

/// Refuses what the controller names, from now on and after a restart. Nothing that is refused becomes good by a list that is
/// shorter: a controller that was restored from a backup may have forgotten.
pub(crate) fn refuse(host: &Host, named: &RefusedCertificates) -> Result<RefusedHeld, Failure> {
    if named.entries.len() > MAX_REFUSED {
        let what = "the list of refused certificates";
        return Err(Failure::new(ErrorCode::TooLarge, what)
            .because(format!("it has more than {MAX_REFUSED} entries")));
    }
    let _turn = lock(&host.certificates.writing);
    let now = OffsetDateTime::now_utc();
    let mut list = host.refusals.list();
    if list.merge(named, now) {
        let json = serde_json::to_vec(&list).expect("plain fields are JSON");
        let file = host.layout.refused_certificates();
        durable::replace(&file, &json, Access::PRIVATE).map_err(|error| {
            let what = "the list of refused certificates cannot be stored";
            Failure::new(ErrorCode::Internal, what).because(error)
        })?;
        host.refusals.merge(named, now);
    }
    Ok(RefusedHeld {
        entries: list.entries.len() as u32,
    })
}

/// Presents what `rejoin` has stored meanwhile, and says in the log when the certificate has ended, and what to do.
pub(crate) async fn watch(host: Arc<Host>, stop: CancellationToken) {
    let file = MembershipFiles::new(&host.layout).credential();
    let mut told: Option<String> = None;
    let mut reminded: Option<tokio::time::Instant> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let problem = present(&host, &file).err();
        if problem != told {
            if let Some(problem) = &problem {
                tracing::error!("{problem}");
            }
            told = problem;
        }
        let due = reminded.is_none_or(|at| at.elapsed() >= REMIND_EVERY);
        if let Some(warning) = warning(&host, OffsetDateTime::now_utc())
            && due
        {
            tracing::error!("{warning}");
            reminded = Some(tokio::time::Instant::now());
        }
    }
}

fn present(host: &Host, file: &std::path::Path) -> Result<(), String> {
    let credential = Credential::load(file)
        .map_err(|error| format!("the stored certificate cannot be used: {}", chain(&error)))?;
    let found = &credential.identity().identity;
    if *found != Identity::Host(host.member.host.clone()) {
        return Err(format!("the stored certificate is of {found}"));
    }
    if credential.facts() != host.credential.current().facts() {
        tracing::info!(serial = %credential.facts().serial, "presenting the certificate that was stored");
        host.credential.replace(credential);
    }
    Ok(())
}

/// What an administrator should know of the host's certificate.
pub(crate) fn warning(host: &Host, now: OffsetDateTime) -> Option<String> {
    let current = host.credential.current();
    let facts = current.facts();
    let name = &host.member.host;
    facts.has_ended(now).then(|| {
        format!(
            "this host's certificate has ended ({}), if this host's clock is right, which says {now}: the controller and other \
             hosts refuse it; VMs run on. If it is not (CLOCKS_APART), set the clock: nothing else is to be done. Else on the \
             controller: fleetward host rejoin {name}; then here, with the token that it prints: fleetward-agent rejoin",
            facts.not_after
        )
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
