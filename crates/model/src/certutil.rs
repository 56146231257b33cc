//! Certificates in the layout of `certutil -store "Shielded VM Local Certificates"`, for scripts that read that.
//!
//! In English, as of Windows 10 and later; times are UTC. Lines and their order are certutil's. The values are those
//! of the guardian store: the provider is Fleetward's, and a container's unique name is derived from the certificate
//! and the host, because there is no container.

use crate::HostName;
use crate::guardian::CertificateRole;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

/// The store that Hyper-V keeps its guardians' certificates in.
const STORE: &str = "Shielded VM Local Certificates";

/// A certificate of the listing.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub role: CertificateRole,
    pub serial: &'a str,
    pub sha1: &'a str,
    pub sha256: &'a str,
    pub subject: &'a str,
    /// Empty where it is not known.
    pub issuer: &'a str,
    pub not_before: Option<OffsetDateTime>,
    pub not_after: OffsetDateTime,
    pub has_private_key: bool,
    pub host: &'a HostName,
}

/// What `certutil -store` would print.
pub fn listing<'a>(entries: impl IntoIterator<Item = Entry<'a>>) -> String {
    let mut text = format!("{STORE} \"{STORE}\"\n");
    for (number, entry) in entries.into_iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        block(&mut text, number, &entry).expect("a String takes everything");
    }
    text.push_str("CertUtil: -store command completed successfully.\n");
    text
}

fn block(text: &mut String, number: usize, entry: &Entry<'_>) -> std::fmt::Result {
    writeln!(
        text,
        "================ Certificate {number} ================"
    )?;
    writeln!(text, "Serial Number: {}", entry.serial)?;
    writeln!(text, "Issuer: {}", entry.issuer)?;
    if let Some(begin) = entry.not_before {
        writeln!(text, " NotBefore: {}", moment(begin))?;
    }
    writeln!(text, " NotAfter: {}", moment(entry.not_after))?;
    writeln!(text, "Subject: {}", entry.subject)?;
    if entry.issuer == entry.subject {
        text.push_str("Signature matches Public Key\nRoot Certificate: Subject matches Issuer\n");
    } else if !entry.issuer.is_empty() {
        text.push_str("Non-root Certificate\n");
    }
    writeln!(text, "Cert Hash(sha1): {}", entry.sha1)?;
    if !entry.has_private_key {
        text.push_str(
            "No key provider information\nCannot find the certificate and private key for decryption.\n",
        );
        return Ok(());
    }
    let (kind, test) = match entry.role {
        CertificateRole::Signing => ("signing", "Signature"),
        CertificateRole::Encryption => ("encryption", "Encryption"),
    };
    writeln!(text, "  Key Container = {kind}-{}", entry.serial)?;
    writeln!(text, "  Unique container name: {}", container(entry))?;
    writeln!(text, "  Provider = Fleetward guardian store")?;
    writeln!(text, "{test} test passed")
}

/// 32 hex digits of the certificate and a GUID of the machine, as Windows names the files of its keys.
fn container(entry: &Entry<'_>) -> String {
    let digits = entry.sha256.get(..32).unwrap_or(entry.sha256);
    let digest = Sha256::digest(entry.host.as_str());
    let mut machine = [0; 16];
    machine.copy_from_slice(&digest[..16]);
    format!("{digits}_{}", Uuid::from_bytes(machine))
}

/// As the English locale writes it: `11/23/2036 1:05 PM`.
fn moment(time: OffsetDateTime) -> String {
    let time = time.to_offset(UtcOffset::UTC);
    let (hour, period) = match time.hour() {
        0 => (12, "AM"),
        hour @ 1..12 => (hour, "AM"),
        12 => (12, "PM"),
        hour => (hour - 12, "PM"),
    };
    format!(
        "{}/{}/{} {hour}:{:02} {period}",
        u8::from(time.month()),
        time.day(),
        time.year(),
        time.minute()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn the_layout_is_certutils_line_by_line() {
        let host: HostName = "a".parse().expect("name");
        let own = "CN=Shielded VM Signing Certificate (UntrustedGuardian) (a)";
        let signing = Entry {
            role: CertificateRole::Signing,
            serial: "6580b51eade101bb819890ec9f6d812c",
            sha1: "2a5c25ad2f532f3cfd78827d04a7cbb92e8dafb7",
            sha256: "6c0e5f2d1b3a49788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0",
            subject: own,
            issuer: own,
            not_before: Some(datetime!(2026-11-24 00:47 UTC)),
            not_after: datetime!(2036-11-23 13:05 UTC),
            has_private_key: true,
            host: &host,
        };
        let issued = Entry {
            role: CertificateRole::Encryption,
            serial: "4c7a",
            subject: "CN=desk",
            issuer: "CN=Contoso CA",
            not_before: Some(datetime!(2026-11-24 12:00 +09:00)),
            ..signing
        };
        let public = Entry {
            issuer: "",
            not_before: None,
            has_private_key: false,
            ..issued
        };
        assert_eq!(
            listing([signing, issued, public]),
            "\
Shielded VM Local Certificates \"Shielded VM Local Certificates\"
================ Certificate 0 ================
Serial Number: 6580b51eade101bb819890ec9f6d812c
Issuer: CN=Shielded VM Signing Certificate (UntrustedGuardian) (a)
 NotBefore: 11/24/2026 12:47 AM
 NotAfter: 11/23/2036 1:05 PM
Subject: CN=Shielded VM Signing Certificate (UntrustedGuardian) (a)
Signature matches Public Key
Root Certificate: Subject matches Issuer
Cert Hash(sha1): 2a5c25ad2f532f3cfd78827d04a7cbb92e8dafb7
  Key Container = signing-6580b51eade101bb819890ec9f6d812c
  Unique container name: 6c0e5f2d1b3a49788796a5b4c3d2e1f0_ca978112-ca1b-bdca-fac2-31b39a23dc4d
  Provider = Fleetward guardian store
Signature test passed

================ Certificate 1 ================
Serial Number: 4c7a
Issuer: CN=Contoso CA
 NotBefore: 11/24/2026 3:00 AM
 NotAfter: 11/23/2036 1:05 PM
Subject: CN=desk
Non-root Certificate
Cert Hash(sha1): 2a5c25ad2f532f3cfd78827d04a7cbb92e8dafb7
  Key Container = encryption-4c7a
  Unique container name: 6c0e5f2d1b3a49788796a5b4c3d2e1f0_ca978112-ca1b-bdca-fac2-31b39a23dc4d
  Provider = Fleetward guardian store
Encryption test passed

================ Certificate 2 ================
Serial Number: 4c7a
Issuer: 
 NotAfter: 11/23/2036 1:05 PM
Subject: CN=desk
Cert Hash(sha1): 2a5c25ad2f532f3cfd78827d04a7cbb92e8dafb7
No key provider information
Cannot find the certificate and private key for decryption.
CertUtil: -store command completed successfully.
"
        );
    }

    #[test]
    fn an_empty_store_is_a_listing_too() {
        assert_eq!(listing([]).lines().count(), 2);
    }
}
