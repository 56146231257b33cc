//! The TPM key: 32 random bytes that encrypt one VM's TPM state.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a TPM key.
pub const TPM_KEY_SIZE: usize = 32;

/// The random number generator failed; nothing was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the random number generator failed")]
pub struct RandomError;

/// The secret that encrypts a VM's TPM state. Wiped on drop, never cloned, never printed.
pub struct TpmKey(Zeroizing<[u8; TPM_KEY_SIZE]>);

impl TpmKey {
    /// Draws a new key.
    pub fn generate() -> Result<Self, RandomError> {
        let mut bytes = Zeroizing::new([0; TPM_KEY_SIZE]);
        aws_lc_rs::rand::fill(bytes.as_mut_slice()).map_err(|_| RandomError)?;
        Ok(Self(bytes))
    }

    /// Takes the key out of `bytes` and wipes them.
    pub fn from_bytes(bytes: &mut [u8; TPM_KEY_SIZE]) -> Self {
        let key = Self(Zeroizing::new(*bytes));
        bytes.zeroize();
        key
    }

    /// The base64 text that libvirt takes as secret value and swtpm as password.
    pub fn expose_base64(&self) -> Zeroizing<String> {
        // One allocation of the final size: growing would leave pieces of the key behind.
        let mut text = Zeroizing::new(String::with_capacity(TPM_KEY_SIZE.div_ceil(3) * 4));
        STANDARD.encode_string(self.0.as_slice(), &mut text);
        text
    }

    /// From the base64 text of 32 bytes.
    pub(crate) fn from_base64(text: &str) -> Option<Self> {
        // Base64 decoders ask for room in whole groups of three.
        let mut room = Zeroizing::new([0; TPM_KEY_SIZE + 4]);
        if STANDARD.decode_slice(text, room.as_mut_slice()).ok()? != TPM_KEY_SIZE {
            return None;
        }
        let mut bytes = Zeroizing::new([0; TPM_KEY_SIZE]);
        bytes.copy_from_slice(&room[..TPM_KEY_SIZE]);
        Some(Self(bytes))
    }

    /// Whether both are the same key; takes the same time either way.
    pub fn same_as(&self, other: &Self) -> bool {
        self.0.ct_eq(other.0.as_slice()).into()
    }
}

impl fmt::Debug for TpmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TpmKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways_and_debug_tells_nothing() {
        let mut bytes = [0xa5; 32];
        let key = TpmKey::from_bytes(&mut bytes);
        assert_eq!(bytes, [0; 32], "the source is wiped");
        let text = key.expose_base64();
        assert_eq!(text.len(), 44);
        assert!(TpmKey::from_base64(&text).unwrap().same_as(&key));
        assert_eq!(format!("{key:?}"), "TpmKey([redacted])");
    }

    #[test]
    fn other_lengths_are_no_key() {
        for text in [
            "",
            "AAAA",
            &STANDARD.encode([0; 31]),
            &STANDARD.encode([0; 33]),
            &STANDARD.encode([0; 64]),
            "!",
        ] {
            assert!(TpmKey::from_base64(text).is_none(), "{text}");
        }
    }

    #[test]
    fn two_keys_differ() {
        assert!(
            !TpmKey::generate()
                .unwrap()
                .same_as(&TpmKey::generate().unwrap())
        );
    }
}
