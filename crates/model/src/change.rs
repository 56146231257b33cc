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

pub mod nic;

pub use nic::{NicAsked, NicChange, NicPart, NicRemove, NicSet};

pub mod disk;
pub mod drive;

pub use disk::{DiskAct, DiskAsked, DiskChange, DiskMove, DiskRemove, DiskResize, DiskStep};
pub use drive::{DriveAsked, DriveChange, DriveEject, DriveInsert, DriveRemove, DriveStep};

use crate::error::Finding;
use crate::name::MAX_LABEL_VALUE;
use crate::profile::{Asked, MAX_CPUS, MEMORY};
use crate::spec::{Description, DiskSpec, Medium, NicSpec, VmSpec};
use crate::vm::{Profile, VmObserved, VmState};
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
        Autostart, Cpus, Description, Disks, Drives, Labels, Memory, Name, Nics, RestartOnCrash,
        Tpm,
    };
    use VmState::{Failed, Migrating, Paused, Running, Stopped, Unknown};
    match (kind, state) {
        (
            Description | Labels | Autostart | RestartOnCrash,
            Running | Stopped | Paused | Failed,
        ) => Takes(Effect::Now),
        (Cpus | Memory, Stopped) => Takes(Effect::Now),
        (Cpus | Memory, Running | Paused | Failed) => Takes(Effect::NextStart),
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
            | Disks | Drives,
            Migrating,
        ) => Refuse(ErrorCode::VmBusy, "the VM is migrating"),
        (
            Tpm | Cpus | Memory | Description | Labels | Autostart | RestartOnCrash | Name | Nics
            | Disks | Drives,
            Unknown,
        ) => Refuse(
            ErrorCode::HostUnreachable,
            "its host does not answer, so its state is unknown",
        ),
    }
}

/// A number of virtual processors that a VM can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "u32", into = "u32")]
pub struct Cpus(u32);

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
pub struct Memory(ByteSize);

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
        }
    }
}

impl ChangeStep {
    /// The change of a disk.
    pub const fn disk(&self) -> Option<&DiskStep> {
        match self {
            Self::Disk(step) => Some(step),
            Self::Tpm { .. }
            | Self::Cpus { .. }
            | Self::Memory { .. }
            | Self::Description { .. }
            | Self::Label { .. }
            | Self::RestartOnCrash { .. }
            | Self::Autostart { .. }
            | Self::Name { .. }
            | Self::Nic { .. }
            | Self::Drive(_) => None,
        }
    }

    /// The change of a drive.
    pub const fn drive(&self) -> Option<&DriveStep> {
        match self {
            Self::Drive(step) => Some(step),
            Self::Tpm { .. }
            | Self::Cpus { .. }
            | Self::Memory { .. }
            | Self::Description { .. }
            | Self::Label { .. }
            | Self::RestartOnCrash { .. }
            | Self::Autostart { .. }
            | Self::Name { .. }
            | Self::Nic { .. }
            | Self::Disk(_) => None,
        }
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
    /// Whether the TPM is switched on or off.
    pub fn tpm(&self) -> Option<bool> {
        self.steps.iter().find_map(|planned| match planned.step {
            ChangeStep::Tpm { to } => Some(to),
            ChangeStep::Cpus { .. }
            | ChangeStep::Memory { .. }
            | ChangeStep::Description { .. }
            | ChangeStep::Label { .. }
            | ChangeStep::Autostart { .. }
            | ChangeStep::RestartOnCrash { .. }
            | ChangeStep::Name { .. }
            | ChangeStep::Nic { .. }
            | ChangeStep::Disk(_)
            | ChangeStep::Drive(_) => None,
        })
    }

    /// The name it gets.
    pub fn name(&self) -> Option<&VmName> {
        self.steps.iter().find_map(|planned| match &planned.step {
            ChangeStep::Name { to, .. } => Some(to),
            ChangeStep::Tpm { .. }
            | ChangeStep::Cpus { .. }
            | ChangeStep::Memory { .. }
            | ChangeStep::Description { .. }
            | ChangeStep::Label { .. }
            | ChangeStep::Autostart { .. }
            | ChangeStep::RestartOnCrash { .. }
            | ChangeStep::Nic { .. }
            | ChangeStep::Disk(_)
            | ChangeStep::Drive(_) => None,
        })
    }

    /// The network cards that it gets, or that change.
    pub fn nics(&self) -> impl Iterator<Item = &NicSpec> {
        self.steps.iter().filter_map(|planned| match &planned.step {
            ChangeStep::Nic { to, .. } => to.as_deref(),
            ChangeStep::Tpm { .. }
            | ChangeStep::Cpus { .. }
            | ChangeStep::Memory { .. }
            | ChangeStep::Description { .. }
            | ChangeStep::Label { .. }
            | ChangeStep::Autostart { .. }
            | ChangeStep::RestartOnCrash { .. }
            | ChangeStep::Name { .. }
            | ChangeStep::Disk(_)
            | ChangeStep::Drive(_) => None,
        })
    }

    /// The memory it gets.
    pub fn memory(&self) -> Option<ByteSize> {
        self.steps.iter().find_map(|planned| match planned.step {
            ChangeStep::Memory { to, .. } => Some(to),
            ChangeStep::Tpm { .. }
            | ChangeStep::Cpus { .. }
            | ChangeStep::Description { .. }
            | ChangeStep::Label { .. }
            | ChangeStep::Autostart { .. }
            | ChangeStep::RestartOnCrash { .. }
            | ChangeStep::Name { .. }
            | ChangeStep::Nic { .. }
            | ChangeStep::Disk(_)
            | ChangeStep::Drive(_) => None,
        })
    }

    /// The steps about disks.
    pub fn disks(&self) -> impl Iterator<Item = &DiskStep> {
        self.steps.iter().filter_map(|planned| planned.step.disk())
    }

    /// The media that come into drives.
    pub fn media(&self) -> impl Iterator<Item = &Medium> {
        let drives = self.steps.iter().filter_map(|planned| planned.step.drive());
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
        self.steps
            .iter()
            .map(|planned| &planned.step)
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
    match spec.profile {
        Profile::Windows11 if wanted.tpm == Some(false) => findings.push(Finding::blocking(
            ErrorCode::ProfileRefuses,
            format!(
                "VM {name} has profile {}, which requires a TPM 2.0",
                spec.profile
            ),
            format!("to take it away all the same: fleetward tpm disable {name}"),
        )),
        Profile::Windows11 | Profile::Linux => {}
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
    let next = steps.iter().find_map(|step| match step {
        ChangeStep::Name { from, to, domain } => match direction {
            Direction::Forward => Some(to.to_string()),
            Direction::Back if has == to.as_str() => {
                Some(domain.clone().unwrap_or_else(|| from.to_string()))
            }
            Direction::Back => None,
        },
        ChangeStep::Tpm { .. }
        | ChangeStep::Cpus { .. }
        | ChangeStep::Memory { .. }
        | ChangeStep::Description { .. }
        | ChangeStep::Label { .. }
        | ChangeStep::Autostart { .. }
        | ChangeStep::RestartOnCrash { .. }
        | ChangeStep::Nic { .. }
        | ChangeStep::Disk(_)
        | ChangeStep::Drive(_) => None,
    });
    next.filter(|next| next != has)
}

/// What a definition is given by the steps: none stays as it is. `has` is what it has now.
pub fn defined_after(
    has: Option<(u32, ByteSize)>,
    steps: &[ChangeStep],
    direction: Direction,
) -> (Option<u32>, Option<ByteSize>) {
    fn next<T: Copy + PartialEq>(has: Option<T>, from: T, to: T, way: Direction) -> Option<T> {
        match way {
            Direction::Forward => Some(to),
            Direction::Back => (has == Some(to)).then_some(from),
        }
    }
    let (mut cpus, mut memory) = (None, None);
    for step in steps {
        match step {
            ChangeStep::Cpus { from, to, defined } => {
                cpus = next(
                    has.map(|has| has.0),
                    defined.unwrap_or(*from),
                    *to,
                    direction,
                );
            }
            ChangeStep::Memory { from, to, defined } => {
                memory = next(
                    has.map(|has| has.1),
                    defined.unwrap_or(*from),
                    *to,
                    direction,
                );
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
    (cpus, memory)
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
    let Some(defined) = &vm.defined else {
        return Vec::new();
    };
    let runs = match vm.state {
        VmState::Running | VmState::Paused | VmState::Migrating => true,
        VmState::Stopped | VmState::Failed | VmState::Unknown => false,
    };
    let one = |change, now: u64, wanted: u64| {
        (runs && now != wanted).then(|| Pending {
            change,
            device: None,
            now: now.into(),
            wanted: wanted.into(),
        })
    };
    [
        one(ChangeKind::Cpus, vm.cpus.into(), defined.cpus.into()),
        one(
            ChangeKind::Memory,
            vm.memory.bytes(),
            defined.memory.bytes(),
        )
        .filter(|_| !same_memory(vm.memory, defined.memory)),
    ]
    .into_iter()
    .flatten()
    .chain(nic::pending(vm).filter(|_| runs))
    .chain(disk::pending(vm).filter(|_| runs))
    .chain(drive::pending(vm).filter(|_| runs))
    .collect()
}

/// Hypervisors give memory in whole MiB.
fn same_memory(one: ByteSize, other: ByteSize) -> bool {
    one.bytes().div_ceil(ByteSize::MIB) == other.bytes().div_ceil(ByteSize::MIB)
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
    let edited = |what: &str, option: String, there: String, known: String| Finding {
        blocking: false,
        ..Finding::blocking(
            ErrorCode::DefinitionEdited,
            format!(
                "the definition of VM {name} has {there} of {what}, and Fleetward gave it {known}"
            ),
            format!("fleetward vm set {name} {option}"),
        )
    };
    if let Some(defined) = &vm.defined {
        if defined.cpus != spec.cpus {
            findings.push(edited(
                "CPUs",
                format!("--cpus {}", spec.cpus),
                defined.cpus.to_string(),
                spec.cpus.to_string(),
            ));
        }
        if !same_memory(defined.memory, spec.memory) {
            findings.push(edited(
                "memory",
                format!("--memory {}", argument(spec.memory)),
                defined.memory.to_string(),
                spec.memory.to_string(),
            ));
        }
    }
    findings.extend(nic::differing(vm, spec));
    findings
}

#[cfg(test)]
mod tests;
