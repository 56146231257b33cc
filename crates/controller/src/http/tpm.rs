//! TPMs of existing VMs: enable, disable, restore, roll; and the list of versions.

use super::Answer;
use super::actions::act;
use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use crate::app::App;
use crate::audit::Act;
use crate::world::World;
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_api::bulk::VmAction;
use fleetward_api::lists::KeptTpm;
use fleetward_api::tpm::TpmVersion;
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::audit::AuditAction;
use fleetward_model::{ErrorCode, Failure, VmId};
use http::StatusCode;

serves! {
    TpmEnable => tpm_enable,
    TpmDisable => tpm_disable,
    TpmRestore => tpm_restore,
    TpmRoll => tpm_roll,
    TpmUnlock => tpm_unlock,
    TpmHistory => tpm_history,
    TpmKept => tpm_kept,
    TpmForget => tpm_forget,
}

async fn tpm_enable(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::TpmEnable>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::TpmEnable(request)).await
}

async fn tpm_disable(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::TpmDisable>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::TpmDisable(request)).await
}

async fn tpm_restore(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::TpmRestore>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::TpmRestore(request)).await
}

async fn tpm_roll(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::TpmRoll>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::TpmRoll(request)).await
}

async fn tpm_unlock(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::TpmUnlock>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::TpmUnlock(request)).await
}

async fn tpm_history(
    State(app): State<App>,
    Path(vm): Path<String>,
    Asked(query): Asked<verbs::TpmHistory>,
) -> Answer<Rows<TpmVersion>> {
    let page = Page::new(query.limit, query.after)?;
    let after: Option<(VmId, u64)> = page.place("ID/VERSION", |parts| match parts {
        [vm, version] => Some((vm.parse().ok()?, version.parse().ok()?)),
        _ => None,
    })?;
    let escrow = &app.world.escrow;
    let vms = match app.world.inventory.find(&vm) {
        Ok(vm) => vec![vm.id],
        // Its versions outlive a VM.
        Err(failure) => match escrow.named(&vm) {
            kept if kept.is_empty() => return Err(failure.into()),
            kept => kept,
        },
    };
    let following = vms
        .into_iter()
        .filter(|vm| after.is_none_or(|(last, _)| *vm >= last));
    let versions = following.flat_map(|vm| escrow.list(vm));
    let versions = versions.filter(|one| after.is_none_or(|last| (one.vm, one.version) > last));
    Ok(Rows(versions.take(page.limit()).collect()))
}

async fn tpm_kept(
    State(app): State<App>,
    Asked(query): Asked<verbs::TpmKept>,
) -> Answer<Rows<KeptTpm>> {
    let page = Page::new(query.limit, query.after)?;
    let world = &app.world;
    let is_gone = |newest: &TpmVersion| {
        !is_there(world, newest.vm)
            && page.is_after(&[newest.vm_name.as_str(), &newest.vm.to_string()])
    };
    let mut kept = world.escrow.newest_where(is_gone).await;
    kept.sort_by(|a, b| (&a.vm_name, a.vm).cmp(&(&b.vm_name, b.vm)));
    let rows = kept.into_iter().take(page.limit()).map(KeptTpm);
    Ok(Rows(rows.collect()))
}

/// Whether a host has the VM, or had it when it was last heard, or a job works on it.
fn is_there(world: &World, vm: VmId) -> bool {
    world.inventory.vm(vm).is_some() || world.holders.hold(vm)
}

async fn tpm_forget(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
) -> Answer<StatusCode> {
    let world = &app.world;
    let id: VmId = vm.parse().map_err(|error| {
        Failure::new(ErrorCode::InvalidArgument, format!("{vm} is no VM's id"))
            .because(format!("{error}; a name may be another VM's by now"))
            .fix("fleetward tpm kept")
    })?;
    if is_there(world, id) {
        let what = format!("VM {id} is still there, so its copies are kept");
        return Err(Failure::new(ErrorCode::VmStateWrong, what)
            .fix(format!("fleetward vm show {id}"))
            .into());
    }
    let Some(newest) = world.escrow.newest(id) else {
        let what = format!("nothing is kept of a VM {id}");
        return Err(Failure::new(ErrorCode::VmNotFound, what)
            .fix("fleetward tpm kept")
            .into());
    };
    let reason = format!(
        "TPM of VM {}, which was on host {}",
        newest.vm_name, newest.host
    );
    app.record(Act {
        vm: Some(id),
        ..Act::new(&peer, AuditAction::ForgetTpm, reason)
    })
    .await?;
    world.escrow.forget(id).await?;
    // Hosts that keep something of it are asked to remove it.
    world.inventory.touch();
    Ok(StatusCode::NO_CONTENT)
}
