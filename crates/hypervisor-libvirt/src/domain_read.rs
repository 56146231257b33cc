//! Converts libvirt's description of a domain to our types. Pure: numbers and XML in, [`DomainObserved`] out.
//!
//! Domains that Fleetward did not make are read as far as possible; unknown content is never an error.

use crate::boot_order;
use crate::metadata::{self, Found};
use crate::nic_xml;
use fleetward_hypervisor::{DomainObserved, DomainState, StopReason};
use fleetward_model::host::Accelerator;
use fleetward_model::machine::MachineSettings;
use fleetward_model::vm::{Firmware, FirmwareKind, NewerSpec, VmMetadata};
use fleetward_model::{ByteSize, VmId, VmName};
use roxmltree::{Document, Node};
use std::path::PathBuf;

/// The name of the channel that QEMU's guest agent opens.
const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

/// Our state and libvirt's word for the reason. `incoming` is whether memory is arriving, which the numbers do not say.
pub(crate) fn domain_state(
    state: virt_sys::virDomainState,
    reason: i32,
    incoming: bool,
) -> (DomainState, &'static str) {
    let stopped = |why, word| (DomainState::Stopped(why), word);
    let paused = |word| (DomainState::Paused { incoming }, word);
    match state {
        virt_sys::VIR_DOMAIN_PAUSED => paused(paused_word(reason)),
        // Every other state with a process may be executing.
        virt_sys::VIR_DOMAIN_RUNNING => (DomainState::Running, running_word(reason)),
        virt_sys::VIR_DOMAIN_BLOCKED => (DomainState::Running, "blocked"),
        virt_sys::VIR_DOMAIN_SHUTDOWN => (DomainState::Running, "shutting down"),
        virt_sys::VIR_DOMAIN_PMSUSPENDED => (DomainState::Running, "suspended by the guest"),
        virt_sys::VIR_DOMAIN_CRASHED => stopped(StopReason::Crashed, "crashed"),
        virt_sys::VIR_DOMAIN_SHUTOFF => match reason as virt_sys::virDomainShutoffReason {
            virt_sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN => stopped(StopReason::Ordinary, "shutdown"),
            virt_sys::VIR_DOMAIN_SHUTOFF_DESTROYED => stopped(StopReason::Ordinary, "destroyed"),
            virt_sys::VIR_DOMAIN_SHUTOFF_CRASHED => stopped(StopReason::Crashed, "crashed"),
            virt_sys::VIR_DOMAIN_SHUTOFF_MIGRATED => stopped(StopReason::Migrated, "migrated"),
            virt_sys::VIR_DOMAIN_SHUTOFF_SAVED => stopped(StopReason::Ordinary, "saved"),
            virt_sys::VIR_DOMAIN_SHUTOFF_FAILED => stopped(StopReason::Failed, "failed"),
            virt_sys::VIR_DOMAIN_SHUTOFF_DAEMON => stopped(StopReason::Ordinary, "daemon"),
            _ => stopped(StopReason::Ordinary, "unknown"),
        },
        _ => stopped(StopReason::Ordinary, "unknown"),
    }
}

fn running_word(reason: i32) -> &'static str {
    const WORDS: [&str; 11] = [
        "unknown",
        "booted",
        "migrated",
        "restored",
        "from snapshot",
        "unpaused",
        "migration canceled",
        "save canceled",
        "wakeup",
        "crashed",
        "post-copy",
    ];
    word(&WORDS, reason)
}

fn paused_word(reason: i32) -> &'static str {
    const WORDS: [&str; 12] = [
        "unknown",
        "user",
        "migrating",
        "saving",
        "dumping",
        "i/o error",
        "watchdog",
        "from snapshot",
        "shutting down",
        "creating snapshot",
        "crashed",
        "starting up",
    ];
    word(&WORDS, reason)
}

fn word(words: &[&'static str], reason: i32) -> &'static str {
    usize::try_from(reason)
        .ok()
        .and_then(|index| words.get(index))
        .copied()
        .unwrap_or("unknown")
}

/// A foreign domain's name need not be one of ours; the rest becomes dashes, with the uuid to keep it unique.
pub(crate) fn vm_name(text: &str, id: VmId) -> VmName {
    text.parse().unwrap_or_else(|_| {
        let kept: String = text
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                    c
                } else {
                    '-'
                }
            })
            .take(40)
            .collect();
        format!("x{kept}-{}", &id.to_string()[..8])
            .parse()
            .expect("made of permitted characters")
    })
}

/// What libvirt answers at once about any domain, even while it is busy with it.
pub(crate) struct Basics {
    pub(crate) id: VmId,
    pub(crate) name: VmName,
    pub(crate) domain_name: String,
    pub(crate) state: DomainState,
    pub(crate) reason: &'static str,
    pub(crate) persistent: bool,
    pub(crate) cpus: u32,
    pub(crate) memory: ByteSize,
}

/// Without the definition, which libvirt does not tell now.
pub(crate) fn observed_in_part(
    basics: Basics,
    metadata: Found,
    accelerator: Accelerator,
) -> DomainObserved {
    let (metadata, newer) = apart(metadata);
    DomainObserved {
        id: basics.id,
        name: basics.name,
        domain_name: basics.domain_name,
        state: basics.state,
        reason: basics.reason,
        persistent: basics.persistent,
        metadata,
        newer,
        cpus: basics.cpus,
        memory: basics.memory,
        firmware: None,
        loader: None,
        settings: MachineSettings::default(),
        machine: String::new(),
        accelerator,
        disks: Vec::new(),
        nics: Vec::new(),
        drives: Vec::new(),
        nvram_path: None,
        nvram_template: None,
        tpm: false,
        cpu_xml: None,
        guest_agent: false,
        console: None,
        defined: None,
        as_of: None,
    }
}

/// With the definition. XML that cannot be read leaves the part empty; libvirt does not write such.
pub(crate) fn observed(basics: Basics, xml: &str) -> DomainObserved {
    let mut seen = observed_in_part(basics, None, Accelerator::Tcg);
    let Ok(document) = Document::parse(xml) else {
        tracing::warn!(domain = %seen.id, "libvirt's definition of a domain is not XML");
        return seen;
    };
    let root = document.root_element();
    if root.attribute("type") == Some("kvm") {
        seen.accelerator = Accelerator::Kvm;
    }
    let found = child(root, "metadata")
        .and_then(metadata::find)
        .and_then(metadata::read);
    (seen.metadata, seen.newer) = apart(found);
    seen.settings = boot_order::read(root);
    if let Some(os) = child(root, "os") {
        seen.firmware = firmware(os);
        seen.loader = child(os, "loader")
            .and_then(|loader| loader.text())
            .map(PathBuf::from);
        seen.machine = machine(os).unwrap_or_default().to_owned();
        let nvram = child(os, "nvram");
        seen.nvram_path = nvram.and_then(|n| n.text()).map(PathBuf::from);
        seen.nvram_template = nvram
            .and_then(|n| n.attribute("template"))
            .map(PathBuf::from);
    }
    seen.cpu_xml = child(root, "cpu").map(|cpu| xml[cpu.range()].to_owned());
    if let Some(devices) = child(root, "devices") {
        seen.disks = disks(devices);
        seen.drives = drives(devices);
        seen.nics = nic_xml::all(devices);
        seen.tpm = child(devices, "tpm").is_some();
        seen.guest_agent = devices.children().any(is_open_agent);
        seen.console = child(devices, "serial")
            .filter(|serial| serial.attribute("type") == Some("pty"))
            .and_then(|serial| child(serial, "source"))
            .and_then(|source| source.attribute("path"))
            .map(PathBuf::from);
    }
    seen
}

pub(crate) fn apart(found: Found) -> (Option<VmMetadata>, Option<NewerSpec>) {
    match found {
        None => (None, None),
        Some(Ok(metadata)) => (Some(metadata), None),
        Some(Err(newer)) => (None, Some(newer)),
    }
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|c| c.has_tag_name(name))
}

fn machine<'a>(os: Node<'a, '_>) -> Option<&'a str> {
    child(os, "type").and_then(|kind| kind.attribute("machine"))
}

/// UEFI is what libvirt chose by `firmware='efi'`, or a loader in flash that somebody named.
fn firmware(os: Node<'_, '_>) -> Option<Firmware> {
    let loader = child(os, "loader");
    let uefi = os.attribute("firmware") == Some("efi")
        || loader.is_some_and(|l| l.attribute("type") == Some("pflash"));
    let chosen = child(os, "firmware").and_then(|choice| {
        choice
            .children()
            .find(|feature| feature.attribute("name") == Some("secure-boot"))
            .map(|feature| feature.attribute("enabled") == Some("yes"))
    });
    let secure_boot =
        chosen.unwrap_or_else(|| loader.is_some_and(|l| l.attribute("secure") == Some("yes")));
    uefi.then_some(Firmware {
        kind: FirmwareKind::Uefi,
        secure_boot,
    })
}

/// The disks of a definition, without drives.
pub(crate) fn disks(devices: Node<'_, '_>) -> Vec<(String, PathBuf)> {
    devices.children().filter_map(disk).collect()
}

/// The CD-ROM drives of a definition, with the files of their media.
pub(crate) fn drives(devices: Node<'_, '_>) -> Vec<(String, Option<PathBuf>)> {
    let drives = devices
        .children()
        .filter(|node| node.has_tag_name("disk") && node.attribute("device") == Some("cdrom"));
    drives
        .filter_map(|drive| {
            let target = child(drive, "target")?.attribute("dev")?.to_owned();
            let file = child(drive, "source").and_then(|source| source.attribute("file"));
            Some((target, file.map(PathBuf::from)))
        })
        .collect()
}

fn disk(node: Node<'_, '_>) -> Option<(String, PathBuf)> {
    if !node.has_tag_name("disk") || matches!(node.attribute("device"), Some("cdrom" | "floppy")) {
        return None;
    }
    let target = child(node, "target")?.attribute("dev")?.to_owned();
    let source = child(node, "source")?;
    let path = source
        .attribute("file")
        .or_else(|| source.attribute("dev"))?;
    Some((target, PathBuf::from(path)))
}

/// Whether that is the channel of QEMU's guest agent, and somebody in the guest has opened it.
fn is_open_agent(node: Node<'_, '_>) -> bool {
    node.has_tag_name("channel")
        && child(node, "target").is_some_and(|target| {
            target.attribute("name") == Some(AGENT_CHANNEL)
                && target.attribute("state") == Some("connected")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_io::IoOfVolumes;
    use crate::domain_edit;
    use crate::domain_xml::{NEWEST_MACHINE, domain_xml, tests::sample};

    fn basics(id: VmId) -> Basics {
        Basics {
            id,
            name: "win11-01".parse().unwrap(),
            domain_name: "win11-01".into(),
            state: DomainState::Running,
            reason: "booted",
            persistent: true,
            cpus: 2,
            memory: ByteSize::gib(4),
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let definition = sample();
        let xml = domain_xml(
            &definition,
            Accelerator::Kvm,
            NEWEST_MACHINE,
            &IoOfVolumes::default(),
        );
        let seen = observed(basics(definition.metadata.spec.id), &xml);
        assert_eq!(seen.metadata.as_ref(), Some(&definition.metadata));
        assert_eq!(seen.firmware, Some(definition.metadata.spec.firmware));
        assert_eq!(seen.accelerator, Accelerator::Kvm);
        assert_eq!(
            seen.disks,
            [("sda".to_owned(), definition.disk_paths[0].clone())],
            "the installer's medium is no disk"
        );
        assert_eq!(seen.nvram_path, Some(definition.nvram_path));
        assert!(seen.tpm && seen.cpu_xml.is_some_and(|cpu| cpu.starts_with("<cpu")));
    }

    #[test]
    fn foreign_domains_are_read_as_far_as_possible() {
        let id: VmId = "6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01".parse().unwrap();
        let seen = observed(
            basics(id),
            "<domain type='qemu'><metadata><x xmlns='urn:other'/></metadata><os><type machine='pc'>hvm</type></os>\
             <devices><disk device='disk'><source network='x'/></disk></devices></domain>",
        );
        assert_eq!((seen.metadata, seen.firmware), (None, None));
        assert!(seen.disks.is_empty());
        assert_eq!(vm_name("My VM (old)", id).as_str(), "xMy-VM--old--6b0d7a52");
        observed(basics(id), "not xml");
    }

    #[test]
    fn only_our_own_element_is_replaced() {
        let mut metadata = sample().metadata;
        metadata.generation = 7;
        let foreign = "<x xmlns='urn:other'>kept</x>";
        for before in [
            domain_xml(
                &sample(),
                Accelerator::Tcg,
                NEWEST_MACHINE,
                &IoOfVolumes::default(),
            ),
            format!("<domain><uuid>1</uuid><metadata>{foreign}</metadata><os/></domain>"),
            "<domain><uuid>1</uuid><metadata/><os/></domain>".to_owned(),
            "<domain><uuid>1</uuid><os/></domain>".to_owned(),
        ] {
            let after = domain_edit::with_metadata(&before, &metadata).unwrap();
            let id = metadata.spec.id;
            assert_eq!(
                observed(basics(id), &after).metadata,
                Some(metadata.clone()),
                "{after}"
            );
            assert_eq!(before.contains(foreign), after.contains(foreign));
        }
        assert!(domain_edit::with_metadata("<domain/>", &metadata).is_err());
    }

    #[test]
    fn bases_are_left_out_and_nothing_else_is() {
        let base = "<backingStore type='file'><source file='/v/a'/><backingStore type='file'><source file='/v/b'/></backingStore></backingStore>";
        let with = |base: &str| {
            let disk = format!("<disk><source file='/v/c'/>{base}<target dev='vda'/></disk>");
            format!("<domain><devices>{disk}<tpm/>{disk}</devices></domain>")
        };
        assert_eq!(domain_edit::without_bases(&with(base)).unwrap(), with(""));
        assert_eq!(domain_edit::without_bases(&with("")).unwrap(), with(""));
    }

    #[test]
    fn a_source_in_the_switch_over_is_not_incoming() {
        let paused = virt_sys::VIR_DOMAIN_PAUSED;
        assert_eq!(
            domain_state(paused, 2, false),
            (DomainState::Paused { incoming: false }, "migrating")
        );
        assert_eq!(
            domain_state(virt_sys::VIR_DOMAIN_SHUTOFF, 4, false).0,
            DomainState::Stopped(StopReason::Migrated)
        );
    }
}
