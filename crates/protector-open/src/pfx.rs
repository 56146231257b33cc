//! Guardians as PFX files (PKCS #12). Export writes one file for each certificate and key, with AES-256 and SHA-256,
//! or with 3DES and SHA-1 for old readers. Import is in `read`.
//!
//! This is the only way in which a private key leaves a host. The caller checks the permission and writes the audit
//! record. p12-keystore frees its copies of the key without wiping them, so an export must run in its own short-lived
//! process.

mod null_password;
mod pairing;
mod read;
mod refusal;
mod scan;
mod writings;

pub use read::{Found, KeyWithCertificate, assemble, read, sort_out};
pub use refusal::{MAX_PFX, PairError, PfxReadError};
pub use scan::MAX_ITERATIONS;

use crate::local_guardian::LocalGuardian;
use fleetward_model::guardian::CertificateRole;
use p12_keystore::{
    Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, MacAlgorithm, PrivateKey,
    PrivateKeyChain,
};
use zeroize::Zeroizing;

/// Rounds of key derivation, for encryption and for the MAC.
const ITERATIONS: u32 = 100_000;

/// Fewest characters of a password; a PFX can be guessed at offline.
pub const MIN_PASSWORD: usize = 8;

/// What is wrong with a password that [`is_narrow`] refuses.
const WIDE_PASSWORD: &str = "holds a character outside Unicode's basic plane, such as an emoji or a rare kanji, which PFX files are not made or read with here";

/// Whether PKCS #12 has every character of `password`. It counts in 16-bit units (BMPString, RFC 7292 appendix B.1); whether
/// surrogates may stand there, programs do not agree on, and the library refuses them.
fn is_narrow(password: &str) -> bool {
    password
        .chars()
        .all(|character| u32::from(character) <= 0xffff)
}

/// How an exported file is encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protection {
    /// AES-256 and SHA-256: OpenSSL, Windows 10 1709 and Windows Server 2019 or later.
    #[default]
    Aes256,
    /// 3DES and SHA-1: what Windows Server 2016 reads. Weak; the password should be long.
    Legacy,
}

/// Why no PFX was written.
#[derive(Debug, thiserror::Error)]
pub enum PfxError {
    #[error("the password has fewer than {MIN_PASSWORD} characters")]
    PasswordTooShort,
    #[error("the password {WIDE_PASSWORD}")]
    PasswordCharacters,
    #[error("the PFX file was not written")]
    Write(#[source] p12_keystore::error::Error),
}

/// The file name that Hyper-V administrators use for this certificate.
pub fn file_name(role: CertificateRole) -> &'static str {
    match role {
        CertificateRole::Signing => "VMSigning.pfx",
        CertificateRole::Encryption => "VMEncryption.pfx",
    }
}

/// One certificate of the guardian with its private key, encrypted under `password`.
pub fn export(
    guardian: &LocalGuardian,
    role: CertificateRole,
    password: &Zeroizing<String>,
    protection: Protection,
) -> Result<Zeroizing<Vec<u8>>, PfxError> {
    if password.chars().count() < MIN_PASSWORD {
        return Err(PfxError::PasswordTooShort);
    }
    if !is_narrow(password) {
        return Err(PfxError::PasswordCharacters);
    }
    let certificate = match role {
        CertificateRole::Signing => guardian.public().signing(),
        CertificateRole::Encryption => guardian.public().encryption(),
    };
    let entry = Certificate::from_der(certificate.der()).map_err(PfxError::Write)?;
    let key = PrivateKey::from_der(guardian.key(role).pkcs8()).map_err(PfxError::Write)?;
    let mut store = KeyStore::new();
    let chain = PrivateKeyChain::new(certificate.sha1().as_slice(), key, [entry]);
    store.add_entry(
        &certificate.subject(),
        KeyStoreEntry::PrivateKeyChain(chain),
    );
    let (encryption, mac) = match protection {
        Protection::Aes256 => (
            EncryptionAlgorithm::PbeWithHmacSha256AndAes256,
            MacAlgorithm::HmacSha256,
        ),
        Protection::Legacy => (
            EncryptionAlgorithm::PbeWithShaAnd3KeyTripleDesCbc,
            MacAlgorithm::HmacSha1,
        ),
    };
    let pfx = store
        .writer(password)
        .encryption_algorithm(encryption)
        .encryption_iterations(ITERATIONS)
        .mac_algorithm(mac)
        .mac_iterations(ITERATIONS)
        .write()
        .map_err(PfxError::Write)?;
    Ok(Zeroizing::new(pfx))
}
