//! All messages of the command line except help (see `args`), table headings, and errors from the controller. They are
//! in one place, so that another language needs one more file like this one.
//!
//! Messages are functions and not format strings, so the compiler checks their arguments.

mod alerts;
mod tokens;
mod users;

use crate::plain;
use fleetward_api::controller::{
    AdminRevoked, AuditVerdict, EkAccepted, EkRevocationList, EkRevoked, ExpelAnswer, ImageView,
    ImportStage, JobView, RollWhen, SettleAnswer, VmView,
};
use fleetward_model::certificate::Serial;
use fleetward_model::change::{ChangeStep, DiskAct, DiskStep, DriveStep, Effect, PlannedStep};
use fleetward_model::error::Finding;
use fleetward_model::machine::{BootFirst, Clock};
use fleetward_model::spec::DriveSpec;
use fleetward_model::spec::NicSpec;
use fleetward_model::{
    ByteSize, ErrorCode, Failure, GuardianId, HostName, JobId, TemplateName, VmName,
};
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

pub(crate) use alerts::*;
pub(crate) use tokens::*;
pub(crate) use users::*;

pub(crate) const NOTHING_CHANGED: &str = "nothing was changed";
pub(crate) const CONSOLE_LEFT: &str = "console closed";
pub(crate) const CONSOLE_ENDED: &str = "the VM ended the console";
pub(crate) const QUESTION_SUFFIX: &str = "[y/N]";

/// The three-line form of the contract, and what else was found where a check refused.
pub(crate) fn failure(failure: &Failure) -> String {
    // What hosts say is part of it: a line feed in it makes no line of ours.
    let line = |text: &str| plain::line(text).into_owned();
    let mut text = Failure {
        what: line(&failure.what),
        because: line(&failure.because),
        fix: line(&failure.fix),
        ..failure.clone()
    }
    .to_string();
    let others = failure
        .findings
        .iter()
        .filter(|finding| finding.code != failure.code || finding.what != failure.because);
    for finding in others {
        text.push_str(&format!(
            "\n  also: {}: {}",
            finding.code,
            line(&finding.what)
        ));
    }
    text
}

pub(crate) fn output_failed(error: &io::Error) -> String {
    format!("cannot write the result: {error}")
}

/// What is said of one of several.
pub(crate) fn of_one(target: &impl Display, code: Option<ErrorCode>, message: &str) -> String {
    match code {
        Some(code) => format!("{target}: {code}: {message}"),
        None => format!("{target}: {message}"),
    }
}

pub(crate) const BULK_CONNECTION_LOST: &str =
    "the connection to the controller broke; what has begun continues; reconnecting";

pub(crate) fn connection_lost(job: JobId) -> String {
    format!("the connection to the controller broke; job {job} continues; reconnecting")
}

pub(crate) fn vm_created(name: &VmName, host: &impl Display) -> String {
    format!("{name} created on {host}")
}

pub(crate) fn vm_cloned(from: &VmName, name: &VmName, host: &impl Display, linked: bool) -> String {
    let disks = match linked {
        true => format!("its disks build on those of {from}"),
        false => "its disks are full copies".to_owned(),
    };
    format!("{name} made from {from} on {host}; {disks}; it is stopped")
}

/// What `vm set` would change, or that there is nothing to change.
pub(crate) fn planned(name: &VmName, steps: &[PlannedStep]) -> String {
    if steps.is_empty() {
        return format!("{name}: it is as wanted already");
    }
    let line = |planned: &PlannedStep| {
        let when = match planned.effect {
            Effect::Now => "now",
            Effect::NextStart => "at its next start",
        };
        format!("{name}: {}, {when}", step(&planned.step))
    };
    let lines: Vec<String> = steps.iter().map(line).collect();
    lines.join("\n")
}

fn step(step: &ChangeStep) -> String {
    match step {
        ChangeStep::Tpm { to: true } => "a new TPM".to_owned(),
        ChangeStep::Tpm { to: false } => "no TPM".to_owned(),
        ChangeStep::Cpus { from, to, .. } => format!("CPUs {from} -> {to}"),
        ChangeStep::Memory { from, to, .. } => format!("memory {from} -> {to}"),
        ChangeStep::Description { to, .. } if to.is_empty() => "no description".to_owned(),
        ChangeStep::Description { .. } => "another description".to_owned(),
        ChangeStep::Label { key, to, .. } => match to {
            Some(value) => format!("label {key}={value}"),
            None => format!("no label {key}"),
        },
        ChangeStep::RestartOnCrash { to: true, .. } => {
            "its host starts it again when it crashes".to_owned()
        }
        ChangeStep::RestartOnCrash { to: false, .. } => "it stays off when it crashes".to_owned(),
        ChangeStep::Autostart { to: true, .. } => "its host starts it after a boot".to_owned(),
        ChangeStep::Autostart { to: false, .. } => "its host does not start it".to_owned(),
        ChangeStep::Name { from, to, .. } => format!("name {from} -> {to}"),
        ChangeStep::Nic { nic, from, to, .. } => match (from, to) {
            (None, Some(to)) => format!("network card {nic}: {}", card(to)),
            (Some(from), Some(to)) => {
                format!("network card {nic}: {} -> {}", card(from), card(to))
            }
            (Some(_) | None, None) => format!("no network card {nic}"),
        },
        ChangeStep::Disk(step) => disk_step(step),
        ChangeStep::Drive(step) => drive_step(step),
        ChangeStep::Boot { to, .. } => format!(
            "its firmware tries {} first (a disk that is bound to PCR 1 or 4 of its TPM asks for its recovery key)",
            boot_word(*to)
        ),
        ChangeStep::Clock { to: Clock::Utc, .. } => "its clock keeps UTC".to_owned(),
        ChangeStep::Clock {
            to: Clock::Local, ..
        } => "its clock keeps the host's local time".to_owned(),
    }
}

/// The devices of which the first that boots is taken.
const fn boot_word(first: BootFirst) -> &'static str {
    match first {
        BootFirst::Disk => "its disks",
        BootFirst::Iso => "its drives",
        BootFirst::Network => "its network cards",
    }
}

fn card(nic: &NicSpec) -> String {
    let mut text = format!("{}, {}, {}", nic.network, nic.model.into_str(), nic.mac);
    if let Some(vlan) = nic.vlan {
        text.push_str(&format!(", VLAN {vlan}"));
    }
    if !nic.link.is_up() {
        text.push_str(", link down");
    }
    if let Some(filter) = nic.filter {
        text.push_str(&format!(", {filter}"));
    }
    text
}

fn disk_step(step: &DiskStep) -> String {
    match step.act() {
        None => "nothing".to_owned(),
        Some(DiskAct::Come(disk)) => {
            format!(
                "disk {} of {} in pool {}",
                disk.target, disk.size, disk.pool
            )
        }
        Some(DiskAct::Grow { from, to }) => {
            format!("disk {}: {} -> {}", to.target, from.size, to.size)
        }
        Some(DiskAct::Move { from, to }) => {
            format!("disk {}: pool {} -> {}", to.target, from.pool, to.pool)
        }
        Some(DiskAct::Go(disk)) => match (step.keep, &step.path) {
            (true, Some(path)) => format!("no disk {}; its volume stays: {path}", disk.target),
            (true, None) => format!("no disk {}; its volume stays", disk.target),
            (false, _) => format!("no disk {}", disk.target),
        },
    }
}

fn drive_step(step: &DriveStep) -> String {
    let held = |drive: &DriveSpec| match &drive.medium {
        Some(medium) => format!("drive {} with {}", drive.target, medium.image),
        None => format!("drive {} empty", drive.target),
    };
    match (&step.from, &step.to) {
        (_, Some(to)) => held(to),
        (Some(from), None) => format!("no drive {}", from.target),
        (None, None) => "nothing".to_owned(),
    }
}

pub(crate) fn confirm_remove_disk(name: &VmName, disk: &str, keep: bool) -> String {
    match keep {
        true => format!("Take disk {disk} away from {name}? Its volume stays in its pool."),
        false => format!("Remove disk {disk} of {name} with all that is on it?"),
    }
}

/// What a job `vm-change` reports.
pub(crate) fn changed(name: &VmName, result: &serde_json::Value) -> String {
    let kinds = |of: &str| -> Vec<&str> {
        let listed = result[of].as_array().into_iter().flatten();
        listed.filter_map(|kind| kind.as_str()).collect()
    };
    let now = result["vm"].as_str().unwrap_or(name.as_str());
    let mut text = match now == name.as_str() {
        true => format!("{name} changed: {}", kinds("now").join(", ")),
        false => format!("{name} is {now} now"),
    };
    let later = kinds("next_start");
    if kinds("now").is_empty() {
        text = format!("{name} changed");
    }
    if !later.is_empty() {
        text.push_str(&format!("; at its next start: {}", later.join(", ")));
    }
    for path in result["kept"].as_array().into_iter().flatten() {
        let path = path.as_str().unwrap_or_default();
        text.push_str(&format!(
            "\nkept on {}: {path}",
            result["host"].as_str().unwrap_or("its host")
        ));
    }
    text
}

pub(crate) fn confirm_recover(name: &str, to: &HostName) -> String {
    format!(
        "Rebuild VM {name} on {to}? The host that had it must be powered off: a copy that still runs there would write to \
         the same disks."
    )
}

pub(crate) fn confirm_forget(name: &str) -> String {
    format!(
        "Remove every copy of the TPM of VM {name}? What its disks hold that is sealed to it cannot be opened any more."
    )
}

pub(crate) fn forgotten(name: &str) -> String {
    format!(
        "nothing of the TPM of VM {name} is kept any more; hosts that are away remove theirs when they are back"
    )
}

pub(crate) fn confirm_settle(name: &str, host: &HostName) -> String {
    format!(
        "Is the VM {name} that host {host} has the right one? What other hosts have of it is stopped at once, and removed \
         except for its disks."
    )
}

pub(crate) fn settled(name: &str, answer: &SettleAnswer) -> String {
    let ended: Vec<_> = answer.ended.iter().map(HostName::as_str).collect();
    format!(
        "VM {name} is host {}'s; what {} has of it counts for nothing and is being ended: fleetward job list",
        answer.host,
        ended.join(" and ")
    )
}

/// What the controller refuses with until it is told to go on.
pub(crate) fn outdated(failure: &Failure) -> String {
    format!(
        "warning[{}]: {}\n  because: {}",
        failure.code, failure.what, failure.because
    )
}

pub(crate) const CONFIRM_OUTDATED: &str =
    "Rebuild it with this older TPM? Only the lost host has the last state.";

pub(crate) fn recovered(name: &str, to: &HostName, result: &serde_json::Value) -> String {
    let tpm = match (result["version"].as_u64(), result["made"].as_str()) {
        (Some(version), Some(made)) => {
            let older = match result["outdated"].as_bool() {
                Some(true) => ", older than the last state on its host",
                _ => "",
            };
            format!("; its TPM is version {version}, of {made}{older}")
        }
        _ => String::new(),
    };
    format!("{name} rebuilt on {to}{tpm}; it is stopped")
}

pub(crate) fn template_created(name: &TemplateName) -> String {
    format!("template {name} made; fleetward vm create --template {name} makes a VM from it")
}

pub(crate) fn template_deleted(name: &TemplateName) -> String {
    format!("template {name} deleted")
}

pub(crate) fn confirm_delete_template(name: &TemplateName) -> String {
    format!("Delete template {name}? VMs made from it keep their disks.")
}

/// A remark that stops nothing.
pub(crate) fn warning(finding: &Finding) -> String {
    format!(
        "warning[{}]: {}\n  fix: {}",
        finding.code, finding.what, finding.fix
    )
}

pub(crate) fn vm_created_and_started(name: &VmName, host: &impl Display) -> String {
    format!("{name} created and started on {host}")
}

/// Said of a VM that was paused, and of one that was already.
pub(crate) const PAUSED: [&str; 2] = ["paused", "is paused already"];
/// Said of a VM that runs on, and of one that ran already.
pub(crate) const RESUMED: [&str; 2] = ["runs on", "runs already"];
pub(crate) const CREATED_ALREADY: &str = "exists already";
pub(crate) fn bulk_summary(succeeded: usize, failed: usize, skipped: usize) -> String {
    format!("{succeeded} succeeded, {failed} failed, {skipped} skipped")
}

pub(crate) fn confirm_delete_vms(names: &[VmName], keep_tpm_state: bool) -> String {
    let what = if keep_tpm_state {
        "disks"
    } else {
        "disks and TPM"
    };
    match names {
        [name] => format!("Delete VM {name}, with its {what}?"),
        names => {
            let words: Vec<&str> = names.iter().map(VmName::as_str).collect();
            let count = words.len();
            format!(
                "Delete {count} VMs, each with its {what}: {}?",
                words.join(", ")
            )
        }
    }
}

pub(crate) fn confirm_remove_host(name: &impl Display) -> String {
    format!(
        "Remove host {name} from the fleet? It can come back only with a new token and a new certificate."
    )
}

fn some_vms(names: &[VmName]) -> String {
    match names {
        [name] => format!("VM {name}"),
        names => format!(
            "{} VMs ({}{})",
            names.len(),
            names
                .iter()
                .take(5)
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
            if names.len() > 5 { ", ..." } else { "" }
        ),
    }
}

/// What `question` follows, or what is said where it is answered already.
pub(crate) fn tpm_is_lost_to(names: &[VmName]) -> String {
    format!(
        "The TPM is removed from {}. Secrets that are sealed to it will not open until `tpm restore` brings it back: BitLocker \
         asks for its recovery key, and LUKS volumes and other sealed keys stay closed.",
        some_vms(names)
    )
}

pub(crate) fn pcr_7_changes(names: &[VmName]) -> String {
    format!(
        "PCR 7 of the TPM changes for {}: what is sealed to it does not open at the next start. BitLocker asks for its recovery \
         key once, unless it was suspended in the guest before: manage-bde -protectors -disable C: -RebootCount 1",
        some_vms(names)
    )
}

pub(crate) fn new_tpm_opens_nothing(names: &[VmName]) -> String {
    format!(
        "{} had a TPM before. A new TPM cannot open what the former one sealed: BitLocker will ask for its recovery \
         key, and LUKS volumes and other sealed secrets will not open. To bring the former one back, use fleetward tpm restore.",
        some_vms(names)
    )
}

pub(crate) fn tpm_is_replaced(name: &VmName, version: Option<u64>) -> String {
    let version = version.map_or_else(|| "a kept version".to_owned(), |v| format!("version {v}"));
    format!(
        "VM {name} has a TPM now. {version} replaces it: secrets that were sealed since then will not open. Today's TPM \
         is kept as another version, and `tpm restore` brings it back."
    )
}

pub(crate) const CONTINUE: &str = "Continue?";

pub(crate) fn would_summary(change: usize, fail: usize, nothing: usize) -> String {
    format!(
        "nothing was changed: {change} would be changed, {fail} would fail, {nothing} need nothing"
    )
}

pub(crate) fn confirm_delete_image(name: &impl Display) -> String {
    format!("Delete image {name}?")
}

/// `foreign`: domains that Fleetward did not make, and so has not moved.
pub(crate) fn host_drained(name: &impl Display, foreign: &[&VmView]) -> String {
    if foreign.is_empty() {
        return format!("{name} is empty and accepts no new VMs");
    }
    let left = foreign.iter().map(|vm| {
        let own = vm.domain_name.as_deref().unwrap_or(vm.name.as_str());
        format!("'{}' ({})", own.escape_debug(), vm.state)
    });
    format!(
        "{name} accepts no new VMs, and none of Fleetward's is left on it; still there, as Fleetward did not make them: {}",
        left.collect::<Vec<_>>().join(", ")
    )
}

pub(crate) fn host_resumed(name: &impl Display) -> String {
    format!("{name} accepts VMs again")
}

pub(crate) fn host_removed(name: &impl Display) -> String {
    format!("{name} removed from the fleet")
}

/// A host that has left the fleet, and whose guardian opens keys of VMs: one command for each takes them away.
pub(crate) fn keys_still_open(host: &HostName, guardian: &GuardianId, vms: &[&VmName]) -> String {
    let id = guardian.short();
    let revoke = vms
        .iter()
        .map(|vm| format!("fleetward guardian revoke {vm} --from {id}"));
    let revoke: Vec<_> = revoke.collect();
    format!(
        "warning: the guardian {id} of {host} still opens the keys of {} VMs\n  fix: {}",
        vms.len(),
        revoke.join("; ")
    )
}

pub(crate) const JOIN_HINT: &str =
    "On that machine, as root: fleetward-agent join, which asks for the token";

pub(crate) fn confirm_expel(would: &ExpelAnswer) -> String {
    format!(
        "{}\nExpel host {} at once? This cannot be taken back",
        host_would_be_expelled(would),
        would.host
    )
}

pub(crate) fn host_would_be_expelled(would: &ExpelAnswer) -> String {
    let head = format!(
        "host {} would be refused everywhere, with its guardians; its connections would be cut",
        would.host
    );
    consequences(head, would)
}

pub(crate) fn host_expelled(done: &ExpelAnswer) -> String {
    let head = format!(
        "{} is expelled: refused everywhere, connections cut",
        done.host
    );
    consequences(head, done)
}

fn consequences(head: String, answer: &ExpelAnswer) -> String {
    let mut lines = vec![head];
    for vm in &answer.lost {
        let copy = match (vm.tpm, vm.copy) {
            (false, _) => String::new(),
            (true, Some(_)) => ", the controller has a copy of its TPM".to_owned(),
            (true, None) => ", and the controller has NO copy of its TPM".to_owned(),
        };
        lines.push(format!(
            "  lost: VM {name}{copy}: fleetward vm recover {name} rebuilds it on another host",
            name = vm.name
        ));
    }
    for key in &answer.keys {
        let when = match key.roll {
            RollWhen::AtOnce => "at once",
            RollWhen::NextStop => {
                "when it stops: until then the host, if it has opened it, knows it"
            }
            RollWhen::HostBack => "when its host answers",
        };
        lines.push(format!(
            "  key of VM {} on host {}: rolled {when}",
            key.name, key.host
        ));
    }
    for guardian in &answer.imported {
        lines.push(format!(
            "  guardian {} was imported there, and keeps what it opens, because others may depend on it: fleetward guardian show {}",
            guardian.short(),
            guardian.short()
        ));
    }
    for job in &answer.jobs {
        lines.push(format!(
            "  job {job} is cancelled; if it waits for the host: fleetward job give-up {job}"
        ));
    }
    lines.join("\n")
}

pub(crate) const REJOIN_HINT: &str =
    "On that host, as root: fleetward-agent rejoin, which asks for the token";

pub(crate) fn image_deleted(name: &impl Display) -> String {
    format!("{name} deleted")
}

pub(crate) fn image_imported(image: &ImageView) -> String {
    let ImageView { name, sha256, .. } = image;
    match &image.source {
        None => format!("{name} imported, sha256 {sha256}"),
        Some(source) => format!(
            "{name} imported: {} converted to {} on host {}, sha256 {sha256}",
            source.found.join(" with "),
            image.format,
            source.host
        ),
    }
}

/// Of a file with so many bytes, where that is known.
pub(crate) fn sending(bytes: Option<u64>) -> String {
    match bytes {
        Some(bytes) => format!("sending {}", ByteSize(bytes)),
        None => "sending".to_owned(),
    }
}

pub(crate) fn import_stage(stage: ImportStage, host: Option<&HostName>) -> String {
    let does = match stage {
        ImportStage::Receiving => "the controller receives it",
        ImportStage::Sending => "on its way to be converted",
        ImportStage::Waiting => "waiting for other conversions",
        ImportStage::Unpacking => "unpacking",
        ImportStage::Converting => "converting",
        ImportStage::Fetching => "on its way back",
    };
    match host {
        Some(host) => format!("{does} (host {host})"),
        None => does.to_owned(),
    }
}

pub(crate) fn confirm_give_up(job: &JobView) -> String {
    let (kind, target) = (&job.kind, &job.target);
    if job.state.has_ended() {
        let owed = job.steps.iter().filter(|step| step.state == "owed");
        let owed: Vec<_> = owed
            .map(|step| format!("{} ({})", step.name, step.owed_by.as_deref().unwrap_or("-")))
            .collect();
        return format!(
            "Drop what is still owed of {kind} {target}: {}? It stays there for good.",
            owed.join(", ")
        );
    }
    let then = match job.cancellable {
        true => "`fleetward job cancel` would undo it. ",
        false => "",
    };
    format!(
        "Give up {kind} {target} half-way? {then}What it has begun stays as it is, on every host, and the VM is free for other \
         commands."
    )
}

pub(crate) fn given_up(job: &JobView) -> String {
    format!(
        "job {} given up; see what it has left behind: fleetward job show {}",
        job.id, job.id
    )
}

pub(crate) fn cancel_asked(job: JobId) -> String {
    format!("asked to cancel; follow it with: fleetward job watch {job}")
}

pub(crate) fn console_open(name: &VmName) -> String {
    format!("connected to {name}; Ctrl-] leaves")
}

pub(crate) fn screen_open(name: &VmName, address: SocketAddr) -> String {
    format!(
        "the screen of {name}: connect a viewer, such as remote-viewer vnc://{address}; Ctrl-C ends"
    )
}

pub(crate) fn screen_interrupted(name: &VmName) -> String {
    format!("the screen of {name} was interrupted; opening it again")
}

pub(crate) fn screen_goes_on(name: &VmName) -> String {
    format!("the screen of {name} goes on")
}

pub(crate) fn screen_silent(name: &VmName) -> String {
    format!("the screen of {name} did not answer; it was opened again")
}

pub(crate) fn screen_ended(reason: &str) -> String {
    format!("the screen has ended: {reason}")
}

pub(crate) fn stranger_refused(from: SocketAddr) -> String {
    format!("refused a viewer at {from}: it runs as another user")
}

pub(crate) fn screenshot_taken(name: &VmName, file: &Path) -> String {
    format!("the screen of {name} is in {}", file.display())
}

pub(crate) fn keys_typed(name: &VmName, keystrokes: usize) -> String {
    match keystrokes {
        1 => format!("typed 1 keystroke into {name}"),
        more => format!("typed {more} keystrokes into {name}"),
    }
}

/// Every finding on a line of its own; the word intact only where all was compared.
pub(crate) fn audit_verdict(verdict: &AuditVerdict) -> String {
    let AuditVerdict {
        records,
        breaks,
        closed,
        not_compared,
        ..
    } = verdict;
    if verdict.intact && not_compared.is_empty() {
        let intact = format!("intact: {records} records");
        let lines = [intact].into_iter().chain(closed.iter().cloned());
        return lines.collect::<Vec<_>>().join("\n");
    }
    let mut lines: Vec<String> = breaks
        .iter()
        .map(|found| format!("chain of {}: {}", found.chain, found.what))
        .collect();
    lines.extend(closed.iter().cloned());
    lines.extend(not_compared.iter().map(|host| {
        format!("chain of {host}: not compared with the log on host {host}, which does not answer")
    }));
    lines.join("\n")
}

pub(crate) fn audit_not_compared(hosts: &[HostName]) -> String {
    let hosts: Vec<&str> = hosts.iter().map(HostName::as_str).collect();
    format!(
        "no fault in the stored records, but these hosts do not answer, and their own logs were not compared: {}",
        hosts.join(", ")
    )
}

pub(crate) fn rebuilt(vms: u32, answered: u32, asked: u32) -> String {
    format!("{vms} VMs found on {answered} of {asked} hosts")
}

pub(crate) fn movable(vm: &VmName, to: &impl Display) -> String {
    format!("{vm} can move to {to}")
}

pub(crate) fn not_movable(vm: &VmName, from: &impl Display, to: &impl Display) -> String {
    format!("{vm} cannot move from {from} to {to}")
}

pub(crate) fn not_startable(vm: &VmName, host: &impl Display) -> String {
    format!("{vm} cannot start on {host}")
}

pub(crate) fn startable(vm: &VmName, host: &impl Display) -> String {
    format!("{vm} can start on {host}")
}

pub(crate) fn admin_created(name: &impl Display, files: [&impl Display; 2]) -> String {
    let [certificate, authority] = files;
    format!(
        "{name} can use the controller from another machine with:\n\
         export FLEETWARD_CONTROLLER=https://HOST:7440\n\
         export FLEETWARD_CERT={certificate}\n\
         export FLEETWARD_CA={authority}"
    )
}

pub(crate) fn confirm_revoke_admin(name: &impl Display, serial: Option<&Serial>) -> String {
    match serial {
        Some(serial) => format!("Revoke certificate {serial} of administrator {name}?"),
        None => format!(
            "Revoke every certificate of administrator {name} that was made until now? Those who use one lose their connections"
        ),
    }
}

pub(crate) fn admin_revoked(answer: &AdminRevoked) -> String {
    let AdminRevoked { name, revoked } = answer;
    match revoked.len() {
        0 => format!(
            "{name}: every certificate that was made until now is refused; none that is listed was good"
        ),
        1 => format!("{name}: 1 certificate revoked"),
        many => format!("{name}: {many} certificates revoked"),
    }
}

pub(crate) fn ek_crl_written(file: &impl Display, list: &EkRevocationList) -> String {
    format!(
        "{file}: {} revoked, and counts until {}",
        list.entries,
        crate::table::moment(list.next_update)
    )
}

pub(crate) fn ek_published(
    directory: &impl Display,
    authorities: usize,
    list: &EkRevocationList,
) -> String {
    format!(
        "{directory}: the certificates of {authorities} authorities, and the list of {} revoked, which counts until {}",
        list.entries,
        crate::table::moment(list.next_update)
    )
}

pub(crate) fn confirm_revoke_ek(sha256: &str) -> String {
    format!("Revoke the EK certificate or authority {sha256}? That cannot be taken back")
}

pub(crate) fn ek_revoked(revoked: &EkRevoked) -> String {
    let sha256 = &revoked.sha256;
    let mut said = match revoked.listed {
        true => format!("{sha256} is revoked; publish the new list: fleetward ek crl"),
        false => format!(
            "EK certificate {sha256}, which this fleet did not issue, is no longer accepted"
        ),
    };
    if !revoked.vms.is_empty() {
        let vms: Vec<_> = revoked.vms.iter().map(ToString::to_string).collect();
        said.push_str(&format!("\nVMs whose TPM it concerns: {}", vms.join(", ")));
    }
    said
}

pub(crate) fn ek_accepted(accepted: &EkAccepted) -> String {
    format!("EK certificate {} is accepted", accepted.sha256)
}

pub(crate) const NOTHING_EXPIRES: &str = "no guardian expires within that time";

pub(crate) fn not_granted(vm: &VmName, to: &str) -> String {
    format!("the TPM key of VM {vm} is not granted to {to}")
}

pub(crate) fn not_listed(more: usize) -> String {
    format!("{more} more VMs are counted but not listed")
}

pub(crate) fn confirm_revoke(vm: &VmName, from: &str) -> String {
    format!("Revoke the access of {from} to the TPM key of VM {vm}?")
}

pub(crate) fn revoked(vm: &VmName, from: &str, pending: Option<&str>) -> String {
    match pending {
        None => format!("{from} no longer has access to VM {vm}, which has a new TPM key"),
        Some(why) => format!("{from} no longer has access to the TPM key of VM {vm}, but: {why}"),
    }
}

pub(crate) fn rotated(host: &impl Display, result: &serde_json::Value) -> String {
    let done = &result["summary"]["succeeded"];
    let waiting = result["still_needed_by"].as_u64().unwrap_or(0);
    if waiting == 0 {
        format!(
            "host {host} has a new guardian; {done} VMs were re-wrapped, and nothing depends on the former one"
        )
    } else {
        format!(
            "host {host} has a new guardian; {done} VMs were re-wrapped; {waiting} still depend on the former one and \
             are re-wrapped automatically when their hosts answer"
        )
    }
}
