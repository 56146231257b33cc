//! Changes of the machine itself: its processors and memory, what its firmware tries first, and its clock.
//!
//! A machine that runs has them after its next start.

use super::{ChangeKind, ChangeStep, Direction, Pending, Wanted, argument};
use crate::error::Finding;
use crate::machine::{BootFirst, Clock, MachineSettings};
use crate::profile::{MAX_CPUS, MEMORY};
use crate::spec::VmSpec;
use crate::vm::VmObserved;
use crate::{ByteSize, ErrorCode, Failure};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A number of virtual processors that a VM can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "u32", into = "u32")]
pub struct Cpus(pub(super) u32);

impl TryFrom<u32> for Cpus {
    type Error = String;
    fn try_from(cpus: u32) -> Result<Self, String> {
        match cpus {
            1..=MAX_CPUS => Ok(Self(cpus)),
            _ => Err(format!("a VM has 1 to {MAX_CPUS} CPUs, not {cpus}")),
        }
    }
}

impl From<Cpus> for u32 {
    fn from(cpus: Cpus) -> u32 {
        cpus.0
    }
}

/// A memory that a VM can have, in bytes: whole MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "ByteSize", into = "ByteSize")]
#[schema(value_type = u64)]
pub struct Memory(pub(super) ByteSize);

impl TryFrom<ByteSize> for Memory {
    type Error = String;
    fn try_from(memory: ByteSize) -> Result<Self, String> {
        let (low, high) = MEMORY;
        if memory < low || memory > high {
            return Err(format!("a VM has {low} to {high} of memory, not {memory}"));
        }
        if !memory.bytes().is_multiple_of(1 << 20) {
            return Err(format!(
                "a VM's memory is a whole number of MiB, not {} bytes",
                memory.bytes()
            ));
        }
        Ok(Self(memory))
    }
}

impl From<Memory> for ByteSize {
    fn from(memory: Memory) -> ByteSize {
        memory.0
    }
}

/// The steps of the machine itself, whether Fleetward or somebody else made it otherwise.
pub(super) fn steps(vm: &VmObserved, spec: &VmSpec, wanted: &Wanted) -> Vec<ChangeStep> {
    let mut steps = Vec::new();
    let defined = vm.defined.as_ref();
    if let Some(Cpus(to)) = wanted.cpus {
        let had = defined.map_or(spec.cpus, |defined| defined.cpus);
        if spec.cpus != to || had != to {
            steps.push(ChangeStep::Cpus {
                from: spec.cpus,
                to,
                defined: (had != spec.cpus).then_some(had),
            });
        }
    }
    if let Some(Memory(to)) = wanted.memory {
        let had = defined.map_or(spec.memory, |defined| defined.memory);
        if spec.memory != to || !same_memory(had, to) {
            steps.push(ChangeStep::Memory {
                from: spec.memory,
                to,
                defined: (!same_memory(had, spec.memory)).then_some(had),
            });
        }
    }
    let settings = defined.map_or(vm.settings, |defined| defined.settings);
    if let Some(to) = wanted.boot {
        // Without such a device the definition cannot say that it comes first.
        let there = has_device(vm, to) || defined.is_none();
        if spec.boot != to || (there && settings.boot != Some(to)) {
            let from = spec.boot;
            steps.push(ChangeStep::Boot { from, to });
        }
    }
    if let Some(to) = wanted.clock
        && (spec.clock() != to || settings.clock != Some(to))
    {
        let from = spec.clock();
        steps.push(ChangeStep::Clock { from, to });
    }
    steps
}

fn has_device(vm: &VmObserved, kind: BootFirst) -> bool {
    match kind {
        BootFirst::Disk => !vm.disks.is_empty(),
        BootFirst::Iso => !vm.drives.is_empty(),
        BootFirst::Network => vm.nics.as_ref().is_none_or(|nics| !nics.is_empty()),
    }
}

/// A machine boots first from what it has.
///
/// # Errors
/// [`ErrorCode::DeviceMissing`].
pub(super) fn require_bootable(vm: &VmObserved, steps: &[ChangeStep]) -> Result<(), Failure> {
    let Some(metadata) = &vm.metadata else {
        return Ok(());
    };
    let after = super::apply(&metadata.spec, steps, Direction::Forward);
    let asked = steps.iter().find_map(|step| {
        let ChangeStep::Boot { to, .. } = step else {
            return None;
        };
        Some(*to)
    });
    let (missing, what, fix) = match asked {
        Some(BootFirst::Iso) => (after.drives.is_empty(), "drive", "vm media add"),
        Some(BootFirst::Network) => (after.nics.is_empty(), "network card", "vm nic add"),
        Some(BootFirst::Disk) | None => return Ok(()),
    };
    if !missing {
        return Ok(());
    }
    let name = &vm.name;
    let network = match asked {
        Some(BootFirst::Network) => " nat",
        Some(BootFirst::Iso | BootFirst::Disk) | None => "",
    };
    Err(Failure::new(
        ErrorCode::DeviceMissing,
        format!("VM {name} has no {what} to boot from"),
    )
    .fix(format!("fleetward {fix} {name}{network}")))
}

/// What a definition is given: none stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineChange {
    pub cpus: Option<u32>,
    pub memory: Option<ByteSize>,
    pub boot: Option<BootFirst>,
    pub clock: Option<Clock>,
}

/// What a definition has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineDefined {
    pub cpus: u32,
    pub memory: ByteSize,
    pub settings: MachineSettings,
}

/// What a definition is given by the steps. `has` is what it has now; none: that cannot be seen.
pub fn defined_after(
    has: Option<MachineDefined>,
    steps: &[ChangeStep],
    direction: Direction,
) -> MachineChange {
    fn next<T: Copy + PartialEq>(has: Option<T>, from: T, to: T, way: Direction) -> Option<T> {
        match way {
            Direction::Forward => Some(to),
            Direction::Back => (has == Some(to)).then_some(from),
        }
    }
    let mut change = MachineChange::default();
    for step in steps {
        match step {
            ChangeStep::Cpus { from, to, defined } => {
                let has = has.map(|has| has.cpus);
                change.cpus = next(has, defined.unwrap_or(*from), *to, direction);
            }
            ChangeStep::Memory { from, to, defined } => {
                let has = has.map(|has| has.memory);
                change.memory = next(has, defined.unwrap_or(*from), *to, direction);
            }
            ChangeStep::Boot { from, to } => {
                let has = has.and_then(|has| has.settings.boot);
                change.boot = next(has, *from, *to, direction);
            }
            ChangeStep::Clock { from, to } => {
                let has = has.and_then(|has| has.settings.clock);
                change.clock = next(has, *from, *to, direction);
            }
            ChangeStep::Tpm { .. }
            | ChangeStep::Description { .. }
            | ChangeStep::Label { .. }
            | ChangeStep::Autostart { .. }
            | ChangeStep::RestartOnCrash { .. }
            | ChangeStep::Name { .. }
            | ChangeStep::Nic { .. }
            | ChangeStep::Disk(_)
            | ChangeStep::Drive(_) => {}
        }
    }
    change
}

/// What the running machine has otherwise than its definition.
pub(super) fn pending(vm: &VmObserved) -> impl Iterator<Item = Pending> {
    let one = |change, now: serde_json::Value, wanted: serde_json::Value| Pending {
        change,
        device: None,
        now,
        wanted,
    };
    let word = |word: &'static str| serde_json::Value::from(word);
    let defined = vm.defined.as_ref();
    let cpus = defined.filter(|defined| defined.cpus != vm.cpus);
    let memory = defined.filter(|defined| !same_memory(defined.memory, vm.memory));
    let settings = defined.map(|defined| defined.settings);
    let boot = vm.settings.boot.zip(settings.and_then(|s| s.boot));
    let clock = vm.settings.clock.zip(settings.and_then(|s| s.clock));
    [
        cpus.map(|next| one(ChangeKind::Cpus, vm.cpus.into(), next.cpus.into())),
        memory.map(|next| {
            let (now, next) = (vm.memory.bytes(), next.memory.bytes());
            one(ChangeKind::Memory, now.into(), next.into())
        }),
        boot.filter(|(now, next)| now != next)
            .map(|(now, next)| one(ChangeKind::Boot, word(now.into()), word(next.into()))),
        clock
            .filter(|(now, next)| now != next)
            .map(|(now, next)| one(ChangeKind::Clock, word(now.into()), word(next.into()))),
    ]
    .into_iter()
    .flatten()
}

/// What somebody changed of it past Fleetward.
pub(super) fn differing(vm: &VmObserved, spec: &VmSpec) -> Vec<Finding> {
    let name = &spec.name;
    let mut findings = Vec::new();
    let Some(defined) = &vm.defined else {
        return findings;
    };
    let mut edited = |option: String, what: String| {
        findings.push(Finding {
            blocking: false,
            ..Finding::blocking(
                ErrorCode::DefinitionEdited,
                format!("the definition of VM {name} has {what}"),
                format!("fleetward vm set {name} {option}"),
            )
        });
    };
    if defined.cpus != spec.cpus {
        edited(
            format!("--cpus {}", spec.cpus),
            format!(
                "{} of CPUs, and Fleetward gave it {}",
                defined.cpus, spec.cpus
            ),
        );
    }
    if !same_memory(defined.memory, spec.memory) {
        edited(
            format!("--memory {}", argument(spec.memory)),
            format!(
                "{} of memory, and Fleetward gave it {}",
                defined.memory, spec.memory
            ),
        );
    }
    let there = defined.settings.boot.filter(|there| *there != spec.boot);
    if let Some(there) = there.filter(|_| has_device(vm, spec.boot)) {
        edited(
            format!("--boot {}", spec.boot),
            format!(
                "{there} first in its boot order, and Fleetward gave it {}",
                spec.boot
            ),
        );
    }
    if let Some(there) = defined
        .settings
        .clock
        .filter(|there| *there != spec.clock())
    {
        edited(
            format!("--clock {}", spec.clock()),
            format!(
                "a clock of {there} time, and Fleetward gave it {}",
                spec.clock()
            ),
        );
    }
    findings
}

/// Hypervisors give memory in whole MiB.
pub(super) fn same_memory(one: ByteSize, other: ByteSize) -> bool {
    one.bytes().div_ceil(ByteSize::MIB) == other.bytes().div_ceil(ByteSize::MIB)
}
