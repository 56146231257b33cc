//! Those whose role holds in some groups of hosts alone: what they see, and what they are told of the rest.
//!
//! ```text
//!   verb's reach   Fleet ─► refused      Vm, Host, Job ─► the one in the path is theirs, or is as if it were not there
//!                  Open ──► let through  Rows ──────────► let through; the handler leaves out what is not theirs
//! ```
//! A VM is of the group of its host, as the controller knows it; of a host that is not in the fleet any more, of the group in
//! which it was made.

use super::parsed;
use crate::app::App;
use crate::work;
use crate::world::World;
use axum::extract::RawPathParams;
use fleetward_api::bulk::VmAction;
use fleetward_api::verbs::Reach;
use fleetward_jobs::{Job, JobError};
use fleetward_link::Peer;
use fleetward_model::role::{Role, Scope};
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, GroupName, HostName, JobId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Whether `peer` may use a verb of that reach with this path.
///
/// # Errors
/// It is about more than the caller's groups, or about something that is not there for the caller.
pub(super) async fn require(
    app: &App,
    peer: &Peer,
    reach: Reach,
    path: &RawPathParams,
) -> Result<(), Failure> {
    if peer.groups().is_none() {
        return Ok(());
    }
    // What nobody has spoken of since a start is of no known group.
    app.first_call.over().await;
    let world = &app.world;
    let named = |name: &str| {
        let mut found = path.iter().filter(|(key, _)| *key == name);
        found.next().map_or("", |(_, value)| value)
    };
    match reach {
        Reach::Open | Reach::Rows => Ok(()),
        Reach::Fleet => Err(beyond(peer, "that is about the whole fleet")),
        Reach::Vm => {
            find_vm(world, peer, named("vm"))?;
            Ok(())
        }
        Reach::Host => {
            let host: HostName = parsed("host's name", named("host")).map_err(|bad| bad.0)?;
            match sees_host(world, peer, &host) {
                true => Ok(()),
                false => Err(Failure::new(
                    ErrorCode::HostNotFound,
                    format!("no host {host}"),
                )),
            }
        }
        Reach::Job => {
            let id: JobId = parsed("job's id", named("job")).map_err(|bad| bad.0)?;
            let job = app
                .engine
                .get(id)
                .await
                .map_err(|error| error.to_failure())?;
            match sees_job(world, peer, &job) {
                true => Ok(()),
                false => Err(JobError::NotFound { id }.to_failure()),
            }
        }
    }
}

/// What somebody may do, and where: `operator in desktops, lab`.
pub(super) fn told(role: Role, groups: Option<&BTreeSet<GroupName>>) -> String {
    match Scope::try_from(groups.cloned()) {
        Ok(scope) => format!("{role} in {scope}"),
        Err(problem) => format!("{role}: {problem}"),
    }
}

/// That a request goes beyond the caller's groups.
pub(super) fn beyond(peer: &Peer, because: &str) -> Failure {
    let role = peer.role().unwrap_or(Role::Viewer);
    Failure::new(
        ErrorCode::GroupsLimited,
        format!("{peer} is {}, and nowhere else", told(role, peer.groups())),
    )
    .because(because)
}

/// The VM that the caller means.
///
/// # Errors
/// For the caller there is none.
pub(super) fn find_vm(world: &World, peer: &Peer, named: &str) -> Result<Arc<VmObserved>, Failure> {
    let found = world.inventory.find(named);
    if peer.groups().is_none() {
        return found;
    }
    let missing = || Failure::new(ErrorCode::VmNotFound, format!("no VM {named}"));
    match found {
        Ok(vm) if sees_vm(world, peer, &vm) => Ok(vm),
        Err(failure) if failure.code == ErrorCode::InvalidArgument => Err(failure),
        // Also of several with that name: on which hosts they are is not for everybody.
        Ok(_) | Err(_) => Err(missing()),
    }
}

pub(super) fn sees_vm(world: &World, peer: &Peer, vm: &VmObserved) -> bool {
    let Some(groups) = peer.groups() else {
        return true;
    };
    match world.hosts.find(&vm.host) {
        Some(host) => groups.contains(&host.group),
        None => vm
            .metadata
            .as_ref()
            .is_some_and(|metadata| groups.contains(&metadata.spec.group)),
    }
}

pub(super) fn sees_host(world: &World, peer: &Peer, host: &HostName) -> bool {
    let Some(groups) = peer.groups() else {
        return true;
    };
    let known = world.hosts.find(host);
    known.is_some_and(|host| groups.contains(&host.group))
}

/// That a host which the request names is one of the caller's.
///
/// # Errors
/// It is not.
pub(super) fn require_host(world: &World, peer: &Peer, host: &HostName) -> Result<(), Failure> {
    match sees_host(world, peer, host) {
        true => Ok(()),
        false => Err(beyond(peer, &format!("host {host} is of none of them"))),
    }
}

/// The same for an action that names one.
///
/// # Errors
/// It is not.
pub(super) fn require_hosts_of(
    world: &World,
    peer: &Peer,
    action: &VmAction,
) -> Result<(), Failure> {
    match action {
        VmAction::Migrate(request) => require_host(world, peer, &request.to),
        VmAction::Start
        | VmAction::Stop(_)
        | VmAction::Restart(_)
        | VmAction::Delete(_)
        | VmAction::TpmEnable(_)
        | VmAction::TpmDisable(_)
        | VmAction::TpmRestore(_)
        | VmAction::TpmRoll(_)
        | VmAction::TpmUnlock(_)
        | VmAction::SecureBootEnroll(_)
        | VmAction::SecureBootRestore(_) => Ok(()),
    }
}

pub(super) fn sees_group(peer: &Peer, group: &GroupName) -> bool {
    peer.groups().is_none_or(|groups| groups.contains(group))
}

pub(super) fn sees_job(world: &World, peer: &Peer, job: &Job) -> bool {
    if peer.groups().is_none() || job.created_by == peer.to_string() {
        return true;
    }
    let about = work::about_job(job);
    let vm = about.vm.and_then(|vm| world.inventory.vm(vm));
    match vm {
        Some(vm) => sees_vm(world, peer, &vm),
        None => about.host.is_some_and(|host| sees_host(world, peer, &host)),
    }
}
