//! Places for connections whose other side has not shown a certificate yet: in a handshake, or without one.
//!
//! Pure bookkeeping: it knows addresses and times, and neither sockets nor TLS.
//!
//! ```text
//!   accepted ─► admit ─┬─ refused: the address has all of its places ──────────────► closed
//!                      └─ a Place ─┬─ a certificate: Place::known ─► the members' limit
//!                                  ├─ closed, too slow
//!                                  └─ gives way to another address, where all places are taken
//! ```
//!
//! An address from which a member has connected has places of its own, which nobody else takes. Where the places of a
//! kind are all taken, the address with the most gives one of them up, its oldest. So an attacker with many addresses
//! takes places from its own connections first.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How many addresses of members are remembered.
const KNOWN: usize = 4096;

/// What a connection has at least, where it has to give way to another address that has as few.
const UNDISTURBED: Duration = Duration::from_secs(1);

/// How many connections without a certificate there may be at once.
#[derive(Debug, Clone, Copy)]
pub struct StrangerLimits {
    /// From addresses from which no member has connected.
    pub unknown: usize,
    /// Of these, from one address. An IPv6 address counts with its network of 64 bits.
    pub per_unknown: usize,
    /// From addresses from which members have connected.
    pub known: usize,
    /// Of these, from one address.
    pub per_known: usize,
}

impl Default for StrangerLimits {
    fn default() -> Self {
        Self {
            unknown: 256,
            per_unknown: 32,
            known: 256,
            per_known: 128,
        }
    }
}

/// An IPv4 address, or the network of 64 bits of an IPv6 address, which is what one customer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Origin(IpAddr);

impl Origin {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) & (u128::MAX << 64);
                Self(IpAddr::V6(Ipv6Addr::from(network)))
            }
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }
}

/// Why a connection is closed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crowded {
    /// Its address has as many connections without a certificate as it may.
    Address,
    /// All places are taken, each address has few, and all of them are new.
    Server,
}

/// The places of one server.
#[derive(Debug)]
pub(crate) struct Strangers {
    limits: StrangerLimits,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// Oldest first.
    places: BTreeMap<u64, Taken>,
    /// Of `places`, by kind and origin; none is zero.
    counts: HashMap<(bool, Origin), usize>,
    known: HashMap<Origin, Instant>,
}

#[derive(Debug)]
struct Taken {
    origin: Origin,
    known: bool,
    since: Instant,
    gives_way: CancellationToken,
}

impl Strangers {
    pub(crate) fn new(limits: StrangerLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            table: Mutex::default(),
        })
    }

    /// A place for a connection that was accepted `now`.
    pub(crate) fn admit(self: &Arc<Self>, from: IpAddr, now: Instant) -> Result<Place, Crowded> {
        let origin = Origin::of(from);
        let mut table = self.table();
        let known = table.known.contains_key(&origin);
        let (all, one) = match known {
            true => (self.limits.known, self.limits.per_known),
            false => (self.limits.unknown, self.limits.per_unknown),
        };
        // Decided without a look at the places: in a flood this is all that is done.
        let own = table.counts.get(&(known, origin)).copied();
        if own.unwrap_or_default() >= one {
            return Err(Crowded::Address);
        }
        if table.places.values().filter(|t| t.known == known).count() >= all {
            let victim = table.victim(known, own.unwrap_or_default(), now);
            let victim = victim.ok_or(Crowded::Server)?;
            if let Some(taken) = table.remove(victim) {
                taken.gives_way.cancel();
            }
        }
        let id = table.next;
        table.next += 1;
        *table.counts.entry((known, origin)).or_default() += 1;
        let gives_way = CancellationToken::new();
        let taken = Taken {
            origin,
            known,
            since: now,
            gives_way: gives_way.clone(),
        };
        table.places.insert(id, taken);
        Ok(Place {
            strangers: self.clone(),
            origin,
            id,
            gives_way,
        })
    }

    /// The table is whole between any two statements that can panic.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The place that is given up for a connection whose address has `own`: the oldest of the address with the most, or
    /// the oldest of all where no address has more than the newcomer would.
    fn victim(&self, known: bool, own: usize, now: Instant) -> Option<u64> {
        let count = |origin| self.counts.get(&(known, origin)).copied();
        let mut same = self.places.iter().filter(|(_, taken)| taken.known == known);
        let most = same.clone().filter_map(|(_, taken)| count(taken.origin));
        let most = most.max().unwrap_or_default();
        if most > own + 1 {
            return same
                .find(|(_, taken)| count(taken.origin) == Some(most))
                .map(|(id, _)| *id);
        }
        let (id, oldest) = same.next()?;
        (now.saturating_duration_since(oldest.since) >= UNDISTURBED).then_some(*id)
    }

    fn remove(&mut self, id: u64) -> Option<Taken> {
        let taken = self.places.remove(&id)?;
        let kind = (taken.known, taken.origin);
        if let Some(count) = self.counts.get_mut(&kind) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&kind);
            }
        }
        Some(taken)
    }

    fn remember(&mut self, origin: Origin, now: Instant) {
        self.known.insert(origin, now);
        if self.known.len() > KNOWN {
            let oldest = self.known.iter().min_by_key(|(_, seen)| **seen);
            if let Some(oldest) = oldest.map(|(origin, _)| *origin) {
                self.known.remove(&oldest);
            }
        }
    }
}

/// The place of one connection; free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    strangers: Arc<Strangers>,
    origin: Origin,
    id: u64,
    gives_way: CancellationToken,
}

impl Place {
    /// Ends when the connection has to give way to another.
    pub(crate) async fn given_up(&self) {
        self.gives_way.cancelled().await;
    }

    /// The other side has shown a certificate: the place is free, and the address is a member's.
    pub(crate) fn known(self, now: Instant) {
        self.strangers.table().remember(self.origin, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.strangers.table().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn few() -> Arc<Strangers> {
        Strangers::new(StrangerLimits {
            unknown: 6,
            per_unknown: 3,
            known: 2,
            per_known: 2,
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_ipv6_address_counts_with_its_network() {
        let now = Instant::now();
        let strangers = few();
        let places: Vec<_> = (1..=3)
            .map(|n| strangers.admit(ip(&format!("2001:db8:0:1::{n}")), now))
            .collect();
        assert!(places.iter().all(Result::is_ok));
        let fourth = strangers.admit(ip("2001:db8:0:1:ffff::9"), now);
        assert_eq!(fourth.err(), Some(Crowded::Address));
        assert!(strangers.admit(ip("2001:db8:0:2::9"), now).is_ok());
    }

    #[test]
    fn an_ipv4_address_counts_the_same_where_the_server_listens_on_ipv6() {
        assert_eq!(
            Origin::of(ip("::ffff:192.0.2.1")),
            Origin::of(ip("192.0.2.1"))
        );
        assert_ne!(
            Origin::of(ip("::ffff:192.0.2.1")),
            Origin::of(ip("192.0.2.2"))
        );
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_ends() {
        let now = Instant::now();
        let strangers = few();
        let places: Vec<_> = (0..3)
            .map(|_| strangers.admit(ip("192.0.2.1"), now))
            .collect();
        assert!(strangers.admit(ip("192.0.2.1"), now).is_err());
        drop(places);
        assert!(strangers.admit(ip("192.0.2.1"), now).is_ok());
    }

    #[test]
    fn the_address_with_the_most_gives_way_and_the_newcomer_gets_in() {
        let now = Instant::now();
        let strangers = few();
        let one: Vec<_> = (0..3)
            .map(|_| strangers.admit(ip("192.0.2.1"), now).expect("a place"))
            .collect();
        let two: Vec<_> = (0..3)
            .map(|_| strangers.admit(ip("192.0.2.2"), now).expect("a place"))
            .collect();
        let _third = strangers.admit(ip("192.0.2.3"), now).expect("a place");
        let gone = |places: &[Place]| -> Vec<bool> {
            places.iter().map(|p| p.gives_way.is_cancelled()).collect()
        };
        assert_eq!(gone(&one), [true, false, false]);
        assert_eq!(gone(&two), [false, false, false]);
    }

    #[test]
    fn where_all_have_one_the_oldest_gives_way_after_its_time() {
        let now = Instant::now();
        let strangers = few();
        let places: Vec<_> = (1..=6)
            .map(|n| strangers.admit(ip(&format!("192.0.2.{n}")), now))
            .collect();
        assert!(places.iter().all(Result::is_ok));
        let early = strangers.admit(ip("192.0.2.7"), now + UNDISTURBED / 2);
        assert_eq!(early.err(), Some(Crowded::Server));
        assert!(strangers.admit(ip("192.0.2.7"), now + UNDISTURBED).is_ok());
    }

    #[test]
    fn a_members_address_has_places_that_strangers_never_take() {
        let now = Instant::now();
        let strangers = few();
        let member = strangers.admit(ip("198.51.100.1"), now).expect("a place");
        member.known(now);
        let _all: Vec<_> = (1..=6)
            .map(|n| strangers.admit(ip(&format!("192.0.2.{n}")), now))
            .collect();
        assert!(strangers.admit(ip("192.0.2.7"), now).is_err());
        assert!(strangers.admit(ip("198.51.100.1"), now).is_ok());
    }

    #[test]
    fn as_many_addresses_of_members_are_remembered_as_there_is_room_for() {
        let mut table = Table::default();
        let begin = Instant::now();
        for n in 0..=KNOWN as u32 {
            let origin = Origin::of(IpAddr::V4((0x0a00_0000 + n).into()));
            table.remember(origin, begin + Duration::from_millis(u64::from(n)));
        }
        assert_eq!(table.known.len(), KNOWN);
        assert!(!table.known.contains_key(&Origin::of(ip("10.0.0.0"))));
    }
}
