//! Clones: the choices for the TPM, and the warnings about them.

use crate::error::Finding;
use crate::{ErrorCode, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What TPM a clone has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CloneTpm {
    /// A new one with its own EK certificate: another identity.
    New,
    /// The source's, encrypted under a key of its own: the same identity twice.
    Copy,
    /// None.
    None,
}

impl CloneTpm {
    /// What is meant where nothing was said: a new one where the source has one.
    pub const fn or_default(asked: Option<Self>, source_has_tpm: bool) -> Self {
        match (asked, source_has_tpm) {
            (Some(choice), _) => choice,
            (None, true) => Self::New,
            (None, false) => Self::None,
        }
    }
}

/// What follows from a choice; none of it stands in the way.
pub fn warnings(source: &VmName, source_has_tpm: bool, choice: CloneTpm) -> Vec<Finding> {
    let loses = |how: &str| {
        Finding::warning(
            ErrorCode::TpmIdentityChanges,
            format!(
                "the clone {how}: it cannot open what {source} has sealed to its TPM \
                 (BitLocker without its recovery key, LUKS, Windows Hello, certificates)"
            ),
        )
    };
    match (source_has_tpm, choice) {
        (true, CloneTpm::New) => vec![loses("gets a new TPM with another identity")],
        (true, CloneTpm::None) => vec![loses("has no TPM")],
        (true, CloneTpm::Copy) => vec![Finding::warning(
            ErrorCode::TpmIdentityTwice,
            format!(
                "two machines now have the TPM identity of {source}: a verifier of its EK or its keys cannot tell them apart, and \
                 each opens what the other has sealed"
            ),
        )],
        (false, CloneTpm::New | CloneTpm::Copy | CloneTpm::None) => Vec::new(),
    }
}

/// What a deployment of a template whose source had a TPM must know.
pub fn deployment_warning(template: &str) -> Finding {
    Finding::warning(
        ErrorCode::TpmIdentityChanges,
        format!(
            "every VM made from template {template} has a TPM of its own: it cannot open what the template's source has \
             sealed to its TPM (BitLocker without its recovery key, LUKS, Windows Hello, certificates)"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clone_of_a_vm_without_a_tpm_goes_without_a_warning() {
        let name: VmName = "gold".parse().expect("a name");
        for choice in [CloneTpm::New, CloneTpm::Copy, CloneTpm::None] {
            assert_eq!(warnings(&name, true, choice).len(), 1, "{choice:?}");
            assert!(warnings(&name, false, choice).is_empty());
        }
        assert_eq!(CloneTpm::or_default(None, true), CloneTpm::New);
        assert_eq!(CloneTpm::or_default(None, false), CloneTpm::None);
    }
}
