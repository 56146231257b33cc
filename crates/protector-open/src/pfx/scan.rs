//! Checks a PFX file before any key derivation: it is complete, has a MAC, and is cheap enough to open.
//!
//! Reads the structure of RFC 7292 section 4 as far as it requests key derivation in clear text: the MAC, encrypted
//! contents, and shrouded keys in contents that are not encrypted. The inside of encrypted contents is read only with
//! the right password and a valid MAC, and the library applies the same limit there.

use super::PfxReadError as E;
use der::{Decode, Header, Reader, SliceReader, Tag, TagNumber};

/// Most rounds of key derivation of the MAC, and of each encryption.
pub const MAX_ITERATIONS: u64 = 1_000_000;

/// Most parts that ask for key derivation. OpenSSL and Windows write two or three.
pub(super) const MAX_DERIVATIONS: usize = 8;

const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const ENCRYPTED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06];
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
const PBMAC1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0e];
/// pkcs-12PbeIds: 3 is 3DES with three keys, 6 is RC2 with 40 bits.
const PKCS12_PBE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01];
/// AES in CBC mode, by its last number: keys of 128, 192 and 256 bits.
const AES: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01];
/// Bags in a bag.
const BAGS: &[u8] = &[
    0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x06,
];
const SHROUDED_KEY: &[u8] = &[
    0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x02,
];

/// How BER differs from DER (X.690 section 10).
const INDEFINITE: &str = "with an indefinite length";
const IN_PIECES: &str = "with strings in pieces";
const LONG_LENGTH: &str = "with a length in more bytes than it needs";

const OTHER_CIPHER: E =
    E::Unsupported("it is encrypted with something other than AES in CBC mode, 3DES or 40-bit RC2");

/// One DER value.
#[derive(Debug, Clone, Copy)]
struct Value<'a> {
    tag: Tag,
    content: &'a [u8],
    /// With its header.
    whole: &'a [u8],
}

/// What is known of a file before it is opened.
pub(super) struct Scanned<'a> {
    /// The contents that are encrypted in any way, each as a PFX file of its own without a MAC: with the right password at
    /// least one of them opens even where the file was altered.
    pub(super) parts: Vec<Vec<u8>>,
    pub(super) mac: Mac<'a>,
}

/// The MAC of a file.
pub(super) struct Mac<'a> {
    /// The identifier of the digest, as DER has it.
    pub(super) digest: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) salt: &'a [u8],
    pub(super) rounds: u64,
    /// What the MAC is over.
    pub(super) content: &'a [u8],
}

/// Refuses what must not be opened.
pub(super) fn scan(file: &[u8]) -> Result<Scanned<'_>, E> {
    require_whole(file)?;
    let [pfx] = fixed(members(file)?)?;
    let mut pfx = members(sequence(pfx)?)?.into_iter();
    let version = pfx.next().ok_or(E::Damaged)?;
    if version.tag != Tag::Integer || version.content != [3] {
        return Err(E::Damaged);
    }
    let [kind, content] = fixed(members(sequence(pfx.next().ok_or(E::Damaged)?)?)?)?;
    match kind.content {
        DATA => {}
        _ => {
            return Err(E::Unsupported(
                "it is signed with a key instead of a password",
            ));
        }
    }
    let mac = pfx.next().ok_or(E::NoMac)?;
    let mac = check_mac(mac)?;
    let [octets] = fixed(members(content.content)?)?;
    let content = octets_of(octets)?;
    let mut derivations = 0;
    let mut parts = Vec::new();
    for safe in members(sequence(only(content)?)?)? {
        let before = derivations;
        check_safe(safe, &mut derivations)?;
        if derivations > MAX_DERIVATIONS {
            return Err(E::Unsupported(
                "it has more encrypted parts than a guardian's file",
            ));
        }
        if derivations > before {
            parts.push(alone(safe));
        }
    }
    let mac = Mac { content, ..mac };
    Ok(Scanned { parts, mac })
}

/// Whether the outermost value is all there, and nothing follows it.
fn require_whole(file: &[u8]) -> Result<(), E> {
    if file.starts_with(&[0x30, 0x80]) {
        return Err(E::Ber(INDEFINITE));
    }
    if file.is_empty() {
        return Err(E::Truncated { missing: None });
    }
    if file[0] != 0x30 {
        return Err(E::Damaged);
    }
    // A header that is cut off, or that promises more than there is.
    let length_bytes = match file.get(1) {
        None => return Err(E::Truncated { missing: None }),
        Some(first) if *first < 0x80 => 0,
        Some(first) => usize::from(first & 0x7f),
    };
    if length_bytes > 4 {
        return Err(E::Damaged);
    }
    let Some(length) = file.get(2..2 + length_bytes) else {
        return Err(E::Truncated { missing: None });
    };
    let content = match length_bytes {
        0 => usize::from(file[1]),
        _ => length
            .iter()
            .fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte)),
    };
    let whole = content.saturating_add(2 + length_bytes);
    match file.len().cmp(&whole) {
        std::cmp::Ordering::Less => Err(E::Truncated {
            missing: Some(whole - file.len()),
        }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(E::Damaged),
    }
}

/// The MAC, without what it is over.
fn check_mac(mac: Value<'_>) -> Result<Mac<'_>, E> {
    let mac = members(sequence(mac)?)?;
    let (info, salt, rounds) = match mac.as_slice() {
        [info, salt] => (*info, *salt, 1),
        [info, salt, rounds] => (*info, *salt, number(*rounds)?),
        _ => return Err(E::Damaged),
    };
    let [algorithm, value] = fixed(members(sequence(info)?)?)?;
    let algorithm = members(sequence(algorithm)?)?;
    let digest = algorithm.first().ok_or(E::Damaged)?.content;
    if digest == PBMAC1 {
        return Err(E::Unsupported("its MAC is PBMAC1"));
    }
    limit(rounds)?;
    Ok(Mac {
        digest,
        value: value.content,
        salt: salt.content,
        rounds,
        content: &[],
    })
}

fn check_safe(safe: Value<'_>, derivations: &mut usize) -> Result<(), E> {
    let [kind, content] = fixed(members(sequence(safe)?)?)?;
    let [content] = fixed(members(content.content)?)?;
    match kind.content {
        ENCRYPTED_DATA => {
            let parts = members(sequence(content)?)?;
            let info = members(sequence(*parts.get(1).ok_or(E::Damaged)?)?)?;
            if info
                .get(2)
                .is_some_and(|content| content.tag.is_constructed())
            {
                return Err(E::Ber(IN_PIECES));
            }
            *derivations += 1;
            check_algorithm(*info.get(1).ok_or(E::Damaged)?)
        }
        DATA => {
            for bag in members(sequence(only(octets_of(content)?)?)?)? {
                let bag = members(sequence(bag)?)?;
                let [kind, value, ..] = bag.as_slice() else {
                    return Err(E::Damaged);
                };
                if kind.content == BAGS {
                    return Err(E::Unsupported("it has bags inside of bags"));
                }
                if kind.content == SHROUDED_KEY {
                    let shrouded = only(value.content)?;
                    let parts = members(sequence(shrouded)?)?;
                    *derivations += 1;
                    check_algorithm(*parts.first().ok_or(E::Damaged)?)?;
                }
            }
            Ok(())
        }
        _ => Err(E::Unsupported(
            "a part of it is encrypted for a certificate",
        )),
    }
}

fn check_algorithm(algorithm: Value<'_>) -> Result<(), E> {
    let algorithm = members(sequence(algorithm)?)?;
    let (kind, parameters) = match algorithm.as_slice() {
        [_] => return Err(E::Unsupported("its encryption has no parameters")),
        [_, none] if none.tag == Tag::Null => {
            return Err(E::Unsupported("its encryption has no parameters"));
        }
        [kind, parameters] => (*kind, *parameters),
        _ => return Err(E::Damaged),
    };
    if kind.content == PBES2 {
        let [derivation, cipher] = fixed(members(sequence(parameters)?)?)?;
        let cipher = *members(sequence(cipher)?)?.first().ok_or(E::Damaged)?;
        if !matches!(cipher.content.strip_prefix(AES), Some([2 | 22 | 42])) {
            return Err(OTHER_CIPHER);
        }
        let [kind, parameters] = fixed(members(sequence(derivation)?)?)?;
        if kind.content != PBKDF2 {
            return Err(E::Unsupported("its keys are not derived with PBKDF2"));
        }
        return limit(number(
            *members(sequence(parameters)?)?.get(1).ok_or(E::Damaged)?,
        )?);
    }
    match kind.content.strip_prefix(PKCS12_PBE) {
        Some([3 | 6]) => limit(number(
            *members(sequence(parameters)?)?.get(1).ok_or(E::Damaged)?,
        )?),
        _ => Err(OTHER_CIPHER),
    }
}

fn limit(iterations: u64) -> Result<(), E> {
    if iterations > MAX_ITERATIONS {
        return Err(E::TooManyIterations { iterations });
    }
    if iterations == 0 {
        return Err(E::NoIterations);
    }
    Ok(())
}

/// A PFX file of this content alone, without a MAC.
fn alone(safe: Value<'_>) -> Vec<u8> {
    let octets = wrap(0x04, &wrap(0x30, safe.whole));
    let oid = wrap(0x06, DATA);
    let info = wrap(0x30, &[oid, wrap(0xa0, &octets)].concat());
    wrap(0x30, &[vec![0x02, 0x01, 0x03], info].concat())
}

fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[content.len().leading_zeros() as usize / 8..];
    let mut value = vec![tag];
    if content.len() < 0x80 {
        value.push(u8::try_from(content.len()).expect("checked"));
    } else {
        value.push(0x80 | u8::try_from(significant.len()).expect("at most eight"));
        value.extend_from_slice(significant);
    }
    value.extend_from_slice(content);
    value
}

fn members(bytes: &[u8]) -> Result<Vec<Value<'_>>, E> {
    let mut reader = SliceReader::new(bytes).map_err(|_| E::Damaged)?;
    let mut values = Vec::new();
    while !reader.is_finished() {
        let start = usize::try_from(reader.position()).map_err(|_| E::Damaged)?;
        let header = Header::decode(&mut reader).map_err(|_| not_der(&bytes[start..]))?;
        let content = reader.read_slice(header.length).map_err(|_| E::Damaged)?;
        let end = usize::try_from(reader.position()).map_err(|_| E::Damaged)?;
        values.push(Value {
            tag: header.tag,
            content,
            whole: &bytes[start..end],
        });
        if values.len() > 256 {
            return Err(E::Damaged);
        }
    }
    Ok(values)
}

/// What is wrong with a value whose header is not DER.
fn not_der(value: &[u8]) -> E {
    match value {
        [0x24, ..] => E::Ber(IN_PIECES),
        [_, 0x80, ..] => E::Ber(INDEFINITE),
        [_, 0x81, 0..0x80, ..] | [_, 0x82..=0x84, 0, ..] => E::Ber(LONG_LENGTH),
        _ => E::Damaged,
    }
}

fn fixed<const N: usize>(values: Vec<Value<'_>>) -> Result<[Value<'_>; N], E> {
    values.try_into().map_err(|_| E::Damaged)
}

fn only(bytes: &[u8]) -> Result<Value<'_>, E> {
    let [value] = fixed(members(bytes)?)?;
    Ok(value)
}

fn sequence(value: Value<'_>) -> Result<&[u8], E> {
    match value.tag {
        Tag::Sequence => Ok(value.content),
        _ => Err(E::Damaged),
    }
}

fn octets_of(value: Value<'_>) -> Result<&[u8], E> {
    match value.tag {
        Tag::OctetString => Ok(value.content),
        Tag::ContextSpecific {
            number: TagNumber::N0,
            ..
        } => Err(E::Ber(IN_PIECES)),
        _ => Err(E::Damaged),
    }
}

/// A non-negative number; one that does not fit is certainly too large.
fn number(value: Value<'_>) -> Result<u64, E> {
    match value.content {
        [] => Err(E::Damaged),
        [first, ..] if value.tag != Tag::Integer || first & 0x80 != 0 => Err(E::Damaged),
        bytes if bytes.len() > 9 => Ok(u64::MAX),
        bytes => Ok(bytes
            .iter()
            .try_fold(0_u64, |sum, byte| {
                sum.checked_mul(256)?.checked_add((*byte).into())
            })
            .unwrap_or(u64::MAX)),
    }
}
