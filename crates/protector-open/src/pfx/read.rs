//! Reading PFX files: from our own export, from OpenSSL, from Windows' certutil.
//!
//! `read` opens one file and returns its private keys with their certificates. `assemble` makes a guardian from one or
//! two files; `sort_out` also accepts one half of a guardian. Chain certificates are ignored, because only keys matter
//! here. A key without its certificate, or a certificate without its key, refuses the whole file.

use super::scan;
use crate::half::GuardianHalf;
use crate::local_guardian::LocalGuardian;
use crate::rsa_key::RsaPrivateKey;
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::ID_CE_KEY_USAGE;
use const_oid::db::rfc5912::RSA_ENCRYPTION;
use der::asn1::BitStringRef;
use der::{Decode, Reader, SliceReader};
use fleetward_model::guardian::CertificateRole;
use fleetward_protector::GuardianCertificate;
use fleetward_protector::certificate::{CertificateError, RSA_BITS};
use p12_keystore::Pkcs12Archive;
use p12_keystore::error::Error as LibraryError;
use spki::AlgorithmIdentifierRef;
use std::fmt;
use x509_cert::Certificate;
use zeroize::Zeroizing;

/// Largest PFX file taken, in bytes. Two RSA-8192 keys with a chain stay far below.
pub const MAX_PFX: usize = 256 * 1024;

/// Why a PFX file was not taken. Each has its own error code.
#[derive(Debug, thiserror::Error)]
pub enum PfxReadError {
    #[error("the file has {size} bytes, at most {MAX_PFX} are taken")]
    TooLarge { size: u64 },
    #[error("the file ends early{}", match missing { Some(bytes) => format!(": {bytes} bytes are missing"), None => String::new() })]
    Truncated { missing: Option<usize> },
    #[error("the file is no PFX file, or was altered")]
    Damaged,
    #[error(
        "the password is right, but the file does not have the content its MAC was made for: it was altered"
    )]
    Altered,
    #[error("the file has no MAC")]
    NoMac,
    #[error(
        "the file asks for {iterations} rounds of key derivation, at most {} are made",
        scan::MAX_ITERATIONS
    )]
    TooManyIterations { iterations: u64 },
    #[error(
        "a key inside the file asks for more than {} rounds of key derivation",
        scan::MAX_ITERATIONS
    )]
    TooManyIterationsInside,
    #[error("the password does not open the file")]
    WrongPassword,
    #[error("{0}")]
    Unsupported(&'static str),
    #[error(
        "the password {}; export the file with another one",
        super::WIDE_PASSWORD
    )]
    PasswordCharacters,
    #[error("the file holds a certificate, but no private key")]
    NoKey,
    #[error("the file holds a private key without its certificate")]
    NoCertificate,
    #[error("the certificate holds an RSA key of {bits} bits; 2048 to 8192 are taken")]
    WeakKey { bits: usize },
    #[error("the certificate holds an RSA key of {bits} bits; 2048 to 8192 are taken")]
    LargeKey { bits: usize },
    #[error("the key is not an RSA key (it may be one for elliptic curves), and a guardian's are")]
    NotRsa,
    /// A certificate that others may read.
    #[error("the certificate of the key has a form that is not taken here")]
    Form(#[source] CertificateError),
    #[error("a private key in the file cannot be used")]
    Key,
}

/// Why the keys of the files are not one guardian's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    #[error("there is no {} certificate in the files", word(*missing))]
    Half { missing: CertificateRole },
    #[error("there are {count} {} certificates in the files", word(*role))]
    Several { role: CertificateRole, count: usize },
    #[error("certificate {subject} is neither for signing alone nor for encryption alone")]
    NoRole { subject: String },
    #[error("the certificates are of different hosts: {signing}, {encryption}")]
    DifferentHosts { signing: String, encryption: String },
    #[error("the two certificates are not a guardian: {0}")]
    NotAGuardian(String),
}

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
    let parts = scan::scan(file)?;
    if !super::is_narrow(password) {
        return Err(PfxReadError::PasswordCharacters);
    }
    let archive = Pkcs12Archive::from_pkcs12(file, password)
        .map_err(|error| library_error(&error, &parts, password))?;
    pair_up(&archive)
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
    mut halves: Vec<GuardianHalf>,
    role: CertificateRole,
) -> Result<Option<GuardianHalf>, PairError> {
    // The same file given twice is one key.
    halves.dedup_by(|a, b| a.certificate() == b.certificate());
    match halves.len() {
        0 | 1 => Ok(halves.pop()),
        count => Err(PairError::Several { role, count }),
    }
}

fn pair_up(archive: &Pkcs12Archive) -> Result<Vec<KeyWithCertificate>, PfxReadError> {
    if archive.keys.is_empty() {
        return Err(PfxReadError::NoKey);
    }
    if archive.certs.is_empty() {
        return Err(PfxReadError::NoCertificate);
    }
    let certificates: Vec<&[u8]> = archive.certs.iter().map(|bag| bag.cert.as_der()).collect();
    // What is wrong with a key's certificate is said as that, before the key itself is refused without a reason.
    for (certificate, bag) in certificates.iter().zip(&archive.certs) {
        let of_a_key = |id: &Vec<u8>| {
            let ids = archive
                .keys
                .iter()
                .filter_map(|key| key.local_key_id.as_ref());
            ids.map(AsRef::<[u8]>::as_ref).any(|other| other == id)
        };
        let own = certificates.len() == 1 || bag.local_key_id.as_ref().is_some_and(of_a_key);
        match GuardianCertificate::from_der(CertificateRole::Signing, certificate) {
            Err(error) if own => return Err(certificate_error(error)),
            // The rest of a chain is none of our business.
            Ok(_) | Err(_) => {}
        }
    }
    archive
        .keys
        .iter()
        .map(|bag| {
            if !is_rsa(bag.key.as_der()) {
                return Err(PfxReadError::NotRsa);
            }
            let pkcs8 = Zeroizing::new(bag.key.as_der().to_vec());
            let key = RsaPrivateKey::from_pkcs8(pkcs8).map_err(|_| PfxReadError::Key)?;
            let (certificate, parsed) = certificates
                .iter()
                .find_map(|der| {
                    let parsed =
                        GuardianCertificate::from_der(CertificateRole::Signing, der).ok()?;
                    key.belongs_to(&parsed).then_some((*der, parsed))
                })
                .ok_or(PfxReadError::NoCertificate)?;
            Ok(KeyWithCertificate {
                certificate: certificate.to_vec(),
                subject: parsed.subject(),
                role: role_of(certificate),
                key,
            })
        })
        .collect()
}

fn certificate_error(error: CertificateError) -> PfxReadError {
    match error {
        CertificateError::KeySize { bits } if bits < *RSA_BITS.start() => {
            PfxReadError::WeakKey { bits }
        }
        CertificateError::KeySize { bits } => PfxReadError::LargeKey { bits },
        CertificateError::NotRsa => PfxReadError::NotRsa,
        // The MAC has shown that the file is as it was made.
        CertificateError::NotCanonical
        | CertificateError::TooLarge { .. }
        | CertificateError::Malformed(_) => PfxReadError::Form(error),
    }
}

/// Whether a PKCS #8 key says that it is one for RSA (RFC 5958 section 2). One that says nothing readable may be.
fn is_rsa(pkcs8: &[u8]) -> bool {
    /// The beginning of `OneAsymmetricKey`; what follows is nobody's business here.
    fn algorithm(pkcs8: &[u8]) -> der::Result<ObjectIdentifier> {
        SliceReader::new(pkcs8)?.sequence(|inside| {
            let _version = u8::decode(inside)?;
            let algorithm = AlgorithmIdentifierRef::decode(inside)?;
            let rest = inside.remaining_len();
            inside.read_slice(rest)?;
            Ok(algorithm.oid)
        })
    }
    algorithm(pkcs8).map_or(true, |found| found == RSA_ENCRYPTION)
}

/// What a certificate is for: by its key usage (RFC 5280 section 4.2.1.3); where that says both or nothing, by its subject.
fn role_of(der: &[u8]) -> Option<CertificateRole> {
    let certificate = Certificate::from_der(der).ok()?;
    let usage = certificate
        .tbs_certificate
        .extensions
        .iter()
        .flatten()
        .find(|extension| extension.extn_id == ID_CE_KEY_USAGE)
        .and_then(|extension| BitStringRef::from_der(extension.extn_value.as_bytes()).ok())
        .and_then(|bits| bits.raw_bytes().first().copied())
        .unwrap_or(0);
    // Bits are numbered from the left: 0 digitalSignature, 2 keyEncipherment, 3 dataEncipherment.
    let (signs, encrypts) = (usage & 0x80 != 0, usage & 0x30 != 0);
    match (signs, encrypts) {
        (true, false) => Some(CertificateRole::Signing),
        (false, true) => Some(CertificateRole::Encryption),
        (true, true) | (false, false) => {
            let subject = certificate.tbs_certificate.subject.to_string();
            if subject.contains("Signing Certificate") {
                Some(CertificateRole::Signing)
            } else if subject.contains("Encryption Certificate") {
                Some(CertificateRole::Encryption)
            } else {
                None
            }
        }
    }
}

fn library_error(
    error: &LibraryError,
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
        LibraryError::InvalidParameters => PfxReadError::TooManyIterationsInside,
        LibraryError::UnsupportedEncryptionScheme
        | LibraryError::UnsupportedMacAlgorithm
        | LibraryError::UnsupportedContentType
        | LibraryError::UnsupportedCertificateType => {
            PfxReadError::Unsupported("it uses an algorithm that is not read here")
        }
        _ => PfxReadError::Damaged,
    }
}

fn word(role: CertificateRole) -> &'static str {
    match role {
        CertificateRole::Signing => "signing",
        CertificateRole::Encryption => "encryption",
    }
}
