//! Tables for terminals: aligned columns, short ids, sizes with units, no frames.

mod alerts;
mod ek;
mod layout;
pub(crate) mod usage;
mod vms;

use crate::messages;
use crate::plain;
use fleetward_api::controller::NetworkView;
use fleetward_api::controller::{
    AdminCertificate, AdminStanding, ApiTokenStanding, ApiTokenView, CheckView, ClaimView,
    CodeCount, EkStanding, EscrowView, GuardianView, HostCheckView, HostView, ImageView,
    JobKindView, JobView, Status, StepView, TemplateView, UserView, VmView,
};
use fleetward_api::tpm::TpmVersion;
use fleetward_model::change::ChangeKind;
use fleetward_model::error::Finding;
use fleetward_model::guardian::CertificateRole;
use fleetward_model::host::{Confinement, Version};
use fleetward_model::network::NicObserved;
use fleetward_model::{ByteSize, ErrorCode, GroupName, GuardianId, HostName, JobId};
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

pub(crate) use alerts::{alert_targets, alerts};
pub(crate) use ek::{ek_authorities, ek_certificate, ek_certificates};
pub(crate) use layout::Widths;
pub(crate) use vms::{kept_tpms, secure_boot, tpm_versions, tpms, vm, vms};

use layout::{Rows, Sheet};

/// What stands where there is nothing.
const NONE: &str = "-";

pub(crate) fn hosts(hosts: &[HostView]) -> String {
    let mut table = Rows::new(&[
        "NAME",
        "GROUP",
        "STATE",
        "ADDRESS",
        ">VMS",
        ">CPUS",
        ">MEMORY",
        ">FREE",
        "RUNS ON",
        "QEMU",
        "SWTPM",
        "CERTIFICATE UNTIL",
        ">WARNINGS",
    ]);
    for host in hosts {
        let fact = |of: &dyn Fn(&fleetward_model::host::HostFacts) -> String| {
            host.facts.as_ref().map_or_else(|| NONE.to_owned(), of)
        };
        table.add([
            host.name.to_string(),
            host.group.to_string(),
            host.state.into_str().to_owned(),
            or_none(host.address.as_deref()),
            host.vms.to_string(),
            fact(&|f| f.cpus.to_string()),
            fact(&|f| f.memory.to_string()),
            fact(&|f| f.memory_available.to_string()),
            fact(&|f| f.accelerator.into_str().to_owned()),
            fact(&|f| f.versions.qemu.to_string()),
            fact(&|f| or_none(f.versions.swtpm)),
            or_none(host.certificate.as_ref().map(|one| day(one.not_after))),
            count(host.warnings.len()),
        ]);
    }
    let of = hosts.iter().map(|host| (&host.name, &host.warnings));
    table.text() + &warnings_below(of)
}

/// An older one leaves its TPM as after a power cut when QEMU crashes or is killed.
fn swtpm_word(version: Option<Version>) -> String {
    const ENDS_IN_ORDER: Version = Version::new(0, 8, 0);
    match version {
        Some(older) if older < ENDS_IN_ORDER => format!(
            "{older}; 0.8 or later is recommended: with it a crash of QEMU does not count towards the lockout of a VM's TPM"
        ),
        version => or_none(version),
    }
}

pub(crate) fn host(host: &HostView) -> String {
    let mut sheet = Sheet::default();
    sheet.add("Name", &host.name);
    sheet.add("Group", &host.group);
    sheet.add("State", host.state.into_str());
    sheet.add("Address", or_none(host.address.as_deref()));
    sheet.add("Last seen", moment_or_none(host.last_seen));
    sheet.add("VMs", host.vms);
    if let Some(usage) = &host.usage {
        sheet.add("Uses now", usage::line(usage));
    }
    if let Some(certificate) = &host.certificate {
        let end = moment(certificate.not_after);
        sheet.add(
            "Certificate",
            format!("{}, until {end}", certificate.serial),
        );
    }
    if let Some(facts) = &host.facts {
        let versions = &facts.versions;
        sheet.add(
            "CPUs",
            format!("{} ({}, {})", facts.cpus, facts.cpu_model, facts.arch),
        );
        sheet.add(
            "Memory",
            format!("{}, {} free", facts.memory, facts.memory_available),
        );
        sheet.add("Runs VMs with", facts.accelerator.into_str());
        sheet.add(
            "Secure Boot",
            if facts.secure_boot {
                "available"
            } else {
                "missing"
            },
        );
        if let Some(confinement) = facts.confinement {
            sheet.add(
                "Confines VMs",
                match confinement {
                    Confinement::Apparmor => "with AppArmor",
                    Confinement::Selinux => "with SELinux",
                    Confinement::None => {
                        "no: libvirt has no security driver, so all VMs' processes may do what their users may"
                    }
                },
            );
        }
        sheet.add("libvirt", versions.libvirt);
        sheet.add("QEMU", versions.qemu);
        sheet.add("swtpm", swtpm_word(versions.swtpm));
        sheet.add("libtpms", or_none(versions.libtpms));
        sheet.add("Agent", &versions.agent);
        let ready = facts.tpm_pool;
        sheet.add(
            "TPMs ready",
            match facts.tpm_pool_most.filter(|most| *most > ready) {
                Some(most) => format!("{ready}, up to {most} while the host is at rest"),
                None => ready.to_string(),
            },
        );
        if let Some(boot) = &facts.boot {
            sheet.add(
                "Boot",
                format!(
                    "noticed {}; VMs that came back: {}, that wait: {}",
                    moment(boot.noticed),
                    boot.started,
                    boot.waiting
                ),
            );
            for off in &boot.off {
                sheet.add(&format!("  {} stayed off", off.vm), &off.because);
            }
        }
        for pool in &facts.pools {
            sheet.add(
                &format!("Pool {}", pool.name),
                format!(
                    "{}, {} of {} free",
                    pool.path, pool.available, pool.capacity
                ),
            );
        }
        for network in &facts.networks {
            let mut text = format!(
                "{} {}",
                network.place.kind(),
                network.place.bridge().unwrap_or(NONE)
            );
            let is_default = network.name == facts.default_network;
            for (word, applies) in [
                ("VLANs", network.vlans),
                ("clean-traffic", network.filters),
                ("default", is_default),
            ] {
                if applies {
                    text.push_str(&format!(", {word}"));
                }
            }
            if let Some(problem) = &network.problem {
                text.push_str(&format!("; cannot be used: {problem}"));
            }
            sheet.add(&format!("Network {}", network.name), text);
        }
        for guardian in &facts.guardians {
            let until = guardian.not_after().map_or_else(|| NONE.to_owned(), day);
            let kind = guardian.standing.into_str();
            sheet.add(
                "Guardian",
                format!("{}, {kind}, until {until}", guardian.id.short()),
            );
        }
    }
    for warning in &host.warnings {
        sheet.add("Warning", warning);
    }
    sheet.text()
}

pub(crate) fn images(images: &[ImageView]) -> String {
    let mut table = Rows::new(&["NAME", "FORMAT", ">FILE", ">DISK", "SHA256", "IMPORTED"]);
    for image in images {
        table.add([
            image.name.to_string(),
            image.format.clone(),
            ByteSize(image.size_bytes).to_string(),
            ByteSize(image.virtual_size_bytes).to_string(),
            short(&image.sha256),
            moment(image.imported),
        ]);
    }
    table.text()
}

pub(crate) fn networks(networks: &[NetworkView]) -> String {
    let mut table = Rows::new(&[
        "NETWORK", "HOST", "KIND", "BRIDGE", "VLANS", "DEFAULT", "PROBLEM",
    ]);
    let word = |yes: bool| if yes { "yes" } else { NONE };
    for network in networks {
        for on_host in &network.hosts {
            table.add([
                network.name.to_string(),
                on_host.host.to_string(),
                on_host.place.kind().to_owned(),
                on_host.place.bridge().unwrap_or(NONE).to_owned(),
                word(on_host.vlans).to_owned(),
                word(on_host.default).to_owned(),
                on_host.problem.clone().unwrap_or_else(|| NONE.to_owned()),
            ]);
        }
    }
    table.text()
}

pub(crate) fn templates(templates: &[TemplateView]) -> String {
    let mut table = Rows::new(&[
        "NAME", "PROFILE", ">CPUS", ">MEMORY", ">DISKS", "FROM", "CREATED",
    ]);
    for template in templates {
        let size = template.disks.iter().map(|disk| disk.size.bytes()).sum();
        table.add([
            template.name.to_string(),
            template.profile.to_string(),
            template.cpus.to_string(),
            template.memory_bytes.to_string(),
            ByteSize(size).to_string(),
            template.from.to_string(),
            moment(template.created),
        ]);
    }
    table.text()
}

pub(crate) fn admins(admins: &[AdminCertificate]) -> String {
    let mut table = Rows::new(&[
        "NAME", "ROLE", "STANDING", "SERIAL", "MADE", "UNTIL", "MADE BY",
    ]);
    for one in admins {
        let standing = match one.standing {
            AdminStanding::Good => "good",
            AdminStanding::Ended => "ended",
            AdminStanding::Revoked => "revoked",
        };
        table.add([
            one.name.clone(),
            one.role.into_str().to_owned(),
            standing.to_owned(),
            one.certificate.serial.to_string(),
            moment(one.made),
            moment(one.certificate.not_after),
            one.made_by.clone(),
        ]);
    }
    table.text()
}

pub(crate) fn users(users: &[UserView]) -> String {
    let mut table = Rows::new(&[
        "NAME",
        "ROLE",
        "GROUPS",
        "SESSIONS",
        "LAST LOGIN",
        "MADE",
        "MADE BY",
    ]);
    for one in users {
        table.add([
            one.name.to_string(),
            one.role.into_str().to_owned(),
            groups(one.groups.as_ref()),
            one.sessions.to_string(),
            one.last_login.map_or_else(|| "never".to_owned(), moment),
            moment(one.made),
            one.made_by.clone(),
        ]);
    }
    table.text()
}

/// In which groups a role holds.
fn groups(limits: Option<&BTreeSet<GroupName>>) -> String {
    let names = limits.map(|groups| groups.iter().map(GroupName::as_str).collect::<Vec<_>>());
    names.map_or_else(|| "all".to_owned(), |names| names.join(","))
}

pub(crate) fn api_tokens(tokens: &[ApiTokenView]) -> String {
    let mut table = Rows::new(&[
        "NAME",
        "ROLE",
        "GROUPS",
        "STANDING",
        "LAST USED",
        "UNTIL",
        "MADE",
        "MADE BY",
    ]);
    for one in tokens {
        let standing = match one.standing {
            ApiTokenStanding::Good => "good",
            ApiTokenStanding::Ended => "ended",
            ApiTokenStanding::Early => "early",
        };
        table.add([
            one.name.to_string(),
            one.role.into_str().to_owned(),
            groups(one.groups.as_ref()),
            standing.to_owned(),
            one.last_used.map_or_else(|| "never".to_owned(), moment),
            moment(one.expires),
            moment(one.made),
            one.made_by.clone(),
        ]);
    }
    table.text()
}

pub(crate) fn template(template: &TemplateView) -> String {
    let mut text = templates(std::slice::from_ref(template));
    text.push('\n');
    let mut table = Rows::new(&["DISK", ">SIZE", ">FILE", "SHA256"]);
    for disk in &template.disks {
        table.add([
            disk.target.clone(),
            disk.size.to_string(),
            ByteSize(disk.file_bytes).to_string(),
            short(&disk.sha256),
        ]);
    }
    text.push_str(&table.text());
    text
}

/// VMs against hosts: `here`, `yes`, or why not, a star where there is something to know all the same; and below, each
/// finding once.
pub(crate) fn check_matrix(checks: &[CheckView]) -> String {
    let hosts: BTreeSet<&HostName> = checks.iter().map(|check| &check.to).collect();
    let mut rows: BTreeMap<_, BTreeMap<&HostName, String>> = BTreeMap::new();
    for check in checks {
        let star = if check.findings.is_empty() { "" } else { "*" };
        let word = match check.code {
            _ if check.possible && check.from == check.to => format!("here{star}"),
            _ if check.possible => format!("yes{star}"),
            Some(code) => code.to_string(),
            None => "no".to_owned(),
        };
        rows.entry((&check.vm, &check.from))
            .or_default()
            .insert(&check.to, word);
    }
    let mut heading = vec!["VM".to_owned(), "ON".to_owned()];
    heading.extend(hosts.iter().map(ToString::to_string));
    let mut table = Rows::with_heading(heading);
    for ((vm, from), words) in rows {
        let mut row = vec![vm.to_string(), from.to_string()];
        row.extend(hosts.iter().map(|host| or_none(words.get(host))));
        table.add(row);
    }
    let mut lines = vec![table.text()];
    let mut seen = BTreeSet::new();
    for blocking in [true, false] {
        let findings = checks.iter().flat_map(|check| &check.findings);
        for finding in findings.filter(|finding| finding.blocking == blocking) {
            if seen.insert((blocking, finding.code, &finding.what, &finding.fix)) {
                if seen.len() == 1 {
                    lines.push(String::new());
                }
                lines.extend(explained(finding, ""));
            }
        }
    }
    lines.join("\n")
}

/// Counts by host, and what keeps VMs where they are.
pub(crate) fn checked_hosts(hosts: &[HostCheckView]) -> String {
    let mut table = Rows::new(&[
        "HOST",
        "GROUP",
        "ONLINE",
        ">VMS",
        ">CAN START",
        ">CAN MOVE",
        "IN THE WAY OF OTHERS",
        "REMARKS",
    ]);
    for host in hosts {
        table.add([
            host.host.to_string(),
            host.group.to_string(),
            if host.online { "yes" } else { NONE }.to_owned(),
            host.vms.to_string(),
            host.can_start.to_string(),
            host.can_move.to_string(),
            code_counts(&host.in_the_way),
            code_counts(&host.remarks),
        ]);
    }
    let of = hosts.iter().map(|host| (&host.host, &host.warnings));
    table.text() + &warnings_below(of)
}

fn code_counts(counts: &[CodeCount]) -> String {
    let codes = counts
        .iter()
        .map(|count| format!("{} {}", count.vms, count.code));
    let codes = codes.collect::<Vec<_>>().join(", ");
    or_none(Some(codes).filter(|codes| !codes.is_empty()))
}

/// What there is to know of each of several hosts, below their table.
fn warnings_below<'a>(hosts: impl Iterator<Item = (&'a HostName, &'a Vec<String>)>) -> String {
    let mut text = String::new();
    let warnings = hosts.flat_map(|(host, warnings)| warnings.iter().map(move |one| (host, one)));
    for (n, (host, warning)) in warnings.enumerate() {
        text.push_str(if n == 0 { "\n\n" } else { "\n" });
        text.push_str(&format!("{host}: {}", plain::line(warning)));
    }
    text
}

/// A finding and its fix, a line each.
fn explained(finding: &Finding, indent: &str) -> [String; 2] {
    let remark = if finding.blocking { "" } else { " (a remark)" };
    [
        format!(
            "{indent}{}{remark}: {}",
            finding.code,
            plain::line(&finding.what)
        ),
        format!("{indent}  fix: {}", plain::line(&finding.fix)),
    ]
}

/// Each move with its findings: sentences, for which a table is too wide.
pub(crate) fn findings(checks: &[CheckView]) -> String {
    let mut lines = Vec::new();
    for check in checks {
        lines.push(match (check.possible, check.from == check.to) {
            (true, true) => messages::startable(&check.vm, &check.to),
            (true, false) => messages::movable(&check.vm, &check.to),
            (false, true) => messages::not_startable(&check.vm, &check.to),
            (false, false) => messages::not_movable(&check.vm, &check.from, &check.to),
        });
        for finding in &check.findings {
            lines.extend(explained(finding, "  "));
        }
    }
    lines.join("\n")
}

pub(crate) fn jobs(jobs: &[JobView]) -> String {
    let mut table = Rows::new(&[
        "ID", "KIND", "TARGET", "STATE", "STEP", "PROGRESS", "BY", "CREATED", "TOOK",
    ]);
    for job in jobs {
        table.add([
            job_id(job.id),
            job.kind.clone(),
            job.target.clone(),
            job.state.into_str().to_owned(),
            match &job.failure {
                Some(failure) => failure.code.to_string(),
                None => or_none(job.current.as_deref()),
            },
            or_none(progress(job)),
            job.created_by.clone(),
            moment(job.created),
            took(Some(job.created), job.ended),
        ]);
    }
    table.text()
}

pub(crate) fn job_kinds(kinds: &[JobKindView]) -> String {
    let mut table = Rows::new(&["KIND", "STEP", "UNDOABLE", "POINT OF NO RETURN"]);
    let mark = |yes: bool| if yes { "yes" } else { "" }.to_owned();
    for kind in kinds {
        for step in &kind.steps {
            table.add([
                kind.kind.clone(),
                step.name.clone(),
                mark(step.undoable),
                mark(step.point_of_no_return),
            ]);
        }
    }
    table.text()
}

pub(crate) fn job(job: &JobView) -> String {
    let mut sheet = Sheet::default();
    sheet.add("Id", job.id);
    sheet.add("Kind", &job.kind);
    sheet.add("Target", &job.target);
    sheet.add("State", job.state.into_str());
    sheet.add("By", &job.created_by);
    sheet.add("Created", moment(job.created));
    sheet.add("Ended", moment_or_none(job.ended));
    sheet.add("Took", took(Some(job.created), job.ended));
    if let Some(progress) = progress(job) {
        sheet.add("Progress", progress);
    }
    if let Some(reason) = &job.waiting {
        sheet.add("Waits", reason);
        if job.held_up && !job.cancellable {
            let how = format!(
                "it does not pass by itself; to give the job up: fleetward job give-up {}",
                job.id
            );
            sheet.add("", how);
        }
    }
    for warning in &job.warnings {
        sheet.add("Warning", warning);
    }
    if !job.state.has_ended() {
        sheet.add(
            "Cancellable",
            if job.cancellable {
                "yes"
            } else {
                "no, it can only go on"
            },
        );
    }
    if let Some(failure) = &job.failure {
        sheet.add("Failure", format!("{}: {}", failure.code, failure.what));
        sheet.add("  because", &failure.because);
        sheet.add("  fix", &failure.fix);
    }
    if let Some(result) = job.result.as_ref().filter(|result| !result.is_null()) {
        sheet.add("Result", result);
    }
    format!("{}\n\n{}", sheet.text(), steps(&job.steps))
}

/// How far the step at work has come, as far as it says so: of a bulk job how many VMs are done.
fn progress(job: &JobView) -> Option<String> {
    let progress = job.progress.as_ref().filter(|_| !job.state.has_ended())?;
    let percent = u128::from(progress.done.min(progress.total)) * 100;
    let percent = percent.checked_div(u128::from(progress.total));
    match (percent, progress.text.as_str()) {
        (None, "") => None,
        (None, text) => Some(text.to_owned()),
        (Some(percent), "") => Some(format!("{percent} %")),
        (Some(percent), text) => Some(format!("{percent} %, {text}")),
    }
}

fn steps(steps: &[StepView]) -> String {
    let mut table = Rows::new(&["STEP", "STATE", ">ATTEMPTS", "TOOK"]);
    for step in steps {
        table.add([
            step.name.clone(),
            step.state.clone(),
            step.attempts.to_string(),
            took(step.started, step.ended),
        ]);
    }
    table.text()
}

pub(crate) fn guardians(guardians: &[GuardianView]) -> String {
    let mut table = Rows::new(&[
        "GUARDIAN",
        "HOST",
        "ROLE",
        "SERIAL",
        "SHA1",
        "NOT AFTER",
        ">DAYS LEFT",
        "KEY",
        ">VMS",
    ]);
    for certificate in guardians {
        table.add([
            certificate.guardian.short().to_owned(),
            certificate.host.to_string(),
            role(certificate.role).to_owned(),
            certificate.serial.clone(),
            certificate.sha1.clone(),
            day(certificate.not_after),
            certificate.days_left.to_string(),
            (if certificate.has_private_key {
                "yes"
            } else {
                "no"
            })
            .to_owned(),
            certificate.vms.len().to_string(),
        ]);
    }
    table.text()
}

pub(crate) fn guardian(certificates: &[GuardianView]) -> String {
    let mut sheet = Sheet::default();
    if let Some(first) = certificates.first() {
        sheet.add("Guardian", &first.guardian);
        sheet.add("Host", &first.host);
        sheet.add(
            "Private keys",
            if first.has_private_key {
                "on that host"
            } else {
                "not on that host"
            },
        );
        let vms: Vec<&str> = first.vms.iter().map(|vm| vm.as_str()).collect();
        sheet.add(
            "VMs",
            if vms.is_empty() {
                NONE.to_owned()
            } else {
                vms.join(", ")
            },
        );
    }
    for certificate in certificates {
        sheet.blank();
        sheet.add("Certificate", role(certificate.role));
        sheet.add("Subject", &certificate.subject);
        sheet.add("Serial", &certificate.serial);
        sheet.add("SHA-1", &certificate.sha1);
        sheet.add("SHA-256", &certificate.sha256);
        sheet.add(
            "Not after",
            format!(
                "{} ({} days left)",
                moment(certificate.not_after),
                certificate.days_left
            ),
        );
    }
    sheet.text()
}

/// What a person asks first; the chain's hashes are in the JSON.
pub(crate) fn audit(records: &[serde_json::Value], widths: &mut Widths) -> String {
    let mut table = Rows::new(&["TIME", "HOST", "WHO", "ACTION", "VM", "GUARDIAN", "WHY"]);
    for record in records {
        let field = |name: &str| match record.get(name) {
            Some(serde_json::Value::String(text)) => text.clone(),
            None | Some(serde_json::Value::Null) => NONE.to_owned(),
            Some(other) => other.to_string(),
        };
        let time = field("time");
        let time = OffsetDateTime::parse(&time, &Rfc3339).map_or(time, moment);
        table.add([
            time,
            field("host"),
            field("actor"),
            field("action"),
            short(&field("vm")),
            short(&field("guardian")),
            field("reason"),
        ]);
    }
    table.part(widths)
}

pub(crate) fn status(status: &Status) -> String {
    let mut sheet = Sheet::default();
    sheet.add("Controller", &status.version);
    sheet.add("Fleet", &status.fleet);
    sheet.add("Authority", &status.authority);
    if let Some(ends) = status.authority_ends {
        sheet.add("Authority until", day(ends));
    }
    sheet.add("Trust", status.trust);
    sheet.add(
        "Hosts",
        format!("{} of {} online", status.hosts_online, status.hosts),
    );
    sheet.add("VMs", status.vms);
    sheet.add("Jobs running", status.jobs_running);
    if let Some(console) = &status.console {
        let kind = match console.self_made {
            true => "made here",
            false => "given",
        };
        sheet.add("Console", &console.url);
        sheet.add(
            "Its certificate",
            format!(
                "{kind}, until {}, SHA-256 {}",
                day(console.not_after),
                console.sha256
            ),
        );
    }
    let mut text = sheet.text();
    for finding in &status.findings {
        text.push_str(&format!(
            "\n\n{}: {}\n  fix: {}",
            finding.code, finding.what, finding.fix
        ));
    }
    text
}

pub(crate) fn codes(codes: &[ErrorCode]) -> String {
    let mut table = Rows::new(&["CODE", ">EXIT", "MEANING"]);
    for code in codes {
        table.add([
            code.to_string(),
            code.class().exit_code().to_string(),
            code.summary().to_owned(),
        ]);
    }
    table.text()
}

pub(crate) fn code(code: ErrorCode) -> String {
    let class = code.class();
    let mut sheet = Sheet::default();
    sheet.add("Code", code);
    sheet.add("Meaning", code.summary());
    sheet.add("Fix", code.usual_fix().documented());
    sheet.add("Exit code", class.exit_code());
    sheet.add("HTTP status", class.http_status());
    sheet.text()
}

fn role(role: CertificateRole) -> &'static str {
    match role {
        CertificateRole::Signing => "signing",
        CertificateRole::Encryption => "encryption",
    }
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

fn count(number: usize) -> String {
    if number == 0 {
        NONE.to_owned()
    } else {
        number.to_string()
    }
}

/// The first group of a uuid, or twelve digits of a digest: enough to name it to us again.
fn short(id: &str) -> String {
    let length = if id.get(8..9) == Some("-") { 8 } else { 12 };
    id.get(..length).unwrap_or(id).to_owned()
}

fn job_id(id: JobId) -> String {
    short(&id.to_string())
}

pub(crate) fn moment(at: OffsetDateTime) -> String {
    let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    at.to_offset(time::UtcOffset::UTC)
        .format(&form)
        .unwrap_or_else(|_| at.to_string())
}

fn moment_or_none(at: Option<OffsetDateTime>) -> String {
    at.map_or_else(|| NONE.to_owned(), moment)
}

fn day(at: OffsetDateTime) -> String {
    at.date().to_string()
}

fn took(from: Option<OffsetDateTime>, to: Option<OffsetDateTime>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => format!("{:.1} s", (to - from).as_seconds_f64()),
        _ => NONE.to_owned(),
    }
}
