//! API tokens, by which programs come in, and the listener for them.

use crate::controller::Role;
use fleetward_model::{GroupName, TokenName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// `POST /v1/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiTokenRequest {
    pub name: TokenName,
    pub role: Role,
    /// The groups of hosts in which the role holds, for the roles viewer and operator; none: the whole fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<BTreeSet<GroupName>>,
    /// Seconds, 60 to 31,622,400 (366 days); default 90 days.
    #[serde(default = "ninety_days")]
    pub ttl_seconds: u32,
}

fn ninety_days() -> u32 {
    90 * 24 * 3600
}

/// An API token as it is made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiTokenMade {
    #[serde(flatten)]
    pub view: ApiTokenView,
    /// Shown once; goes into `Authorization: Bearer ...`.
    pub token: String,
    /// Where it is good; none while this controller has no listener for programs (`--console`).
    pub console: Option<ConsoleView>,
    /// PEM. Whom a client must trust to reach that listener; none when its certificate is not of the controller's making.
    pub console_certificate: Option<String>,
}

/// An API token in lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiTokenView {
    pub name: TokenName,
    pub role: Role,
    /// The groups of hosts in which the role holds; none: the whole fleet.
    #[serde(default)]
    pub groups: Option<BTreeSet<GroupName>>,
    pub standing: ApiTokenStanding,
    #[serde(with = "time::serde::rfc3339")]
    pub made: OffsetDateTime,
    /// Who had it made.
    pub made_by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires: OffsetDateTime,
    /// When it last came in; none: never. After a crash of the controller, a minute may be missing.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_used: Option<OffsetDateTime>,
}

/// Whether an API token lets anybody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApiTokenStanding {
    Good,
    /// Its time is over.
    Ended,
    /// It was made by a clock that was ahead, so that it would be good for too long.
    Early,
}

/// The listener for people and programs without a certificate of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsoleView {
    /// `https://ADDRESS:PORT`.
    pub url: String,
    /// SHA-256 of its certificate, hex.
    pub sha256: String,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// Whether the controller made the certificate, so that nobody vouches for it.
    pub self_made: bool,
}
