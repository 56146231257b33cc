//! Networks of hosts, and what a network card is on one: VLANs, links, filters, hardware addresses.

use crate::spec::NicSpec;
use crate::{DeviceId, NetworkName};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

/// The number of a VLAN, 1 to 4094 (IEEE 802.1Q).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(try_from = "u16", into = "u16")]
#[schema(value_type = u16, minimum = 1, maximum = 4094)]
pub struct VlanId(u16);

impl TryFrom<u16> for VlanId {
    type Error = String;
    fn try_from(number: u16) -> Result<Self, String> {
        match number {
            1..=4094 => Ok(Self(number)),
            _ => Err(format!("a VLAN has a number from 1 to 4094, not {number}")),
        }
    }
}

impl From<VlanId> for u16 {
    fn from(vlan: VlanId) -> u16 {
        vlan.0
    }
}

impl FromStr for VlanId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<u16>()
            .map_err(|_| format!("{text:?} is not the number of a VLAN"))?
            .try_into()
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether the cable of a network card is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display, strum::EnumString, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum NicLink {
    #[default]
    Up,
    Down,
}

impl NicLink {
    pub fn is_up(&self) -> bool {
        *self == Self::Up
    }
}

/// What a host lets pass of what the guest sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::IntoStaticStr, strum::Display, strum::EnumString, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum NicFilter {
    /// libvirt's filter of this name: nothing that pretends to come from another MAC or IP address.
    CleanTraffic,
}

/// A hardware address of a network card: unicast, lower case, `52:54:00:xx:xx:xx` where Fleetward made it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "52:54:00:12:34:56")]
pub struct Mac(String);

impl Mac {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Mac {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a hardware address such as 52:54:00:12:34:56");
        let mut bytes = Vec::with_capacity(6);
        for part in text.split([':', '-']) {
            if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            bytes.push(u8::from_str_radix(part, 16).map_err(|_| wrong())?);
        }
        let bytes: [u8; 6] = bytes.try_into().map_err(|_| wrong())?;
        if bytes[0] & 1 == 1 {
            return Err(format!(
                "{text} is the address of a group of cards (the lowest bit of its first byte is 1), and cannot be that of one"
            ));
        }
        if bytes == [0; 6] {
            return Err(wrong());
        }
        let text: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(text.join(":")))
    }
}

impl TryFrom<String> for Mac {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a network is on one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NetworkPlace {
    /// QEMU's user-mode network.
    #[default]
    Nat,
    /// A Linux bridge.
    Bridge { bridge: String },
    /// A bridge of Open vSwitch.
    Openvswitch { bridge: String },
}

impl NetworkPlace {
    /// `nat`, `bridge`, `openvswitch`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Bridge { .. } => "bridge",
            Self::Openvswitch { .. } => "openvswitch",
        }
    }

    /// The bridge's name on its host.
    pub fn bridge(&self) -> Option<&str> {
        match self {
            Self::Nat => None,
            Self::Bridge { bridge } | Self::Openvswitch { bridge } => Some(bridge),
        }
    }
}

/// A network that a host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkFacts {
    pub name: NetworkName,
    #[serde(flatten)]
    pub place: NetworkPlace,
    /// Whether a card in it can have a VLAN.
    pub vlans: bool,
    /// Whether a card in it can have a filter.
    #[serde(default)]
    pub filters: bool,
    /// Why nothing can be connected to it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A network card as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicObserved {
    /// One that Fleetward did not give the VM is named after its address: `mac-525400123456`.
    pub id: DeviceId,
    /// None: it is connected to something that its host does not offer as a network.
    pub network: Option<NetworkName>,
    /// The bridge it is connected to, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    pub mac: String,
    /// `virtio`, `e1000e`, or what an administrator chose.
    pub model: String,
    pub vlan: Option<VlanId>,
    pub link: NicLink,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// IP addresses of the guest there, as far as they are known.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// As specified, where its host does not tell.
impl From<&NicSpec> for NicObserved {
    fn from(nic: &NicSpec) -> Self {
        Self {
            id: nic.id.clone(),
            network: Some(nic.network.clone()),
            bridge: None,
            mac: nic.mac.clone(),
            model: nic.model.into_str().to_owned(),
            vlan: nic.vlan,
            link: nic.link,
            filter: nic.filter.map(|filter| filter.to_string()),
            addresses: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_card_has_one_spelling_of_its_address() {
        for text in ["52:54:00:AB:cd:01", "52-54-00-ab-CD-01"] {
            assert_eq!(
                text.parse::<Mac>().expect(text).as_str(),
                "52:54:00:ab:cd:01"
            );
        }
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:01:02",
            "52:54:00:ab:cd:g1",
            "+2:54:00:ab:cd:01",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "525400abcd01",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_vlan_has_a_number_that_a_frame_can_carry() {
        for bad in ["0", "4095", "-1", "x", ""] {
            assert!(bad.parse::<VlanId>().is_err(), "{bad}");
        }
        assert_eq!("4094".parse::<VlanId>().map(u16::from), Ok(4094));
    }
}
