//! Applies the retention rule (`model::retention`) to the rows of the escrow.

use fleetward_api::tpm::{TpmVersion, VersionReason};
pub use fleetward_model::retention::Retention;
use fleetward_model::retention::{Candidate, TpmIdentity};
use std::collections::BTreeSet;
use time::OffsetDateTime;

/// The numbers of those versions, given oldest first, that go.
pub(super) fn superfluous(
    retention: Retention,
    versions: &[&TpmVersion],
    now: OffsetDateTime,
) -> BTreeSet<u64> {
    let candidates: Vec<_> = versions.iter().map(|version| candidate(version)).collect();
    let places = retention.superfluous(&candidates, now);
    places.into_iter().map(|at| versions[at].version).collect()
}

fn candidate(version: &TpmVersion) -> Candidate {
    Candidate {
        tpm: match &version.ek_sha256 {
            Some(sha256) => TpmIdentity::Certificate(sha256.clone()),
            None => TpmIdentity::Key(version.key_id),
        },
        key: Some(version.key_id),
        made: version.made,
        written: version.why == VersionReason::Written,
    }
}
