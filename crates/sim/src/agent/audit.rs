//! The audit log of a simulated host: a record for each use of a key, as the real agent writes them.

use super::Inner;
use fleetward_api::agent::RewrapReason;
use fleetward_api::agent::operation::{self, Operation};
use fleetward_model::audit::{AuditAction, AuditEvent, AuditRecord};
use fleetward_model::vm::VmState;
use fleetward_model::{GuardianId, JobId, VmId};
use time::OffsetDateTime;

/// A use of a key.
pub(super) struct Use {
    action: AuditAction,
    guardian: Option<GuardianId>,
    reason: &'static str,
}

impl Inner {
    /// What a host has in its log that has just joined, since then.
    pub fn record_join(&mut self, time: OffsetDateTime) {
        for (action, reason) in [
            (AuditAction::MakeGuardian, "the host's own"),
            (AuditAction::Join, "the host joins the fleet"),
        ] {
            self.append(AuditEvent {
                time,
                host: self.host.clone(),
                actor: "local:0".into(),
                action,
                vm: None,
                guardian: Some(self.own()),
                reason: reason.into(),
                job: None,
            });
        }
    }

    /// For what of keys `operation` needs on the VM as it is now.
    pub(super) fn uses(&self, vm: VmId, operation: &Operation) -> Vec<Use> {
        let own = |action, reason| Use {
            action,
            guardian: Some(self.own()),
            reason,
        };
        let found = self.vms.get(&vm);
        let has_tpm = found.is_some_and(|vm| vm.metadata.spec.tpm);
        let has_keys = self.tpms.contains_key(&vm);
        match operation {
            Operation::MakeTpm(operation::MakeTpm { recipients })
            | Operation::CopyTpm(operation::CopyTpm { recipients })
                if !self.made.contains_key(&vm) =>
            {
                let others = recipients.iter().map(|recipient| &recipient.guardian.id);
                let others = others.filter(|guardian| **guardian != self.own());
                let mut uses = vec![own(AuditAction::MakeTpm, "a new TPM")];
                uses.extend(self.granted(vm, others));
                uses
            }
            Operation::Start(_)
                if has_tpm && found.is_some_and(|vm| vm.state == VmState::Stopped) =>
            {
                vec![own(AuditAction::Open, "the VM starts")]
            }
            Operation::PrepareIncoming(operation::PrepareIncoming { metadata, .. })
                if metadata.spec.tpm =>
            {
                vec![own(AuditAction::Open, "the VM migrates to this host")]
            }
            Operation::Grant(operation::Grant { to }) => {
                let new = to.iter().map(|guardian| &guardian.guardian.id);
                self.granted(vm, new)
            }
            Operation::Rewrap(operation::Rewrap { change }) => {
                let new = change.add.iter().map(|guardian| &guardian.guardian.id);
                let mut uses = self.granted(vm, new);
                let dropped = change.drop.iter().filter(|_| has_keys);
                uses.extend(dropped.map(|guardian| Use {
                    action: AuditAction::Revoke,
                    guardian: Some(guardian.clone()),
                    reason: match change.why {
                        RewrapReason::Rotated => "a guardian is exchanged for its successor",
                        _ => "revoked by name",
                    },
                }));
                uses
            }
            Operation::PrepareRoll(_) => vec![
                own(AuditAction::Open, "the TPM key is replaced"),
                own(AuditAction::Roll, "the TPM key is replaced"),
            ],
            Operation::PrepareRestore(_) => {
                vec![own(AuditAction::Open, "an earlier version is brought back")]
            }
            Operation::PrepareUnlock(_) => vec![own(AuditAction::Open, "its lockout is cleared")],
            Operation::RemoveTpm(_) | Operation::SetAsideTpm(_) if has_keys => {
                vec![own(
                    AuditAction::RemoveTpm,
                    "removed, or kept in the history",
                )]
            }
            _ => Vec::new(),
        }
    }

    fn granted<'g>(&self, vm: VmId, new: impl Iterator<Item = &'g GuardianId>) -> Vec<Use> {
        let known = self.tpms.get(&vm);
        let new = new.filter(|guardian| known.is_none_or(|known| !known.contains(guardian)));
        let uses = new.map(|guardian| Use {
            action: AuditAction::Grant,
            guardian: Some(guardian.clone()),
            reason: "endorsed by the fleet's authority",
        });
        uses.collect()
    }

    /// What was done for a job.
    pub(super) fn record(&mut self, job: JobId, vm: VmId, uses: Vec<Use>) {
        for used in uses {
            self.append(AuditEvent {
                time: self.now(),
                host: self.host.clone(),
                actor: "controller".into(),
                action: used.action,
                vm: Some(vm),
                guardian: used.guardian,
                reason: used.reason.into(),
                job: Some(job),
            });
        }
    }

    /// The key of a VM was used to look whether its TPM opens.
    pub(super) fn record_open(&mut self, vm: VmId, job: Option<JobId>) {
        let actor = if job.is_some() { "controller" } else { "agent" };
        self.append(AuditEvent {
            time: self.now(),
            host: self.host.clone(),
            actor: actor.into(),
            action: AuditAction::Open,
            vm: Some(vm),
            guardian: Some(self.own()),
            reason: "its TPM is tried".into(),
            job,
        });
    }

    fn append(&mut self, event: AuditEvent) {
        let record = AuditRecord::chain(self.audit.last(), event);
        self.audit.push(record);
    }
}
