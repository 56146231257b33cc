//! Granting and revoking keys of VMs. Jobs do the work; requests that can be refused at once are refused here.

use super::Answer;
use super::body::Asked;
use super::vms::accepted;
use crate::admission::admit;
use crate::app::App;
use crate::work::{GrantInput, GuardianGrant, GuardianRevoke, RevokeInput, plan_grant};
use crate::world::World;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fleetward_api::controller::{GrantAnswer, Outcome, VmOutcome};
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::admission::Request;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, GuardianId, HostName};
use http::StatusCode;
use time::OffsetDateTime;

serves! {
    GuardianGrant => guardian_grant,
    GuardianRevoke => guardian_revoke,
}

async fn guardian_grant(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::GuardianGrant>,
) -> Answer<Response> {
    let world = &app.world;
    if request.all != request.vms.is_empty() {
        return Err(Failure::new(
            ErrorCode::InvalidArgument,
            "name VMs, or say that all are meant",
        )
        .into());
    }
    let host = target(world, &request.to)?;
    let guardian = world.hosts.of(&host)?.guardian.clone();
    let expired = guardian
        .not_after()
        .is_none_or(|end| end < OffsetDateTime::now_utc());
    if expired && !request.expired.contains(&guardian.id) {
        return Err(Failure::new(
            ErrorCode::GuardianExpired,
            format!(
                "guardian {} of host {host} is not granted",
                guardian.id.short()
            ),
        )
        .because("its certificates have expired")
        .fix(format!(
            "fleetward guardian rotate --host {host}; or name it: --allow-expired {}",
            guardian.id
        ))
        .into());
    }
    if let Some(begins) = guardian.begins_after(OffsetDateTime::now_utc()) {
        let id = guardian.id.short();
        return Err(Failure::new(
            ErrorCode::ClocksApart,
            format!("guardian {id} of host {host} is not granted"),
        )
        .because(format!(
            "its certificates are not valid before {}: they were made by a clock that was wrong",
            crate::tokens::utc(begins)
        ))
        .fix(format!(
            "synchronise the clocks, then: fleetward guardian rotate --host {host}"
        ))
        .into());
    }
    let mut plan = Vec::new();
    let mut vms = Vec::new();
    for name in &request.vms {
        match world.inventory.find(name.as_str()) {
            Ok(vm) => match vm.require_metadata() {
                Ok(_) => vms.push(vm.id),
                Err(failure) if failure.code == ErrorCode::VmNotManaged => {
                    plan.push(refused(name, failure.code, "Fleetward did not make it"));
                }
                Err(failure) => plan.push(refused(name, failure.code, &failure.because)),
            },
            Err(failure) => plan.push(refused(name, failure.code, &failure.what)),
        }
    }
    let input = GrantInput {
        host: host.clone(),
        vms: (!request.all).then_some(vms),
        automatic: false,
        expired: request.expired,
        refused: plan.clone(),
    };
    let planned = plan_grant(world, &input)?;
    let work = planned.iter().any(|planned| planned.decided.is_none());
    plan.extend(planned.into_iter().map(|planned| {
        planned.decided.unwrap_or_else(|| VmOutcome {
            vm: planned.name,
            outcome: Outcome::Succeeded,
            code: None,
            message: Some(format!("its key is wrapped for host {host} too")),
        })
    }));
    let mut answer = GrantAnswer {
        job: None,
        guardian: guardian.id,
        host,
        plan,
    };
    if request.dry_run || !work {
        return Ok((StatusCode::OK, Json(answer)).into_response());
    }
    let job = app.submit::<GuardianGrant>(&input, &peer.to_string()).await;
    answer.job = Some(job.map_err(|error| error.to_failure())?);
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

async fn guardian_revoke(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::GuardianRevoke>,
) -> Answer<Response> {
    let world = &app.world;
    let vm = world.inventory.find(request.vm.as_str())?;
    admit(&app, &vm, Request::Revoke).await?;
    let guardians = losers(world, &vm, &request.from)?;
    if request.dry_run {
        return Ok(accepted(None));
    }
    let input = RevokeInput {
        vm: vm.id,
        name: vm.name.clone(),
        host: vm.host.clone(),
        from: request.from,
        guardians,
    };
    let job = app
        .submit::<GuardianRevoke>(&input, &peer.to_string())
        .await;
    let job = job.map_err(|error| error.to_failure())?;
    Ok(accepted(Some(job)))
}

fn refused(vm: &fleetward_model::VmName, code: ErrorCode, why: &str) -> VmOutcome {
    VmOutcome {
        vm: vm.clone(),
        outcome: Outcome::Failed,
        code: Some(code),
        message: Some(why.to_owned()),
    }
}

/// The host of that name, or the one whose own guardian's id begins so.
fn target(world: &World, text: &str) -> Result<HostName, Failure> {
    let hosts = world.hosts.all();
    if let Some(host) = hosts.iter().find(|host| host.name.as_str() == text) {
        return Ok(host.name.clone());
    }
    let wanted = text.to_ascii_lowercase();
    let mut found = hosts
        .iter()
        .filter(|host| wanted.len() >= 6 && host.guardian.id.as_str().starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(host), None) => Ok(host.name.clone()),
        (Some(_), Some(_)) => Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("several guardians begin with {text:?}"),
        )
        .fix("write more of the id")),
        (None, _) => Err(Failure::new(
            ErrorCode::GuardianNotFound,
            format!("there is no host {text:?}, and no host's own guardian that begins so"),
        )
        .because("the fleet's authority vouches only for the own guardians of its hosts")),
    }
}

/// The guardians of a VM that `text` names: those of a host, or one by its id.
fn losers(world: &World, vm: &VmObserved, text: &str) -> Result<Vec<GuardianId>, Failure> {
    let what = format!("guardian {text} keeps the key of VM {}", vm.name);
    let named = world
        .hosts
        .all()
        .into_iter()
        .find(|h| h.name.as_str() == text);
    let guardians = match named {
        Some(host) if host.name == vm.host => {
            return Err(Failure::new(ErrorCode::GuardianInUse, what)
                .because(format!(
                    "the VM is on host {text}, which needs the key to run it"
                ))
                .fix(format!(
                    "migrate the VM to another host, and then revoke; this shows where it can go: fleetward check {}",
                    vm.name
                )));
        }
        Some(host) => {
            let seen = world.inventory.seen(&host.name).facts;
            let imported = seen.iter().flat_map(|facts| &facts.guardians).find(|g| {
                g.id != host.guardian.id
                    && !host.former.contains(&g.id)
                    && vm.tpm.guardians.contains(&g.id)
            });
            if let Some(imported) = imported {
                return Err(Failure::new(ErrorCode::GuardianInUse, what)
                    .because(format!(
                        "host {} also holds guardian {}, which was imported and opens the key",
                        host.name,
                        imported.id.short()
                    ))
                    .fix(format!(
                        "on host {}: fleetward-agent guardian remove {}",
                        host.name, imported.id
                    )));
            }
            let mut guardians = host.former.clone();
            guardians.retain(|g| vm.tpm.guardians.contains(g));
            guardians.push(host.guardian.id.clone());
            guardians
        }
        None => {
            let wanted = text.to_ascii_lowercase();
            let mut found = vm.tpm.guardians.clone();
            found.retain(|g| wanted.len() >= 6 && g.as_str().starts_with(&wanted));
            found
        }
    };
    match guardians.len() {
        0 => Err(Failure::new(
            ErrorCode::GuardianNotFound,
            format!(
                "the key of VM {} is wrapped for no guardian {text:?}",
                vm.name
            ),
        )
        .fix(format!("fleetward vm show {}", vm.name))),
        _ => Ok(guardians),
    }
}
