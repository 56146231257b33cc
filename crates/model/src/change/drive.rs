//! Changes of drives for read-only media: one comes or goes, a medium comes in or out.
//!
//! A medium changes at once. A machine that runs has a new drive after its next start, and one that goes is emptied at once,
//! so that its image is free.

use super::{ChangeKind, ChangeStep, Direction, Pending, Wanted};
use crate::disk::MAX_DRIVES;
use crate::spec::{DriveSpec, Medium, VmSpec};
use crate::vm::{VmObserved, VmState};
use crate::{ErrorCode, Failure, ImageName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One change of a drive. A drive is named by its target or its id; where it is not named, it is the only one that fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum DriveChange {
    Add(DriveAsked),
    Insert(DriveInsert),
    Eject(DriveEject),
    Remove(DriveRemove),
}

/// One more drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveAsked {
    /// None: it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageName>,
}

/// An image that goes into a drive, in place of what is in it. A VM without a drive gets one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveInsert {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drive: Option<String>,
    pub image: ImageName,
}

/// A drive that is emptied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveEject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drive: Option<String>,
}

/// A drive that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveRemove {
    pub drive: String,
}

impl DriveChange {
    /// The image that is to be in a drive.
    pub fn image(&self) -> Option<&ImageName> {
        match self {
            Self::Add(asked) => asked.image.as_ref(),
            Self::Insert(insert) => Some(&insert.image),
            Self::Eject(_) | Self::Remove(_) => None,
        }
    }
}

/// A drive before and after: without `from` it comes, without `to` it goes, with both it has another medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DriveStep {
    /// Its place among the VM's drives.
    pub at: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Box<DriveSpec>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Box<DriveSpec>>,
}

impl DriveStep {
    /// Empties a drive.
    pub fn emptied(at: usize, drive: &DriveSpec) -> Self {
        Self::holding(at, drive, None)
    }

    fn holding(at: usize, drive: &DriveSpec, medium: Option<Medium>) -> Self {
        let to = DriveSpec {
            medium,
            // Made for the first boot only: what takes its place is no such medium.
            seed: false,
            ..drive.clone()
        };
        Self {
            at,
            from: Some(Box::new(drive.clone())),
            to: Some(Box::new(to)),
        }
    }
}

/// The steps for what is asked, one after the other.
///
/// # Errors
/// [`ErrorCode::DeviceMissing`], [`ErrorCode::InvalidArgument`], [`ErrorCode::ImageNotFound`].
pub(super) fn steps(
    vm: &VmObserved,
    spec: &VmSpec,
    wanted: &Wanted,
) -> Result<Vec<ChangeStep>, Failure> {
    let mut after = spec.clone();
    let mut steps = Vec::new();
    for change in &wanted.drives {
        let medium = match change.image() {
            None => None,
            Some(image) => Some(wanted.media.get(image).cloned().ok_or_else(|| {
                Failure::new(ErrorCode::ImageNotFound, format!("no image {image}"))
            })?),
        };
        let step = match change {
            DriveChange::Add(_) => added(vm, &after, medium)?,
            DriveChange::Insert(DriveInsert { drive: None, .. }) if after.drives.is_empty() => {
                added(vm, &after, medium)?
            }
            DriveChange::Insert(insert) => {
                let drive = insert.drive.as_deref();
                let fits = |drive: &DriveSpec| drive.medium.is_none() && !drive.seed;
                with_medium(vm, &after.drives, (drive, &fits), medium)?
            }
            DriveChange::Eject(eject) => {
                let drive = eject.drive.as_deref();
                let fits = |drive: &DriveSpec| drive.medium.is_some() || drive.seed;
                with_medium(vm, &after.drives, (drive, &fits), None)?
            }
            DriveChange::Remove(remove) => {
                let (at, drive) = chosen(vm, &after.drives, (Some(&remove.drive), &|_| true))?;
                DriveStep {
                    at,
                    from: Some(Box::new(drive.clone())),
                    to: None,
                }
            }
        };
        if step.from == step.to {
            continue;
        }
        apply(&mut after.drives, &step, Direction::Forward);
        steps.push(ChangeStep::Drive(step));
    }
    Ok(steps)
}

fn added(vm: &VmObserved, spec: &VmSpec, medium: Option<Medium>) -> Result<DriveStep, Failure> {
    let name = &vm.name;
    if spec.drives.len() >= MAX_DRIVES {
        let what = format!("VM {name} has {MAX_DRIVES} drives, and a VM has no more");
        return Err(Failure::new(ErrorCode::InvalidArgument, what).fix(format!(
            "fleetward vm media eject {name} --drive {}",
            spec.drives[0].target
        )));
    }
    let seen = vm.disks.iter().map(|disk| disk.target.as_str());
    let drives = vm.drives.iter().map(|drive| drive.target.as_str());
    let taken = spec.targets().chain(seen).chain(drives);
    let drive = DriveSpec::next(spec.profile, taken, medium).ok_or_else(|| {
        let what = format!("there is no name left for another drive of VM {name}");
        Failure::new(ErrorCode::InvalidArgument, what)
    })?;
    Ok(DriveStep {
        at: spec.drives.len(),
        from: None,
        to: Some(Box::new(drive)),
    })
}

/// A drive by its name, or the only one that fits.
type Choice<'a> = (Option<&'a str>, &'a dyn Fn(&DriveSpec) -> bool);

fn with_medium(
    vm: &VmObserved,
    drives: &[DriveSpec],
    choice: Choice<'_>,
    medium: Option<Medium>,
) -> Result<DriveStep, Failure> {
    let (at, drive) = chosen(vm, drives, choice)?;
    Ok(DriveStep::holding(at, drive, medium))
}

fn chosen<'a>(
    vm: &VmObserved,
    drives: &'a [DriveSpec],
    (named, fits): Choice<'_>,
) -> Result<(usize, &'a DriveSpec), Failure> {
    let name = &vm.name;
    let mut numbered = drives.iter().enumerate();
    let there = || {
        let targets: Vec<&str> = drives.iter().map(|drive| drive.target.as_str()).collect();
        match targets.as_slice() {
            [] => "it has no drive".to_owned(),
            targets => format!("it has {}", targets.join(", ")),
        }
    };
    if let Some(named) = named {
        let found = numbered.find(|(_, drive)| drive.target == named || drive.id.as_str() == named);
        return found.ok_or_else(|| {
            let what = format!("VM {name} has no drive {named}");
            Failure::new(ErrorCode::DeviceMissing, what)
                .because(there())
                .fix(format!("fleetward vm show {name}"))
        });
    }
    let fitting: Vec<(usize, &DriveSpec)> = numbered.filter(|(_, drive)| fits(drive)).collect();
    match (drives, fitting.as_slice()) {
        ([], _) => {
            let what = format!("VM {name} has no drive");
            Err(Failure::new(ErrorCode::DeviceMissing, what)
                .fix(format!("fleetward vm show {name}")))
        }
        ([only], _) => Ok((0, only)),
        (_, [(at, drive)]) => Ok((*at, drive)),
        ([first, ..], _) => {
            let what = format!("it is not clear which drive of VM {name} is meant");
            Err(Failure::new(ErrorCode::InvalidArgument, what)
                .because(there())
                .fix(format!("say which, for example --drive {}", first.target)))
        }
    }
}

/// The drives after one step.
pub(super) fn apply(drives: &mut Vec<DriveSpec>, step: &DriveStep, direction: Direction) {
    let (from, to) = (step.from.as_deref(), step.to.as_deref());
    let Some(named) = from.or(to) else { return };
    let at = drives.iter().position(|drive| drive.id == named.id);
    let next = match direction {
        Direction::Forward => to,
        Direction::Back if at.map(|at| &drives[at]) == to => from,
        Direction::Back => return,
    };
    match (at, next) {
        (Some(at), Some(next)) => drives[at] = next.clone(),
        (Some(at), None) => drop(drives.remove(at)),
        (None, Some(next)) => drives.insert(step.at.min(drives.len()), next.clone()),
        (None, None) => {}
    }
}

/// Whether a machine that runs has it only after its next start.
pub(super) fn waits(step: &DriveStep, state: VmState) -> bool {
    let runs = match state {
        VmState::Running | VmState::Paused | VmState::Failed => true,
        VmState::Stopped | VmState::Saved | VmState::Migrating | VmState::Unknown => false,
    };
    runs && (step.from.is_none() || step.to.is_none())
}

/// The drives that the running VM has otherwise than its definition.
pub(super) fn pending(vm: &VmObserved) -> impl Iterator<Item = Pending> {
    vm.drives.iter().filter_map(|drive| {
        let target = || serde_json::Value::from(drive.target.as_str());
        let (now, wanted) = drive.presence.now_and_next(target)?;
        Some(Pending {
            change: ChangeKind::Drives,
            device: drive.id.clone(),
            now,
            wanted,
        })
    })
}
