//! The facts that a host reports, for placement, preflight and lists.

use crate::boot::BootFacts;
use crate::change::ChangeStep;
use crate::guardian::GuardianFacts;
use crate::network::NetworkFacts;
use crate::spec::VmSpec;
use crate::{ByteSize, GroupName, HostName, NetworkName, PoolName, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A three-part version of a program.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Version {
    type Err = String;
    /// Reads up to three leading numbers; what follows (`+dfsg`, `-rc1`) is ignored.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u32>().ok()
        });
        let major = parts
            .next()
            .flatten()
            .ok_or_else(|| format!("not a version: {text:?}"))?;
        let minor = parts.next().flatten().unwrap_or(0);
        let patch = parts.next().flatten().unwrap_or(0);
        Ok(Self {
            major,
            minor,
            patch,
        })
    }
}

/// Versions of the programs that decide what a host can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HypervisorVersions {
    #[schema(value_type = String, example = "11.3.0")]
    pub libvirt: Version,
    #[schema(value_type = String, example = "10.0.2")]
    pub qemu: Version,
    /// None: not installed, no VM with a TPM can run here.
    #[schema(value_type = Option<String>, example = "0.7.1")]
    pub swtpm: Option<Version>,
    /// The library that swtpm emulates TPMs with, whose format a TPM's state has. None: from agents that do not tell, or it could
    /// not be found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "0.9.2")]
    pub libtpms: Option<Version>,
    pub agent: String,
}

/// A directory of volumes on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolFacts {
    pub name: PoolName,
    /// Random id kept in the directory; two hosts that report the same one share it.
    pub id: String,
    pub path: String,
    pub capacity: ByteSize,
    pub available: ByteSize,
    /// How QEMU can read and write its volumes. Agents that do not tell are from before it.
    #[serde(default)]
    pub io: DiskIo,
}

/// How QEMU reads and writes the volumes of a directory; a later one can do what the earlier ones can.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DiskIo {
    /// Through the host's page cache.
    #[default]
    Cached,
    /// Past the page cache (`O_DIRECT`).
    Direct,
    /// The same, through `io_uring`.
    DirectUring,
}

/// What really starts VMs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Accelerator {
    Kvm,
    /// QEMU's own translation: slow, needs no hardware.
    Tcg,
}

/// What libvirt puts around QEMU and swtpm of each VM, beside the Unix user they run as (libvirt's *sVirt*, its
/// `security_driver`): a profile or a label that is the VM's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Confinement {
    Apparmor,
    Selinux,
    /// The user alone, who is the same for all VMs.
    None,
}

/// The versions of what controller and agents say to each other that a program knows. A program that says nothing is from
/// before versions and knows version 1 of each; the one that knows more adapts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Formats {
    /// Newest version of a VM's specification.
    pub spec: u32,
    /// 1: key protectors travel in every report; 2: digests do, and a key protector only where it is asked for.
    pub custody: u32,
    /// Newest version of the operations of a host; [`Formats::CHANGE_VM`] is the second, [`Formats::DEVICES`] the third.
    pub operations: u32,
    /// 1: a snapshot is one event; 2: it may come in parts; 3: a sign of life may be without facts; 4: the host tells what it and
    /// its VMs use.
    pub events: u32,
}

impl Formats {
    /// The version of the operations that added `change-vm`.
    pub const CHANGE_VM: u32 = 2;
    /// The version of the operations that added changes of devices, and restarts after a crash, to `change-vm`.
    pub const DEVICES: u32 = 3;

    /// The version of the operations that added `pause` and `resume`.
    pub const POWER: u32 = 3;
    /// The version of the operations that added the conversion of images.
    pub const CONVERSION: u32 = 4;
    /// The version of the operations that added the boot order and the clock to `change-vm`.
    pub const MACHINE: u32 = 4;
    /// The version of the operations that added the state `saved`.
    pub const SAVED: u32 = 5;

    /// The version of the events that has snapshots in parts.
    pub const PARTS: u32 = 2;
    /// The version of the events that has signs of life without facts.
    pub const SIGNS: u32 = 3;
    /// The version of the events that has what a host and its VMs use.
    pub const LOAD: u32 = 4;
    /// The version of the operations that added the certificates of Secure Boot.
    pub const SECURE_BOOT: u32 = 6;

    /// The version of the operations that added clearing a TPM's lockout.
    pub const UNLOCK: u32 = 7;

    /// What this program knows.
    pub const KNOWN: Self = Self {
        spec: crate::spec::KNOWN,
        custody: 2,
        operations: Self::UNLOCK,
        events: Self::LOAD,
    };

    /// What a program must know to read that specification.
    pub fn of_spec(spec: &VmSpec) -> Self {
        Self {
            spec: spec.version(),
            ..Self::default()
        }
    }

    /// What an agent must know to carry out those changes.
    pub fn of_steps(steps: &[ChangeStep]) -> Self {
        let newest = steps.iter().map(|step| step.kind().operations()).max();
        Self {
            operations: newest.unwrap_or(Self::CHANGE_VM),
            ..Self::default()
        }
    }

    /// Reads the text of [`Display`](fmt::Display). A part that is missing or malformed counts as version 1.
    pub fn parse(text: &str) -> Self {
        let mut formats = Self::default();
        for part in text.split(',') {
            let (name, version) = part.trim().split_once('=').unwrap_or_default();
            let version = version.parse().unwrap_or(1);
            match name {
                "spec" => formats.spec = version,
                "custody" => formats.custody = version,
                "operations" => formats.operations = version,
                "events" => formats.events = version,
                _ => {} // of a newer program
            }
        }
        formats
    }
}

/// What programs knew before they told each other.
impl Default for Formats {
    fn default() -> Self {
        Self {
            spec: 1,
            custody: 1,
            operations: 1,
            events: 1,
        }
    }
}

/// `spec=3,custody=2,operations=3,events=2`, as in the header of a request.
impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            spec,
            custody,
            operations,
            events,
        } = self;
        write!(
            f,
            "spec={spec},custody={custody},operations={operations},events={events}"
        )
    }
}

/// Everything a host reports of itself, refreshed every few seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostFacts {
    pub host: HostName,
    pub group: GroupName,
    pub versions: HypervisorVersions,
    pub accelerator: Accelerator,
    pub cpus: u32,
    /// Architecture, `x86_64`.
    pub arch: String,
    /// CPU model as libvirt names it.
    pub cpu_model: String,
    pub memory: ByteSize,
    /// Memory not promised to any running VM and free now.
    pub memory_available: ByteSize,
    /// Canonical machine types QEMU offers for q35.
    pub machines: Vec<String>,
    /// Whether firmware with Secure Boot and enrolled keys is installed.
    pub secure_boot: bool,
    /// What confines the processes of its VMs; none from agents that do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confinement: Option<Confinement>,
    pub pools: Vec<PoolFacts>,
    /// Networks beside `nat`, which every host has.
    #[serde(default)]
    pub networks: Vec<NetworkFacts>,
    /// The network of a card of which nothing else is said.
    #[serde(default)]
    pub default_network: NetworkName,
    /// The host's own guardian first.
    pub guardians: Vec<GuardianFacts>,
    /// The host's clock when it made this report.
    #[serde(with = "time::serde::rfc3339")]
    pub clock: OffsetDateTime,
    /// TPMs manufactured ahead and ready.
    pub tpm_pool: u32,
    /// As many as that become when the host is at rest. None: its agent is of before that was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm_pool_most: Option<u32>,
    /// What its last boot brings back; none when nothing was to come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootFacts>,
    /// VMs of which it keeps a TPM in its history, whether they are still there or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub histories: Vec<VmId>,
    /// The versions that its agent knows.
    #[serde(default)]
    pub formats: Formats,
    /// What an administrator should know: an unsealed guardian store, a foreign swtpm, ...
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The part of [`HostFacts`] that is measured anew for each report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurements {
    /// The host's.
    #[serde(with = "time::serde::rfc3339")]
    pub clock: OffsetDateTime,
    pub memory_available: ByteSize,
    pub tpm_pool: u32,
    /// What is free in each pool.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<PoolName, ByteSize>,
}

impl HostFacts {
    /// The guardian that owns what is made here.
    pub fn own_guardian(&self) -> Option<&GuardianFacts> {
        self.guardians.iter().find(|g| g.own)
    }

    pub fn pool(&self, name: &PoolName) -> Option<&PoolFacts> {
        self.pools.iter().find(|p| &p.name == name)
    }

    /// What is measured anew for each report.
    pub fn measurements(&self) -> Measurements {
        let pools = self.pools.iter();
        Measurements {
            clock: self.clock,
            memory_available: self.memory_available,
            tpm_pool: self.tpm_pool,
            pools: pools
                .map(|pool| (pool.name.clone(), pool.available))
                .collect(),
        }
    }

    /// Takes newer measurements. Pools that it has not are left out.
    pub fn measure(&mut self, measured: &Measurements) {
        self.clock = measured.clock;
        self.memory_available = measured.memory_available;
        self.tpm_pool = measured.tpm_pool;
        for pool in &mut self.pools {
            if let Some(available) = measured.pools.get(&pool.name) {
                pool.available = *available;
            }
        }
    }

    /// Whether two reports differ at most in what is measured anew each time: the clock, and how much is free.
    pub fn differ_in_measurements_only(&self, other: &Self) -> bool {
        let mut now = self.clone();
        now.measure(&other.measurements());
        now == *other
    }

    /// A network beside `nat`.
    pub fn network(&self, name: &NetworkName) -> Option<&NetworkFacts> {
        self.networks.iter().find(|network| &network.name == name)
    }
}

/// What the controller thinks of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum HostState {
    /// Token made, not joined yet.
    Invited,
    Online,
    /// Joined, not answering.
    Unreachable,
    /// Answers, takes no new VMs.
    Drained,
}
