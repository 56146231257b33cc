use super::*;
use crate::domain_read;
use crate::domain_xml::tests::sample;
use crate::domain_xml::{NEWEST_MACHINE, domain_xml};
use fleetward_hypervisor::DriveDevice;
use fleetward_model::disk::DiskMark;
use fleetward_model::host::Accelerator;
use fleetward_model::vm::{DiskSpec, DriveSpec, Profile};
use fleetward_model::{ByteSize, PoolName};
use roxmltree::Document;
use std::path::PathBuf;

fn definition() -> String {
    domain_xml(
        &sample(),
        Accelerator::Kvm,
        NEWEST_MACHINE,
        &IoOfVolumes::default(),
    )
}

fn disk(target: &str, bus: DiskBus) -> DiskDevice {
    let vm = sample().metadata.spec.id;
    let (pool, size) = (PoolName::default(), ByteSize::gib(1));
    DiskDevice {
        spec: DiskSpec::added(vm, &DiskMark::of(7), target.to_owned(), bus, pool, size),
        path: PathBuf::from(format!("/srv/a & b/{target}.qcow2")),
    }
}

fn after(xml: &str, changes: &[StorageChange]) -> String {
    super::changed(xml.to_owned(), changes, &IoOfVolumes::default()).expect("changed")
}

fn targets(xml: &str) -> Vec<String> {
    let document = Document::parse(xml).expect("well-formed");
    let devices = devices(document.root_element()).expect("devices");
    let disks = domain_read::disks(devices).into_iter().map(|disk| disk.0);
    let drives = domain_read::drives(devices)
        .into_iter()
        .map(|drive| drive.0);
    disks.chain(drives).collect()
}

#[test]
fn what_comes_and_goes_again_leaves_the_definition_as_it_was() {
    let xml = definition();
    let drive = StorageChange::AddDrive(DriveDevice {
        spec: DriveSpec::next(Profile::Windows11, ["sda", "sdb"].into_iter(), None)
            .expect("a name"),
        path: None,
    });
    let gone = |target: &str| StorageChange::RemoveDisk {
        target: target.to_owned(),
    };
    for (come, target) in [
        (StorageChange::AddDisk(disk("vda", DiskBus::Virtio)), "vda"),
        (StorageChange::AddDisk(disk("sdc", DiskBus::Sata)), "sdc"),
        (drive, "sdc"),
    ] {
        let with = after(&xml, std::slice::from_ref(&come));
        assert!(targets(&with).contains(&target.to_owned()), "{with}");
        assert_eq!(
            after(&with, std::slice::from_ref(&come)),
            with,
            "twice is as once"
        );
        let without = after(&with, &[gone(target)]);
        assert_eq!(without, xml, "{come:?}");
        assert_eq!(after(&without, &[gone(target)]), xml, "twice is as once");
    }
}

#[test]
fn a_scsi_disk_brings_its_controller_once() {
    let xml = definition();
    let first = after(&xml, &[StorageChange::AddDisk(disk("sdc", DiskBus::Scsi))]);
    let both = after(
        &first,
        &[StorageChange::AddDisk(disk("sdd", DiskBus::Scsi))],
    );
    assert_eq!(both.matches("virtio-scsi").count(), 1, "{both}");
    assert!(both.contains("<serial>disk-00000007</serial>"), "{both}");
    let foreign = xml.replace(
        "</devices>",
        "<controller type='scsi' index='0' model='lsilogic'/></devices>",
    );
    let disks = [StorageChange::AddDisk(disk("sdc", DiskBus::Scsi))];
    let refused = super::changed(foreign, &disks, &IoOfVolumes::default());
    assert!(refused.is_err_and(|because| because.contains("lsilogic")));
}

#[test]
fn a_medium_comes_and_goes_and_nothing_else_of_the_drive_changes() {
    let xml = definition();
    let medium = |path: Option<&str>| {
        let path = path.map(PathBuf::from);
        let (target, optional) = ("sdb".to_owned(), false);
        [StorageChange::SetMedium {
            target,
            path,
            optional,
        }]
    };
    let empty = after(&xml, &medium(None));
    assert!(!empty.contains("win11.iso"));
    let again = after(&empty, &medium(Some("/srv/it's.iso")));
    let document = Document::parse(&again).expect("well-formed");
    let drives = domain_read::drives(devices(document.root_element()).expect("devices"));
    let held = Some(PathBuf::from("/srv/it's.iso"));
    assert_eq!(drives, [("sdb".to_owned(), held)]);
    assert!(!again.contains("startupPolicy"));
    // One for a first boot comes back as it was: a power cut takes its file, and the domain starts.
    let optional = StorageChange::SetMedium {
        target: "sdb".to_owned(),
        path: Some("/run/seed.iso".into()),
        optional: true,
    };
    let optional = after(&again, &[optional]);
    assert!(optional.contains("<source file='/run/seed.iso' startupPolicy='optional'/>"));
    let missing = StorageChange::SetMedium {
        target: "sdz".to_owned(),
        path: None,
        optional: false,
    };
    assert!(super::changed(xml, &[missing], &IoOfVolumes::default()).is_err());
}

#[test]
fn a_name_that_somebody_else_uses_is_not_taken() {
    let xml = definition();
    let mut another = disk("sda", DiskBus::Sata);
    another.path = PathBuf::from("/srv/another.qcow2");
    for change in [
        StorageChange::AddDisk(another),
        StorageChange::AddDrive(DriveDevice {
            spec: DriveSpec::next(Profile::Windows11, std::iter::empty(), None).expect("a name"),
            path: None,
        }),
    ] {
        let refused = super::changed(xml.clone(), &[change], &IoOfVolumes::default());
        assert!(refused.is_err_and(|because| because.contains("sda")));
    }
}

#[test]
fn a_host_that_can_do_less_gets_less_and_what_somebody_chose_otherwise_stays() {
    let with = |driver: &str| {
        format!(
            "<domain><devices><disk><driver name='qemu' {driver}discard='unmap'/><target dev='vda'/></disk></devices></domain>"
        )
    };
    let uring = with("cache='none' io='io_uring' ");
    for (had, io, has) in [
        (&uring, DiskIo::DirectUring, &uring),
        (&uring, DiskIo::Direct, &with("cache='none'  ")),
        (&uring, DiskIo::Cached, &with("  ")),
        (
            &with("cache='writethrough' "),
            DiskIo::Cached,
            &with("cache='writethrough' "),
        ),
        (
            &with("cache='none' io='native' "),
            DiskIo::Direct,
            &with("cache='none' io='native' "),
        ),
    ] {
        let io = BTreeMap::from([("vda".to_owned(), io), ("vdx".to_owned(), io)]);
        assert_eq!(&with_io(had, &io).expect("changed"), has);
    }
}
