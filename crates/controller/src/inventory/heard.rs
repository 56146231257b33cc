//! What a host says, measured, and cut to what it may say.

use super::claims::{own_facts, own_word};
use fleetward_api::agent::{AgentEvent, size_of};
use fleetward_model::host::{HostFacts, Measurements};
use fleetward_model::vm::{VmObserved, VmReport};
use fleetward_model::{HostName, VmId};
use time::OffsetDateTime;

/// An event, measured, with what a host may say under its own name.
pub(super) enum Heard {
    Snapshot {
        facts: (HostFacts, usize),
        vms: Vec<Told>,
    },
    Facts(HostFacts, usize),
    Alive(Measurements),
    Changed(Box<Told>),
    Removed(VmId),
    /// A part of a snapshot, which who reads the events puts together; or what its VMs use, which is kept elsewhere.
    Nothing,
}

/// What a host said of one VM.
pub(super) struct Told {
    pub(super) vm: VmObserved,
    /// Bytes of it.
    pub(super) size: usize,
    /// When it was so by the host's own clock, which may be ahead of the controller's.
    pub(super) at: OffsetDateTime,
}

impl Told {
    pub(super) fn of(host: &HostName, vm: VmObserved, now: OffsetDateTime) -> Self {
        let at = vm.observed;
        let vm = own_word(host, vm, now);
        let size = size_of(&vm);
        Self { vm, size, at }
    }
}

impl Heard {
    pub(super) fn of(host: &HostName, event: AgentEvent, now: OffsetDateTime) -> Self {
        let measured = |vm: VmReport| Told::of(host, vm.digested(), now);
        let measured_facts = |facts: HostFacts| {
            let facts = own_facts(host, facts);
            let size = size_of(&facts);
            (facts, size)
        };
        match event {
            AgentEvent::Snapshot { facts, vms, .. } => Self::Snapshot {
                facts: measured_facts(*facts),
                vms: vms.into_iter().map(measured).collect(),
            },
            AgentEvent::Facts { facts, .. } => {
                let (facts, size) = measured_facts(*facts);
                Self::Facts(facts, size)
            }
            AgentEvent::Alive { measured, .. } => Self::Alive(measured),
            AgentEvent::VmChanged { vm } => Self::Changed(Box::new(measured(*vm))),
            AgentEvent::VmRemoved { id } => Self::Removed(id),
            AgentEvent::SnapshotPart { .. } | AgentEvent::Load { .. } => Self::Nothing,
        }
    }
}
