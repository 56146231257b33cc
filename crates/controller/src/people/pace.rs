//! How often passwords may be tried. Whoever guesses waits longer and longer, and nobody else does.
//!
//! | counted for | free | then |
//! |---|---|---|
//! | a user from one address | 5 wrong | refused for 1 s, 2 s, 4 s, ... 15 min after each |
//! | an address | 50 wrong | the same |
//! | a user from all addresses | 20 wrong | each try waits for 0.25 s, 0.5 s, ... 4 s before it is looked at, a right one, too |
//!
//! A try counts as wrong until it was right, so that many at once are no way around. An IPv6 address counts with its /64,
//! which is one customer's. What is an hour old is forgotten.

use fleetward_model::UserName;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PAIR_FREE: u32 = 5;
const ADDRESS_FREE: u32 = 50;
const USER_FREE: u32 = 20;
const FIRST_REFUSAL: Duration = Duration::from_secs(1);
const LONGEST_REFUSAL: Duration = Duration::from_secs(15 * 60);
const FIRST_PATIENCE: Duration = Duration::from_millis(250);
const LONGEST_PATIENCE: Duration = Duration::from_secs(4);
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Most that is remembered of each kind; the oldest gives way.
const MOST: usize = 10_000;

/// That a password may be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    /// How long to wait before.
    pub(super) patience: Duration,
    /// Nothing wrong came from this address for some time, so that it need not stand behind those who guess.
    pub(super) unsuspected: bool,
}

#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    pairs: Table<(IpAddr, UserName)>,
    addresses: Table<IpAddr>,
    users: Table<UserName>,
}

impl Pace {
    /// # Errors
    /// How long to wait: this address tries too often.
    pub(super) fn admit(
        &self,
        from: IpAddr,
        user: &UserName,
        now: Instant,
    ) -> Result<Admitted, Duration> {
        let from = network(from);
        let pair = (from, user.clone());
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts {
            pairs,
            addresses,
            users,
        } = &mut *counts;
        let wait = pairs.wait(&pair, now).max(addresses.wait(&from, now));
        if !wait.is_zero() {
            return Err(wait);
        }
        let patience = doubled(FIRST_PATIENCE, users.count(user, now), USER_FREE);
        let unsuspected = addresses.count(&from, now) == 0;
        pairs.add(pair, PAIR_FREE, now);
        addresses.add(from, ADDRESS_FREE, now);
        users.add(user.clone(), USER_FREE, now);
        Ok(Admitted {
            patience: patience.min(LONGEST_PATIENCE),
            unsuspected,
        })
    }

    /// The try was right: it does not count, and neither do those of this user from there before it.
    pub(super) fn forget(&self, from: IpAddr, user: &UserName) {
        let from = network(from);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.pairs.0.remove(&(from, user.clone()));
        counts.addresses.take_back(&from);
        counts.users.take_back(user);
    }
}

#[derive(Debug, Clone, Copy)]
struct Count {
    wrong: u32,
    last: Instant,
    /// Until then it is refused.
    until: Instant,
}

#[derive(Debug)]
struct Table<K>(HashMap<K, Count>);

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone> Table<K> {
    fn fresh(&self, key: &K, now: Instant) -> Option<&Count> {
        let count = self.0.get(key)?;
        (now.saturating_duration_since(count.last) < FORGOTTEN).then_some(count)
    }

    fn wait(&self, key: &K, now: Instant) -> Duration {
        self.fresh(key, now).map_or(Duration::ZERO, |count| {
            count.until.saturating_duration_since(now)
        })
    }

    fn count(&self, key: &K, now: Instant) -> u32 {
        self.fresh(key, now).map_or(0, |count| count.wrong)
    }

    fn add(&mut self, key: K, free: u32, now: Instant) {
        let wrong = self.count(&key, now).saturating_add(1);
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            self.make_room(now);
        }
        let refusal = doubled(FIRST_REFUSAL, wrong, free).min(LONGEST_REFUSAL);
        self.0.insert(
            key,
            Count {
                wrong,
                last: now,
                until: now + refusal,
            },
        );
    }

    fn take_back(&mut self, key: &K) {
        if let Some(count) = self.0.get_mut(key) {
            count.wrong = count.wrong.saturating_sub(1);
            count.until = count.last;
        }
    }

    /// The older half goes: once for many.
    fn make_room(&mut self, now: Instant) {
        let mut ages: Vec<_> = self.0.values().map(|count| count.last).collect();
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let median = *median;
        self.0.retain(|_, count| {
            count.last > median && now.saturating_duration_since(count.last) < FORGOTTEN
        });
    }
}

/// `first` with the last of the free wrong ones, and twice as much with each one more; nothing before.
fn doubled(first: Duration, wrong: u32, free: u32) -> Duration {
    match wrong.checked_sub(free) {
        None => Duration::ZERO,
        Some(beyond) => first.saturating_mul(1 << beyond.min(20)),
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserName {
        name.parse().expect("a name")
    }

    fn address(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    #[test]
    fn one_who_guesses_waits_longer_and_longer() {
        let (pace, kim) = (Pace::default(), user("kim"));
        let mut now = Instant::now();
        let mut waited = Vec::new();
        let mut tried = 0;
        while tried < 20 {
            match pace.admit(address(1), &kim, now) {
                Ok(_) => tried += 1,
                Err(wait) => {
                    waited.push(wait.as_secs());
                    now += wait;
                }
            }
        }
        assert_eq!(waited[..4], [1, 2, 4, 8]);
        assert_eq!(waited.iter().max(), Some(&900));
        // A day later all is as at first.
        now += Duration::from_secs(24 * 3600);
        assert_eq!(
            pace.admit(address(1), &kim, now),
            Ok(Admitted {
                patience: Duration::ZERO,
                unsuspected: true
            })
        );
    }

    #[test]
    fn ten_thousand_wrong_ones_from_a_hundred_addresses_cost_the_right_user_four_seconds() {
        let (pace, kim) = (Pace::default(), user("kim"));
        let now = Instant::now();
        let mut looked_at = 0;
        for n in 0..10_000_u32 {
            let from = address((n % 100) as u8);
            looked_at += u32::from(pace.admit(from, &kim, now).is_ok());
        }
        assert_eq!(looked_at, 100 * PAIR_FREE, "the others were refused unseen");
        let right = pace.admit(address(200), &kim, now).expect("admitted");
        assert_eq!(right.patience, LONGEST_PATIENCE);
        let other = pace.admit(address(200), &user("lee"), now);
        assert_eq!(other.expect("admitted").patience, Duration::ZERO);
    }

    #[test]
    fn an_address_that_tries_many_names_waits_and_right_ones_do_not_count() {
        let pace = Pace::default();
        let now = Instant::now();
        for n in 0..200 {
            let name = user(&format!("person-{n}"));
            pace.admit(address(1), &name, now).expect("admitted");
            pace.forget(address(1), &name);
        }
        let refused = (0..200).filter(|n| {
            let name = user(&format!("person-{n}"));
            pace.admit(address(2), &name, now).is_err()
        });
        assert_eq!(refused.count() as u32, 200 - ADDRESS_FREE);
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_and_memory_is_bounded() {
        let pace = Pace::default();
        let now = Instant::now();
        let at = |network: u64, host: u64| -> IpAddr {
            Ipv6Addr::from_bits(u128::from(network) << 64 | u128::from(host)).into()
        };
        let tried = (0..100).filter(|n| pace.admit(at(1, *n), &user("kim"), now).is_ok());
        assert_eq!(tried.count() as u32, PAIR_FREE);
        for n in 0..30_000 {
            let _ = pace.admit(
                at(n, 1),
                &user(&format!("p-{n}")),
                now + Duration::from_millis(n),
            );
        }
        let counts = pace.0.lock().expect("not poisoned");
        assert!(counts.pairs.0.len() <= MOST && counts.users.0.len() <= MOST);
    }
}
