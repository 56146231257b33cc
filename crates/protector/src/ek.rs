//! Endorsement key (EK) certificates: the fleet's EK root, the hosts' issuing authorities below it, and the certificates
//! that they give to virtual TPMs, with the contents of the TCG EK Credential Profile for TPM 2.0 (section 3.2).
//!
//! Chain: EK certificate -> host's EK authority -> fleet's EK root. None of them expires: a TPM keeps its identity as
//! long as the VM lives, and an expired authority would break every attestation at once. The callers hold the keys;
//! functions take an [`rcgen::SigningKey`]. Serial numbers and times are arguments.

mod certificate;
mod chain;
mod public_key;
mod revocation;

pub use certificate::{EkCertificate, authority_host};
pub use chain::{EkChainError, VerifiedEk, verify_chain};
pub use public_key::{EkPublicKey, EkPublicKeyError};
pub use revocation::{CRL_LIFETIME, Revocation, make_crl};

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::ID_AD_CA_ISSUERS;
use der::asn1::{Ia5String, SetOfVec, Utf8StringRef};
use der::{Any, Encode, Sequence, ValueOrd};
use fleetward_model::HostName;
use fleetward_model::ek::EkAddress;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SerialNumber, SigningKey,
    SubjectPublicKeyInfo,
};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use x509_cert::attr::{Attribute, AttributeTypeAndValue};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{AccessDescription, AuthorityInfoAccessSyntax};
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};

/// `tcg-kp-EKCertificate`: the extended key usage that marks an EK certificate.
pub const TCG_KP_EK_CERTIFICATE: [u64; 5] = [2, 23, 133, 8, 1];

const TCG_TPM_MANUFACTURER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.1");
const TCG_TPM_MODEL: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.2");
const TCG_TPM_VERSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.3");
const TCG_TPM_SPECIFICATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.16");
const SUBJECT_ALT_NAME: [u64; 4] = [2, 5, 29, 17];
const SUBJECT_DIRECTORY_ATTRIBUTES: [u64; 4] = [2, 5, 29, 9];
const CRL_DISTRIBUTION_POINTS: [u64; 4] = [2, 5, 29, 31];
const AUTHORITY_INFO_ACCESS: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 1, 1];

/// The name of a host's EK authority begins so; the host's follows.
const AUTHORITY_NAME: &str = "Fleetward EK authority ";

/// Certificates start this much before they are made, for readers whose clocks are behind.
const BACKDATE: Duration = Duration::hours(1);

/// RFC 5280 section 4.1.2.5: no well-defined end.
const NO_END: OffsetDateTime = time::macros::datetime!(9999-12-31 23:59:59 UTC);

/// The moment at which a chain is judged where only its issuer matters. None of the fleet's certificates ends before, and a
/// host whose clock is behind the one of another does not refuse what that one has just issued.
pub const AT_ANY_TIME: OffsetDateTime = time::macros::datetime!(9999-12-31 0:00 UTC);

/// Why an EK or authority certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum EkIssueError {
    #[error("the {what} certificate was not made")]
    Certificate {
        what: &'static str,
        #[source]
        source: rcgen::Error,
    },
    #[error("the issuing certificate cannot be read")]
    Issuer(#[source] rcgen::Error),
    #[error("the issuing certificate belongs to another key")]
    IssuerKey,
    #[error("the subject's public key cannot be read")]
    SubjectKey(#[source] rcgen::Error),
    #[error("a TPM attribute cannot be encoded")]
    Attribute(#[source] der::Error),
    #[error("a certificate of {size} bytes does not fit into a TPM; {MAX_EK_CERTIFICATE} do")]
    TooLarge { size: usize },
}

/// Largest EK certificate that fits into swtpm's NV index, with room to spare.
pub const MAX_EK_CERTIFICATE: usize = 2000;

/// A certificate's serial number, made of 16 random bytes that the caller draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomSerial([u8; 16]);

impl RandomSerial {
    /// The bytes become a positive number of full length.
    pub fn new(mut random: [u8; 16]) -> Self {
        random[0] = random[0] & 0x7f | 0x40;
        Self(random)
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl From<RandomSerial> for SerialNumber {
    fn from(serial: RandomSerial) -> Self {
        Self::from_slice(&serial.0)
    }
}

/// What an EK certificate says about the TPM's maker and the specification it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmIdentity {
    /// `id:` and the vendor id in hex, as TCG writes it.
    pub manufacturer: String,
    pub model: String,
    /// `id:` and the firmware version in hex.
    pub version: String,
    /// `2.0`.
    pub spec_family: String,
    pub spec_level: u32,
    pub spec_revision: u32,
}

impl Default for TpmIdentity {
    /// swtpm with libtpms: IBM's vendor id, specification 2.0 level 0 revision 1.64.
    fn default() -> Self {
        Self {
            manufacturer: "id:00001014".to_owned(),
            model: "swtpm".to_owned(),
            version: "id:20191023".to_owned(),
            spec_family: "2.0".to_owned(),
            spec_level: 0,
            spec_revision: 164,
        }
    }
}

/// Makes the self-signed certificate of a fleet's EK root, DER. The controller keeps the key; ECDSA P-384 suits.
pub fn make_root(
    fleet: &str,
    key: &impl SigningKey,
    serial: RandomSerial,
    now: OffsetDateTime,
) -> Result<Vec<u8>, EkIssueError> {
    let params = authority_params(&format!("Fleetward EK root {fleet}"), 1, serial, now);
    let certificate = params
        .self_signed(key)
        .map_err(|source| EkIssueError::Certificate {
            what: "EK root",
            source,
        })?;
    Ok(certificate.der().to_vec())
}

/// An authority that issues: a CA certificate with its key.
#[derive(Debug)]
pub struct EkAuthority<K: SigningKey> {
    issuer: Issuer<'static, K>,
    /// Who issued the authority's own certificate.
    above: Name,
    /// SHA-256 of the authority's own certificate, hex.
    sha256: String,
    published: Option<EkAddress>,
}

impl<K: SigningKey> EkAuthority<K> {
    /// From an authority's certificate and the key it belongs to; another key is refused.
    pub fn new(certificate: &[u8], key: K) -> Result<Self, EkIssueError> {
        let parsed = <x509_cert::Certificate as der::Decode>::from_der(certificate)
            .map_err(|_| EkIssueError::Issuer(rcgen::Error::CouldNotParseCertificate))?;
        let certified = parsed
            .tbs_certificate
            .subject_public_key_info
            .to_der()
            .map_err(EkIssueError::Attribute)?;
        if certified != key.subject_public_key_info() {
            return Err(EkIssueError::IssuerKey);
        }
        let issuer =
            Issuer::from_ca_cert_der(&certificate.into(), key).map_err(EkIssueError::Issuer)?;
        Ok(Self {
            issuer,
            above: parsed.tbs_certificate.issuer,
            sha256: hex::encode(Sha256::digest(certificate)),
            published: None,
        })
    }

    /// From now on EK certificates name the place where the authority's own certificate and the list of revoked ones are.
    #[must_use]
    pub fn published_at(mut self, address: Option<EkAddress>) -> Self {
        self.published = address;
        self
    }

    /// Issues a host's EK authority for the key pair that the host made (DER `SubjectPublicKeyInfo`). For the root.
    pub fn issue_host_authority(
        &self,
        host: &HostName,
        public_key: &[u8],
        serial: RandomSerial,
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, EkIssueError> {
        let subject =
            SubjectPublicKeyInfo::from_der(public_key).map_err(EkIssueError::SubjectKey)?;
        let mut params = authority_params(&format!("{AUTHORITY_NAME}{host}"), 0, serial, now);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&subject, &self.issuer).map_err(|source| {
            EkIssueError::Certificate {
                what: "host's EK authority",
                source,
            }
        })?;
        Ok(certificate.der().to_vec())
    }

    /// Issues the certificate of one TPM's endorsement key, DER. For a host's authority.
    ///
    /// The subject is empty: a TPM made ahead of time does not know its VM, and a clone's identity must not name another.
    pub fn issue_ek(
        &self,
        key: &EkPublicKey,
        tpm: &TpmIdentity,
        serial: RandomSerial,
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, EkIssueError> {
        let subject =
            SubjectPublicKeyInfo::from_der(key.der()).map_err(EkIssueError::SubjectKey)?;
        let mut params = base_params(serial, now);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![if key.is_rsa() {
            KeyUsagePurpose::KeyEncipherment
        } else {
            KeyUsagePurpose::KeyAgreement
        }];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(
            TCG_KP_EK_CERTIFICATE.to_vec(),
        )];
        let mut maker = CustomExtension::from_oid_content(
            &SUBJECT_ALT_NAME,
            alternative_name(tpm).map_err(EkIssueError::Attribute)?,
        );
        maker.set_criticality(true);
        let specification = CustomExtension::from_oid_content(
            &SUBJECT_DIRECTORY_ATTRIBUTES,
            specification(tpm).map_err(EkIssueError::Attribute)?,
        );
        let crl = self.published.as_ref().map(EkAddress::of_crl);
        let revoked_by = revocation::listed_by_issuer_of(&self.above, crl.as_deref())
            .map_err(EkIssueError::Attribute)?;
        let revoked_by = CustomExtension::from_oid_content(&CRL_DISTRIBUTION_POINTS, revoked_by);
        params.custom_extensions = vec![maker, specification, revoked_by];
        if let Some(address) = &self.published {
            let place = issuer_at(&address.of_authority(&self.sha256));
            let place = place.map_err(EkIssueError::Attribute)?;
            let place = CustomExtension::from_oid_content(&AUTHORITY_INFO_ACCESS, place);
            params.custom_extensions.push(place);
        }
        let certificate = params
            .signed_by(&subject, &self.issuer)
            .map_err(|source| EkIssueError::Certificate { what: "EK", source })?;
        let size = certificate.der().len();
        if size > MAX_EK_CERTIFICATE {
            return Err(EkIssueError::TooLarge { size });
        }
        Ok(certificate.der().to_vec())
    }
}

fn base_params(serial: RandomSerial, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(serial.into());
    params.not_before = now - BACKDATE;
    params.not_after = NO_END;
    params
}

fn authority_params(
    common_name: &str,
    path_length: u8,
    serial: RandomSerial,
    now: OffsetDateTime,
) -> CertificateParams {
    let mut params = base_params(serial, now);
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// `AuthorityInfoAccess` with the address of the issuer's certificate.
fn issuer_at(address: &str) -> der::Result<Vec<u8>> {
    let place = AccessDescription {
        access_method: ID_AD_CA_ISSUERS,
        access_location: GeneralName::UniformResourceIdentifier(Ia5String::new(address)?),
    };
    AuthorityInfoAccessSyntax(vec![place]).to_der()
}

/// `TPMSpecification` of the TCG EK Credential Profile.
#[derive(Sequence, ValueOrd)]
struct TpmSpecification<'a> {
    family: Utf8StringRef<'a>,
    level: u32,
    revision: u32,
}

/// `SubjectAltName` with one directory name: manufacturer, model, version.
fn alternative_name(tpm: &TpmIdentity) -> der::Result<Vec<u8>> {
    let part = |oid, value: &str| {
        let value = Any::encode_from(&Utf8StringRef::new(value)?)?;
        Ok::<_, der::Error>(RelativeDistinguishedName(SetOfVec::try_from(vec![
            AttributeTypeAndValue { oid, value },
        ])?))
    };
    let name: Name = RdnSequence(vec![
        part(TCG_TPM_MANUFACTURER, &tpm.manufacturer)?,
        part(TCG_TPM_MODEL, &tpm.model)?,
        part(TCG_TPM_VERSION, &tpm.version)?,
    ]);
    vec![GeneralName::DirectoryName(name)].to_der()
}

/// `SubjectDirectoryAttributes` with the TPM specification.
fn specification(tpm: &TpmIdentity) -> der::Result<Vec<u8>> {
    let value = TpmSpecification {
        family: Utf8StringRef::new(&tpm.spec_family)?,
        level: tpm.spec_level,
        revision: tpm.spec_revision,
    };
    vec![Attribute {
        oid: TCG_TPM_SPECIFICATION,
        values: SetOfVec::try_from(vec![Any::encode_from(&value)?])?,
    }]
    .to_der()
}
