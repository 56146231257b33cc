//! Certificates of Secure Boot: what VMs, templates and kept versions trust; enrol and restore.

use super::Answer;
use super::actions::act;
use super::body::Asked;
use crate::app::App;
use crate::world::World;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_api::bulk::VmAction;
use fleetward_api::controller::{SecureBootKind, SecureBootView, TemplateView};
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::secure_boot::{CertificateState, SecureBootObserved};
use fleetward_model::vm::VmObserved;
use fleetward_uefi::{MAX_FILE, assess};
use std::sync::Arc;
use tokio::io::AsyncReadExt;

serves! {
    SecureBootStatus => secure_boot_status,
    SecureBootEnroll => secure_boot_enroll,
    SecureBootRestore => secure_boot_restore,
}

async fn secure_boot_enroll(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::SecureBootEnroll>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::SecureBootEnroll(request)).await
}

async fn secure_boot_restore(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::SecureBootRestore>,
) -> Answer<Response> {
    act(&app, &peer, &vm, VmAction::SecureBootRestore(request)).await
}

/// VMs with their kept versions; templates where no VM is named.
async fn secure_boot_status(
    State(app): State<App>,
    Asked(query): Asked<verbs::SecureBootStatus>,
) -> Answer<Json<Vec<SecureBootView>>> {
    let world = &app.world;
    let named = !query.vms.is_empty();
    let mut vms: Vec<Arc<VmObserved>> = match named {
        true => {
            let found = query.vms.iter().map(|vm| world.inventory.find(vm));
            found.collect::<Result<_, _>>()?
        }
        false => world.inventory.vms(),
    };
    vms.retain(|vm| named || vm.is_managed());
    let mut views = Vec::new();
    for vm in vms {
        views.push(SecureBootView {
            kind: SecureBootKind::Vm,
            name: vm.name.to_string(),
            host: Some(vm.host.clone()),
            version: None,
            made: None,
            state: vm.noted.secure_boot.as_ref().map(|found| found.state),
            found: vm.noted.secure_boot.clone(),
        });
        if named || query.versions {
            views.extend(versions(world, &vm));
        }
    }
    if !named {
        for template in world.templates.all() {
            views.push(of_template(world, template).await);
        }
    }
    Ok(Json(views))
}

fn versions(world: &World, vm: &VmObserved) -> impl Iterator<Item = SecureBootView> {
    let kept = world.escrow.list(vm.id).into_iter();
    kept.map(|kept| SecureBootView {
        kind: SecureBootKind::Version,
        name: kept.vm_name.to_string(),
        host: None,
        version: Some(kept.version),
        made: Some(kept.made),
        state: kept.certificates,
        found: None,
    })
}

async fn of_template(world: &World, template: TemplateView) -> SecureBootView {
    let found = match &template.uefi_variables {
        Some(sha256) => Some(look(world, sha256).await),
        None => None,
    };
    SecureBootView {
        kind: SecureBootKind::Template,
        name: template.name.to_string(),
        host: None,
        version: None,
        made: Some(template.created),
        state: found.as_ref().map(|found| found.state),
        found,
    }
}

/// Variables among the images' content, which only the controller writes.
async fn look(world: &World, sha256: &str) -> SecureBootObserved {
    let path = world.images.file(sha256);
    let read = async {
        let mut content = Vec::new();
        let file = tokio::fs::File::open(&path).await?;
        file.take(MAX_FILE as u64 + 1)
            .read_to_end(&mut content)
            .await?;
        std::io::Result::Ok(content)
    };
    match read.await {
        Ok(content) => assess(&content),
        Err(error) => SecureBootObserved {
            because: Some(error.to_string()),
            ..SecureBootObserved::of(CertificateState::Unreadable)
        },
    }
}
