//! Version 1 of a specification, frozen: what programs before versions wrote. Nothing is added here.

use super::{DiskSpec, DriveSpec, Medium, NicSpec, v3};
use crate::network::NicLink;
use crate::vm::{DiskBus, Firmware, Profile};
use crate::{
    ByteSize, DeviceId, GroupName, ImageName, Labels, NetworkName, PoolName, VmId, VmName,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// A VM with at most one network card and one installer medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    pub id: VmId,
    pub name: VmName,
    pub group: GroupName,
    pub profile: Profile,
    pub cpus: u32,
    pub memory: ByteSize,
    pub firmware: Firmware,
    pub tpm: bool,
    pub disks: Vec<Disk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<Cdrom>,
    /// MAC address of the one network card, `52:54:00:xx:xx:xx`; no card when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(default)]
    pub labels: Labels,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// Empty in everything that was written as version 1.
    #[serde(flatten)]
    unknown: super::Unknown,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Target device, `vda` or `sda`; unique in the VM.
    pub target: String,
    pub bus: DiskBus,
    pub pool: PoolName,
    /// File name inside the pool.
    pub volume: String,
    /// Virtual size.
    pub size: ByteSize,
    /// Empty in everything that was written as version 1.
    #[serde(flatten)]
    unknown: super::Unknown,
}

/// A read-only installer medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cdrom {
    pub image: ImageName,
    pub sha256: String,
}

impl VmSpec {
    /// The specification in version 1, none when version 1 cannot say all of it.
    pub fn of(spec: &v3::VmSpec) -> Option<Self> {
        // What version 2 lacks, this one lacks too.
        let said = super::v2::says_all_of(spec);
        if !said || !spec.description.is_empty() || spec.autostart || !spec.unknown.is_empty() {
            return None;
        }
        let disks: Vec<Disk> = spec
            .disks
            .iter()
            .enumerate()
            .map(|(at, disk)| Disk::of(at, disk))
            .collect::<Option<_>>()?;
        let mac = match spec.nics.as_slice() {
            [] => None,
            [nic] if *nic == card(spec.profile, nic.mac.clone()) => Some(nic.mac.clone()),
            _ => return None,
        };
        let cdrom = match spec.drives.as_slice() {
            [] => None,
            [drive] => {
                let medium = drive.medium.clone()?;
                if *drive != installer(&disks, medium.clone()) {
                    return None;
                }
                Some(Cdrom {
                    image: medium.image,
                    sha256: medium.sha256,
                })
            }
            _ => return None,
        };
        Some(Self {
            id: spec.id,
            name: spec.name.clone(),
            group: spec.group.clone(),
            profile: spec.profile,
            cpus: spec.cpus,
            memory: spec.memory,
            firmware: spec.firmware,
            tpm: spec.tpm,
            disks,
            cdrom,
            mac,
            labels: spec.labels.clone(),
            created: spec.created,
            unknown: super::Unknown::new(),
        })
    }
}

impl From<VmSpec> for v3::VmSpec {
    fn from(old: VmSpec) -> Self {
        let VmSpec {
            id,
            name,
            group,
            profile,
            cpus,
            memory,
            firmware,
            tpm,
            disks,
            cdrom,
            mac,
            labels,
            created,
            unknown,
        } = old;
        let medium = cdrom.map(|Cdrom { image, sha256 }| Medium { image, sha256 });
        Self {
            group,
            cpus,
            memory,
            firmware,
            tpm,
            drives: medium
                .map(|medium| installer(&disks, medium))
                .into_iter()
                .collect(),
            nics: mac.map(|mac| card(profile, mac)).into_iter().collect(),
            disks: disks
                .into_iter()
                .enumerate()
                .map(|(at, disk)| disk.upgraded(at))
                .collect(),
            labels,
            unknown,
            ..Self::bare(id, name, profile, created)
        }
    }
}

impl Disk {
    fn of(at: usize, disk: &DiskSpec) -> Option<Self> {
        let known_buses = match disk.bus {
            DiskBus::Virtio | DiskBus::Sata => true,
            DiskBus::Scsi => false,
        };
        let named = disk.id == disk_id(at, &disk.target) && disk.serial.is_none();
        if !known_buses || !named || !disk.unknown.is_empty() {
            return None;
        }
        Some(Self {
            target: disk.target.clone(),
            bus: disk.bus,
            pool: disk.pool.clone(),
            volume: disk.volume.clone(),
            size: disk.size,
            unknown: super::Unknown::new(),
        })
    }

    fn upgraded(self, at: usize) -> DiskSpec {
        DiskSpec {
            id: disk_id(at, &self.target),
            target: self.target,
            bus: self.bus,
            pool: self.pool,
            volume: self.volume,
            size: self.size,
            serial: None,
            unknown: self.unknown,
        }
    }
}

/// The id that a disk without one gets: made of its target, so that every program that reads it gives it the same one.
pub(super) fn disk_id(at: usize, target: &str) -> DeviceId {
    // A target that cannot be part of a name does not occur in what programs wrote.
    let named = format!("disk-{target}").parse();
    named.unwrap_or_else(|_| DeviceId::numbered("disk-at", at))
}

/// The one network card of version 1.
pub(super) fn card(profile: Profile, mac: String) -> NicSpec {
    NicSpec {
        id: DeviceId::numbered("nic", 0),
        network: NetworkName::default(),
        model: profile.devices().network,
        mac,
        vlan: None,
        link: NicLink::Up,
        filter: None,
        unknown: super::Unknown::new(),
    }
}

/// The one drive of version 1: at the first SATA target that no disk has.
fn installer(disks: &[Disk], medium: Medium) -> DriveSpec {
    DriveSpec::at(
        v3::free_sata_target(disks.iter().map(|disk| disk.target.as_str())),
        Some(medium),
    )
}
