//! What a simulated host does with the TPMs of its VMs. With a custody of its own it seals; without one, as in most tests, a
//! key protector is a text that says which operation made it.

use super::vm::{FakeVm, SimulatedTpm};
use super::{Inner, variables};
use crate::custody::{SealedTpm, guardians};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::operation::{Protector, TpmMade};
use fleetward_api::agent::{CanOpen, TpmStateJudged};
use fleetward_api::tpm::{BundleParts, TpmBundle};
use fleetward_model::guardian::{EndorsedGuardian, GuardianFacts};
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure, GuardianId, JobId, KeyId, VmId};
use fleetward_protector::KeyProtector;
use std::fmt::Display;

impl Inner {
    /// A VM that its host makes: with a TPM that can be copied, where the host seals.
    pub(super) fn simulated(&self, vm: FakeVm) -> FakeVm {
        let simulated_tpm = self.custody.as_ref().map(|_| SimulatedTpm {
            told: true,
            tried: true,
            ..SimulatedTpm::default()
        });
        FakeVm {
            simulated_tpm: vm.simulated_tpm.or(simulated_tpm),
            ..vm
        }
    }

    /// Makes a TPM, or tells of the one that was made.
    pub(super) fn make_tpm(
        &mut self,
        vm: VmId,
        recipients: &[EndorsedGuardian],
    ) -> Result<TpmMade, Failure> {
        let facts = recipients.iter().map(|recipient| &recipient.guardian);
        let sealed = match (&self.custody, self.made.get(&vm)) {
            (Some(_), Some(made)) => made.clone(),
            (Some(custody), None) => {
                let sealed = guardians(facts.clone()).and_then(|to| custody.make(vm, &to));
                sealed.map_err(|error| sealing(&error))?
            }
            (None, _) => SealedTpm {
                key_protector: self.protector("cHJvdGVjdG9y"),
                key_id: KeyId(vm.0),
                ek_certificate: "ZWs=".into(),
            },
        };
        self.wrap_for(vm, self.own(), facts);
        if self.custody.is_some() {
            self.key_ids.insert(vm, sealed.key_id);
            self.made.insert(vm, sealed.clone());
        }
        Ok(TpmMade {
            key_protector: sealed.key_protector,
            key_id: sealed.key_id,
            ek_certificate: sealed.ek_certificate,
        })
    }

    /// `owner` first, then the others.
    fn wrap_for<'f>(
        &mut self,
        vm: VmId,
        owner: GuardianId,
        others: impl Iterator<Item = &'f GuardianFacts>,
    ) {
        let mut all = vec![owner];
        for other in others {
            if !all.contains(&other.id) {
                all.push(other.id.clone());
            }
        }
        self.tpms.insert(vm, all);
    }

    /// The TPM is there no more; where it is kept, it goes into the history.
    pub(super) fn remove_tpm(&mut self, vm: VmId, keep: bool) {
        let was_there = self.tpms.remove(&vm).is_some();
        self.made.remove(&vm);
        self.key_ids.remove(&vm);
        self.prepared.remove(&vm);
        if keep && was_there && self.custody.is_some() && !self.facts.histories.contains(&vm) {
            self.facts.histories.push(vm);
        }
    }

    /// A VM that is defined has the TPM that was made for it.
    pub(super) fn attach_tpm(&mut self, vm: VmId) -> Result<(), Failure> {
        let made = match (&self.custody, self.made.get(&vm)) {
            (Some(_), None) => {
                let missing = Failure::new(ErrorCode::TpmStateMissing, format!("VM {vm}"));
                return Err(missing.because("no TPM has been made for it"));
            }
            (_, made) => made.cloned(),
        };
        let (text, seals) = (self.protector("cHJvdGVjdG9y"), self.custody.is_some());
        let found = self.vms.get_mut(&vm);
        // A repeat changes nothing.
        if let Some(found) = found.filter(|found| !seals || !found.metadata.spec.tpm) {
            let metadata = &mut found.metadata;
            metadata.spec.tpm = true;
            metadata.ek_certificate = made.as_ref().map(|made| made.ek_certificate.clone());
            metadata.key_protector = Some(made.map_or(text, |made| made.key_protector));
            if let Some(tpm) = found.simulated_tpm.as_mut().filter(|_| seals) {
                // Another TPM than the one before.
                *tpm = SimulatedTpm {
                    writes: tpm.writes + 1,
                    told: true,
                    variables: tpm.variables,
                    tried: true,
                };
            }
        }
        Ok(())
    }

    /// It keeps its TPM, and is defined without it.
    pub(super) fn detach_tpm(&mut self, vm: VmId) {
        if let Some(found) = self.vms.get_mut(&vm) {
            found.metadata.spec.tpm = false;
            found.metadata.key_protector = None;
            found.metadata.ek_certificate = None;
        }
    }

    /// Another key for the TPM, which [`commit_tpm`](Self::commit_tpm) puts in place.
    pub(super) fn prepare_roll(
        &mut self,
        vm: VmId,
        to: &[EndorsedGuardian],
    ) -> Result<Protector, Failure> {
        let Some(custody) = &self.custody else {
            return Ok(self.prepared_text());
        };
        let facts = to.iter().map(|guardian| &guardian.guardian);
        let sealed = guardians(facts).and_then(|to| custody.seal(vm, &to));
        let sealed = sealed.map_err(|error| sealing(&error))?;
        Ok(self.lay_ready(vm, sealed.key_protector))
    }

    fn lay_ready(&mut self, vm: VmId, key_protector: String) -> Protector {
        self.prepared.insert(vm, key_protector.clone());
        Protector { key_protector }
    }

    /// A kept TPM, which opens here.
    pub(super) fn prepare_restore(&mut self, vm: VmId, bundle: &TpmBundle) -> Protector {
        match &self.custody {
            Some(_) => self.lay_ready(vm, bundle.key_protector.clone()),
            None => self.prepared_text(),
        }
    }

    /// The same TPM under the same key, with another state.
    pub(super) fn prepare_unlock(&mut self, vm: VmId) -> Protector {
        let found = self.vms.get(&vm);
        let current = found.and_then(|vm| vm.metadata.key_protector.clone());
        match (&self.custody, current) {
            (Some(_), Some(key_protector)) => self.lay_ready(vm, key_protector),
            _ => self.prepared_text(),
        }
    }

    fn prepared_text(&self) -> Protector {
        let key_protector = self.protector("cm9sbGVk");
        Protector { key_protector }
    }

    /// What was prepared is in place, with another state. `said` counts only where that was done before.
    pub(super) fn commit_tpm(&mut self, vm: VmId, said: &str) -> Result<(), Failure> {
        if self.custody.is_none() {
            drop(self.put_protector(vm, "cm9sbGVk"));
            return Ok(());
        }
        if let Some(text) = self.prepared.remove(&vm) {
            self.put_sealed(vm, &text);
            if let Some(found) = self.vms.get_mut(&vm) {
                found.write_tpm();
            }
            return Ok(());
        }
        let found = self.vms.get(&vm);
        let in_place = found.and_then(|vm| vm.metadata.key_protector.as_deref());
        match in_place == Some(said) {
            true => Ok(()),
            false => {
                let gone = Failure::new(ErrorCode::VmStateWrong, format!("VM {vm}"));
                Err(gone.because("the TPM that was prepared is not there any more"))
            }
        }
    }

    /// The VM has this key protector from now on, and is wrapped for whom that says.
    pub(super) fn put_sealed(&mut self, vm: VmId, text: &str) {
        let Ok(protector) = KeyProtector::from_base64(text) else {
            return;
        };
        let inspection = protector.inspect();
        let owner = inspection.owner.id().clone();
        let others = inspection.guardian_ids();
        let others = others.into_iter().filter(|other| *other != owner);
        let all = std::iter::once(owner.clone()).chain(others).collect();
        self.key_ids.insert(vm, inspection.binding.key_id);
        self.tpms.insert(vm, all);
        if let Some(made) = self.made.get_mut(&vm) {
            text.clone_into(&mut made.key_protector);
        }
        if let Some(found) = self.vms.get_mut(&vm) {
            found.metadata.key_protector = Some(text.to_owned());
        }
    }

    /// Wraps the key for `add` too and for `drop` no more; `begin` says so where nothing is sealed.
    pub(super) fn rewrap<'f>(
        &mut self,
        vm: VmId,
        add: impl Iterator<Item = &'f GuardianFacts> + Clone,
        drop: &[GuardianId],
        begin: &str,
    ) -> Result<Protector, Failure> {
        let found = self.vms.get(&vm);
        let current = found.and_then(|vm| vm.metadata.key_protector.clone());
        if let (Some(custody), Some(current)) = (&self.custody, current) {
            let wrapped = guardians(add).and_then(|add| custody.rewrap(vm, &current, &add, drop));
            let key_protector = wrapped.map_err(|error| sealing(&error))?.to_base64();
            self.put_sealed(vm, &key_protector);
            return Ok(Protector { key_protector });
        }
        let guardians = self.tpms.entry(vm).or_default();
        guardians.retain(|guardian| !drop.contains(guardian));
        for guardian in add {
            if !guardians.contains(&guardian.id) {
                guardians.push(guardian.id.clone());
            }
        }
        let key_protector = self.put_protector(vm, begin);
        Ok(Protector { key_protector })
    }

    /// The guest has started: its firmware has written variables.
    pub(super) fn has_booted(found: &mut FakeVm, seals: bool) {
        if let Some(tpm) = found.simulated_tpm.as_mut().filter(|_| seals) {
            tpm.variables.get_or_insert(0);
        }
    }

    /// Whether this host opens the VM's key protector.
    pub(super) fn can_open(&self, metadata: &VmMetadata) -> CanOpen {
        let id = metadata.spec.id;
        match (&self.custody, metadata.spec.tpm) {
            (_, false) => CanOpen::NoTpm,
            (None, true) if self.opens.contains(&id) => CanOpen::Yes,
            (None, true) => CanOpen::NotGranted,
            (Some(custody), true) => {
                let text = metadata.key_protector.as_deref().unwrap_or_default();
                match KeyProtector::from_base64(text) {
                    Ok(found) if found.inspect().is_granted(custody.own()) => CanOpen::Yes,
                    Ok(_) => CanOpen::NotGranted,
                    Err(error) => CanOpen::Unreadable {
                        because: error.to_string(),
                    },
                }
            }
        }
    }

    /// What it says of the TPM of a VM that stands still.
    pub(super) fn judged(&self, vm: VmId) -> Option<TpmStateJudged> {
        if self.judged.is_some() || self.custody.is_none() {
            return self.judged.clone();
        }
        let found = self.vms.get(&vm)?;
        let tpm = found.simulated_tpm?;
        let stands = found.metadata.spec.tpm && found.state.stands_still();
        stands.then_some(match tpm.tried {
            true => TpmStateJudged::Opened,
            false => TpmStateJudged::Untried,
        })
    }

    /// The VM's TPM state is opened with its key, where this has not been done yet; `job` asked for it, or nobody.
    pub(super) fn try_tpm(&mut self, vm: VmId, job: Option<JobId>) {
        let seals = self.custody.is_some();
        let tpm = self
            .vms
            .get_mut(&vm)
            .and_then(|vm| vm.simulated_tpm.as_mut());
        if let Some(tpm) = tpm.filter(|tpm| seals && !tpm.tried) {
            tpm.tried = true;
            self.record_open(vm, job);
        }
    }

    /// A copy of the TPM of a VM whose host seals.
    pub(super) fn sealed_bundle(&self, vm: VmId) -> Option<TpmBundle> {
        self.custody.as_ref()?;
        let found = self.vms.get(&vm)?;
        let tpm = found.simulated_tpm?;
        let metadata = &found.metadata;
        let decode = |text: &String| STANDARD.decode(text).ok();
        let parts = BundleParts {
            state: tpm.state(vm),
            key_protector: metadata.key_protector.as_ref().and_then(decode)?,
            ek_certificate: metadata.ek_certificate.as_ref().and_then(decode),
            uefi_variables: tpm.variables.map(|writes| variables::of(vm, writes)),
        };
        Some(TpmBundle::new(metadata.clone(), &parts))
    }
}

fn sealing(error: &dyn Display) -> Failure {
    Failure::new(
        ErrorCode::KeyProtectorUnreadable,
        "sealing a simulated TPM's key",
    )
    .because(format!("{error:#}"))
}
