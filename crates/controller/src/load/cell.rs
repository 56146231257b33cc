//! One load in 18 bytes: eight figures of 16 bits, and a check that says whose it is and of when.
//!
//! A file of cells may be cut short, overwritten or full of anything: a cell that does not check is as if it were not there.
//! That holds, too, for one that was written for another owner of the place, or for another time.

use fleetward_model::load::Load;

/// Whose loads: a VM's id, or a digest of a host's name.
pub(super) type Key = [u8; 16];

/// Bytes of a cell.
pub(super) const CELL: usize = 2 * (Load::FIGURES + 1);

/// A figure that is not known.
const UNKNOWN: u16 = u16::MAX;

/// Bits of a figure that are kept beside its highest one.
const MANTISSA: u32 = 10;

/// A load in 16 bytes, each figure to a thousandth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed([u16; Load::FIGURES]);

impl Packed {
    pub(super) fn of(load: &Load) -> Self {
        Self(
            load.figures()
                .map(|figure| figure.map_or(UNKNOWN, shortened)),
        )
    }

    pub(super) fn load(self) -> Load {
        let figure = |code| (code != UNKNOWN).then(|| lengthened(code));
        Load::of_figures(self.0.map(figure))
    }
}

/// Writes the cell of that owner and of that time, Unix seconds.
pub(super) fn write(cell: &mut [u8; CELL], key: &Key, at: u64, load: Packed) {
    let places = cell.as_chunks_mut::<2>().0;
    for (place, code) in places.iter_mut().zip(load.0) {
        *place = code.to_be_bytes();
    }
    let check = check(cell, key, at);
    cell[CELL - 2..].copy_from_slice(&check);
}

/// What was written for that owner and that time.
pub(super) fn read(cell: &[u8; CELL], key: &Key, at: u64) -> Option<Load> {
    if cell[CELL - 2..] != check(cell, key, at) {
        return None;
    }
    let mut codes = [UNKNOWN; Load::FIGURES];
    for (code, place) in codes.iter_mut().zip(cell.as_chunks::<2>().0) {
        *code = u16::from_be_bytes(*place);
    }
    Some(Packed(codes).load())
}

/// Never zero: a hole in a file is no cell.
fn check(cell: &[u8; CELL], key: &Key, at: u64) -> [u8; 2] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&at.to_be_bytes());
    hasher.update(&cell[..CELL - 2]);
    let [.., high, low] = hasher.finalize().to_be_bytes();
    if [high, low] == [0, 0] {
        return [0, 1];
    }
    [high, low]
}

/// A number with its first eleven bits; one below 1,024 exactly.
///
/// ```text
///   exponent (6 bits) | the ten bits after the highest one        exponent 0: the number itself
/// ```
fn shortened(value: u64) -> u16 {
    let length = u64::BITS - value.leading_zeros();
    let exponent = length.saturating_sub(MANTISSA);
    let shifted = match exponent {
        0 => value,
        _ => value >> (exponent - 1),
    };
    let kept = shifted & ((1 << MANTISSA) - 1);
    u16::try_from(u64::from(exponent) << MANTISSA | kept).expect("55 exponents of 10 bits")
}

fn lengthened(code: u16) -> u64 {
    let (exponent, kept) = (code >> MANTISSA, u64::from(code) & ((1 << MANTISSA) - 1));
    match exponent {
        0 => kept,
        // What nobody writes: of a cell whose check is right by chance.
        55.. => u64::MAX,
        _ => (1 << MANTISSA | kept) << (exponent - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: Key = [7; 16];

    fn load(figures: [Option<u64>; Load::FIGURES]) -> Load {
        Load::of_figures(figures)
    }

    proptest! {
        #[test]
        fn a_cell_says_what_was_written_to_a_thousandth(figures: [Option<u64>; Load::FIGURES], at: u64) {
            let mut cell = [0; CELL];
            write(&mut cell, &KEY, at, Packed::of(&load(figures)));
            let read = read(&cell, &KEY, at).expect("a cell");
            for (wrote, read) in figures.into_iter().zip(read.figures()) {
                prop_assert_eq!(wrote.is_some(), read.is_some());
                let (wrote, read) = (wrote.unwrap_or(0), read.unwrap_or(0));
                prop_assert!(wrote >= read && wrote - read <= wrote / 1024, "{} {}", wrote, read);
            }
        }

        #[test]
        fn any_bytes_can_be_read(cell: [u8; CELL], at: u64) {
            let _ = read(&cell, &KEY, at);
        }
    }

    #[test]
    fn small_numbers_are_exact() {
        for value in (0..=1024).chain([u64::from(u32::MAX) + 1]) {
            assert_eq!(lengthened(shortened(value)), value);
        }
    }

    #[test]
    fn a_cell_of_another_owner_or_time_is_none() {
        let mut cell = [0; CELL];
        assert_eq!(read(&cell, &KEY, 60), None, "a hole");
        write(
            &mut cell,
            &KEY,
            60,
            Packed::of(&load([Some(5); Load::FIGURES])),
        );
        assert!(read(&cell, &KEY, 60).is_some());
        assert_eq!(read(&cell, &[8; 16], 60), None);
        assert_eq!(read(&cell, &KEY, 120), None);
        cell[3] ^= 1;
        assert_eq!(read(&cell, &KEY, 60), None, "damaged");
    }
}
