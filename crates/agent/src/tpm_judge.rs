//! Whether the TPM state in a VM's place is there, whole, and opens: one question with one answer, whoever asks.
//!
//! ```text
//!   no file                        TPM_STATE_MISSING     never a new TPM in its place
//!   empty, cut, not encrypted      TPM_STATE_DAMAGED     by its size and its header, without the key
//!   the key does not open it       TPM_STATE_UNREADABLE  swtpm itself has tried, on a copy
//! ```

use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::keyring::{Purpose, parse_protector};
use crate::record::LockoutRecord;
use fleetward_hypervisor::Error as HypervisorError;
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, VmId, VmName, tpm_state};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Mutex, PoisonError};

/// States that have opened, as digests of state and key protector: what has not changed is not tried again.
#[derive(Debug, Default)]
pub(crate) struct Proofs(Mutex<HashMap<VmId, [u8; 32]>>);

impl Proofs {
    fn has(&self, vm: VmId, digest: &[u8; 32]) -> bool {
        self.lock().get(&vm) == Some(digest)
    }

    fn keep(&self, vm: VmId, digest: [u8; 32]) {
        self.lock().insert(vm, digest);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, [u8; 32]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a VM's TPM, whole by its own account.
///
/// # Errors
/// `TPM_STATE_MISSING` and `TPM_STATE_DAMAGED`; and that it could not be read for another reason.
pub(crate) async fn whole(host: &Host, vm: VmId, name: &VmName) -> Result<Vec<u8>> {
    let here = &host.member.host;
    let what = || format!("the TPM of VM {name}");
    let damaged = |because: String| {
        let because = format!("its state on host {here} is not whole: {because}");
        Trouble::refuse(ErrorCode::TpmStateDamaged, what(), because)
    };
    let state = match host.tpms.read_state(vm).await {
        Ok(state) => state,
        Err(HypervisorError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
            let because = format!("there is no TPM state on host {here}");
            return Err(Trouble::refuse(ErrorCode::TpmStateMissing, what(), because));
        }
        // Of a size that no state has.
        Err(HypervisorError::Tpm(cause)) => return Err(damaged(cause.to_string())),
        Err(error) => return Err(Trouble::hypervisor(what(), &error)),
    };
    tpm_state::check(&state).map_err(|problem| damaged(problem.to_string()))?;
    Ok(state)
}

/// Proves that the VM's key opens `state`, unless it has done so before.
///
/// # Errors
/// `TPM_STATE_UNREADABLE`; why the key cannot be had; and that it could not be tried.
pub(crate) async fn opens(
    host: &Host,
    vm: VmId,
    metadata: &VmMetadata,
    state: &[u8],
    purpose: &Purpose,
) -> Result<()> {
    let text = metadata.key_protector.as_deref().unwrap_or_default();
    let protector = parse_protector(text, vm)?;
    let digest: [u8; 32] = Sha256::new()
        .chain_update(Sha256::digest(state))
        .chain_update(protector.der())
        .finalize()
        .into();
    if host.proofs.has(vm, &digest) {
        return Ok(());
    }
    let secret = host.keyring.open_secret(&protector, vm, purpose)?;
    let lockout = host
        .tpms
        .prove_state(state, &secret)
        .await
        .attempt(|| format!("the TPM of VM {}", metadata.spec.name))?;
    host.proofs.keep(vm, digest);
    if let Some(lockout) = lockout {
        let state_sha256 = hex::encode(Sha256::digest(state));
        let known = LockoutRecord {
            state_sha256,
            lockout,
        };
        // It is only shown.
        if let Err(trouble) = host.record(vm).keep_lockout(&known) {
            tracing::warn!(%vm, because = trouble.failure.because, "the lockout of its TPM is not kept");
        }
    }
    Ok(())
}
