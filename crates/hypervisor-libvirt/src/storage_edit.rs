//! Disks and drives in a definition that exists: they come, go and change, and all else stays as it is. Pure.

use crate::disk_io::IoOfVolumes;
use crate::disk_xml::{DiskManner, disk_element, drive_element, scsi_controller_element};
use crate::domain_edit::{Splices, append_child, child, cut_bases, devices, parse};
use fleetward_hypervisor::{DiskDevice, StorageChange};
use fleetward_model::host::DiskIo;
use fleetward_model::vm::DiskBus;
use quick_xml::escape::escape;
use roxmltree::Node;
use std::collections::BTreeMap;
use std::path::Path;

/// The definition after the changes. The error is a sentence: what in the definition stands in the way.
pub(crate) fn changed(
    xml: String,
    changes: &[StorageChange],
    io: &IoOfVolumes,
) -> Result<String, String> {
    changes
        .iter()
        .try_fold(xml, |xml, change| change_one(&xml, change, io))
}

fn change_one(xml: &str, change: &StorageChange, io: &IoOfVolumes) -> Result<String, String> {
    let document = parse(xml)?;
    let root = document.root_element();
    let devices = devices(root)?;
    let mut splices = Splices::of(xml);
    match change {
        StorageChange::AddDisk(disk) => match find(devices, &disk.spec.target) {
            Some(known) => same_disk(known, disk)?,
            None => {
                let thread = has_io_thread(root);
                let mut added = String::new();
                if disk.spec.bus == DiskBus::Scsi && !has_scsi_controller(devices)? {
                    added.push_str(&scsi_controller_element(thread));
                }
                let manner = DiskManner {
                    io: io.of(&disk.path),
                    thread,
                };
                added.push_str(&disk_element(disk, manner));
                append_child(&mut splices, devices, &added);
            }
        },
        StorageChange::AddDrive(drive) => match find(devices, &drive.spec.target) {
            Some(known) if known.attribute("device") == Some("cdrom") => {}
            Some(_) => return Err(taken(&drive.spec.target)),
            None => {
                let mut added = String::new();
                if drive.spec.bus == DiskBus::Scsi && !has_scsi_controller(devices)? {
                    added.push_str(&scsi_controller_element(has_io_thread(root)));
                }
                added.push_str(&drive_element(drive));
                append_child(&mut splices, devices, &added);
            }
        },
        StorageChange::RemoveDisk { target } | StorageChange::RemoveDrive { target } => {
            if let Some(known) = find(devices, target) {
                splices.cut(known.range());
            }
        }
        StorageChange::SetMedium {
            target,
            path,
            optional,
        } => {
            let drive = find(devices, target)
                .filter(|known| known.attribute("device") == Some("cdrom"))
                .ok_or_else(|| format!("its definition has no drive {target} any more"))?;
            set_medium(&mut splices, drive, (path.as_deref(), *optional));
        }
    }
    Ok(splices.done())
}

/// The element of a drive with that medium, and whether the domain starts without it.
pub(crate) fn drive_with_medium(
    element: &str,
    medium: (Option<&Path>, bool),
) -> Result<String, String> {
    let document = parse(element)?;
    let mut splices = Splices::of(element);
    set_medium(&mut splices, document.root_element(), medium);
    Ok(splices.done())
}

fn set_medium(
    splices: &mut Splices<'_>,
    drive: Node<'_, '_>,
    (path, optional): (Option<&Path>, bool),
) {
    let source = child(drive, "source");
    match (source, path) {
        (Some(source), None) => splices.cut(source.range()),
        (None, None) => {}
        (source, Some(path)) => {
            let policy = match optional {
                true => " startupPolicy='optional'",
                false => "",
            };
            let file = escape(path.to_string_lossy());
            let file = format!("<source file='{file}'{policy}/>");
            match (source, child(drive, "target")) {
                (Some(source), _) => splices.put(source.range(), file),
                (None, Some(target)) => splices.insert(target.range().start, file),
                (None, None) => {}
            }
        }
    }
    cut_bases(splices, drive);
}

/// A disk's cache and I/O interface are made what a host can do, where it cannot do what the definition says. `io` is what
/// it can, by target; a disk that is not named stays as it is.
pub(crate) fn with_io(xml: &str, io: &BTreeMap<String, DiskIo>) -> Result<String, String> {
    let document = parse(xml)?;
    let mut splices = Splices::of(xml);
    for (target, io) in io {
        if let Some(disk) = find(devices(document.root_element())?, target) {
            weaken(&mut splices, disk, *io);
        }
    }
    Ok(splices.done())
}

/// See [`with_io`], of one disk.
pub(crate) fn weaken(splices: &mut Splices<'_>, disk: Node<'_, '_>, io: DiskIo) {
    let Some(driver) = child(disk, "driver") else {
        return;
    };
    let mut cut = |name: &str, values: &[&str]| {
        if let Some(attribute) = driver.attribute_node(name)
            && values.contains(&attribute.value())
        {
            splices.cut(attribute.range());
        }
    };
    match io {
        DiskIo::DirectUring => {}
        DiskIo::Direct => cut("io", &["io_uring"]),
        DiskIo::Cached => {
            cut("io", &["io_uring", "native"]);
            cut("cache", &["none", "directsync"]);
        }
    }
}

pub(crate) fn find<'a, 'i>(devices: Node<'a, 'i>, target: &str) -> Option<Node<'a, 'i>> {
    devices.children().find(|device| {
        device.has_tag_name("disk")
            && child(*device, "target").is_some_and(|t| t.attribute("dev") == Some(target))
    })
}

/// Whether the disks of the domain can use an I/O thread.
pub(crate) fn has_io_thread(root: Node<'_, '_>) -> bool {
    child(root, "iothreads").is_some_and(|threads| {
        let number = threads.text().and_then(|text| text.trim().parse().ok());
        number.is_some_and(|number: u32| number > 0)
    })
}

pub(crate) fn has_scsi_controller(devices: Node<'_, '_>) -> Result<bool, String> {
    let first = devices.children().find(|device| {
        device.has_tag_name("controller")
            && device.attribute("type") == Some("scsi")
            && device.attribute("index") == Some("0")
    });
    match first.map(|controller| controller.attribute("model")) {
        None => Ok(false),
        Some(Some("virtio-scsi")) => Ok(true),
        Some(model) => Err(format!(
            "its first SCSI controller is {}, not virtio-scsi",
            model.unwrap_or("of no model")
        )),
    }
}

fn same_disk(known: Node<'_, '_>, disk: &DiskDevice) -> Result<(), String> {
    let path = child(known, "source").and_then(|source| source.attribute("file"));
    match path.map(Path::new) == Some(&disk.path) {
        true => Ok(()),
        false => Err(taken(&disk.spec.target)),
    }
}

fn taken(target: &str) -> String {
    format!("somebody has given it another device {target}")
}

#[cfg(test)]
mod tests;
