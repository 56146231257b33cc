//! The identity in a certificate: the controller, a host or an administrator of one fleet.
//!
//! The identity is a URI in the certificate's subject alternative name, never its subject or a DNS name:
//! ```text
//! fleetward://fleet/<fleet id>/controller
//! fleetward://fleet/<fleet id>/host/<host name>
//! fleetward://fleet/<fleet id>/admin/<name>?role=<viewer|operator|keeper|admin>
//! ```
//! This module converts between these URIs and types. [`trust`](crate::trust) verifies certificates.

use fleetward_model::HostName;
use fleetward_model::role::Role;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const SCHEME: &str = "fleetward://fleet/";
const MAX_ADMIN_NAME: usize = 63;

/// One fleet: a random uuid chosen with its authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FleetId(pub Uuid);

impl FleetId {
    /// A new random fleet id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The URI in the authority's own certificate.
    pub fn to_uri(self) -> String {
        format!("{SCHEME}{}", self.0)
    }

    /// Reads the URI of an authority's certificate.
    pub fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        uri.strip_prefix(SCHEME)
            .and_then(parse_canonical_uuid)
            .ok_or_else(|| IdentityError::unknown(uri))
    }
}

impl fmt::Display for FleetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of an administrator in a certificate: letters, digits, `.`, `_`, `-` and `@`, 1 to 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AdminName(String);

impl AdminName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AdminName {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts_well && text.len() <= MAX_ADMIN_NAME && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdentityError::AdminName)
        }
    }
}

impl TryFrom<String> for AdminName {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<AdminName> for String {
    fn from(name: AdminName) -> Self {
        name.0
    }
}

impl fmt::Display for AdminName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A member of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The one service administrators talk to.
    Controller,
    /// The agent of a host.
    Host(HostName),
    /// A person or a script of theirs.
    Admin {
        /// Who.
        name: AdminName,
        /// With which rights.
        role: Role,
    },
}

impl Identity {
    /// The URI for this member of `fleet`.
    pub fn to_uri(&self, fleet: FleetId) -> String {
        match self {
            Self::Controller => format!("{SCHEME}{fleet}/controller"),
            Self::Host(name) => format!("{SCHEME}{fleet}/host/{name}"),
            Self::Admin { name, role } => format!("{SCHEME}{fleet}/admin/{name}?role={role}"),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => write!(f, "the controller"),
            Self::Host(name) => write!(f, "host {name}"),
            Self::Admin { name, role } => write!(f, "administrator {name} ({role})"),
        }
    }
}

/// An identity together with the fleet it belongs to, as a certificate states it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FleetIdentity {
    /// The fleet.
    pub fleet: FleetId,
    /// The member.
    pub identity: Identity,
}

impl FleetIdentity {
    /// Reads the identity from a certificate (DER). The caller verifies the certificate.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        single_uri(der)?.parse()
    }
}

impl FromStr for FleetIdentity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let unknown = || IdentityError::unknown(uri);
        let rest = uri.strip_prefix(SCHEME).ok_or_else(unknown)?;
        let (fleet, member) = rest.split_once('/').ok_or_else(unknown)?;
        let fleet = parse_canonical_uuid(fleet).ok_or_else(unknown)?;
        let identity = match member.split_once('/') {
            None if member == "controller" => Identity::Controller,
            Some(("host", name)) => Identity::Host(name.parse().map_err(|_| unknown())?),
            Some(("admin", rest)) => {
                let (name, role) = rest.split_once("?role=").ok_or_else(unknown)?;
                Identity::Admin {
                    name: name.parse()?,
                    role: role.parse().map_err(|_| IdentityError::Role)?,
                }
            }
            _ => return Err(unknown()),
        };
        Ok(Self { fleet, identity })
    }
}

/// Reads the fleet id from an authority's certificate (DER).
pub(crate) fn fleet_of_authority(der: &[u8]) -> Result<FleetId, IdentityError> {
    FleetId::from_uri(&single_uri(der)?)
}

/// The only subject alternative name of a certificate, which must be a URI. With two names, two readers of one
/// certificate could see different identities.
fn single_uri(der: &[u8]) -> Result<String, IdentityError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| IdentityError::Certificate)?;
    if !rest.is_empty() {
        return Err(IdentityError::Certificate);
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityError::Certificate)?
        .ok_or(IdentityError::Missing)?;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => Ok((*uri).to_owned()),
        _ => Err(IdentityError::Missing),
    }
}

/// Accepts only the canonical form; upper case, braces and missing hyphens are refused.
fn parse_canonical_uuid(text: &str) -> Option<FleetId> {
    let id = Uuid::parse_str(text).ok()?;
    (id.to_string() == text).then_some(FleetId(id))
}

/// Why a certificate or text does not name a member of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are no X.509 certificate.
    #[error("not a readable certificate")]
    Certificate,
    /// There is not exactly one URI among the certificate's names.
    #[error("the certificate carries no fleet identity")]
    Missing,
    /// The URI is none of ours.
    #[error("{uri:?} is no identity of a fleet")]
    Unknown {
        /// What was read, at most 200 characters of it.
        uri: String,
    },
    /// An administrator's name with forbidden characters or length.
    #[error(
        "an administrator's name starts with a letter or digit, holds only letters, digits, '.', '_', '-' and '@', and has at most {MAX_ADMIN_NAME} characters"
    )]
    AdminName,
    /// No such role.
    #[error("a role is one of viewer, operator, keeper, admin")]
    Role,
}

impl IdentityError {
    fn unknown(uri: &str) -> Self {
        Self::Unknown {
            uri: uri.chars().take(200).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identities() -> [Identity; 3] {
        [
            Identity::Controller,
            Identity::Host("host-1".parse().expect("name")),
            Identity::Admin {
                name: "kim@example.org".parse().expect("name"),
                role: Role::Keeper,
            },
        ]
    }

    #[test]
    fn every_identity_survives_its_uri() {
        let fleet = FleetId::random();
        for identity in identities() {
            let uri = identity.to_uri(fleet);
            let read: FleetIdentity = uri.parse().expect("own uri");
            assert_eq!(read, FleetIdentity { fleet, identity }, "{uri}");
        }
    }

    #[test]
    fn foreign_and_ambiguous_uris_are_refused() {
        let fleet = FleetId::random();
        for bad in [
            "".to_owned(),
            "https://example.org/".to_owned(),
            format!("fleetward://fleet/{fleet}"),
            format!("fleetward://fleet/{fleet}/"),
            format!("fleetward://fleet/{fleet}/controller/"),
            format!("fleetward://fleet/{fleet}/controller?role=admin"),
            format!("fleetward://fleet/{fleet}/host/"),
            format!("fleetward://fleet/{fleet}/host/../x"),
            format!("fleetward://fleet/{fleet}/host/a/b"),
            format!("fleetward://fleet/{fleet}/admin/kim"),
            format!("fleetward://fleet/{fleet}/admin/kim?role=root"),
            format!("fleetward://fleet/{fleet}/admin/kim?role=admin&role=viewer"),
            format!("fleetward://fleet/{}/controller", fleet.0.simple()),
            format!("FLEETWARD://fleet/{fleet}/controller"),
        ] {
            assert!(bad.parse::<FleetIdentity>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_panic(text in ".{0,300}") {
            let _ = text.parse::<FleetIdentity>();
        }

        #[test]
        fn any_bytes_as_certificate_are_refused_without_panic(bytes in proptest::collection::vec(0u8.., 0..500)) {
            proptest::prop_assert!(FleetIdentity::from_certificate(&bytes).is_err());
        }
    }
}
