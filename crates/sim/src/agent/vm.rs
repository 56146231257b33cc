//! A VM on a simulated host, and what a change of it does.

use crate::custody::SealedTpm;
use fleetward_model::change::machine::MachineDefined;
use fleetward_model::change::{self, ChangeStep, Direction};
use fleetward_model::machine::MachineSettings;
use fleetward_model::secure_boot::SecureBootObserved;
use fleetward_model::vm::{VmMetadata, VmState};
use fleetward_model::{ErrorCode, VmId};
use std::borrow::Cow;

/// A TPM whose state is made when somebody asks for it, so that it takes no memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SimulatedTpm {
    /// How often its guest has written it.
    pub writes: u32,
    /// Whether its host tells a digest of its state, so that the controller takes a copy.
    pub told: bool,
    /// How often its guest has written its UEFI variables; none: there are none.
    pub variables: Option<u32>,
    /// Whether this state has been opened with the VM's key on this host.
    pub tried: bool,
}

/// Bytes of a state, as of a TPM that a guest uses.
const STATE: usize = 8192;

impl SimulatedTpm {
    /// What a host has for it: encrypted, as its header says.
    pub(super) fn state(self, vm: VmId) -> Vec<u8> {
        let mut state = vec![2, 1, 0, 10, 0, 9];
        state.extend(u32::try_from(STATE).expect("fits").to_be_bytes());
        state.extend(vm.0.as_bytes());
        state.extend(self.writes.to_be_bytes());
        state.resize(STATE, 0);
        state
    }
}

/// A VM's whole state on one host.
#[derive(Debug, Clone)]
pub struct FakeVm {
    pub metadata: VmMetadata,
    pub state: VmState,
    /// CPUs and memory of the definition, where a running VM has others.
    pub defined: Option<MachineDefined>,
    /// CPUs and memory that it runs with, where its definition has others.
    pub runs_with: Option<MachineDefined>,
    /// The domain's own name, where somebody renamed it.
    pub domain: Option<String>,
    /// Why it is in that state, in libvirt's words.
    pub reason: Cow<'static, str>,
    /// Of a VM of a simulated fleet; others have what a test gives them.
    pub simulated_tpm: Option<SimulatedTpm>,
    /// What its UEFI variables say; none: as from an agent that does not look.
    pub secure_boot: Option<SecureBootObserved>,
}

impl FakeVm {
    pub fn new(metadata: VmMetadata, state: VmState) -> Self {
        Self {
            metadata,
            state,
            defined: None,
            runs_with: None,
            domain: None,
            reason: Cow::Borrowed("fake"),
            simulated_tpm: None,
            secure_boot: None,
        }
    }

    /// It has a TPM that was sealed before, of which its host tells, and has been started.
    pub fn has_sealed(&mut self, tpm: &SealedTpm) {
        self.metadata.key_protector = Some(tpm.key_protector.clone());
        self.metadata.ek_certificate = Some(tpm.ek_certificate.clone());
        self.simulated_tpm = Some(SimulatedTpm {
            writes: 0,
            told: true,
            variables: Some(0),
            tried: false,
        });
    }

    /// Its guest writes its TPM, of which its host will tell.
    pub fn write_tpm(&mut self) {
        if let Some(tpm) = &mut self.simulated_tpm {
            tpm.writes += 1;
            tpm.told = true;
            tpm.tried = false;
        }
    }

    /// Its guest writes its UEFI variables, where it has some, and its TPM with them: a host tells of a TPM only.
    pub fn write_variables(&mut self) {
        if let Some(SimulatedTpm { variables, .. }) = &mut self.simulated_tpm {
            *variables = variables.map(|writes| writes + 1);
        }
        self.write_tpm();
    }

    pub(super) fn size(&self) -> MachineDefined {
        let spec = &self.metadata.spec;
        self.defined.unwrap_or(MachineDefined {
            cpus: spec.cpus,
            memory: spec.memory,
            settings: MachineSettings {
                boot: Some(spec.boot),
                clock: Some(spec.clock()),
            },
        })
    }

    pub(super) fn change(
        &mut self,
        steps: &[ChangeStep],
        direction: Direction,
    ) -> Result<(), ErrorCode> {
        let has = self.size();
        let own = self.metadata.spec.name.to_string();
        let domain = self.domain.clone().unwrap_or(own);
        if let Some(name) = change::domain_name_after(&domain, steps, direction) {
            if self.state != VmState::Stopped {
                return Err(ErrorCode::VmStateWrong);
            }
            self.domain = Some(name);
        }
        self.metadata.spec = change::apply(&self.metadata.spec, steps, direction);
        let next = change::defined_after(Some(has), steps, direction);
        if self.state == VmState::Running {
            self.runs_with.get_or_insert(has);
        }
        self.defined = Some(MachineDefined {
            cpus: next.cpus.unwrap_or(has.cpus),
            memory: next.memory.unwrap_or(has.memory),
            settings: MachineSettings {
                boot: next.boot.or(has.settings.boot),
                clock: next.clock.or(has.settings.clock),
            },
        });
        if self.domain.as_deref() == Some(self.metadata.spec.name.as_str()) {
            self.domain = None;
        }
        Ok(())
    }
}
