//! Version 2 of a specification, frozen: what it can say of the type in [`super::v3`], which has its form.

use super::v3::{DiskSpec, DriveSpec, NicSpec, VmSpec};
use crate::vm::{DiskBus, Profile};

/// Whether programs that know version 2 can carry all of it out. A field that they may ignore is named and left out of the
/// condition; one that they would lose the meaning of must be at its default.
pub(super) fn says_all_of(spec: &VmSpec) -> bool {
    let VmSpec {
        id: _,
        name: _,
        group: _,
        profile,
        cpus: _,
        memory: _,
        firmware: _,
        tpm: _,
        disks,
        nics,
        drives,
        description: _,
        autostart: _,
        restart_on_crash,
        boot,
        clock,
        labels: _,
        created: _,
        unknown: _,
    } = spec;
    let profile_is_known = match profile {
        Profile::Windows11 | Profile::Linux => true,
        Profile::WindowsServer => false,
    };
    profile_is_known
        && !restart_on_crash
        && boot.is_default()
        && clock.is_none()
        && disks.iter().all(says_disk)
        && nics.iter().all(says_nic)
        && drives.iter().all(says_drive)
}

fn says_disk(disk: &DiskSpec) -> bool {
    let DiskSpec {
        id: _,
        target: _,
        bus,
        pool: _,
        volume: _,
        size: _,
        serial,
        unknown: _,
    } = disk;
    let bus_is_known = match bus {
        DiskBus::Virtio | DiskBus::Sata => true,
        DiskBus::Scsi => false,
    };
    bus_is_known && serial.is_none()
}

/// Version 2 programs know `nat` only, and make that of every other network.
fn says_nic(nic: &NicSpec) -> bool {
    let NicSpec {
        id: _,
        network,
        model: _,
        mac: _,
        vlan,
        link,
        filter,
        unknown: _,
    } = nic;
    network.is_nat() && vlan.is_none() && link.is_up() && filter.is_none()
}

fn says_drive(drive: &DriveSpec) -> bool {
    let DriveSpec {
        id: _,
        target: _,
        bus,
        medium: _,
        seed,
        unknown: _,
    } = drive;
    *bus == DiskBus::Sata && !seed
}
