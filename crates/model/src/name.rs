//! Names that users choose: parsed once at the edge, and safe in paths, XML and URLs.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

/// Longest name of any kind, in bytes.
pub const MAX_NAME: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a {kind} name must not be empty")]
    Empty { kind: &'static str },
    #[error("a {kind} name has at most {MAX_NAME} characters, this has {length}")]
    TooLong { kind: &'static str, length: usize },
    #[error(
        "a {kind} name starts with a letter or digit and holds only letters, digits, '.', '_' and '-', not {found:?}"
    )]
    Character { kind: &'static str, found: char },
}

fn check(kind: &'static str, text: &str) -> Result<(), NameError> {
    let Some(first) = text.chars().next() else {
        return Err(NameError::Empty { kind });
    };
    if text.len() > MAX_NAME {
        return Err(NameError::TooLong {
            kind,
            length: text.len(),
        });
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::Character { kind, found: first });
    }
    match text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
    {
        Some(found) => Err(NameError::Character { kind, found }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check($kind, &text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check($kind, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// A machine that runs VMs.
    HostName, "host"
);
name!(
    /// Hosts that may run each other's VMs.
    GroupName, "group"
);
name!(
    /// A virtual machine, unique in the fleet.
    VmName, "VM"
);
name!(
    /// A disk image in the controller's library.
    ImageName, "image"
);
name!(
    /// A VM without identity, to make VMs from.
    TemplateName, "template"
);
name!(
    /// A directory of volumes on a host.
    PoolName, "pool"
);
name!(
    /// An API token, by which a program comes in.
    TokenName, "token"
);
name!(
    /// A person who logs in with a password.
    UserName, "user"
);
name!(
    /// Where alerts are sent to.
    AlertTargetName, "alert target"
);
name!(
    /// The key of a label.
    LabelKey, "label"
);
name!(
    /// A disk, network card or drive of a VM; unique in the VM, and the same for as long as the VM has it.
    DeviceId, "device"
);
name!(
    /// What a network card is connected to.
    NetworkName, "network"
);

impl DeviceId {
    /// `nic-0`.
    pub(crate) fn numbered(kind: &str, number: usize) -> Self {
        format!("{kind}-{number}")
            .parse()
            .expect("made of permitted characters")
    }
}

impl NetworkName {
    /// Whether it is QEMU's own user-mode network, which every host has.
    pub fn is_nat(&self) -> bool {
        *self == Self::default()
    }
}

/// QEMU's user-mode network: the guest reaches out, nobody reaches in.
impl Default for NetworkName {
    fn default() -> Self {
        Self("nat".to_owned())
    }
}

impl Default for GroupName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl Default for PoolName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// Longest label value, in bytes.
pub const MAX_LABEL_VALUE: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_a_path_are_refused() {
        for bad in [
            "", ".", "..", "../x", "a/b", "a\0b", "-rf", "a b", "ä", "a\n",
        ] {
            assert!(bad.parse::<VmName>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(MAX_NAME + 1).parse::<VmName>().is_err());
        for good in ["a", "win11-01", "DESKTOP_3.old", &"a".repeat(MAX_NAME)] {
            assert!(good.parse::<VmName>().is_ok(), "{good:?}");
        }
    }
}
