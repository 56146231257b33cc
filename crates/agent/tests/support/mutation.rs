//! The dice of the fuzz targets, for every program that has some: bytes in, mutants out, and what stands in for coverage.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// Longest that one input may take: a million rounds of key derivation, in every part of a PFX file, on a busy machine.
const LONGEST: Duration = Duration::from_secs(60);

/// xorshift64*: repeatable, and good enough to choose bytes.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() >> 16).unwrap() % end.max(1)
    }
}

/// Bits, bytes, pieces: what damage and malice do.
fn mutate(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    const INTERESTING: [u8; 10] = [0, 1, 0x30, 0x7f, 0x80, 0x82, 0x84, 0xa0, 0xff, b'"'];
    let mut bytes = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len());
        let end = (at + 1 + dice.below(32)).min(bytes.len());
        match dice.below(8) {
            _ if bytes.is_empty() => bytes.push(INTERESTING[dice.below(10)]),
            0 | 1 => bytes[at] ^= 1 << dice.below(8),
            2 => bytes[at] = INTERESTING[dice.below(10)],
            3 => bytes[at] = bytes[at].wrapping_add(1),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => {
                let other = &corpus[dice.below(corpus.len())];
                let from = dice.below(other.len());
                let to = (from + dice.below(64)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn seconds() -> u64 {
    std::env::var("FLEETWARD_FUZZ_SECONDS").map_or(5, |text| text.parse().unwrap())
}

fn seed() -> u64 {
    std::env::var("FLEETWARD_FUZZ_SEED").map_or_else(
        |_| {
            u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() & i128::from(u64::MAX))
                .unwrap()
                | 1
        },
        |text| text.parse().unwrap(),
    )
}

/// Feeds mutants to `parse`, which gives the reason of its refusal, or panics where it must not accept.
pub(crate) fn fuzz(name: &str, mut corpus: Vec<Vec<u8>>, parse: impl Fn(&[u8]) -> String) {
    let (seed, end) = (seed(), Instant::now() + Duration::from_secs(seconds()));
    let mut dice = Dice(seed);
    let (mut seen, mut count) = (BTreeSet::new(), 0_u64);
    while Instant::now() < end {
        let input = mutate(&mut dice, &corpus);
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| parse(&input)));
        let took = started.elapsed();
        let Ok(reason) = outcome else {
            panic!("{name}: seed {seed}, input {}", hex::encode(&input));
        };
        assert!(
            took < LONGEST,
            "{name}: {took:?}, seed {seed}, input {}",
            hex::encode(&input)
        );
        // Numbers in a reason are not another reason.
        let reason: String = reason
            .chars()
            .filter(|c| !c.is_ascii_digit())
            .take(200)
            .collect();
        if seen.insert(reason) && corpus.len() < 512 && input.len() < 256 * 1024 {
            corpus.push(input);
        }
        count += 1;
    }
    println!(
        "{name}: {count} inputs, {} reasons, seed {seed}",
        seen.len()
    );
}

pub(crate) fn reason<T, E: std::fmt::Debug>(result: Result<T, E>) -> String {
    result.map_or_else(|error| format!("{error:?}"), |_| "accepted".to_owned())
}
