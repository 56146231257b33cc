//! Disks and drives of a running domain.
//!
//! | change | now | at the next start |
//! |---|---|---|
//! | a disk comes | virtio, scsi | sata; where the machine has no free slot |
//! | a disk goes | virtio, scsi, once the guest lets go | never: [`Error::DeviceHeld`] |
//! | a medium comes or goes | always, unless the guest holds it | never: [`Error::DeviceHeld`] |
//! | a drive comes or goes | never; one that goes is emptied | always |
//!
//! Every call looks at the domain first, so a repeat does what is left.

use crate::disk_io::IoOfVolumes;
use crate::disk_xml::{DiskManner, disk_element, scsi_controller_element};
use crate::domain_edit::{child, devices, parse};
use crate::host::failed;
use crate::said;
use crate::storage_edit::{drive_with_medium, find, has_io_thread, has_scsi_controller};
use fleetward_hypervisor::{DiskDevice, Error, Result, StorageChange};
use fleetward_model::VmId;
use fleetward_model::vm::DiskBus;
use std::path::Path;
use std::time::{Duration, Instant};
use virt::domain::Domain;

/// How long a guest may take to let go of a disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// A guest that was not ready is asked again so often.
const ASK_AGAIN: Duration = Duration::from_secs(5);
const PACE: Duration = Duration::from_millis(250);

const LIVE: u32 = virt_sys::VIR_DOMAIN_AFFECT_LIVE;

/// Changes the running half of a domain whose definition has been changed already.
pub(crate) fn apply(
    domain: &Domain,
    id: VmId,
    changes: &[StorageChange],
    io: &IoOfVolumes,
) -> Result<()> {
    for change in changes {
        match change {
            StorageChange::AddDisk(disk) => add_disk(domain, id, disk, io)?,
            StorageChange::RemoveDisk { target } => remove_disk(domain, id, target)?,
            // QEMU plugs no SATA device into a running machine.
            StorageChange::AddDrive(_) => {}
            StorageChange::RemoveDrive { target } => {
                set_medium(domain, id, target, (None, false))?;
            }
            StorageChange::SetMedium {
                target,
                path,
                optional,
            } => set_medium(domain, id, target, (path.as_deref(), *optional))?,
        }
    }
    Ok(())
}

fn add_disk(domain: &Domain, id: VmId, disk: &DiskDevice, io: &IoOfVolumes) -> Result<()> {
    let target = &disk.spec.target;
    match disk.spec.bus {
        DiskBus::Sata => return Ok(()),
        DiskBus::Virtio | DiskBus::Scsi => {}
    }
    let running = live_xml(domain)?;
    let document = parse(&running).map_err(unreadable)?;
    let root = document.root_element();
    let devices = devices(root).map_err(unreadable)?;
    if find(devices, target).is_some() {
        return Ok(());
    }
    let thread = has_io_thread(root);
    let attach = |element: &str| domain.attach_device_flags(element, LIVE).map(drop);
    if disk.spec.bus == DiskBus::Scsi {
        match has_scsi_controller(devices) {
            Ok(true) => {}
            Ok(false) => {
                if let Err(error) = attach(&scsi_controller_element(thread)) {
                    return waits(id, target, error.message());
                }
            }
            Err(because) => return waits(id, target, &because),
        }
    }
    // First where the definition has it, so that it is in the same place after the next start.
    if let Some(defined) = defined_element(domain, target)?
        && attach(&defined).is_ok()
    {
        return Ok(());
    }
    let manner = DiskManner {
        io: io.of(&disk.path),
        thread,
    };
    match attach(&disk_element(disk, manner)) {
        Ok(()) => Ok(()),
        Err(error) => waits(id, target, error.message()),
    }
}

/// The domain has the disk at its next start.
fn waits(id: VmId, target: &str, because: &str) -> Result<()> {
    tracing::warn!(vm = %id, target, because, "the running domain does not take the disk");
    Ok(())
}

fn defined_element(domain: &Domain, target: &str) -> Result<Option<String>> {
    let defined = domain
        .get_xml_desc(virt_sys::VIR_DOMAIN_XML_INACTIVE | virt_sys::VIR_DOMAIN_XML_SECURE)
        .map_err(failed("read the domain's definition"))?;
    element_in(&defined, target)
}

fn remove_disk(domain: &Domain, id: VmId, target: &str) -> Result<()> {
    let held = || Error::DeviceHeld {
        id,
        device: format!("disk {target}"),
    };
    let begun = Instant::now();
    let mut asked: Option<Instant> = None;
    loop {
        let Some(element) = element_in(&live_xml(domain)?, target)? else {
            return Ok(());
        };
        if begun.elapsed() > PATIENCE {
            return Err(held());
        }
        if asked.is_none_or(|at| at.elapsed() > ASK_AGAIN) {
            let answer = domain.detach_device_flags(&element, LIVE);
            // A guest that has been asked already cannot be asked a second time by every QEMU.
            if let (Err(error), None) = (&answer, asked) {
                tracing::warn!(vm = %id, target, because = error.message(), "the disk cannot be taken away now");
                return Err(held());
            }
            asked = Some(Instant::now());
        }
        std::thread::sleep(PACE);
    }
}

fn set_medium(
    domain: &Domain,
    id: VmId,
    target: &str,
    (path, optional): (Option<&Path>, bool),
) -> Result<()> {
    let running = live_xml(domain)?;
    let document = parse(&running).map_err(unreadable)?;
    let devices = devices(document.root_element()).map_err(unreadable)?;
    // A drive that waits for the next start.
    let Some(drive) = find(devices, target) else {
        return Ok(());
    };
    let has = child(drive, "source").and_then(|source| source.attribute("file"));
    if has.map(Path::new) == path {
        return Ok(());
    }
    let element =
        drive_with_medium(&running[drive.range()], (path, optional)).map_err(unreadable)?;
    match domain.update_device_flags(&element, LIVE) {
        Ok(_) => Ok(()),
        Err(error) if said::of_locked_tray(&error) => Err(Error::DeviceHeld {
            id,
            device: format!("the medium in drive {target}"),
        }),
        Err(error) => Err(failed("change the medium of a drive")(error)),
    }
}

/// The element of a disk or drive in a definition.
fn element_in(xml: &str, target: &str) -> Result<Option<String>> {
    let document = parse(xml).map_err(unreadable)?;
    let devices = devices(document.root_element()).map_err(unreadable)?;
    Ok(find(devices, target).map(|disk| xml[disk.range()].to_owned()))
}

fn live_xml(domain: &Domain) -> Result<String> {
    domain
        .get_xml_desc(virt_sys::VIR_DOMAIN_XML_SECURE)
        .map_err(failed("read the running domain"))
}

fn unreadable(message: String) -> Error {
    Error::Libvirt {
        attempt: "describe the running domain",
        source: message.into(),
    }
}
