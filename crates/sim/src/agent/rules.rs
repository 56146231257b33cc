//! What a simulated host refuses because of what it has: the same as the real agent, in the same order.

use super::Inner;
use fleetward_api::agent::operation::{self, Operation};
use fleetward_model::vm::{TransitSide, VmState};
use fleetward_model::{ErrorCode, Failure, JobId, VmId};

/// What an operation needs of the VM on its host.
#[derive(Clone, Copy)]
enum Need {
    /// It is defined there.
    There,
    /// It is no half of a migration.
    Whole,
    /// It does not run; it may be absent.
    Stopped,
}

impl Inner {
    /// # Errors
    /// The first thing for which the real agent would not begin with it.
    pub(super) fn admit(&self, job: JobId, vm: VmId, operation: &Operation) -> Result<(), Failure> {
        for need in needs(operation) {
            self.require(vm, *need)?;
        }
        match operation {
            Operation::Start(_) => Ok(()),
            Operation::MigrateLive(_) if self.left.get(&vm) != Some(&job) => {
                self.require(vm, Need::Whole)?;
                self.require(vm, Need::There)?;
                match self.state(vm) {
                    Some(VmState::Running) => Ok(()),
                    _ => Err(refused(ErrorCode::VmNotRunning, vm, "it does not run here")),
                }
            }
            Operation::SendStopped(_) if self.left.get(&vm) != Some(&job) => {
                self.require(vm, Need::Whole)?;
                self.require(vm, Need::There)?;
                self.require(vm, Need::Stopped)
            }
            Operation::PrepareIncoming(operation::PrepareIncoming { metadata, .. }) => {
                self.admit_arrival(job, vm, &metadata.spec.name)
            }
            Operation::Depart(_) => match self.transit(vm) {
                Some((TransitSide::Departed, of)) if of == job => Ok(()),
                Some(_) => Err(wrong_state(vm, "it is half of another migration")),
                None => {
                    self.require(vm, Need::Stopped)?;
                    match self.left.get(&vm) == Some(&job) {
                        true => Ok(()),
                        false => Err(wrong_state(vm, "this migration has not moved it")),
                    }
                }
            },
            Operation::CommitIncoming(_) => match self.transit(vm) {
                Some((TransitSide::Incoming, of)) if of == job => {
                    match self.vms.contains_key(&vm) {
                        true => Ok(()),
                        false => Err(wrong_state(vm, "not all of it has arrived")),
                    }
                }
                None if self.committed.get(&vm) == Some(&job) => Ok(()),
                _ => Err(wrong_state(vm, "nothing of this migration has arrived")),
            },
            Operation::AbandonIncoming(_) if self.committed.get(&vm) == Some(&job) => {
                Err(wrong_state(vm, "the migration is committed"))
            }
            Operation::CleanUpDeparted(_) => match self.transit(vm) {
                Some((TransitSide::Departed, of)) if of == job => self.require(vm, Need::Stopped),
                Some(_) => Err(wrong_state(vm, "it is half of another migration")),
                None if !self.vms.contains_key(&vm) => Ok(()),
                None => Err(wrong_state(vm, "it has not departed")),
            },
            Operation::Supersede(_) => match self.transit(vm) {
                Some((TransitSide::Incoming, _)) => Err(wrong_state(vm, "it is arriving here")),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Neither the VM nor its name may be there, but for what this job has brought.
    fn admit_arrival(
        &self,
        job: JobId,
        vm: VmId,
        name: &fleetward_model::VmName,
    ) -> Result<(), Failure> {
        match self.transit(vm) {
            Some((TransitSide::Incoming, of)) if of == job => return Ok(()),
            Some(_) => return Err(wrong_state(vm, "it is half of another migration")),
            None => {}
        }
        if self.vms.contains_key(&vm) {
            return Err(refused(ErrorCode::UuidTaken, vm, "the host has it"));
        }
        let mut others = self.vms.values();
        match others.any(|other| other.metadata.spec.name == *name) {
            true => Err(refused(
                ErrorCode::NameTaken,
                vm,
                "another has its name here",
            )),
            false => Ok(()),
        }
    }

    fn require(&self, vm: VmId, need: Need) -> Result<(), Failure> {
        let stopped = |state| matches!(state, VmState::Stopped | VmState::Saved);
        match need {
            Need::There if !self.vms.contains_key(&vm) => {
                Err(refused(ErrorCode::VmNotFound, vm, "it is not here"))
            }
            Need::Whole if self.transit(vm).is_some() => {
                Err(wrong_state(vm, "this copy is half of a migration"))
            }
            Need::Stopped if self.state(vm).is_some_and(|state| !stopped(state)) => {
                Err(refused(ErrorCode::VmRunning, vm, "it runs on this host"))
            }
            Need::There | Need::Whole | Need::Stopped => Ok(()),
        }
    }

    pub(super) fn state(&self, vm: VmId) -> Option<VmState> {
        Some(self.vms.get(&vm)?.state)
    }

    /// Which half of which migration it is here; what arrives is one before it is defined.
    pub(super) fn transit(&self, vm: VmId) -> Option<(TransitSide, JobId)> {
        let found = self
            .vms
            .get(&vm)
            .and_then(|vm| vm.metadata.transit.as_ref());
        let defined = found.map(|transit| (transit.side, transit.job));
        let arriving = self.arriving.get(&vm);
        defined.or_else(|| arriving.map(|job| (TransitSide::Incoming, *job)))
    }
}

/// In the order in which they are looked at.
fn needs(operation: &Operation) -> &'static [Need] {
    use Need::{Stopped, There, Whole};
    match operation {
        Operation::Start(_) | Operation::Pause(_) | Operation::Resume(_) => &[There, Whole],
        Operation::Grant(_) | Operation::Rewrap(_) | Operation::PutProtector(_) => &[There, Whole],
        Operation::AttachTpm(_)
        | Operation::DetachTpm(_)
        | Operation::PrepareRoll(_)
        | Operation::PrepareRestore(_)
        | Operation::PrepareUnlock(_)
        | Operation::CommitTpm(_) => &[Stopped, Whole, There],
        Operation::SetAsideTpm(_) => &[There],
        Operation::Undefine(_) | Operation::RemoveTpm(_) => &[Stopped, Whole],
        Operation::DeleteVolumes(_) => &[Stopped],
        Operation::CreateVolumes(_) | Operation::MakeTpm(_) | Operation::Define(_) => &[Whole],
        _ => &[],
    }
}

fn refused(code: ErrorCode, vm: VmId, because: &str) -> Failure {
    Failure::new(code, format!("VM {vm}")).because(because)
}

fn wrong_state(vm: VmId, because: &str) -> Failure {
    refused(ErrorCode::VmStateWrong, vm, because)
}
