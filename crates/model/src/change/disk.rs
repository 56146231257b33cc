//! Changes of disks: one comes, grows, moves to another pool, or goes.
//!
//! A disk keeps its id, its target and its bus for as long as the VM has it. What a running machine cannot take now waits
//! for its next start; what it could only lose by force is refused.

use super::{ChangeKind, ChangeStep, Direction, Pending};
use crate::disk::{DiskMark, MAX_DISKS, free_target};
use crate::profile::DISK;
use crate::spec::{DiskSpec, VmSpec};
use crate::vm::{DiskBus, DiskObserved, Presence, VmObserved, VmState};
use crate::{ByteSize, ErrorCode, Failure, PoolName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One change of a disk. A disk is named by its target or its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum DiskChange {
    Add(DiskAsked),
    Resize(DiskResize),
    Remove(DiskRemove),
    Move(DiskMove),
}

/// A disk that is to be made, empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskAsked {
    /// Virtual size.
    pub size_bytes: ByteSize,
    /// None: the one of the VM's first disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// None: as the VM's first disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<DiskBus>,
    /// Chosen by the controller.
    #[serde(skip)]
    pub mark: Option<DiskMark>,
}

/// A disk that is to grow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskResize {
    pub disk: String,
    /// Its new virtual size; not smaller than it is.
    pub size_bytes: ByteSize,
}

/// A disk that is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskRemove {
    pub disk: String,
    /// Its volume stays in its pool.
    #[serde(default)]
    pub keep: bool,
}

/// A disk that is to lie in another pool of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskMove {
    pub disk: String,
    pub pool: PoolName,
    /// Chosen by the controller.
    #[serde(skip)]
    pub mark: Option<DiskMark>,
}

/// A disk before and after: without `from` it comes, without `to` it goes, with both it has grown or moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskStep {
    /// Its place among the VM's disks.
    pub at: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Box<DiskSpec>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Box<DiskSpec>>,
    /// Of a disk that goes: its volume stays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// The file of a disk that is there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// What a step does to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskAct<'a> {
    Come(&'a DiskSpec),
    Go(&'a DiskSpec),
    /// In place.
    Grow {
        from: &'a DiskSpec,
        to: &'a DiskSpec,
    },
    /// To another volume.
    Move {
        from: &'a DiskSpec,
        to: &'a DiskSpec,
    },
}

impl DiskStep {
    /// What it does; none: nothing.
    pub fn act(&self) -> Option<DiskAct<'_>> {
        match (self.from.as_deref(), self.to.as_deref()) {
            (None, None) => None,
            (None, Some(disk)) => Some(DiskAct::Come(disk)),
            (Some(disk), None) => Some(DiskAct::Go(disk)),
            (Some(from), Some(to)) if from.pool == to.pool && from.volume == to.volume => {
                Some(DiskAct::Grow { from, to })
            }
            (Some(from), Some(to)) => Some(DiskAct::Move { from, to }),
        }
    }

    /// The volume that nobody needs once the step is done.
    pub fn left_over(&self) -> Option<&DiskSpec> {
        match self.act()? {
            DiskAct::Go(disk) if !self.keep => Some(disk),
            DiskAct::Move { from, .. } => Some(from),
            DiskAct::Go(_) | DiskAct::Come(_) | DiskAct::Grow { .. } => None,
        }
    }
}

/// The steps for what is asked, one after the other.
///
/// # Errors
/// [`ErrorCode::DeviceMissing`], [`ErrorCode::InvalidArgument`], [`ErrorCode::VmRunning`].
pub(super) fn steps(
    vm: &VmObserved,
    spec: &VmSpec,
    changes: &[DiskChange],
) -> Result<Vec<ChangeStep>, Failure> {
    let mut after = spec.clone();
    let mut steps = Vec::new();
    for change in changes {
        let step = match change {
            DiskChange::Add(asked) => Some(added(vm, &after, asked)?),
            DiskChange::Resize(resize) => grown(vm, &after.disks, resize)?,
            DiskChange::Remove(remove) => Some(removed(vm, &after.disks, remove)?),
            DiskChange::Move(moving) => moved(vm, &after.disks, moving)?,
        };
        let Some(step) = step else { continue };
        apply(&mut after.disks, &step, Direction::Forward);
        steps.push(ChangeStep::Disk(step));
    }
    Ok(steps)
}

fn added(vm: &VmObserved, spec: &VmSpec, asked: &DiskAsked) -> Result<DiskStep, Failure> {
    let name = &vm.name;
    require_size(asked.size_bytes)?;
    if spec.disks.len() >= MAX_DISKS {
        let what = format!("VM {name} has {MAX_DISKS} disks, and a VM has no more");
        return Err(Failure::new(ErrorCode::InvalidArgument, what).fix("remove a disk first"));
    }
    // Its guest has the driver of the disk that it runs from.
    let system = spec.disks.first().map(|disk| disk.bus);
    let usual = system.unwrap_or(spec.profile.devices().disk_bus);
    let bus = asked.bus.unwrap_or(usual);
    // A device that somebody else gave the domain, or that goes at its next start, has its target.
    let seen = vm.disks.iter().map(|disk| disk.target.as_str());
    let drives = vm.drives.iter().map(|drive| drive.target.as_str());
    let taken = spec.targets().chain(seen).chain(drives);
    let (Some(target), Some(mark)) = (free_target(bus, taken), &asked.mark) else {
        let what = format!("there is no name left for another disk of VM {name}");
        return Err(Failure::new(ErrorCode::InvalidArgument, what));
    };
    let beside = || spec.disks.first().map(|disk| disk.pool.clone());
    let pool = asked.pool.clone().or_else(beside).unwrap_or_default();
    let size = asked.size_bytes;
    let disk = DiskSpec::added(spec.id, mark, target, bus, pool, size);
    Ok(DiskStep {
        at: spec.disks.len(),
        from: None,
        to: Some(Box::new(disk)),
        keep: false,
        path: None,
    })
}

fn grown(
    vm: &VmObserved,
    disks: &[DiskSpec],
    resize: &DiskResize,
) -> Result<Option<DiskStep>, Failure> {
    let (at, disk) = known(vm, disks, &resize.disk)?;
    let (has, size) = (disk.size, resize.size_bytes);
    require_size(size)?;
    if size < has {
        let what = format!(
            "disk {} of VM {} has {has}, and a disk only grows",
            disk.target, vm.name
        );
        return Err(Failure::new(ErrorCode::InvalidArgument, what)
            .because(format!(
                "{size} was asked for; what lies behind it would be lost"
            ))
            .fix(format!(
                "fleetward vm disk resize {} {} {}",
                vm.name,
                disk.target,
                super::argument(ByteSize(has.bytes().saturating_mul(2)))
            )));
    }
    Ok((size > has).then(|| {
        let to = DiskSpec {
            size,
            ..disk.clone()
        };
        step_of(vm, at, disk, Some(to))
    }))
}

fn removed(vm: &VmObserved, disks: &[DiskSpec], remove: &DiskRemove) -> Result<DiskStep, Failure> {
    let (at, disk) = known(vm, disks, &remove.disk)?;
    let name = &vm.name;
    if disks.len() == 1 {
        let what = format!("disk {} is the only one of VM {name}", disk.target);
        return Err(Failure::new(ErrorCode::InvalidArgument, what)
            .fix(format!("fleetward vm delete {name}")));
    }
    if let Some(why) = holds_on(vm, disk) {
        let what = format!("disk {} of VM {name} cannot be removed now", disk.target);
        return Err(Failure::new(ErrorCode::VmRunning, what)
            .because(why.to_owned())
            .fix(format!("fleetward vm stop {name}, and try again")));
    }
    Ok(DiskStep {
        keep: remove.keep,
        ..step_of(vm, at, disk, None)
    })
}

/// Why a machine that runs cannot let go of a disk.
fn holds_on(vm: &VmObserved, disk: &DiskSpec) -> Option<&'static str> {
    let seen = seen(vm, &disk.target);
    let has = seen.is_none_or(|seen| seen.presence == Presence::Here);
    match (vm.state, disk.bus) {
        (VmState::Stopped, _) => None,
        (VmState::Running | VmState::Failed, DiskBus::Virtio | DiskBus::Scsi) => None,
        (VmState::Running | VmState::Failed, DiskBus::Sata) => {
            has.then_some("a SATA disk is not unplugged from a running machine")
        }
        (VmState::Paused, _) => has.then_some("a guest that is paused cannot let go of a disk"),
        // Refused for what they are.
        (VmState::Saved | VmState::Migrating | VmState::Unknown, _) => None,
    }
}

fn moved(
    vm: &VmObserved,
    disks: &[DiskSpec],
    moving: &DiskMove,
) -> Result<Option<DiskStep>, Failure> {
    let (at, disk) = known(vm, disks, &moving.disk)?;
    if disk.pool == moving.pool {
        return Ok(None);
    }
    let Some(mark) = &moving.mark else {
        let what = format!("disk {} has no new volume", disk.target);
        return Err(Failure::new(ErrorCode::InvalidArgument, what));
    };
    let to = DiskSpec {
        pool: moving.pool.clone(),
        volume: mark.volume(vm.id, &disk.target),
        ..disk.clone()
    };
    Ok(Some(step_of(vm, at, disk, Some(to))))
}

fn step_of(vm: &VmObserved, at: usize, disk: &DiskSpec, to: Option<DiskSpec>) -> DiskStep {
    DiskStep {
        at,
        from: Some(Box::new(disk.clone())),
        to: to.map(Box::new),
        keep: false,
        path: seen(vm, &disk.target).map(|seen| seen.path.clone()),
    }
}

fn seen<'a>(vm: &'a VmObserved, target: &str) -> Option<&'a DiskObserved> {
    vm.disks.iter().find(|seen| seen.target == target)
}

/// Refuses what is no size of a disk.
pub fn require_size(size: ByteSize) -> Result<(), Failure> {
    let (low, high) = DISK;
    if size >= low && size <= high && size.bytes().is_multiple_of(512) {
        return Ok(());
    }
    let what = format!("no disk has {} bytes", size.bytes());
    Err(Failure::new(ErrorCode::InvalidArgument, what)
        .because(format!(
            "a disk has {low} to {high}, in whole sectors of 512 bytes"
        ))
        .fix("ask for a size such as 64G"))
}

fn known<'a>(
    vm: &VmObserved,
    disks: &'a [DiskSpec],
    named: &str,
) -> Result<(usize, &'a DiskSpec), Failure> {
    let found = disks
        .iter()
        .enumerate()
        .find(|(_, disk)| disk.target == named || disk.id.as_str() == named);
    found.ok_or_else(|| {
        let name = &vm.name;
        let there: Vec<&str> = disks.iter().map(|disk| disk.target.as_str()).collect();
        Failure::new(
            ErrorCode::DeviceMissing,
            format!("VM {name} has no disk {named}"),
        )
        .because(format!("it has {}", there.join(", ")))
        .fix(format!("fleetward vm show {name}"))
    })
}

/// The disks after one step.
pub(super) fn apply(disks: &mut Vec<DiskSpec>, step: &DiskStep, direction: Direction) {
    let (from, to) = (step.from.as_deref(), step.to.as_deref());
    let Some(named) = from.or(to) else { return };
    let at = disks.iter().position(|disk| disk.id == named.id);
    let next = match direction {
        Direction::Forward => to,
        Direction::Back if at.map(|at| &disks[at]) == to => from,
        Direction::Back => return,
    };
    match (at, next) {
        (Some(at), Some(next)) => disks[at] = next.clone(),
        (Some(at), None) => drop(disks.remove(at)),
        (None, Some(next)) => disks.insert(step.at.min(disks.len()), next.clone()),
        (None, None) => {}
    }
}

/// Whether a machine that runs has the disk only after its next start.
pub(super) fn waits(step: &DiskStep, state: VmState) -> bool {
    let runs = match state {
        VmState::Running | VmState::Paused | VmState::Failed => true,
        VmState::Stopped | VmState::Saved | VmState::Migrating | VmState::Unknown => false,
    };
    match step.act() {
        Some(DiskAct::Come(disk)) => runs && disk.bus == DiskBus::Sata,
        Some(DiskAct::Go(_) | DiskAct::Grow { .. } | DiskAct::Move { .. }) | None => false,
    }
}

/// The disks that the running VM has otherwise than its definition.
pub(super) fn pending(vm: &VmObserved) -> impl Iterator<Item = Pending> {
    vm.disks.iter().filter_map(|disk| {
        let target = || serde_json::Value::from(disk.target.as_str());
        let (now, wanted) = disk.presence.now_and_next(target)?;
        Some(Pending {
            change: ChangeKind::Disks,
            device: disk.id.clone(),
            now,
            wanted,
        })
    })
}
