//! What a guest is to find at its first boot: cloud-init's NoCloud, Windows' answer file.
//!
//! The texts may hold passwords. They go to the VM's host and are nowhere in a job, a log or a store.

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use utoipa::ToSchema;
use zeroize::Zeroizing;

/// Files for the guest's first boot, on a small medium with the label `cidata`.
///
/// In `user_data` and `unattend` a placeholder such as `{{fleetward.name}}` stands for a value of this VM: `name`, `id`,
/// `host_name`, `computer_name`, `mac`, `address`, `prefix`, `gateway`, or one of `values`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// Public keys, a line each as in `authorized_keys` (OpenSSH, sshd(8)), for the guest's first user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// cloud-init's user data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub user_data: Option<SeedText>,
    /// Windows' answer file, `autounattend.xml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub unattend: Option<SeedText>,
    /// The address of its first network card; none: by DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SeedAddress>,
    /// Values of placeholders of one's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub values: BTreeMap<String, SeedText>,
}

/// A fixed address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SeedAddress {
    /// Address and length of the network's prefix, `10.0.0.5/24`.
    #[schema(value_type = String, example = "10.0.0.5/24")]
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<IpAddr>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<IpAddr>,
}

/// A text that may be secret: zeroed after use, never shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct SeedText(Zeroizing<String>);

impl Seed {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl SeedText {
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The text itself, for whoever writes the medium.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SeedText {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl Serialize for SeedText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Debug for SeedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeedText(redacted)")
    }
}
