//! The fleet's certificate authority. Its private key exists only on the controller.
//!
//! The controller decides which identity to certify. The private module `authority_files` stores the key;
//! [`trust`](crate::trust) is the public half.

use crate::authority_files::AuthorityFiles;
use crate::credential::certificate_pem;
use crate::identity::{FleetId, Identity};
use crate::trust::{FleetTrust, TrustError};
use fleetward_protector::ek::EkIssueError;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// How long members' certificates live; renew at two thirds.
pub const MEMBER_LIFETIME: Duration = Duration::days(365);

/// Longest certificate request accepted, in bytes.
pub const MAX_CSR: usize = 16 * 1024;

const AUTHORITY_LIFETIME: Duration = Duration::days(20 * 365);

/// Certificates are valid from this long before they are made, because the clocks of hosts differ.
const CLOCK_TOLERANCE: Duration = Duration::days(1);

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: OffsetDateTime,
    /// Last moment.
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// From `now`, less a tolerance for clocks, for `lifetime`.
    pub fn starting(now: OffsetDateTime, lifetime: Duration) -> Self {
        Self {
            not_before: now - CLOCK_TOLERANCE,
            not_after: now + lifetime,
        }
    }
}

/// The certificate authority of a fleet (ECDSA P-256).
pub struct FleetAuthority {
    files: AuthorityFiles,
    trust: FleetTrust,
}

impl FleetAuthority {
    /// Whether one was made in `dir`.
    pub fn is_in(dir: &Path) -> bool {
        AuthorityFiles::are_in(dir, "authority")
    }

    /// Opens the authority in `dir`, making a new fleet's if there is none. The directory must exist.
    pub fn open(dir: &Path, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        let files = AuthorityFiles::open(dir, "authority", |key| {
            let fleet = FleetId::random();
            let validity = Validity::starting(now, AUTHORITY_LIFETIME);
            let mut params = params(&format!("Fleetward Authority {fleet}"), validity)?;
            params.subject_alt_names = vec![uri(fleet.to_uri())?];
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let certificate = params.self_signed(key).map_err(AuthorityError::Sign)?;
            Ok(certificate.der().clone())
        })?;
        let trust = FleetTrust::from_der(&files.certificate)?;
        Ok(Self { files, trust })
    }

    /// The fleet.
    pub fn fleet(&self) -> FleetId {
        self.trust.fleet()
    }

    /// When it is good; no certificate of a member outlives it.
    pub fn validity(&self) -> Validity {
        Validity {
            not_before: self.files.not_before,
            not_after: self.files.not_after,
        }
    }

    /// The public half, which agents and administrators pin.
    pub fn trust(&self) -> &FleetTrust {
        &self.trust
    }

    /// Certifies the key of a request (PEM, PKCS #10) as `identity`; a renewal is the same call again.
    ///
    /// Uses only the public key of the request. Returns the chain as PEM: the new certificate, then the authority's,
    /// which joining hosts compare with their token.
    pub fn issue(
        &self,
        csr_pem: &str,
        identity: &Identity,
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        let request = parse_request(csr_pem)?;
        let algorithm = request.public_key.algorithm();
        if *algorithm != rcgen::PKCS_ECDSA_P256_SHA256
            && *algorithm != rcgen::PKCS_ECDSA_P384_SHA384
        {
            return Err(AuthorityError::RequestKey);
        }
        let mut params = params(common_name(identity), self.clamp(validity)?)?;
        params.subject_alt_names = vec![uri(identity.to_uri(self.fleet()))?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity {
            Identity::Controller | Identity::Host(_) => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            Identity::Admin { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        let issuer = Issuer::from_ca_cert_der(&self.files.certificate, &self.files.key)
            .map_err(AuthorityError::Sign)?;
        let certificate = params
            .signed_by(&request.public_key, &issuer)
            .map_err(AuthorityError::Sign)?;
        Ok(format!(
            "{}{}",
            certificate_pem(certificate.der()),
            certificate_pem(&self.files.certificate)
        ))
    }

    /// Signs a statement (ECDSA P-256 with SHA-256, ASN.1 signature); [`FleetTrust::verify`] checks it.
    ///
    /// The same key signs certificates. The signed part of a certificate begins with a DER SEQUENCE (0x30, the digit
    /// zero), so a statement that begins with that byte is refused: no signed statement can be used as a certificate.
    pub fn sign(&self, statement: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        if matches!(statement.first(), None | Some(0x30)) {
            return Err(AuthorityError::Statement);
        }
        rcgen::SigningKey::sign(&self.files.key, statement).map_err(AuthorityError::Sign)
    }

    /// No certificate outlives the one that signed it.
    fn clamp(&self, wanted: Validity) -> Result<Validity, AuthorityError> {
        let validity = Validity {
            not_before: wanted.not_before.max(self.files.not_before),
            not_after: wanted.not_after.min(self.files.not_after),
        };
        if validity.not_before >= validity.not_after {
            return Err(AuthorityError::Validity {
                begins: self.files.not_before,
                ends: self.files.not_after,
                wanted: wanted.not_after,
            });
        }
        Ok(validity)
    }
}

impl fmt::Debug for FleetAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetAuthority")
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

/// The common name, for readers of the certificate. At most 64 characters fit, so it is the name alone.
fn common_name(identity: &Identity) -> &str {
    match identity {
        Identity::Controller => "controller",
        Identity::Host(name) => name.as_str(),
        Identity::Admin { name, .. } => name.as_str(),
    }
}

pub(crate) fn parse_request(
    csr_pem: &str,
) -> Result<CertificateSigningRequestParams, AuthorityError> {
    if csr_pem.len() > MAX_CSR {
        return Err(AuthorityError::RequestSize {
            size: csr_pem.len(),
        });
    }
    CertificateSigningRequestParams::from_pem(csr_pem).map_err(AuthorityError::Request)
}

fn params(common_name: &str, validity: Validity) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.use_authority_key_identifier_extension = true;
    // A renewal certifies the same key again: the number must not be derived from the key.
    let mut serial = random()?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

pub(crate) fn random() -> Result<[u8; 16], AuthorityError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| AuthorityError::Randomness)?;
    Ok(bytes)
}

fn uri(text: String) -> Result<SanType, AuthorityError> {
    text.try_into()
        .map(SanType::URI)
        .map_err(AuthorityError::Sign)
}

/// Why the authority refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of the authority that cannot be read or written.
    #[error("cannot use the authority's file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that holds no matching certificate and key.
    #[error("the authority's file {path} is damaged: it does not hold a certificate and its key")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A certificate that is not a fleet authority's.
    #[error("the authority's certificate cannot be used")]
    Trust(#[from] TrustError),
    /// A request longer than [`MAX_CSR`].
    #[error("a certificate request has at most {MAX_CSR} bytes, this has {size}")]
    RequestSize {
        /// Bytes.
        size: usize,
    },
    /// A request that cannot be read or is not signed by its own key.
    #[error("the certificate request cannot be read or is not signed by its own key")]
    Request(#[source] rcgen::Error),
    /// A request for a key of a kind we do not certify.
    #[error("only ECDSA P-256 and P-384 keys are certified as members of a fleet")]
    RequestKey,
    /// A validity outside that of the authority's own certificate.
    #[error(
        "the authority's own certificate is valid from {begins} to {ends}, and one until {wanted} is wanted: is the clock right?"
    )]
    Validity {
        /// The authority's beginning.
        begins: OffsetDateTime,
        /// The authority's end.
        ends: OffsetDateTime,
        /// The end that the certificate would have.
        wanted: OffsetDateTime,
    },
    /// A statement that is empty or could be taken for a certificate.
    #[error("the authority does not sign statements that are empty or begin like a certificate")]
    Statement,
    /// The signature itself failed.
    #[error("cannot make a certificate or signature")]
    Sign(#[source] rcgen::Error),
    /// An EK authority that cannot be certified.
    #[error("cannot certify an EK authority")]
    Ek(#[from] EkIssueError),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Randomness,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::KeyRequest;
    use std::os::unix::fs::PermissionsExt;

    fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn authority() -> (tempfile::TempDir, FleetAuthority) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let authority = FleetAuthority::open(dir.path(), now()).expect("new authority");
        (dir, authority)
    }

    #[test]
    fn an_authority_is_the_same_after_it_is_opened_again() {
        let (dir, first) = authority();
        let second = FleetAuthority::open(dir.path(), now()).expect("open");
        assert_eq!(first.fleet(), second.fleet());
        assert_eq!(first.trust().fingerprint(), second.trust().fingerprint());
        let mode = |name: &str| {
            let metadata = std::fs::metadata(dir.path().join(name)).expect(name);
            metadata.permissions().mode() & 0o777
        };
        assert_eq!(mode("authority.pem"), 0o600);
        assert_eq!(mode("authority.crt"), 0o644);
        let copy = FleetTrust::load(&dir.path().join("authority.crt")).expect("copy");
        assert_eq!(copy.fingerprint(), first.trust().fingerprint());
    }

    #[test]
    fn a_damaged_authority_is_refused_and_never_replaced() {
        let (dir, _) = authority();
        let path = dir.path().join("authority.pem");
        std::fs::write(&path, "garbage").expect("damage");
        let opened = FleetAuthority::open(dir.path(), now());
        assert!(matches!(opened, Err(AuthorityError::Damaged { .. })));
        assert_eq!(std::fs::read(&path).expect("read"), b"garbage");
    }

    #[test]
    fn a_certificate_carries_only_the_identity_the_controller_chose() {
        let (_dir, authority) = authority();
        let request = KeyRequest::generate().expect("request");
        let host = Identity::Host("a".parse().expect("name"));
        let chain = authority
            .issue(
                request.csr_pem(),
                &host,
                Validity::starting(now(), MEMBER_LIFETIME),
            )
            .expect("issue");
        let credential = request.into_credential(&chain).expect("credential");
        assert_eq!(credential.identity().identity, host);
        assert_eq!(credential.identity().fleet, authority.fleet());

        let renewal = KeyRequest::from_credential(&credential).expect("renewal");
        let later = Validity::starting(now() + Duration::days(200), MEMBER_LIFETIME);
        let chain = authority
            .issue(renewal.csr_pem(), &host, later)
            .expect("issue again");
        let renewed = renewal.into_credential(&chain).expect("renewed");
        assert!(renewed.not_after() > credential.not_after());
        assert_ne!(renewed.chain_pem(), credential.chain_pem());
    }

    #[test]
    fn certificates_begin_a_day_before_they_are_made_and_end_with_their_authority() {
        // Installed with a clock of 2010, which was put right later.
        let made = time::macros::datetime!(2010-01-01 00:00 UTC);
        let dir = tempfile::tempdir().expect("temporary directory");
        let authority = FleetAuthority::open(dir.path(), made).expect("authority");
        let host = Identity::Host("a".parse().expect("name"));
        let issued = |now: OffsetDateTime| {
            let request = KeyRequest::generate().expect("request");
            let validity = Validity::starting(now, MEMBER_LIFETIME);
            let chain = authority.issue(request.csr_pem(), &host, validity)?;
            Ok(request.into_credential(&chain).expect("credential"))
        };
        // Years later, at 9 years and 200 days, after 11 years: as if nothing had been.
        for days in [0, 9 * 365 + 200, 11 * 365, 17 * 365] {
            let now = made + Duration::days(days);
            let facts = issued(now).expect("a certificate").facts().clone();
            let early = now - facts.not_before;
            let expected = if days == 0 { 1 } else { 24 };
            assert!(
                early >= Duration::hours(expected) - Duration::HOUR,
                "{days}"
            );
            assert_eq!(facts.not_after, now + MEMBER_LIFETIME, "{days}");
        }
        let last = issued(made + Duration::days(20 * 365 - 1)).expect("a certificate");
        assert_eq!(last.not_after(), made + AUTHORITY_LIFETIME);
        // Beyond it, and long before it: what is wrong is said with the times.
        for now in [
            made + Duration::days(21 * 365),
            made - Duration::days(3 * 365),
        ] {
            let refused: AuthorityError = issued(now).expect_err("refused");
            let said = refused.to_string();
            assert!(
                said.contains("2009-12-31") && said.contains("2029-12-27"),
                "{said}"
            );
        }
    }

    #[test]
    fn requests_that_are_garbage_huge_or_of_another_algorithm_are_refused() {
        let (_dir, authority) = authority();
        let issue = |csr: &str| {
            let validity = Validity::starting(now(), MEMBER_LIFETIME);
            authority.issue(csr, &Identity::Controller, validity)
        };
        assert!(matches!(issue("x"), Err(AuthorityError::Request(_))));
        let huge = "x".repeat(MAX_CSR + 1);
        assert!(matches!(
            issue(&huge),
            Err(AuthorityError::RequestSize { .. })
        ));
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .expect("csr");
        let csr = csr.pem().expect("pem");
        assert!(matches!(issue(&csr), Err(AuthorityError::RequestKey)));
    }

    #[test]
    fn statements_are_signed_for_this_fleet_only_and_never_look_like_certificates() {
        let (_dir, ours) = authority();
        let (_dir, other) = authority();
        let signature = ours.sign(b"fleetward-endorsement/1 x").expect("sign");
        let trust = ours.trust();
        assert!(
            trust
                .verify(b"fleetward-endorsement/1 x", &signature)
                .is_ok()
        );
        assert!(
            trust
                .verify(b"fleetward-endorsement/1 y", &signature)
                .is_err()
        );
        let foreign = other
            .trust()
            .verify(b"fleetward-endorsement/1 x", &signature);
        assert!(foreign.is_err());
        assert!(matches!(
            ours.sign(b"0\x82"),
            Err(AuthorityError::Statement)
        ));
        assert!(matches!(ours.sign(b""), Err(AuthorityError::Statement)));
    }
}
