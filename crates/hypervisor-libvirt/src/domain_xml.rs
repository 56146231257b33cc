//! The definition of a domain that does not exist yet, as libvirt's XML. Pure: definition in, text out. A definition that
//! exists is never written anew: [`crate::domain_edit`] changes it in place.
//!
//! Every machine is a q35 with UEFI; what differs hangs on the profile (disk bus, network card, clock, enlightenments)
//! and on what starts it (KVM or translation). No display but VNC on a Unix socket that libvirt makes: it needs nothing from
//! the host and moves with the VM.

use crate::boot_order;
use crate::disk_io::IoOfVolumes;
use crate::disk_xml::{DiskManner, IO_THREAD, write_disk, write_drive, write_scsi_controller};
use crate::{metadata, nic_xml};
use fleetward_hypervisor::{DiskDevice, DomainDefinition, DriveDevice};
use fleetward_model::VmId;
use fleetward_model::host::Accelerator;
use fleetward_model::vm::{DiskBus, VmSpec};
use quick_xml::Writer;
use quick_xml::events::{BytesText, Event};
use std::io;
use std::path::Path;
use uuid::Uuid;

/// Machine type of a domain that has none yet; libvirt writes down the version it stands for.
pub(crate) const NEWEST_MACHINE: &str = "q35";

/// Names the generation ids (vmgenid) that are made from machine uuids.
const GENERATIONS: Uuid = Uuid::from_u128(0x6d5b_7c0e_2f0e_4a53_9c0e_51d1_5a1f_0e77);

/// Devices that can be added to a VM while it runs.
const SPARE_PORTS: usize = 6;

pub(crate) type Out = Writer<Vec<u8>>;

/// The definition's XML; `machine` is the type it already has, or [`NEWEST_MACHINE`].
pub(crate) fn domain_xml(
    definition: &DomainDefinition,
    accelerator: Accelerator,
    machine: &str,
    io: &IoOfVolumes,
) -> String {
    let spec = &definition.metadata.spec;
    let xml = by_itself(|out| write_domain(out, definition, spec, (accelerator, machine), io));
    boot_order::with_first(&xml, spec.boot).expect("written just now")
}

fn write_domain(
    out: &mut Out,
    definition: &DomainDefinition,
    spec: &VmSpec,
    (accelerator, machine): (Accelerator, &str),
    io: &IoOfVolumes,
) -> io::Result<()> {
    let kind = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "qemu",
    };
    element(out, "domain", &[("type", kind)], |out| {
        text(out, "name", &[], spec.name.as_str())?;
        text(out, "uuid", &[], &spec.id.to_string())?;
        element(out, "metadata", &[], |out| {
            // The element is whole XML already.
            let ours = metadata::element(&definition.metadata);
            out.write_event(Event::Text(BytesText::from_escaped(ours)))
        })?;
        // Another machine, another generation: a guest that looks at it knows that it is a copy.
        let generation = Uuid::new_v5(&GENERATIONS, spec.id.0.as_bytes()).to_string();
        text(out, "genid", &[], &generation)?;
        let memory = (spec.memory.bytes() / 1024).to_string();
        text(out, "memory", &[("unit", "KiB")], &memory)?;
        text(out, "vcpu", &[], &spec.cpus.to_string())?;
        text(out, "iothreads", &[], IO_THREAD)?;
        write_firmware(out, spec, &definition.nvram_path, machine)?;
        write_features(out, spec, accelerator)?;
        write_cpu(out, spec.cpus, accelerator)?;
        write_clock(out, spec, accelerator)?;
        text(out, "on_poweroff", &[], "destroy")?;
        text(out, "on_reboot", &[], "restart")?;
        text(out, "on_crash", &[], "destroy")?;
        element(out, "pm", &[], |out| {
            empty(out, "suspend-to-mem", &[("enabled", "no")])?;
            empty(out, "suspend-to-disk", &[("enabled", "no")])
        })?;
        element(out, "devices", &[], |out| {
            write_disks(out, definition, spec, io)?;
            for (nic, place) in spec.nics.iter().zip(&definition.nic_places) {
                nic_xml::write(out, nic, place)?;
            }
            write_ports(out, spec)?;
            write_consoles(out, definition)?;
            if spec.tpm {
                write_tpm(out, spec.id)?;
            }
            write_comforts(out)
        })
    })
}

fn write_firmware(out: &mut Out, spec: &VmSpec, nvram: &Path, machine: &str) -> io::Result<()> {
    let secure = yes_no(spec.firmware.secure_boot);
    element(out, "os", &[("firmware", "efi")], |out| {
        text(
            out,
            "type",
            &[("arch", "x86_64"), ("machine", machine)],
            "hvm",
        )?;
        element(out, "firmware", &[], |out| {
            for feature in ["secure-boot", "enrolled-keys"] {
                empty(out, "feature", &[("enabled", secure), ("name", feature)])?;
            }
            Ok(())
        })?;
        text(out, "nvram", &[], &path_text(nvram))
    })
}

fn write_features(out: &mut Out, spec: &VmSpec, accelerator: Accelerator) -> io::Result<()> {
    element(out, "features", &[], |out| {
        empty(out, "acpi", &[])?;
        empty(out, "apic", &[])?;
        if spec.firmware.secure_boot {
            empty(out, "smm", &[("state", "on")])?;
        }
        if enlightened(spec, accelerator) {
            element(out, "hyperv", &[("mode", "custom")], |out| {
                for feature in ["relaxed", "vapic", "vpindex", "runtime", "synic", "stimer"] {
                    empty(out, feature, &[("state", "on")])?;
                }
                empty(out, "spinlocks", &[("state", "on"), ("retries", "8191")])?;
                empty(out, "frequencies", &[("state", "on")])
            })?;
        }
        Ok(())
    })
}

/// Hyper-V enlightenments exist only under KVM.
fn enlightened(spec: &VmSpec, accelerator: Accelerator) -> bool {
    spec.profile.devices().hyperv && accelerator == Accelerator::Kvm
}

/// The processor by itself.
pub(crate) fn cpu_element(cpus: u32, accelerator: Accelerator) -> String {
    by_itself(|out| write_cpu(out, cpus, accelerator))
}

fn write_cpu(out: &mut Out, cpus: u32, accelerator: Accelerator) -> io::Result<()> {
    let mode = match accelerator {
        Accelerator::Kvm => "host-model",
        Accelerator::Tcg => "maximum",
    };
    element(out, "cpu", &[("mode", mode)], |out| {
        // One socket: Windows client editions use no more than two.
        let cores = cpus.to_string();
        empty(
            out,
            "topology",
            &[("sockets", "1"), ("cores", &cores), ("threads", "1")],
        )
    })
}

fn write_clock(out: &mut Out, spec: &VmSpec, accelerator: Accelerator) -> io::Result<()> {
    let offset = boot_order::offset(spec.clock());
    element(out, "clock", &[("offset", offset)], |out| {
        empty(out, "timer", &[("name", "rtc"), ("tickpolicy", "catchup")])?;
        empty(out, "timer", &[("name", "pit"), ("tickpolicy", "delay")])?;
        empty(out, "timer", &[("name", "hpet"), ("present", "no")])?;
        if enlightened(spec, accelerator) {
            empty(out, "timer", &[("name", "hypervclock"), ("present", "yes")])?;
        }
        Ok(())
    })
}

fn write_disks(
    out: &mut Out,
    definition: &DomainDefinition,
    spec: &VmSpec,
    io: &IoOfVolumes,
) -> io::Result<()> {
    if spec.disks.iter().any(|disk| disk.bus == DiskBus::Scsi) {
        write_scsi_controller(out, true)?;
    } else if spec.drives.iter().any(|drive| drive.bus == DiskBus::Scsi) {
        write_scsi_controller(out, false)?;
    }
    for (disk, path) in spec.disks.iter().zip(&definition.disk_paths) {
        let manner = DiskManner {
            io: io.of(path),
            thread: true,
        };
        let disk = DiskDevice {
            spec: disk.clone(),
            path: path.clone(),
        };
        write_disk(out, &disk, manner)?;
    }
    for (drive, path) in spec.drives.iter().zip(&definition.drive_paths) {
        let drive = DriveDevice {
            spec: drive.clone(),
            path: path.clone(),
        };
        write_drive(out, &drive)?;
    }
    Ok(())
}

/// Ports of PCI Express: QEMU cannot add one to a running machine, and each device that is added needs one.
fn write_ports(out: &mut Out, spec: &VmSpec) -> io::Result<()> {
    // USB, serial channel, balloon, random numbers; the others are counted.
    let built_in = 4;
    let disks = spec.disks.iter().filter(|disk| match disk.bus {
        DiskBus::Virtio => true,
        // SATA is part of the machine, and the SCSI controller is counted below.
        DiskBus::Sata | DiskBus::Scsi => false,
    });
    let scsi = spec.disks.iter().any(|disk| disk.bus == DiskBus::Scsi);
    let controllers = usize::from(scsi);
    let ports = built_in + disks.count() + controllers + spec.nics.len() + SPARE_PORTS;
    empty(
        out,
        "controller",
        &[("type", "pci"), ("index", "0"), ("model", "pcie-root")],
    )?;
    for _ in 0..ports {
        empty(
            out,
            "controller",
            &[("type", "pci"), ("model", "pcie-root-port")],
        )?;
    }
    Ok(())
}

fn write_consoles(out: &mut Out, definition: &DomainDefinition) -> io::Result<()> {
    element(out, "serial", &[("type", "pty")], |out| {
        if let Some(log) = &definition.serial_log {
            empty(out, "log", &[("file", &path_text(log)), ("append", "on")])?;
        }
        empty(out, "target", &[("type", "isa-serial"), ("port", "0")])
    })?;
    element(out, "channel", &[("type", "unix")], |out| {
        let agent = "org.qemu.guest_agent.0";
        empty(out, "target", &[("type", "virtio"), ("name", agent)])
    })?;
    element(out, "graphics", &[("type", "vnc")], |out| {
        empty(out, "listen", &[("type", "socket")])
    })?;
    element(out, "video", &[], |out| {
        empty(out, "model", &[("type", "vga")])
    })
}

/// The TPM device by itself.
pub(crate) fn tpm_element(id: VmId) -> String {
    by_itself(|out| write_tpm(out, id))
}

fn write_tpm(out: &mut Out, id: VmId) -> io::Result<()> {
    let secret = id.to_string();
    element(out, "tpm", &[("model", "tpm-crb")], |out| {
        let backend = [("type", "emulator"), ("version", "2.0")];
        element(out, "backend", &backend, |out| {
            empty(out, "encryption", &[("secret", &secret)])
        })
    })
}

fn write_comforts(out: &mut Out) -> io::Result<()> {
    empty(
        out,
        "controller",
        &[("type", "usb"), ("model", "qemu-xhci")],
    )?;
    // A tablet keeps the pointer of a viewer and of the guest together.
    empty(out, "input", &[("type", "tablet"), ("bus", "usb")])?;
    element(out, "rng", &[("model", "virtio")], |out| {
        text(out, "backend", &[("model", "random")], "/dev/urandom")
    })?;
    empty(out, "memballoon", &[("model", "virtio")])
}

pub(crate) fn by_itself(write: impl FnOnce(&mut Out) -> io::Result<()>) -> String {
    let mut out = Writer::new(Vec::new());
    write(&mut out).expect("writing to memory");
    String::from_utf8(out.into_inner()).expect("written from strings")
}

pub(crate) fn element(
    out: &mut Out,
    name: &str,
    attributes: &[(&str, &str)],
    inner: impl FnOnce(&mut Out) -> io::Result<()>,
) -> io::Result<()> {
    out.create_element(name)
        .with_attributes(attributes.iter().copied())
        .write_inner_content(inner)
        .map(drop)
}

pub(crate) fn empty(out: &mut Out, name: &str, attributes: &[(&str, &str)]) -> io::Result<()> {
    out.create_element(name)
        .with_attributes(attributes.iter().copied())
        .write_empty()
        .map(drop)
}

pub(crate) fn text(
    out: &mut Out,
    name: &str,
    attributes: &[(&str, &str)],
    value: &str,
) -> io::Result<()> {
    out.create_element(name)
        .with_attributes(attributes.iter().copied())
        .write_text_content(BytesText::new(value))
        .map(drop)
}

const fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// Paths come from configuration and from names we made: UTF-8.
pub(crate) fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use fleetward_model::ByteSize;
    use fleetward_model::network::NetworkPlace;
    use fleetward_model::vm::{DiskSpec, DriveSpec, Medium, NicSpec, Profile, VmMetadata};
    use std::path::PathBuf;

    /// A Windows VM with everything.
    pub(crate) fn sample() -> DomainDefinition {
        let id: VmId = "6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01".parse().unwrap();
        let disks = vec![DiskSpec::new(
            "sda",
            DiskBus::Sata,
            "default".parse().unwrap(),
            format!("{id}-sda.qcow2"),
            ByteSize::gib(64),
        )];
        let medium = Medium {
            image: "win11".parse().unwrap(),
            sha256: "ab".repeat(32),
        };
        let name = "win11-01".parse().unwrap();
        DomainDefinition {
            metadata: VmMetadata {
                spec: VmSpec {
                    cpus: 2,
                    memory: ByteSize::gib(4),
                    drives: vec![DriveSpec::first(&disks, Some(medium))],
                    disks,
                    nics: vec![NicSpec::first(Profile::Windows11, "52:54:00:12:34:56")],
                    ..VmSpec::bare(
                        id,
                        name,
                        Profile::Windows11,
                        time::OffsetDateTime::UNIX_EPOCH,
                    )
                },
                generation: 1,
                key_protector: Some("MIIK".into()),
                ek_certificate: None,
                transit: None,
                revoked: Vec::new(),
                former_certificates: None,
                unknown: Default::default(),
            },
            disk_paths: vec![PathBuf::from("/srv/a & b/sda.qcow2")],
            drive_paths: vec![Some(PathBuf::from("/srv/win11.iso"))],
            nic_places: vec![NetworkPlace::Nat],
            serial_log: Some(PathBuf::from("/var/log/vm/'x'.log")),
            nvram_path: PathBuf::from("/var/lib/libvirt/qemu/nvram/x.fd"),
            carried: None,
        }
    }

    #[test]
    fn a_windows_vm_has_what_its_installer_looks_for() {
        let xml = domain_xml(
            &sample(),
            Accelerator::Kvm,
            NEWEST_MACHINE,
            &IoOfVolumes::default(),
        );
        let document = roxmltree::Document::parse(&xml).expect("well-formed");
        let has = |name: &str, attribute: &str, value: &str| {
            document
                .descendants()
                .any(|n| n.has_tag_name(name) && n.attribute(attribute) == Some(value))
        };
        assert!(has("tpm", "model", "tpm-crb"));
        assert!(has(
            "encryption",
            "secret",
            "6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01"
        ));
        assert!(has("smm", "state", "on"));
        assert!(has("clock", "offset", "localtime"));
        assert!(has("stimer", "state", "on"));
        assert!(
            has("target", "dev", "sdb"),
            "the installer's drive follows the disk"
        );
        assert!(has("source", "file", "/srv/a & b/sda.qcow2"), "escaped");
    }

    #[test]
    fn enlightenments_are_left_out_under_translation() {
        let xml = domain_xml(
            &sample(),
            Accelerator::Tcg,
            "pc-q35-10.0",
            &IoOfVolumes::default(),
        );
        assert!(!xml.contains("hyperv") && xml.contains("maximum") && xml.contains("pc-q35-10.0"));
    }

    #[test]
    fn a_vm_without_tpm_network_and_secure_boot_has_none() {
        let mut definition = sample();
        definition.metadata.spec.tpm = false;
        definition.metadata.spec.nics.clear();
        definition.metadata.spec.firmware.secure_boot = false;
        let xml = domain_xml(
            &definition,
            Accelerator::Tcg,
            NEWEST_MACHINE,
            &IoOfVolumes::default(),
        );
        for absent in ["<tpm", "<interface", "<smm"] {
            assert!(!xml.contains(absent), "{absent}");
        }
        assert!(xml.contains(r#"enabled="no" name="secure-boot""#));
    }
}
