//! Decisions about key protectors as pure functions: who may be granted, what may replace what, when expiry matters.

use crate::endorsement::{AuthorityKey, Endorsement, EndorsementError};
use crate::guardian::{Guardian, GuardianError};
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::{GroupName, GuardianId};
use std::collections::BTreeSet;
use time::{Duration, OffsetDateTime};

pub use fleetward_model::guardian::CLOCK_TOLERANCE;

/// From this long before the end, lists and checks warn.
pub const EXPIRY_WARNING: Duration = fleetward_model::guardian::EXPIRY_WARNING;

/// Guardians whose expiry the caller has accepted, each by name. Empty unless somebody said so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpiredAllowed(BTreeSet<GuardianId>);

impl ExpiredAllowed {
    /// No expired guardian may be used.
    pub fn none() -> Self {
        Self::default()
    }

    /// These guardians may be used although expired.
    pub fn named(guardians: impl IntoIterator<Item = GuardianId>) -> Self {
        Self(guardians.into_iter().collect())
    }
}

/// Where a guardian's certificates stand in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    NotYet {
        not_before: OffsetDateTime,
    },
    Valid,
    /// Valid, and ends within [`EXPIRY_WARNING`].
    EndsSoon {
        not_after: OffsetDateTime,
    },
    Expired {
        not_after: OffsetDateTime,
    },
}

/// Why a guardian may not be granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantRefusal {
    #[error("the endorsement is about guardian {}, not {}", endorsed.short(), wanted.short())]
    OtherGuardian {
        endorsed: GuardianId,
        wanted: GuardianId,
    },
    #[error("guardian {} is endorsed for group {endorsed}, the VM belongs to group {wanted}", guardian.short())]
    OtherGroup {
        guardian: GuardianId,
        endorsed: GroupName,
        wanted: GroupName,
    },
    #[error("the endorsement of guardian {} ended at {not_after}", guardian.short())]
    EndorsementExpired {
        guardian: GuardianId,
        not_after: OffsetDateTime,
    },
    #[error("the endorsement of guardian {} starts at {issued}, which is in the future", guardian.short())]
    EndorsementNotYet {
        guardian: GuardianId,
        issued: OffsetDateTime,
    },
    #[error(transparent)]
    Certificate(#[from] CertificateRefusal),
}

/// Why what a controller sent as an endorsed guardian is not taken for one.
#[derive(Debug, thiserror::Error)]
pub enum AdmitRefusal {
    #[error("guardian {} cannot be used", guardian.short())]
    Guardian {
        guardian: GuardianId,
        #[source]
        source: GuardianError,
    },
    #[error("guardian {} has no endorsement that counts", guardian.short())]
    Endorsement {
        guardian: GuardianId,
        #[source]
        source: EndorsementError,
    },
    #[error(transparent)]
    Grant(#[from] GrantRefusal),
}

/// Why a guardian's certificates may not be used to create or grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateRefusal {
    #[error("guardian {} expired at {not_after}", guardian.short())]
    Expired {
        guardian: GuardianId,
        not_after: OffsetDateTime,
    },
    #[error("guardian {} is not valid before {not_before}", guardian.short())]
    NotYet {
        guardian: GuardianId,
        not_before: OffsetDateTime,
    },
}

/// Where `guardian` stands at `now`.
pub fn validity(guardian: &Guardian, now: OffsetDateTime) -> Validity {
    let (not_before, not_after) = (guardian.not_before(), guardian.not_after());
    if now > not_after {
        Validity::Expired { not_after }
    } else if now + CLOCK_TOLERANCE < not_before {
        Validity::NotYet { not_before }
    } else if now + EXPIRY_WARNING > not_after {
        Validity::EndsSoon { not_after }
    } else {
        Validity::Valid
    }
}

/// Whether `guardian` may own or be granted a key protector at `now`. Opening never asks this.
pub fn may_use(
    guardian: &Guardian,
    now: OffsetDateTime,
    allowed: &ExpiredAllowed,
) -> Result<(), CertificateRefusal> {
    match validity(guardian, now) {
        Validity::Valid | Validity::EndsSoon { .. } => Ok(()),
        Validity::Expired { .. } if allowed.0.contains(guardian.id()) => Ok(()),
        Validity::Expired { not_after } => Err(CertificateRefusal::Expired {
            guardian: guardian.id().clone(),
            not_after,
        }),
        Validity::NotYet { not_before } => Err(CertificateRefusal::NotYet {
            guardian: guardian.id().clone(),
            not_before,
        }),
    }
}

/// Whether a VM of `group` may be granted to `guardian`: the endorsement is about it, for that group, and in time.
pub fn may_grant(
    endorsement: &Endorsement,
    guardian: &Guardian,
    group: &GroupName,
    now: OffsetDateTime,
    allowed: &ExpiredAllowed,
) -> Result<(), GrantRefusal> {
    let statement = endorsement.statement();
    let id = || guardian.id().clone();
    if !statement.is_about(guardian) {
        return Err(GrantRefusal::OtherGuardian {
            endorsed: statement.guardian.clone(),
            wanted: id(),
        });
    }
    if statement.group != *group {
        return Err(GrantRefusal::OtherGroup {
            guardian: id(),
            endorsed: statement.group.clone(),
            wanted: group.clone(),
        });
    }
    if now > statement.not_after {
        return Err(GrantRefusal::EndorsementExpired {
            guardian: id(),
            not_after: statement.not_after,
        });
    }
    if now + CLOCK_TOLERANCE < statement.issued {
        return Err(GrantRefusal::EndorsementNotYet {
            guardian: id(),
            issued: statement.issued,
        });
    }
    may_use(guardian, now, allowed).map_err(GrantRefusal::from)
}

/// Turns what came over the wire into a guardian that a VM of `group` may be wrapped for, or says why not.
///
/// Everything is recomputed from the certificates and the authority's signature; the rest of `endorsed` is only hearsay.
pub fn admit(
    endorsed: &EndorsedGuardian,
    authority: &AuthorityKey,
    group: &GroupName,
    now: OffsetDateTime,
    allowed: &ExpiredAllowed,
) -> Result<Guardian, AdmitRefusal> {
    let id = || endorsed.guardian.id.clone();
    let guardian =
        Guardian::from_facts(&endorsed.guardian).map_err(|source| AdmitRefusal::Guardian {
            guardian: id(),
            source,
        })?;
    let endorsement = Endorsement::verify(&endorsed.endorsement, authority).map_err(|source| {
        AdmitRefusal::Endorsement {
            guardian: id(),
            source,
        }
    })?;
    may_grant(&endorsement, &guardian, group, now, allowed)?;
    Ok(guardian)
}
