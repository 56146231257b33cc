//! Reading PFX files: from our own export, from OpenSSL, from Windows' certutil.
//!
//! `read` opens one file and returns its private keys with their certificates. `assemble` makes a guardian from one or
//! two files; `sort_out` also accepts one half of a guardian. Chain certificates are ignored, because only keys matter
//! here. A key without its certificate, or a certificate without its key, refuses the whole file.

use super::pairing::pair_up;
use super::refusal::{MAX_PFX, PairError, PfxReadError};
use super::scan::{self, Scanned};
use super::{null_password, writings};
use crate::half::GuardianHalf;
use crate::local_guardian::LocalGuardian;
use crate::rsa_key::RsaPrivateKey;
use fleetward_model::guardian::CertificateRole;
use fleetward_protector::GuardianCertificate;
use p12_keystore::Pkcs12Archive;
use p12_keystore::error::Error as LibraryError;
use std::fmt;
use zeroize::Zeroizing;

/// A private key with its certificate, out of a PFX file.
pub struct KeyWithCertificate {
    certificate: Vec<u8>,
    subject: String,
    role: Option<CertificateRole>,
    key: RsaPrivateKey,
}

impl fmt::Debug for KeyWithCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyWithCertificate")
            .field("subject", &self.subject)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// Opens a PFX file: every private key in it with its certificate, at least one.
pub fn read(
    file: &[u8],
    password: &Zeroizing<String>,
) -> Result<Vec<KeyWithCertificate>, PfxReadError> {
    if file.len() > MAX_PFX {
        return Err(PfxReadError::TooLarge {
            size: file.len() as u64,
        });
    }
    let scanned = scan::scan(file)?;
    if !super::is_narrow(password) {
        return Err(PfxReadError::PasswordCharacters);
    }
    let archive = match Pkcs12Archive::from_pkcs12(file, password) {
        Ok(archive) => archive,
        Err(error) => match library_error(&error, file, &scanned.parts, password) {
            mac @ (PfxReadError::WrongPassword | PfxReadError::Altered) => {
                open_otherwise(file, &scanned, password)?.ok_or(mac)?
            }
            other => return Err(other),
        },
    };
    // Those in encrypted parts were not counted before.
    if archive.keys.len() > scan::MAX_DERIVATIONS {
        return Err(PfxReadError::Unsupported(
            "it has more private keys than a guardian's file",
        ));
    }
    pair_up(&archive)
}

/// Opens a file whose MAC is not that of the password as it is, but of one that another program may have made of it.
fn open_otherwise(
    file: &[u8],
    scanned: &Scanned<'_>,
    password: &Zeroizing<String>,
) -> Result<Option<Pkcs12Archive>, PfxReadError> {
    for writing in writings::others(password) {
        match Pkcs12Archive::from_pkcs12(file, &writing.password) {
            Ok(archive) => return Ok(Some(archive)),
            Err(LibraryError::MacError(_)) => {}
            // The MAC is this password's; the encryption takes its bytes in a way that the library does not know.
            Err(_) => return Err(PfxReadError::PasswordWriting { how: writing.how }),
        }
    }
    if password.is_empty() && null_password::fits(&scanned.mac) {
        return Err(PfxReadError::NullPassword);
    }
    Ok(None)
}

/// What the keys of some files are.
#[derive(Debug)]
pub enum Found {
    Guardian(Box<LocalGuardian>),
    /// One certificate with its key. The other may be in another file.
    Half(Box<GuardianHalf>),
}

/// The guardian whose two keys these are, or the half of one.
pub fn sort_out(keys: Vec<KeyWithCertificate>) -> Result<Found, PairError> {
    let (mut signing, mut encryption) = (Vec::new(), Vec::new());
    for key in keys {
        let half = key.half()?;
        match half.role() {
            CertificateRole::Signing => signing.push(half),
            CertificateRole::Encryption => encryption.push(half),
        }
    }
    let signing = at_most_one(signing, CertificateRole::Signing)?;
    let encryption = at_most_one(encryption, CertificateRole::Encryption)?;
    match (signing, encryption) {
        (Some(signing), Some(encryption)) => {
            Ok(Found::Guardian(Box::new(signing.join(encryption)?)))
        }
        (Some(half), None) | (None, Some(half)) => Ok(Found::Half(Box::new(half))),
        (None, None) => Err(PairError::Half {
            missing: CertificateRole::Signing,
        }),
    }
}

/// The guardian whose two keys these are: one for signing and one for encryption, of one host.
pub fn assemble(keys: Vec<KeyWithCertificate>) -> Result<LocalGuardian, PairError> {
    match sort_out(keys)? {
        Found::Guardian(guardian) => Ok(*guardian),
        Found::Half(half) => Err(PairError::Half {
            missing: match half.role() {
                CertificateRole::Signing => CertificateRole::Encryption,
                CertificateRole::Encryption => CertificateRole::Signing,
            },
        }),
    }
}

impl KeyWithCertificate {
    pub(super) fn new(
        certificate: Vec<u8>,
        subject: String,
        role: Option<CertificateRole>,
        key: RsaPrivateKey,
    ) -> Self {
        Self {
            certificate,
            subject,
            role,
            key,
        }
    }

    fn half(self) -> Result<GuardianHalf, PairError> {
        let Some(role) = self.role else {
            return Err(PairError::NoRole {
                subject: self.subject,
            });
        };
        let certificate = GuardianCertificate::from_der(role, &self.certificate)
            .map_err(|error| PairError::NotAGuardian(error.to_string()))?;
        Ok(GuardianHalf::new(certificate, self.key))
    }
}

fn at_most_one(
    halves: Vec<GuardianHalf>,
    role: CertificateRole,
) -> Result<Option<GuardianHalf>, PairError> {
    // The same file given twice, or a key that is twice in a file, is one key.
    let mut different: Vec<GuardianHalf> = Vec::new();
    for half in halves {
        if (different.iter()).all(|other| other.certificate() != half.certificate()) {
            different.push(half);
        }
    }
    let mut halves = different;
    match halves.len() {
        0 | 1 => Ok(halves.pop()),
        count => Err(PairError::Several { role, count }),
    }
}

fn library_error(
    error: &LibraryError,
    file: &[u8],
    parts: &[Vec<u8>],
    password: &Zeroizing<String>,
) -> PfxReadError {
    match error {
        // The MAC is over everything, so it fails both for a wrong password and for an altered file. A part that opens all
        // the same tells which: the MAC's key and the parts' come from one password.
        LibraryError::MacError(_) => {
            let opens = |part: &Vec<u8>| Pkcs12Archive::from_pkcs12(part, password).is_ok();
            if parts.iter().any(opens) {
                PfxReadError::Altered
            } else {
                PfxReadError::WrongPassword
            }
        }
        LibraryError::Pkcs5Error(_) | LibraryError::UnpadError if !password.is_ascii() => {
            PfxReadError::PasswordWriting {
                how: "in one way for its MAC and in another for its encryption",
            }
        }
        LibraryError::InvalidParameters => PfxReadError::TooManyIterationsInside,
        LibraryError::UnsupportedEncryptionScheme
        | LibraryError::UnsupportedMacAlgorithm
        | LibraryError::UnsupportedContentType
        | LibraryError::UnsupportedCertificateType => {
            PfxReadError::Unsupported("it uses an algorithm that is not read here")
        }
        _ if mac_was_compared(file, password) => PfxReadError::Inside,
        _ => PfxReadError::Damaged,
    }
}

/// Whether the library reads the file as far as its MAC: then another password is refused there.
fn mac_was_compared(file: &[u8], password: &Zeroizing<String>) -> bool {
    let another = Zeroizing::new(format!("{}x", password.as_str()));
    matches!(
        Pkcs12Archive::from_pkcs12(file, &another),
        Err(LibraryError::MacError(_))
    )
}
