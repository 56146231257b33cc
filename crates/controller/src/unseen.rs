//! What the controller knows of a VM and the pure rules of a check do not see, looked up once for all hosts. The check of one VM
//! and those of the whole fleet have it from here, so what one names the other names, too.

use crate::admission::shown_state;
use crate::debts::unpaid;
use crate::ek;
use crate::world::World;
use fleetward_api::agent::TpmStateJudged;
use fleetward_api::controller::CheckView;
use fleetward_model::error::Finding;
use fleetward_model::preflight::Mode;
use fleetward_model::vm::{VmObserved, VmState};
use fleetward_model::{ErrorCode, Failure, HostName, Names, change};
use time::OffsetDateTime;

/// Of one VM.
#[derive(Debug)]
pub(crate) struct Unseen<'a> {
    world: &'a World,
    vm: &'a VmObserved,
    dispute: Option<Failure>,
    state: Option<Failure>,
    /// Where it is.
    at_home: Vec<Finding>,
    /// Before it goes to another host.
    away: Option<Finding>,
}

impl<'a> Unseen<'a> {
    /// `judged`: what its host says of its TPM's state now; none where it was not asked. `dispute`: why nothing is done with
    /// it, where several hosts say that they have it.
    pub(crate) fn of(
        world: &'a World,
        vm: &'a VmObserved,
        judged: Option<&TpmStateJudged>,
        dispute: Option<Failure>,
    ) -> Self {
        let process = vm.tpm.process.map(|of| of.finding(&vm.name, &vm.host));
        let here = noticed(world, vm, shown_state(world, vm)).chain(process);
        let remark = |finding| Finding {
            blocking: false,
            ..finding
        };
        Self {
            world,
            vm,
            dispute,
            state: state_refused(world, vm, judged),
            at_home: here.map(remark).collect(),
            away: ek::finding(world, vm, true),
        }
    }

    /// Adds it to what the rules said of the VM and the host `to`. `owes`: whether that host has to do anything for jobs that
    /// ended without it.
    pub(crate) fn add(&self, mode: Mode, mut checked: CheckView, owes: bool) -> CheckView {
        let (world, vm) = (self.world, self.vm);
        // The rules do not know which copies there are.
        for finding in &mut checked.findings {
            if let Some(cure) = world.escrow.cure(vm.id, vm.name.as_str(), finding.code) {
                finding.fix = cure;
            }
        }
        if let Some(finding) = world.fleet.finding(OffsetDateTime::now_utc()) {
            checked.findings.push(finding);
        }
        if let Some(failure) = &self.dispute {
            return in_the_way(checked, failure.clone());
        }
        if let Some(failure) = &self.state
            && !checked.findings.iter().any(|f| f.code == failure.code)
        {
            checked = in_the_way(checked, failure.clone());
        }
        checked = match mode {
            Mode::Start => self.at_home.iter().cloned().fold(checked, with),
            Mode::Live | Mode::Stopped => self.away.iter().cloned().fold(checked, with),
        };
        match self.debt(&checked.to, owes) {
            Some(failure) => in_the_way(checked, failure),
            None => checked,
        }
    }

    /// What a host still has of the VM, of a job that ended without it.
    fn debt(&self, host: &HostName, owes: bool) -> Option<Failure> {
        let owed = owes.then(|| unpaid(&self.world.debts, host, Some(self.vm.id)));
        owed.flatten()
    }
}

/// What is to be known of a VM where it is, in that state as people see it: its findings in `vm show`.
pub(crate) fn noticed(
    world: &World,
    vm: &VmObserved,
    state: VmState,
) -> impl Iterator<Item = Finding> {
    let loader = vm.loader_refused().filter(|_| state == VmState::Running);
    let silent = vm.not_answering().filter(|_| state != VmState::Unknown);
    change::differing(vm)
        .into_iter()
        .chain(ek::finding(world, vm, false))
        .chain(loader)
        .chain(silent)
}

/// What is wrong with the TPM state of a VM that stands still: as its host says now, and whether it opens as the host said
/// when a copy of it was asked for. A former version of the agent says the one thing only then, too.
fn state_refused(
    world: &World,
    vm: &VmObserved,
    judged: Option<&TpmStateJudged>,
) -> Option<Failure> {
    if !vm.state.stands_still() {
        return None;
    }
    let missed = || world.escrow.missed(vm.id);
    let failure = match judged {
        Some(TpmStateJudged::Opened) => None,
        Some(TpmStateJudged::Refused { failure }) => Some(failure.clone()),
        Some(TpmStateJudged::Untried) => {
            missed().filter(|missed| missed.code == ErrorCode::TpmStateUnreadable)
        }
        None => missed().filter(|missed| {
            let of_state = matches!(
                missed.code,
                ErrorCode::TpmStateDamaged
                    | ErrorCode::TpmStateOutdated
                    | ErrorCode::TpmStateUnreadable
            );
            of_state && world.escrow.lacks(vm).is_some()
        }),
    }?;
    let fix = world.escrow.cure(vm.id, vm.name.as_str(), failure.code);
    let fix = fix.unwrap_or_else(|| failure.fix.clone());
    Some(failure.about(&Names::default().vm(&vm.name)).fix(fix))
}

fn in_the_way(checked: CheckView, failure: Failure) -> CheckView {
    let what = format!("{}: {}", failure.what, failure.because);
    let finding = Finding::blocking(failure.code, what, failure.fix);
    with(checked, finding)
}

fn with(mut checked: CheckView, finding: Finding) -> CheckView {
    if finding.blocking {
        checked.possible = false;
        checked.code = checked.code.or(Some(finding.code));
    }
    checked.findings.push(finding);
    checked
}
