//! The header of swtpm's state file, which is readable without the key and shows whether a copy is complete.
//!
//! ```text
//!   u8 version, u8 oldest reader's version, u16 header's length (10), u16 flags, u32 length of all, then the content
//! ```
//! All fields are big endian. swtpm writes a new file and renames it, but does not sync it: a power cut can leave a
//! short or empty file, which must not replace a good copy.

/// Largest state taken, bytes; those of real TPMs have 6 to 20 KiB.
pub const MAX_STATE: usize = 1 << 20;

const HEADER: usize = 10;
/// The content is encrypted under the state key.
const ENCRYPTED: u16 = 1 << 0;

/// Why bytes are no whole, encrypted TPM state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateProblem {
    #[error("it has {0} bytes, which is less than its header")]
    NoHeader(usize),
    #[error("it has more than {MAX_STATE} bytes")]
    TooLarge,
    #[error("it does not begin with the header of TPM state")]
    UnknownHeader,
    #[error("it has {found} bytes, and its header says {said}")]
    Length { found: usize, said: u32 },
    #[error("it is not encrypted")]
    Plain,
}

/// Whether `state` is whole by its own account, and encrypted.
///
/// # Errors
/// The first thing that is wrong. What the key would tell (whether the content is genuine) is not looked at.
pub fn check(state: &[u8]) -> Result<(), StateProblem> {
    if state.len() > MAX_STATE {
        return Err(StateProblem::TooLarge);
    }
    let Some((header, _)) = state.split_first_chunk::<HEADER>() else {
        return Err(StateProblem::NoHeader(state.len()));
    };
    let [version, oldest, size @ .., f0, f1, l0, l1, l2, l3] = *header;
    // Versions say who can read the content; the header has been the same since the second.
    if version < 2 || oldest > version || usize::from(u16::from_be_bytes(size)) != HEADER {
        return Err(StateProblem::UnknownHeader);
    }
    let said = u32::from_be_bytes([l0, l1, l2, l3]);
    if usize::try_from(said) != Ok(state.len()) {
        return Err(StateProblem::Length {
            found: state.len(),
            said,
        });
    }
    if u16::from_be_bytes([f0, f1]) & ENCRYPTED == 0 {
        return Err(StateProblem::Plain);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(length: u32, flags: u16) -> Vec<u8> {
        let mut state = vec![2, 1, 0, 10];
        state.extend(flags.to_be_bytes());
        state.extend(length.to_be_bytes());
        state.resize(length as usize, 7);
        state
    }

    #[test]
    fn a_whole_encrypted_state_is_good() {
        assert_eq!(check(&state(1404, 9)), Ok(()));
    }

    #[test]
    fn what_a_power_cut_leaves_is_refused() {
        assert_eq!(check(b""), Err(StateProblem::NoHeader(0)));
        let whole = state(1404, 9);
        for length in 1..whole.len() {
            assert!(check(&whole[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(check(&[0; 1404]), Err(StateProblem::UnknownHeader));
        let longer = [whole.as_slice(), b"x"].concat();
        assert!(matches!(check(&longer), Err(StateProblem::Length { .. })));
    }

    #[test]
    fn plain_state_is_refused() {
        assert_eq!(check(&state(1404, 8)), Err(StateProblem::Plain));
    }
}
