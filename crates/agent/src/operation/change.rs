//! Changes of a VM that is defined here: its specification and its definition.
//!
//! ```text
//!  domain renamed ── specification and definition, in one call
//!        └── a crash here: the domain has its new name, the specification the old one; the repeat goes on
//! ```
//! What becomes of volumes meanwhile: see [`super::disks`].
//! Forward or back, a step touches only what it is about; back, only what still has the value that it gave.

use super::Task;
use super::create::serial_log;
use crate::failure::{HypervisorResult, Result, Trouble};
use fleetward_hypervisor::{DeviceChange, DomainChange, NicDefinition, NicDeviceChange};
use fleetward_model::ErrorCode;
use fleetward_model::change::machine::MachineDefined;
use fleetward_model::change::{self, ChangeKind, ChangeStep, Direction};
use fleetward_model::vm::{NicSpec, VmSpec};

impl Task<'_> {
    /// See [`ChangeVm`](fleetward_api::agent::operation::ChangeVm).
    pub(super) async fn change_vm(&self, steps: &[ChangeStep], direction: Direction) -> Result<()> {
        self.require_whole()?;
        let (domain, metadata) = self.managed().await?;
        self.require_not_saved(&domain)?;
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
        let directed = self.prepare_volumes(&domain, steps, direction).await?;
        let mut after = metadata.clone();
        for (step, way) in &directed {
            after.spec = change::apply(&after.spec, std::slice::from_ref(*step), *way);
        }
        after.generation = self.generation;
        let has = domain.defined.map(|defined| MachineDefined {
            cpus: defined.cpus,
            memory: defined.memory,
            settings: defined.settings,
        });
        let machine = change::defined_after(has, steps, direction);
        let renamed = after.spec.name != metadata.spec.name;
        let mut definition = DomainChange {
            machine,
            serial_log: match renamed {
                true => serial_log(self.host, &after.spec.name),
                false => None,
            },
            devices: self.device_changes(&metadata.spec, steps, direction)?,
            ..DomainChange::default()
        };
        self.storage_changes(&directed, &mut definition)?;
        self.redefine(&after, &definition).await?;
        fleetward_failpoint::hold("agent.change-vm.defined").await;
        self.remove_made(&directed).await
    }

    /// What the steps make of devices on this host. Taking back a step leaves a device alone that has changed since.
    fn device_changes(
        &self,
        spec: &VmSpec,
        steps: &[ChangeStep],
        direction: Direction,
    ) -> Result<Vec<DeviceChange>> {
        let mut changes = Vec::new();
        for step in steps {
            let ChangeStep::Nic {
                nic,
                from,
                to,
                parts,
            } = step
            else {
                continue;
            };
            let (from, to) = (from.as_deref(), to.as_deref());
            let has = spec.nics.iter().find(|has| has.id == *nic);
            let next = match direction {
                Direction::Forward => to,
                Direction::Back if has == to || has == from => from,
                Direction::Back => continue,
            };
            let macs = [from, to].into_iter().flatten();
            let change = NicDeviceChange {
                id: nic.clone(),
                macs: macs.map(|nic| nic.mac.clone()).collect(),
                to: next.map(|next| self.nic_definition(next)).transpose()?,
                parts: parts.clone(),
            };
            changes.push(DeviceChange::Nic(change));
        }
        Ok(changes)
    }

    fn nic_definition(&self, nic: &NicSpec) -> Result<NicDefinition> {
        let place = self
            .host
            .networks
            .place(&nic.network, &self.host.member.host)?;
        let spec = nic.clone();
        Ok(NicDefinition { spec, place })
    }
}
