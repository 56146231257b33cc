//! Guardians: one row a certificate, with the VMs that depend on it.

use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use super::{Answer, parsed};
use crate::app::App;
use crate::world::World;
use axum::Json;
use axum::extract::{Path, State};
use fleetward_api::controller::GuardianView;
use fleetward_api::verbs;
use fleetward_model::guardian::GuardianFacts;
use fleetward_model::{ErrorCode, Failure, GuardianId};
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
    let mut rows = rows(&app.world, OffsetDateTime::now_utc());
    rows.retain(|row| query.host.as_ref().is_none_or(|host| row.host == *host));
    Ok(Rows(page.of_listed(rows)?))
}

async fn guardian_show(
    State(app): State<App>,
    Path(guardian): Path<String>,
) -> Answer<Json<Vec<GuardianView>>> {
    let id: GuardianId = parsed("guardian's id", &guardian)?;
    let mut rows = rows(&app.world, OffsetDateTime::now_utc());
    rows.retain(|row| row.guardian == id);
    if rows.is_empty() {
        return Err(Failure::new(ErrorCode::GuardianNotFound, format!("no guardian {id}")).into());
    }
    Ok(Json(rows))
}

fn rows(world: &World, now: OffsetDateTime) -> Vec<GuardianView> {
    let vms = world.inventory.vms();
    let mut rows = Vec::new();
    for host in world.hosts.all() {
        // a host that has not reported yet still has the guardian it joined with
        let seen = world.inventory.seen(&host.name).facts;
        let guardians: Vec<GuardianFacts> = match &seen {
            Some(facts) if !facts.guardians.is_empty() => facts.guardians.clone(),
            _ => vec![host.guardian.clone()],
        };
        for guardian in guardians {
            let depends = vms
                .iter()
                .filter(|vm| vm.tpm.guardians.contains(&guardian.id));
            let names: Vec<_> = depends.map(|vm| vm.name.clone()).collect();
            for certificate in guardian.certificates {
                rows.push(GuardianView {
                    guardian: guardian.id.clone(),
                    role: certificate.role,
                    serial: certificate.serial,
                    sha1: certificate.sha1,
                    sha256: certificate.sha256,
                    subject: certificate.subject,
                    issuer: certificate.issuer,
                    not_before: Some(certificate.not_before),
                    not_after: certificate.not_after,
                    days_left: (certificate.not_after - now).whole_days(),
                    has_private_key: guardian.has_private_key,
                    host: host.name.clone(),
                    vms: names.clone(),
                });
            }
        }
    }
    rows
}
