//! Lists come in pages: what each list is asked with, and where each of its rows stands.
//!
//! A page holds at most `limit` rows, the first of them the one that follows `after`, which is the cursor of the last row of
//! the page before. A page with fewer rows is the last one. Without `limit` a list is given whole, so that programs which
//! were written before there were pages miss nothing; of jobs only the newest 1,000 are given then.

use crate::controller::{
    AdminCertificate, AlertTargetView, AlertView, ApiTokenView, AuditQuery, CheckQuery, CheckView,
    EkAuthorityView, EkCertificateView, EkStanding, GuardianView, HostCheckQuery, HostCheckView,
    HostView, ImageView, JobState, JobView, NetworkView, SecureBootKind, SecureBootQuery,
    SecureBootView, TemplateView, UserView, VmQuery, VmView,
};
use crate::tpm::TpmVersion;
use fleetward_model::audit::AuditRecord;
use fleetward_model::certificate::Serial;
use fleetward_model::host::HostState;
use fleetward_model::{GroupName, HostName, VmName};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::{IntoParams, ToSchema};

/// Rows of the longest page.
pub const LONGEST_PAGE: u32 = 1000;

/// A query of a list.
pub trait Paged: Clone {
    fn set_page(&mut self, limit: u32, after: Option<String>);
    fn after(&self) -> Option<&str>;
}

/// A row of a list.
pub trait Row {
    /// Where it stands: what `after` takes.
    fn cursor(&self) -> String;
}

/// Query of `GET /v1/hosts`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HostQuery {
    #[param(value_type = Option<String>)]
    pub group: Option<GroupName>,
    #[param(value_type = Option<String>)]
    pub state: Option<HostState>,
    /// at most so many rows, 1 to 1,000; without it all
    pub limit: Option<u32>,
    /// only what follows: a host's name
    pub after: Option<String>,
    /// with what each uses now
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[param(value_type = Option<bool>)]
    pub usage: bool,
}

/// Query of lists that are asked for nothing else: images, templates, networks, administrators, API tokens, alerts and their targets.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LibraryQuery {
    /// at most so many rows, 1 to 1,000; without it all
    pub limit: Option<u32>,
    /// only what follows: a name
    pub after: Option<String>,
}

/// Query of `GET /v1/ek/certificates`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EkQuery {
    /// only the one with this serial number
    #[param(value_type = Option<String>)]
    pub serial: Option<Serial>,
    /// only what the authority of this host issued
    #[param(value_type = Option<String>)]
    pub issuer: Option<HostName>,
    /// only those of this VM, by name
    #[param(value_type = Option<String>)]
    pub vm: Option<VmName>,
    /// only those of this standing
    #[param(value_type = Option<String>)]
    pub standing: Option<EkStanding>,
    /// at most so many rows, 1 to 1,000; without it all
    pub limit: Option<u32>,
    /// only what follows: a SHA-256
    pub after: Option<String>,
}

/// Query of `GET /v1/jobs`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct JobQuery {
    #[param(value_type = Option<String>)]
    pub state: Option<JobState>,
    /// only those that have not ended, or only those that have
    pub active: Option<bool>,
    /// vm-create, vm-migrate, ...
    pub kind: Option<String>,
    /// at most so many rows, 1 to 1,000; without it the newest 1,000
    pub limit: Option<u32>,
    /// only what follows: a job's id
    pub after: Option<String>,
}

/// Query of `GET /v1/guardians`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GuardianQuery {
    #[param(value_type = Option<String>)]
    pub host: Option<HostName>,
    /// at most so many rows, 1 to 1,000; without it all
    pub limit: Option<u32>,
    /// only what follows: HOST/GUARDIAN/SHA256 of a row
    pub after: Option<String>,
}

/// Query of lists that nothing is chosen from.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// at most so many rows, 1 to 1,000; without it all
    pub limit: Option<u32>,
    /// only what follows: of a guardian's certificates HOST/GUARDIAN/SHA256, of versions of a TPM ID/VERSION, of TPMs that are
    /// kept NAME/ID, each of a row
    pub after: Option<String>,
}

macro_rules! paged {
    ($($query:ident),*) => {
        $(impl Paged for $query {
            fn set_page(&mut self, limit: u32, after: Option<String>) {
                self.limit = Some(limit);
                self.after = after;
            }

            fn after(&self) -> Option<&str> {
                self.after.as_deref()
            }
        })*
    };
}

paged!(
    HostQuery,
    HostCheckQuery,
    LibraryQuery,
    EkQuery,
    JobQuery,
    GuardianQuery,
    PageQuery,
    CheckQuery,
    SecureBootQuery,
    VmQuery,
    AuditQuery
);

impl Row for HostView {
    fn cursor(&self) -> String {
        self.name.to_string()
    }
}

impl Row for HostCheckView {
    fn cursor(&self) -> String {
        self.host.to_string()
    }
}

/// Oldest first.
impl Row for AlertView {
    fn cursor(&self) -> String {
        self.id.to_string()
    }
}

impl Row for AlertTargetView {
    fn cursor(&self) -> String {
        self.name.to_string()
    }
}

impl Row for ApiTokenView {
    fn cursor(&self) -> String {
        self.name.to_string()
    }
}

impl Row for UserView {
    fn cursor(&self) -> String {
        self.name.to_string()
    }
}

impl Row for AdminCertificate {
    fn cursor(&self) -> String {
        self.certificate.serial.to_string()
    }
}

impl Row for EkCertificateView {
    fn cursor(&self) -> String {
        self.sha256.clone()
    }
}

impl Row for EkAuthorityView {
    fn cursor(&self) -> String {
        self.sha256.clone()
    }
}

impl Row for ImageView {
    fn cursor(&self) -> String {
        self.name.to_string()
    }
}

impl Row for NetworkView {
    fn cursor(&self) -> String {
        self.name.to_string()
    }
}

impl Row for TemplateView {
    fn cursor(&self) -> String {
        self.name.to_string()
    }
}

/// Hosts may say the same name of several VMs.
impl Row for VmView {
    fn cursor(&self) -> String {
        format!("{}/{}/{}", self.name, self.host, self.id)
    }
}

impl Row for CheckView {
    fn cursor(&self) -> String {
        let id = self.id.map(|id| id.to_string());
        format!("{}/{}/{}", self.vm, id.unwrap_or_default(), self.to)
    }
}

/// VMs, each before its versions; then templates.
impl Row for SecureBootView {
    fn cursor(&self) -> String {
        let kind = match self.kind {
            SecureBootKind::Vm | SecureBootKind::Version => SecureBootKind::Vm,
            SecureBootKind::Template => SecureBootKind::Template,
        };
        let id = self.id.map(|id| format!("/{id}")).unwrap_or_default();
        let version = self.version.map(|version| format!("/{version}"));
        format!("{kind}/{}{id}{}", self.name, version.unwrap_or_default())
    }
}

/// As the versions of one TPM follow one another. Of TPMs whose VMs are gone, see [`KeptTpm`].
impl Row for TpmVersion {
    fn cursor(&self) -> String {
        format!("{}/{}", self.vm, self.version)
    }
}

/// The newest version of the TPM of a VM that is gone: such TPMs are listed by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct KeptTpm(pub TpmVersion);

impl Row for KeptTpm {
    fn cursor(&self) -> String {
        format!("{}/{}", self.0.vm_name, self.0.vm)
    }
}

impl Row for JobView {
    fn cursor(&self) -> String {
        self.id.to_string()
    }
}

impl Row for GuardianView {
    fn cursor(&self) -> String {
        format!("{}/{}/{}", self.host, self.guardian, self.sha256)
    }
}

impl Row for AuditRecord {
    fn cursor(&self) -> String {
        AuditPlace::of(self).to_string()
    }
}

/// Of records that are read as they are.
impl Row for serde_json::Value {
    fn cursor(&self) -> String {
        let text = |field: &str| self[field].as_str().unwrap_or_default();
        let seq = &self["seq"];
        format!("{}/{}/{seq}/{}", text("time"), text("host"), text("hash"))
    }
}

/// Where a record stands among those of all chains, in the order of the fields: `TIME/HOST/SEQ/HASH`.
///
/// A host that left and came back has two chains of the same numbers, so only the hash tells its records apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditPlace {
    pub time: OffsetDateTime,
    pub host: HostName,
    pub seq: u64,
    pub hash: String,
}

impl AuditPlace {
    pub fn of(record: &AuditRecord) -> Self {
        Self {
            time: record.time,
            host: record.host.clone(),
            seq: record.seq,
            hash: record.hash.clone(),
        }
    }
}

impl fmt::Display for AuditPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.format(&Rfc3339).map_err(|_| fmt::Error)?;
        write!(f, "{time}/{}/{}/{}", self.host, self.seq, self.hash)
    }
}

impl FromStr for AuditPlace {
    type Err = Misplaced;

    /// # Errors
    /// Text that is not of that form.
    fn from_str(text: &str) -> Result<Self, Misplaced> {
        let place = || {
            let mut parts = text.split('/');
            let place = Self {
                time: OffsetDateTime::parse(parts.next()?, &Rfc3339).ok()?,
                host: parts.next()?.parse().ok()?,
                seq: parts.next()?.parse().ok()?,
                hash: parts.next()?.to_owned(),
            };
            parts.next().is_none().then_some(place)
        };
        place().ok_or(Misplaced)
    }
}

/// Text that names no place of an audit record.
#[derive(Debug, thiserror::Error)]
#[error("a place in the audit log is written TIME/HOST/SEQ/HASH, as the record has them")]
pub struct Misplaced;

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_model::audit::{AuditAction, AuditEvent};

    #[test]
    fn an_audit_record_stands_where_its_text_says() {
        let event = AuditEvent {
            time: OffsetDateTime::from_unix_timestamp_nanos(1_790_000_000_123_456_789)
                .expect("a time"),
            host: "a".parse().expect("a name"),
            actor: "controller".to_owned(),
            action: AuditAction::Open,
            vm: None,
            guardian: None,
            reason: String::new(),
            job: None,
        };
        let record = AuditRecord::chain(None, event);
        let cursor = record.cursor();
        assert_eq!(
            cursor.parse::<AuditPlace>().ok(),
            Some(AuditPlace::of(&record))
        );
        let value = serde_json::to_value(&record).expect("JSON");
        assert_eq!(value.cursor(), cursor);
        for bad in [
            "",
            "a/7",
            "2026-01-01T00:00:00Z/a/7",
            "2026-01-01T00:00:00Z/a/7/0/0",
        ] {
            assert!(bad.parse::<AuditPlace>().is_err(), "{bad}");
        }
    }
}
