//! The sender of a request.
//!
//! [`serve`](crate::serve) adds a [`Peer`] to the extensions of every request, and handlers take it as an argument. A
//! request without one is refused, because this crate did not accept its connection.

use crate::identity::Identity;
use axum::extract::FromRequestParts;
use fleetward_model::role::{Rights, Role};
use fleetward_model::{GroupName, TokenName, UserName};
use http::StatusCode;
use http::request::Parts;
use std::collections::BTreeSet;
use std::fmt;

/// The sender of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Over TLS without a certificate: a joining host, or a stranger.
    Anonymous,
    /// Over TLS with a certificate of the fleet.
    Member(Identity),
    /// Over TLS with an API token.
    Program {
        /// The token's name.
        token: TokenName,
        /// With which rights.
        rights: Rights,
    },
    /// Over TLS with a session: a person who has logged in.
    Person {
        /// Who.
        user: UserName,
        /// With which rights.
        rights: Rights,
    },
    /// Over the Unix socket, whose file permissions decide who may open it.
    Local {
        /// The user id of the process at the other end.
        uid: u32,
        /// Its process id, 0 if the kernel did not provide it.
        pid: i32,
    },
}

impl Peer {
    /// The member of the fleet, if it is one.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Member(identity) => Some(identity),
            Self::Anonymous | Self::Program { .. } | Self::Person { .. } | Self::Local { .. } => {
                None
            }
        }
    }

    /// The role of an administrator. Local administrators have every right; the controller and hosts
    /// are no administrators.
    pub fn role(&self) -> Option<Role> {
        match self {
            Self::Local { .. } => Some(Role::Admin),
            Self::Member(Identity::Admin { role, .. }) => Some(*role),
            Self::Program { rights, .. } | Self::Person { rights, .. } => Some(rights.role),
            Self::Member(Identity::Controller | Identity::Host(_)) | Self::Anonymous => None,
        }
    }

    /// The groups of hosts in which the role holds; none: the whole fleet.
    pub fn groups(&self) -> Option<&BTreeSet<GroupName>> {
        match self {
            Self::Program { rights, .. } | Self::Person { rights, .. } => rights.scope.groups(),
            Self::Anonymous | Self::Member(_) | Self::Local { .. } => None,
        }
    }
}

/// The form in audit records.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::Member(Identity::Controller) => f.write_str("controller"),
            Self::Member(Identity::Host(name)) => write!(f, "host:{name}"),
            Self::Member(Identity::Admin { name, .. }) => write!(f, "admin:{name}"),
            Self::Program { token, .. } => write!(f, "token:{token}"),
            Self::Person { user, .. } => write!(f, "user:{user}"),
            Self::Local { uid, .. } => write!(f, "local:{uid}"),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, StatusCode> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or(StatusCode::UNAUTHORIZED)
    }
}
