//! `fleetward-agent guardian list`: certificates, halves that wait for the other half, and the VMs that depend on each
//! guardian.

use fleetward_agent::Config;
use fleetward_agent::keyring::{Dependent, Keyring};
use fleetward_hypervisor::Hypervisor;
use fleetward_hypervisor_libvirt::{LibvirtConfig, LibvirtHost};
use fleetward_model::guardian::{CertificateFacts, CertificateRole, GuardianFacts};
use fleetward_model::host::Accelerator;
use fleetward_model::{GuardianId, HostName, certutil};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use time::OffsetDateTime;

/// How long libvirt may take to say how the VMs are called.
const NAMES: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
    Yaml,
    /// As `certutil -store` prints it, for scripts that read that.
    Certutil,
}

/// A row, as the command line's contract names its fields.
#[derive(Debug, Serialize)]
struct Row {
    /// None for half a guardian, which is none yet.
    guardian: Option<GuardianId>,
    role: CertificateRole,
    /// `own`, `retired`, `imported`; `waiting` for half a guardian.
    standing: &'static str,
    serial: String,
    sha1: String,
    sha256: String,
    subject: String,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
    days_left: i64,
    has_private_key: bool,
    host: HostName,
    /// The VMs of this host whose key is wrapped for it: their names, or ids while libvirt does not answer.
    vms: Vec<String>,
}

/// What the list is made of.
pub(super) struct Found {
    pub(super) host: HostName,
    pub(super) guardians: Vec<GuardianFacts>,
    pub(super) halves: Vec<CertificateFacts>,
    pub(super) dependents: Vec<Dependent>,
    /// By id.
    pub(super) names: BTreeMap<String, String>,
}

impl Found {
    pub(super) fn new(
        keyring: &Keyring,
        host: HostName,
        dependents: Vec<Dependent>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            host,
            guardians: keyring.facts(),
            halves: keyring.halves()?,
            dependents,
            names: BTreeMap::new(),
        })
    }

    fn vms(&self, guardian: &GuardianId) -> Vec<String> {
        let hang = |dependent: &&Dependent| {
            dependent.removed.is_none() && dependent.guardians.contains(guardian)
        };
        let name = |dependent: &Dependent| {
            let id = &dependent.vm;
            self.names.get(id).unwrap_or(id).clone()
        };
        let mut vms: Vec<_> = self.dependents.iter().filter(hang).map(name).collect();
        vms.sort();
        vms
    }

    fn rows(&self, now: OffsetDateTime) -> Vec<Row> {
        let mut rows = Vec::new();
        for guardian in &self.guardians {
            for certificate in &guardian.certificates {
                rows.push(Row {
                    guardian: Some(guardian.id.clone()),
                    standing: guardian.standing.into_str(),
                    has_private_key: guardian.has_private_key,
                    vms: self.vms(&guardian.id),
                    ..self.row(certificate, now)
                });
            }
        }
        let waiting = self.halves.iter();
        rows.extend(waiting.map(|certificate| self.row(certificate, now)));
        rows
    }

    fn row(&self, certificate: &CertificateFacts, now: OffsetDateTime) -> Row {
        Row {
            guardian: None,
            role: certificate.role,
            standing: "waiting",
            serial: certificate.serial.clone(),
            sha1: certificate.sha1.clone(),
            sha256: certificate.sha256.clone(),
            subject: certificate.subject.clone(),
            not_after: certificate.not_after,
            days_left: (certificate.not_after - now).whole_days(),
            has_private_key: true,
            host: self.host.clone(),
            vms: Vec::new(),
        }
    }
}

/// What the VMs of this host are called, by id. Nothing while libvirt does not answer: lists then show ids.
pub(crate) async fn vm_names(config: &Config) -> BTreeMap<String, String> {
    let Ok(program) = std::env::current_exe() else {
        return BTreeMap::new();
    };
    let libvirt = LibvirtHost::start(LibvirtConfig {
        uri: config.libvirt_uri.clone(),
        accelerator: Accelerator::Tcg,
        run_dir: config.run_dir.clone(),
        memory_reserve: config.memory_reserve,
        ek_certificate_tool: program,
    });
    let Ok(libvirt) = libvirt else {
        return BTreeMap::new();
    };
    let ask = async {
        loop {
            // Unavailable until the connection stands.
            if let Ok(domains) = libvirt.list().await {
                return domains;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let domains = tokio::time::timeout(NAMES, ask).await.unwrap_or_default();
    domains
        .into_iter()
        .map(|domain| (domain.id.to_string(), domain.name.to_string()))
        .collect()
}

pub(super) fn print(found: &Found, output: Output) -> anyhow::Result<()> {
    let rows = found.rows(OffsetDateTime::now_utc());
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Yaml => print!("{}", serde_norway::to_string(&rows)?),
        Output::Certutil => print!("{}", listing(found)),
        Output::Table => print!("{}", table(&rows)),
    }
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let line = |cells: [&str; 8]| {
        let [guardian, role, standing, serial, sha1, end, days, vms] = cells;
        format!(
            "{guardian:<14}{role:<12}{standing:<10}{serial:<34}{sha1:<42}{end:<12}{days:>5}  {vms}"
        )
        .trim_end()
        .to_owned()
    };
    let mut text = line([
        "GUARDIAN",
        "ROLE",
        "IS",
        "SERIAL",
        "SHA1",
        "NOT AFTER",
        "DAYS",
        "VMS",
    ]);
    for row in rows {
        text.push('\n');
        text.push_str(&line([
            row.guardian
                .as_ref()
                .map_or("-", |guardian| guardian.short()),
            role(row.role),
            row.standing,
            &row.serial,
            &row.sha1,
            &row.not_after.date().to_string(),
            &row.days_left.to_string(),
            &vms(&row.vms),
        ]));
    }
    text.push('\n');
    text
}

/// As many names as a line has room for.
fn vms(names: &[String]) -> String {
    match names {
        [] => "-".into(),
        [first, second, third, rest @ ..] if !rest.is_empty() => {
            format!("{first} {second} {third} and {} more", rest.len())
        }
        names => names.join(" "),
    }
}

fn role(role: CertificateRole) -> &'static str {
    match role {
        CertificateRole::Signing => "signing",
        CertificateRole::Encryption => "encryption",
    }
}

/// The layout of `certutil -store`.
fn listing(found: &Found) -> String {
    let whole = found.guardians.iter().flat_map(|guardian| {
        let certificates = guardian.certificates.iter();
        certificates.map(|certificate| (certificate, guardian.has_private_key))
    });
    let halves = found.halves.iter().map(|certificate| (certificate, true));
    certutil::listing(
        whole
            .chain(halves)
            .map(|(certificate, has_private_key)| certutil::Entry {
                role: certificate.role,
                serial: &certificate.serial,
                sha1: &certificate.sha1,
                sha256: &certificate.sha256,
                subject: &certificate.subject,
                issuer: &certificate.issuer,
                not_before: Some(certificate.not_before),
                not_after: certificate.not_after,
                has_private_key,
                host: &found.host,
            }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn certificate(role: CertificateRole, subject: &str, issuer: &str) -> CertificateFacts {
        CertificateFacts {
            role,
            serial: "6580b51eade101bb819890ec9f6d812c".into(),
            sha1: "2a5c25ad2f532f3cfd78827d04a7cbb92e8dafb7".into(),
            sha256: "ab".repeat(32),
            subject: subject.into(),
            issuer: issuer.into(),
            not_before: datetime!(2026-11-24 04:47 UTC),
            not_after: datetime!(2036-11-23 13:05 UTC),
            der_base64: String::new(),
        }
    }

    #[test]
    fn a_half_is_listed_as_waiting_and_as_no_guardian() {
        let id: GuardianId = "cd".repeat(32).parse().expect("id");
        let host: HostName = "b".parse().expect("name");
        let dependent = |vm: &str, removed: Option<&str>| Dependent {
            vm: vm.into(),
            removed: removed.map(Into::into),
            guardians: vec![id.clone()],
        };
        let found = Found {
            host: host.clone(),
            guardians: vec![GuardianFacts {
                id: id.clone(),
                host,
                own: true,
                standing: fleetward_model::guardian::GuardianStanding::Own,
                has_private_key: true,
                certificates: vec![certificate(CertificateRole::Signing, "CN=a", "CN=a")],
            }],
            halves: vec![certificate(CertificateRole::Signing, "CN=h", "CN=h")],
            dependents: vec![
                dependent("id-1", None),
                dependent("id-2", None),
                dependent("id-3", Some("then")),
            ],
            names: BTreeMap::from([("id-1".to_owned(), "desk1".to_owned())]),
        };
        // A half has its key, and scripts for certutil find it behind the whole ones.
        let text = listing(&found);
        assert!(
            text.contains("================ Certificate 1 ================\n"),
            "{text}"
        );
        assert!(text.contains("Subject: CN=h\n"), "{text}");
        assert_eq!(text.matches("Signature test passed\n").count(), 2, "{text}");
        let rows = found.rows(datetime!(2026-11-24 12:00 UTC));
        let yaml: serde_json::Value =
            serde_norway::from_str(&serde_norway::to_string(&rows).expect("yaml")).expect("read");
        assert_eq!(yaml, serde_json::to_value(&rows).expect("json"));
        assert_eq!(rows[0].vms, ["desk1", "id-2"]);
        assert_eq!((rows[0].standing, rows[1].standing), ("own", "waiting"));
        assert!(rows[1].guardian.is_none() && rows[1].vms.is_empty());
        let text = table(&rows);
        assert!(text.contains("desk1 id-2\n"), "{text}");
        assert!(
            text.lines().last().expect("line").starts_with("-  "),
            "{text}"
        );
    }
}
