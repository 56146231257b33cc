//! The ways in which programs write the same password.
//!
//! PKCS #12 takes a password's 16-bit units for the MAC and for 3DES, and its UTF-8 for AES (RFC 7292 appendix B.1, RFC 8018).
//! What a program takes for the password depends on the terminal, on the password file, and on its age. A password that
//! does not open a file is tried as those programs would have taken it; that is never said to be a wrong password.

use super::is_narrow;
use encoding_rs::{EUC_JP, Encoding, SHIFT_JIS};
use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};
use zeroize::Zeroizing;

/// A password as another program may have taken it, and how that is.
pub(super) struct Writing {
    pub(super) password: Zeroizing<String>,
    pub(super) how: &'static str,
}

/// The other ways to write `password`.
pub(super) fn others(password: &str) -> impl Iterator<Item = Writing> {
    let mut all = Vec::new();
    let mut add = |how, other: Zeroizing<String>| {
        if *other != password && is_narrow(&other) {
            all.push(Writing {
                password: other,
                how,
            });
        }
    };
    if !password.is_ascii() {
        add("in composed characters (NFC)", composed(password));
        add("in decomposed characters (NFD)", decomposed(password));
    }
    let line_end = "with the CR of a Windows line end";
    add(line_end, joined(&[password, "\r"]));
    add(
        "with a byte order mark before it",
        joined(&["\u{feff}", password]),
    );
    add(
        "with a byte order mark before it and the CR of a Windows line end",
        joined(&["\u{feff}", password, "\r"]),
    );
    if !password.is_ascii() {
        add(
            "as its bytes in UTF-8, each for a character",
            each_for_a_character(password.as_bytes()),
        );
        for (how, encoding) in [
            ("as its bytes in Shift_JIS", SHIFT_JIS),
            ("as its bytes in EUC-JP", EUC_JP),
        ] {
            if let Some(bytes) = encoded(password, encoding) {
                add(how, each_for_a_character(&bytes));
            }
        }
    }
    all.into_iter()
}

fn composed(password: &str) -> Zeroizing<String> {
    let mut text = room(password.len() * 3);
    // Writing to a String does not fail.
    let _ = ComposingNormalizerBorrowed::new_nfc().normalize_to(password, &mut *text);
    text
}

fn decomposed(password: &str) -> Zeroizing<String> {
    let mut text = room(password.len() * 4);
    let _ = DecomposingNormalizerBorrowed::new_nfd().normalize_to(password, &mut *text);
    text
}

fn joined(parts: &[&str]) -> Zeroizing<String> {
    let mut text = room(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| text.push_str(part));
    text
}

fn each_for_a_character(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = room(bytes.len() * 2);
    text.extend(bytes.iter().map(|byte| char::from(*byte)));
    text
}

/// None where the encoding does not have one of the characters.
fn encoded(password: &str, encoding: &'static Encoding) -> Option<Zeroizing<Vec<u8>>> {
    let (bytes, _, unmappable) = encoding.encode(password);
    let bytes = Zeroizing::new(bytes.into_owned());
    (!unmappable).then_some(bytes)
}

/// Room for all of it at once: a string that grows leaves its bytes behind.
fn room(bytes: usize) -> Zeroizing<String> {
    Zeroizing::new(String::with_capacity(bytes))
}
