//! People who log in with a password, and their sessions.

use crate::controller::Role;
use fleetward_model::{GroupName, UserName};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;
use std::fmt;
use time::OffsetDateTime;
use utoipa::ToSchema;
use zeroize::Zeroizing;

/// Fewest characters of a password that is chosen. Source: NIST SP 800-63B, section 3.1.1, asks for 8 and advises more; rules
/// on kinds of characters are not made, as it advises.
pub const MIN_PASSWORD: usize = 12;
/// Most bytes of a password.
pub const MAX_PASSWORD: usize = 256;

/// A password on its way: wiped when dropped, and never printed.
#[derive(Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(from = "String")]
#[schema(value_type = String, format = Password)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// The text itself, for whoever checks it or makes a hash of it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl Serialize for Password {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(redacted)")
    }
}

/// `POST /v1/users`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserRequest {
    pub name: UserName,
    pub role: Role,
    /// The groups of hosts in which the role holds, for the roles viewer and operator; none: the whole fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<BTreeSet<GroupName>>,
    /// At least 12 characters, at most 256 bytes.
    pub password: Password,
}

/// `PATCH /v1/users/{user}`: what is left out stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The groups of hosts in which the role holds; null: the whole fleet.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<BTreeSet<GroupName>>)]
    pub groups: Option<Option<BTreeSet<GroupName>>>,
    /// At least 12 characters, at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Password>,
}

/// What is there is given, also a null.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A user in lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UserView {
    pub name: UserName,
    pub role: Role,
    /// The groups of hosts in which the role holds; none: the whole fleet.
    pub groups: Option<BTreeSet<GroupName>>,
    #[serde(with = "time::serde::rfc3339")]
    pub made: OffsetDateTime,
    /// Who made the user.
    pub made_by: String,
    /// Sessions that are good now.
    pub sessions: usize,
    /// When the user last logged in; none: never.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_login: Option<OffsetDateTime>,
}

/// `POST /v1/session`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    pub user: UserName,
    pub password: Password,
}

/// `PUT /v1/session/password`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// The present one.
    pub password: Password,
    /// At least 12 characters, at most 256 bytes.
    pub new_password: Password,
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// As in the audit log: `user:kim`, `token:ci`, `admin:lee`, `local:0`.
    pub actor: String,
    pub role: Role,
    /// The groups of hosts in which the role holds; none: the whole fleet.
    pub groups: Option<BTreeSet<GroupName>>,
    /// When the session ends whatever happens; none where there is no session.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub expires: Option<OffsetDateTime>,
    /// Seconds without a request after which it ends, too.
    #[serde(default)]
    pub idle_seconds: Option<u32>,
}
