//! Ending a dispute about a VM that several hosts say they have.

use super::Answer;
use super::body::Asked;
use crate::admission::claimants;
use crate::app::App;
use crate::audit::Act;
use crate::inventory::Superseded;
use axum::Json;
use axum::extract::{Path, State};
use fleetward_api::controller::SettleAnswer;
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::admission::busy;
use fleetward_model::audit::AuditAction;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, HostName};

serves! {
    VmSettle => vm_settle,
}

async fn vm_settle(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::VmSettle>,
) -> Answer<Json<SettleAnswer>> {
    let (world, host) = (&app.world, request.host);
    let vm = world.inventory.find(&vm)?;
    if let Some(holder) = app.holder_of(vm.id).await {
        return Err(busy(&vm.name, holder.job).into());
    }
    if claimants(world, vm.id).is_empty() {
        let what = format!("only host {} says that it has VM {}", vm.host, vm.name);
        return Err(Failure::new(ErrorCode::VmStateWrong, what)
            .fix(format!("fleetward vm show {}", vm.name))
            .into());
    }
    let claims = world.inventory.claims(vm.id);
    let (right, wrong): (Vec<_>, Vec<_>) = claims.iter().partition(|claim| claim.host == host);
    let Some(right) = right.first() else {
        let what = format!("host {host} does not say that it has VM {}", vm.name);
        return Err(Failure::new(ErrorCode::InvalidArgument, what)
            .fix(format!("see which hosts do: fleetward vm show {}", vm.id))
            .into());
    };
    for claim in &claims {
        require_ours(claim)?;
    }
    let spec = right.metadata.as_ref().map(|metadata| &metadata.spec);
    let spec = spec.ok_or_else(|| not_ours(right))?;
    let ended: Vec<HostName> = wrong.iter().map(|claim| claim.host.clone()).collect();
    let names: Vec<_> = ended.iter().map(HostName::as_str).collect();
    let reason = format!(
        "VM {} is host {host}'s; the claim of {} counts for nothing",
        right.name,
        names.join(" and ")
    );
    app.record(Act {
        vm: Some(vm.id),
        ..Act::new(&peer, AuditAction::SettleVm, reason)
    })
    .await?;
    let copies = ended.iter().map(|host| Superseded {
        host: host.clone(),
        spec: spec.clone(),
    });
    let written = world.inventory.supersede(copies.collect()).await;
    written.map_err(|error| crate::store_failure(&error))?;
    tracing::warn!(vm = %right.name, %host, ended = ?names, "a dispute about a VM was settled");
    Ok(Json(SettleAnswer { host, ended }))
}

/// A domain that Fleetward did not make is never touched, whatever id it has.
fn require_ours(claim: &VmObserved) -> Result<(), Failure> {
    match claim.metadata {
        Some(_) => Ok(()),
        None => Err(not_ours(claim)),
    }
}

fn not_ours(claim: &VmObserved) -> Failure {
    let what = format!(
        "domain {} on host {} was not made by Fleetward, so it is not ended",
        claim.name, claim.host
    );
    Failure::new(ErrorCode::VmNotManaged, what)
        .because(format!("it has the id of a VM, {}", claim.id))
        .fix(format!(
            "give it another id or remove it, with virsh on host {}; or, if that host is not to be trusted: \
             fleetward host remove {}",
            claim.host, claim.host
        ))
}
