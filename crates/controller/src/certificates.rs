//! The life of hosts' certificates: renewal at two thirds, and the list of those that are refused before their end.
//!
//! ```text
//!   certified ──two thirds──► asked for a request ──► certified anew ──► stored on the host ──new handshake──► the former
//!                                                                                                            is refused
//! ```
//! The list is a file beside the authority's key, so it outlives the database. Every agent learns it: when its host comes
//! online, and at each change.

use crate::fleet::Fleet;
use crate::hosts::HostRecord;
use crate::world::World;
use anyhow::Context;
use fleetward_durable::{self as durable, Access};
use fleetward_link::authority::MEMBER_LIFETIME;
use fleetward_link::{Identity, Refusals, Validity, member_name};
use fleetward_model::certificate::{
    CertificateFacts, Refused, RefusedCertificates, Which, WhyRefused,
};
use fleetward_model::{ErrorCode, Failure, HostName};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;

/// Between looks at a host of which nothing is known to be behind.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(3600);
/// Between looks at a host where something did not succeed.
const TRY_AGAIN: std::time::Duration = std::time::Duration::from_secs(60);

/// Who appears in the audit trail as the one who asked.
pub(crate) const RENEWAL: &str = "renewal";

/// The certificates that are refused.
#[derive(Debug)]
pub(crate) struct Certificates {
    refusals: Refusals,
    file: PathBuf,
    /// Held from reading the list to writing it.
    writing: tokio::sync::Mutex<()>,
    turns: Mutex<HashMap<HostName, Arc<Turn>>>,
}

/// Bringing one host up to date: one at a time, and at most one more that waits, which sees all that happened before.
#[derive(Debug, Default)]
struct Turn {
    at_work: tokio::sync::Mutex<()>,
    waiting: AtomicBool,
    last: Mutex<Option<Look>>,
}

impl Turn {
    fn last(&self) -> MutexGuard<'_, Option<Look>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last look after a host's certificate.
#[derive(Debug, Clone, Copy)]
struct Look {
    begun: Instant,
    /// Which list the host has learnt; none where that failed, or is under way.
    learnt: Option<u64>,
}

impl Look {
    fn is_due_again(self, list: u64, certificate_is_due: bool) -> bool {
        let age = self.begun.elapsed();
        match self.learnt {
            None => age >= TRY_AGAIN,
            Some(learnt) => {
                learnt != list || age >= LOOK_AGAIN || certificate_is_due && age >= TRY_AGAIN
            }
        }
    }
}

impl Certificates {
    /// Reads the list in `dir`; a missing one is empty, a damaged one an error.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("refused-certificates.json");
        let list: Option<RefusedCertificates> =
            durable::read_json(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self {
            refusals: Refusals::new(list.unwrap_or_default()),
            file,
            writing: tokio::sync::Mutex::default(),
            turns: Mutex::default(),
        })
    }

    /// The list, for servers and clients.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Refuses certificates, from now on and after a restart; open connections under them are cut, unless they are only
    /// superseded.
    pub(crate) async fn refuse(
        &self,
        entries: Vec<Refused>,
        now: OffsetDateTime,
    ) -> Result<(), Failure> {
        let _turn = self.writing.lock().await;
        let named = RefusedCertificates { entries };
        let mut list = self.refusals.list();
        if !list.merge(&named, now) {
            return Ok(());
        }
        let json = serde_json::to_vec_pretty(&list).expect("plain fields are JSON");
        let written = durable::background::replace(&self.file, json, Access::PRIVATE).await;
        written.map_err(|error| {
            let what = "the list of refused certificates cannot be written";
            Failure::new(ErrorCode::StoreFailed, what).because(error)
        })?;
        self.refusals.merge(&named, now);
        Ok(())
    }

    fn turn(&self, host: &HostName) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(host.clone()).or_default().clone()
    }

    /// A host is back: what it has learnt before is not relied on.
    pub(crate) fn begin(&self, host: &HostName) {
        *self.turn(host).last() = None;
    }

    /// Whether the host has to be asked: it has not learnt the list, or its certificate ends soon, or that was long ago.
    pub(crate) fn is_behind(&self, record: &HostRecord, now: OffsetDateTime) -> bool {
        let last = *self.turn(&record.name).last();
        let facts = record.certificate.as_ref();
        let certificate_is_due = facts.is_none_or(|facts| facts.is_due(now));
        last.is_none_or(|look| look.is_due_again(self.refusals.revision(), certificate_is_due))
    }

    /// When a new certificate of `member` begins and ends: after the moment up to which earlier ones are refused.
    pub(crate) fn validity(&self, member: &Identity, now: OffsetDateTime) -> Validity {
        let validity = Validity::starting(now, MEMBER_LIFETIME);
        let earliest = self.refusals.list().earliest(&member_name(member));
        Validity {
            not_before: earliest.map_or(validity.not_before, |earliest| {
                validity.not_before.max(earliest + Duration::SECOND)
            }),
            ..validity
        }
    }
}

/// Refuses every certificate of `member` that was made until `now`, whether its number is known or not.
pub(crate) fn all_until(member: &Identity, why: WhyRefused, now: OffsetDateTime) -> Refused {
    // Certificates carry whole seconds.
    let begins = Validity::starting(now, MEMBER_LIFETIME).not_before;
    let before = begins.truncate_to_second() + Duration::SECOND;
    earlier(member, before, why, now)
}

/// Refuses one certificate.
pub(crate) fn one(certificate: &CertificateFacts, why: WhyRefused, now: OffsetDateTime) -> Refused {
    Refused {
        which: Which::Serial {
            serial: certificate.serial.clone(),
        },
        why,
        at: now,
        until: certificate.not_after,
    }
}

fn earlier(
    member: &Identity,
    before: OffsetDateTime,
    why: WhyRefused,
    now: OffsetDateTime,
) -> Refused {
    Refused {
        which: Which::Earlier {
            member: member_name(member),
            before,
        },
        why,
        at: now,
        until: now + MEMBER_LIFETIME,
    }
}

/// Brings a host that answers up to date: it learns the list, its certificate is renewed when that is due, and the former
/// one is refused once the new one was used.
pub(crate) async fn keep(world: &World, host: &HostName) {
    let turn = world.fleet.certificates.turn(host);
    if turn.waiting.swap(true, Ordering::SeqCst) {
        return;
    }
    let _turn = turn.at_work.lock().await;
    turn.waiting.store(false, Ordering::SeqCst);
    let list = world.fleet.certificates.refusals.revision();
    let mut look = Look {
        begun: Instant::now(),
        learnt: None,
    };
    *turn.last() = Some(look);
    match bring_up_to_date(world, host).await {
        Ok(()) => {
            look.learnt = Some(list);
            *turn.last() = Some(look);
        }
        Err(error) => {
            tracing::warn!(%host, error = %error.what, because = %error.because, "cannot look after the host's certificate");
        }
    }
}

async fn bring_up_to_date(world: &World, host: &HostName) -> Result<(), Failure> {
    let certificates = &world.fleet.certificates;
    let now = OffsetDateTime::now_utc();
    // A connection of its own: what the host presents in it is what it has now.
    let agent = world.agents.anew(host)?;
    if !agent.refuse(&certificates.refusals.list()).await? {
        // An agent of before; its certificate cannot be renewed either.
        return Ok(());
    }
    crate::ek::learn(world, host, &agent).await?;
    let mut facts = agent.certificate().await?;
    // Its end is known also if it cannot be renewed.
    note(world, host, &facts, now).await?;
    if facts.is_due(now) {
        let request = agent.request_certificate().await?;
        let chain = world
            .fleet
            .certify(&request.csr, &host_identity(host), now)?;
        // In the log before the host has it; a renewal that is repeated is recorded again.
        let act = crate::audit::Act::new(
            RENEWAL,
            fleetward_model::audit::AuditAction::CertifyHost,
            format!(
                "host {host}, renewed: the former one ends {}",
                crate::tokens::utc(facts.not_after)
            ),
        );
        world.audit.own(act).await?;
        agent.install_certificate(chain).await?;
        let anew = world.agents.anew(host)?;
        facts = anew.certificate().await?;
        world.agents.reconnect(host);
        tracing::info!(%host, serial = %facts.serial, until = %facts.not_after, "the host's certificate was renewed");
    }
    note(world, host, &facts, now).await
}

/// The host has presented this certificate: what it had before is over.
async fn note(
    world: &World,
    host: &HostName,
    facts: &CertificateFacts,
    now: OffsetDateTime,
) -> Result<(), Failure> {
    let record = world.hosts.set_certificate(host, facts).await?;
    let certificates = &world.fleet.certificates;
    // A host speaks only for itself: a beginning that is not true refuses its own certificates.
    let member = host_identity(host);
    let known = certificates.refusals.list().earliest(&member_name(&member));
    let has_former = match known {
        Some(known) => known < facts.not_before,
        None => !is_its_first(&record, facts),
    };
    if has_former && facts.not_before <= now {
        let entry = earlier(&member, facts.not_before, WhyRefused::Superseded, now);
        certificates.refuse(vec![entry], now).await?;
    }
    Ok(())
}

/// Whether it is the certificate with which the host came into the fleet: it has had none before, so none is over. With one
/// entry for each host the list would be long, and each host that joins would change it for all.
fn is_its_first(record: &HostRecord, facts: &CertificateFacts) -> bool {
    let first = Validity::starting(record.joined, MEMBER_LIFETIME);
    record.former.is_empty() && facts.not_before == first.not_before.truncate_to_second()
}

pub(crate) fn host_identity(host: &HostName) -> Identity {
    Identity::Host(host.clone())
}

/// Renews the controller's own certificate when it is due, or was made by a clock that was ahead and has been set since. Its key
/// lies nowhere, so a start makes a new one anyway.
pub(crate) fn keep_own(fleet: &Fleet, now: OffsetDateTime) {
    let own = fleet.credential().current();
    if !own.facts().is_due(now) && own.facts().not_before <= now {
        return;
    }
    match fleet.renew(now) {
        Ok(()) => tracing::info!("the controller's certificate was renewed"),
        Err(error) => tracing::error!(%error, "cannot renew the controller's certificate"),
    }
}
