//! Lists come in pages: what each list is asked with, and where each of its rows stands.
//!
//! A page holds at most `limit` rows, the first of them the one that follows `after`, which is the cursor of the last row of
//! the page before. A page with fewer rows is the last one. Without `limit` a list is given whole, so that programs which
//! were written before there were pages miss nothing; of jobs only the newest 1,000 are given then.

use crate::controller::{
    AdminCertificate, AuditQuery, EkAuthorityView, EkCertificateView, EkStanding, GuardianView,
    HostCheckQuery, HostCheckView, HostView, ImageView, JobState, JobView, NetworkView,
    TemplateView, VmQuery, VmView,
};
use fleetward_model::audit::AuditRecord;
use fleetward_model::certificate::Serial;
use fleetward_model::host::HostState;
use fleetward_model::{GroupName, HostName, VmName};
use serde::{Deserialize, Serialize};
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
}

/// Query of `GET /v1/images`, of `GET /v1/templates` and of `GET /v1/networks`.
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

/// Domains that Fleetward did not make may have the name of a VM on another host.
impl Row for VmView {
    fn cursor(&self) -> String {
        format!("{}/{}", self.name, self.host)
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
        format!("{}/{}", self.host, self.seq)
    }
}

/// Of records that are read as they are.
impl Row for serde_json::Value {
    fn cursor(&self) -> String {
        let host = self["host"].as_str().unwrap_or_default();
        format!("{host}/{}", self["seq"])
    }
}
