//! Operations on a simulated host: what the real agent refuses is refused, what it changes changes.

use super::Inner;
use super::vm::{FakeVm, SimulatedTpm};
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
        self.admit(job, vm, &operation)?;
        match operation {
            // Done: it is defined with them.
            Operation::CreateVolumes(_) if self.vms.contains_key(&vm) => {}
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
                return self.make_tpm(vm, &recipients).map(Into::into);
            }
            Operation::RemoveTpm(operation::RemoveTpm { keep, history }) => {
                self.remove_tpm(vm, keep && !history);
                if history {
                    self.facts.histories.retain(|kept| *kept != vm);
                }
            }
            Operation::AttachTpm(_) => self.attach_tpm(vm)?,
            Operation::DetachTpm(_) => self.detach_tpm(vm),
            Operation::SetAsideTpm(_) => {
                if self.vms.get(&vm).is_some_and(|vm| vm.metadata.spec.tpm) {
                    return refuse(ErrorCode::VmStateWrong, "its TPM is in use");
                }
                self.remove_tpm(vm, true);
            }
            Operation::PrepareRoll(operation::PrepareRoll { to }) => {
                return self.prepare_roll(vm, &to).map(Into::into);
            }
            Operation::PrepareRestore(operation::PrepareRestore { bundle }) => {
                return Ok(self.prepare_restore(vm, &bundle).into());
            }
            Operation::PrepareUnlock(_) => return Ok(self.prepare_unlock(vm).into()),
            Operation::CommitTpm(operation::CommitTpm { key_protector }) => {
                self.commit_tpm(vm, &key_protector)?;
            }
            Operation::AbandonTpm(_) => drop(self.prepared.remove(&vm)),
            Operation::Define(operation::Define { mut metadata }) => {
                if metadata.spec.tpm {
                    let made = self.made.get(&vm);
                    if let Some(made) = made {
                        metadata.ek_certificate = Some(made.ek_certificate.clone());
                    }
                    metadata.key_protector = Some(match made {
                        Some(made) => made.key_protector.clone(),
                        None => self.protector("cHJvdGVjdG9y"),
                    });
                }
                let vm_there = self.simulated(FakeVm::new(*metadata, VmState::Stopped));
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
                self.vms.remove(&vm);
                self.left.remove(&vm);
                self.committed.remove(&vm);
            }
            Operation::Start(_) => {
                let seals = self.custody.is_some();
                if let Some(found) = self.vms.get_mut(&vm) {
                    found.state = VmState::Running;
                    Self::has_booted(found, seals);
                }
            }
            Operation::Stop(stop) => {
                let half = self.transit(vm).is_some();
                let Some(found) = self.vms.get_mut(&vm) else {
                    return Ok(operation::Stopped::default().into());
                };
                if half && found.state != VmState::Stopped {
                    return refuse(ErrorCode::VmStateWrong, "it is half of a migration");
                }
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
                let add = to.iter().map(|guardian| &guardian.guardian);
                let granted = self.rewrap(vm, add, &[], "Z3JhbnRlZA");
                return granted.map(Into::into);
            }
            Operation::Rewrap(operation::Rewrap { change }) => {
                let add = change.add.iter().map(|guardian| &guardian.guardian);
                let wrapped = self.rewrap(vm, add, &change.drop, "cmV3cmFwcGVk")?;
                if let Some(found) = self.vms.get_mut(&vm) {
                    let revoked = &mut found.metadata.revoked;
                    let key_id = self.key_ids.get(&vm).copied();
                    if change.why == RewrapReason::Revoked {
                        revoked.extend(change.drop.iter().map(|guardian| Revocation {
                            guardian: guardian.clone(),
                            key_id: key_id.unwrap_or(fleetward_model::KeyId(vm.0)),
                        }));
                    }
                    let added = |r: &Revocation| {
                        change.add.iter().any(|g| g.guardian.id == r.guardian)
                            || change.former.contains(&r.guardian)
                    };
                    revoked.retain(|r| change.why != RewrapReason::Granted || !added(r));
                }
                return Ok(wrapped.into());
            }
            Operation::PutProtector(operation::PutProtector { key_protector }) => {
                if self.custody.is_some() {
                    self.put_sealed(vm, &key_protector);
                }
            }
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
                self.arriving.remove(&vm);
                self.vms.remove(&vm);
                self.remove_tpm(vm, false);
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
                let here = self.simulated(FakeVm::new(metadata, state));
                let protector = here.metadata.key_protector.clone();
                self.vms.insert(vm, here);
                if let Some(text) = protector.filter(|_| self.custody.is_some()) {
                    self.put_sealed(vm, &text);
                }
            }
            Operation::Supersede(_) => {
                if let Some(found) = self.vms.get_mut(&vm) {
                    found.state = VmState::Stopped;
                    found.metadata.transit = Some(Transit {
                        job,
                        side: TransitSide::Departed,
                    });
                }
            }
            Operation::MigrationState(_) => {
                let departed = self
                    .transit(vm)
                    .is_some_and(|(side, _)| side == TransitSide::Departed);
                let left = departed || self.left.get(&vm) == Some(&job);
                let state = match self.state(vm) {
                    Some(VmState::Running | VmState::Paused) => SourceState::Here,
                    // Ended by itself: its memory is nowhere, and what is here is the VM.
                    Some(_) if !left => SourceState::Here,
                    Some(_) | None => SourceState::NotHere,
                };
                return Ok(OperationResult::MigrationState { state });
            }
            Operation::Depart(_) => {
                if let Some(found) = self.vms.get_mut(&vm) {
                    found.metadata.transit = Some(Transit {
                        job,
                        side: TransitSide::Departed,
                    });
                }
            }
            Operation::CommitIncoming(operation::CommitIncoming { live }) => {
                self.arriving.remove(&vm);
                self.committed.insert(vm, job);
                self.left.remove(&vm);
                if let Some(found) = self.vms.get_mut(&vm) {
                    found.metadata.transit = None;
                    if live {
                        found.state = VmState::Running;
                    }
                }
                return Ok(OperationResult::Committed);
            }
            Operation::CleanUpDeparted(operation::CleanUpDeparted { spec, .. }) => {
                self.vms.remove(&vm);
                self.left.remove(&vm);
                self.committed.remove(&vm);
                self.remove_tpm(vm, false);
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
        let migrated = operation::Migrated {
            total_ms: 1000,
            downtime_ms: (arrives == VmState::Paused).then_some(100),
            transferred: 12345,
        };
        if self.left.get(&vm) == Some(&job) {
            return Ok(migrated.into());
        }
        if arrives == VmState::Stopped {
            self.try_tpm(vm, Some(job));
        }
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
        if there.arriving.get(&vm) != Some(&job) {
            let refused = Failure::new(ErrorCode::CredentialsRefused, format!("VM {vm}"));
            return Err(refused.because("the destination does not expect it"));
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
        self.left.insert(vm, job);
        let simulated_tpm = found.simulated_tpm.map(|tpm| SimulatedTpm {
            tried: false,
            ..tpm
        });
        there.vms.entry(vm).or_insert(FakeVm {
            simulated_tpm,
            ..FakeVm::new(metadata, arrives)
        });
        let guardians = self.tpms.get(&vm).cloned();
        if let Some(guardians) = guardians {
            there.tpms.insert(vm, guardians);
        }
        if let Some(made) = self.made.get(&vm) {
            there.made.insert(vm, made.clone());
        }
        if let Some(key_id) = self.key_ids.get(&vm) {
            there.key_ids.insert(vm, *key_id);
        }
        if arrives == VmState::Paused && there.custody.is_some() && there.tpms.contains_key(&vm) {
            // The destination loads the key again when the memory begins to come.
            there.record_open(vm, Some(job));
        }
        there.tell(vm);
        Ok(migrated.into())
    }
}
