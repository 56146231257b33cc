//! The root of the certificates for endorsement keys (EK) of a fleet's TPMs. Its private key exists only on the
//! controller.
//!
//! The root certifies only the hosts' EK authorities; those issue the certificates of TPMs. `fleetward_protector::ek`
//! defines the content of the certificates.

use crate::authority::{AuthorityError, parse_request, random};
use crate::authority_files::AuthorityFiles;
use crate::credential::certificate_pem;
use crate::identity::FleetId;
use fleetward_model::HostName;
use fleetward_protector::ek::{self, EkAuthority, RandomSerial, Revocation};
use rcgen::PublicKeyData;
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::path::Path;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A fleet's EK root (ECDSA P-256).
pub struct EkRoot {
    files: AuthorityFiles,
}

impl EkRoot {
    /// Opens the EK root in `dir`, making a new one for `fleet` if there is none. The directory must exist.
    pub fn open(dir: &Path, fleet: FleetId, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        let files = AuthorityFiles::open(dir, "ek-root", |key| {
            let serial = RandomSerial::new(random()?);
            let certificate = ek::make_root(&fleet.to_string(), key, serial, now)?;
            Ok(CertificateDer::from(certificate))
        })?;
        Ok(Self { files })
    }

    /// The root certificate, PEM.
    pub fn certificate_pem(&self) -> String {
        certificate_pem(&self.files.certificate)
    }

    /// The root certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.files.certificate
    }

    /// The list of revoked EK certificates, DER (RFC 5280 section 5).
    pub fn revocation_list(
        &self,
        revoked: &[Revocation],
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, AuthorityError> {
        Ok(ek::make_crl(
            &self.files.certificate,
            &self.files.key,
            revoked,
            now,
        )?)
    }

    /// Certifies a host's key (PEM, PKCS #10) as an EK authority that may make no further authorities.
    ///
    /// Uses only the public key of the request. Returns the host's certificate alone, DER.
    pub fn issue_host_authority(
        &self,
        csr_pem: &str,
        host: &HostName,
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, AuthorityError> {
        let public_key = parse_request(csr_pem)?.public_key.subject_public_key_info();
        let serial = RandomSerial::new(random()?);
        let authority = EkAuthority::new(&self.files.certificate, &self.files.key)?;
        Ok(authority.issue_host_authority(host, &public_key, serial, now)?)
    }

    /// Whether a host's EK authority, DER, has this root's signature.
    pub fn has_issued(&self, authority: &[u8]) -> bool {
        let root = X509Certificate::from_der(&self.files.certificate);
        let (Ok((_, root)), Ok((&[], authority))) = (root, X509Certificate::from_der(authority))
        else {
            return false;
        };
        let signature = authority.verify_signature(Some(root.public_key()));
        let of_root = authority.issuer() == root.subject();
        let is_root = authority.subject() == root.subject();
        authority.is_ca() && of_root && !is_root && signature.is_ok()
    }
}

impl fmt::Debug for EkRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EkRoot").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::KeyRequest;
    use rustls_pki_types::pem::PemObject;

    fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    #[test]
    fn a_host_ek_authority_chains_to_the_root_and_makes_no_further_authorities() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = EkRoot::open(dir.path(), FleetId::random(), now()).expect("root");
        let request = KeyRequest::generate().expect("request");
        let host = "a".parse().expect("name");
        let own = root
            .issue_host_authority(request.csr_pem(), &host, now())
            .expect("issue");
        let another = EkRoot::open(
            tempfile::tempdir().expect("directory").path(),
            FleetId::random(),
            now(),
        );
        assert!(root.has_issued(&own));
        assert!(!another.expect("root").has_issued(&own));
        assert!(!root.has_issued(&own[1..]));
        assert!(!root.has_issued(&root.files.certificate));
        let parent = CertificateDer::from_pem_slice(root.certificate_pem().as_bytes());
        let parent = parent.expect("pem");
        let (_, own) = X509Certificate::from_der(&own).expect("own");
        let (_, parent) = X509Certificate::from_der(&parent).expect("root");
        own.verify_signature(Some(parent.public_key()))
            .expect("signed by the root");
        let constraints = own
            .basic_constraints()
            .expect("readable")
            .expect("present")
            .value;
        assert!(constraints.ca);
        assert_eq!(constraints.path_len_constraint, Some(0));
        assert!(own.validity().not_after <= parent.validity().not_after);
    }
}
