//! Certificates of Secure Boot: what VMs, templates and kept versions trust; enrol and restore.

use super::Answer;
use super::actions::act;
use super::body::Asked;
use super::by_name::ByName;
use super::page::Page;
use super::rows::Rows;
use super::scope;
use crate::app::App;
use crate::world::World;
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_api::bulk::VmAction;
use fleetward_api::controller::{SecureBootKind, SecureBootView, TemplateView};
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_model::secure_boot::{CertificateState, SecureBootObserved};
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, VmId, VmName};
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
    peer: Peer,
    Asked(query): Asked<verbs::SecureBootStatus>,
) -> Answer<Rows<SecureBootView>> {
    let page = Page::new(query.limit, query.after)?;
    let after = page.place("KIND/NAME/ID/VERSION", After::read)?;
    let (world, limit) = (&app.world, page.limit());
    if !query.vms.is_empty() {
        let vms = named(world, &peer, &query.vms, after.as_ref())?;
        let rows = vms
            .iter()
            .flat_map(|vm| of_vm(world, vm, true, after.as_ref()));
        return Ok(Rows(rows.take(limit).collect()));
    }
    let mut views = Vec::new();
    let mut vms = match &after {
        Some(After::Template(_)) => None,
        Some(After::Vm { name, .. }) => Some(ByName::from(Some(name.clone()))),
        None => Some(ByName::from(None)),
    };
    while let Some(some) = vms.as_mut().map(|vms| vms.next(world)) {
        if some.is_empty() || views.len() >= limit {
            break;
        }
        let ours = some
            .iter()
            .filter(|vm| vm.is_managed() && scope::sees_vm(world, &peer, vm));
        let following = ours.filter(|vm| after.as_ref().is_none_or(|after| after.reaches(vm)));
        let rows = following.flat_map(|vm| of_vm(world, vm, query.versions, after.as_ref()));
        views.extend(rows.take(limit - views.len()));
        tokio::task::yield_now().await;
    }
    let last = match &after {
        Some(After::Template(name)) => Some(name.as_str()),
        Some(After::Vm { .. }) | None => None,
    };
    for template in world.templates.all() {
        if views.len() >= limit {
            break;
        }
        if last.is_none_or(|last| template.name.as_str() > last) {
            views.push(of_template(world, template).await);
        }
    }
    Ok(Rows(views))
}

/// Where a page begins.
#[derive(Debug)]
enum After {
    Vm {
        name: VmName,
        id: VmId,
        version: Option<u64>,
    },
    Template(String),
}

impl After {
    fn read(parts: &[&str]) -> Option<Self> {
        let vm = |name: &str, id: &str, version| {
            Some(Self::Vm {
                name: name.parse().ok()?,
                id: id.parse().ok()?,
                version,
            })
        };
        match parts {
            ["vm", name, id] => vm(name, id, None),
            ["vm", name, id, version] => vm(name, id, Some(version.parse().ok()?)),
            ["template", name] => Some(Self::Template((*name).to_owned())),
            _ => None,
        }
    }

    /// Whether rows of the VM may follow.
    fn reaches(&self, vm: &VmObserved) -> bool {
        match self {
            Self::Vm { name, id, .. } => (&vm.name, vm.id) >= (name, *id),
            Self::Template(_) => false,
        }
    }
}

/// The VMs that were named, each once, in the order in which they were named; from that of `after`.
fn named(
    world: &World,
    peer: &Peer,
    names: &[String],
    after: Option<&After>,
) -> Result<Vec<Arc<VmObserved>>, Failure> {
    let mut vms: Vec<Arc<VmObserved>> = Vec::new();
    for name in names {
        let vm = scope::find_vm(world, peer, name)?;
        if vms.iter().all(|other| other.id != vm.id) {
            vms.push(vm);
        }
    }
    let begin = match after {
        None => Some(0),
        Some(After::Vm { id, .. }) => vms.iter().position(|vm| vm.id == *id),
        Some(After::Template(_)) => None,
    };
    let begin = begin.ok_or_else(|| {
        let what = "the last row of the page before is of none of these VMs";
        Failure::new(ErrorCode::InvalidArgument, what)
            .fix("ask again from the beginning, without `after`")
    })?;
    Ok(vms.split_off(begin))
}

/// The rows of a VM, without those that were given up to `after`.
fn of_vm(
    world: &World,
    vm: &VmObserved,
    with_versions: bool,
    after: Option<&After>,
) -> Vec<SecureBootView> {
    let given = match after {
        Some(After::Vm { id, version, .. }) if *id == vm.id => Some(*version),
        _ => None,
    };
    let own = SecureBootView {
        kind: SecureBootKind::Vm,
        name: vm.name.to_string(),
        id: Some(vm.id),
        host: Some(vm.host.clone()),
        version: None,
        made: None,
        state: vm.noted.secure_boot.as_ref().map(|found| found.state),
        found: vm.noted.secure_boot.clone(),
    };
    let mut rows = Vec::from_iter(given.is_none().then_some(own));
    if with_versions {
        let kept = world.escrow.list(vm.id).into_iter();
        // of the VM itself, that is, before every version: None
        let kept = kept.filter(|kept| given.is_none_or(|given| Some(kept.version) > given));
        rows.extend(kept.map(|kept| SecureBootView {
            kind: SecureBootKind::Version,
            name: vm.name.to_string(),
            id: Some(vm.id),
            host: None,
            version: Some(kept.version),
            made: Some(kept.made),
            state: kept.certificates,
            found: None,
        }));
    }
    rows
}

async fn of_template(world: &World, template: TemplateView) -> SecureBootView {
    let found = match &template.uefi_variables {
        Some(sha256) => Some(look(world, sha256).await),
        None => None,
    };
    SecureBootView {
        kind: SecureBootKind::Template,
        name: template.name.to_string(),
        id: None,
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
