//! VMs and their TPMs.

use super::*;
use fleetward_api::controller::SecureBootView;
use fleetward_model::boot::{AfterBoot, Crashes};
use fleetward_model::guest::GuestObserved;
use fleetward_model::secure_boot::{CertificateState, SecureBootObserved};
use fleetward_model::vm::{DriveContent, Presence, TpmProcess};

pub(crate) fn vms(vms: &[VmView], widths: &mut Widths) -> String {
    let mut table = Rows::new(&[
        "NAME", "STATE", "HOST", ">CPUS", ">MEMORY", "TPM", "PROFILE", "ADDRESS", "LABELS", "ID",
    ]);
    for vm in vms {
        table.add([
            match vm.managed {
                true => vm.name.to_string(),
                false => foreign_name(vm),
            },
            state_word(vm),
            vm.host.to_string(),
            vm.cpus.to_string(),
            vm.memory_bytes.to_string(),
            tpm_word(vm).to_owned(),
            match vm.profile {
                Some(profile) => profile.to_string(),
                None if vm.newer.is_some() => "(newer)".to_owned(),
                None if vm.managed => NONE.to_owned(),
                None => "(not managed)".to_owned(),
            },
            or_none(vm.guest.as_ref().and_then(GuestObserved::first_address)),
            labels(vm),
            short(&vm.id.to_string()),
        ]);
    }
    table.part(widths)
}

/// Of a domain that Fleetward did not make: the name that commands take, and its own in quotes where that is another.
pub(super) fn foreign_name(vm: &VmView) -> String {
    match &vm.domain_name {
        Some(own) => format!("{} '{}'", vm.name, own.escape_debug()),
        None => vm.name.to_string(),
    }
}

/// The state, with what was last seen where it is unknown.
pub(super) fn state_word(vm: &VmView) -> String {
    if !vm.claims.is_empty() {
        return "disputed".to_owned();
    }
    match &vm.last_seen {
        Some(seen) => format!("{} (was {})", vm.state, seen.state),
        None => vm.state.to_string(),
    }
}

/// What one of several hosts says of a VM.
fn claim_word(claim: &ClaimView) -> String {
    let tpm = match (claim.tpm_known, &claim.ek_certificate) {
        (Some(true), _) => "the TPM of the controller's copies",
        (Some(false), _) => "another TPM than that of the controller's copies",
        (None, Some(_)) => "a TPM of which the controller has no copy",
        (None, None) => "no TPM",
    };
    let state = match claim.tpm_state_present {
        Some(false) => " (its state is not there)",
        Some(true) | None => "",
    };
    let made = match claim.managed {
        true => "",
        false => ", not made by Fleetward",
    };
    format!(
        "{}, {tpm}{state}{made}, called {} there, seen {}",
        claim.state,
        claim.name,
        moment(claim.observed)
    )
}

pub(crate) fn tpms(vms: &[VmView]) -> String {
    let mut table = Rows::new(&[
        "NAME",
        "STATE",
        "HOST",
        "TPM",
        "KEY",
        "OWNER",
        ">GUARDIANS",
        "LOCKOUT",
        "EK CERTIFICATE",
    ]);
    for vm in vms {
        let text = |id: Option<String>| id.map_or_else(|| NONE.to_owned(), |id| short(&id));
        table.add([
            vm.name.to_string(),
            state_word(vm),
            vm.host.to_string(),
            tpm_word(vm).to_owned(),
            text(vm.tpm.key_id.map(|id| id.to_string())),
            text(vm.tpm.owner.as_ref().map(ToString::to_string)),
            vm.tpm.guardians.len().to_string(),
            or_none(vm.tpm.lockout),
            text(vm.tpm.ek_certificate.clone()),
        ]);
    }
    table.text()
}

pub(crate) fn secure_boot(found: &[SecureBootView]) -> String {
    let mut table = Rows::new(&[
        "NAME",
        "KIND",
        "HOST",
        "STATE",
        ">OF 2011",
        ">OF 2023",
        ">OTHERS",
        ">DBX",
        "DBX WRITTEN",
        "FORMER",
    ]);
    for view in found {
        let fact = |of: &dyn Fn(&SecureBootObserved) -> String| {
            view.found.as_ref().map_or_else(|| NONE.to_owned(), of)
        };
        let kind = match view.version {
            Some(version) => format!("version {version}"),
            None => view.kind.to_string(),
        };
        table.add([
            view.name.clone(),
            kind,
            or_none(view.host.as_ref()),
            or_none(view.state),
            fact(&|found| found.count_of("2011").to_string()),
            fact(&|found| found.count_of("2023").to_string()),
            fact(&|found| found.others.to_string()),
            fact(&|found| found.dbx_entries.to_string()),
            fact(&|found| or_none(found.dbx_written.as_ref())),
            fact(&|found| if found.former_kept { "kept" } else { NONE }.to_owned()),
        ]);
    }
    let mut text = table.text();
    let unread = found.iter().filter_map(|view| {
        let because = view.found.as_ref()?.because.as_ref()?;
        Some(format!("{}: {}", view.name, plain::line(because)))
    });
    for (n, line) in unread.enumerate() {
        text.push_str(if n == 0 { "\n\n" } else { "\n" });
        text.push_str(&line);
    }
    text
}

pub(crate) fn tpm_versions(versions: &[TpmVersion]) -> String {
    let mut table = Rows::new(&[">VERSION", "MADE", "BY", "WHY", ">SIZE", "KEY", "HOST"]);
    for version in versions {
        table.add([
            version.version.to_string(),
            moment(version.made),
            version.by.clone(),
            version.why.to_string(),
            ByteSize(version.size_bytes).to_string(),
            short(&version.key_id.to_string()),
            version.host.to_string(),
        ]);
    }
    table.text()
}

pub(crate) fn kept_tpms(kept: &[TpmVersion]) -> String {
    let mut table = Rows::new(&["NAME", ">VERSION", "MADE", "WHY", "HOST", "ID"]);
    for version in kept {
        table.add([
            version.vm_name.to_string(),
            version.version.to_string(),
            moment(version.made),
            version.why.to_string(),
            version.host.to_string(),
            version.vm.to_string(),
        ]);
    }
    table.text()
}

pub(crate) fn vm(vm: &VmView) -> String {
    let mut sheet = Sheet::default();
    sheet.add("Name", &vm.name);
    sheet.add("Id", vm.id);
    sheet.add(
        "State",
        match &vm.last_seen {
            Some(seen) => format!(
                "{} (host {} does not answer; {} at {})",
                vm.state,
                vm.host,
                seen.state,
                moment(seen.at)
            ),
            None if vm.claims.is_empty() => format!("{} ({})", vm.state, vm.reason),
            // Each host says another; which is right is not known.
            None => state_word(vm),
        },
    );
    sheet.add("Host", &vm.host);
    for claim in &vm.claims {
        sheet.add(&format!("Claimed by {}", claim.host), claim_word(claim));
    }
    if !vm.claims.is_empty() {
        let settle = format!("fleetward vm settle {} --host", vm.id);
        sheet.add(
            "  which is right",
            format!("{settle} {}", vm.claims[0].host),
        );
        for other in &vm.claims[1..] {
            sheet.add("  or", format!("{settle} {}", other.host));
        }
    }
    sheet.add("Group", or_none(vm.group.as_ref()));
    sheet.add("Profile", or_none(vm.profile));
    sheet.add(
        "Managed",
        match &vm.newer {
            Some(newer) => format!(
                "yes; its specification of version {} is newer than this program, so nothing is changed about it",
                newer.version
            ),
            None if vm.managed => "yes".to_owned(),
            None => "no, made outside Fleetward".to_owned(),
        },
    );
    if !vm.description.is_empty() {
        sheet.add("Description", plain::line(vm.description.as_str()));
    }
    let next = |kind| vm.pending.iter().find(|pending| pending.change == kind);
    sheet.add(
        "CPUs",
        match next(ChangeKind::Cpus) {
            Some(pending) => format!("{} ({} at its next start)", vm.cpus, pending.wanted),
            None => vm.cpus.to_string(),
        },
    );
    let more = next(ChangeKind::Memory).and_then(|pending| pending.wanted.as_u64());
    sheet.add(
        "Memory",
        match more {
            Some(bytes) => format!(
                "{} ({} at its next start)",
                vm.memory_bytes,
                ByteSize(bytes)
            ),
            None => vm.memory_bytes.to_string(),
        },
    );
    if let Some(usage) = &vm.usage {
        sheet.add("Uses now", usage::line(usage));
    }
    match (&vm.after_boot, vm.autostart) {
        (Some(AfterBoot::Waiting), _) => {
            sheet.add(
                "Autostart",
                "on; it waits for its turn after its host's boot",
            );
        }
        (Some(AfterBoot::Off { because }), _) => sheet.add(
            "Autostart",
            format!(
                "it stayed off after its host's boot: {}",
                plain::line(because)
            ),
        ),
        (None, true) => sheet.add("Autostart", "on"),
        (None, false) => {}
    }
    if vm.restart_on_crash {
        sheet.add("After a crash", crash_word(vm.crashes.as_ref()));
    }
    if let Some(guest) = &vm.guest {
        sheet.add("Guest", guest_word(guest));
    }
    sheet.add(
        "Firmware",
        match vm.firmware {
            Some(firmware) if firmware.secure_boot => "UEFI with Secure Boot",
            Some(_) => "UEFI",
            None => NONE,
        },
    );
    if let Some(found) = &vm.secure_boot {
        sheet.add("Certificates", certificates_word(found));
    }
    let waits = |kind, now: &str| match next(kind).and_then(|pending| pending.wanted.as_str()) {
        Some(wanted) => format!("{now} ({wanted} at its next start)"),
        None => now.to_owned(),
    };
    if let Some(boot) = vm.settings.boot {
        sheet.add("Boots first", waits(ChangeKind::Boot, boot.into()));
    }
    if let Some(clock) = vm.settings.clock {
        sheet.add("Clock", waits(ChangeKind::Clock, clock.into()));
    }
    for disk in &vm.disks {
        sheet.add(
            &format!("Disk {}", disk.target),
            format!(
                "{} ({} taken), {}, pool {}, {}{}",
                disk.size,
                disk.allocated,
                disk.bus,
                disk.pool,
                disk.path,
                presence(disk.presence)
            ),
        );
        if let Some(serial) = &disk.serial {
            sheet.add("  serial number", serial.to_string());
        }
        if let Some(base) = disk.bases.first() {
            sheet.add(
                "  builds on",
                format!(
                    "{base} (layers {}, {} taken, perhaps shared with other VMs)",
                    disk.bases.len(),
                    disk.bases_allocated
                ),
            );
        }
    }
    for nic in &vm.nics {
        sheet.add(&format!("NIC {}", nic.id), card(nic));
    }
    for pending in vm.pending.iter().filter(|pending| pending.device.is_some()) {
        let device = or_none(pending.device.as_ref());
        let next = match pending.wanted.is_null() {
            true => "removed".to_owned(),
            false => pending.wanted.to_string(),
        };
        sheet.add(
            &format!("  {device} next"),
            format!("at its next start: {next}"),
        );
    }
    for drive in &vm.drives {
        let held = match (&drive.image, &drive.path) {
            _ if drive.holds == Some(DriveContent::FirstBoot) => "first boot".to_owned(),
            (Some(image), _) => image.to_string(),
            (None, Some(path)) => path.clone(),
            (None, None) => "empty".to_owned(),
        };
        sheet.add(
            &format!("Drive {}", drive.target),
            format!("{held}{}", presence(drive.presence)),
        );
    }
    if vm.tpm.enabled {
        let tpm = &vm.tpm;
        let state = if tpm.state_present {
            "present"
        } else {
            "not made yet"
        };
        sheet.add(
            "TPM",
            format!("{} ({}), state {state}", tpm.version, tpm.model),
        );
        match tpm.process {
            Some(TpmProcess::Stopped { pid }) => sheet.add(
                "TPM process",
                format!("stopped; on host {}: kill -CONT {pid}", vm.host),
            ),
            Some(TpmProcess::Gone) => sheet.add(
                "TPM process",
                "has ended under the guest, which has no TPM until it is started anew",
            ),
            None => {}
        }
        if let Some(lockout) = tpm.lockout {
            let guarded = if lockout.guarded {
                "; only the guest can clear it"
            } else {
                ""
            };
            sheet.add(
                "TPM lockout",
                format!(
                    "{lockout}; one less each {} s{guarded}",
                    lockout.interval_seconds
                ),
            );
        }
        sheet.add("TPM key", or_none(tpm.key_id));
        sheet.add(
            "Key owner",
            or_none(tpm.owner.as_ref().map(GuardianId::short)),
        );
        let guardians: Vec<&str> = tpm.guardians.iter().map(GuardianId::short).collect();
        sheet.add(
            "Key wrapped for",
            if guardians.is_empty() {
                NONE.to_owned()
            } else {
                guardians.join(", ")
            },
        );
        let standing = match vm.ek {
            Some(EkStanding::Fleet) => " (this fleet's)",
            Some(EkStanding::Accepted) => " (accepted by name)",
            Some(EkStanding::Foreign) => " (NOT this fleet's)",
            Some(EkStanding::Revoked) => " (REVOKED)",
            None => "",
        };
        let ek = or_none(tpm.ek_certificate.as_deref());
        sheet.add("EK certificate", format!("{ek}{standing}"));
        if let Some(escrow) = &vm.escrow {
            sheet.add("Controller's copy", escrow_copy(escrow, vm.escrow_age));
            if let Some(failure) = &escrow.failure {
                let why = match failure.because.is_empty() {
                    true => &failure.what,
                    false => &failure.because,
                };
                sheet.add("Not copied", format!("{}: {why}", failure.code));
            }
        }
    } else {
        sheet.add("TPM", "off");
    }
    sheet.add("Labels", labels(vm));
    if let Some(job) = vm.job {
        sheet.add("Job", job);
    }
    if let Some(domain) = &vm.domain_name {
        sheet.add("Domain", plain::line(domain));
    }
    sheet.add("Created", moment_or_none(vm.created));
    sheet.add("Observed", moment(vm.observed));
    let mut text = sheet.text();
    for finding in &vm.findings {
        let what = plain::line(&finding.what);
        text.push_str(&format!(
            "\n\n{}: {what}\n  fix: {}",
            finding.code, finding.fix
        ));
    }
    text
}

/// Which certificates its firmware trusts, and what to do about it.
fn certificates_word(found: &SecureBootObserved) -> String {
    let (old, new) = (found.count_of("2011"), found.count_of("2023"));
    match found.state {
        CertificateState::Ok => format!("Microsoft's, {old} of 2011 and {new} of 2023"),
        CertificateState::UpdateAvailable => {
            format!(
                "Microsoft's, {old} of 2011 and {new} of 2023; see fleetward secure-boot enroll --help"
            )
        }
        CertificateState::Custom => format!("of its owner's ({})", found.others),
        CertificateState::Off => "not enforced".to_owned(),
        CertificateState::Unreadable => match &found.because {
            Some(because) => format!("unreadable: {}", plain::line(because)),
            None => "unreadable".to_owned(),
        },
    }
}

fn card(nic: &NicObserved) -> String {
    let network = match (&nic.network, &nic.bridge) {
        (Some(network), _) => network.to_string(),
        (None, Some(bridge)) => format!("bridge {bridge} (none of its host's networks)"),
        (None, None) => "not in a network of its host".to_owned(),
    };
    let mut text = format!("{network}, {}, {}", nic.model, nic.mac);
    if let Some(vlan) = nic.vlan {
        text.push_str(&format!(", VLAN {vlan}"));
    }
    if !nic.link.is_up() {
        text.push_str(", link down");
    }
    if let Some(filter) = &nic.filter {
        text.push_str(&format!(", {filter}"));
    }
    if !nic.addresses.is_empty() {
        text.push_str(&format!(", {}", nic.addresses.join(" ")));
    }
    text
}

/// Whether it is started again, and what has come of it.
fn crash_word(crashes: Option<&Crashes>) -> String {
    let Some(crashes) = crashes else {
        return "it is started again".to_owned();
    };
    let (count, last) = (crashes.count, moment(crashes.last));
    match (&crashes.given_up, crashes.again) {
        (Some(because), _) => format!("given up: {} (last crash {last})", plain::line(because)),
        (None, Some(again)) => format!("it is started again at {} (crashed {last})", moment(again)),
        (None, None) => format!("it was started again (crashes in an hour: {count}, last {last})"),
    }
}

/// The guest's own word.
fn guest_word(guest: &GuestObserved) -> String {
    if !guest.agent {
        return "no guest agent answers".to_owned();
    }
    let parts = [guest.host_name.as_deref(), guest.os.as_deref()];
    let parts: Vec<String> = parts
        .into_iter()
        .flatten()
        .map(|part| plain::line(part).into_owned())
        .collect();
    match parts.is_empty() {
        true => "its agent answers".to_owned(),
        false => parts.join(", "),
    }
}

/// Which version the controller has, and for how long the host may have had another.
fn escrow_copy(escrow: &EscrowView, age: Option<u64>) -> String {
    let Some(version) = escrow.version else {
        return "none yet".to_owned();
    };
    let made = moment_or_none(escrow.made);
    let age = age.map_or_else(String::new, |age| format!(", age {age} s"));
    let behind = match escrow.current {
        true => "",
        false => "; the host has a newer one",
    };
    format!("version {version} of {made}{age}{behind}")
}

fn tpm_word(vm: &VmView) -> &'static str {
    match (vm.tpm.enabled, vm.tpm.state_present) {
        (false, _) => "off",
        (true, true) => "on",
        (true, false) => "on, no state",
    }
}

fn labels(vm: &VmView) -> String {
    let pairs: Vec<String> = vm
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if pairs.is_empty() {
        NONE.to_owned()
    } else {
        pairs.join(",")
    }
}

/// Whether the running VM has the device, in a few words behind it.
const fn presence(presence: Presence) -> &'static str {
    match presence {
        Presence::Here => "",
        Presence::Comes => " (at its next start)",
        Presence::Goes => " (until it stops)",
    }
}
