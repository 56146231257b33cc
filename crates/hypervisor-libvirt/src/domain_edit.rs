//! A definition that exists, changed in place. Pure: libvirt's XML in, XML out.
//!
//! Fleetward owns its metadata element, where the VM's disks and UEFI variables lie, the TPM device, and the number of
//! processors, the memory and the parts of devices that it is asked to change. Everything else in a definition may be an
//! administrator's, so it stays as it is, byte for byte: this module cuts pieces out of the text and puts others in their
//! place, it never writes a definition anew. [`crate::domain_xml`] does that, for domains that do not exist yet.

use crate::boot_order;
use crate::disk_io::IoOfVolumes;
use crate::domain_read;
use crate::domain_xml::{cpu_element, tpm_element};
use crate::storage_edit;
use crate::{metadata, nic_xml};
use fleetward_hypervisor::{DeviceChange, DomainChange, DomainDefined, DomainDefinition};
use fleetward_model::host::Accelerator;
use fleetward_model::network::NetworkPlace;
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ByteSize, VmId};
use quick_xml::escape::escape;
use roxmltree::{Document, Node};
use std::ops::Range;
use std::path::Path;

/// The definition with our metadata and what `change` names. The error is a sentence: what in the definition stands in
/// the way.
pub(crate) fn changed(
    xml: &str,
    metadata: &VmMetadata,
    change: &DomainChange,
    io: &IoOfVolumes,
) -> Result<String, String> {
    let document = parse(xml)?;
    let root = document.root_element();
    let devices = devices(root)?;
    let mut splices = Splices::of(xml);
    put_metadata(&mut splices, root, metadata)?;
    if let Some(cpus) = change.machine.cpus {
        set_cpus(&mut splices, root, cpus)?;
    }
    if let Some(memory) = change.machine.memory {
        set_memory(&mut splices, root, memory)?;
    }
    match change.tpm {
        Some(true) => attach_tpm(&mut splices, devices, metadata.spec.id)?,
        Some(false) => detach_tpm(&mut splices, devices, metadata.spec.id),
        None => {}
    }
    for (target, path) in &change.disks {
        place_disk(&mut splices, devices, target, path, Some(io));
    }
    if let Some(log) = &change.serial_log {
        place_serial_log(&mut splices, devices, Some(log));
    }
    let mut text = splices.done();
    // One after the other: two of them may be about one device.
    for device in &change.devices {
        text = with_device(&text, device)?;
    }
    let devices_change = !change.devices.is_empty() || !change.storage.is_empty();
    let ours = boot_order::is_ours(root, metadata.spec.boot);
    text = storage_edit::changed(text, &change.storage, io)?;
    if let Some(clock) = change.machine.clock {
        text = boot_order::with_clock(&text, clock)?;
    }
    match change.machine.boot {
        Some(first) => boot_order::with_first(&text, first),
        // What came has its place too.
        None if devices_change && ours => boot_order::with_first(&text, metadata.spec.boot),
        None => Ok(text),
    }
}

/// The definition with one device changed.
fn with_device(xml: &str, change: &DeviceChange) -> Result<String, String> {
    let document = parse(xml)?;
    let devices = devices(document.root_element())?;
    let mut splices = Splices::of(xml);
    match change {
        DeviceChange::Nic(change) => {
            let there = nic_xml::find(devices, change);
            match (there, &change.to) {
                (Some(there), Some(to)) => {
                    let now = nic_xml::changed(xml, there, to, &change.parts);
                    if nic_xml::is_another(there, &now) {
                        splices.put(there.range(), now);
                    }
                }
                (Some(there), None) => splices.cut(there.range()),
                (None, Some(to)) => append_child(&mut splices, devices, &nic_xml::element(to)),
                (None, None) => {}
            }
        }
    }
    Ok(splices.done())
}

/// The definition with network cards connected to what they are named with, by their addresses.
pub(crate) fn with_nic_places(
    xml: &str,
    places: &[(String, NetworkPlace)],
) -> Result<String, String> {
    let document = parse(xml)?;
    let mut splices = Splices::of(xml);
    place_nics(
        &mut splices,
        devices(document.root_element())?,
        places.iter().map(|(mac, place)| (mac.as_str(), place)),
    );
    Ok(splices.done())
}

/// Only cards that are in user mode or on a bridge: what somebody connected otherwise stays so.
fn place_nics<'p>(
    splices: &mut Splices<'_>,
    devices: Node<'_, '_>,
    places: impl Iterator<Item = (&'p str, &'p NetworkPlace)>,
) {
    for (mac, place) in places {
        let card = nic_xml::by_mac(devices, mac);
        if let Some(card) = card
            && let Some(seen) = nic_xml::seen(card).and_then(|seen| seen.place)
            && seen != *place
            && seen.kind() != "nat"
        {
            let now = nic_xml::connected(splices.xml, card, place);
            splices.put(card.range(), now);
        }
    }
}

/// The definition as another host needs it: without our metadata, which travels by itself and holds the key protector,
/// and without what libvirt knows of the volumes below the disks, which arrive in one piece.
pub(crate) fn portable(xml: &str) -> Result<String, String> {
    let without = without_bases(xml)?;
    let document = parse(&without)?;
    let mut splices = Splices::of(&without);
    if let Some(ours) = child(document.root_element(), "metadata").and_then(metadata::find) {
        splices.cut(ours.range());
    }
    Ok(splices.done())
}

/// The definition with our element replaced, or added.
pub(crate) fn with_metadata(xml: &str, metadata: &VmMetadata) -> Result<String, String> {
    let document = parse(xml)?;
    let mut splices = Splices::of(xml);
    put_metadata(&mut splices, document.root_element(), metadata)?;
    Ok(splices.done())
}

/// The definition without what libvirt knows of the volumes below the disks: copied disks arrive in one piece, and where the
/// directory is shared the headers of the volumes tell the same.
pub(crate) fn without_bases(xml: &str) -> Result<String, String> {
    let document = parse(xml)?;
    let mut splices = Splices::of(xml);
    for disk in devices(document.root_element())?
        .children()
        .filter(|device| device.has_tag_name("disk"))
    {
        cut_bases(&mut splices, disk);
    }
    Ok(splices.done())
}

/// A definition that came from another host, made this host's: metadata, accelerator, and the paths that Fleetward
/// chooses. `exists` tells whether a program is on this host.
pub(crate) fn adapted(
    carried: &str,
    definition: &DomainDefinition,
    accelerator: Accelerator,
    io: &IoOfVolumes,
    exists: impl Fn(&Path) -> bool,
) -> Result<String, String> {
    let document = parse(carried)?;
    let root = document.root_element();
    let devices = devices(root)?;
    let metadata = &definition.metadata;
    let spec = &metadata.spec;
    let id = child(root, "uuid").and_then(|uuid| uuid.text());
    if id.map(str::trim) != Some(spec.id.to_string().as_str()) {
        return Err("it is the definition of another domain".to_owned());
    }
    let mut splices = Splices::of(carried);
    put_metadata(&mut splices, root, metadata)?;
    set_accelerator(&mut splices, root, definition, accelerator);
    place_firmware(&mut splices, root, &definition.nvram_path);
    if let Some(emulator) = child(devices, "emulator")
        && !emulator.text().is_some_and(|path| exists(Path::new(path)))
    {
        splices.cut(emulator.range());
    }
    for (disk, path) in spec.disks.iter().zip(&definition.disk_paths) {
        place_disk(&mut splices, devices, &disk.target, path, Some(io));
    }
    for (drive, path) in spec.drives.iter().zip(&definition.drive_paths) {
        if let Some(medium) = path {
            place_disk(&mut splices, devices, &drive.target, medium, None);
        }
    }
    place_serial_log(&mut splices, devices, definition.serial_log.as_deref());
    let nics = spec.nics.iter().map(|nic| nic.mac.as_str());
    place_nics(&mut splices, devices, nics.zip(&definition.nic_places));
    match spec.tpm {
        true => attach_tpm(&mut splices, devices, spec.id)?,
        false => detach_tpm(&mut splices, devices, spec.id),
    }
    Ok(splices.done())
}

/// The same definition under another name.
pub(crate) fn named(xml: &str, name: &str) -> Result<String, String> {
    let document = parse(xml)?;
    let element = child(document.root_element(), "name").ok_or("the definition has no name")?;
    let mut splices = Splices::of(xml);
    splices.put(element.range(), format!("<name>{}</name>", escape(name)));
    Ok(splices.done())
}

/// The name in a definition.
pub(crate) fn name_of(xml: &str) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    child(document.root_element(), "name")?
        .text()
        .map(str::to_owned)
}

/// What a definition says of the next start. libvirt itself writes all sizes in KiB.
pub(crate) fn defined(xml: &str) -> Option<DomainDefined> {
    let document = Document::parse(xml).ok()?;
    let root = document.root_element();
    let vcpu = child(root, "vcpu")?;
    let cpus = vcpu.attribute("current").or_else(|| vcpu.text())?;
    let kib: u64 = child(root, "memory")?.text()?.trim().parse().ok()?;
    Some(DomainDefined {
        cpus: cpus.trim().parse().ok()?,
        memory: ByteSize(kib.checked_mul(1024)?),
        settings: boot_order::read(root),
        tpm: child(root, "devices").is_some_and(|d| child(d, "tpm").is_some()),
        nics: child(root, "devices").map(nic_xml::all).unwrap_or_default(),
        disks: child(root, "devices").map_or_else(Vec::new, domain_read::disks),
        drives: child(root, "devices").map_or_else(Vec::new, domain_read::drives),
    })
}

fn put_metadata(
    splices: &mut Splices<'_>,
    root: Node<'_, '_>,
    metadata: &VmMetadata,
) -> Result<(), String> {
    let ours = metadata::element(metadata);
    match child(root, "metadata") {
        Some(holder) => match (metadata::find(holder), holder.first_child()) {
            (Some(old), _) => splices.put(old.range(), ours),
            (None, Some(first)) => splices.insert(first.range().start, ours),
            (None, None) => splices.put(holder.range(), format!("<metadata>{ours}</metadata>")),
        },
        None => {
            let uuid = child(root, "uuid").ok_or("the definition has no uuid")?;
            splices.insert(uuid.range().end, format!("<metadata>{ours}</metadata>"));
        }
    }
    Ok(())
}

fn set_cpus(splices: &mut Splices<'_>, root: Node<'_, '_>, cpus: u32) -> Result<(), String> {
    let vcpu = child(root, "vcpu").ok_or("the definition has no number of processors")?;
    let placement = vcpu.attribute("placement").unwrap_or("static");
    let cpuset = match vcpu.attribute("cpuset") {
        Some(set) => format!(" cpuset='{}'", escape(set)),
        None => String::new(),
    };
    splices.put(
        vcpu.range(),
        format!(
            "<vcpu placement='{}'{cpuset}>{cpus}</vcpu>",
            escape(placement)
        ),
    );
    // A list of single processors names every one of them; libvirt makes it anew.
    if let Some(list) = child(root, "vcpus") {
        splices.cut(list.range());
    }
    let cpu = child(root, "cpu");
    if cpu.and_then(|cpu| child(cpu, "numa")).is_some() {
        return Err(
            "its definition divides the processors into NUMA cells, which virsh edit changes"
                .to_owned(),
        );
    }
    let Some(topology) = cpu.and_then(|cpu| child(cpu, "topology")) else {
        return Ok(());
    };
    let part = |name: &str| {
        let value = topology.attribute(name).unwrap_or("1");
        value.parse::<u32>().ok().filter(|value| *value > 0)
    };
    let others = ["sockets", "dies", "clusters", "threads"]
        .into_iter()
        .try_fold(1_u32, |all, name| part(name)?.checked_mul(all))
        .ok_or("its definition has a processor topology that cannot be read")?;
    let cores = topology
        .attribute_node("cores")
        .ok_or("its definition has a processor topology without cores")?;
    if !cpus.is_multiple_of(others) {
        return Err(format!(
            "its definition has {others} processor threads a core, so {cpus} cannot be divided among whole cores"
        ));
    }
    splices.put(cores.range_value(), (cpus / others).to_string());
    Ok(())
}

fn set_memory(
    splices: &mut Splices<'_>,
    root: Node<'_, '_>,
    memory: ByteSize,
) -> Result<(), String> {
    let whole = child(root, "memory").ok_or("the definition has no memory")?;
    let cells = child(root, "cpu").and_then(|cpu| child(cpu, "numa"));
    let modules = child(root, "devices").and_then(|devices| child(devices, "memory"));
    if cells.is_some() || modules.is_some() {
        return Err(
            "its definition divides the memory into NUMA cells or modules, which virsh edit changes"
                .to_owned(),
        );
    }
    let kib = memory.bytes() / 1024;
    if let Some(current) = child(root, "currentMemory") {
        let number = |node: Node<'_, '_>| node.text().and_then(|t| t.trim().parse::<u64>().ok());
        let same_unit = current.attribute("unit") == whole.attribute("unit");
        // Somebody let the guest begin with less than it may have: kept while it still fits.
        let ballooned = same_unit && number(current) < number(whole) && number(current) < Some(kib);
        if !ballooned {
            let text = format!("<currentMemory unit='KiB'>{kib}</currentMemory>");
            splices.put(current.range(), text);
        }
    }
    splices.put(whole.range(), format!("<memory unit='KiB'>{kib}</memory>"));
    Ok(())
}

/// The TPM of the definition has our secret; its other settings may be an administrator's.
fn attach_tpm(splices: &mut Splices<'_>, devices: Node<'_, '_>, id: VmId) -> Result<(), String> {
    let Some(tpm) = child(devices, "tpm") else {
        append_child(splices, devices, &tpm_element(id));
        return Ok(());
    };
    let backend = child(tpm, "backend").filter(|b| b.attribute("type") == Some("emulator"));
    let backend = backend.ok_or("its definition has a TPM that swtpm does not emulate")?;
    let secret = id.to_string();
    let encryption = format!("<encryption secret='{secret}'/>");
    match child(backend, "encryption") {
        Some(kept) if kept.attribute("secret") == Some(&secret) => {}
        Some(other) => splices.put(other.range(), encryption),
        None => append_child(splices, backend, &encryption),
    }
    Ok(())
}

/// Puts `inner` in front of an element's closing tag; one without content gets it.
pub(crate) fn append_child(splices: &mut Splices<'_>, element: Node<'_, '_>, inner: &str) {
    let range = element.range();
    let text = &splices.xml[range.clone()];
    match text.strip_suffix("/>") {
        Some(open) => {
            let name = element.tag_name().name();
            let at = range.start + open.len()..range.end;
            splices.put(at, format!(">{inner}</{name}>"));
        }
        None => {
            let end = text.rfind("</").unwrap_or(text.len());
            splices.insert(range.start + end, inner.to_owned());
        }
    }
}

/// Only the TPM that has our secret goes; one that somebody else gave the domain is theirs.
fn detach_tpm(splices: &mut Splices<'_>, devices: Node<'_, '_>, id: VmId) {
    let secret = id.to_string();
    let ours = devices.children().filter(|device| {
        device.has_tag_name("tpm")
            && child(*device, "backend")
                .and_then(|backend| child(backend, "encryption"))
                .is_some_and(|e| e.attribute("secret") == Some(&secret))
    });
    for tpm in ours {
        splices.cut(tpm.range());
    }
}

/// A disk that somebody moved out of a file, to a block device or a server, stays there.
fn place_disk(
    splices: &mut Splices<'_>,
    devices: Node<'_, '_>,
    target: &str,
    path: &Path,
    io: Option<&IoOfVolumes>,
) {
    let Some(disk) = storage_edit::find(devices, target) else {
        return;
    };
    if disk.attribute("type") != Some("file") {
        return;
    }
    let file = format!("file='{}'", escape(path.to_string_lossy()));
    match child(disk, "source") {
        Some(source) => match source.attribute_node("file") {
            Some(kept) if Path::new(kept.value()) == path => {}
            Some(other) => splices.put(other.range(), file),
            None => splices.put(source.range(), format!("<source {file}/>")),
        },
        // An empty drive.
        None => {
            if let Some(target) = child(disk, "target") {
                splices.insert(target.range().start, format!("<source {file}/>"));
            }
        }
    }
    cut_bases(splices, disk);
    if let Some(io) = io {
        storage_edit::weaken(splices, disk, io.of(path));
    }
}

/// What libvirt wrote down of the volumes below a disk, it believes; the headers of the volumes are right.
pub(crate) fn cut_bases(splices: &mut Splices<'_>, disk: Node<'_, '_>) {
    if let Some(bases) = child(disk, "backingStore") {
        splices.cut(bases.range());
    }
}

fn place_serial_log(splices: &mut Splices<'_>, devices: Node<'_, '_>, log: Option<&Path>) {
    let ports = devices
        .children()
        .filter(|d| d.has_tag_name("serial") || d.has_tag_name("console"));
    for old in ports.filter_map(|port| child(port, "log")) {
        match (log, old.attribute_node("file")) {
            (Some(log), Some(file)) => {
                let file_now = escape(log.to_string_lossy()).into_owned();
                splices.put(file.range_value(), file_now);
            }
            (Some(_), None) => {}
            (None, _) => splices.cut(old.range()),
        }
    }
}

/// Which firmware file that is differs between hosts; libvirt finds this host's by the features that are asked for.
fn place_firmware(splices: &mut Splices<'_>, root: Node<'_, '_>, nvram: &Path) {
    let Some(os) = child(root, "os") else {
        return;
    };
    let place = format!("<nvram>{}</nvram>", escape(nvram.to_string_lossy()));
    let chosen = os.attribute("firmware") == Some("efi");
    if chosen && let Some(loader) = child(os, "loader") {
        splices.cut(loader.range());
    }
    match child(os, "nvram") {
        Some(old) => splices.put(old.range(), place),
        None if chosen => {
            if let Some(kind) = child(os, "type") {
                splices.insert(kind.range().end, place);
            }
        }
        // No UEFI.
        None => {}
    }
}

/// The processor and its enlightenments depend on the accelerator.
fn set_accelerator(
    splices: &mut Splices<'_>,
    root: Node<'_, '_>,
    definition: &DomainDefinition,
    accelerator: Accelerator,
) {
    let kind = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "qemu",
    };
    let Some(was) = root
        .attribute_node("type")
        .filter(|was| was.value() != kind)
    else {
        return;
    };
    splices.put(was.range_value(), kind.to_owned());
    if let Some(cpu) = child(root, "cpu") {
        let cpus = child(root, "vcpu").and_then(|vcpu| vcpu.text()?.trim().parse().ok());
        let cpus = cpus.unwrap_or(definition.metadata.spec.cpus);
        splices.put(cpu.range(), cpu_element(cpus, accelerator));
    }
    match accelerator {
        Accelerator::Kvm => {}
        Accelerator::Tcg => {
            let hyperv = child(root, "features").and_then(|features| child(features, "hyperv"));
            let clock = child(root, "clock").and_then(|clock| {
                clock
                    .children()
                    .find(|timer| timer.attribute("name") == Some("hypervclock"))
            });
            for only_kvm in [hyperv, clock].into_iter().flatten() {
                splices.cut(only_kvm.range());
            }
        }
    }
}

pub(crate) fn parse(xml: &str) -> Result<Document<'_>, String> {
    Document::parse(xml).map_err(|error| format!("its definition cannot be read: {error}"))
}

pub(crate) fn devices<'a, 'i>(root: Node<'a, 'i>) -> Result<Node<'a, 'i>, String> {
    child(root, "devices").ok_or_else(|| "the definition has no devices".to_owned())
}

pub(crate) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|c| c.has_tag_name(name))
}

/// Pieces to be replaced in a text, none inside another.
pub(crate) struct Splices<'x> {
    xml: &'x str,
    pieces: Vec<(Range<usize>, String)>,
}

impl<'x> Splices<'x> {
    pub(crate) fn of(xml: &'x str) -> Self {
        Self {
            xml,
            pieces: Vec::new(),
        }
    }

    pub(crate) fn put(&mut self, range: Range<usize>, text: String) {
        self.pieces.push((range, text));
    }

    pub(crate) fn insert(&mut self, at: usize, text: String) {
        self.put(at..at, text);
    }

    pub(crate) fn cut(&mut self, range: Range<usize>) {
        self.put(range, String::new());
    }

    pub(crate) fn done(mut self) -> String {
        self.pieces.sort_by_key(|(range, _)| range.start);
        let mut text = String::with_capacity(self.xml.len());
        let mut from = 0;
        for (range, piece) in &self.pieces {
            debug_assert!(range.start >= from, "one piece lies inside another");
            text.push_str(&self.xml[from..range.start]);
            text.push_str(piece);
            from = range.end;
        }
        text.push_str(&self.xml[from..]);
        text
    }
}

#[cfg(test)]
mod tests;
