//! A VM's key protector: wrapped for more guardians, or put back. The TPM key stays the same, always.

use super::Task;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::keyring::{admit, parse_protector};
use fleetward_api::agent::OperationResult;
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure};
use fleetward_protector::KeyProtector;

impl Task<'_> {
    /// Wraps the key for endorsed guardians too. Those who have it already stay as they are.
    pub(super) async fn grant(&self, to: &[EndorsedGuardian]) -> Result<OperationResult> {
        let (_, metadata) = self.managed().await?;
        self.require_whole()?;
        let recipients = admit(to, &self.host.authority, &metadata.spec.group)?;
        let current = self.current_protector(&metadata)?;
        let purpose = self.purpose(&format!(
            "endorsed by the fleet's authority for group {}",
            metadata.spec.group
        ));
        let granted = self
            .host
            .keyring
            .grant(&current, self.vm, &recipients, &purpose)?;
        if granted.der() != current.der() {
            self.replace_protector(&metadata, &current, &granted, "a grant")
                .await?;
        }
        Ok(OperationResult::Protector {
            key_protector: granted.to_base64(),
        })
    }

    /// The VM's key protector with this host's own guardian in it, where only an imported or retired one of the host opens
    /// it; none where there is nothing to do. The authority has endorsed the own guardian for the host's group, so a VM of
    /// another group is left as it is. It is a convenience for the day the other guardian is removed: that it cannot be done
    /// (the own guardian has expired) stops neither a start nor an arrival.
    pub(super) fn own_beside(&self, metadata: &VmMetadata) -> Option<KeyProtector> {
        if !metadata.spec.tpm || metadata.spec.group != self.host.member.group {
            return None;
        }
        let protector = parse_protector(metadata.key_protector.as_deref()?, self.vm).ok()?;
        let purpose =
            self.purpose("this host opens it with a guardian that was imported or retired");
        match self.host.keyring.beside_own(&protector, self.vm, &purpose) {
            Ok(beside) => beside,
            Err(trouble) => {
                tracing::warn!(vm = %self.vm, because = trouble.failure.because,
                    "the host's own guardian is not put beside the one that opens the VM's key protector");
                None
            }
        }
    }

    /// Writes [`own_beside`](Self::own_beside) where it is due.
    pub(super) async fn put_own_beside(&self, metadata: &VmMetadata) -> Result<()> {
        let (Some(beside), Ok(current)) =
            (self.own_beside(metadata), self.current_protector(metadata))
        else {
            return Ok(());
        };
        self.replace_protector(
            metadata,
            &current,
            &beside,
            "the host's own guardian is put beside",
        )
        .await
    }

    /// Puts back a key protector for the same key.
    pub(super) async fn put_protector(&self, text: &str) -> Result<OperationResult> {
        let (_, metadata) = self.managed().await?;
        self.require_whole()?;
        let current = self.current_protector(&metadata)?;
        let new = parse_protector(text, self.vm)?;
        if new.der() != current.der() {
            self.replace_protector(&metadata, &current, &new, "an earlier grant is undone")
                .await?;
            self.host.keyring.record_put(
                self.vm,
                new.inspect().owner.id(),
                &self.purpose("an earlier grant is undone"),
            )?;
        }
        Ok(OperationResult::Nothing)
    }

    fn current_protector(&self, metadata: &VmMetadata) -> Result<KeyProtector> {
        let text = metadata.key_protector.as_deref().ok_or_else(|| {
            Failure::new(
                ErrorCode::KeyProtectorUnreadable,
                format!("VM {}", metadata.spec.name),
            )
            .because("it has no key protector")
        })?;
        parse_protector(text, self.vm)
    }

    /// Writes `new` where `current` is, once both were opened and hold the same key.
    async fn replace_protector(
        &self,
        metadata: &VmMetadata,
        current: &KeyProtector,
        new: &KeyProtector,
        reason: &str,
    ) -> Result<()> {
        let refuse = |because: String| {
            Trouble::refuse(
                ErrorCode::KeyProtectorUnreadable,
                format!("replacing the key protector of VM {}", metadata.spec.name),
                because,
            )
        };
        let bound = new.inspect().binding;
        if bound.vm_id != self.vm {
            return Err(refuse(format!("it is bound to VM {}", bound.vm_id)));
        }
        let same =
            self.host
                .keyring
                .hold_the_same_key(current, new, self.vm, &self.purpose(reason))?;
        if !same || bound.key_id != current.inspect().binding.key_id {
            return Err(refuse(
                "it holds another TPM key than the VM's state is encrypted with".into(),
            ));
        }
        let mut metadata = metadata.clone();
        metadata.key_protector = Some(new.to_base64());
        metadata.generation = self.generation;
        self.host
            .hypervisor
            .write_metadata(self.vm, &metadata)
            .await
            .attempt(|| format!("writing the key protector of VM {}", metadata.spec.name))?;
        self.record.keep_protector(new.der())
    }
}
