//! Changes of a VM that is defined here: its specification and its definition.
//!
//! ```text
//!  domain renamed ── specification and definition, in one call
//!        └── a crash here: the domain has its new name, the specification the old one; the repeat goes on
//! ```
//! Forward or back, a step touches only what it is about; back, only what still has the value that it gave.

use super::Task;
use super::create::serial_log;
use crate::failure::{HypervisorResult, Result, Trouble};
use fleetward_hypervisor::DomainChange;
use fleetward_model::ErrorCode;
use fleetward_model::change::{self, ChangeKind, ChangeStep, Direction};

impl Task<'_> {
    /// See [`ChangeVm`](fleetward_api::agent::operation::ChangeVm).
    pub(super) async fn change_vm(&self, steps: &[ChangeStep], direction: Direction) -> Result<()> {
        self.require_whole()?;
        let (domain, metadata) = self.managed().await?;
        if steps.iter().any(|step| step.kind() == ChangeKind::Tpm) {
            return Err(Trouble::refuse(
                ErrorCode::InvalidRequest,
                format!("VM {}", metadata.spec.name),
                "a TPM is switched on and off by operations of its own",
            ));
        }
        if let Some(name) = change::domain_name_after(&domain.domain_name, steps, direction) {
            let renamed = self.host.hypervisor.rename(self.vm, &name).await;
            renamed.attempt(|| format!("renaming VM {} to {name}", metadata.spec.name))?;
            fleetward_failpoint::hold("agent.change-vm.renamed").await;
        }
        let mut after = metadata.clone();
        after.spec = change::apply(&metadata.spec, steps, direction);
        after.generation = self.generation;
        let has = domain.defined.map(|defined| (defined.cpus, defined.memory));
        let (cpus, memory) = change::defined_after(has, steps, direction);
        let renamed = after.spec.name != metadata.spec.name;
        let definition = DomainChange {
            cpus,
            memory,
            serial_log: match renamed {
                true => serial_log(self.host, &after.spec.name),
                false => None,
            },
            ..DomainChange::default()
        };
        self.redefine(&after, &definition).await
    }
}
