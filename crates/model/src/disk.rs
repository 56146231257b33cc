//! Names of a VM's disks and drives: targets, serial numbers and volumes. All are chosen once and stay.

use crate::spec::{DiskSpec, DriveSpec, Medium, VmSpec};
use crate::vm::{DiskBus, Profile};
use crate::{ByteSize, DeviceId, PoolName, VmId};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// Largest number of disks of one VM, and of its drives.
pub const MAX_DISKS: usize = 24;
/// See [`MAX_DISKS`]; four, because the machine's SATA ports are few.
pub const MAX_DRIVES: usize = 4;

/// The serial number of a disk: letters, digits, `-` and `_`, at most 20, which every bus can tell the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
pub struct DiskSerial(String);

impl DiskSerial {
    /// Longest serial number that virtio and SATA can tell, bytes.
    pub const MAX: usize = 20;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The serial number of the disk with that id: the id itself, or of a long one its beginning.
    pub fn of(id: &DeviceId) -> Self {
        let permitted = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let text = id.as_str().chars().map(|c| match permitted(c) {
            true => c,
            false => '-',
        });
        Self(text.take(Self::MAX).collect())
    }
}

impl TryFrom<String> for DiskSerial {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let permitted = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if text.is_empty() || text.len() > Self::MAX || !text.chars().all(permitted) {
            return Err(format!(
                "a serial number has 1 to {} letters, digits, - and _",
                Self::MAX
            ));
        }
        Ok(Self(text))
    }
}

impl From<DiskSerial> for String {
    fn from(serial: DiskSerial) -> String {
        serial.0
    }
}

impl fmt::Display for DiskSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a new disk is given, chosen by chance so that no other disk ever has it: eight hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct DiskMark(String);

impl DiskMark {
    /// From a random number.
    pub fn of(random: u32) -> Self {
        Self(format!("{random:08x}"))
    }

    /// The id of the disk that is made with it.
    pub fn id(&self) -> DeviceId {
        let id = format!("disk-{}", self.0);
        id.parse().expect("made of permitted characters")
    }

    /// The file of a volume that is made with it. It is another one than every file that a former disk of that target left.
    pub fn volume(&self, vm: VmId, target: &str) -> String {
        format!("{vm}-{target}-{}.qcow2", self.0)
    }
}

impl DiskSpec {
    /// A disk that a VM gets beside those it has.
    pub fn added(
        vm: VmId,
        mark: &DiskMark,
        target: String,
        bus: DiskBus,
        pool: PoolName,
        size: ByteSize,
    ) -> Self {
        let volume = mark.volume(vm, &target);
        let id = mark.id();
        Self {
            serial: Some(DiskSerial::of(&id)),
            id,
            ..Self::new(target, bus, pool, volume, size)
        }
    }
}

impl DriveSpec {
    /// One more drive, on the profile's bus, at the first target that is free.
    pub fn next<'a>(
        profile: Profile,
        taken: impl Iterator<Item = &'a str> + Clone,
        medium: Option<Medium>,
    ) -> Option<Self> {
        let bus = profile.devices().drive_bus;
        Some(Self {
            bus,
            ..Self::at(free_target(bus, taken)?, medium)
        })
    }

    /// A drive with the medium for the VM's first boot.
    pub fn with_seed<'a>(
        profile: Profile,
        taken: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<Self> {
        Some(Self {
            seed: true,
            ..Self::next(profile, taken, None)?
        })
    }
}

impl VmSpec {
    /// The targets of all its disks and drives.
    pub fn targets(&self) -> impl Iterator<Item = &str> + Clone {
        let drives = self.drives.iter().map(|drive| drive.target.as_str());
        let disks = self.disks.iter().map(|disk| disk.target.as_str());
        disks.chain(drives)
    }
}

/// The first target of a bus that is not taken. SATA and SCSI share their names.
pub fn free_target<'a>(
    bus: DiskBus,
    taken: impl Iterator<Item = &'a str> + Clone,
) -> Option<String> {
    let prefix = match bus {
        DiskBus::Virtio => "vd",
        DiskBus::Sata | DiskBus::Scsi => "sd",
    };
    let letters = ('a'..='z').map(|letter| format!("{prefix}{letter}"));
    let pairs = ('a'..='z').map(|letter| format!("{prefix}a{letter}"));
    letters
        .chain(pairs)
        .find(|target| taken.clone().all(|taken| taken != target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_the_first_free_one_of_its_bus() {
        let taken = ["vda", "sda", "sdc"];
        let free = |bus| free_target(bus, taken.iter().copied()).unwrap();
        assert_eq!(free(DiskBus::Virtio), "vdb");
        assert_eq!(free(DiskBus::Sata), "sdb");
        assert_eq!(free(DiskBus::Scsi), "sdb");
        let all: Vec<String> = ('a'..='z').map(|c| format!("vd{c}")).collect();
        let free = free_target(DiskBus::Virtio, all.iter().map(String::as_str));
        assert_eq!(free.as_deref(), Some("vdaa"));
    }

    #[test]
    fn every_id_has_a_serial_number_that_fits() {
        for id in [
            DiskMark::of(7).id().as_str(),
            "disk-vda",
            "a.b",
            "a-long-name-of-a-disk-that-somebody-chose",
        ] {
            let serial = DiskSerial::of(&id.parse().unwrap());
            assert_eq!(DiskSerial::try_from(serial.to_string()), Ok(serial), "{id}");
        }
        assert_eq!(
            DiskSerial::of(&DiskMark::of(7).id()).as_str(),
            "disk-00000007"
        );
        for bad in ["", "a b", "ß", "123456789012345678901"] {
            assert!(DiskSerial::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
