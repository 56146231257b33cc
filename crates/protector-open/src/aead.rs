//! AES-256-GCM with keys that are wiped; the tag is separate from the ciphertext, as CMS requires.

use crate::tpm_key::RandomError;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use fleetward_protector::algorithm::{GCM_NONCE, GCM_TAG};
use zeroize::Zeroizing;

/// A key of 32 bytes.
pub(crate) type AeadKey = Zeroizing<[u8; 32]>;

/// What an encryption gives.
pub(crate) struct Encrypted {
    pub(crate) nonce: [u8; GCM_NONCE],
    pub(crate) ciphertext: Vec<u8>,
    pub(crate) tag: [u8; GCM_TAG],
}

pub(crate) fn generate_key() -> Result<AeadKey, RandomError> {
    let mut key = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(key.as_mut_slice()).map_err(|_| RandomError)?;
    Ok(key)
}

pub(crate) fn encrypt(
    key: &AeadKey,
    associated: &[u8],
    plaintext: &[u8],
) -> Result<Encrypted, RandomError> {
    let mut nonce = [0; GCM_NONCE];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| RandomError)?;
    let mut buffer = Zeroizing::new(plaintext.to_vec());
    let tag = cipher(key)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(associated),
            buffer.as_mut_slice(),
        )
        .expect("a record of some kilobytes is within AES-GCM's limits");
    let tag = tag
        .as_ref()
        .try_into()
        .expect("the tag of AES-256-GCM has 16 bytes");
    Ok(Encrypted {
        nonce,
        ciphertext: std::mem::take(&mut *buffer),
        tag,
    })
}

/// The plaintext, or nothing when any bit of key, nonce, ciphertext, tag or associated data is another.
pub(crate) fn decrypt(
    key: &AeadKey,
    associated: &[u8],
    nonce: &[u8; GCM_NONCE],
    ciphertext: &[u8],
    tag: &[u8; GCM_TAG],
) -> Option<Zeroizing<Vec<u8>>> {
    let mut buffer = Zeroizing::new([ciphertext, tag].concat());
    let length = cipher(key)
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(associated),
            buffer.as_mut_slice(),
        )
        .ok()?
        .len();
    buffer.truncate(length);
    Some(buffer)
}

fn cipher(key: &AeadKey) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_slice()).expect("AES-256 takes 32 bytes"))
}
