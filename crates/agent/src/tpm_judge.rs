//! Whether the TPM state in a VM's place is there, whole, and opens: one question with one answer, whoever asks.
//!
//! ```text
//!   no file                        TPM_STATE_MISSING     never a new TPM in its place
//!   empty, cut, not encrypted      TPM_STATE_DAMAGED     by its size and its header, without the key
//!   one from before                TPM_STATE_OUTDATED    by its digest, where this host has seen a later one
//!   another owner, or mode         TPM_STATE_UNREADABLE  swtpm's user cannot open the file
//!   the key does not open it       TPM_STATE_UNREADABLE  swtpm itself has tried, on a copy, or when the TPM was made
//! ```
//! A state counts as seen when swtpm has written it for a running guest, when it has opened, or when a restore has put it in
//! place; it is on the disk then. What was seen of a VM on other hosts comes here with it. So a state from before is either
//! somebody's doing or a power cut's.

use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::keyring::{Purpose, parse_protector};
use crate::record::LockoutRecord;
use fleetward_api::agent::TpmStateJudged;
use fleetward_durable::Unexpected;
use fleetward_hypervisor::Error as HypervisorError;
use fleetward_model::vm::{TpmLockout, VmMetadata};
use fleetward_model::{ErrorCode, VmId, VmName, tpm_state};
use fleetward_protector::KeyProtector;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Mutex, PoisonError};

/// States that have opened, as digests of state and key protector: what has not changed is not tried again.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    opened: Mutex<HashMap<VmId, [u8; 32]>>,
    /// Held while a record of seen states is read and written.
    states: Mutex<()>,
}

impl Proofs {
    fn has(&self, vm: VmId, digest: &[u8; 32]) -> bool {
        self.lock().get(&vm) == Some(digest)
    }

    fn keep(&self, vm: VmId, digest: [u8; 32]) {
        self.lock().insert(vm, digest);
    }

    fn states(&self) -> std::sync::MutexGuard<'_, ()> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, [u8; 32]>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a VM's TPM, whole by its own account, and none from before.
///
/// # Errors
/// `TPM_STATE_MISSING`, `TPM_STATE_DAMAGED` and `TPM_STATE_OUTDATED`; and that it could not be read for another reason.
pub(crate) async fn whole(host: &Host, vm: VmId, name: &VmName) -> Result<Vec<u8>> {
    let state = in_place(host, vm, name).await?;
    if !is_former(host, vm, &state)? {
        return Ok(state);
    }
    // swtpm may have written, and the new state been seen, since this one was read.
    let again = in_place(host, vm, name).await?;
    if again != state && !is_former(host, vm, &again)? {
        return Ok(again);
    }
    let what = format!("the TPM of VM {name}");
    let because = format!(
        "its state on host {} is one from before, and a later one was seen since: an old file was put in its place, or a \
         power cut has brought it back",
        host.member.host
    );
    Err(Trouble::refuse(ErrorCode::TpmStateOutdated, what, because))
}

fn is_former(host: &Host, vm: VmId, state: &[u8]) -> Result<bool> {
    Ok(host.record(vm).tpm_states()?.is_former(&digest_of(state)))
}

/// A state with that digest is the VM's: swtpm has written it, or it has opened. One from before stays one.
pub(crate) async fn saw(host: &Host, vm: VmId, digest: &str) {
    let noted = async {
        let record = host.record(vm);
        if record.tpm_states()?.knows(digest) {
            return Ok(());
        }
        let synced = host.tpms.sync_state(vm).await;
        synced.attempt(|| format!("writing the TPM state of VM {vm} to the disk"))?;
        let _turn = host.proofs.states();
        let mut states = record.tpm_states()?;
        match states.knows(digest) {
            true => Ok(()),
            false => {
                states.renew(digest);
                record.keep_tpm_states(&states)
            }
        }
    };
    // It is seen again at the next look.
    if let Err(trouble) = noted.await {
        let because = trouble.failure.because;
        tracing::warn!(%vm, because, "a state of its TPM is not remembered");
    }
}

/// A restore has put this state in place: it is the newest, also where it is one from before.
pub(crate) fn accept(host: &Host, vm: VmId, state: &[u8]) -> Result<()> {
    let record = host.record(vm);
    let _turn = host.proofs.states();
    let mut states = record.tpm_states()?;
    states.renew(&digest_of(state));
    record.keep_tpm_states(&states)
}

/// States that the VM had on other hosts, before it came here. A key protector must be here, or nothing is kept.
pub(crate) fn learn(host: &Host, vm: VmId, former: &[String]) -> Result<()> {
    let record = host.record(vm);
    let _turn = host.proofs.states();
    let mut states = record.tpm_states()?;
    states.learn(former);
    record.keep_tpm_states(&states)
}

/// SHA-256, hex: what a state is called.
pub(crate) fn digest_of(state: &[u8]) -> String {
    hex::encode(Sha256::digest(state))
}

/// What can be said of the state without using the VM's key. None where it could not be looked at.
pub(crate) async fn unasked(
    host: &Host,
    vm: VmId,
    metadata: &VmMetadata,
) -> Option<TpmStateJudged> {
    match whole(host, vm, &metadata.spec.name).await {
        Ok(state) => {
            let text = metadata.key_protector.as_deref().unwrap_or_default();
            let protector = parse_protector(text, vm).ok()?;
            Some(match host.proofs.has(vm, &proof(&state, &protector)) {
                true => TpmStateJudged::Opened,
                false => TpmStateJudged::Untried,
            })
        }
        Err(trouble) => {
            let failure = trouble.failure;
            let judged = matches!(
                failure.code,
                ErrorCode::TpmStateMissing
                    | ErrorCode::TpmStateDamaged
                    | ErrorCode::TpmStateOutdated
                    | ErrorCode::TpmStateUnreadable
            );
            judged.then_some(TpmStateJudged::Refused { failure })
        }
    }
}

fn proof(state: &[u8], protector: &KeyProtector) -> [u8; 32] {
    Sha256::new()
        .chain_update(Sha256::digest(state))
        .chain_update(protector.der())
        .finalize()
        .into()
}

/// What is in place, whole by its own account.
async fn in_place(host: &Host, vm: VmId, name: &VmName) -> Result<Vec<u8>> {
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
        Err(HypervisorError::File { ref source, .. })
            if let Some(found) = Unexpected::of(source)
                && found.is_of_rights() =>
        {
            let because = format!("swtpm cannot open its state on host {here}: {found}");
            return Err(Trouble::refuse(
                ErrorCode::TpmStateUnreadable,
                what(),
                because,
            ));
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
    let digest = proof(state, &protector);
    if host.proofs.has(vm, &digest) {
        saw(host, vm, &digest_of(state)).await;
        return Ok(());
    }
    let secret = host.keyring.open_secret(&protector, vm, purpose)?;
    let lockout = host
        .tpms
        .prove_state(state, &secret)
        .await
        .attempt(|| format!("the TPM of VM {}", metadata.spec.name))?;
    host.proofs.keep(vm, digest);
    saw(host, vm, &digest_of(state)).await;
    if let Some(lockout) = lockout {
        note_lockout(host, vm, state, lockout);
        // Nothing else tells that more is known now.
        host.observer.look_at(vm);
    }
    Ok(())
}

/// A TPM was made whose state has opened with the key that `protector` seals for the VM: it is not tried again.
pub(crate) fn has_opened(
    host: &Host,
    vm: VmId,
    protector: &KeyProtector,
    state: &[u8],
    lockout: Option<TpmLockout>,
) {
    host.proofs.keep(vm, proof(state, protector));
    if let Some(lockout) = lockout {
        note_lockout(host, vm, state, lockout);
    }
}

fn note_lockout(host: &Host, vm: VmId, state: &[u8], lockout: TpmLockout) {
    let known = LockoutRecord {
        state_sha256: digest_of(state),
        lockout,
    };
    // It is only shown.
    if let Err(trouble) = host.record(vm).keep_lockout(&known) {
        tracing::warn!(%vm, because = trouble.failure.because, "the lockout of its TPM is not kept");
    }
}
