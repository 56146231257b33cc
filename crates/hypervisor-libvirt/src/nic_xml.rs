//! Network cards in a definition: written, read, and changed in place. Pure: XML in, XML out.
//!
//! A card of ours carries its id as a user alias of libvirt (`ua-nic-0`). One that has none, because an older program or an
//! administrator wrote it, is found by its hardware address.

use crate::disk_xml::OUR_NAMES;
use crate::domain_xml::{self, Out, by_itself, empty};
use fleetward_hypervisor::{NicDefinition, NicDeviceChange, NicSeen};
use fleetward_model::change::NicPart;
use fleetward_model::network::NetworkPlace;
use fleetward_model::vm::NicSpec;
use fleetward_model::{DeviceId, NicLink};
use roxmltree::{Document, Node};
use std::io;

/// Parts of a card that are elements of their own.
const OWNED: [&str; 7] = [
    "source",
    "virtualport",
    "mac",
    "model",
    "vlan",
    "link",
    "filterref",
];

/// The alias of a device; none where its id has characters that libvirt does not take there.
pub(crate) fn alias(id: &DeviceId) -> Option<String> {
    let text = id.as_str();
    (!text.contains('.')).then(|| format!("{OUR_NAMES}{text}"))
}

/// A whole card.
pub(crate) fn element(nic: &NicDefinition) -> String {
    by_itself(|out| write(out, &nic.spec, &nic.place))
}

pub(crate) fn write(out: &mut Out, nic: &NicSpec, place: &NetworkPlace) -> io::Result<()> {
    domain_xml::element(out, "interface", &[("type", kind(place))], |out| {
        for part in [
            "mac",
            "source",
            "virtualport",
            "model",
            "vlan",
            "link",
            "filterref",
        ] {
            write_part(out, part, nic, place)?;
        }
        match alias(&nic.id) {
            Some(alias) => empty(out, "alias", &[("name", &alias)]),
            None => Ok(()),
        }
    })
}

/// Open vSwitch's bridges are bridges to libvirt, with a port of another kind.
const fn kind(place: &NetworkPlace) -> &'static str {
    match place {
        NetworkPlace::Nat => "user",
        NetworkPlace::Bridge { .. } | NetworkPlace::Openvswitch { .. } => "bridge",
    }
}

/// One element of a card, where the card has it.
fn write_part(out: &mut Out, part: &str, nic: &NicSpec, place: &NetworkPlace) -> io::Result<()> {
    match (part, place) {
        ("source", _) => match place.bridge() {
            Some(bridge) => empty(out, "source", &[("bridge", bridge)]),
            None => Ok(()),
        },
        ("virtualport", NetworkPlace::Openvswitch { .. }) => {
            empty(out, "virtualport", &[("type", "openvswitch")])
        }
        ("mac", _) => empty(out, "mac", &[("address", &nic.mac)]),
        ("model", _) => empty(out, "model", &[("type", nic.model.into_str())]),
        ("vlan", _) => match nic.vlan {
            Some(vlan) => domain_xml::element(out, "vlan", &[], |out| {
                empty(out, "tag", &[("id", &vlan.to_string())])
            }),
            None => Ok(()),
        },
        ("link", _) => match nic.link {
            NicLink::Up => Ok(()),
            NicLink::Down => empty(out, "link", &[("state", "down")]),
        },
        ("filterref", _) => match nic.filter {
            Some(filter) => empty(out, "filterref", &[("filter", filter.into_str())]),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The elements that say a part.
const fn elements_of(part: NicPart) -> &'static [&'static str] {
    match part {
        NicPart::Network => &["source", "virtualport"],
        NicPart::Model => &["model"],
        NicPart::Mac => &["mac"],
        NicPart::Vlan => &["vlan"],
        NicPart::Link => &["link"],
        NicPart::Filter => &["filterref"],
    }
}

/// A card that is there, with the named parts as in `to`; none named: all parts. Everything else of it stays.
pub(crate) fn changed(
    xml: &str,
    card: Node<'_, '_>,
    to: &NicDefinition,
    parts: &[NicPart],
) -> String {
    let elements: Vec<&str> = match parts {
        [] => OWNED.to_vec(),
        parts => parts
            .iter()
            .flat_map(|part| elements_of(*part))
            .copied()
            .collect(),
    };
    rewritten(xml, card, &elements, &to.spec, &to.place)
}

/// A card that is there, connected to something else.
pub(crate) fn connected(xml: &str, card: Node<'_, '_>, place: &NetworkPlace) -> String {
    // Only its connection is written, which does not depend on the rest.
    let nothing = NicSpec::first(fleetward_model::vm::Profile::Linux, "");
    rewritten(xml, card, elements_of(NicPart::Network), &nothing, place)
}

fn rewritten(
    xml: &str,
    card: Node<'_, '_>,
    elements: &[&str],
    nic: &NicSpec,
    place: &NetworkPlace,
) -> String {
    let mut text = String::from("<interface");
    for attribute in card.attributes() {
        let value = match (attribute.name(), elements.contains(&"source")) {
            ("type", true) => kind(place),
            _ => attribute.value(),
        };
        let value = quick_xml::escape::escape(value);
        text.push_str(&format!(" {}='{value}'", attribute.name()));
    }
    text.push('>');
    for element in elements {
        text.push_str(&by_itself(|out| write_part(out, element, nic, place)));
    }
    for child in card.children() {
        if !(child.is_element() && elements.contains(&child.tag_name().name())) {
            text.push_str(&xml[child.range()]);
        }
    }
    text.push_str("</interface>");
    text
}

/// Whether the text is of a card that is otherwise than this one; what is so already is left alone.
pub(crate) fn is_another(card: Node<'_, '_>, now: &str) -> bool {
    let Ok(document) = Document::parse(now) else {
        return true;
    };
    seen(card) != seen(document.root_element())
}

/// The card that a change is about.
pub(crate) fn find<'a, 'i>(
    devices: Node<'a, 'i>,
    change: &NicDeviceChange,
) -> Option<Node<'a, 'i>> {
    let named = cards(devices).find(|card| id_of(*card).as_ref() == Some(&change.id));
    named.or_else(|| {
        let unnamed = |card: &Node<'a, 'i>| id_of(*card).is_none();
        change
            .macs
            .iter()
            .find_map(|mac| by_mac(devices, mac).filter(unnamed))
    })
}

/// The card with that address.
pub(crate) fn by_mac<'a, 'i>(devices: Node<'a, 'i>, mac: &str) -> Option<Node<'a, 'i>> {
    cards(devices).find(|card| mac_of(*card).is_some_and(|has| has.eq_ignore_ascii_case(mac)))
}

/// Every card of a definition.
pub(crate) fn all(devices: Node<'_, '_>) -> Vec<NicSeen> {
    cards(devices).filter_map(seen).collect()
}

/// What a card is. None: it has no address, as libvirt never writes one.
pub(crate) fn seen(card: Node<'_, '_>) -> Option<NicSeen> {
    let attribute =
        |element: &str, name: &str| Some(child(card, element)?.attribute(name)?.to_owned());
    let tags = child(card, "vlan")
        .into_iter()
        .flat_map(|vlan| vlan.children());
    let mut tags = tags.filter(|tag| tag.has_tag_name("tag"));
    Some(NicSeen {
        id: id_of(card),
        mac: mac_of(card)?.to_ascii_lowercase(),
        model: attribute("model", "type").unwrap_or_default(),
        place: place_of(card),
        vlan: tags
            .next()
            .and_then(|tag| tag.attribute("id")?.parse().ok()),
        link: match attribute("link", "state").as_deref() {
            Some("down") => NicLink::Down,
            _ => NicLink::Up,
        },
        filter: attribute("filterref", "filter"),
    })
}

fn place_of(card: Node<'_, '_>) -> Option<NetworkPlace> {
    let kind = card.attribute("type")?;
    if kind == "user" {
        return Some(NetworkPlace::Nat);
    }
    if kind != "bridge" {
        return None;
    }
    let bridge = child(card, "source")?.attribute("bridge")?.to_owned();
    let port = child(card, "virtualport").and_then(|port| port.attribute("type"));
    Some(match port {
        Some("openvswitch") => NetworkPlace::Openvswitch { bridge },
        _ => NetworkPlace::Bridge { bridge },
    })
}

fn cards<'a, 'i: 'a>(devices: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    devices
        .children()
        .filter(|device| device.has_tag_name("interface"))
}

fn mac_of<'a>(card: Node<'a, '_>) -> Option<&'a str> {
    child(card, "mac")?.attribute("address")
}

/// The id that a definition of ours gives a device.
pub(crate) fn id_of(device: Node<'_, '_>) -> Option<DeviceId> {
    let alias = child(device, "alias")?.attribute("name")?;
    alias.strip_prefix(OUR_NAMES)?.parse().ok()
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|c| c.has_tag_name(name))
}
