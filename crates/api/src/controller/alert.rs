//! Alerts: what needs somebody now, and the targets that are told of it.

use fleetward_model::{AlertTargetName, ErrorCode, Failure};
use serde::{Deserialize, Serialize};
use std::fmt;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;
use zeroize::Zeroize;

/// One thing that needs somebody. The body of a webhook has the same fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertView {
    /// The same whenever this alert is told, its end included.
    pub id: Uuid,
    pub code: ErrorCode,
    /// What it is about: `host a`, `VM web`, `job vm-start of web`, `fleet`.
    pub subject: String,
    /// When the controller noticed it first.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// When it was over; none while it lasts.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended: Option<OffsetDateTime>,
    pub message: String,
    /// A command or a sentence.
    pub fix: String,
}

/// `POST /v1/alert-targets`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertTargetRequest {
    pub name: AlertTargetName,
    pub way: AlertWay,
    /// Only alerts with these codes; empty: all.
    #[serde(default)]
    pub codes: Vec<ErrorCode>,
}

/// How a target is told.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertWay {
    Webhook(Webhook),
    Mail(Mail),
}

/// A POST with a JSON body.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// `https://...`; `http://` only to a loopback address. Lists show it without path, query and user.
    #[schema(value_type = String)]
    pub url: Secret,
    /// What messages are signed with, 16 to 1,024 bytes; none: they are not signed.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub secret: Option<Secret>,
    /// PEM. The authorities to believe; none: those of the controller's machine.
    #[serde(default)]
    pub ca: Option<String>,
}

/// A mail by SMTP.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// Who gets it, at most 20.
    pub to: Vec<String>,
    pub from: String,
    /// `host:port` of the server.
    pub smtp: String,
    #[serde(default)]
    pub tls: MailTls,
    #[serde(default)]
    pub user: Option<String>,
    /// At most 1,024 bytes.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub password: Option<Secret>,
    /// PEM. The authorities to believe; none: those of the controller's machine.
    #[serde(default)]
    pub ca: Option<String>,
}

/// How the connection to a mail server is protected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MailTls {
    /// It begins in plain text, and goes no further without TLS (RFC 3207).
    #[default]
    Starttls,
    /// TLS from the first byte (RFC 8314).
    Tls,
    /// No TLS; only to a loopback address.
    None,
}

/// A text that is not shown: `Debug` leaves it out, and its memory is wiped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for whoever sends or signs with it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A target in lists; never its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertTargetView {
    pub name: AlertTargetName,
    pub kind: AlertKind,
    /// Scheme and host of a webhook, or the addresses of a mail.
    pub to: String,
    /// Of a mail: its server.
    pub by: Option<String>,
    /// Whether messages are signed (webhook), or the server is given a password (mail).
    pub secret: bool,
    /// Only alerts with these codes; empty: all.
    pub codes: Vec<ErrorCode>,
    #[serde(with = "time::serde::rfc3339")]
    pub added: OffsetDateTime,
    pub added_by: String,
    /// When it last took a message, since the controller was started.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_told: Option<OffsetDateTime>,
    /// Alerts and ends of alerts that it has not been told.
    pub waiting: u32,
    /// Why it took nothing at the last try; none where it did.
    pub failure: Option<Failure>,
}

/// The kinds of targets.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(const_into_str, serialize_all = "snake_case")]
pub enum AlertKind {
    Webhook,
    Mail,
}
