//! Checks: whether VMs can move to hosts, or start where they are.

use super::Answer;
use super::body::Asked;
use super::by_name::ByName;
use super::page::Page;
use super::rows::Rows;
use super::scope;
use crate::app::App;
use crate::check::matrix;
use crate::remarks;
use crate::survey::{by_host, survey};
use crate::world::World;
use axum::extract::State;
use fleetward_api::controller::{CheckView, HostCheckView, require_pairs};
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::vm::VmObserved;
use fleetward_model::{HostName, VmId, VmName};
use std::cmp::Ordering;
use std::sync::Arc;

serves! {
    FleetCheck => check,
    HostCheck => check_hosts,
}

async fn check(
    State(app): State<App>,
    peer: Peer,
    Asked(query): Asked<verbs::FleetCheck>,
) -> Answer<Rows<CheckView>> {
    let page = Page::new(query.limit, query.after)?;
    let after = page.place("VM/ID/TO", |parts| match parts {
        [vm, id, to] => Some(After {
            vm: (vm.parse().ok()?, id.parse().ok()?),
            to: to.parse().ok()?,
        }),
        _ => None,
    })?;
    let world = &app.world;
    let whole_row = query.to.is_none();
    let mut hosts: Vec<HostName> = match query.to {
        Some(host) => {
            scope::require_host(world, &peer, &host)?;
            vec![world.hosts.of(&host)?.name.clone()]
        }
        None => world
            .hosts
            .all()
            .into_iter()
            .filter(|host| scope::sees_group(&peer, &host.group))
            .map(|host| host.name.clone())
            .collect(),
    };
    let Some(name) = &query.vm else {
        if page.limit_given().is_none() {
            require_pairs(world.inventory.managed(), hosts.len())?;
        }
        let pairs = pairs(world, &peer, &hosts, after.as_ref(), page.limit()).await;
        return Ok(Rows(survey(world, &pairs, query.offline).await?));
    };
    let vm = scope::find_vm(world, &peer, name.as_str())?;
    // There are no rows of other VMs, so whatever the VM is called by now, the destination says where to go on.
    hosts.retain(|host| after.as_ref().is_none_or(|after| *host > after.to));
    hosts.truncate(page.limit());
    if hosts.is_empty() {
        return Ok(Rows(Vec::new()));
    }
    // One VM against one host is checked exactly as asked; a survey takes each VM as it is.
    let checked = matrix(world, vec![vm], hosts, query.offline, whole_row).await?;
    Ok(Rows(checked))
}

/// Where a page of checks begins.
struct After {
    vm: (VmName, VmId),
    to: HostName,
}

/// The VMs of Fleetward, each with all of `hosts`: at most `limit` pairs, those that follow `after`.
async fn pairs<'h>(
    world: &World,
    peer: &Peer,
    hosts: &'h [HostName],
    after: Option<&After>,
    limit: usize,
) -> Vec<(Arc<VmObserved>, &'h HostName)> {
    let mut vms = ByName::from(after.map(|after| after.vm.0.clone()));
    let mut pairs = Vec::new();
    while pairs.len() < limit {
        let some = vms.next(world);
        if some.is_empty() {
            break;
        }
        let theirs = |vm: &&Arc<VmObserved>| vm.is_managed() && scope::sees_vm(world, peer, vm);
        for vm in some.iter().filter(theirs) {
            let place = |after: &After| (&vm.name, vm.id).cmp(&(&after.vm.0, after.vm.1));
            let row = hosts.iter().filter(|host| {
                after.is_none_or(|after| match place(after) {
                    Ordering::Less => false,
                    Ordering::Equal => **host > after.to,
                    Ordering::Greater => true,
                })
            });
            let room = limit - pairs.len();
            pairs.extend(row.take(room).map(|host| (Arc::clone(vm), host)));
        }
        tokio::task::yield_now().await;
    }
    pairs
}

async fn check_hosts(
    State(app): State<App>,
    peer: Peer,
    Asked(query): Asked<verbs::HostCheck>,
) -> Answer<Rows<HostCheckView>> {
    let page = Page::new(query.limit, query.after)?;
    let hosts = match &query.group {
        Some(group) => app.world.hosts.of_group(group),
        None => app.world.hosts.all(),
    };
    let mut wanted = hosts
        .into_iter()
        .filter(|host| scope::sees_group(&peer, &host.group))
        .filter(|host| page.is_after(&[host.name.as_str()]));
    // One that leaves meanwhile is not counted, and another takes its place: a page that is not full is the last.
    let mut counts = Vec::new();
    while counts.len() < page.limit() {
        let some: Vec<_> = wanted.by_ref().take(page.limit() - counts.len()).collect();
        if some.is_empty() {
            break;
        }
        counts.extend(by_host(&app.world, &some).await);
    }
    for count in &mut counts {
        if let Ok(record) = app.world.hosts.of(&count.host) {
            count.warnings = remarks::texts(&app.world, &record);
        }
    }
    Ok(Rows(counts))
}
