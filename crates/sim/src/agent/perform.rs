//! Operations on a simulated host: what the real agent refuses is refused, what it changes changes.

use super::Inner;
use super::vm::FakeVm;
use fleetward_api::agent::RewrapReason;
use fleetward_api::agent::operation::{self, Operation, OperationResult, SourceState};
use fleetward_model::change::{Direction, DiskAct};
use fleetward_model::secure_boot::CertificateState;
use fleetward_model::vm::{Revocation, StoppedBy, Transit, TransitSide, VmMetadata, VmState};
use fleetward_model::{ErrorCode, Failure, HostName, JobId, VmId};

impl Inner {
    pub(super) fn perform(
        &mut self,
        job: JobId,
        vm: VmId,
        operation: Operation,
    ) -> Result<OperationResult, Failure> {
        let refuse = |code, what: &str| Err(Failure::new(code, what.to_owned()));
        match operation {
            Operation::CreateVolumes(operation::CreateVolumes { spec, sources }) => {
                for source in &sources {
                    if let fleetward_model::vm::VolumeSource::Image { sha256, .. } = source
                        && !self.images.contains(sha256)
                    {
                        return refuse(ErrorCode::ImageNotFound, "the image was not sent");
                    }
                }
                self.volumes
                    .extend(spec.disks.into_iter().map(|d| d.volume));
            }
            Operation::DeleteVolumes(operation::DeleteVolumes { spec }) => {
                if self.vms.contains_key(&vm) {
                    return refuse(ErrorCode::VmStateWrong, "it is defined");
                }
                for disk in spec.disks {
                    self.volumes.remove(&disk.volume);
                }
            }
            Operation::CopyVm(operation::CopyVm { to, variables, .. }) => {
                self.volumes.extend(to.disks.into_iter().map(|d| d.volume));
                return Ok(operation::Copied {
                    paused_ms: None,
                    variables,
                    linked: false,
                    frozen: false,
                }
                .into());
            }
            Operation::UncopyVm(operation::UncopyVm { to }) => {
                for disk in to.disks {
                    self.volumes.remove(&disk.volume);
                }
            }
            Operation::PlaceVariables(_) => {}
            Operation::EnrollCertificates(_) => self.certificates(vm, CertificateState::Ok),
            Operation::RestoreCertificates(_) => {
                self.certificates(vm, CertificateState::UpdateAvailable);
            }
            Operation::MakeTpm(operation::MakeTpm { recipients })
            | Operation::CopyTpm(operation::CopyTpm { recipients }) => {
                let mut guardians = vec![self.own()];
                for recipient in recipients {
                    if !guardians.contains(&recipient.guardian.id) {
                        guardians.push(recipient.guardian.id);
                    }
                }
                self.tpms.insert(vm, guardians);
                return Ok(operation::TpmMade {
                    key_protector: self.protector("cHJvdGVjdG9y"),
                    key_id: fleetward_model::KeyId(vm.0),
                    ek_certificate: "ZWs=".into(),
                }
                .into());
            }
            Operation::RemoveTpm(_) => {
                self.tpms.remove(&vm);
            }
            Operation::AttachTpm(_) => {
                let made = self.protector("cHJvdGVjdG9y");
                if let Some(found) = self.vms.get_mut(&vm) {
                    found.metadata.spec.tpm = true;
                    found.metadata.key_protector = Some(made);
                }
            }
            Operation::DetachTpm(_) => {
                if let Some(found) = self.vms.get_mut(&vm) {
                    found.metadata.spec.tpm = false;
                    found.metadata.key_protector = None;
                }
            }
            Operation::SetAsideTpm(_) => {
                if self.vms.get(&vm).is_some_and(|vm| vm.metadata.spec.tpm) {
                    return refuse(ErrorCode::VmStateWrong, "its TPM is in use");
                }
                self.tpms.remove(&vm);
            }
            Operation::PrepareRoll(_)
            | Operation::PrepareRestore(_)
            | Operation::PrepareUnlock(_) => {
                return Ok(operation::Protector {
                    key_protector: self.protector("cm9sbGVk"),
                }
                .into());
            }
            Operation::CommitTpm(_) => drop(self.put_protector(vm, "cm9sbGVk")),
            Operation::AbandonTpm(_) => {}
            Operation::Define(operation::Define { mut metadata }) => {
                if metadata.spec.tpm {
                    metadata.key_protector = Some(self.protector("cHJvdGVjdG9y"));
                }
                let vm_there = FakeVm::new(*metadata, VmState::Stopped);
                self.vms.entry(vm).or_insert(vm_there);
            }
            Operation::ChangeVm(operation::ChangeVm { steps, direction }) => {
                let Some(found) = self.vms.get_mut(&vm) else {
                    return refuse(ErrorCode::VmNotFound, "not here");
                };
                if let Err(code) = found.change(&steps, direction) {
                    return refuse(code, "it runs");
                }
                let media = found.metadata.spec.media();
                let lost = media.filter(|medium| !self.images.contains(&medium.sha256));
                if lost.count() > 0 {
                    return refuse(ErrorCode::ImageNotFound, "the image was not sent");
                }
                for act in steps.iter().filter_map(|step| step.disk()?.act()) {
                    if let DiskAct::Come(disk) | DiskAct::Move { to: disk, .. } = act {
                        match direction {
                            Direction::Forward => self.volumes.insert(disk.volume.clone()),
                            Direction::Back => self.volumes.remove(&disk.volume),
                        };
                    }
                }
            }
            Operation::DropVolumes(operation::DropVolumes { disks }) => {
                for disk in disks {
                    self.volumes.remove(&disk.volume);
                }
            }
            Operation::Undefine(_) => {
                if self
                    .vms
                    .get(&vm)
                    .is_some_and(|vm| vm.state != VmState::Stopped)
                {
                    return refuse(ErrorCode::VmRunning, "it runs");
                }
                self.vms.remove(&vm);
            }
            Operation::Start(_) => match self.vms.get_mut(&vm) {
                None => return refuse(ErrorCode::VmNotFound, "not here"),
                Some(found) if found.metadata.transit.is_some() => {
                    return refuse(ErrorCode::VmStateWrong, "it is not the VM");
                }
                Some(found) => found.state = VmState::Running,
            },
            Operation::Stop(stop) => {
                let Some(found) = self.vms.get_mut(&vm) else {
                    return Ok(OperationResult::Nothing);
                };
                let runs = std::mem::replace(&mut found.state, VmState::Stopped);
                found.runs_with = None;
                if let Some(tpm) = &mut found.simulated_tpm {
                    // Nobody writes it any more, so its host can say what it is.
                    tpm.told = true;
                }
                let by = match stop.force {
                    true => StoppedBy::PowerOff,
                    false => StoppedBy::GuestAgent,
                };
                let by = (stop.tell && runs != VmState::Stopped).then_some(by);
                return Ok(operation::Stopped { by }.into());
            }
            Operation::Pause(_) | Operation::Resume(_) => {
                let (from, to) = match operation {
                    Operation::Pause(_) => (VmState::Running, VmState::Paused),
                    _ => (VmState::Paused, VmState::Running),
                };
                match self.vms.get_mut(&vm) {
                    Some(found) if found.state == from || found.state == to => found.state = to,
                    Some(_) | None => return refuse(ErrorCode::VmNotRunning, "it is stopped"),
                }
            }
            Operation::Grant(operation::Grant { to }) => {
                let guardians = self.tpms.entry(vm).or_default();
                for guardian in to {
                    if !guardians.contains(&guardian.guardian.id) {
                        guardians.push(guardian.guardian.id);
                    }
                }
                let key_protector = self.put_protector(vm, "Z3JhbnRlZA");
                return Ok(operation::Protector { key_protector }.into());
            }
            Operation::Rewrap(operation::Rewrap { change }) => {
                if let Some(found) = self.vms.get_mut(&vm) {
                    let revoked = &mut found.metadata.revoked;
                    if change.why == RewrapReason::Revoked {
                        revoked.extend(change.drop.iter().map(|guardian| Revocation {
                            guardian: guardian.clone(),
                            key_id: fleetward_model::KeyId(vm.0),
                        }));
                    }
                    let added = |r: &Revocation| {
                        change.add.iter().any(|g| g.guardian.id == r.guardian)
                            || change.former.contains(&r.guardian)
                    };
                    revoked.retain(|r| change.why != RewrapReason::Granted || !added(r));
                }
                let guardians = self.tpms.entry(vm).or_default();
                guardians.retain(|g| !change.drop.contains(g));
                for guardian in change.add {
                    if !guardians.contains(&guardian.guardian.id) {
                        guardians.push(guardian.guardian.id);
                    }
                }
                let key_protector = self.put_protector(vm, "cmV3cmFwcGVk");
                return Ok(operation::Protector { key_protector }.into());
            }
            Operation::PutProtector(_) => {}
            Operation::PrepareIncoming(operation::PrepareIncoming {
                metadata,
                disks,
                former_states,
                ..
            }) => {
                self.told_states = former_states;
                let spec = &metadata.spec;
                self.arriving.insert(vm, job);
                for disk in spec
                    .disks
                    .iter()
                    .filter(|d| disks.iter().any(|i| i.copy && i.target == d.target))
                {
                    self.volumes.insert(disk.volume.clone());
                }
            }
            Operation::AbandonIncoming(operation::AbandonIncoming { spec, .. }) => {
                // nothing of this job ever came here, or it is gone already
                if self.arriving.get(&vm) != Some(&job) {
                    return Ok(OperationResult::Nothing);
                }
                let here = self.vms.get(&vm);
                if here.is_some_and(|here| here.metadata.transit.is_none()) {
                    return refuse(ErrorCode::VmStateWrong, "it is committed");
                }
                self.arriving.remove(&vm);
                self.vms.remove(&vm);
                self.tpms.remove(&vm);
                for disk in spec.disks {
                    self.volumes.remove(&disk.volume);
                }
            }
            Operation::MigrateLive(operation::MigrateLive { to, .. }) => {
                return self.send(job, vm, &to.host, VmState::Paused);
            }
            Operation::SendStopped(operation::SendStopped { to, .. }) => {
                return self.send(job, vm, &to.host, VmState::Stopped);
            }
            Operation::RebuildIncoming(operation::RebuildIncoming {
                metadata,
                former_states,
                ..
            }) => {
                self.told_states = former_states;
                let transit = Some(Transit {
                    job,
                    side: TransitSide::Incoming,
                });
                let metadata = VmMetadata {
                    transit,
                    ..*metadata
                };
                for disk in &metadata.spec.disks {
                    self.volumes.insert(disk.volume.clone());
                }
                let state = VmState::Stopped;
                self.arriving.insert(vm, job);
                self.vms.insert(vm, FakeVm::new(metadata, state));
            }
            Operation::Supersede(_) => {
                if let Some(found) = self.vms.get_mut(&vm) {
                    if found.metadata.transit.is_some() {
                        return refuse(ErrorCode::VmStateWrong, "it is arriving here");
                    }
                    found.state = VmState::Stopped;
                    found.metadata.transit = Some(Transit {
                        job,
                        side: TransitSide::Departed,
                    });
                }
            }
            Operation::MigrationState(_) => {
                let here = self
                    .vms
                    .get(&vm)
                    .is_some_and(|vm| vm.state == VmState::Running);
                let state = if here {
                    SourceState::Here
                } else {
                    SourceState::NotHere
                };
                return Ok(OperationResult::MigrationState { state });
            }
            Operation::Depart(_) => {
                if let Some(found) = self.vms.get_mut(&vm) {
                    if found.state == VmState::Running {
                        return refuse(ErrorCode::VmRunning, "it runs here");
                    }
                    found.metadata.transit = Some(Transit {
                        job,
                        side: TransitSide::Departed,
                    });
                }
            }
            Operation::CommitIncoming(operation::CommitIncoming { live }) => {
                let Some(found) = self.vms.get_mut(&vm) else {
                    return refuse(ErrorCode::VmNotFound, "it never arrived");
                };
                found.metadata.transit = None;
                if live {
                    found.state = VmState::Running;
                }
                return Ok(OperationResult::Committed);
            }
            Operation::CleanUpDeparted(operation::CleanUpDeparted { spec, .. }) => {
                let departed = self
                    .vms
                    .get(&vm)
                    .is_none_or(|vm| vm.metadata.transit.is_some());
                if !departed {
                    return refuse(ErrorCode::VmStateWrong, "it has not departed");
                }
                self.vms.remove(&vm);
                self.tpms.remove(&vm);
                for disk in spec.disks {
                    self.volumes.remove(&disk.volume);
                }
            }
        }
        Ok(OperationResult::Nothing)
    }

    /// The whole migration in one stroke.
    fn send(
        &mut self,
        job: JobId,
        vm: VmId,
        to: &HostName,
        arrives: VmState,
    ) -> Result<OperationResult, Failure> {
        let found = self
            .vms
            .get_mut(&vm)
            .ok_or_else(|| Failure::new(ErrorCode::VmNotFound, "not here"))?;
        let lost = || Failure::new(ErrorCode::LinkLost, "the link between the hosts");
        let there = self.peers.of(to).ok_or_else(lost)?;
        let mut there = there.lock().expect("lock");
        if there.stop.lock().expect("lock").is_cancelled() {
            return Err(lost());
        }
        let transit = Some(Transit {
            job,
            side: TransitSide::Incoming,
        });
        let metadata = VmMetadata {
            transit,
            ..found.metadata.clone()
        };
        found.state = VmState::Stopped;
        let simulated_tpm = found.simulated_tpm;
        there.vms.entry(vm).or_insert(FakeVm {
            simulated_tpm,
            ..FakeVm::new(metadata, arrives)
        });
        let guardians = self.tpms.get(&vm).cloned();
        if let Some(guardians) = guardians {
            there.tpms.insert(vm, guardians);
        }
        there.tell(vm);
        Ok(operation::Migrated {
            total_ms: 1000,
            downtime_ms: Some(100),
            transferred: 12345,
        }
        .into())
    }
}
