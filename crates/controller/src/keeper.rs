//! Background task that keeps every VM's key wrapped for the right guardians, whatever has changed.
//!
//! ```text
//!   a host is online, and VMs of its group lack its guardian ──► guardian-grant     (not with manual trust)
//!   VMs still depend on a guardian that was rotated away     ──► guardian-settle
//!   a VM stopped whose key a revoked guardian knows          ──► guardian-revoke    (its roll)
//!   a guardian of an expelled host opens a VM's key          ──► guardian-revoke    (and its roll)
//!   a lost host is back, and its VM was rebuilt elsewhere    ──► vm-supersede
//! ```
//! The task stores no state: it compares the wanted state with the hosts' reports, so it continues after a restart. A
//! failed attempt is repeated after a pause, or as soon as something that it depends on has changed.

use crate::admission::{Disputes, shown_state};
use crate::app::App;
use crate::expulsion::exposed;
use crate::inventory::Superseded;
use crate::work::{
    GrantInput, GuardianGrant, GuardianRevoke, GuardianSettle, RevokeInput, RotateInput,
    SupersedeInput, VmSupersede, depending, plan_grant,
};
use crate::world::World;
use fleetward_jobs::JobError;
use fleetward_model::admission::{Answer, Request, TpmChange, answer};
use fleetward_model::guardian::{MANY_GUARDIANS, TrustMode};
use fleetward_model::{HostName, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Who appears in the audit trail as the one who asked.
const KEEPER: &str = "keeper";
/// Hosts and VMs change together: one look for all of it.
const SETTLE: Duration = Duration::from_millis(500);
/// The same VMs are not tried again sooner.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// A copy that may run where it must not is no matter for long pauses.
const TRY_AGAIN_SOON: Duration = Duration::from_secs(2);
/// A look is taken this often even if nothing is reported to have changed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What was tried last, for one matter.
struct Tried {
    vms: BTreeSet<VmId>,
    at: Instant,
}

/// Looks after the keys until `stop`.
pub(crate) async fn keep(app: App, stop: CancellationToken) {
    let mut changes = app.world.inventory.changes();
    let mut tried: BTreeMap<String, Tried> = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(look_again(&app)) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SETTLE) => {}
        }
        changes.mark_unchanged();
        look(&app, &mut tried).await;
    }
}

/// When to look although nothing has changed.
fn look_again(app: &App) -> Duration {
    match app.world.inventory.superseded().is_empty() {
        true => LOOK_EVERY,
        false => TRY_AGAIN_SOON,
    }
}

async fn look(app: &App, tried: &mut BTreeMap<String, Tried>) {
    let world = &app.world;
    // Before all else: such a copy may be running.
    let superseded = world.inventory.superseded();
    let matter = |copy: &Superseded| format!("supersede/{}/{}", copy.host, copy.spec.id);
    // One that was ended is no reason for a pause, should the VM be lost and rebuilt once more.
    tried.retain(|known, _| {
        !known.starts_with("supersede/") || superseded.iter().any(|copy| matter(copy) == *known)
    });
    for copy in superseded {
        let (vm, host) = (copy.spec.id, copy.host.clone());
        if world.inventory.seen(&host).online
            && world.holders.of(vm).is_none()
            && pause_over(tried, matter(&copy), TRY_AGAIN_SOON)
        {
            let input = SupersedeInput {
                vm,
                name: copy.spec.name.clone(),
                copy,
            };
            log_submission(app.submit::<VmSupersede>(&input, KEEPER).await, &host);
        }
    }
    let hosts = world.hosts.all();
    for host in &hosts {
        if !world.inventory.seen(&host.name).online {
            continue;
        }
        let lacking = match world.trust {
            TrustMode::Auto => lacking(world, &host.name),
            TrustMode::Manual => Default::default(),
        };
        if let Some(matter) = due(tried, format!("grant/{}", host.name), lacking) {
            let input = GrantInput {
                host: host.name.clone(),
                vms: Some(matter.into_iter().collect()),
                automatic: true,
                expired: Vec::new(),
                refused: Vec::new(),
            };
            log_submission(
                app.submit::<GuardianGrant>(&input, KEEPER).await,
                &host.name,
            );
        }
        let unsettled = unsettled(world, &host.name, &host.unsettled);
        // with nobody left that depends on it there is still the former pair to be retired
        if !host.unsettled.is_empty()
            && (due(tried, format!("settle/{}", host.name), unsettled.clone()).is_some()
                || unsettled.is_empty()
                    && pause_over(tried, format!("retire/{}", host.name), TRY_AGAIN))
        {
            let input = RotateInput {
                host: host.name.clone(),
            };
            log_submission(
                app.submit::<GuardianSettle>(&input, KEEPER).await,
                &host.name,
            );
        }
    }
    forget_histories(world, tried).await;
    take_from_expelled(app, tried).await;
    let disputes = Disputes::now(world);
    for vm in world.inventory.vms() {
        let mut guardians: Vec<_> = vm.roll_due().cloned().collect();
        // Its own host seals every new key with its own guardian: that one loses it once the VM has moved away.
        let here = world.hosts.find(&vm.host);
        guardians.retain(|id| here.as_ref().is_none_or(|host| host.guardian.id != *id));
        let roll = Request::Tpm {
            change: TpmChange::Roll,
            restart: false,
        };
        let ready = answer(shown_state(world, &vm), roll) == Answer::Accept
            && vm.is_the_vm()
            && disputes.refusal(&vm).is_none()
            && world.holders.of(vm.id).is_none();
        if guardians.is_empty() || !ready {
            continue;
        }
        if pause_over(tried, format!("roll/{}", vm.id), TRY_AGAIN) {
            let input = RevokeInput {
                vm: vm.id,
                name: vm.name.clone(),
                host: vm.host.clone(),
                from: "revoked earlier".to_owned(),
                guardians,
            };
            log_submission(app.submit::<GuardianRevoke>(&input, KEEPER).await, &vm.host);
        }
    }
}

/// A VM that was deleted for good leaves nothing of its TPM behind, on hosts that had it before either.
async fn forget_histories(world: &World, tried: &mut BTreeMap<String, Tried>) {
    for host in world.hosts.all() {
        let seen = world.inventory.seen(&host.name);
        let Some(facts) = seen.facts.filter(|_| seen.online) else {
            continue;
        };
        let deleted = facts.histories.iter().copied().filter(|vm| {
            let free = world.holders.of(*vm).is_none();
            world.escrow.is_forgotten(*vm) && free && world.inventory.hosts_with(*vm).is_empty()
        });
        for vm in deleted {
            if !pause_over(tried, format!("history/{}/{vm}", host.name), TRY_AGAIN) {
                continue;
            }
            let asked = async { world.agents.of(&host.name)?.delete_history(vm).await };
            match asked.await {
                Ok(()) => {
                    tracing::info!(%vm, host = %host.name, "the history of a deleted VM is gone")
                }
                Err(failure) => tracing::warn!(
                    %vm, host = %host.name, what = failure.what, because = failure.because,
                    "the history of a deleted VM stays"
                ),
            }
        }
    }
}

/// Guardians of hosts that were expelled lose every key that they open, whoever grants keys otherwise. A VM that runs keeps
/// its key until it stops.
async fn take_from_expelled(app: &App, tried: &mut BTreeMap<String, Tried>) {
    let world = &app.world;
    let expelled = world.expulsions.guardians();
    if expelled.is_empty() {
        return;
    }
    let disputes = Disputes::now(world);
    for vm in world.inventory.vms() {
        let guardians = exposed(&vm, &expelled);
        let Some(from) = guardians.first().and_then(|first| expelled.get(first)) else {
            continue;
        };
        let ready = answer(shown_state(world, &vm), Request::Revoke) == Answer::Accept
            && vm.is_the_vm()
            && disputes.refusal(&vm).is_none()
            && world.inventory.seen(&vm.host).online
            && world.holders.of(vm.id).is_none();
        if ready && pause_over(tried, format!("expelled/{}", vm.id), TRY_AGAIN) {
            let input = RevokeInput {
                vm: vm.id,
                name: vm.name.clone(),
                host: vm.host.clone(),
                from: format!("{from}, which was expelled"),
                guardians,
            };
            log_submission(app.submit::<GuardianRevoke>(&input, KEEPER).await, &vm.host);
        }
    }
}

/// VMs that a host of their group cannot open, although it should and could be granted now.
fn lacking(world: &World, host: &HostName) -> BTreeSet<VmId> {
    let Ok(record) = world.hosts.of(host) else {
        return BTreeSet::new();
    };
    let now = time::OffsetDateTime::now_utc();
    let expired = record.guardian.not_after().is_none_or(|end| end < now);
    if expired || world.members_of(&record.group) > MANY_GUARDIANS {
        return BTreeSet::new();
    }
    let input = GrantInput {
        host: host.clone(),
        vms: None,
        automatic: true,
        expired: Vec::new(),
        refused: Vec::new(),
    };
    let plan = plan_grant(world, &input).unwrap_or_default();
    plan.into_iter()
        .filter(|planned| planned.decided.is_none())
        .map(|planned| planned.vm)
        // a VM that a job has made or moves is looked at when that has ended
        .filter(|vm| world.holders.of(*vm).is_none())
        .collect()
}

fn unsettled(
    world: &World,
    host: &HostName,
    former: &[fleetward_model::GuardianId],
) -> BTreeSet<VmId> {
    if former.is_empty() || !world.inventory.seen(host).online {
        return BTreeSet::new();
    }
    depending(world, former)
        .into_iter()
        .filter(|planned| planned.decided.is_none())
        .map(|planned| planned.vm)
        .collect()
}

/// `vms`, if there are any and not all of them were tried a moment ago.
fn due(
    tried: &mut BTreeMap<String, Tried>,
    matter: String,
    vms: BTreeSet<VmId>,
) -> Option<BTreeSet<VmId>> {
    if vms.is_empty() {
        return None;
    }
    let now = Instant::now();
    let again = tried
        .get(&matter)
        .is_none_or(|last| now - last.at >= TRY_AGAIN || !vms.is_subset(&last.vms));
    again.then(|| {
        let vms_tried = vms.clone();
        tried.insert(
            matter,
            Tried {
                vms: vms_tried,
                at: now,
            },
        );
        vms
    })
}

fn pause_over(tried: &mut BTreeMap<String, Tried>, matter: String, pause: Duration) -> bool {
    let now = Instant::now();
    let over = tried.get(&matter).is_none_or(|last| now - last.at >= pause);
    if over {
        let vms = BTreeSet::new();
        tried.insert(matter, Tried { vms, at: now });
    }
    over
}

fn log_submission(submitted: Result<fleetward_model::JobId, JobError>, host: &HostName) {
    match submitted {
        Ok(job) => tracing::info!(%job, %host, "keys are brought in order"),
        Err(JobError::Busy { .. }) => {}
        Err(error) => tracing::warn!(%host, %error, "keys cannot be brought in order"),
    }
}
