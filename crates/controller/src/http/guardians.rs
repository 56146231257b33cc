//! Guardians: one row a certificate, with the VMs that depend on it.

use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use super::{Answer, parsed};
use crate::app::App;
use crate::hosts::HostRecord;
use crate::world::World;
use axum::extract::{Path, State};
use fleetward_api::controller::GuardianView;
use fleetward_api::verbs;
use fleetward_model::{ErrorCode, Failure, GuardianId, HostName, VmName};
use std::collections::HashMap;
use time::OffsetDateTime;

serves! {
    GuardianList => guardian_list,
    GuardianShow => guardian_show,
}

async fn guardian_list(
    State(app): State<App>,
    Asked(query): Asked<verbs::GuardianList>,
) -> Answer<Rows<GuardianView>> {
    let page = Page::new(query.limit, query.after)?;
    let host = query.host.as_ref();
    Ok(Rows(rows(&app.world, &page, host, None)?))
}

async fn guardian_show(
    State(app): State<App>,
    Path(guardian): Path<String>,
    Asked(query): Asked<verbs::GuardianShow>,
) -> Answer<Rows<GuardianView>> {
    let page = Page::new(query.limit, query.after)?;
    let id: GuardianId = parsed("guardian's id", &guardian)?;
    let rows = rows(&app.world, &page, None, Some(&id))?;
    if rows.is_empty() && page.is_first() {
        return Err(Failure::new(ErrorCode::GuardianNotFound, format!("no guardian {id}")).into());
    }
    Ok(Rows(rows))
}

/// The rows of a page: of one host or all, of one guardian or all. Hosts are by name; the certificates of a host are in its own
/// order.
fn rows(
    world: &World,
    page: &Page,
    host: Option<&HostName>,
    guardian: Option<&GuardianId>,
) -> Result<Vec<GuardianView>, Failure> {
    let now = OffsetDateTime::now_utc();
    let after: Option<HostName> = page.place("HOST/GUARDIAN/SHA256", |parts| match parts {
        [host, _, _] => host.parse().ok(),
        _ => None,
    })?;
    let hosts = match host {
        Some(host) => Vec::from_iter(world.hosts.find(host)),
        None => world.hosts.all(),
    };
    let mut rows = Vec::new();
    for host in hosts {
        let of_host = match &after {
            Some(after) if host.name < *after => continue,
            // where one of its certificates was the last, that must still be there
            Some(after) if host.name == *after => {
                page.of_listed(certificates(world, &host, guardian, now))?
            }
            Some(_) | None => certificates(world, &host, guardian, now),
        };
        rows.extend(of_host);
        if rows.len() >= page.limit() {
            rows.truncate(page.limit());
            break;
        }
    }
    add_vms(world, &mut rows);
    Ok(rows)
}

/// The certificates of a host's guardians, without the VMs that depend on them.
fn certificates(
    world: &World,
    host: &HostRecord,
    wanted: Option<&GuardianId>,
    now: OffsetDateTime,
) -> Vec<GuardianView> {
    // a host that has not reported yet still has the guardian it joined with
    let seen = world.inventory.seen(&host.name).facts;
    let guardians = match &seen {
        Some(facts) if !facts.guardians.is_empty() => facts.guardians.as_slice(),
        _ => std::slice::from_ref(&host.guardian),
    };
    let guardians = guardians
        .iter()
        .filter(|guardian| wanted.is_none_or(|wanted| guardian.id == *wanted));
    let rows = guardians.flat_map(|guardian| {
        guardian
            .certificates
            .iter()
            .map(|certificate| GuardianView {
                guardian: guardian.id.clone(),
                role: certificate.role,
                serial: certificate.serial.clone(),
                sha1: certificate.sha1.clone(),
                sha256: certificate.sha256.clone(),
                subject: certificate.subject.clone(),
                issuer: certificate.issuer.clone(),
                not_before: Some(certificate.not_before),
                not_after: certificate.not_after,
                days_left: (certificate.not_after - now).whole_days(),
                has_private_key: guardian.has_private_key,
                host: host.name.clone(),
                vms: Vec::new(),
            })
    });
    rows.collect()
}

/// The VMs that depend on each guardian, in one look at all of them.
fn add_vms(world: &World, rows: &mut [GuardianView]) {
    let guardians = rows.iter().map(|row| (row.guardian.clone(), Vec::new()));
    let mut depending: HashMap<GuardianId, Vec<VmName>> = guardians.collect();
    if depending.is_empty() {
        return;
    }
    for vm in world.inventory.vms() {
        for guardian in &vm.tpm.guardians {
            if let Some(vms) = depending.get_mut(guardian) {
                vms.push(vm.name.clone());
            }
        }
    }
    for row in rows {
        row.vms.clone_from(&depending[&row.guardian]);
    }
}
