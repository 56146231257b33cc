//! `fleetward network ...`, `fleetward vm nic ...`, and the network cards of `fleetward vm create`.

use super::{Rows, Wait};
use clap::{Args, Subcommand};
use fleetward_model::change::NicAsked;
use fleetward_model::spec::NicModel;
use fleetward_model::{DeviceId, Mac, NetworkName, NicFilter, NicLink, VlanId, VmName};
use std::str::FromStr;

#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Lists the networks that hosts offer, and on which hosts
    List {
        #[command(flatten)]
        rows: Rows,
    },
}

#[derive(Debug, Subcommand)]
pub enum NicCommand {
    /// Adds a network card; a running VM gets it at once, where its machine has a free slot
    Add {
        name: VmName,
        /// One of `network list`
        network: NetworkName,
        #[command(flatten)]
        parts: NicParts,
        /// What its host lets pass from the guest: clean-traffic
        #[arg(long)]
        filter: Option<NicFilter>,
        /// A VLAN of the network, 1 to 4094
        #[arg(long, value_name = "N")]
        vlan: Option<VlanId>,
        #[command(flatten)]
        how: NicHow,
    },
    /// Changes a network card; what a running VM cannot take now, it has at its next start
    Set {
        name: VmName,
        /// The card, such as nic-0: `vm show` lists them
        nic: DeviceId,
        /// Another network
        #[arg(long)]
        network: Option<NetworkName>,
        #[command(flatten)]
        parts: NicParts,
        /// What its host lets pass from the guest: clean-traffic, or none
        #[arg(long, value_name = "FILTER|none", value_parser = or_none::<NicFilter>)]
        filter: Option<Choice<NicFilter>>,
        /// A VLAN of the network, 1 to 4094, or none
        #[arg(long, value_name = "N|none", value_parser = or_none::<VlanId>)]
        vlan: Option<Choice<VlanId>>,
        #[command(flatten)]
        how: NicHow,
    },
    /// Removes a network card; a running guest is asked to let it go
    Remove {
        name: VmName,
        /// The card, such as nic-0: `vm show` lists them
        nic: DeviceId,
        #[command(flatten)]
        how: NicHow,
    },
}

/// Parts of a card that are named alike when it is added and when it is changed.
#[derive(Debug, Args)]
pub struct NicParts {
    /// What it presents itself to the guest as: virtio or e1000e; default: the profile's
    #[arg(long, value_parser = parse_model)]
    pub model: Option<NicModel>,
    /// Its hardware address; default: a new one
    #[arg(long)]
    pub mac: Option<Mac>,
    /// Whether its cable is in: up or down
    #[arg(long)]
    pub link: Option<NicLink>,
}

#[derive(Debug, Args)]
pub struct NicHow {
    /// Says what would be changed, and changes nothing
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: Wait,
}

/// A value, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<T> {
    Some(T),
    None,
}

impl<T> From<Choice<T>> for Option<T> {
    fn from(choice: Choice<T>) -> Self {
        match choice {
            Choice::Some(value) => Some(value),
            Choice::None => None,
        }
    }
}

fn or_none<T: FromStr>(text: &str) -> Result<Choice<T>, String>
where
    T::Err: std::fmt::Display,
{
    match text {
        "none" => Ok(Choice::None),
        text => text
            .parse()
            .map(Choice::Some)
            .map_err(|error: T::Err| error.to_string()),
    }
}

fn parse_model(text: &str) -> Result<NicModel, String> {
    super::parse_word(text).map_err(|_| "the models are virtio and e1000e".to_owned())
}

/// `lan`, `lan,vlan=7,mac=52:54:00:12:34:56`.
pub(super) fn parse_nic(text: &str) -> Result<NicAsked, String> {
    let mut parts = text.split(',');
    let network = parts.next().unwrap_or_default();
    let mut nic = NicAsked {
        network: network.parse().map_err(|error| format!("{error}"))?,
        model: None,
        mac: None,
        vlan: None,
        link: NicLink::Up,
        filter: None,
    };
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is not of the form KEY=VALUE"))?;
        match key {
            "model" => nic.model = Some(parse_model(value)?),
            "mac" => nic.mac = Some(value.parse()?),
            "vlan" => nic.vlan = Some(value.parse()?),
            "link" => {
                nic.link = value
                    .parse()
                    .map_err(|_| "a link is up or down".to_owned())?
            }
            "filter" => {
                let filter = value.parse();
                nic.filter = Some(filter.map_err(|_| "the filter is clean-traffic".to_owned())?);
            }
            _ => {
                return Err(format!(
                    "{key:?} is none of model, mac, vlan, link and filter"
                ));
            }
        }
    }
    Ok(nic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_a_network_with_what_is_said_of_it() {
        let nic =
            parse_nic("lan,vlan=7,model=e1000e,mac=52-54-00-AA-BB-CC,link=down").expect("a card");
        assert_eq!(nic.network.as_str(), "lan");
        assert_eq!(nic.vlan.map(u16::from), Some(7));
        assert_eq!(nic.model, Some(NicModel::E1000e));
        assert_eq!(nic.mac.expect("given").as_str(), "52:54:00:aa:bb:cc");
        assert_eq!(nic.link, NicLink::Down);
        for (bad, word) in [
            ("", "empty"),
            ("lan,vlan", "KEY=VALUE"),
            ("lan,vlan=0", "4094"),
            ("lan,colour=red", "colour"),
            ("lan,model=rtl8139", "virtio"),
            ("lan,mac=01:00:5e:00:00:01", "group"),
        ] {
            let error = parse_nic(bad).expect_err(bad);
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
