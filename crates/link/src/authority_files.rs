//! Storage of an authority's certificate and key: both in one file of mode 0600, so that a crash leaves both or
//! neither, and a copy of the certificate beside it. A damaged file is never replaced.

use crate::authority::AuthorityError;
use crate::credential::certificate_pem;
use fleetward_durable::{self as durable, Access};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::Path;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// `<name>.pem` (certificate and key, 0600) is read; `<name>.crt` is a copy for administrators.
pub(crate) struct AuthorityFiles {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: KeyPair,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

impl AuthorityFiles {
    /// Whether authority `name` was made in `dir`; where that cannot be seen, opening it says why.
    pub(crate) fn are_in(dir: &Path, name: &str) -> bool {
        dir.join(format!("{name}.pem")).try_exists().unwrap_or(true)
    }

    /// Opens authority `name` in `dir`. If there is none, makes a key, and lets `certify` certify it.
    pub(crate) fn open(
        dir: &Path,
        name: &str,
        certify: impl FnOnce(&KeyPair) -> Result<CertificateDer<'static>, AuthorityError>,
    ) -> Result<Self, AuthorityError> {
        let path = dir.join(format!("{name}.pem"));
        let failed = |source| AuthorityError::File {
            path: path.clone(),
            source,
        };
        if !path.try_exists().map_err(failed)? {
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(AuthorityError::Sign)?;
            let certificate = certify(&key)?;
            let key = Zeroizing::new(key.serialize_pem());
            let text = Zeroizing::new(format!("{}{}", certificate_pem(&certificate), key.as_str()));
            // Losing the race to another opener is fine: what lies there is read below.
            durable::create(&path, text.as_bytes(), Access::PRIVATE).map_err(failed)?;
        }
        let text = Zeroizing::new(std::fs::read_to_string(&path).map_err(failed)?);
        let files =
            Self::parse(&text).ok_or_else(|| AuthorityError::Damaged { path: path.clone() })?;

        let copy = dir.join(format!("{name}.crt"));
        let pem = certificate_pem(&files.certificate);
        if std::fs::read(&copy).ok().as_deref() != Some(pem.as_bytes()) {
            durable::replace(&copy, pem.as_bytes(), Access::PUBLIC)
                .map_err(|source| AuthorityError::File { path: copy, source })?;
        }
        Ok(files)
    }

    fn parse(text: &str) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
        let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(text.as_bytes()).ok()?;
        let key = KeyPair::try_from(&key).ok()?;
        let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return None;
        }
        let (not_before, not_after) = (
            parsed.validity().not_before.to_datetime(),
            parsed.validity().not_after.to_datetime(),
        );
        Some(Self {
            not_before,
            not_after,
            certificate,
            key,
        })
    }
}
