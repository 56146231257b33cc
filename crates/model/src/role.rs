//! What administrators may do.

use crate::GroupName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
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

/// Where a role holds: in the whole fleet, or in some groups of hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "Option<BTreeSet<GroupName>>",
    into = "Option<BTreeSet<GroupName>>"
)]
pub struct Scope(Option<BTreeSet<GroupName>>);

/// Why somebody's role cannot hold in some groups alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScopeProblem {
    #[error("no group is named; without a list the role holds in the whole fleet")]
    NoGroup,
    #[error(
        "role {0} is about the whole fleet; the roles viewer and operator can be limited to groups"
    )]
    WholeFleet(Role),
}

impl Scope {
    /// # Errors
    /// There are no groups in the list, or the role is not one of VMs and hosts.
    pub fn of(role: Role, groups: Option<BTreeSet<GroupName>>) -> Result<Self, ScopeProblem> {
        match (role, &groups) {
            (Role::Keeper | Role::Admin, Some(_)) => Err(ScopeProblem::WholeFleet(role)),
            _ => Self::try_from(groups),
        }
    }

    /// The groups, if there are limits.
    pub fn groups(&self) -> Option<&BTreeSet<GroupName>> {
        self.0.as_ref()
    }

    pub fn covers(&self, group: &GroupName) -> bool {
        self.0.as_ref().is_none_or(|groups| groups.contains(group))
    }
}

/// As it is told: `the whole fleet`, or the groups.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(groups) = &self.0 else {
            return f.write_str("the whole fleet");
        };
        for (n, group) in groups.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{group}")?;
        }
        Ok(())
    }
}

impl TryFrom<Option<BTreeSet<GroupName>>> for Scope {
    type Error = ScopeProblem;

    fn try_from(groups: Option<BTreeSet<GroupName>>) -> Result<Self, ScopeProblem> {
        match groups {
            Some(groups) if groups.is_empty() => Err(ScopeProblem::NoGroup),
            groups => Ok(Self(groups)),
        }
    }
}

impl From<Scope> for Option<BTreeSet<GroupName>> {
    fn from(scope: Scope) -> Self {
        scope.0
    }
}

/// What somebody may do, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    pub role: Role,
    /// In records of before there were limits: the whole fleet.
    #[serde(default, rename = "groups")]
    pub scope: Scope,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_without_a_group_is_no_right_to_everything() {
        let groups: BTreeSet<GroupName> = ["lab".parse().expect("a name")].into();
        let limited = Scope::of(Role::Operator, Some(groups.clone())).expect("limited");
        assert!(limited.covers(&"lab".parse().expect("a name")));
        assert!(!limited.covers(&"default".parse().expect("a name")));
        for bad in [
            r#"{"role":"viewer","groups":[]}"#,
            r#"{"role":"viewer","groups":["../x"]}"#,
        ] {
            assert!(serde_json::from_str::<Rights>(bad).is_err(), "{bad}");
        }
        let former: Rights = serde_json::from_str(r#"{"role":"viewer"}"#).expect("readable");
        assert_eq!(former.scope, Scope::default());
        for role in [Role::Keeper, Role::Admin] {
            let refused = Scope::of(role, Some(groups.clone()));
            assert_eq!(refused, Err(ScopeProblem::WholeFleet(role)));
            Scope::of(role, None).expect("in the whole fleet");
        }
    }
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
