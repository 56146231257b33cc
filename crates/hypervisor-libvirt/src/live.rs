//! Devices of a domain that runs: added, changed and removed after its definition was.
//!
//! ```text
//!  definition has it, domain not ──attach──► with the address that the definition gave it
//!  both have it, other parts ──────update──► what QEMU can change
//!  domain has it, definition not ──detach──► the guest is asked; it goes when the guest lets it go
//! ```
//! What is refused is no error: the definition has it, the domain has it at its next start, and the difference between the
//! two is what [`fleetward_hypervisor::Hypervisor::inspect`] shows.

use crate::boot_order;
use crate::host::failed;
use crate::nic_xml;
use fleetward_hypervisor::{DeviceChange, Error, NicDeviceChange, Result};
use fleetward_model::VmId;
use fleetward_model::change::NicPart;
use fleetward_model::network::NetworkPlace;
use roxmltree::{Document, Node};
use virt::domain::Domain;
use virt::error::ErrorNumber;

/// What is to be done, and the XML of the device that it is done with.
enum Call {
    Attach(String),
    Update(String),
    Detach(String),
}

/// Makes the running half of a domain what its definition is, in one device.
pub(crate) fn change(domain: &Domain, id: VmId, change: &DeviceChange) -> Result<()> {
    let running = xml(domain, virt_sys::VIR_DOMAIN_XML_SECURE)?;
    let next = xml(
        domain,
        virt_sys::VIR_DOMAIN_XML_SECURE | virt_sys::VIR_DOMAIN_XML_INACTIVE,
    )?;
    let (running, next) = (parse(&running, id)?, parse(&next, id)?);
    let (Some(running), Some(next)) = (devices(&running), devices(&next)) else {
        return Ok(());
    };
    let call = match change {
        DeviceChange::Nic(change) => nic_call(running, next, change),
    };
    let Some(call) = call else { return Ok(()) };
    let flags = virt_sys::VIR_DOMAIN_AFFECT_LIVE;
    let (attempt, done) = match &call {
        Call::Attach(xml) => ("add", domain.attach_device_flags(xml, flags)),
        Call::Update(xml) => ("change", domain.update_device_flags(xml, flags)),
        Call::Detach(xml) => ("remove", domain.detach_device_flags(xml, flags)),
    };
    match done {
        Ok(_) => Ok(()),
        // It stopped meanwhile, and starts with what its definition says.
        Err(error) if error.code() == ErrorNumber::NoDomain => Err(Error::NoDomain(id)),
        Err(error) => {
            tracing::info!(vm = %id, because = error.message(), "not possible to {attempt} a device of the running VM; it waits for the next start");
            Ok(())
        }
    }
}

fn nic_call(running: Node<'_, '_>, next: Node<'_, '_>, change: &NicDeviceChange) -> Option<Call> {
    let text = |node: Node<'_, '_>| node.document().input_text()[node.range()].to_owned();
    let there = nic_xml::find(running, change);
    let defined = nic_xml::find(next, change);
    match (there, &change.to) {
        // With its place in the definition: it is the same card in the same slot after the next start.
        (None, Some(to)) => Some(Call::Attach(match defined {
            // Places in the boot order are the definition's: in the running domain another device may have this one.
            Some(defined) => boot_order::without_place(&text(defined)),
            None => nic_xml::element(to),
        })),
        (Some(there), Some(to)) => {
            let place = nic_xml::seen(there).and_then(|card| card.place);
            let stays = place.as_ref() == Some(&to.place);
            // libvirt 11.3 leaves the port in an Open vSwitch that works in user space: the guest would be in both networks.
            let cannot_leave = matches!(place, Some(NetworkPlace::Openvswitch { .. }));
            let goes = change.parts.contains(&NicPart::Network) && !cannot_leave;
            let cannot = |part: &NicPart| match part {
                NicPart::Model | NicPart::Mac => true,
                // A VLAN is one of the network that the card will be in.
                NicPart::Network | NicPart::Vlan => !(stays || goes),
                NicPart::Link | NicPart::Filter => false,
            };
            let parts: Vec<NicPart> = change
                .parts
                .iter()
                .copied()
                .filter(|part| !cannot(part))
                .collect();
            if parts.is_empty() {
                return None;
            }
            let xml = there.document().input_text();
            let now = nic_xml::changed(xml, there, to, &parts);
            nic_xml::is_another(there, &now).then_some(Call::Update(now))
        }
        (Some(there), None) => Some(Call::Detach(text(there))),
        (None, None) => None,
    }
}

fn xml(domain: &Domain, flags: u32) -> Result<String> {
    domain
        .get_xml_desc(flags)
        .map_err(failed("read the domain's definition"))
}

fn parse(xml: &str, id: VmId) -> Result<Document<'_>> {
    Document::parse(xml).map_err(|error| Error::CannotChange {
        id,
        because: format!("its definition cannot be read: {error}"),
    })
}

fn devices<'a, 'i>(document: &'a Document<'i>) -> Option<Node<'a, 'i>> {
    let mut children = document.root_element().children();
    children.find(|child| child.has_tag_name("devices"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_hypervisor::NicDefinition;
    use fleetward_model::spec::NicSpec;
    use fleetward_model::vm::Profile;

    const MAC: &str = "52:54:00:00:00:01";

    fn card(place: &NetworkPlace, vlan: Option<u16>) -> NicDefinition {
        NicDefinition {
            spec: NicSpec {
                vlan: vlan.map(|vlan| vlan.try_into().expect("a VLAN")),
                ..NicSpec::first(Profile::Linux, MAC)
            },
            place: place.clone(),
        }
    }

    /// The XML with which a running card becomes another in these parts; none: it waits.
    fn update(now: &NicDefinition, to: &NicDefinition, parts: &[NicPart]) -> Option<String> {
        let devices = |nic| format!("<devices>{}</devices>", nic_xml::element(nic));
        let (now, next) = (devices(now), devices(to));
        let (now, next) = [&now, &next]
            .map(|xml| Document::parse(xml).expect("XML"))
            .into();
        let change = NicDeviceChange {
            id: to.spec.id.clone(),
            macs: vec![MAC.to_owned()],
            to: Some(to.clone()),
            parts: parts.to_vec(),
        };
        match nic_call(now.root_element(), next.root_element(), &change)? {
            Call::Update(xml) => Some(xml),
            Call::Attach(xml) | Call::Detach(xml) => panic!("{xml}"),
        }
    }

    #[test]
    fn a_card_leaves_a_linux_bridge_at_once_and_an_open_vswitch_at_the_next_start() {
        let bridge = |name: &str| NetworkPlace::Bridge {
            bridge: name.to_owned(),
        };
        let (lan, back) = (bridge("br-lan"), bridge("br-back"));
        let vs = NetworkPlace::Openvswitch {
            bridge: "br-vs".to_owned(),
        };
        let both = &[NicPart::Network, NicPart::Vlan];
        for (to, vlan) in [(&back, None), (&vs, Some(7))] {
            let xml = update(&card(&lan, None), &card(to, vlan), both).expect("at once");
            assert!(xml.contains(to.bridge().expect("a bridge")), "{xml}");
        }
        // Neither the network nor, in the network that it stays in, another's VLAN.
        let now = card(&vs, Some(7));
        assert_eq!(update(&now, &card(&lan, None), both), None);
        assert_eq!(update(&now, &card(&lan, Some(8)), &[NicPart::Vlan]), None);
        assert!(update(&now, &card(&vs, Some(8)), &[NicPart::Vlan]).is_some());
    }
}
