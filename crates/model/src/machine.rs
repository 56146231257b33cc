//! What a VM's machine is told beside its size and its devices: what its firmware tries first, and which time its clock
//! keeps.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the firmware tries first. The other disks and drives follow, so that an empty disk leads to the installer.
///
/// A TPM measures the order into PCR 1 and each attempt into PCR 4 (TCG PC Client Platform Firmware Profile, PCR usage). With the disks first, the measurements of a guest that boots from its disk stay the same whatever
/// lies in its drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display, strum::EnumString, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum BootFirst {
    #[default]
    Disk,
    /// Its drives.
    Iso,
    /// Its network cards.
    Network,
}

impl BootFirst {
    /// The place of a kind of device in the order, from 0; none: the firmware does not try it.
    pub const fn rank(self, device: Self) -> Option<u8> {
        match (self, device) {
            (Self::Disk, Self::Disk) | (Self::Iso, Self::Iso) | (Self::Network, Self::Network) => {
                Some(0)
            }
            (Self::Disk, Self::Iso) | (Self::Iso | Self::Network, Self::Disk) => Some(1),
            (Self::Network, Self::Iso) => Some(2),
            (Self::Disk | Self::Iso, Self::Network) => None,
        }
    }

    /// Whether it is what a VM has where nothing else was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Which time the machine's clock keeps: Windows expects local time, everything else UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display, strum::EnumString, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Clock {
    Utc,
    /// The host's local time.
    Local,
}

/// What a machine has, or is defined with, of these. None: it is otherwise, or its host does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct MachineSettings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootFirst>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::VariantArray;

    #[test]
    fn what_is_first_comes_first_and_disks_are_always_tried() {
        for &first in BootFirst::VARIANTS {
            assert_eq!(first.rank(first), Some(0));
            assert!(first.rank(BootFirst::Disk).is_some());
            assert!(first.rank(BootFirst::Iso).is_some());
        }
        // Nobody waits for a network that was not asked for.
        assert_eq!(BootFirst::Disk.rank(BootFirst::Network), None);
    }
}
