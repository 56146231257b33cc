//! PFX files put together piece by piece, also such as no program writes.

use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::{digest, hmac, pbkdf2};
use std::num::NonZeroU32;

const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const ENCRYPTED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06];
const X509: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01];
const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14];
const LOCAL_KEY_ID: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x15];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
pub const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
pub const PBMAC1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0e];
pub const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
pub const AES_256_GCM: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2e];
pub const NULL: &[u8] = &[0x05, 0x00];

const SALT: &[u8] = b"eight bytes";

/// pkcs-12BagIds.
fn bag_id(last: u8) -> Vec<u8> {
    let id = [
        0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, last,
    ];
    tlv(0x06, &id)
}

pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut value = vec![tag];
    let length = content.len();
    match length {
        0..0x80 => value.push(length as u8),
        0x80..0x100 => value.extend([0x81, length as u8]),
        _ => value.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    value.extend_from_slice(content);
    value
}

pub fn seq(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

fn oid(id: &[u8]) -> Vec<u8> {
    tlv(0x06, id)
}

fn octets(bytes: &[u8]) -> Vec<u8> {
    tlv(0x04, bytes)
}

pub fn integer(number: u64) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let zeros = bytes.iter().take(7).take_while(|byte| **byte == 0).count();
    let mut significant = bytes[zeros..].to_vec();
    if significant[0] & 0x80 != 0 {
        significant.insert(0, 0);
    }
    tlv(0x02, &significant)
}

/// A value whose length is given by its end: BER.
pub fn indefinite(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, 0x80], content, &[0, 0]].concat()
}

/// An OCTET STRING in two pieces: BER.
pub fn in_pieces(bytes: &[u8]) -> Vec<u8> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    tlv(0x24, &[octets(first), octets(second)].concat())
}

pub fn local_key_id(id: u8) -> Vec<u8> {
    seq(&[&oid(LOCAL_KEY_ID), &tlv(0x31, &octets(&[id, 0, 0, 0]))])
}

/// `name` is the content of the BMPString.
pub fn friendly_name(name: &[u8]) -> Vec<u8> {
    seq(&[&oid(FRIENDLY_NAME), &tlv(0x31, &tlv(0x1e, name))])
}

/// A bag of a kind, with the attributes in the order given.
fn bag(kind: u8, value: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let attributes = match attributes {
        [] => Vec::new(),
        some => tlv(0x31, &some.concat()),
    };
    seq(&[&bag_id(kind), &tlv(0xa0, value), &attributes])
}

pub fn key_bag(pkcs8: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    bag(1, pkcs8, attributes)
}

pub fn cert_bag(der: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let value = seq(&[&oid(X509), &tlv(0xa0, &octets(der))]);
    bag(3, &value, attributes)
}

/// How something is encrypted: the algorithm's identifier and the ciphertext.
pub struct Encrypted {
    pub algorithm: Vec<u8>,
    pub text: Vec<u8>,
}

/// PBES2 parameters with these rounds, pseudorandom function and cipher.
pub fn pbes2(rounds: u64, prf: &[u8], cipher: &[u8], iv: &[u8]) -> Vec<u8> {
    let derivation = seq(&[&octets(SALT), &integer(rounds), prf]);
    seq(&[
        &oid(PBES2),
        &seq(&[
            &seq(&[&oid(PBKDF2), &derivation]),
            &seq(&[&oid(cipher), &octets(iv)]),
        ]),
    ])
}

/// A bag of bags.
pub fn nested_bag(bags: &[Vec<u8>]) -> Vec<u8> {
    bag(6, &tlv(0x30, &bags.concat()), &[])
}

/// An HMAC by the last number of its identifier, 1.2.840.113549.2.N.
fn hmac(last: u8, parameters: &[u8]) -> Vec<u8> {
    let id = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, last];
    seq(&[&oid(&id), parameters])
}

pub fn hmac_sha256(parameters: &[u8]) -> Vec<u8> {
    hmac(9, parameters)
}

/// With AES-256-CBC and one round of HMAC-SHA-256; `prf` is its identifier in the parameters.
pub fn encrypt(content: &[u8], password: &str, prf: &[u8]) -> Encrypted {
    encrypt_by(content, password, pbkdf2::PBKDF2_HMAC_SHA256, prf)
}

/// With HMAC-SHA-384 or HMAC-SHA-512 as its pseudorandom function.
pub fn encrypt_by_sha2(content: &[u8], password: &str, bits: u32) -> Encrypted {
    let (derive_by, last) = match bits {
        384 => (pbkdf2::PBKDF2_HMAC_SHA384, 10),
        _ => (pbkdf2::PBKDF2_HMAC_SHA512, 11),
    };
    encrypt_by(content, password, derive_by, &hmac(last, NULL))
}

fn encrypt_by(
    content: &[u8],
    password: &str,
    derive_by: pbkdf2::Algorithm,
    prf: &[u8],
) -> Encrypted {
    let mut key = [0; 32];
    pbkdf2::derive(
        derive_by,
        NonZeroU32::MIN,
        SALT,
        password.as_bytes(),
        &mut key,
    );
    let key = UnboundCipherKey::new(&AES_256, &key).unwrap();
    let mut text = content.to_vec();
    let context = PaddedBlockEncryptingKey::cbc_pkcs7(key)
        .unwrap()
        .encrypt(&mut text)
        .unwrap();
    let DecryptionContext::Iv128(iv) = context else {
        panic!("CBC has an initial vector")
    };
    let iv: &[u8; 16] = iv.as_ref();
    Encrypted {
        algorithm: pbes2(1, prf, AES_256_CBC, iv),
        text,
    }
}

pub fn shrouded_bag(encrypted: &Encrypted, attributes: &[Vec<u8>]) -> Vec<u8> {
    let value = seq(&[&encrypted.algorithm, &octets(&encrypted.text)]);
    bag(2, &value, attributes)
}

/// A part with bags in clear.
pub fn clear(bags: &[Vec<u8>]) -> Vec<u8> {
    data(&octets(&tlv(0x30, &bags.concat())))
}

/// A part, whose content is this value.
pub fn data(value: &[u8]) -> Vec<u8> {
    seq(&[&oid(DATA), &tlv(0xa0, value)])
}

/// A part that is encrypted.
pub fn encrypted(encrypted: &Encrypted) -> Vec<u8> {
    with_content(encrypted, &tlv(0x80, &encrypted.text))
}

/// The same with its content in another form.
pub fn with_content(encrypted: &Encrypted, content: &[u8]) -> Vec<u8> {
    let info = seq(&[&oid(DATA), &encrypted.algorithm, content]);
    let value = seq(&[&integer(0), &info]);
    seq(&[&oid(ENCRYPTED_DATA), &tlv(0xa0, &value)])
}

/// The MAC of a file: SHA-256, with these parameters of the digest and the rounds that are said.
pub struct Mac {
    pub digest: Vec<u8>,
    pub rounds: Option<u64>,
    /// The password's bytes, as PKCS #12 has them.
    pub password: Vec<u8>,
}

impl Mac {
    pub fn of(password: &str) -> Self {
        let units = password.encode_utf16().chain([0]);
        Self {
            digest: seq(&[&oid(SHA256), NULL]),
            rounds: None,
            password: units.flat_map(u16::to_be_bytes).collect(),
        }
    }

    /// The MAC of `content`, made in one round.
    fn data(&self, content: &[u8]) -> Vec<u8> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &mac_key(&self.password));
        let value = hmac::sign(&key, content);
        let digest = seq(&[&self.digest, &octets(value.as_ref())]);
        let rounds = self.rounds.map(integer).unwrap_or_default();
        seq(&[&digest, &octets(SALT), &rounds])
    }
}

pub fn digest_without_null() -> Vec<u8> {
    seq(&[&oid(SHA256)])
}

pub fn digest(algorithm: &[u8], parameters: &[u8]) -> Vec<u8> {
    seq(&[&oid(algorithm), parameters])
}

/// RFC 7292 appendix B.2 for one block: SHA-256, one round, identifier 3.
fn mac_key(password: &[u8]) -> Vec<u8> {
    let filled = |bytes: &[u8]| -> Vec<u8> {
        let length = bytes.len().div_ceil(64) * 64;
        bytes.iter().copied().cycle().take(length).collect()
    };
    let input = [vec![3; 64], filled(SALT), filled(password)].concat();
    digest::digest(&digest::SHA256, &input).as_ref().to_vec()
}

/// A file of these parts.
pub fn pfx(parts: &[Vec<u8>], password: &str) -> Vec<u8> {
    pfx_with(&tlv(0x30, &parts.concat()), &Mac::of(password))
}

/// A file whose content is this, with this MAC.
pub fn pfx_with(content: &[u8], mac: &Mac) -> Vec<u8> {
    whole(&octets(content), &mac.data(content))
}

/// A file with this value for its content.
pub fn whole(value: &[u8], mac: &[u8]) -> Vec<u8> {
    seq(&[&integer(3), &data(value), mac])
}

/// The content in pieces, under the right MAC.
pub fn pfx_in_pieces(content: &[u8], mac: &Mac) -> Vec<u8> {
    whole(&in_pieces(content), &mac.data(content))
}
