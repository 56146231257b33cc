//! The elements of disks and drives in a definition.

use crate::domain_xml::{Out, by_itself, element, empty, path_text, text};
use fleetward_hypervisor::{DiskDevice, DriveDevice};
use fleetward_model::DeviceId;
use fleetward_model::host::DiskIo;
use fleetward_model::vm::DiskBus;
use std::io;

/// What a disk's element says beside what the disk is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskManner {
    pub(crate) io: DiskIo,
    /// Whether the domain has an I/O thread.
    pub(crate) thread: bool,
}

/// What the names of our devices begin with.
pub(crate) const OUR_NAMES: &str = "ua-";

/// The number of I/O threads that a new domain has, and the one that its disks use.
pub(crate) const IO_THREAD: &str = "1";

pub(crate) fn write_disk(out: &mut Out, disk: &DiskDevice, manner: DiskManner) -> io::Result<()> {
    let DiskDevice { spec, path } = disk;
    let device = [("type", "file"), ("device", "disk")];
    element(out, "disk", &device, |out| {
        let mut driver = vec![("name", "qemu"), ("type", "qcow2")];
        driver.extend(cache(manner.io));
        driver.extend([("discard", "unmap"), ("detect_zeroes", "unmap")]);
        match spec.bus {
            DiskBus::Virtio if manner.thread => driver.push(("iothread", IO_THREAD)),
            // Disks of a SCSI controller use the controller's thread.
            DiskBus::Virtio | DiskBus::Sata | DiskBus::Scsi => {}
        }
        empty(out, "driver", &driver)?;
        empty(out, "source", &[("file", &path_text(path))])?;
        empty(
            out,
            "target",
            &[("dev", &spec.target), ("bus", bus_name(spec.bus))],
        )?;
        if let Some(serial) = &spec.serial {
            text(out, "serial", &[], serial.as_str())?;
        }
        write_alias(out, &spec.id)
    })
}

pub(crate) fn write_drive(out: &mut Out, drive: &DriveDevice) -> io::Result<()> {
    let DriveDevice { spec, path } = drive;
    let device = [("type", "file"), ("device", "cdrom")];
    element(out, "disk", &device, |out| {
        empty(out, "driver", &[("name", "qemu"), ("type", "raw")])?;
        if let Some(path) = path {
            let path = path_text(path);
            let mut source = vec![("file", path.as_str())];
            if spec.seed {
                // It lies in memory: after a power cut it is gone, and the VM starts all the same.
                source.push(("startupPolicy", "optional"));
            }
            empty(out, "source", &source)?;
        }
        let bus = bus_name(spec.bus);
        empty(out, "target", &[("dev", &spec.target), ("bus", bus)])?;
        empty(out, "readonly", &[])?;
        write_alias(out, &spec.id)
    })
}

/// The controller of SCSI disks.
pub(crate) fn write_scsi_controller(out: &mut Out, thread: bool) -> io::Result<()> {
    let attributes = [("type", "scsi"), ("index", "0"), ("model", "virtio-scsi")];
    if !thread {
        return empty(out, "controller", &attributes);
    }
    element(out, "controller", &attributes, |out| {
        empty(out, "driver", &[("iothread", IO_THREAD)])
    })
}

pub(crate) fn disk_element(disk: &DiskDevice, manner: DiskManner) -> String {
    by_itself(|out| write_disk(out, disk, manner))
}

pub(crate) fn drive_element(drive: &DriveDevice) -> String {
    by_itself(|out| write_drive(out, drive))
}

pub(crate) fn scsi_controller_element(thread: bool) -> String {
    by_itself(|out| write_scsi_controller(out, thread))
}

/// The volume to which a disk is copied while its domain runs.
pub(crate) fn mirror_element(path: &std::path::Path, io: DiskIo) -> String {
    by_itself(|out| {
        element(out, "disk", &[("type", "file")], |out| {
            let mut driver = vec![("name", "qemu"), ("type", "qcow2")];
            driver.extend(cache(io));
            empty(out, "driver", &driver)?;
            empty(out, "source", &[("file", &path_text(path))])
        })
    })
}

/// libvirt's name of a bus.
const fn bus_name(bus: DiskBus) -> &'static str {
    match bus {
        DiskBus::Virtio => "virtio",
        DiskBus::Sata => "sata",
        DiskBus::Scsi => "scsi",
    }
}

fn cache(io: DiskIo) -> Vec<(&'static str, &'static str)> {
    match io {
        DiskIo::Cached => Vec::new(),
        DiskIo::Direct => vec![("cache", "none")],
        DiskIo::DirectUring => vec![("cache", "none"), ("io", "io_uring")],
    }
}

/// libvirt keeps a name that begins so as it is, and QEMU uses it too.
fn write_alias(out: &mut Out, id: &DeviceId) -> io::Result<()> {
    empty(out, "alias", &[("name", &format!("{OUR_NAMES}{id}"))])
}
