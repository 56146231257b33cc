//! The public description of a guardian: certificates without keys, for lists and preflight.

use crate::{GroupName, GuardianId, HostName};
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

/// From this long before a guardian's end, lists, checks and metrics warn.
pub const EXPIRY_WARNING: Duration = Duration::days(180);

/// A key protector holds one wrapping a guardian; beyond this many it grows unwieldy, and hosts of a larger group are granted a
/// VM's key only when it moves to them.
pub const MANY_GUARDIANS: usize = 50;

/// What is said of a group of that many hosts; none while there is room for all of them.
pub fn crowded(group: &GroupName, hosts: usize) -> Option<String> {
    (hosts > MANY_GUARDIANS).then(|| {
        format!(
            "group {group} has {hosts} hosts, and a TPM key is wrapped for at most {MANY_GUARDIANS} of them by itself: the \
             others are granted a VM's key when it moves to them"
        )
    })
}

/// What one of a guardian's two certificates is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateRole {
    Signing,
    Encryption,
}

/// One certificate of a guardian, described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateFacts {
    pub role: CertificateRole,
    /// Lower-case hex, no separators, as certutil prints it.
    pub serial: String,
    /// SHA-1 of the DER, 40 hex digits: certutil's "Cert Hash(sha1)".
    pub sha1: String,
    /// SHA-256 of the DER, 64 hex digits.
    pub sha256: String,
    pub subject: String,
    /// The subject, where the certificate is self-signed. Empty in what was written before this was noted.
    #[serde(default)]
    pub issuer: String,
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// The certificate itself, base64 of the DER.
    pub der_base64: String,
}

/// Who grants keys inside a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum TrustMode {
    /// Jobs wrap keys for the hosts of the VM's group by themselves.
    #[default]
    Auto,
    /// Only people do: by an explicit grant, or by carrying a guardian over as PFX files.
    Manual,
}

impl FromStr for TrustMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "manual" => Ok(Self::Manual),
            _ => Err(format!("{text:?} is neither auto nor manual")),
        }
    }
}

/// What a guardian with private keys is to the host that holds it.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum GuardianStanding {
    /// Owns the key protectors that are made here. Each host has one.
    #[default]
    Own,
    /// Was the host's own before a rotation; still opens what it was granted.
    Retired,
    /// Another host's, brought here as PFX files.
    Imported,
}

/// A guardian as its host reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuardianFacts {
    pub id: GuardianId,
    /// The host that made or holds it.
    pub host: HostName,
    /// The host's own guardian, which owns new key protectors; others were imported.
    pub own: bool,
    /// Own, retired or imported.
    #[serde(default)]
    pub standing: GuardianStanding,
    pub has_private_key: bool,
    /// Always two: signing, encryption.
    pub certificates: Vec<CertificateFacts>,
}

/// Allowance for hosts whose clocks differ: a guardian made "now" elsewhere is not too new here.
pub const CLOCK_TOLERANCE: Duration = Duration::minutes(5);

impl GuardianFacts {
    /// From when on the certificates are valid, where that has not come yet by the clock that says `now`.
    pub fn begins_after(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let begins = self.certificates.iter().map(|c| c.not_before).max()?;
        (begins > now + CLOCK_TOLERANCE).then_some(begins)
    }

    /// The earlier end of the two certificates' validity.
    pub fn not_after(&self) -> Option<OffsetDateTime> {
        self.certificates.iter().map(|c| c.not_after).min()
    }
}

/// A guardian that a host may be given to wrap for: its certificates and the authority's word for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndorsedGuardian {
    pub guardian: GuardianFacts,
    pub group: GroupName,
    /// The signed endorsement (`protector::endorsement`), opaque here.
    pub endorsement: String,
}
