//! What the firmware tries first, and the clock, in a definition: read and changed in place. Pure.
//!
//! ```text
//!  disk:     disks, drives
//!  iso:      drives, disks
//!  network:  network cards, disks, drives
//! ```
//! OVMF tries only devices that have a place in the order, so each disk and drive of ours gets one. An order that is none of these
//! is somebody's own: a device that comes stands outside it, and it stays until [`MachineChange::boot`] asks for another.
//!
//! [`MachineChange::boot`]: fleetward_model::change::MachineChange::boot

use crate::disk_xml::OUR_NAMES;
use crate::domain_edit::{Splices, append_child, child, devices, parse};
use fleetward_model::machine::{BootFirst, Clock, MachineSettings};
use roxmltree::Node;

/// What a definition says of both.
pub(crate) fn read(root: Node<'_, '_>) -> MachineSettings {
    let first = child(root, "devices").and_then(|devices| {
        let ordered = ordered(devices);
        ordered.first().map(|(_, kind)| *kind)
    });
    let of_kind = || match kinds(root).next()?.attribute("dev")? {
        "hd" => Some(BootFirst::Disk),
        "cdrom" => Some(BootFirst::Iso),
        "network" => Some(BootFirst::Network),
        _ => None,
    };
    let clock = child(root, "clock").and_then(|clock| match clock.attribute("offset")? {
        "utc" => Some(Clock::Utc),
        "localtime" => Some(Clock::Local),
        _ => None,
    });
    MachineSettings {
        boot: first.or_else(of_kind),
        clock,
    }
}

/// Whether the order is the one that Fleetward gives, though devices may be missing from it.
pub(crate) fn is_ours(root: Node<'_, '_>, first: BootFirst) -> bool {
    let Some(devices) = child(root, "devices") else {
        return false;
    };
    if kinds(root).next().is_some() {
        return false;
    }
    let ranks: Option<Vec<u8>> = ordered(devices)
        .into_iter()
        .map(|(_, kind)| first.rank(kind))
        .collect();
    ranks.is_some_and(|ranks| ranks.is_sorted())
}

/// The definition in that order: what has a place already stays before what has none.
pub(crate) fn with_first(xml: &str, first: BootFirst) -> Result<String, String> {
    let document = parse(xml)?;
    let root = document.root_element();
    let mut splices = Splices::of(xml);
    let kinds: Vec<Node<'_, '_>> = kinds(root).collect();
    for kind in &kinds {
        splices.cut(kind.range());
    }
    let devices = devices(root)?;
    let mut bootable: Vec<(u8, u32, Node<'_, '_>)> = devices
        .children()
        .filter_map(|device| {
            let rank = first.rank(kind_of(device)?)?;
            match place(device) {
                Some(place) => Some((rank, place, device)),
                // Somebody else's device that nobody gave a place, not even by its kind, stays without one.
                None => (is_named_by_us(device) || !kinds.is_empty()).then_some((
                    rank,
                    u32::MAX,
                    device,
                )),
            }
        })
        .collect();
    // What is alike keeps the order in which it stands.
    bootable.sort_by_key(|(rank, place, _)| (*rank, *place));
    let wanted = |device: Node<'_, '_>| {
        let at = bootable.iter().position(|(_, _, known)| *known == device)?;
        Some(at + 1)
    };
    for device in devices.children() {
        let now = child(device, "boot");
        match (now, wanted(device)) {
            (Some(_), Some(order)) if place(device) == u32::try_from(order).ok() => {}
            (Some(boot), Some(order)) => match boot.attribute_node("order") {
                Some(old) => splices.put(old.range_value(), order.to_string()),
                None => splices.put(boot.range(), element(order)),
            },
            (Some(boot), None) => splices.cut(boot.range()),
            (None, Some(order)) => append_child(&mut splices, device, &element(order)),
            (None, None) => {}
        }
    }
    Ok(splices.done())
}

/// A device's element without its place in the order.
pub(crate) fn without_place(element: &str) -> String {
    let Ok(document) = parse(element) else {
        return element.to_owned();
    };
    let mut splices = Splices::of(element);
    if let Some(boot) = child(document.root_element(), "boot") {
        splices.cut(boot.range());
    }
    splices.done()
}

/// The definition with a clock of that time; its timers stay.
pub(crate) fn with_clock(xml: &str, to: Clock) -> Result<String, String> {
    let document = parse(xml)?;
    let mut splices = Splices::of(xml);
    let clock = child(document.root_element(), "clock").ok_or("the definition has no clock")?;
    for attribute in clock.attributes() {
        match attribute.name() {
            "offset" => splices.put(attribute.range_value(), offset(to).to_owned()),
            // They belong to other offsets.
            _ => splices.cut(attribute.range()),
        }
    }
    Ok(splices.done())
}

/// libvirt's name of a clock's time.
pub(crate) const fn offset(clock: Clock) -> &'static str {
    match clock {
        Clock::Utc => "utc",
        Clock::Local => "localtime",
    }
}

/// The entries of an order by kinds of devices: libvirt's older form, which excludes the other one.
fn kinds<'a, 'i>(root: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    let of_os = child(root, "os").into_iter().flat_map(|os| os.children());
    of_os.filter(|node| node.has_tag_name("boot"))
}

fn element(order: usize) -> String {
    format!("<boot order='{order}'/>")
}

/// The devices with a place in the order, by it.
fn ordered<'a, 'i>(devices: Node<'a, 'i>) -> Vec<(Node<'a, 'i>, BootFirst)> {
    let mut places: Vec<(u32, Node<'_, '_>, BootFirst)> = devices
        .children()
        .filter_map(|device| Some((place(device)?, device, kind_of(device)?)))
        .collect();
    places.sort_by_key(|(place, _, _)| *place);
    places
        .into_iter()
        .map(|(_, device, kind)| (device, kind))
        .collect()
}

fn is_named_by_us(device: Node<'_, '_>) -> bool {
    let name = child(device, "alias").and_then(|alias| alias.attribute("name"));
    name.is_some_and(|name| name.starts_with(OUR_NAMES))
}

fn place(device: Node<'_, '_>) -> Option<u32> {
    child(device, "boot")?.attribute("order")?.parse().ok()
}

fn kind_of(device: Node<'_, '_>) -> Option<BootFirst> {
    match device.tag_name().name() {
        "interface" => Some(BootFirst::Network),
        "disk" => match device.attribute("device") {
            Some("cdrom") => Some(BootFirst::Iso),
            None | Some("disk" | "lun") => Some(BootFirst::Disk),
            Some(_) => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "<domain><os><type>hvm</type></os><clock offset='variable' adjustment='3'><timer name='rtc'/></clock>\
        <devices><disk device='disk'><target dev='vda'/><boot order='1'/></disk><disk device='cdrom'><target dev='sda'/>\
        <boot order='2'/></disk><disk device='disk'><target dev='vdb'/><alias name='ua-disk-1'/></disk><disk type='block' device='disk'>\
        <target dev='vdz'/></disk><interface type='user'><alias name='ua-nic-0'/></interface></devices></domain>";

    fn order(xml: &str) -> Vec<String> {
        let document = parse(xml).expect("XML");
        let ordered = ordered(child(document.root_element(), "devices").expect("there"));
        ordered
            .into_iter()
            .map(|(device, _)| match child(device, "target") {
                Some(target) => target.attribute("dev").expect("named").to_owned(),
                None => "nic".to_owned(),
            })
            .collect()
    }

    fn seen(xml: &str) -> MachineSettings {
        read(parse(xml).expect("XML").root_element())
    }

    #[test]
    fn every_disk_and_drive_gets_a_place() {
        for (first, wanted) in [
            (BootFirst::Disk, ["vda", "vdb", "sda"].as_slice()),
            (BootFirst::Iso, &["sda", "vda", "vdb"]),
            (BootFirst::Network, &["nic", "vda", "vdb", "sda"]),
        ] {
            let now = with_first(DOMAIN, first).expect("changed");
            assert_eq!(order(&now), wanted);
            assert_eq!(seen(&now).boot, Some(first));
            let document = parse(&now).expect("XML");
            let root = document.root_element();
            for other in [BootFirst::Disk, BootFirst::Iso, BootFirst::Network] {
                // Without a card that has a place, both are the same order.
                let alike = (first, other) == (BootFirst::Disk, BootFirst::Network);
                assert_eq!(
                    is_ours(root, other),
                    other == first || alike,
                    "{first} {other}"
                );
            }
            assert_eq!(
                with_first(&now, first).expect("again"),
                now,
                "and again nothing"
            );
            let back = with_first(&now, BootFirst::Disk).expect("changed back");
            assert_eq!(order(&back), ["vda", "vdb", "sda"]);
        }
    }

    #[test]
    fn an_order_of_somebodys_own_is_told_apart_and_given_up_when_asked() {
        let own = DOMAIN.replace("<alias name='ua-nic-0'/>", "<boot order='3'/>");
        let document = parse(&own).expect("XML");
        assert!(!is_ours(document.root_element(), BootFirst::Disk));
        assert_eq!(
            order(&with_first(&own, BootFirst::Disk).expect("changed")),
            ["vda", "vdb", "sda"]
        );
        let kinds = DOMAIN
            .replace("<boot order='1'/>", "")
            .replace("<boot order='2'/>", "")
            .replace(
                "hvm</type>",
                "hvm</type><boot dev='cdrom'/><boot dev='hd'/>",
            );
        assert_eq!(seen(&kinds).boot, Some(BootFirst::Iso));
        let by_kinds = parse(&kinds).expect("XML");
        assert!(!is_ours(by_kinds.root_element(), BootFirst::Disk));
        let now = with_first(&kinds, BootFirst::Iso).expect("changed");
        assert!(!now.contains("dev='hd'") && seen(&now).boot == Some(BootFirst::Iso));
    }

    #[test]
    fn a_clock_keeps_its_timers() {
        assert_eq!(seen(DOMAIN).clock, None);
        let now = with_clock(DOMAIN, Clock::Local).expect("changed");
        assert_eq!(seen(&now).clock, Some(Clock::Local));
        assert!(now.contains("<timer name='rtc'/>") && !now.contains("adjustment"));
        assert_eq!(
            seen(&with_clock(&now, Clock::Utc).expect("changed")).clock,
            Some(Clock::Utc)
        );
    }
}
