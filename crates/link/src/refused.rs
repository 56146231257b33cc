//! Certificates that are refused before their end, and the connections that are open under each.
//!
//! ```text
//!   handshake ──► Refusals::judge ──► refused: no connection
//!                      │ good: Refusals::admit
//!                      ▼
//!                 connection, known here ──merge of an entry that cuts──► its reads and writes fail
//! ```
//! Every server and client of a program shares one [`Refusals`], so that a merge reaches all its connections.

use crate::identity::{FleetIdentity, Identity, IdentityError};
use fleetward_model::certificate::{CertificateFacts, RefusedCertificates, Serial, WhyRefused};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A member's certificate: whose it is, and what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberCertificate {
    /// The member.
    pub identity: FleetIdentity,
    /// Number, beginning and end.
    pub facts: CertificateFacts,
}

impl MemberCertificate {
    /// Reads a certificate (DER). The caller verifies it.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let identity = FleetIdentity::from_certificate(der)?;
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| IdentityError::Certificate)?;
        let validity = parsed.validity();
        Ok(Self {
            identity,
            facts: CertificateFacts {
                serial: Serial::from_bytes(parsed.raw_serial()),
                not_before: validity.not_before.to_datetime(),
                not_after: validity.not_after.to_datetime(),
            },
        })
    }

    /// Reads the first certificate of a chain (PEM).
    pub fn from_pem(chain: &str) -> Result<Self, IdentityError> {
        let der = CertificateDer::from_pem_slice(chain.as_bytes());
        Self::from_der(&der.map_err(|_| IdentityError::Certificate)?)
    }
}

/// The name of a member in [`Which::Earlier`](fleetward_model::certificate::Which::Earlier): `host/NAME`, `admin/NAME`,
/// whichever role the administrator has.
pub fn member_name(identity: &Identity) -> String {
    match identity {
        Identity::Controller => "controller".to_owned(),
        Identity::Host(name) => format!("host/{name}"),
        Identity::Admin { name, .. } => format!("admin/{name}"),
    }
}

/// What is refused at the moment. Cheap to clone; clones share the list.
#[derive(Clone)]
pub struct Refusals(Arc<Shared>);

struct Shared {
    list: watch::Sender<RefusedCertificates>,
    revision: AtomicU64,
    open: Mutex<Open>,
}

/// Connections that are open, by a number of ours.
#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, (MemberCertificate, CancellationToken)>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self::new(RefusedCertificates::default())
    }
}

impl Refusals {
    /// Begins with `list`.
    pub fn new(list: RefusedCertificates) -> Self {
        Self(Arc::new(Shared {
            list: watch::Sender::new(list),
            revision: AtomicU64::new(0),
            open: Mutex::default(),
        }))
    }

    /// The list.
    pub fn list(&self) -> RefusedCertificates {
        self.0.list.borrow().clone()
    }

    /// Grows with each change of the list; two that are equal are of the same one.
    pub fn revision(&self) -> u64 {
        self.0.revision.load(Ordering::SeqCst)
    }

    /// Wakes when certificates are refused that may be in use. Those that were only superseded are no reason to hurry.
    pub fn changes(&self) -> watch::Receiver<RefusedCertificates> {
        self.0.list.subscribe()
    }

    /// Refuses what `other` names, too, and cuts connections under it. Whether that changed anything.
    pub fn merge(&self, other: &RefusedCertificates, now: OffsetDateTime) -> bool {
        // Held from before the change: a connection is admitted either before it, and is cut, or after it, and is refused.
        let open = self.open();
        let hurry = other.entries.iter().any(|entry| entry.why.cuts());
        let mut changed = false;
        self.0.list.send_if_modified(|list| {
            changed = list.merge(other, now);
            if changed {
                self.0.revision.fetch_add(1, Ordering::SeqCst);
            }
            changed && hurry
        });
        if changed {
            let list = self.0.list.borrow();
            for (certificate, cut) in open.connections.values() {
                let member = member_name(&certificate.identity.identity);
                let why = list.refuses(&member, &certificate.facts);
                if why.is_some_and(WhyRefused::cuts) {
                    tracing::warn!(peer = %certificate.identity.identity, serial = %certificate.facts.serial, "cutting a connection under a revoked certificate");
                    cut.cancel();
                }
            }
        }
        changed
    }

    /// Why a certificate is refused; none if it is not.
    pub fn judge(&self, certificate: &MemberCertificate) -> Option<WhyRefused> {
        let member = member_name(&certificate.identity.identity);
        self.0.list.borrow().refuses(&member, &certificate.facts)
    }

    /// Takes note of a connection under a certificate; none if that has just been refused.
    pub(crate) fn admit(&self, certificate: MemberCertificate) -> Option<Admitted> {
        let mut open = self.open();
        if self.judge(&certificate).is_some() {
            return None;
        }
        let cut = CancellationToken::new();
        let number = open.next;
        open.next += 1;
        open.connections.insert(number, (certificate, cut.clone()));
        Some(Admitted {
            refusals: self.clone(),
            number,
            cut,
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.0.list.borrow().entries.len();
        f.debug_struct("Refusals")
            .field("entries", &entries)
            .finish_non_exhaustive()
    }
}

/// A connection that is known, for as long as this lives.
pub(crate) struct Admitted {
    refusals: Refusals,
    number: u64,
    cut: CancellationToken,
}

impl Admitted {
    /// Fires when the certificate is refused.
    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.cut
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.refusals.open().connections.remove(&self.number);
    }
}
