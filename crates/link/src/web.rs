//! TLS for people and programs without a certificate of the fleet: the server has an ordinary certificate, under a name
//! or an address, and each request says who makes it.
//!
//! ```text
//!   WebCertificate::from_pem (a company's) ─┐
//!   self_made (nobody gave one) ────────────┴─► LiveWebCertificate ──► ServerTls::web
//!                                                    ▲ replace: for the next handshakes
//! ```

use crate::credential::{CredentialError, certificate_pem};
use crate::tls;
use crate::trust::Fingerprint;
use arc_swap::ArcSwap;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// How long a certificate of our own making lives; browsers refuse longer ones.
const SELF_MADE_LIFETIME: Duration = Duration::days(397);

/// Clocks of those who look at it differ.
const CLOCK_TOLERANCE: Duration = Duration::days(1);

/// The certificate chain of a web server (its own first) with the private key.
pub struct WebCertificate {
    certified: Arc<CertifiedKey>,
    fingerprint: Fingerprint,
    not_after: OffsetDateTime,
}

impl WebCertificate {
    /// Combines a chain and a key, both PEM; they must belong together.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, CredentialError> {
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| CredentialError::Chain)?;
        let own = chain.first().ok_or(CredentialError::Chain)?;
        let (_, parsed) = X509Certificate::from_der(own).map_err(|_| CredentialError::Chain)?;
        let not_after = parsed.validity().not_after.to_datetime();
        let fingerprint = Fingerprint::of(own);
        let key =
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| CredentialError::Key)?;
        let signing = tls::provider()
            .key_provider
            .load_private_key(key)
            .map_err(|_| CredentialError::Key)?;
        let certified = CertifiedKey::new(chain, signing);
        certified
            .keys_match()
            .map_err(|_| CredentialError::Mismatch)?;
        Ok(Self {
            certified: Arc::new(certified),
            fingerprint,
            not_after,
        })
    }

    /// The server's own certificate, PEM.
    pub fn to_pem(&self) -> String {
        let own = self.certified.cert.first();
        own.map_or_else(String::new, |own| certificate_pem(own))
    }

    /// SHA-256 of the server's own certificate, which is what browsers show.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// When it ends.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

impl fmt::Debug for WebCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebCertificate")
            .field("fingerprint", &self.fingerprint)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Makes a certificate for a server by these host names and addresses, signed by its own new key (ECDSA P-256): nobody
/// vouches for it, so its fingerprint must be compared, or the certificate itself be trusted. Gives certificate and key in
/// one PEM text.
///
/// # Errors
/// A name that fits no certificate, or no random numbers.
pub fn self_made(
    names: Vec<String>,
    now: OffsetDateTime,
) -> Result<Zeroizing<String>, CredentialError> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(CredentialError::Generate)?;
    let mut params = CertificateParams::new(names).map_err(CredentialError::Generate)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "Fleetward console");
    params.not_before = now - CLOCK_TOLERANCE;
    params.not_after = now + SELF_MADE_LIFETIME;
    // Whoever trusts it trusts this server, and nobody that its key could sign for.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params
        .self_signed(&key)
        .map_err(CredentialError::Generate)?;
    let key = Zeroizing::new(key.serialize_pem());
    Ok(Zeroizing::new(format!(
        "{}{}",
        certificate_pem(certificate.der()),
        key.as_str()
    )))
}

/// The certificate that a running server presents. Replacing it does not affect open connections.
#[derive(Debug, Clone)]
pub struct LiveWebCertificate(Arc<ArcSwap<WebCertificate>>);

impl LiveWebCertificate {
    /// Starts with `certificate`.
    pub fn new(certificate: WebCertificate) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(certificate)))
    }

    /// Presents `certificate` in all later handshakes.
    pub fn replace(&self, certificate: WebCertificate) {
        self.0.store(Arc::new(certificate));
    }

    /// The present one.
    pub fn current(&self) -> Arc<WebCertificate> {
        self.0.load_full()
    }
}

impl ResolvesServerCert for LiveWebCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().certified.clone())
    }
}
