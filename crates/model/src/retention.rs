//! Retention of versions of a VM's TPM: the newest N, none older than a number of days, and always the newest of each
//! TPM.
//!
//! A secret opens only with the TPM that sealed it. So the newest version of each TPM that the VM ever had stays until
//! the VM is deleted, however many versions a later TPM has.
//!
//! A guest may write its TPM every few seconds. Of consecutive versions with that reason only the newest stays.
//! Otherwise an hour of writes would displace the version that a disable or a roll has kept.

use crate::KeyId;
use std::collections::{BTreeSet, HashSet};
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

/// What the rule looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which TPM it is of.
    pub tpm: TpmIdentity,
    pub key: Option<KeyId>,
    pub made: OffsetDateTime,
    /// It was kept because the guest wrote, and for no other reason.
    pub written: bool,
}

/// What tells one TPM of a VM from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TpmIdentity {
    /// SHA-256 of the EK certificate, hex; a roll of the key leaves it.
    Certificate(String),
    /// Where no certificate is known.
    Key(KeyId),
    /// Neither is known: like no other.
    Unknown,
}

impl Retention {
    /// Which of the versions, given oldest first, go: their places in the list.
    pub fn superfluous(&self, oldest_first: &[Candidate], now: OffsetDateTime) -> BTreeSet<usize> {
        let mut gone: BTreeSet<usize> = oldest_first
            .windows(2)
            .enumerate()
            .filter(|(_, pair)| pair[0].written && pair[1].written && pair[0].key == pair[1].key)
            .map(|(at, _)| at)
            .collect();
        // beyond the first of all days, nothing is too old
        let oldest = now.checked_sub(Duration::days(self.days.into()));
        let mut seen = HashSet::new();
        let mut stay = 0;
        for (at, version) in oldest_first.iter().enumerate().rev() {
            if gone.contains(&at) {
                continue;
            }
            let last_of_its_tpm =
                version.tpm == TpmIdentity::Unknown || seen.insert(version.tpm.clone());
            let too_many = stay >= self.versions as usize;
            let too_old = oldest.is_some_and(|oldest| version.made < oldest);
            if (too_many || too_old) && !last_of_its_tpm {
                gone.insert(at);
            }
            stay += 1;
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-01-01 0:00 UTC);

    fn key(number: u128) -> KeyId {
        KeyId(Uuid::from_u128(number))
    }

    fn kept(tpm: u128, written: bool, days_ago: i64) -> Candidate {
        Candidate {
            tpm: TpmIdentity::Key(key(tpm)),
            key: Some(key(tpm)),
            made: NOW - Duration::days(days_ago),
            written,
        }
    }

    fn gone(retention: Retention, versions: &[Candidate]) -> Vec<usize> {
        retention.superfluous(versions, NOW).into_iter().collect()
    }

    #[test]
    fn the_newest_ten_of_ninety_days_stay() {
        let many: Vec<_> = (1..=12).map(|_| kept(1, false, 0)).collect();
        assert_eq!(gone(Retention::default(), &many), [0, 1]);
        let old = [kept(1, false, 91), kept(1, false, 89), kept(1, false, 1)];
        assert_eq!(gone(Retention::default(), &old), [0]);
    }

    #[test]
    fn the_last_one_stays_however_old() {
        let strict = Retention {
            versions: 1,
            days: 0,
        };
        let old = [kept(1, false, 500), kept(1, false, 400)];
        assert_eq!(gone(strict, &old), [0]);
        assert_eq!(gone(strict, &old[1..]), [0; 0]);
    }

    #[test]
    fn a_new_tpm_never_pushes_out_the_last_version_of_the_one_before() {
        // the TPM that BitLocker is sealed to, switched off; then a new one, and a hundred stops over two years
        let mut versions = vec![kept(1, false, 800), kept(1, false, 799)];
        versions.extend((0..100).map(|n| kept(2, false, 700 - n)));
        let gone = gone(Retention::default(), &versions);
        assert!(gone.contains(&0), "the older one of the same TPM goes");
        assert!(!gone.contains(&1), "the last of the first TPM went");
        assert!(!gone.contains(&101), "the last of all went");
        let strict = Retention {
            versions: 1,
            days: 0,
        };
        let left = versions.len() - strict.superfluous(&versions, NOW).len();
        assert_eq!(left, 2, "one for each TPM");
    }

    #[test]
    fn a_rolled_key_is_the_same_tpm_and_what_is_unknown_stays() {
        let of = |key_number, certificate: &str, days_ago| Candidate {
            tpm: TpmIdentity::Certificate(certificate.to_owned()),
            ..kept(key_number, false, days_ago)
        };
        let unknown = Candidate {
            tpm: TpmIdentity::Unknown,
            key: None,
            ..kept(0, false, 900)
        };
        let versions = [unknown.clone(), unknown, of(1, "ek", 300), of(2, "ek", 1)];
        assert_eq!(gone(Retention::default(), &versions), [2]);
    }

    #[test]
    fn a_guest_that_writes_all_day_pushes_nothing_out() {
        let mut versions = vec![kept(1, false, 0)];
        versions.extend((2..=50).map(|_| kept(1, true, 0)));
        let gone = gone(Retention::default(), &versions);
        assert_eq!(gone, (1..49).collect::<Vec<_>>());
    }

    #[test]
    fn another_key_is_another_matter() {
        let versions = [kept(1, true, 0), kept(2, true, 0)];
        assert_eq!(gone(Retention::default(), &versions), [0; 0]);
    }

    #[test]
    fn more_days_than_there_are_make_nothing_too_old() {
        let long = Retention {
            versions: 10,
            days: u32::MAX,
        };
        assert_eq!(
            gone(long, &[kept(1, false, 5000), kept(1, false, 0)]),
            [0; 0]
        );
    }
}
