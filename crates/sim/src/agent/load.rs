//! What a simulated host and its VMs use: figures that follow from the VM and the minute, so that nobody has to keep them.

use super::Inner;
use fleetward_api::agent::{AgentEvent, LoadReport, VmLoad};
use fleetward_model::VmId;
use fleetward_model::load::Load;
use fleetward_model::vm::VmState;

impl Inner {
    /// Of now.
    pub(super) fn load(&self) -> LoadReport {
        let minute = u64::try_from(self.now().unix_timestamp() / 60).unwrap_or_default();
        let running = self.vms.iter().filter(|(_, vm)| match vm.state {
            VmState::Running | VmState::Paused | VmState::Migrating => true,
            VmState::Stopped | VmState::Saved | VmState::Failed | VmState::Unknown => false,
        });
        let vms: Vec<_> = running
            .map(|(id, vm)| VmLoad {
                id: *id,
                load: of_vm(*id, minute, vm.size().memory.bytes()),
            })
            .collect();
        let sum =
            |of: fn(&Load) -> Option<u64>| Some(vms.iter().filter_map(|vm| of(&vm.load)).sum());
        let pools = self.facts.pools.iter();
        let used = pools.map(|pool| pool.capacity.bytes().saturating_sub(pool.available.bytes()));
        let memory = self.facts.memory.bytes();
        let host = Load {
            cpu: Some(minute * 31 % Load::WHOLE),
            memory: Some(memory.saturating_sub(self.facts.memory_available.bytes())),
            storage: Some(used.sum()),
            read: sum(|load| load.read),
            written: sum(|load| load.written),
            requests: sum(|load| load.requests),
            received: sum(|load| load.received),
            sent: sum(|load| load.sent),
        };
        LoadReport { host, vms }
    }

    /// Tells what it and its VMs use, true or not.
    pub fn tell_load(&self, load: LoadReport) {
        let load = Box::new(load);
        let _ = self.events.send(AgentEvent::Load { load });
    }
}

fn of_vm(id: VmId, minute: u64, memory: u64) -> Load {
    let [.., last] = id.0.into_bytes();
    let busy = u64::from(last).wrapping_mul(7).wrapping_add(minute) % Load::WHOLE;
    Load {
        cpu: Some(busy),
        memory: Some(memory / 2 + busy * 4096),
        storage: None,
        read: Some(busy * 1000),
        written: Some(busy * 3000),
        requests: Some(busy),
        received: Some(busy * 500),
        sent: Some(busy * 200),
    }
}
