//! The public part of a guardian: two certificates and the id of the pair.
//!
//! The id is SHA-256 over the two certificates' SHA-256 thumbprints, signing first, 64 bytes in all. By hand:
//! `{ openssl dgst -sha256 -binary signing.der; openssl dgst -sha256 -binary encryption.der; } | openssl dgst -sha256`.

use crate::certificate::{CertificateError, GuardianCertificate};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_model::guardian::{CertificateRole, GuardianFacts, GuardianStanding};
use fleetward_model::{GuardianId, HostName};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// Why two certificates are not a guardian.
#[derive(Debug, thiserror::Error)]
pub enum GuardianError {
    #[error("the {role:?} certificate cannot be used")]
    Certificate {
        role: CertificateRole,
        #[source]
        source: CertificateError,
    },
    #[error("signing and encryption certificate are the same")]
    SameCertificate,
    #[error("signing and encryption certificate have the same issuer and serial number")]
    SameSerial,
    #[error("the description has no {role:?} certificate, or it is not base64")]
    Missing { role: CertificateRole },
    #[error("the description says guardian {claimed}, its certificates are guardian {actual}")]
    WrongId {
        claimed: GuardianId,
        actual: GuardianId,
    },
}

/// The public half of a guardian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guardian {
    id: GuardianId,
    signing: GuardianCertificate,
    encryption: GuardianCertificate,
}

impl Guardian {
    /// From the two certificates in DER.
    pub fn from_der(signing: &[u8], encryption: &[u8]) -> Result<Self, GuardianError> {
        let parse = |role, der| {
            GuardianCertificate::from_der(role, der)
                .map_err(|source| GuardianError::Certificate { role, source })
        };
        Self::from_certificates(
            parse(CertificateRole::Signing, signing)?,
            parse(CertificateRole::Encryption, encryption)?,
        )
    }

    /// From a host's report. Computes the id again instead of trusting the reported one.
    pub fn from_facts(facts: &GuardianFacts) -> Result<Self, GuardianError> {
        let der = |role| {
            facts
                .certificates
                .iter()
                .find(|c| c.role == role)
                .and_then(|c| STANDARD.decode(&c.der_base64).ok())
                .ok_or(GuardianError::Missing { role })
        };
        let guardian = Self::from_der(
            &der(CertificateRole::Signing)?,
            &der(CertificateRole::Encryption)?,
        )?;
        if guardian.id == facts.id {
            Ok(guardian)
        } else {
            Err(GuardianError::WrongId {
                claimed: facts.id.clone(),
                actual: guardian.id,
            })
        }
    }

    fn from_certificates(
        signing: GuardianCertificate,
        encryption: GuardianCertificate,
    ) -> Result<Self, GuardianError> {
        if signing.der() == encryption.der() {
            return Err(GuardianError::SameCertificate);
        }
        if signing.issuer_and_serial() == encryption.issuer_and_serial() {
            return Err(GuardianError::SameSerial);
        }
        let pair = Sha256::new()
            .chain_update(signing.sha256())
            .chain_update(encryption.sha256());
        Ok(Self {
            id: GuardianId::from_digest(pair.finalize().into()),
            signing,
            encryption,
        })
    }

    pub fn id(&self) -> &GuardianId {
        &self.id
    }

    pub fn signing(&self) -> &GuardianCertificate {
        &self.signing
    }

    pub fn encryption(&self) -> &GuardianCertificate {
        &self.encryption
    }

    /// The later start of the two certificates' validity.
    pub fn not_before(&self) -> OffsetDateTime {
        self.signing.not_before().max(self.encryption.not_before())
    }

    /// The earlier end of the two certificates' validity.
    pub fn not_after(&self) -> OffsetDateTime {
        self.signing.not_after().min(self.encryption.not_after())
    }

    /// The description that travels in the API.
    pub fn facts(&self, host: HostName, own: bool, has_private_key: bool) -> GuardianFacts {
        GuardianFacts {
            id: self.id.clone(),
            host,
            own,
            standing: if own {
                GuardianStanding::Own
            } else {
                GuardianStanding::Imported
            },
            has_private_key,
            certificates: vec![self.signing.facts(), self.encryption.facts()],
        }
    }
}

/// The subject of a guardian certificate, as Hyper-V hosts write it.
pub fn subject_common_name(role: CertificateRole, host: &HostName) -> String {
    let kind = match role {
        CertificateRole::Signing => "Signing",
        CertificateRole::Encryption => "Encryption",
    };
    format!("Shielded VM {kind} Certificate (UntrustedGuardian) ({host})")
}
