//! The lab's network: a bridge in the switch's network namespace, with one link to each node. It is invisible to the
//! machine, so labs cannot collide and a dead lab leaves no link.
//!
//! A cut drops packets silently, like a cable pulled behind a switch: connections stay open until a time limit passes.
//! To cut off a node, its port is removed from the bridge. To cut a pair, each gets the other's address with an unused
//! hardware address.
//!
//! Guests have networks of their own beside it: for each a bridge in the switch that spans the hosts, and in each host a
//! second link to it, in a bridge `br-NAME`, of Linux or of Open vSwitch. Hosts have no address there.
//!
//! ```text
//!   guest ─ tap ─ br-lan ─ eth1   (host a)  ─┐
//!                                            ├─ span1 (switch), 10.0.0.1/8: where tests talk to guests from
//!   guest ─ tap ─ br-lan ─ eth1   (host b)  ─┘
//! ```

use std::process::Command;

use anyhow::{Result, bail};

use crate::openvswitch;
use crate::process::ProcessId;
use crate::programs::{run, tool};
use crate::record::{LabNetwork, address_of};

const BRIDGE: &str = "bridge";
/// Where tests talk to guests from; guests have addresses of 10/8, too.
const SPAN_ADDRESS: &str = "10.0.0.1/8";
const NOBODY: &str = "02:00:00:00:00:01";

pub(crate) fn make_bridge(switch: ProcessId) -> Result<()> {
    ip(switch, &["link", "set", "lo", "up"])?;
    ip(switch, &["link", "add", BRIDGE, "type", "bridge"])?;
    ip(switch, &["link", "set", BRIDGE, "up"])
}

/// Gives a node that was just switched on its link and address.
///
/// The card is the one it had before, as that of a machine that was without power for a while is. With another hardware
/// address all its peers would believe what they have learnt for up to a minute, and find nobody there.
pub(crate) fn plug_in(switch: ProcessId, node: ProcessId, index: u8) -> Result<()> {
    let (port, pid) = (port(index), node.pid.to_string());
    let address = format!("{}/24", address_of(index));
    let card = hardware_address(index);
    // The kernel removes the link of a dead node a moment after the node.
    let _ = ip(switch, &["link", "del", &port]);
    ip(
        switch,
        &[
            "link", "add", &port, "type", "veth", "peer", "name", "eth0", "address", &card,
            "netns", &pid,
        ],
    )?;
    ip(switch, &["link", "set", &port, "master", BRIDGE, "up"])?;
    ip(node, &["link", "set", "lo", "up"])?;
    ip(node, &["addr", "add", &address, "dev", "eth0"])?;
    ip(node, &["link", "set", "eth0", "up"])
}

/// The bridges that span the hosts, one for each network of guests.
pub(crate) fn make_spans(switch: ProcessId, networks: &[LabNetwork]) -> Result<()> {
    for number in 1..=networks.len() {
        let span = span(number);
        ip(switch, &["link", "add", &span, "type", "bridge"])?;
        ip(switch, &["link", "set", &span, "up"])?;
        if number == 1 {
            ip(switch, &["addr", "add", SPAN_ADDRESS, "dev", &span])?;
        }
    }
    Ok(())
}

/// Gives a host that was just switched on its links to the networks of guests. An Open vSwitch must run there already.
pub(crate) fn plug_in_guests(
    switch: ProcessId,
    node: ProcessId,
    index: u8,
    networks: &[LabNetwork],
) -> Result<()> {
    for (number, network) in (1..).zip(networks) {
        let (port, link) = (format!("span{number}port{index}"), format!("eth{number}"));
        let (pid, bridge) = (node.pid.to_string(), network.bridge());
        let _ = ip(switch, &["link", "del", &port]);
        ip(
            switch,
            &[
                "link", "add", &port, "type", "veth", "peer", "name", &link, "netns", &pid,
            ],
        )?;
        ip(
            switch,
            &["link", "set", &port, "master", &span(number), "up"],
        )?;
        if network.openvswitch {
            openvswitch::add_bridge(node, &bridge, &link)?;
        } else {
            ip(node, &["link", "add", &bridge, "type", "bridge"])?;
            ip(node, &["link", "set", &link, "master", &bridge])?;
        }
        ip(node, &["link", "set", &link, "up"])?;
        ip(node, &["link", "set", &bridge, "up"])?;
    }
    Ok(())
}

/// A command in the network of guests: what it sends comes from [`SPAN_ADDRESS`] and arrives at the guests' cards.
pub(crate) fn beside_guests(switch: ProcessId) -> Result<Command> {
    if !switch.is_alive() {
        bail!("the lab's switch is gone");
    }
    let mut command = Command::new(tool("nsenter")?);
    command.args(["-t", &switch.pid.to_string(), "-n", "--"]);
    Ok(command)
}

fn span(number: usize) -> String {
    format!("span{number}")
}

pub(crate) fn cut_off(switch: ProcessId, index: u8) -> Result<()> {
    ip(switch, &["link", "set", &port(index), "nomaster"])
}

pub(crate) fn is_cut_off(switch: ProcessId, index: u8) -> bool {
    ip_output(switch, &["-o", "link", "show", "dev", &port(index)])
        .is_ok_and(|text| !text.contains(&format!("master {BRIDGE}")))
}

pub(crate) fn cut_pair(one: (ProcessId, u8), other: (ProcessId, u8)) -> Result<()> {
    for (node, peer) in [(one.0, other.1), (other.0, one.1)] {
        let peer = address_of(peer);
        ip(
            node,
            &[
                "neigh",
                "replace",
                &peer,
                "lladdr",
                NOBODY,
                "nud",
                "permanent",
                "dev",
                "eth0",
            ],
        )?;
    }
    Ok(())
}

/// Undoes every cut that concerns the node.
pub(crate) fn heal(switch: ProcessId, node: (ProcessId, u8), peers: &[ProcessId]) -> Result<()> {
    ip(switch, &["link", "set", &port(node.1), "master", BRIDGE])?;
    ip(
        node.0,
        &["neigh", "flush", "dev", "eth0", "nud", "permanent"],
    )?;
    let address = address_of(node.1);
    for peer in peers {
        ip(
            *peer,
            &[
                "neigh",
                "flush",
                "dev",
                "eth0",
                "nud",
                "permanent",
                "to",
                &address,
            ],
        )?;
    }
    Ok(())
}

/// Of a locally administered range (IEEE 802, bit 1 of the first byte).
fn hardware_address(index: u8) -> String {
    format!("02:00:00:00:01:{index:02x}")
}

fn port(index: u8) -> String {
    format!("port{index}")
}

fn ip(node: ProcessId, arguments: &[&str]) -> Result<()> {
    ip_output(node, arguments).map(drop)
}

fn ip_output(node: ProcessId, arguments: &[&str]) -> Result<String> {
    if !node.is_alive() {
        bail!("the node is switched off");
    }
    let mut command = Command::new(tool("nsenter")?);
    command
        .args(["-t", &node.pid.to_string(), "-n", "--"])
        .arg(tool("ip")?)
        .args(arguments);
    Ok(String::from_utf8_lossy(&run(&mut command)?.stdout).into_owned())
}
