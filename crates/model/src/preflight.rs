//! Preflight: whether a VM can move to a host, or start where it is, as pure rules over facts from both hosts.
//!
//! Each rule adds findings: code, what was found, fix. Rules about keys come first, because their findings are the
//! most frequent. A check that could not be made counts as failed. If the source can grant the key inside the group,
//! that is only a remark: the migration grants it.

use crate::admission::{Answer, Request, answer};
use crate::error::Finding;
use crate::fit::{self, HostOffer, Needs, Reserved, TpmWriter};
use crate::guardian::{EXPIRY_WARNING, TrustMode, crowded};
use crate::host::{Confinement, HostFacts, HostState, Version};
use crate::secure_boot::CertificateState;
use crate::vm::{TpmProcess, VmObserved};
use crate::{ErrorCode, Failure, GroupName, GuardianId, HostName, Names, VmName};
use time::{Duration, OffsetDateTime};

/// How far two hosts' clocks may be apart.
pub const CLOCK_LIMIT: Duration = Duration::seconds(60);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Move while it runs.
    Live,
    /// Move while it is stopped.
    Stopped,
    /// Start where it is; source and destination are one host.
    Start,
}

/// A host, as the controller knows it.
#[derive(Debug, Clone)]
pub struct Side<'a> {
    pub name: &'a HostName,
    pub group: &'a GroupName,
    pub reachable: bool,
    pub drained: bool,
    pub facts: Option<&'a HostFacts>,
    /// By the controller's clock, when the facts arrived.
    pub reported: Option<OffsetDateTime>,
    /// Guardians that were its own before.
    pub former: &'a [GuardianId],
    /// What jobs under way will take of it.
    pub reserved: Reserved,
}

impl<'a> Side<'a> {
    fn offer(&self) -> HostOffer<'a> {
        HostOffer {
            name: self.name,
            group: self.group,
            state: match (self.reachable, self.drained) {
                (false, _) => HostState::Unreachable,
                (true, true) => HostState::Drained,
                (true, false) => HostState::Online,
            },
            facts: self.facts,
            reserved: self.reserved.clone(),
        }
    }

    /// A guardian that opens the VM's key, that was this host's own, and that it no longer has: it was installed anew.
    fn lost_guardian(&self, vm: &VmObserved) -> Option<&GuardianId> {
        self.lost_of(&vm.tpm.guardians)
    }

    /// The same of a key that is wrapped for `recipients`.
    fn lost_of(&self, recipients: &[GuardianId]) -> Option<&GuardianId> {
        let has = |id: &GuardianId| {
            self.facts
                .is_none_or(|facts| facts.guardians.iter().any(|known| known.id == *id))
        };
        let opens = |id: &&GuardianId| recipients.contains(id);
        self.former.iter().filter(opens).find(|id| !has(id))
    }
}

/// Whether a host can open the VM's key protector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// The VM has no TPM.
    NoTpm,
    Yes,
    NotGranted,
    Unreadable(String),
}

/// What the destination said of the VM; none where it could not find out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    pub uuid_taken: Option<bool>,
    pub name_taken: Option<bool>,
    /// None when the CPU fits.
    pub cpu_problem: Option<String>,
    /// None when its flash fits.
    pub flash_problem: Option<String>,
    pub opening: Opening,
}

/// Everything the rules look at.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    pub mode: Mode,
    pub now: OffsetDateTime,
    /// Whether a migration may grant the key by itself.
    pub trust: TrustMode,
    pub vm: &'a VmObserved,
    /// What wrote its TPM last; none where only its host's present programs are known.
    pub tpm_written: Option<TpmWriter>,
    /// How many hosts the destination's group has.
    pub members: usize,
    pub source: Side<'a>,
    pub destination: Side<'a>,
    /// Whether the VM's own host can open the key protector; none when it did not say.
    pub source_opening: Option<Opening>,
    /// None when the destination did not answer.
    pub incoming: Option<Incoming>,
}

/// All findings, the blocking ones that matter most first. Empty: nothing speaks against it.
pub fn check(facts: &Facts<'_>) -> Vec<Finding> {
    if let Some(newer) = &facts.vm.newer {
        let Failure {
            code, because, fix, ..
        } = newer.refusal(&facts.vm.name, &facts.vm.host);
        return vec![Finding::blocking(code, because, fix)];
    }
    if facts.vm.metadata.is_none() {
        let what = format!("domain {} was not made by Fleetward", facts.vm.name);
        return vec![Finding::usual(ErrorCode::VmNotManaged, what)];
    }
    match facts.mode {
        Mode::Start => {
            let names = Names::default().vm(&facts.vm.name).host(facts.source.name);
            let rules = [
                keys_at_home,
                reachable,
                state,
                tpm_state,
                programs,
                went_back,
                certificates,
                confined,
            ];
            let found = rules.iter().flat_map(|rule| rule(facts));
            found.map(|finding| finding.about(&names)).collect()
        }
        Mode::Live | Mode::Stopped => {
            if facts.source.name == facts.destination.name {
                let what = format!(
                    "VM {} is on host {} already",
                    facts.vm.name, facts.source.name
                );
                return vec![Finding::usual(ErrorCode::SameHost, what)];
            }
            let rules = [
                agent,
                keys,
                reachable,
                presence,
                state,
                tpm_state,
                tpm_process,
                machine,
                equipment,
                not_older,
                cpu,
                flash,
                taken,
                clocks,
                certificates,
                loader,
                confined,
            ];
            let names = Names::default()
                .vm(&facts.vm.name)
                .host(facts.destination.name);
            let found = rules.iter().flat_map(|rule| rule(facts));
            found.map(|finding| finding.about(&names)).collect()
        }
    }
}

type Findings = Vec<Finding>;

/// Whether the destination's agent knows all of what the VM is. It comes first: an older agent cannot answer the rest.
fn agent(facts: &Facts<'_>) -> Findings {
    let found = fit::agent(&needs(facts), &facts.destination.offer());
    found.into_iter().collect()
}

/// Keys and groups of a move.
fn keys(facts: &Facts<'_>) -> Findings {
    let mut found = Vec::new();
    let (vm, destination) = (facts.vm, &facts.destination);
    let group = vm_group(facts);
    let other_group = group != destination.group;
    let opening = facts.incoming.as_ref().map(|i| &i.opening);
    let guardian = destination.facts.and_then(HostFacts::own_guardian);
    let wrapped = guardian.is_some_and(|own| vm.tpm.guardians.contains(&own.id))
        || matches!(opening, Some(Opening::Yes));
    if vm.tpm.enabled {
        if other_group && !wrapped {
            found.push(Finding::usual(
                ErrorCode::KeyNotGranted,
                format!(
                    "VM {} belongs to group {group}, host {} to group {}, and the VM's TPM key is not wrapped for that \
                     host's guardian, so it could not be opened there (Hyper-V reports this as error 10698)",
                    vm.name, destination.name, destination.group
                ),
            ));
        }
        // Also from a guardian that it had before it was rotated or installed anew: nothing grants that host its present one.
        let held = destination.facts.iter().flat_map(|f| &f.guardians);
        let mut its_own = held.map(|g| &g.id).chain(destination.former);
        let revoked = vm.metadata.as_ref();
        let revoked = revoked.is_some_and(|m| its_own.any(|id| m.is_revoked(id)));
        if revoked && !wrapped {
            found.push(Finding::blocking(
                ErrorCode::KeyNotGranted,
                format!(
                    "the key of VM {} was revoked from host {} by name, so no automatic grant restores it",
                    vm.name, destination.name
                ),
                format!(
                    "fleetward guardian grant {} --to {}",
                    vm.name, destination.name
                ),
            ));
        } else if !other_group && !wrapped {
            match facts.trust {
                TrustMode::Auto => found.extend(grantable(facts)),
                TrustMode::Manual => found.push(match destination.lost_guardian(vm) {
                    Some(lost) => installed_anew(vm, destination, lost),
                    None => by_hand(facts),
                }),
            }
        }
        if vm.roll_due().next().is_some() {
            let what = format!(
                "a revoked guardian still knows the TPM key of VM {}; the key is rolled when the VM stops",
                vm.name
            );
            found.push(Finding {
                blocking: false,
                fix: format!("fleetward vm stop {}", vm.name),
                ..Finding::usual(ErrorCode::RollDue, what)
            });
        }
        if let (true, Some(own)) = (wrapped, guardian)
            && own.not_after().is_some_and(|end| end < facts.now)
        {
            found.push(Finding {
                blocking: false,
                ..expired(destination.name)
            });
        }
        found.extend(ends_soon(facts));
        found.extend(
            crowded(destination.group, facts.members).map(|what| Finding {
                blocking: false,
                ..Finding::usual(ErrorCode::GroupTooLarge, what)
            }),
        );
        if let Some(Opening::Unreadable(because)) = opening {
            found.push(Finding::usual(
                ErrorCode::KeyProtectorUnreadable,
                format!(
                    "host {} cannot open the key protector of VM {}: {because}",
                    destination.name, vm.name
                ),
            ));
        }
    }
    found
}

/// The key is wrapped for what the host was before.
fn installed_anew(vm: &VmObserved, host: &Side<'_>, lost: &GuardianId) -> Finding {
    let short = lost.short();
    Finding::blocking(
        ErrorCode::KeyNotGranted,
        has_another_guardian(&vm.name, host, lost),
        format!(
            "fleetward guardian grant {} --to {}, where the VM is on another host; or, with the PFX files of guardian {short}, \
             on host {}: fleetward-agent guardian import-pfx VMSigning.pfx VMEncryption.pfx",
            vm.name, host.name, host.name
        ),
    )
}

fn has_another_guardian(vm: &VmName, host: &Side<'_>, lost: &GuardianId) -> String {
    format!(
        "host {} was installed anew and has another guardian: the TPM key of VM {vm} is wrapped for its former one, {}, which \
         it no longer has",
        host.name,
        lost.short()
    )
}

/// A VM that no host has is to be rebuilt on `host`, which cannot open its key. Nobody has the VM to grant from, so what
/// helps is another host first, one of `openers`, or a guardian that can open it.
pub fn closed_to_rebuild(
    vm: &VmName,
    host: &Side<'_>,
    recipients: &[GuardianId],
    openers: &[HostName],
) -> Finding {
    let to = host.name;
    let (what, guardian) = match host.lost_of(recipients) {
        Some(lost) => (
            has_another_guardian(vm, host, lost),
            format!("guardian {}", lost.short()),
        ),
        None => (
            format!("the TPM key of VM {vm} is not wrapped for any guardian of host {to}"),
            "one of its guardians".to_owned(),
        ),
    };
    let import = format!(
        "with the PFX files of {guardian}, on host {to}: fleetward-agent guardian import-pfx VMSigning.pfx VMEncryption.pfx, \
         and then: fleetward vm recover {vm} --to {to}"
    );
    let fix = match openers.first() {
        Some(other) => format!(
            "to a host that opens it, and on from there: fleetward vm recover {vm} --to {other} && fleetward vm migrate {vm} \
             --to {to} --offline; or, {import}"
        ),
        None => import,
    };
    Finding::blocking(ErrorCode::KeyNotGranted, what, fix)
}

/// The refusal of a fleet in which only administrators grant, with both ways to grant.
fn by_hand(facts: &Facts<'_>) -> Finding {
    let (vm, from, to) = (&facts.vm.name, facts.source.name, facts.destination.name);
    let short_way = format!(
        "the short way, which moves no private key: fleetward guardian grant --all --to {to}"
    );
    let own = facts.source.facts.and_then(HostFacts::own_guardian);
    let fix = own.map(|own| own.id.short()).map_or_else(
        || short_way.clone(),
        |own| {
            format!(
                "{short_way}. By hand, as on Hyper-V: \
                 (1) log in on host {from}; (2) fleetward-agent guardian list; (3) its own guardian is {own}; \
                 (4) fleetward-agent guardian export-pfx {own} --out /root; (5) choose a password; \
                 (6) copy VMSigning.pfx and VMEncryption.pfx to host {to}; (7) log in there; \
                 (8) fleetward-agent guardian import-pfx VMSigning.pfx VMEncryption.pfx; (9) remove the copies; \
                 (10) do the same the other way round"
            )
        },
    );
    Finding::blocking(
        ErrorCode::KeyNotGranted,
        format!(
            "the TPM key of VM {vm} is not wrapped for any guardian of host {to}, and this fleet grants keys only by hand \
             (--trust manual; Hyper-V reports this as error 10698)"
        ),
        fix,
    )
}

/// Whether the source can wrap the key for a destination of its own group.
fn grantable(facts: &Facts<'_>) -> Findings {
    let (vm, destination) = (facts.vm, &facts.destination);
    let mut found = Vec::new();
    match destination.facts.map(HostFacts::own_guardian) {
        None => {} // a host that never reported; said by `reachable`
        Some(None) => found.push(Finding::blocking(
            ErrorCode::KeyNotGranted,
            format!(
                "host {} has no guardian of its own to wrap the key of VM {} for",
                destination.name, vm.name
            ),
            format!("restart the agent on host {}", destination.name),
        )),
        Some(Some(own)) if own.not_after().is_none_or(|end| end < facts.now) => {
            found.push(expired(destination.name));
        }
        Some(Some(own)) if own.begins_after(facts.now).is_some() => {
            let what = format!(
                "the certificates of host {}'s guardian are not valid yet: they were made by a clock that was wrong",
                destination.name
            );
            let fix = format!(
                "synchronise the clocks, then: fleetward guardian rotate --host {}",
                destination.name
            );
            found.push(Finding::blocking(ErrorCode::ClocksApart, what, fix));
        }
        Some(Some(_)) => {
            let what = format!(
                "the key of VM {} is not wrapped for host {} yet; a move grants it first",
                vm.name, destination.name
            );
            let fix = format!(
                "nothing to do, or now: fleetward guardian grant {} --to {}",
                vm.name, destination.name
            );
            found.push(Finding {
                blocking: false,
                ..Finding::blocking(ErrorCode::KeyNotGranted, what, fix)
            });
        }
    }
    match &facts.source_opening {
        Some(Opening::Yes | Opening::NoTpm) => {}
        Some(Opening::NotGranted) => found.push(Finding::blocking(
            ErrorCode::KeyNotGranted,
            format!(
                "host {} itself cannot open the key of VM {}, and so cannot grant it",
                facts.source.name, vm.name
            ),
            format!(
                "with the PFX files of a guardian that has the key, on host {}: fleetward-agent guardian import-pfx \
                 VMSigning.pfx VMEncryption.pfx",
                facts.source.name
            ),
        )),
        Some(Opening::Unreadable(because)) => found.push(Finding::usual(
            ErrorCode::KeyProtectorUnreadable,
            format!(
                "host {} cannot open the key protector of VM {}: {because}",
                facts.source.name, vm.name
            ),
        )),
        None if facts.source.reachable => found.push(unavailable(
            facts.source.name,
            "whether it can open the VM's key protector",
        )),
        None => {}
    }
    found
}

/// A guardian whose end is near: everything works, and somebody should do something.
fn ends_soon(facts: &Facts<'_>) -> Option<Finding> {
    let host = facts.destination.name;
    let end = facts.destination.facts?.own_guardian()?.not_after()?;
    let left = end - facts.now;
    if left.is_negative() || left > EXPIRY_WARNING {
        return None;
    }
    Some(Finding {
        blocking: false,
        ..Finding::blocking(
            ErrorCode::GuardianExpiresSoon,
            format!(
                "the certificates of host {host}'s guardian end in {} days",
                left.whole_days()
            ),
            format!("fleetward guardian rotate --host {host}"),
        )
    })
}

/// The key of a start.
fn keys_at_home(facts: &Facts<'_>) -> Findings {
    let (vm, host) = (facts.vm, facts.source.name);
    if !vm.tpm.enabled {
        return Vec::new();
    }
    let finding = match (&facts.source_opening, facts.source.lost_guardian(vm)) {
        (Some(Opening::Yes | Opening::NoTpm), _) => return Vec::new(),
        (Some(Opening::NotGranted), Some(lost)) => installed_anew(vm, &facts.source, lost),
        (Some(Opening::NotGranted), None) => Finding::usual(
            ErrorCode::KeyNotGranted,
            format!(
                "the TPM key of VM {} is not wrapped for any guardian of host {host}",
                vm.name
            ),
        ),
        (Some(Opening::Unreadable(because)), _) => Finding::usual(
            ErrorCode::KeyProtectorUnreadable,
            format!(
                "host {host} cannot open the key protector of VM {}: {because}",
                vm.name
            ),
        ),
        (None, _) if !facts.source.reachable => return Vec::new(),
        (None, _) => unavailable(host, "whether it can open the VM's key protector"),
    };
    vec![finding]
}

/// Which of Microsoft's certificates its firmware trusts: it starts and moves all the same.
fn certificates(facts: &Facts<'_>) -> Findings {
    let vm = facts.vm;
    let state = vm.noted.secure_boot.as_ref().map(|found| found.state);
    if state != Some(CertificateState::UpdateAvailable) {
        return Vec::new();
    }
    let what = format!(
        "the firmware of VM {} trusts Microsoft's certificates of 2011 and not all of their successors of 2023",
        vm.name
    );
    vec![Finding {
        blocking: false,
        ..Finding::usual(ErrorCode::SecureBootOutdated, what)
    }]
}

/// Whether its firmware starts its guest: it moves all the same.
fn loader(facts: &Facts<'_>) -> Findings {
    facts.vm.loader_refused().into_iter().collect()
}

/// What keeps a guest that has taken over its QEMU from the other VMs of the host: it starts and moves all the same.
fn confined(facts: &Facts<'_>) -> Findings {
    let host = &facts.destination;
    let found = host.facts.and_then(|facts| facts.confinement);
    only(found == Some(Confinement::None), || {
        let what = format!(
            "libvirt on host {} confines VMs by neither AppArmor nor SELinux (security_driver = \"none\")",
            host.name
        );
        Finding::warning(ErrorCode::HostUnconfined, what)
    })
}

/// The VM's own host.
fn reachable(facts: &Facts<'_>) -> Findings {
    // Its group and whether it is drained do not matter to what is there already.
    let home = HostOffer {
        state: match facts.source.reachable {
            true => HostState::Online,
            false => HostState::Unreachable,
        },
        ..facts.source.offer()
    };
    fit::presence(&Needs::default(), &home)
}

/// Whether the destination answers and takes VMs of that group.
fn presence(facts: &Facts<'_>) -> Findings {
    let mut found = fit::presence(&needs(facts), &facts.destination.offer());
    if facts.destination.reachable && facts.incoming.is_none() {
        found.push(unavailable(
            facts.destination.name,
            "whether it takes the VM",
        ));
    }
    found
}

/// Whether it has what the VM needs.
fn equipment(facts: &Facts<'_>) -> Findings {
    fit::equipment(&needs(facts), &facts.destination.offer())
}

fn needs(facts: &Facts<'_>) -> Needs {
    let needs = Needs::of(facts.vm, facts.mode == Mode::Live, facts.source.facts);
    Needs {
        group: Some(vm_group(facts).clone()),
        tpm_written: facts.tpm_written.clone().or(needs.tpm_written),
        ..needs
    }
}

/// The packages of its own host may have gone back since its TPM was written.
fn went_back(facts: &Facts<'_>) -> Findings {
    let written = facts.tpm_written.as_ref();
    let written = written.filter(|_| facts.vm.tpm.enabled && facts.vm.state.stands_still());
    let found = written
        .zip(facts.destination.facts)
        .and_then(|(written, here)| written.goes_back(facts.destination.name, here));
    found.into_iter().collect()
}

fn state(facts: &Facts<'_>) -> Findings {
    let request = match facts.mode {
        Mode::Live => Request::MigrateLive,
        Mode::Stopped => Request::MigrateOffline,
        Mode::Start => return Vec::new(),
    };
    match answer(facts.vm.state, request) {
        Answer::Accept | Answer::Done => Vec::new(),
        Answer::Refuse(reason) => {
            let (vm, state) = (&facts.vm.name, facts.vm.state);
            let host = facts.source.name;
            let what = format!("VM {vm} is {state}: {}", reason.because(vm, host));
            let fix = reason.fix(vm, host);
            vec![Finding::blocking(reason.code, what, fix)]
        }
    }
}

fn tpm_state(facts: &Facts<'_>) -> Findings {
    let tpm = &facts.vm.tpm;
    // swtpm writes the file when it likes while the VM runs
    let expected = tpm.enabled && facts.vm.state.stands_still();
    only(expected && !tpm.state_present, || {
        let what = format!(
            "the TPM state of VM {} is gone from host {}",
            facts.vm.name, facts.source.name
        );
        Finding::usual(ErrorCode::TpmStateMissing, what)
    })
}

/// QEMU asks for the TPM's state at the switch-over, and the guest stands still until it gets it.
fn tpm_process(facts: &Facts<'_>) -> Findings {
    let process = facts.vm.tpm.process.filter(|_| facts.mode == Mode::Live);
    let finding = |process: TpmProcess| process.finding(&facts.vm.name, facts.source.name);
    process.into_iter().map(finding).collect()
}

/// A machine that does not answer does not move, and the job would wait for it.
fn machine(facts: &Facts<'_>) -> Findings {
    let finding = facts.vm.not_answering();
    finding
        .filter(|_| facts.mode == Mode::Live)
        .into_iter()
        .collect()
}

/// Programs of the host it starts on, missing or too old by themselves.
fn programs(facts: &Facts<'_>) -> Findings {
    let there = facts.destination.facts;
    there.map_or_else(Vec::new, |there| {
        fit::programs(facts.vm.tpm.enabled, facts.destination.name, there)
    })
}

/// Programs that are older than where the VM runs now. What wrote its TPM is part of [`fit::equipment`].
fn not_older(facts: &Facts<'_>) -> Findings {
    let (Some(here), Some(there)) = (facts.source.facts, facts.destination.facts) else {
        return Vec::new();
    };
    let (here, there) = (&here.versions, &there.versions);
    let mut found = Vec::new();
    let mut compare = |code, program: &str, here: Version, there: Version| {
        if there < here {
            let what = format!(
                "host {} has {program} {there}, the VM comes from {program} {here} on host {}",
                facts.destination.name, facts.source.name
            );
            found.push(Finding::usual(code, what));
        }
    };
    if facts.mode == Mode::Live {
        compare(
            ErrorCode::LibvirtTooOld,
            "libvirt",
            here.libvirt,
            there.libvirt,
        );
        compare(ErrorCode::QemuTooOld, "QEMU", here.qemu, there.qemu);
    }
    found
}

fn cpu(facts: &Facts<'_>) -> Findings {
    let problem = facts.incoming.as_ref().and_then(|i| i.cpu_problem.as_ref());
    match (facts.mode, problem) {
        (Mode::Live, Some(problem)) => {
            let host = facts.destination.name;
            let what = format!("the CPU of host {host} does not fit: {problem}");
            vec![Finding::usual(ErrorCode::CpuIncompatible, what)]
        }
        (Mode::Live | Mode::Stopped | Mode::Start, _) => Vec::new(),
    }
}

/// A running VM has its firmware in its memory, and goes on in flash of the same size.
fn flash(facts: &Facts<'_>) -> Findings {
    let incoming = facts.incoming.as_ref();
    let problem = incoming.and_then(|i| i.flash_problem.as_ref());
    let problem = problem.filter(|_| facts.mode == Mode::Live);
    let finding = |problem: &String| {
        let host = facts.destination.name;
        let what = format!("the UEFI firmware of host {host} does not fit: {problem}");
        Finding::usual(ErrorCode::FirmwareDiffers, what)
    };
    problem.map(finding).into_iter().collect()
}

fn taken(facts: &Facts<'_>) -> Findings {
    let Some(incoming) = &facts.incoming else {
        return Vec::new(); // said by `reachable`
    };
    let (host, vm) = (facts.destination.name, facts.vm);
    let mut found = Vec::new();
    match incoming.uuid_taken {
        Some(false) => {}
        Some(true) => {
            let what = format!(
                "host {host} already has a domain with the uuid of VM {}, {}",
                vm.name, vm.id
            );
            found.push(Finding::usual(ErrorCode::UuidTaken, what));
        }
        None => found.push(unavailable(host, "whether the VM's uuid is free")),
    }
    match incoming.name_taken {
        Some(false) => {}
        Some(true) => {
            let what = format!("host {host} already has another domain called {}", vm.name);
            found.push(Finding::usual(ErrorCode::NameTaken, what));
        }
        None => found.push(unavailable(host, "whether the VM's name is free")),
    }
    found
}

/// Each clock is compared with the controller's at the moment its report arrived, so that old reports do not mislead.
fn clocks(facts: &Facts<'_>) -> Findings {
    let offset = |side: &Side<'_>| Some(side.facts?.clock - side.reported?);
    let (Some(here), Some(there)) = (offset(&facts.source), offset(&facts.destination)) else {
        return Vec::new();
    };
    let apart = (here - there).abs();
    only(apart > CLOCK_LIMIT, || {
        let what = format!(
            "the clocks of hosts {} and {} are {} s apart, at most {} s are allowed",
            facts.source.name,
            facts.destination.name,
            apart.whole_seconds(),
            CLOCK_LIMIT.whole_seconds()
        );
        Finding::usual(ErrorCode::ClocksApart, what)
    })
}

fn vm_group<'a>(facts: &Facts<'a>) -> &'a GroupName {
    let metadata = facts.vm.metadata.as_ref();
    metadata.map_or(facts.source.group, |m| &m.spec.group)
}

fn only(condition: bool, finding: impl FnOnce() -> Finding) -> Findings {
    condition.then(finding).into_iter().collect()
}

fn expired(host: &HostName) -> Finding {
    let what = format!("the certificates of host {host}'s guardian have expired");
    Finding::usual(ErrorCode::GuardianExpired, what)
}

fn unavailable(host: &HostName, what: &str) -> Finding {
    let what = format!("host {host} did not say {what}");
    Finding::usual(ErrorCode::CheckUnavailable, what)
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
