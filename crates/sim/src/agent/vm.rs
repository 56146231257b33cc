//! A VM on a simulated host, and what a change of it does.

use fleetward_model::ErrorCode;
use fleetward_model::change::machine::MachineDefined;
use fleetward_model::change::{self, ChangeStep, Direction};
use fleetward_model::machine::MachineSettings;
use fleetward_model::secure_boot::SecureBootObserved;
use fleetward_model::vm::{VmMetadata, VmState};

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
            secure_boot: None,
        }
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
