//! Checks foreign DER before it is parsed: bounded depth, bounded number of members in a value.
//!
//! The parsers sort sets while they read, so a set of thousands of small members would take quadratic time. No
//! structure that Fleetward reads has more than [`MAX_MEMBERS`] in one place, so larger ones are refused first.

use der::{Decode, Header, Reader, SliceReader};

/// Most members of one constructed value.
pub(crate) const MAX_MEMBERS: usize = 160;

/// Deepest nesting of constructed values. A certificate inside SignedData reaches twelve.
const MAX_DEPTH: usize = 24;

/// Whether `der` is exactly one DER value within the limits. Does not inspect primitive contents.
pub(crate) fn within_limits(der: &[u8]) -> bool {
    let Ok(mut reader) = SliceReader::new(der) else {
        return false;
    };
    walk(&mut reader, 0, 1) == Some(1)
}

/// Members read until the end of `reader`; nothing when a limit or the encoding is broken.
fn walk(reader: &mut SliceReader<'_>, depth: usize, max_members: usize) -> Option<usize> {
    let mut members = 0;
    while !reader.is_finished() {
        members += 1;
        if members > max_members {
            return None;
        }
        let header = Header::decode(reader).ok()?;
        let value = reader.read_slice(header.length).ok()?;
        if header.tag.is_constructed() {
            if depth == MAX_DEPTH {
                return None;
            }
            walk(&mut SliceReader::new(value).ok()?, depth + 1, MAX_MEMBERS)?;
        }
    }
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_small_value_passes_and_trailing_bytes_do_not() {
        assert!(within_limits(&[0x30, 0x03, 0x02, 0x01, 0x05]));
        assert!(!within_limits(&[0x30, 0x03, 0x02, 0x01, 0x05, 0x05, 0x00]));
        assert!(!within_limits(&[]));
        assert!(!within_limits(&[0x30, 0x03, 0x02, 0x01]));
    }

    #[test]
    fn too_many_members_are_refused() {
        let nulls = [0x05, 0x00].repeat(MAX_MEMBERS + 1);
        let length = u16::try_from(nulls.len()).expect("small").to_be_bytes();
        let der = [&[0x31, 0x82, length[0], length[1]][..], &nulls].concat();
        assert!(!within_limits(&der));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut der = vec![0x05, 0x00];
        for _ in 0..40 {
            der = [&[0x30, u8::try_from(der.len()).expect("small")][..], &der].concat();
        }
        assert!(!within_limits(&der));
    }
}
