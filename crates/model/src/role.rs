//! What administrators may do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The role of an administrator. Rights over keys (`keeper`) are separate from rights over VMs (`operator`); `admin` has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display, strum::EnumString, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "snake_case")]
pub enum Role {
    /// Sees everything that is not secret.
    Viewer,
    /// Also creates, starts, moves and deletes VMs.
    Operator,
    /// Also handles guardians, grants and exports, but no VMs.
    Keeper,
    /// Everything, the fleet itself included.
    Admin,
}

impl Role {
    /// Whether a caller of this role may use an endpoint that needs `needed`.
    pub const fn allows(self, needed: Self) -> bool {
        match (self, needed) {
            (Self::Admin, _) | (_, Self::Viewer) => true,
            (Self::Operator, Self::Operator) | (Self::Keeper, Self::Keeper) => true,
            (Self::Viewer | Self::Operator | Self::Keeper, _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::VariantArray;

    #[test]
    fn keys_and_vms_are_separate_rights() {
        use Role::{Admin, Keeper, Operator, Viewer};
        let may = |role: Role| -> Vec<Role> {
            let all = Role::VARIANTS.iter().copied();
            all.filter(|needed| role.allows(*needed)).collect()
        };
        assert_eq!(may(Viewer), [Viewer]);
        assert_eq!(may(Operator), [Viewer, Operator]);
        assert_eq!(may(Keeper), [Viewer, Keeper]);
        assert_eq!(may(Admin), Role::VARIANTS);
        for role in Role::VARIANTS {
            assert_eq!(role.to_string().parse(), Ok(*role));
        }
    }
}
