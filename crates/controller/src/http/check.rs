//! Checks: whether VMs can move to hosts, or start where they are.

use super::Answer;
use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use super::view;
use crate::app::App;
use crate::check::matrix;
use crate::survey::{by_host, survey};
use axum::Json;
use axum::extract::State;
use fleetward_api::controller::{CheckView, HostCheckView};
use fleetward_api::verbs;
use fleetward_model::HostName;
use fleetward_model::vm::VmObserved;
use std::sync::Arc;

serves! {
    FleetCheck => check,
    HostCheck => check_hosts,
}

async fn check(
    State(app): State<App>,
    Asked(query): Asked<verbs::FleetCheck>,
) -> Answer<Json<Vec<CheckView>>> {
    let world = &app.world;
    let vms: Vec<Arc<VmObserved>> = match &query.vm {
        Some(name) => vec![world.inventory.find(name.as_str())?],
        None => world
            .inventory
            .vms()
            .into_iter()
            .filter(|vm| vm.is_managed())
            .collect(),
    };
    let whole_row = query.to.is_none();
    let hosts: Vec<HostName> = match query.to {
        Some(host) => vec![world.hosts.of(&host)?.name.clone()],
        None => world
            .hosts
            .all()
            .into_iter()
            .map(|host| host.name.clone())
            .collect(),
    };
    // one VM against one host is checked exactly as asked; a survey takes each VM as it is
    let as_it_is = query.vm.is_none() || whole_row;
    let checked = if query.vm.is_none() {
        survey(world, &vms, &hosts, query.offline).await?
    } else {
        matrix(world, vms, hosts, query.offline, as_it_is).await?
    };
    Ok(Json(checked))
}

async fn check_hosts(
    State(app): State<App>,
    Asked(query): Asked<verbs::HostCheck>,
) -> Answer<Rows<HostCheckView>> {
    let page = Page::new(query.limit, query.after)?;
    let hosts = match &query.group {
        Some(group) => app.world.hosts.of_group(group),
        None => app.world.hosts.all(),
    };
    let wanted = hosts
        .into_iter()
        .filter(|host| page.is_after(&[host.name.as_str()]));
    let wanted: Vec<_> = wanted.take(page.limit()).collect();
    let mut counts = by_host(&app.world, &wanted).await;
    for count in &mut counts {
        if let Ok(record) = app.world.hosts.of(&count.host) {
            count.warnings = view::warnings(&app.world, &record);
        }
    }
    Ok(Rows(counts))
}
