//! What an administrator should know of a host, and of the fleet as a whole: each with its code, said in one place for
//! `host show`, `check --by-host`, `status` and the alerts.

use crate::clocks;
use crate::debts;
use crate::hosts::HostRecord;
use crate::inventory::Seen;
use crate::presence::Distrust;
use crate::tokens::utc;
use crate::world::World;
use fleetward_api::tpm::{TpmVersion, VersionReason};
use fleetward_jobs::Debt;
use fleetward_model::error::Finding;
use fleetward_model::guardian::{EXPIRY_WARNING, crowded};
use fleetward_model::host::HostFacts;
use fleetward_model::{ByteSize, ErrorCode, HostName};
use time::OffsetDateTime;

/// Less than one part of so many that is free, of a pool or of memory, is little.
const LITTLE: u64 = 20;

/// One thing to know of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remark {
    pub(crate) code: ErrorCode,
    /// A sentence about the host, which it does not name.
    pub(crate) text: String,
}

impl Remark {
    fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

/// What there is to know of the whole fleet.
pub(crate) fn of_fleet(world: &World, now: OffsetDateTime) -> Vec<Finding> {
    let found = [world.fleet.finding(now), clocks::finding(world, now)];
    found.into_iter().flatten().collect()
}

/// The same, and what is wrong with the alerts themselves.
pub(crate) fn of_controller(world: &World, now: OffsetDateTime) -> Vec<Finding> {
    let failing = world.alerts.failing().into_iter();
    let failing = failing.map(|(_, finding)| finding);
    of_fleet(world, now).into_iter().chain(failing).collect()
}

/// The texts alone.
pub(crate) fn texts(world: &World, record: &HostRecord) -> Vec<String> {
    let remarks = of_host(world, record).into_iter();
    remarks.map(|remark| remark.text).collect()
}

/// What there is to know of a host.
pub(crate) fn of_host(world: &World, record: &HostRecord) -> Vec<Remark> {
    let (name, now) = (&record.name, OffsetDateTime::now_utc());
    let seen = world.inventory.seen(name);
    let with = |code| move |text| Remark::new(code, text);
    let facts = seen.facts.as_deref();
    let own = facts.map(|facts| facts.warnings.clone());
    let owed = world.debts.of(name.as_str());
    let mut remarks = Vec::new();
    let own = own.unwrap_or_default().into_iter();
    remarks.extend(own.map(with(ErrorCode::HostWarning)));
    let contradictions = world.inventory.contradictions(name).into_iter();
    remarks.extend(contradictions.map(with(ErrorCode::VmDisputed)));
    let refused = world.inventory.refused_reports(name).into_iter();
    remarks.extend(refused.map(with(ErrorCode::ReportTooLarge)));
    remarks.extend(guardian_ends(record));
    let certificate = certificate_ends(world, record, &seen);
    remarks.extend(certificate.map(with(ErrorCode::HostCertificateUnusable)));
    let of_clocks = match world.agents.distrust(&record.name) {
        Some(Distrust::OfOurs) => {
            let ours = world.fleet.credential().current();
            Some(clocks::refusal(&record.name, ours.facts(), now))
        }
        Some(Distrust::OfIts(_)) | None => clocks::warning(record, &seen, now),
    };
    remarks.extend(of_clocks.map(with(ErrorCode::ClocksApart)));
    let crowded = crowded(&record.group, world.members_of(&record.group));
    remarks.extend(crowded.map(with(ErrorCode::GroupTooLarge)));
    remarks.extend(
        lost_vms(world, record)
            .into_iter()
            .map(with(ErrorCode::VmGone)),
    );
    remarks.extend(old_certificates(world, record).map(with(ErrorCode::SecureBootOutdated)));
    let unpaid = unpaid(name, seen.answers, &owed).into_iter();
    remarks.extend(unpaid.map(with(ErrorCode::DebtsUnpaid)));
    let broken = world.audit.break_of(name);
    remarks
        .extend(broken.map(|why| Remark::new(ErrorCode::AuditBroken, format!("audit log: {why}"))));
    remarks.extend(facts.into_iter().flat_map(short_of_room));
    remarks
}

/// Memory and pools of which little is left.
fn short_of_room(facts: &HostFacts) -> Vec<Remark> {
    let is_little = |left: ByteSize, of: ByteSize| left.bytes() < of.bytes() / LITTLE;
    let mut short = Vec::new();
    if is_little(facts.memory_available, facts.memory) {
        let (left, of) = (facts.memory_available, facts.memory);
        let text = format!("its memory is short: {left} of {of} are free");
        short.push(Remark::new(ErrorCode::NoMemory, text));
    }
    for pool in &facts.pools {
        if is_little(pool.available, pool.capacity) {
            let (name, left, of) = (&pool.name, pool.available, pool.capacity);
            let text = format!("its pool {name} is nearly full: {left} of {of} are free");
            short.push(Remark::new(ErrorCode::NoSpace, text));
        }
    }
    short
}

/// What a host that was away has still to do, for people.
fn unpaid(host: &HostName, answers: bool, owed: &[Debt]) -> Vec<String> {
    let told = owed.iter().map(|debt| match &debt.failure {
        Some(failure) => format!(
            "it owes the {}, which fails: {}: {}; give it up: fleetward job give-up {}",
            debts::told(debt),
            failure.code,
            failure.what,
            debt.job
        ),
        None if answers => format!("it clears up the {}", debts::told(debt)),
        None => format!("when {host} is back it clears up the {}", debts::told(debt)),
    });
    told.collect()
}

/// VMs whose newest copy came from this host and that no host has now, because this host was reinstalled.
fn lost_vms(world: &World, host: &HostRecord) -> Vec<String> {
    let is_gone = |version: &TpmVersion| {
        version.why != VersionReason::Deleted && world.inventory.vm(version.vm).is_none()
    };
    let gone = world.escrow.last_from(&host.name, is_gone);
    gone.iter().map(|version| {
        let name = &version.vm_name;
        format!("VM {name} was on this host and is on no host now; fleetward vm recover {name} rebuilds it on a host")
    })
    .collect()
}

/// How many VMs of the host trust only certificates that have run out.
fn old_certificates(world: &World, host: &HostRecord) -> Option<String> {
    let vms = world.inventory.vms_on(&host.name);
    let old = vms.iter().filter(|vm| vm.has_old_certificates()).count();
    (old > 0).then(|| {
        let vms = if old == 1 { "VM trusts" } else { "VMs trust" };
        format!(
            "{old} {vms} only Microsoft's Secure Boot certificates of 2011, which have run out; what adding the new ones costs: \
             fleetward secure-boot enroll --host {} --dry-run",
            host.name
        )
    })
}

/// Said from 180 days before the end of the host's own guardian.
fn guardian_ends(host: &HostRecord) -> Option<Remark> {
    let (now, end) = (OffsetDateTime::now_utc(), host.guardian.not_after()?);
    let left = end - now;
    if left > EXPIRY_WARNING {
        return None;
    }
    let fix = format!("fleetward guardian rotate --host {}", host.name);
    Some(if left.is_negative() {
        let text = format!("its guardian has expired, nothing new is wrapped for it: {fix}");
        Remark::new(ErrorCode::GuardianExpired, text)
    } else {
        let text = format!("its guardian expires in {} days: {fix}", left.whole_days());
        Remark::new(ErrorCode::GuardianExpiresSoon, text)
    })
}

/// Said when its certificate should have been renewed long ago.
fn certificate_ends(world: &World, host: &HostRecord, seen: &Seen) -> Option<String> {
    let (name, answers) = (&host.name, seen.answers);
    let now = OffsetDateTime::now_utc();
    let doubt = clocks::doubt(host, seen, now);
    if let Some(Distrust::OfIts(why)) = world.agents.distrust(name) {
        return Some(format!(
            "nobody speaks to it: {why}; it comes back with fleetward host rejoin {name}{doubt}"
        ));
    }
    let facts = host.certificate.as_ref()?;
    if facts.has_ended(now) && !answers {
        let ended = utc(facts.not_after);
        return Some(format!(
            "its certificate ended {ended}, and the fleet refuses it: fleetward host rejoin {name}{doubt}"
        ));
    }
    facts.ends_soon(now).then(|| {
        let (end, days) = (utc(facts.not_after), facts.left(now).whole_days());
        let fix = match answers {
            true => "the controller's log says why",
            false => "it is renewed when its agent answers",
        };
        format!("its certificate ends {end}, in {days} days, and was not renewed: {fix}")
    })
}
