//! Key protectors in job records: only their digests. A key protector stays on its host; a step that hands it on asks for
//! it at that moment.
//!
//! One that is wrapped for 128 guardians has 117 kB as text, and a step's output at most 64 KiB. Records of earlier
//! versions hold the text itself, which is used as it is.

use crate::world::World;
use fleetward_jobs::StepError;
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure, HostName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 of a key protector's base64, hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ProtectorDigest(String);

impl ProtectorDigest {
    pub(crate) fn of(text: &str) -> Self {
        Self(hex::encode(Sha256::digest(text)))
    }

    /// Takes the key protector out of metadata that goes into a record.
    pub(crate) fn take(metadata: &mut VmMetadata) -> Option<Self> {
        metadata.key_protector.take().map(|text| Self::of(&text))
    }

    /// The key protector, from a host that has the VM.
    ///
    /// # Errors
    /// When the host does not answer; when it has another key protector by now.
    pub(super) async fn ask(
        &self,
        world: &World,
        host: &HostName,
        metadata: &VmMetadata,
    ) -> Result<String, StepError> {
        let detail = world.agents.of(host)?.vm(metadata.spec.id).await?;
        let found = detail.and_then(|detail| detail.vm.metadata?.key_protector);
        self.one_of(found, metadata)
    }

    /// The key protector among those that the controller can reach when the VM's host is lost.
    ///
    /// # Errors
    /// When none of them is the one that is meant.
    pub(super) fn one_of(
        &self,
        candidates: impl IntoIterator<Item = String>,
        metadata: &VmMetadata,
    ) -> Result<String, StepError> {
        let meant = candidates.into_iter().find(|text| Self::of(text) == *self);
        meant.ok_or_else(|| {
            let name = &metadata.spec.name;
            let what = format!("the key protector of VM {name} is not the one the job began with");
            let failure = Failure::new(ErrorCode::VmStateWrong, what)
                .because("it was changed, or is gone, since then")
                .fix(format!("fleetward vm show {name}"));
            StepError::fatal(failure)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_finds_the_protector_it_was_made_of() {
        let digest = ProtectorDigest::of("MIIK");
        assert_eq!(digest, ProtectorDigest::of("MIIK"));
        assert_ne!(digest, ProtectorDigest::of("MIIL"));
        assert_eq!(serde_json::to_string(&digest).expect("JSON").len(), 66);
    }
}
