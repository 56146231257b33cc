//! TLS for people and programs without a certificate of the fleet: the server has an ordinary certificate, under a name
//! or an address, and each request says who makes it.
//!
//! ```text
//!   WebCertificate::from_pem (a company's) ─┐
//!   self_made (nobody gave one) ────────────┴─► LiveWebCertificate ──► ServerTls::web
//!                                                    ▲ replace: for the next handshakes
//! ```

use crate::credential::{CredentialError, certificate_pem, certified};
use crate::live::Presented;
use crate::trust::Fingerprint;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
};
use rustls::sign::CertifiedKey;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
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
    names: BTreeSet<String>,
}

impl WebCertificate {
    /// Combines a chain and a key, both PEM; they must belong together.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, CredentialError> {
        let certified = certified(chain_pem, key_pem)?;
        let own = certified.cert.first().ok_or(CredentialError::Chain)?;
        let (_, parsed) = X509Certificate::from_der(own).map_err(|_| CredentialError::Chain)?;
        let not_after = parsed.validity().not_after.to_datetime();
        let names = names_of(&parsed);
        let fingerprint = Fingerprint::of(own);
        Ok(Self {
            certified: Arc::new(certified),
            fingerprint,
            not_after,
            names,
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

    /// The host names and addresses that it is for.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// When it ends.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

impl Presented for WebCertificate {
    fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

fn names_of(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let read = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    names.iter().filter_map(read).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
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
