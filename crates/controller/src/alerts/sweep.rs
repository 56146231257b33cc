//! A look at the whole fleet for what needs somebody now. It judges nothing itself: hosts by [`crate::remarks`], VMs as the
//! check of a start does, with what `vm show` notices.

use super::Alerts;
use super::book::{Condition, Look};
use crate::hosts::HostRecord;
use crate::remarks::{self, Remark};
use crate::survey::survey;
use crate::tokens::utc;
use crate::world::World;
use fleetward_model::error::Finding;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, HostName, Names};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use time::OffsetDateTime;

/// VMs that are looked at before others get their turn.
const SLICE: usize = 100;

pub(super) async fn look(world: &World) -> Look {
    let mut look = Look::default();
    let now = OffsetDateTime::now_utc();
    for finding in remarks::of_fleet(world, now) {
        let (key, subject) = (format!("{}/fleet", finding.code), "fleet".to_owned());
        look.conditions
            .push(of_finding(key, subject, None, finding));
    }
    look.conditions.extend(world.alerts.about_itself());
    for host in world.hosts.all() {
        let online = world.inventory.seen(&host.name).answers;
        if !online {
            look.away.insert(host.name.clone());
            look.conditions.extend(away(world, &host));
        }
        let remarks = remarks::of_host(world, &host).into_iter();
        let remarks = remarks.filter(|remark| needs_somebody(remark.code));
        let remarks = remarks.filter(|remark| online || lasts_without_host(remark.code));
        look.conditions
            .extend(remarks.map(|remark| of_remark(&host.name, remark)));
        if online {
            of_vms(world, &host.name, &mut look.conditions).await;
        }
        tokio::task::yield_now().await;
    }
    look
}

/// What somebody does on purpose, or what stops nobody, is no alert. Neither is what another alert says already.
fn needs_somebody(code: ErrorCode) -> bool {
    !matches!(
        code,
        ErrorCode::GroupTooLarge
            | ErrorCode::HostDrained
            | ErrorCode::DefinitionEdited
            | ErrorCode::NameDiffers
            | ErrorCode::EkNotOfFleet
            | ErrorCode::EkRevoked
            | ErrorCode::SecureBootCustom
    )
}

/// What is known of a host without asking it.
fn lasts_without_host(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::GuardianExpired
            | ErrorCode::GuardianExpiresSoon
            | ErrorCode::HostCertificateUnusable
            | ErrorCode::AuditBroken
            | ErrorCode::VmGone
    )
}

/// Of VMs: said once for their host, or once for the fleet.
fn is_said_elsewhere(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::AuthorityEnds
            | ErrorCode::SecureBootOutdated
            | ErrorCode::HostUnreachable
            | ErrorCode::DebtsUnpaid
            | ErrorCode::VmDisputed
            | ErrorCode::GuardianExpired
            | ErrorCode::GuardianExpiresSoon
    )
}

/// A host that does not answer; one that is drained may be off.
fn away(world: &World, host: &HostRecord) -> Option<Condition> {
    if host.drained {
        return None;
    }
    let name = &host.name;
    let seen = world.inventory.last_seen(name).unwrap_or(host.joined);
    let vms = world.inventory.count_on(name);
    let what = format!(
        "host {name} was last heard at {}; VMs that were on it then: {vms}",
        utc(seen)
    );
    let finding = Finding::usual(ErrorCode::HostUnreachable, what);
    let finding = finding.about(&Names::default().host(name));
    Some(of_host(name, None, finding))
}

fn of_remark(host: &HostName, remark: Remark) -> Condition {
    // Several of one code, and the same one with other numbers.
    let steady: String = remark.text.chars().filter(|c| !c.is_numeric()).collect();
    let digest = hex::encode(&Sha256::digest(steady)[..8]);
    let finding = Finding::usual(remark.code, format!("host {host}: {}", remark.text));
    let finding = finding.about(&Names::default().host(host));
    of_host(host, Some(digest), finding)
}

fn of_host(host: &HostName, which: Option<String>, finding: Finding) -> Condition {
    let which = which.map(|which| format!("/{which}")).unwrap_or_default();
    let key = format!("{}/host/{host}{which}", finding.code);
    of_finding(key, format!("host {host}"), Some(host.clone()), finding)
}

/// What is wrong with the VMs of a host that answers.
async fn of_vms(world: &World, host: &HostName, conditions: &mut Vec<Condition>) {
    let vms = world.inventory.vms_on(host).into_iter();
    let vms: Vec<_> = vms.filter(|vm| vm.is_managed()).collect();
    for some in vms.chunks(SLICE) {
        let pairs: Vec<_> = some.iter().map(|vm| (Arc::clone(vm), host)).collect();
        // A host that leaves meanwhile is not looked at.
        let Ok(checks) = survey(world, &pairs, false).await else {
            return;
        };
        for (vm, checked) in some.iter().zip(checks) {
            let found = checked.findings.into_iter().chain(copies(world, vm));
            let found = found.chain(roll_due(vm));
            let found = found.filter(|f| needs_somebody(f.code) && !is_said_elsewhere(f.code));
            conditions.extend(found.map(|finding| of_vm(vm, host, finding)));
        }
        tokio::task::yield_now().await;
    }
}

fn of_vm(vm: &VmObserved, host: &HostName, finding: Finding) -> Condition {
    // What the check of a start says of the host itself.
    if matches!(
        finding.code,
        ErrorCode::HostUnconfined
            | ErrorCode::LibvirtTooOld
            | ErrorCode::QemuTooOld
            | ErrorCode::SwtpmTooOld
            | ErrorCode::SwtpmMissing
            | ErrorCode::SecureBootMissing
    ) {
        return of_host(host, None, finding);
    }
    let names = Names::default().vm(&vm.name).host(host);
    let key = format!("{}/vm/{}", finding.code, vm.id);
    let finding = finding.about(&names);
    of_finding(key, format!("VM {}", vm.name), Some(host.clone()), finding)
}

/// A VM whose TPM the controller has no good copy of. A copy that is being made is there at the next look.
fn copies(world: &World, vm: &VmObserved) -> Option<Finding> {
    world.escrow.lacks(vm)?;
    let name = &vm.name;
    let why = world.escrow.missed(vm.id);
    let why = why.map_or_else(String::new, |failure| {
        format!(": {}: {}", failure.what, failure.because)
    });
    let finding = match world.escrow.newest(vm.id) {
        None => {
            let what = format!("the controller has no copy of the TPM of VM {name}{why}");
            Finding::usual(ErrorCode::EscrowMissing, what)
        }
        Some(newest) => {
            let made = utc(newest.made);
            let what = format!(
                "the newest copy of the TPM of VM {name} is of {made}, and its TPM has changed since{why}"
            );
            Finding::usual(ErrorCode::EscrowOutdated, what)
        }
    };
    let fix =
        format!("see why, and whether its host has room and answers: fleetward vm show {name}");
    Some(Finding { fix, ..finding })
}

fn roll_due(vm: &VmObserved) -> Option<Finding> {
    let guardian = vm.roll_due().next()?;
    let what = format!(
        "guardian {} was revoked and still knows the TPM key of VM {}",
        guardian.short(),
        vm.name
    );
    Some(Finding::usual(ErrorCode::RollDue, what))
}

fn of_finding(key: String, subject: String, host: Option<HostName>, finding: Finding) -> Condition {
    Condition {
        key,
        code: finding.code,
        subject,
        host,
        message: finding.what,
        fix: finding.fix,
        at_once: false,
    }
}

impl Alerts {
    /// Jobs that failed, and targets that take nothing.
    fn about_itself(&self) -> Vec<Condition> {
        let jobs = self.jobs.failed(OffsetDateTime::now_utc()).into_iter();
        let failing = self.failing().into_iter().map(|(name, finding)| {
            let key = format!("{}/target/{name}", finding.code);
            of_finding(key, format!("alert target {name}"), None, finding)
        });
        jobs.chain(failing).collect()
    }
}
