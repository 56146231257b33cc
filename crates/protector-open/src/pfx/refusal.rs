//! Why a PFX file, or what is in it, is not taken: each reason in words, with its error code.

use super::scan;
use fleetward_model::ErrorCode;
use fleetward_model::guardian::CertificateRole;
use fleetward_protector::certificate::CertificateError;

/// Largest PFX file taken, in bytes. Two RSA-8192 keys with a chain stay far below.
pub const MAX_PFX: usize = 256 * 1024;

/// Why a PFX file was not taken.
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
    #[error("the file asks for 0 rounds of key derivation, and there is at least one")]
    NoIterations,
    #[error("the password does not open the file")]
    WrongPassword,
    #[error(
        "the file was made with this password written {how}, and what was encrypted with that is not opened here"
    )]
    PasswordWriting { how: &'static str },
    #[error("the file was made without any password, which is not the same as an empty one")]
    NullPassword,
    #[error("{0}")]
    Unsupported(&'static str),
    /// BER, which can be written as DER.
    #[error("the file, or a part of it, is BER {0}, and PFX files are read in DER alone")]
    Ber(&'static str),
    #[error(
        "the password is right and the file unaltered, but something inside is not in DER, or not as RFC 7292 has it"
    )]
    Inside,
    #[error(
        "the password {}; export the file with another one",
        super::WIDE_PASSWORD
    )]
    PasswordCharacters,
    #[error("the file holds a certificate, but no private key")]
    NoKey,
    #[error("the file holds a private key without its certificate")]
    NoCertificate,
    #[error(
        "a key in the file has {count} certificates, and none of them alone is marked as its own"
    )]
    SeveralCertificates { count: usize },
    #[error("the certificate holds an RSA key of {bits} bits; 2048 to 8192 are taken")]
    WeakKey { bits: usize },
    #[error("the certificate holds an RSA key of {bits} bits; 2048 to 8192 are taken")]
    LargeKey { bits: usize },
    #[error("a private key in the file is {kind}, and a guardian's are RSA keys for every use")]
    NotRsa { kind: String },
    /// A certificate that others may read.
    #[error("the certificate of the key has a form that is not taken here")]
    Form(#[source] CertificateError),
    #[error("a private key in the file cannot be used")]
    Key,
}

impl PfxReadError {
    /// The code that people and scripts get.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::PfxTooLarge,
            Self::Truncated { .. } => ErrorCode::PfxTruncated,
            Self::Damaged | Self::Altered | Self::NoIterations | Self::Key => ErrorCode::PfxDamaged,
            Self::NoMac => ErrorCode::PfxNoMac,
            Self::TooManyIterations { .. } | Self::TooManyIterationsInside => {
                ErrorCode::PfxTooManyIterations
            }
            Self::WrongPassword => ErrorCode::PfxWrongPassword,
            Self::Unsupported(_)
            | Self::Ber(_)
            | Self::Inside
            | Self::PasswordCharacters
            | Self::PasswordWriting { .. }
            | Self::NullPassword
            | Self::NotRsa { .. }
            | Self::LargeKey { .. }
            | Self::Form(_) => ErrorCode::PfxUnsupported,
            Self::NoKey => ErrorCode::PfxNoKey,
            Self::NoCertificate => ErrorCode::PfxNoCertificate,
            Self::SeveralCertificates { .. } => ErrorCode::PfxNotAPair,
            Self::WeakKey { .. } => ErrorCode::PfxWeakKey,
        }
    }
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

impl PairError {
    /// The code that people and scripts get.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Half { .. } => ErrorCode::PfxIncomplete,
            Self::Several { .. }
            | Self::NoRole { .. }
            | Self::DifferentHosts { .. }
            | Self::NotAGuardian(_) => ErrorCode::PfxNotAPair,
        }
    }
}

fn word(role: CertificateRole) -> &'static str {
    match role {
        CertificateRole::Signing => "signing",
        CertificateRole::Encryption => "encryption",
    }
}
