//! A bundle: state, key protector, EK certificate, UEFI variables and definition of a VM's TPM at one moment.
//!
//! swtpm replaces its state by a rename, so a reader gets the old or the new file as a whole; the length in the header
//! reveals a file that a power cut has shortened. QEMU writes UEFI variables in place, so they are read until two
//! reads agree. Before and after the reads the code checks that no operation is running and that the definition has
//! not changed.

use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::keyring::{Purpose, parse_protector};
use crate::questions::not_here;
use crate::tpm_judge;
use crate::variables;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::tpm::{BundleParts, TpmBundle};
use fleetward_hypervisor::Error as HypervisorError;
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure, VmId};
use std::time::Duration;

/// How often it is tried again while something changes.
const ATTEMPTS: u32 = 10;
/// Between two attempts, and between two reads of what is compared.
const PAUSE: Duration = Duration::from_millis(20);

/// Reads the TPM of a VM.
///
/// # Errors
/// Of a copy that is half of a migration or has no TPM; when its state is missing or not whole; when it does not come
/// to rest, which passes by itself.
pub(crate) async fn read(host: &Host, vm: VmId) -> Result<TpmBundle> {
    for _ in 0..ATTEMPTS {
        if let Some(bundle) = attempt(host, vm).await? {
            return Ok(bundle);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(Trouble::passing(
        Failure::new(ErrorCode::VmBusy, format!("the TPM of VM {vm}"))
            .because("it is being changed at the moment"),
    ))
}

/// None: it changed under our hands.
async fn attempt(host: &Host, vm: VmId) -> Result<Option<TpmBundle>> {
    if host.operations.is_busy(vm) {
        return Ok(None);
    }
    let metadata = whole(host, vm).await?;
    let what = || format!("the TPM of VM {}", metadata.spec.name);
    let protector = metadata.key_protector.as_deref().ok_or_else(|| {
        Trouble::refuse(
            ErrorCode::TpmStateMissing,
            what(),
            "the VM's definition holds no key protector: it has no TPM",
        )
    })?;
    let protector = parse_protector(protector, vm)?;
    let state = tpm_judge::whole(host, vm, &metadata.spec.name).await?;
    require_opens(host, vm, &metadata, &state).await?;
    let Some(uefi_variables) = settled_variables(host, vm).await? else {
        return Ok(None);
    };
    let still = host
        .tpms
        .read_state(vm)
        .await
        .attempt(|| format!("reading the TPM state of VM {vm}"))?;
    let same = still == state && whole(host, vm).await? == metadata;
    if !same || host.operations.is_busy(vm) {
        return Ok(None);
    }
    let parts = BundleParts {
        state,
        key_protector: protector.der().to_vec(),
        ek_certificate: match &metadata.ek_certificate {
            Some(text) => STANDARD.decode(text).ok(),
            None => host.record(vm).ek_certificate()?.map(|ek| ek.to_vec()),
        },
        uefi_variables,
    };
    Ok(Some(TpmBundle::new(metadata, &parts)))
}

/// A copy is tried before it counts, as it may be the one that a good one makes room for. Where this host cannot open the
/// key, which a running VM may outlive, it is taken as it is.
async fn require_opens(host: &Host, vm: VmId, metadata: &VmMetadata, state: &[u8]) -> Result<()> {
    let purpose = Purpose {
        actor: "agent".into(),
        reason: "a copy of the TPM is tried before it is kept".into(),
        job: None,
    };
    match tpm_judge::opens(host, vm, metadata, state, &purpose).await {
        Err(trouble) if trouble.failure.code == ErrorCode::KeyNotGranted => Ok(()),
        tried => tried,
    }
}

/// The metadata of a copy that is the VM.
async fn whole(host: &Host, vm: VmId) -> Result<VmMetadata> {
    let domain = match host.hypervisor.inspect(vm).await {
        Err(HypervisorError::NoDomain(_)) => return Err(not_here(host, vm)),
        inspected => inspected.attempt(|| format!("looking at VM {vm}"))?,
    };
    if host.record(vm).transit()?.is_some() {
        return Err(Trouble::refuse(
            ErrorCode::VmStateWrong,
            format!("the TPM of VM {}", domain.name),
            "the copy on this host is not the VM: it is arriving, or it has left",
        ));
    }
    if let Some(newer) = &domain.newer {
        return Err(newer.refusal(&domain.name, &host.member.host).into());
    }
    domain.metadata.ok_or_else(|| {
        Failure::new(ErrorCode::VmNotManaged, format!("VM {}", domain.name))
            .because("its definition holds no metadata of Fleetward that can be read")
            .into()
    })
}

/// The UEFI variables, `Some(None)` where there are none yet; none when two reads differ.
async fn settled_variables(host: &Host, vm: VmId) -> Result<Option<Option<Vec<u8>>>> {
    let first = variables::read(host, vm)?;
    if first.is_some() {
        tokio::time::sleep(PAUSE).await;
    }
    Ok((variables::read(host, vm)? == first).then_some(first))
}
