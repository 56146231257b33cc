//! The one way to change a VM: from what it is and what is wanted to steps, or to a named refusal.
//!
//! ```text
//!  Wanted, VmObserved ── plan ────► Plan: ChangeSteps in order, each now or at the next start
//!              │             └────► Failure: the first reason, and every finding
//!  VmSpec, ChangeSteps ── apply ──► VmSpec, forward or back
//!  VmObserved ── pending ─────────► what waits for the next start
//!  VmObserved ── differing ───────► what somebody changed past Fleetward
//! ```
//! A step holds the value before and the value after. Back, it touches only what still has the value that it gave: what
//! somebody else has changed meanwhile stays.

pub mod machine;
pub mod nic;

pub use machine::{Cpus, MachineChange, Memory, defined_after};
pub use nic::{NicAsked, NicChange, NicPart, NicRemove, NicSet};

pub mod disk;
pub mod drive;

pub use disk::{DiskAct, DiskAsked, DiskChange, DiskMove, DiskRemove, DiskResize, DiskStep};
pub use drive::{DriveAsked, DriveChange, DriveEject, DriveInsert, DriveRemove, DriveStep};

use crate::error::Finding;
use crate::host::Formats;
use crate::machine::{BootFirst, Clock};
use crate::name::MAX_LABEL_VALUE;
use crate::profile::Asked;
use crate::spec::{Description, DiskSpec, Medium, NicSpec, VmSpec};
use crate::vm::{VmObserved, VmState};
use crate::{ByteSize, DeviceId, ErrorCode, Failure, ImageName, LabelKey, VmName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What can be changed of a VM.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum ChangeKind {
    Tpm,
    Cpus,
    Memory,
    Description,
    Labels,
    Autostart,
    RestartOnCrash,
    Name,
    Nics,
    Disks,
    Drives,
    Boot,
    Clock,
}

impl ChangeKind {
    /// The version of a host's operations that added it.
    pub const fn operations(self) -> u32 {
        match self {
            Self::Tpm
            | Self::Cpus
            | Self::Memory
            | Self::Description
            | Self::Labels
            | Self::Autostart
            | Self::Name => Formats::CHANGE_VM,
            Self::RestartOnCrash | Self::Nics | Self::Disks | Self::Drives => Formats::DEVICES,
            Self::Boot | Self::Clock => Formats::MACHINE,
        }
    }
}

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    Now,
    NextStart,
}

/// The table's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Takes(Effect),
    Refuse(ErrorCode, &'static str),
}

/// Whether a VM in `state` takes a change of `kind`, and when it has it.
pub const fn answer(kind: ChangeKind, state: VmState) -> Answer {
    use Answer::{Refuse, Takes};
    use ChangeKind::{
        Autostart, Boot, Clock, Cpus, Description, Disks, Drives, Labels, Memory, Name, Nics,
        RestartOnCrash, Tpm,
    };
    use VmState::{Failed, Migrating, Paused, Running, Saved, Stopped, Unknown};
    match (kind, state) {
        (
            Description | Labels | Autostart | RestartOnCrash,
            Running | Stopped | Paused | Failed,
        ) => Takes(Effect::Now),
        (Cpus | Memory | Boot | Clock, Stopped) => Takes(Effect::Now),
        (Cpus | Memory | Boot | Clock, Running | Paused | Failed) => Takes(Effect::NextStart),
        (Name | Tpm, Stopped) => Takes(Effect::Now),
        // What QEMU or the guest refuses meanwhile waits for the next start.
        (Nics, Running | Stopped | Paused | Failed) => Takes(Effect::Now),
        // What the machine cannot take waits for the next start, and what it cannot let go of is refused: see `disk`.
        (Disks | Drives, Running | Stopped | Paused | Failed) => Takes(Effect::Now),
        (Name, Running | Paused | Failed) => Refuse(
            ErrorCode::VmRunning,
            "libvirt renames a domain only while it is stopped",
        ),
        (Tpm, Running | Paused | Failed) => Refuse(
            ErrorCode::VmRunning,
            "a TPM is changed only while the VM is stopped",
        ),
        (
            Tpm | Cpus | Memory | Description | Labels | Autostart | RestartOnCrash | Name | Nics
            | Disks | Drives | Boot | Clock,
            Saved,
        ) => Refuse(
            ErrorCode::VmStateWrong,
            "its memory is saved on the disk, and goes on with what it had",
        ),
        (
            Tpm | Cpus | Memory | Description | Labels | Autostart | RestartOnCrash | Name | Nics
            | Disks | Drives | Boot | Clock,
            Migrating,
        ) => Refuse(ErrorCode::VmBusy, "the VM is migrating"),
        (
            Tpm | Cpus | Memory | Description | Labels | Autostart | RestartOnCrash | Name | Nics
            | Disks | Drives | Boot | Clock,
            Unknown,
        ) => Refuse(
            ErrorCode::HostUnreachable,
            "its host does not answer, so its state is unknown",
        ),
    }
}

/// The value of a label: at most [`MAX_LABEL_VALUE`] bytes, no control character.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
pub struct LabelValue(String);

impl LabelValue {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LabelValue {
    type Error = String;
    fn try_from(value: String) -> Result<Self, String> {
        if value.len() > MAX_LABEL_VALUE || value.chars().any(char::is_control) {
            return Err(format!(
                "the value of a label has at most {MAX_LABEL_VALUE} bytes and no control characters"
            ));
        }
        Ok(Self(value))
    }
}

impl From<LabelValue> for String {
    fn from(value: LabelValue) -> String {
        value.0
    }
}

/// What is wanted of a VM. What is not named stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub tpm: Option<bool>,
    pub cpus: Option<Cpus>,
    pub memory: Option<Memory>,
    pub description: Option<Description>,
    /// None: the label goes.
    pub labels: BTreeMap<LabelKey, Option<LabelValue>>,
    pub autostart: Option<bool>,
    pub restart_on_crash: Option<bool>,
    pub boot: Option<BootFirst>,
    pub clock: Option<Clock>,
    pub name: Option<VmName>,
    /// Carried out in this order.
    pub nics: Vec<NicChange>,
    /// Carried out in this order.
    pub disks: Vec<DiskChange>,
    /// Carried out in this order.
    pub drives: Vec<DriveChange>,
    /// The images that `drives` names.
    pub media: BTreeMap<ImageName, Medium>,
}

impl Wanted {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One change, with the value before and the value after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum ChangeStep {
    Tpm {
        to: bool,
    },
    Cpus {
        from: u32,
        to: u32,
        /// What the definition had, where somebody had edited it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        defined: Option<u32>,
    },
    Memory {
        from: ByteSize,
        to: ByteSize,
        /// What the definition had, where somebody had edited it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        defined: Option<ByteSize>,
    },
    Description {
        from: Description,
        to: Description,
    },
    Label {
        key: LabelKey,
        from: Option<String>,
        to: Option<String>,
    },
    Autostart {
        from: bool,
        to: bool,
    },
    RestartOnCrash {
        from: bool,
        to: bool,
    },
    Name {
        from: VmName,
        to: VmName,
        /// The domain's own name, where somebody had renamed it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        domain: Option<String>,
    },
    /// A network card: from none it is added, to none removed. Of a card that stays only `parts` are touched.
    Nic {
        nic: DeviceId,
        from: Option<Box<NicSpec>>,
        to: Option<Box<NicSpec>>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        parts: Vec<NicPart>,
    },
    Disk(DiskStep),
    Drive(DriveStep),
    Boot {
        from: BootFirst,
        to: BootFirst,
    },
    Clock {
        from: Clock,
        to: Clock,
    },
}

impl ChangeStep {
    pub const fn kind(&self) -> ChangeKind {
        match self {
            Self::Tpm { .. } => ChangeKind::Tpm,
            Self::Cpus { .. } => ChangeKind::Cpus,
            Self::Memory { .. } => ChangeKind::Memory,
            Self::Description { .. } => ChangeKind::Description,
            Self::Label { .. } => ChangeKind::Labels,
            Self::Autostart { .. } => ChangeKind::Autostart,
            Self::RestartOnCrash { .. } => ChangeKind::RestartOnCrash,
            Self::Name { .. } => ChangeKind::Name,
            Self::Nic { .. } => ChangeKind::Nics,
            Self::Disk(_) => ChangeKind::Disks,
            Self::Drive(_) => ChangeKind::Drives,
            Self::Boot { .. } => ChangeKind::Boot,
            Self::Clock { .. } => ChangeKind::Clock,
        }
    }
}

impl ChangeStep {
    /// The change of a disk.
    pub const fn disk(&self) -> Option<&DiskStep> {
        let Self::Disk(step) = self else { return None };
        Some(step)
    }

    /// The change of a drive.
    pub const fn drive(&self) -> Option<&DriveStep> {
        let Self::Drive(step) = self else { return None };
        Some(step)
    }

    /// Whether a machine in that state has it only after its next start, as far as it is known beforehand.
    fn waits(&self, state: VmState) -> bool {
        self.disk().is_some_and(|step| disk::waits(step, state))
            || self.drive().is_some_and(|step| drive::waits(step, state))
            || nic::waits(self, state)
    }
}

/// A step and when it takes effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedStep {
    #[serde(flatten)]
    pub step: ChangeStep,
    pub effect: Effect,
}

/// What is to be done, in this order. Empty: the VM is as wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    pub steps: Vec<PlannedStep>,
}

impl Plan {
    fn all(&self) -> impl DoubleEndedIterator<Item = &ChangeStep> {
        self.steps.iter().map(|planned| &planned.step)
    }

    /// Whether the TPM is switched on or off.
    pub fn tpm(&self) -> Option<bool> {
        self.all().find_map(|step| {
            let ChangeStep::Tpm { to } = step else {
                return None;
            };
            Some(*to)
        })
    }

    /// The name it gets.
    pub fn name(&self) -> Option<&VmName> {
        self.all().find_map(|step| {
            let ChangeStep::Name { to, .. } = step else {
                return None;
            };
            Some(to)
        })
    }

    /// The network cards that it gets, or that change.
    pub fn nics(&self) -> impl Iterator<Item = &NicSpec> {
        self.all().filter_map(|step| {
            let ChangeStep::Nic { to, .. } = step else {
                return None;
            };
            to.as_deref()
        })
    }

    /// The memory it gets.
    pub fn memory(&self) -> Option<ByteSize> {
        self.all().find_map(|step| {
            let ChangeStep::Memory { to, .. } = step else {
                return None;
            };
            Some(*to)
        })
    }

    /// The steps about disks.
    pub fn disks(&self) -> impl Iterator<Item = &DiskStep> {
        self.all().filter_map(ChangeStep::disk)
    }

    /// The media that come into drives.
    pub fn media(&self) -> impl Iterator<Item = &Medium> {
        let drives = self.all().filter_map(ChangeStep::drive);
        drives.filter_map(|step| step.to.as_ref()?.medium.as_ref())
    }

    /// The volumes that nobody needs once all of it is done.
    pub fn left_over(&self) -> Vec<DiskSpec> {
        self.disks()
            .filter_map(DiskStep::left_over)
            .cloned()
            .collect()
    }

    /// What the definition on the host is asked for: everything but the TPM.
    pub fn of_the_definition(&self) -> Vec<ChangeStep> {
        self.all()
            .filter(|step| step.kind() != ChangeKind::Tpm)
            .cloned()
            .collect()
    }
}

/// The steps from what the VM is to what is wanted.
///
/// # Errors
/// [`ErrorCode::InvalidArgument`] when nothing is named; the first refusal of [`answer`] or of the profile.
pub fn plan(vm: &VmObserved, wanted: &Wanted) -> Result<Plan, Failure> {
    let name = &vm.name;
    if wanted.is_empty() {
        let what = format!("nothing was named that is to change of VM {name}");
        return Err(Failure::new(ErrorCode::InvalidArgument, what)
            .fix(format!("fleetward vm set {name} --cpus 2")));
    }
    let metadata = vm.require_metadata()?;
    let spec = &metadata.spec;
    let mut steps = steps(vm, spec, wanted);
    steps.extend(nic::steps(vm, spec, &wanted.nics)?);
    steps.extend(disk::steps(vm, spec, &wanted.disks)?);
    steps.extend(drive::steps(vm, spec, wanted)?);
    machine::require_bootable(vm, &steps)?;
    let mut findings = Vec::new();
    let mut planned = Vec::with_capacity(steps.len());
    for step in steps {
        match answer(step.kind(), vm.state) {
            Answer::Takes(effect) => {
                let effect = match step.waits(vm.state) {
                    true => Effect::NextStart,
                    false => effect,
                };
                planned.push(PlannedStep { step, effect });
            }
            Answer::Refuse(code, why) => {
                let what = format!("VM {name} is {}: {why}", vm.state);
                findings.push(Finding::blocking(code, what, refusal_fix(code, vm)));
            }
        }
    }
    findings.extend(profile_findings(spec, wanted));
    let what = format!("VM {name} stays as it is");
    match Failure::from_findings(what, findings) {
        Some(failure) => Err(failure),
        None => Ok(Plan { steps: planned }),
    }
}

fn refusal_fix(code: ErrorCode, vm: &VmObserved) -> String {
    let name = &vm.name;
    match code {
        ErrorCode::VmRunning => format!("fleetward vm stop {name}, and try again"),
        ErrorCode::VmStateWrong => format!("let it go on: fleetward vm start {name}"),
        ErrorCode::HostUnreachable => {
            format!("see that its agent runs: fleetward host show {}", vm.host)
        }
        _ => format!("fleetward vm show {name} names the job that has it"),
    }
}

/// What differs from what is wanted, whether Fleetward or somebody else made it so.
fn steps(vm: &VmObserved, spec: &VmSpec, wanted: &Wanted) -> Vec<ChangeStep> {
    let mut steps = Vec::new();
    if let Some(to) = wanted.tpm
        && (spec.tpm != to || vm.tpm.enabled != to)
    {
        steps.push(ChangeStep::Tpm { to });
    }
    steps.extend(machine::steps(vm, spec, wanted));
    if let Some(to) = &wanted.description
        && spec.description != *to
    {
        steps.push(ChangeStep::Description {
            from: spec.description.clone(),
            to: to.clone(),
        });
    }
    for (key, to) in &wanted.labels {
        let from = spec.labels.get(key).cloned();
        let to = to.as_ref().map(|value| value.as_str().to_owned());
        if from != to {
            let key = key.clone();
            steps.push(ChangeStep::Label { key, from, to });
        }
    }
    if let Some(to) = wanted.autostart
        && spec.autostart != to
    {
        let from = spec.autostart;
        steps.push(ChangeStep::Autostart { from, to });
    }
    if let Some(to) = wanted.restart_on_crash
        && spec.restart_on_crash != to
    {
        let from = spec.restart_on_crash;
        steps.push(ChangeStep::RestartOnCrash { from, to });
    }
    if let Some(to) = &wanted.name {
        let domain = vm.domain_name.as_deref().unwrap_or(spec.name.as_str());
        if spec.name != *to || domain != to.as_str() {
            steps.push(ChangeStep::Name {
                from: spec.name.clone(),
                to: to.clone(),
                domain: vm.domain_name.clone(),
            });
        }
    }
    steps
}

/// What the profile says against the wanted size; what is not named is not held against the VM.
fn profile_findings(spec: &VmSpec, wanted: &Wanted) -> Vec<Finding> {
    let name = &spec.name;
    let asked = Asked {
        cpus: wanted.cpus.map(u32::from),
        memory: wanted.memory.map(ByteSize::from),
        disk: None,
        tpm: true,
        secure_boot: true,
    };
    let mut findings: Vec<Finding> = spec.profile.resolve(asked).err().unwrap_or_default();
    for finding in &mut findings {
        finding.fix = format!("fleetward vm set {name} {}", finding.fix);
    }
    if wanted.tpm == Some(false) && spec.profile.requires_tpm() {
        findings.push(Finding::blocking(
            ErrorCode::ProfileRefuses,
            format!(
                "VM {name} has profile {}, which requires a TPM 2.0",
                spec.profile
            ),
            format!("to take it away all the same: fleetward tpm disable {name}"),
        ));
    }
    findings
}

/// Which way steps are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Forward,
    Back,
}

/// The specification after the steps.
pub fn apply(spec: &VmSpec, steps: &[ChangeStep], direction: Direction) -> VmSpec {
    let mut after = spec.clone();
    for step in steps {
        match step {
            ChangeStep::Tpm { to } => exchange(&mut after.tpm, &!*to, to, direction),
            ChangeStep::Cpus { from, to, .. } => exchange(&mut after.cpus, from, to, direction),
            ChangeStep::Memory { from, to, .. } => exchange(&mut after.memory, from, to, direction),
            ChangeStep::Description { from, to } => {
                exchange(&mut after.description, from, to, direction);
            }
            ChangeStep::Label { key, from, to } => {
                let mut value = after.labels.remove(key);
                exchange(&mut value, from, to, direction);
                if let Some(value) = value {
                    after.labels.insert(key.clone(), value);
                }
            }
            ChangeStep::Autostart { from, to } => {
                exchange(&mut after.autostart, from, to, direction);
            }
            ChangeStep::RestartOnCrash { from, to } => {
                exchange(&mut after.restart_on_crash, from, to, direction);
            }
            ChangeStep::Name { from, to, .. } => exchange(&mut after.name, from, to, direction),
            ChangeStep::Nic { nic, from, to, .. } => {
                nic::apply(
                    &mut after.nics,
                    nic,
                    (from.as_deref(), to.as_deref()),
                    direction,
                );
            }
            ChangeStep::Disk(step) => disk::apply(&mut after.disks, step, direction),
            ChangeStep::Drive(step) => drive::apply(&mut after.drives, step, direction),
            ChangeStep::Boot { from, to } => exchange(&mut after.boot, from, to, direction),
            ChangeStep::Clock { from, to } => {
                let mut clock = after.clock();
                exchange(&mut clock, from, to, direction);
                after.clock = (clock != after.profile.devices().clock).then_some(clock);
            }
        }
    }
    after
}

fn exchange<T: Clone + PartialEq>(value: &mut T, from: &T, to: &T, direction: Direction) {
    match direction {
        Direction::Forward => value.clone_from(to),
        Direction::Back if value == to => value.clone_from(from),
        Direction::Back => {}
    }
}

/// The name that the domain gets; none: it keeps the one it has.
pub fn domain_name_after(has: &str, steps: &[ChangeStep], direction: Direction) -> Option<String> {
    let next = steps.iter().find_map(|step| {
        let ChangeStep::Name { from, to, domain } = step else {
            return None;
        };
        match direction {
            Direction::Forward => Some(to.to_string()),
            Direction::Back if has == to.as_str() => {
                Some(domain.clone().unwrap_or_else(|| from.to_string()))
            }
            Direction::Back => None,
        }
    });
    next.filter(|next| next != has)
}

/// A value of a VM that waits for its next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pending {
    pub change: ChangeKind,
    /// The device that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// What it has now; memory in bytes.
    #[schema(value_type = Value)]
    pub now: serde_json::Value,
    /// What it gets.
    #[schema(value_type = Value)]
    pub wanted: serde_json::Value,
}

/// What the running VM has otherwise than its definition.
pub fn pending(vm: &VmObserved) -> Vec<Pending> {
    let runs = match vm.state {
        VmState::Running | VmState::Paused | VmState::Migrating => true,
        VmState::Stopped | VmState::Saved | VmState::Failed | VmState::Unknown => false,
    };
    if !runs || vm.defined.is_none() {
        return Vec::new();
    }
    machine::pending(vm)
        .chain(nic::pending(vm))
        .chain(disk::pending(vm))
        .chain(drive::pending(vm))
        .collect()
}
/// A size as an option takes it: `4G`, `600M`.
pub(crate) fn argument(size: ByteSize) -> String {
    let bytes = size.bytes();
    match bytes {
        _ if bytes.is_multiple_of(ByteSize::GIB) => format!("{}G", bytes / ByteSize::GIB),
        _ => format!("{}M", bytes.div_ceil(ByteSize::MIB)),
    }
}

/// What somebody has changed past Fleetward: in the definition it is otherwise than in the specification.
pub fn differing(vm: &VmObserved) -> Vec<Finding> {
    let Some(metadata) = &vm.metadata else {
        return Vec::new();
    };
    let spec = &metadata.spec;
    let name = &spec.name;
    let mut findings = Vec::new();
    if let Some(domain) = &vm.domain_name {
        findings.push(Finding {
            blocking: false,
            ..Finding::blocking(
                ErrorCode::NameDiffers,
                format!(
                    "on host {} the domain of VM {name} is named {domain}",
                    vm.host
                ),
                format!("while the VM is stopped: fleetward vm rename {name} {name}"),
            )
        });
    }
    findings.extend(machine::differing(vm, spec));
    findings.extend(nic::differing(vm, spec));
    findings
}

#[cfg(test)]
mod tests;
