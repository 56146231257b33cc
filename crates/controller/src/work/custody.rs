//! Key protectors in job records: only their digests. A key protector stays on its host; a step that hands it on asks for
//! it at that moment.
//!
//! One that is wrapped for 128 guardians has 117 kB as text, and a step's output at most 64 KiB. Records of earlier
//! versions held the text; [`crate::layout`] has replaced it by the digest before anything reads them.

use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_jobs::{Data, StepContext, StepError};
use fleetward_model::vm::{TpmObserved, VmMetadata, VmSummary, protector_sha256};
use fleetward_model::{ErrorCode, Failure, HostName, VmId};
use serde::{Deserialize, Serialize};

/// SHA-256 of a key protector's base64, hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ProtectorDigest(String);

impl ProtectorDigest {
    pub(crate) fn of(text: &str) -> Self {
        Self(protector_sha256(text))
    }

    /// Of the key protector that the VM's host reported.
    pub(crate) fn reported(tpm: &TpmObserved) -> Option<Self> {
        tpm.protector_sha256.clone().map(Self)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The VM with its key protector and EK certificate, which a host that has the VM is asked for.
    ///
    /// # Errors
    /// When the host does not answer; when it has another key protector by now.
    pub(super) async fn ask(
        &self,
        world: &World,
        host: &HostName,
        vm: VmSummary,
    ) -> Result<VmMetadata, StepError> {
        let asked = world.agents.of(host)?.custody(vm.spec.id).await?;
        let custody = asked.and_then(|(_, custody)| custody).unwrap_or_default();
        if custody.key_protector.as_deref().map(Self::of).as_ref() == Some(self) {
            return Ok(vm.with_custody(custody));
        }
        let name = &vm.spec.name;
        let what = format!("the key protector of VM {name} is not the one the job began with");
        let failure = Failure::new(ErrorCode::VmStateWrong, what)
            .because("it was changed, or is gone, since then")
            .fix(format!("fleetward vm show {name}"));
        Err(StepError::fatal(failure))
    }
}

/// Puts the TPM in place that an earlier step has prepared, whose key protector has that digest.
pub(super) async fn commit_tpm<I: Data>(
    world: &World,
    cx: &StepContext<I>,
    host: &HostName,
    vm: VmId,
    prepared: &ProtectorDigest,
) -> Result<(), StepError> {
    let agent = world.agents.of(host)?;
    let asked = agent.custody(vm).await?;
    let custody = asked.and_then(|(_, custody)| custody).unwrap_or_default();
    // The host compares it only after an earlier attempt has put the TPM in place: then it is the one that the VM has.
    let in_place = custody
        .key_protector
        .filter(|text| ProtectorDigest::of(text) == *prepared);
    let operation = operation::CommitTpm {
        key_protector: in_place.unwrap_or_default(),
    };
    agent.run(cx, vm, operation).await
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
