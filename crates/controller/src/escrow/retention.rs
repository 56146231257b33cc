//! Which versions stay: the newest N, none older than so many days, the newest always.
//!
//! A guest may write its TPM every few seconds. Of versions that follow each other for no other reason, only the newest
//! stays, or an hour's work would push out what a disable or a roll has kept.

use fleetward_api::tpm::{TpmVersion, VersionReason};
use std::collections::BTreeSet;
use time::{Duration, OffsetDateTime};

/// How much is kept of each VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// At least 1.
    pub versions: u32,
    pub days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            versions: 10,
            days: 90,
        }
    }
}

impl Retention {
    /// The numbers of those versions, given oldest first, that go.
    pub(crate) fn superfluous(
        &self,
        versions: &[&TpmVersion],
        now: OffsetDateTime,
    ) -> BTreeSet<u64> {
        let written = |version: &TpmVersion| version.why == VersionReason::Written;
        let mut gone: BTreeSet<u64> = versions
            .windows(2)
            .filter(|pair| written(pair[0]) && written(pair[1]) && pair[0].key_id == pair[1].key_id)
            .map(|pair| pair[0].version)
            .collect();
        let oldest = now - Duration::days(self.days.into());
        let newest_first = versions.iter().rev().filter(|v| !gone.contains(&v.version));
        let old: Vec<_> = newest_first
            .enumerate()
            .skip(1)
            .filter(|(at, version)| *at >= self.versions as usize || version.made < oldest)
            .map(|(_, version)| version.version)
            .collect();
        gone.extend(old);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_model::{KeyId, VmId};
    use uuid::Uuid;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-01-01 0:00 UTC);

    fn version(number: u64, why: VersionReason, days_ago: i64) -> TpmVersion {
        TpmVersion {
            vm: VmId(Uuid::nil()),
            vm_name: "web".parse().expect("name"),
            version: number,
            made: NOW - Duration::days(days_ago),
            by: "test".into(),
            why,
            size_bytes: 1,
            key_id: KeyId(Uuid::nil()),
            host: "a".parse().expect("name"),
            sha256: String::new(),
            state_sha256: String::new(),
        }
    }

    fn gone(retention: Retention, versions: &[TpmVersion]) -> Vec<u64> {
        let versions: Vec<_> = versions.iter().collect();
        retention.superfluous(&versions, NOW).into_iter().collect()
    }

    #[test]
    fn the_newest_ten_of_ninety_days_stay() {
        let many: Vec<_> = (1..=12)
            .map(|n| version(n, VersionReason::Stopped, 0))
            .collect();
        assert_eq!(gone(Retention::default(), &many), [1, 2]);
        let old = [
            version(1, VersionReason::Created, 91),
            version(2, VersionReason::Stopped, 89),
            version(3, VersionReason::Stopped, 1),
        ];
        assert_eq!(gone(Retention::default(), &old), [1]);
    }

    #[test]
    fn the_last_one_stays_however_old() {
        let strict = Retention {
            versions: 1,
            days: 0,
        };
        let old = [
            version(1, VersionReason::Created, 500),
            version(2, VersionReason::Stopped, 400),
        ];
        assert_eq!(gone(strict, &old), [1]);
        assert_eq!(gone(strict, &old[1..]), [0; 0]);
    }

    #[test]
    fn a_guest_that_writes_all_day_pushes_nothing_out() {
        let mut versions = vec![version(1, VersionReason::Rolled, 0)];
        versions.extend((2..=50).map(|n| version(n, VersionReason::Written, 0)));
        let gone = gone(Retention::default(), &versions);
        assert_eq!(gone, (2..50).collect::<Vec<_>>());
    }

    #[test]
    fn another_key_is_another_matter() {
        let mut other = version(2, VersionReason::Written, 0);
        other.key_id = KeyId(Uuid::from_u128(1));
        let versions = [version(1, VersionReason::Written, 0), other];
        assert_eq!(gone(Retention::default(), &versions), [0; 0]);
    }
}
