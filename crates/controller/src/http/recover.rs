//! Rebuilding a VM of a lost host.

use super::body::Asked;
use super::vms::accepted;
use super::{Answer, scope};
use crate::admission::admit;
use crate::app::App;
use crate::debts;
use crate::work::{ProtectorDigest, RecoverInput, Reservation, VmRecover};
use crate::world::{HostFactsNow, World};
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_api::agent::{CanOpen, Question};
use fleetward_api::tpm::TpmVersion;
use fleetward_api::verbs;
use fleetward_jobs::JobError;
use fleetward_link::Peer;
use fleetward_model::admission::{Request, busy};
use fleetward_model::fit::Needs;
use fleetward_model::preflight;
use fleetward_model::vm::{Custody, VmMetadata, VmObserved};
use fleetward_model::{ErrorCode, Failure, HostName, Names, VmId};
use fleetward_protector::KeyProtector;
use std::sync::Arc;
use time::format_description::well_known::Rfc3339;

serves! {
    VmRecover => vm_recover,
}

async fn vm_recover(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::VmRecover>,
) -> Answer<Response> {
    let world = &app.world;
    scope::require_host(world, &peer, &request.to)?;
    let (id, known) = lost(world, &vm)?;
    match (&known, app.holder_of(id).await) {
        (Some(known), _) => {
            admit(&app, known, Request::Recover).await?;
        }
        (None, Some(holder)) => {
            let what = format!("job {} works on VM {vm}", holder.job);
            return Err(Failure::new(ErrorCode::VmBusy, what)
                .fix(format!("fleetward job show {}", holder.job))
                .into());
        }
        (None, None) => {}
    }
    let metadata = known.as_ref().and_then(|vm| vm.metadata.clone());
    let with_tpm = metadata.as_ref().is_none_or(|metadata| metadata.spec.tpm);
    let mut version = None;
    let metadata = match (metadata, with_tpm) {
        (Some(metadata), false) => metadata.with_custody(Custody::default()),
        (metadata, _) => {
            let found = match request.version {
                Some(number) => {
                    let all = world.escrow.list(id);
                    all.into_iter().find(|kept| kept.version == number)
                }
                None => world.escrow.newest(id),
            };
            let found = found.ok_or_else(|| missing(&vm, request.version))?;
            let bundle = world.escrow.bundle(id, found.version).await?;
            // The same key, wrapped for whom it should be now; or the key of then.
            let reported = known
                .as_ref()
                .and_then(|vm| vm.tpm.protector_sha256.as_deref());
            let custody = Custody {
                key_protector: Some(world.escrow.protector(&found, reported).await?),
                ek_certificate: bundle.ek_certificate,
                former_certificates: bundle.metadata.former_certificates.clone(),
            };
            let metadata = metadata.unwrap_or_else(|| bundle.metadata.into());
            version = Some(found);
            metadata.with_custody(custody)
        }
    };
    let outdated = known
        .as_ref()
        .zip(version.as_ref())
        .filter(|(vm, version)| is_outdated(vm, version));
    if let Some((vm, version)) = outdated
        && request.version.is_none()
        && !request.outdated
    {
        let names = Names::default().vm(&vm.name).host(&request.to);
        return Err(not_of_the_last_state(vm, version).about(&names).into());
    }
    let outdated = outdated.is_some();
    let needs = Needs {
        tpm_written: version.as_ref().map(|version| world.writer_of(version)),
        ..Needs::of_rebuilt(&metadata.spec)
    };
    let what = format!(
        "VM {} cannot be rebuilt on host {}",
        metadata.spec.name, request.to
    );
    // Whether its disks lie there, the host looks for itself.
    world.require_fit(what.clone(), &needs, &request.to)?;
    require_key(world, &metadata, &request.to).await?;
    if request.dry_run {
        return Ok(accepted(None));
    }
    let mut lost: Vec<_> = world.inventory.hosts_with(id);
    lost.extend(version.as_ref().map(|version| version.host.clone()));
    // whoever has still to do something about it may have a copy of which nobody has heard
    let debts = world.debts.all();
    let owing = debts.iter().filter(|debt| debts::vm_of(debt) == Some(id));
    lost.extend(owing.filter_map(|debt| debt.debtor.key.parse::<HostName>().ok()));
    lost.sort();
    lost.dedup();
    lost.retain(|host| *host != request.to && !world.inventory.seen(host).answers);
    // Once more, from here to the submission alone: two requests must not count on the same room.
    let _turn = app.placing.lock().await;
    world.require_fit(what, &needs, &request.to)?;
    let protector = metadata.key_protector.as_deref();
    let input = RecoverInput {
        vm: id,
        protector: protector.map(ProtectorDigest::of),
        name: metadata.spec.name.clone(),
        reservation: Some(Reservation::of(world, &needs, &request.to)),
        to: request.to,
        metadata: Box::new(metadata.into()),
        version,
        outdated,
        lost,
    };
    match app.submit::<VmRecover>(&input, &peer.to_string()).await {
        Ok(job) => Ok(accepted(Some(job))),
        Err(JobError::Busy { by, .. }) => match known {
            Some(vm) => Err(busy(&vm.name, by).into()),
            None => Err(JobError::Busy { resource: vm, by }.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// The VM, with what was last seen of it, if anything was.
fn lost(world: &World, text: &str) -> Result<(VmId, Option<Arc<VmObserved>>), Failure> {
    let vm = match world.inventory.find(text) {
        Ok(vm) => vm,
        Err(failure) => {
            // A host that was installed anew no longer knows its VMs, the escrow does.
            let named = match text.parse::<VmId>() {
                Ok(id) => vec![id],
                Err(_) => world.escrow.named(text),
            };
            let mut kept = named
                .into_iter()
                .filter(|id| world.escrow.newest(*id).is_some());
            return match (kept.next(), kept.next()) {
                (Some(id), None) => Ok((id, None)),
                (Some(_), Some(_)) => Err(Failure::new(
                    ErrorCode::InvalidArgument,
                    format!("there are copies of several VMs {text}"),
                )
                .fix(format!(
                    "fleetward tpm history {text} -o json, and recover by id"
                ))),
                (None, _) => Err(failure),
            };
        }
    };
    Ok((vm.id, Some(vm)))
}

/// Whether the VM's host, while it answered, spoke of another state than the copy holds.
fn is_outdated(vm: &VmObserved, version: &TpmVersion) -> bool {
    let state = vm.tpm.state_sha256.as_ref();
    state.is_some_and(|state| *state != version.state_sha256)
}

fn not_of_the_last_state(vm: &VmObserved, version: &TpmVersion) -> Failure {
    let what = format!(
        "the newest copy of the TPM of VM {}, version {} of {}, is not of the state that host {} last reported",
        vm.name,
        version.version,
        version.made.format(&Rfc3339).unwrap_or_default(),
        vm.host
    );
    Failure::new(ErrorCode::EscrowOutdated, what).because(
        "what the guest stored in its TPM after the copy is not in it; what it had sealed before still opens, unless the guest \
         or its dictionary-attack counter has changed it since",
    )
}

fn missing(vm: &str, version: Option<u64>) -> Failure {
    match version {
        Some(version) => Failure::new(
            ErrorCode::TpmVersionNotFound,
            format!("there is no version {version} of the TPM of VM {vm}"),
        )
        .fix(format!("fleetward tpm history {vm}")),
        None => Failure::new(
            ErrorCode::EscrowMissing,
            format!("VM {vm} cannot be rebuilt"),
        )
        .because("the controller has no copy of its TPM"),
    }
}

/// The key must open there: nobody has the VM any more who could grant it.
async fn require_key(world: &World, metadata: &VmMetadata, to: &HostName) -> Result<(), Failure> {
    let Some(text) = metadata
        .key_protector
        .as_ref()
        .filter(|_| metadata.spec.tpm)
    else {
        return Ok(());
    };
    let question = Question {
        metadata: metadata.clone(),
        cpu_xml: None,
        flash: None,
    };
    if world.agents.of(to)?.ask(&question).await?.can_open != CanOpen::NotGranted {
        // One that does not open for another reason, the host names itself.
        return Ok(());
    }
    let recipients = KeyProtector::from_base64(text)
        .map(|protector| protector.inspect().guardian_ids())
        .unwrap_or_default();
    let mut openers: Vec<_> = world.hosts.all();
    openers.retain(|host| {
        let seen = world.inventory.seen(&host.name);
        host.name != *to
            && host.group == metadata.spec.group
            && !host.drained
            && seen.online
            && seen.facts.is_some_and(|facts| {
                let mut has = facts.guardians.iter();
                has.any(|guardian| recipients.contains(&guardian.id))
            })
    });
    let openers: Vec<_> = openers.iter().map(|host| host.name.clone()).collect();
    let name = &metadata.spec.name;
    let there = HostFactsNow::of(world, to)?;
    let finding =
        preflight::closed_to_rebuild(name, &there.side(metadata.spec.id), &recipients, &openers);
    let what = format!("VM {name} cannot be rebuilt on host {to}");
    Failure::from_findings(what, vec![finding]).map_or(Ok(()), Err)
}
