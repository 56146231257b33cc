//! Version 3 of a specification, which is the type that the code uses: devices with more about them than version 2 knew.
//!
//! Version 2 has the same form and fewer values. A field that is added here has a default, is left out at its default,
//! and [`super::v2::says_all_of`] must say whether version 2 programs may ignore it: that function does not compile
//! before it does.

use super::Unknown;
use crate::disk::DiskSerial;
use crate::machine::{BootFirst, Clock};
use crate::network::{NicFilter, NicLink, VlanId};
use crate::vm::{DiskBus, Firmware, FirmwareKind, Profile};
use crate::{
    ByteSize, DeviceId, GroupName, ImageName, Labels, NetworkName, PoolName, VmId, VmName,
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::fmt;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// The specification of a VM: what was asked for. Lies in the domain's metadata and travels with it.
///
/// How it is written is decided in [`super`]; the derived form here is the content of `v2` and `v3`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct VmSpec {
    pub id: VmId,
    pub name: VmName,
    pub group: GroupName,
    pub profile: Profile,
    pub cpus: u32,
    pub memory: ByteSize,
    pub firmware: Firmware,
    pub tpm: bool,
    pub disks: Vec<DiskSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<DriveSpec>,
    #[serde(default, skip_serializing_if = "Description::is_empty")]
    pub description: Description,
    /// Whether its host starts it after a boot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub autostart: bool,
    /// Whether its host starts it again when its guest crashes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart_on_crash: bool,
    /// What its firmware tries first.
    #[serde(default, skip_serializing_if = "BootFirst::is_default")]
    pub boot: BootFirst,
    /// Which time its clock keeps; none: the profile's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    #[serde(flatten)]
    #[schema(ignore)]
    pub unknown: Unknown,
}

/// A disk of a VM as it is defined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskSpec {
    pub id: DeviceId,
    /// Target device, `vda` or `sda`; unique in the VM.
    pub target: String,
    pub bus: DiskBus,
    pub pool: PoolName,
    /// File name inside the pool, made by us: `<vm id>-<target>.qcow2`.
    pub volume: String,
    /// Virtual size.
    pub size: ByteSize,
    /// What the guest knows it by; none: it was made before disks had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<DiskSerial>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub unknown: Unknown,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicSpec {
    pub id: DeviceId,
    /// What it is connected to; `nat` is QEMU's own user-mode network.
    pub network: NetworkName,
    pub model: NicModel,
    /// `52:54:00:xx:xx:xx`, lower case.
    pub mac: String,
    /// The VLAN that its frames belong to; none: the network's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    /// Whether its cable is in.
    #[serde(default, skip_serializing_if = "NicLink::is_up")]
    pub link: NicLink,
    /// What its host lets pass from the guest; none: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<NicFilter>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub unknown: Unknown,
}

/// A drive for read-only media, with or without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DriveSpec {
    pub id: DeviceId,
    /// Target device, `sda`; unique in the VM.
    pub target: String,
    /// SATA, but for a guest that has drivers for virtio only.
    #[serde(default = "sata", skip_serializing_if = "is_sata")]
    pub bus: DiskBus,
    /// None: the drive is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub medium: Option<Medium>,
    /// Its medium is what the guest finds at its first boot, made for this VM; then `medium` is none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub seed: bool,
    #[serde(flatten)]
    #[schema(ignore)]
    pub unknown: Unknown,
}

/// An image of the library in a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Medium {
    pub image: ImageName,
    pub sha256: String,
}

/// What a network card presents itself to the guest as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum NicModel {
    Virtio,
    E1000e,
}

/// What people wrote about a VM: any Unicode, at most [`Description::MAX`] bytes of UTF-8.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Description(String);

/// Why a text is no description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a description has at most {} bytes, this has {length}",
    Description::MAX
)]
pub struct DescriptionError {
    pub length: usize,
}

/// The content of `v2` or `v3` of a specification.
pub(super) struct Content<'a>(pub(super) &'a VmSpec);

impl Serialize for Content<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        VmSpec::serialize(self.0, serializer)
    }
}

/// Reads the content of `v2` or `v3`.
pub(super) fn from_json(content: &Value) -> Result<VmSpec, serde_json::Error> {
    VmSpec::deserialize(content)
}

impl VmSpec {
    /// A VM without devices, with all else at its default: what a specification begins as.
    pub fn bare(id: VmId, name: VmName, profile: Profile, created: OffsetDateTime) -> Self {
        Self {
            id,
            name,
            group: GroupName::default(),
            profile,
            cpus: 1,
            memory: ByteSize::gib(1),
            firmware: Firmware {
                kind: FirmwareKind::Uefi,
                secure_boot: true,
            },
            tpm: true,
            disks: Vec::new(),
            nics: Vec::new(),
            drives: Vec::new(),
            description: Description::default(),
            autostart: false,
            restart_on_crash: false,
            boot: BootFirst::default(),
            clock: None,
            labels: Labels::new(),
            created,
            unknown: Unknown::new(),
        }
    }

    /// Which time its clock keeps.
    pub fn clock(&self) -> Clock {
        self.clock.unwrap_or(self.profile.devices().clock)
    }

    /// The images in its drives.
    pub fn media(&self) -> impl Iterator<Item = &Medium> {
        self.drives.iter().filter_map(|drive| drive.medium.as_ref())
    }
}

impl DiskSpec {
    /// A new disk; its id is the one that a program gives a disk that has none.
    pub fn new(
        target: impl Into<String>,
        bus: DiskBus,
        pool: PoolName,
        volume: impl Into<String>,
        size: ByteSize,
    ) -> Self {
        let target = target.into();
        Self {
            id: super::v1::disk_id(0, &target),
            target,
            bus,
            pool,
            volume: volume.into(),
            size,
            serial: None,
            unknown: Unknown::new(),
        }
    }
}

impl NicSpec {
    /// The first card of a new VM, as its profile says.
    pub fn first(profile: Profile, mac: impl Into<String>) -> Self {
        super::v1::card(profile, mac.into())
    }
}

impl DriveSpec {
    /// The first drive of a new VM, at the first SATA target that no disk has.
    pub fn first(disks: &[DiskSpec], medium: Option<Medium>) -> Self {
        let taken = disks.iter().map(|disk| disk.target.as_str());
        Self::at(free_sata_target(taken), medium)
    }

    pub(crate) fn at(target: String, medium: Option<Medium>) -> Self {
        Self {
            id: format!("drive-{target}")
                .parse()
                .expect("made of permitted characters"),
            target,
            bus: DiskBus::Sata,
            medium,
            seed: false,
            unknown: Unknown::new(),
        }
    }
}

const fn sata() -> DiskBus {
    DiskBus::Sata
}

fn is_sata(bus: &DiskBus) -> bool {
    *bus == DiskBus::Sata
}

/// The first SATA target that is not taken.
pub fn free_sata_target<'a>(taken: impl Iterator<Item = &'a str> + Clone) -> String {
    ('a'..='z')
        .map(|letter| format!("sd{letter}"))
        .find(|target| taken.clone().all(|taken| taken != target))
        .unwrap_or_else(|| "sdaa".to_owned())
}

impl Description {
    /// Bytes of UTF-8.
    pub const MAX: usize = 4096;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<String> for Description {
    type Error = DescriptionError;
    fn try_from(text: String) -> Result<Self, DescriptionError> {
        if text.len() > Self::MAX {
            return Err(DescriptionError { length: text.len() });
        }
        Ok(Self(text))
    }
}

impl std::str::FromStr for Description {
    type Err = DescriptionError;
    fn from_str(text: &str) -> Result<Self, DescriptionError> {
        Self::try_from(text.to_owned())
    }
}

impl From<Description> for String {
    fn from(description: Description) -> String {
        description.0
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
