//! A VM's TPM as one document, and the versions that the controller keeps.
//!
//! A machine that stores or forwards a bundle cannot open it: the state is encrypted under the TPM key, and that key
//! is in the key protector, which only guardians open.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_model::host::Version;
use fleetward_model::secure_boot::CertificateState;
use fleetward_model::tpm_state::{self, StateProblem};
use fleetward_model::vm::VmMetadata;
use fleetward_model::{HostName, KeyId, VmId, VmName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// Largest key protector taken, bytes: 128 guardians and their certificates.
pub const MAX_PROTECTOR: usize = 512 * 1024;
/// Largest EK certificate taken, bytes.
pub const MAX_CERTIFICATE: usize = 16 * 1024;
/// Largest UEFI variable store taken, bytes: a request that carries one has at most [`crate::MAX_BODY`].
pub const MAX_VARIABLES: usize = 720 * 1024;

/// What is asked for with the TPM of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmQuery {
    /// SHA-256 of the UEFI variables that the asker has, as [`TpmBundle::variables_sha256`]: they are half a mebibyte, and a TPM
    /// changes much more often than they do. An agent that does not know the question sends them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variables: Option<String>,
}

/// Everything of one VM's TPM at one moment, with what the VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmBundle {
    pub vm: VmId,
    /// Base64 of swtpm's `tpm2-00.permall`, encrypted.
    pub state: String,
    /// Base64 of the DER.
    pub key_protector: String,
    /// Base64 of the DER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ek_certificate: Option<String>,
    /// Base64 of the UEFI variables; none for a VM that has never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uefi_variables: Option<String>,
    /// The UEFI variables are those that the asker has already, and are left out. The digest is with them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub same_variables: bool,
    pub metadata: VmMetadata,
    /// [`TpmBundle::digest`] of the rest, hex.
    pub sha256: String,
}

/// Why a bundle is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleProblem {
    #[error("its content has SHA-256 {found}, and it says {said}")]
    Digest { found: String, said: String },
    #[error("its {part} is no base64")]
    NotBase64 { part: &'static str },
    #[error("its {part} has more than {limit} bytes")]
    TooLarge { part: &'static str, limit: usize },
    #[error("its TPM state is not whole: {0}")]
    State(StateProblem),
    #[error("it says it is of VM {said}, and its definition is of VM {found}")]
    OtherVm { said: VmId, found: VmId },
}

/// The decoded parts of a bundle that passed [`TpmBundle::check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleParts {
    pub state: Vec<u8>,
    pub key_protector: Vec<u8>,
    pub ek_certificate: Option<Vec<u8>>,
    pub uefi_variables: Option<Vec<u8>>,
}

impl TpmBundle {
    /// Puts a bundle together.
    pub fn new(metadata: VmMetadata, parts: &BundleParts) -> Self {
        let text = |bytes: &Vec<u8>| STANDARD.encode(bytes);
        let mut bundle = Self {
            vm: metadata.spec.id,
            state: text(&parts.state),
            key_protector: text(&parts.key_protector),
            ek_certificate: parts.ek_certificate.as_ref().map(text),
            uefi_variables: parts.uefi_variables.as_ref().map(text),
            same_variables: false,
            metadata,
            sha256: String::new(),
        };
        bundle.sha256 = bundle.digest();
        bundle
    }

    /// SHA-256 of the base64 of its UEFI variables, hex: what [`TpmQuery`] asks with.
    pub fn variables_sha256(&self) -> Option<String> {
        let variables = self.uefi_variables.as_ref()?;
        Some(hex::encode(Sha256::digest(variables)))
    }

    /// As an answer to whoever has UEFI variables of that digest.
    #[must_use]
    pub fn answering(mut self, query: &TpmQuery) -> Self {
        if query.variables.is_some() && query.variables == self.variables_sha256() {
            self.uefi_variables = None;
            self.same_variables = true;
        }
        self
    }

    /// With the UEFI variables that were left out, base64.
    #[must_use]
    pub fn with_variables(self, variables: Option<String>) -> Self {
        Self {
            uefi_variables: variables,
            same_variables: false,
            ..self
        }
    }

    /// SHA-256 over id, state, key protector, EK certificate and variables, hex. The definition is left out: how it is
    /// written down may differ between two versions of the program, and a copy must stay readable.
    pub fn digest(&self) -> String {
        let mut digest = Sha256::new();
        // Each part with its length, so that no two bundles give the same bytes.
        for part in [
            self.vm.0.as_bytes().as_slice(),
            self.state.as_bytes(),
            self.key_protector.as_bytes(),
            self.ek_certificate.as_deref().unwrap_or("").as_bytes(),
            self.uefi_variables.as_deref().unwrap_or("").as_bytes(),
        ] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        hex::encode(digest.finalize())
    }

    /// Looks whether it is whole, and decodes it.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<BundleParts, BundleProblem> {
        let found = self.digest();
        if found != self.sha256 {
            return Err(BundleProblem::Digest {
                found,
                said: self.sha256.clone(),
            });
        }
        if self.metadata.spec.id != self.vm {
            return Err(BundleProblem::OtherVm {
                said: self.vm,
                found: self.metadata.spec.id,
            });
        }
        let state = decode("TPM state", &self.state, tpm_state::MAX_STATE)?;
        tpm_state::check(&state).map_err(BundleProblem::State)?;
        // An empty part is none: the digest does not tell them apart.
        let optional = |part, text: &Option<String>, limit| {
            text.as_deref()
                .filter(|text| !text.is_empty())
                .map(|text| decode(part, text, limit))
                .transpose()
        };
        Ok(BundleParts {
            state,
            key_protector: decode("key protector", &self.key_protector, MAX_PROTECTOR)?,
            ek_certificate: optional("EK certificate", &self.ek_certificate, MAX_CERTIFICATE)?,
            uefi_variables: optional("UEFI variables", &self.uefi_variables, MAX_VARIABLES)?,
        })
    }
}

fn decode(part: &'static str, text: &str, limit: usize) -> Result<Vec<u8>, BundleProblem> {
    // Before decoding: what is too large is not made larger.
    if text.len() > limit.div_ceil(3) * 4 {
        return Err(BundleProblem::TooLarge { part, limit });
    }
    STANDARD
        .decode(text)
        .map_err(|_| BundleProblem::NotBase64 { part })
}

/// What a version was kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum VersionReason {
    /// The VM was made.
    Created,
    /// The TPM was switched on.
    Enabled,
    /// As it was when the TPM was switched off.
    Disabled,
    Stopped,
    Migrated,
    /// The TPM key was replaced.
    Rolled,
    /// An earlier version was brought back.
    Restored,
    /// The lockout counter was cleared.
    Unlocked,
    /// The guest changed its TPM while it ran.
    Written,
    /// As it was when the VM was deleted.
    Deleted,
    /// The VM was rebuilt after its host was lost.
    Recovered,
    /// The key was wrapped for other guardians.
    Granted,
    /// The key was taken away from a guardian, and not replaced yet.
    Revoked,
    /// The VM's specification changed: another disk, more memory; or the certificates in its UEFI variables.
    Redefined,
    /// First seen: it was made without a copy, or the copies were lost.
    Found,
}

/// One kept version of a VM's TPM: a row of `tpm history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TpmVersion {
    pub vm: VmId,
    pub vm_name: VmName,
    /// Counts up from 1 for each VM; never used twice.
    pub version: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub made: OffsetDateTime,
    /// Who asked for what led to it, or `controller`.
    pub by: String,
    pub why: VersionReason,
    /// Bytes of the encrypted TPM state.
    pub size_bytes: u64,
    pub key_id: KeyId,
    /// SHA-256 of the EK certificate, hex: which TPM it is of, whatever its key. None: kept before this was noted, or there is
    /// no certificate.
    #[serde(default)]
    pub ek_sha256: Option<String>,
    /// The host it was taken from.
    pub host: HostName,
    /// SHA-256 of the bundle's secrets and variables, hex.
    pub sha256: String,
    /// SHA-256 of the encrypted TPM state alone, hex: what a host reports of the state it has.
    pub state_sha256: String,
    /// What the host it was taken from emulates TPMs with, swtpm and its library: older ones do not read it. None: not known, or
    /// kept before this was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "0.7.1")]
    pub swtpm: Option<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "0.9.2")]
    pub libtpms: Option<Version>,
    /// What its UEFI variables say of Secure Boot's certificates; none: it has none, or was kept before this was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificateState>,
}

#[cfg(test)]
mod tests {
    use super::*;
    fn metadata() -> VmMetadata {
        serde_json::from_value(serde_json::json!({
            "spec": {
                "id": "00000000-0000-0000-0000-000000000007", "name": "web", "group": "default",
                "profile": "linux", "cpus": 1, "memory": 1 << 30,
                "firmware": { "type": "uefi", "secure_boot": true }, "tpm": true, "disks": [],
                "created": "2026-01-01T00:00:00Z"
            },
            "generation": 1
        }))
        .expect("metadata")
    }

    fn bundle() -> TpmBundle {
        let state = vec![2, 1, 0, 10, 0, 9, 0, 0, 0, 12, 1, 2];
        let parts = BundleParts {
            state,
            key_protector: vec![0x30, 0],
            ek_certificate: None,
            uefi_variables: Some(vec![5; 64]),
        };
        TpmBundle::new(metadata(), &parts)
    }

    #[test]
    fn every_changed_part_shows() {
        let whole = bundle();
        whole.check().expect("whole");
        let changes: [fn(&mut TpmBundle); 4] = [
            |b| b.state.push('A'),
            |b| b.key_protector = "MAE=".into(),
            |b| b.ek_certificate = Some("MAA=".into()),
            |b| b.uefi_variables = None,
        ];
        for change in changes {
            let mut changed = whole.clone();
            change(&mut changed);
            assert!(matches!(changed.check(), Err(BundleProblem::Digest { .. })));
        }
    }

    #[test]
    fn an_empty_part_is_none() {
        let mut whole = bundle();
        whole.ek_certificate = None;
        whole.sha256 = whole.digest();
        let none = whole.check().expect("whole");
        whole.ek_certificate = Some(String::new());
        assert_eq!(whole.check(), Ok(none));
    }

    #[test]
    fn a_bundle_of_another_vm_is_refused() {
        let mut other = bundle();
        other.vm = VmId(uuid::Uuid::from_u128(99));
        other.sha256 = other.digest();
        assert!(matches!(other.check(), Err(BundleProblem::OtherVm { .. })));
    }

    #[test]
    fn half_a_state_is_refused_whatever_its_digest_says() {
        let mut half = bundle();
        half.state.truncate(12);
        half.sha256 = half.digest();
        assert!(matches!(half.check(), Err(BundleProblem::State(_))));
    }
}
