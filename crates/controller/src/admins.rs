//! Certificates of administrators: which were made, and which are revoked.
//!
//! The store remembers each certificate that is made, by its number. Whether it is good is for the list of refused
//! certificates to say, so the two cannot contradict each other.

use crate::certificates::{Certificates, all_until, one};
use fleetward_api::controller::{AdminCertificate, AdminStanding};
use fleetward_link::{AdminName, Identity, MemberCertificate, member_name};
use fleetward_model::certificate::{CertificateFacts, Refused, Serial, WhyRefused};
use fleetward_model::role::Role;
use fleetward_model::{ErrorCode, Failure};
use fleetward_store::{Guard, Store, StoreExt};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

const PREFIX: &str = "admin-certificate/";

/// A certificate as it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct AdminRecord {
    name: AdminName,
    role: Role,
    certificate: CertificateFacts,
    #[serde(with = "time::serde::rfc3339")]
    made: OffsetDateTime,
    made_by: String,
}

/// Remembers a certificate (PEM chain) before anybody gets it.
pub(crate) async fn remember(
    store: &dyn Store,
    chain: &str,
    name: AdminName,
    role: Role,
    by: &str,
) -> Result<(), Failure> {
    let certificate = MemberCertificate::from_pem(chain).map_err(|error| {
        Failure::new(ErrorCode::Internal, "the certificate that was made").because(error)
    })?;
    let record = AdminRecord {
        name,
        role,
        certificate: certificate.facts,
        made: OffsetDateTime::now_utc(),
        made_by: by.to_owned(),
    };
    let key = format!("{PREFIX}{}", record.certificate.serial);
    let put = store.put_json(&key, &record, Guard::Any).await;
    let _ = put.map_err(|error| crate::store_failure(&error))?;
    Ok(())
}

/// All that were made, by name and then by age.
pub(crate) async fn list(
    store: &dyn Store,
    certificates: &Certificates,
    now: OffsetDateTime,
) -> Result<Vec<AdminCertificate>, Failure> {
    let found = store.list_json::<AdminRecord>(PREFIX).await;
    let (found, _) = found.map_err(|error| crate::store_failure(&error))?;
    let refused = certificates.refusals().list();
    let mut all: Vec<_> = found
        .into_iter()
        .map(|(_, found)| {
            let record = found.value;
            let member = member_name(&identity(&record.name, record.role));
            let entry = refused.entry(&member, &record.certificate);
            let revoked = entry.map(|entry| entry.at);
            AdminCertificate {
                name: record.name.to_string(),
                role: record.role,
                standing: match revoked {
                    Some(_) => AdminStanding::Revoked,
                    None if record.certificate.has_ended(now) => AdminStanding::Ended,
                    None => AdminStanding::Good,
                },
                certificate: record.certificate,
                made: record.made,
                made_by: record.made_by,
                revoked,
            }
        })
        .collect();
    all.sort_by(|a, b| (&a.name, a.made).cmp(&(&b.name, b.made)));
    Ok(all)
}

/// Which certificates are meant.
pub(crate) struct Meant {
    pub(crate) name: AdminName,
    /// Only this one; none: all of the name.
    pub(crate) serial: Option<Serial>,
    /// Also if none is known: they were made before they were remembered.
    pub(crate) unlisted: bool,
}

/// Which of those that are known are good until now, and what refuses them.
pub(crate) async fn plan_revocation(
    store: &dyn Store,
    certificates: &Certificates,
    meant: &Meant,
    now: OffsetDateTime,
) -> Result<(Vec<AdminCertificate>, Option<Refused>), Failure> {
    let Meant {
        name,
        serial,
        unlisted,
    } = meant;
    let mut known = list(store, certificates, now).await?;
    known.retain(|one| one.name == name.as_str());
    if let Some(serial) = serial {
        known.retain(|one| one.certificate.serial == *serial);
    }
    if known.is_empty() && (serial.is_some() || !unlisted) {
        let what = match serial {
            Some(serial) => format!("administrator {name} has no certificate {serial}"),
            None => format!("no certificate of administrator {name} is known"),
        };
        return Err(Failure::new(ErrorCode::AdminNotFound, what)
            .because("certificates that were made before November 2026 are not listed")
            .fix(format!(
                "fleetward admin list; or, for those that are not listed: fleetward admin revoke {name} --unlisted"
            )));
    }
    known.retain(|one| one.standing == AdminStanding::Good);
    let entry = match serial {
        Some(_) => known
            .first()
            .map(|found| one(&found.certificate, WhyRefused::Revoked, now)),
        None => Some(all_until(
            // The role is no part of whose certificates are meant.
            &identity(name, Role::Viewer),
            WhyRefused::Revoked,
            now,
        )),
    };
    Ok((known, entry))
}

fn identity(name: &AdminName, role: Role) -> Identity {
    Identity::Admin {
        name: name.clone(),
        role,
    }
}
