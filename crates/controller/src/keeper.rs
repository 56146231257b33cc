//! Background task that keeps every VM's key wrapped for the right guardians, whatever has changed.
//!
//! ```text
//!   a host is online, and VMs of its group lack its guardian ──► guardian-grant     (not with manual trust)
//!   VMs still depend on a guardian that was rotated away     ──► guardian-settle
//!   a VM stopped whose key a revoked guardian knows          ──► guardian-revoke    (its roll)
//!   a guardian of an expelled host opens a VM's key          ──► guardian-revoke    (and its roll)
//!   a lost host is back, and its VM was rebuilt elsewhere    ──► vm-supersede
//! ```
//! The task stores no state: it compares the wanted state with the hosts' reports, so it continues after a restart. It
//! looks at what has changed: at a VM, and at the hosts of its group; at a host, and at the VMs of its group. A failed
//! attempt is repeated after a pause, or as soon as something that it depends on has changed. Now and then it looks at
//! everything, a few VMs at a time.

use crate::admission::{Disputes, shown_state};
use crate::app::App;
use crate::expulsion::exposed;
use crate::hosts::HostRecord;
use crate::inventory::{News, Superseded};
use crate::work::{
    GrantInput, GuardianGrant, GuardianRevoke, GuardianSettle, RevokeInput, RotateInput,
    SupersedeInput, VmSupersede, depending, plan_grant,
};
use crate::world::World;
use fleetward_jobs::JobError;
use fleetward_model::admission::{Answer, Request, TpmChange, answer};
use fleetward_model::guardian::{MANY_GUARDIANS, TrustMode};
use fleetward_model::vm::VmObserved;
use fleetward_model::{GuardianId, HostName, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
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
/// Everything is looked at this often, also what is not reported to have changed.
const SWEEP_EVERY: Duration = Duration::from_secs(300);
/// VMs that are looked at before others get their turn.
const SLICE: usize = 200;

/// What was tried last, for one matter.
struct Tried {
    vms: BTreeSet<VmId>,
    at: Instant,
}

/// Where it is looked again when the pause after an attempt is over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Again {
    Host(HostName),
    Vm(VmId),
}

/// What was tried, and where it is to be looked again.
#[derive(Default)]
struct Attempts {
    tried: BTreeMap<String, Tried>,
    again: BTreeMap<Again, Instant>,
}

impl Attempts {
    /// Adds to `news` what is to be looked at again by now.
    fn add_due(&mut self, news: &mut News) {
        let now = Instant::now();
        self.again.retain(|place, at| {
            if *at > now {
                return true;
            }
            match place {
                Again::Host(host) => drop(news.hosts.insert(host.clone())),
                Again::Vm(vm) => drop(news.vms.insert(*vm)),
            }
            false
        });
    }

    /// Since when a look is due, or when the next will be.
    fn next(&self) -> Option<Instant> {
        self.again.values().min().copied()
    }

    fn look_again(&mut self, place: Again, pause: Duration) {
        self.again.entry(place).or_insert(Instant::now() + pause);
    }
}

/// Looks after the keys until `stop`.
pub(crate) async fn keep(app: App, stop: CancellationToken) {
    let reports = app.world.inventory.news();
    let mut hosts = app.world.hosts.changes();
    let mut expulsions = app.world.expulsions.changes();
    let mut attempts = Attempts::default();
    let mut sweep = Instant::now() + SWEEP_EVERY;
    loop {
        // A host that came, left or has another guardian, or keys that nobody may open any more: for all VMs.
        let mut all = false;
        let next = attempts.next().map_or(sweep, |next| next.min(sweep));
        tokio::select! {
            () = stop.cancelled() => return,
            () = reports.arrived() => {}
            changed = hosts.changed() => match changed {
                Ok(()) => all = true,
                Err(_) => return,
            },
            changed = expulsions.changed() => match changed {
                Ok(()) => all = true,
                Err(_) => return,
            },
            () = tokio::time::sleep_until(next) => {}
            () = tokio::time::sleep(TRY_AGAIN_SOON), if !app.world.inventory.superseded().is_empty() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SETTLE) => {}
        }
        let mut news = reports.take();
        attempts.add_due(&mut news);
        news.all |= all || sweep <= Instant::now();
        if news.all {
            sweep = Instant::now() + SWEEP_EVERY;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = look(&app, &news, &mut attempts) => {}
        }
    }
}

async fn look(app: &App, news: &News, attempts: &mut Attempts) {
    let world = &app.world;
    // Before all else: such a copy may be running.
    end_superseded(app, &mut attempts.tried).await;
    let changed = changed(world, news);
    for (host, vms) in hosts_to_look_at(world, news, &changed).await {
        let Some(record) = world.hosts.find(&host) else {
            continue;
        };
        if !world.inventory.seen(&host).online {
            continue;
        }
        let lacking = match world.trust {
            TrustMode::Auto => lacking(world, &record, &vms),
            TrustMode::Manual => Default::default(),
        };
        if !lacking.is_empty() {
            attempts.look_again(Again::Host(host.clone()), TRY_AGAIN);
        }
        if let Some(matter) = due(&mut attempts.tried, format!("grant/{host}"), lacking) {
            let input = GrantInput {
                host: host.clone(),
                vms: Some(matter.into_iter().collect()),
                automatic: true,
                expired: Vec::new(),
                refused: Vec::new(),
            };
            log_submission(app.submit::<GuardianGrant>(&input, KEEPER).await, &host);
        }
        settle(app, &record, attempts).await;
        tokio::task::yield_now().await;
    }
    forget_histories(world, news, attempts).await;
    let expelled = world.expulsions.guardians();
    let mut vms = match news.all {
        true => Slices::All(None),
        false => Slices::These(changed.into_iter().collect()),
    };
    while let Some(some) = vms.next(world) {
        let disputes = Disputes::now(world);
        for vm in &some {
            take_from_expelled(app, vm, &expelled, &disputes, attempts).await;
            roll(app, vm, &disputes, attempts).await;
        }
        tokio::task::yield_now().await;
    }
}

/// The VMs that have changed, or all, a few at a time.
enum Slices {
    These(Vec<VmId>),
    /// All that follow this one.
    All(Option<Arc<VmObserved>>),
}

/// The VMs that have changed, and those of hosts that have: of a host that is back others could be granted nothing before.
fn changed(world: &World, news: &News) -> BTreeSet<VmId> {
    let hosts = news.hosts.iter();
    let on = hosts.flat_map(|host| world.inventory.vms_on(host));
    on.map(|vm| vm.id).chain(news.vms.iter().copied()).collect()
}

impl Slices {
    fn next(&mut self, world: &World) -> Option<Vec<Arc<VmObserved>>> {
        match self {
            Self::These(ids) if ids.is_empty() => None,
            Self::These(ids) => {
                let some = ids.split_off(ids.len().saturating_sub(SLICE));
                let found = some.into_iter().filter_map(|id| world.inventory.vm(id));
                Some(found.collect())
            }
            Self::All(after) => {
                let some = world.inventory.some_after(after.as_deref(), SLICE);
                *after = Some(Arc::clone(some.last()?));
                Some(some)
            }
        }
    }
}

/// VMs that a host may be granted.
enum Grantable {
    /// Those of its group.
    All,
    These(BTreeSet<VmId>),
}

/// The hosts that have to be looked at, each with the VMs whose keys it may lack.
async fn hosts_to_look_at(
    world: &World,
    news: &News,
    changed: &BTreeSet<VmId>,
) -> BTreeMap<HostName, Grantable> {
    if news.all {
        let hosts = world.hosts.all().into_iter();
        return hosts
            .map(|host| (host.name.clone(), Grantable::All))
            .collect();
    }
    let whole = news.hosts.iter().map(|host| (host.clone(), Grantable::All));
    let mut hosts: BTreeMap<_, _> = whole.collect();
    for (looked_at, vm) in changed
        .iter()
        .filter_map(|id| world.inventory.vm(*id))
        .enumerate()
    {
        let Some(metadata) = &vm.metadata else {
            continue;
        };
        let group = &metadata.spec.group;
        if world.members_of(group) <= MANY_GUARDIANS {
            for host in world.hosts.of_group(group) {
                let none = || Grantable::These(BTreeSet::new());
                if let Grantable::These(vms) = hosts.entry(host.name.clone()).or_insert_with(none) {
                    vms.insert(vm.id);
                }
            }
        }
        if looked_at % SLICE == SLICE - 1 {
            tokio::task::yield_now().await;
        }
    }
    // A former guardian may be needed no more.
    let unsettled = world.hosts.all().into_iter();
    for host in unsettled.filter(|host| !host.unsettled.is_empty()) {
        let none = || Grantable::These(BTreeSet::new());
        hosts.entry(host.name.clone()).or_insert_with(none);
    }
    hosts
}

async fn end_superseded(app: &App, tried: &mut BTreeMap<String, Tried>) {
    let world = &app.world;
    let superseded = world.inventory.superseded();
    let matter = |copy: &Superseded| format!("supersede/{}/{}", copy.host, copy.spec.id);
    // One that was ended is no reason for a pause, should the VM be lost and rebuilt once more.
    tried.retain(|known, _| {
        !known.starts_with("supersede/") || superseded.iter().any(|copy| matter(copy) == *known)
    });
    for copy in superseded {
        let (vm, host) = (copy.spec.id, copy.host.clone());
        if world.inventory.seen(&host).online
            && !world.holders.hold(vm)
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
}

/// What VMs still depend on of a host's former guardians is wrapped for the present one.
async fn settle(app: &App, host: &HostRecord, attempts: &mut Attempts) {
    if host.unsettled.is_empty() {
        return;
    }
    let vms = depending(&app.world, &host.unsettled).into_iter();
    let vms = vms.filter(|planned| planned.decided.is_none());
    let vms: BTreeSet<_> = vms.map(|planned| planned.vm).collect();
    attempts.look_again(Again::Host(host.name.clone()), TRY_AGAIN);
    let (name, tried) = (&host.name, &mut attempts.tried);
    // with nobody left that depends on it there is still the former pair to be retired
    if due(tried, format!("settle/{name}"), vms.clone()).is_some()
        || vms.is_empty() && pause_over(tried, format!("retire/{name}"), TRY_AGAIN)
    {
        let input = RotateInput { host: name.clone() };
        log_submission(app.submit::<GuardianSettle>(&input, KEEPER).await, name);
    }
}

/// A VM that stopped, and whose key a revoked guardian knows, gets another.
async fn roll(app: &App, vm: &VmObserved, disputes: &Disputes<'_>, attempts: &mut Attempts) {
    let world = &app.world;
    let mut guardians: Vec<_> = vm.roll_due().cloned().collect();
    if guardians.is_empty() {
        return;
    }
    // Its own host seals every new key with its own guardian: that one loses it once the VM has moved away.
    let here = world.hosts.find(&vm.host);
    guardians.retain(|id| here.as_ref().is_none_or(|host| host.guardian.id != *id));
    let roll = Request::Tpm {
        change: TpmChange::Roll,
        restart: false,
    };
    let ready = answer(shown_state(world, vm), roll) == Answer::Accept
        && vm.is_the_vm()
        && disputes.refusal(vm).is_none()
        && !world.holders.hold(vm.id);
    if guardians.is_empty() || !ready {
        return;
    }
    attempts.look_again(Again::Vm(vm.id), TRY_AGAIN);
    if pause_over(&mut attempts.tried, format!("roll/{}", vm.id), TRY_AGAIN) {
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

/// A VM that was deleted for good leaves nothing of its TPM behind, on hosts that had it before either.
async fn forget_histories(world: &Arc<World>, news: &News, attempts: &mut Attempts) {
    let gone = news.vms.iter().any(|vm| world.inventory.vm(*vm).is_none());
    let hosts: Vec<_> = match news.all || gone {
        true => world
            .hosts
            .all()
            .iter()
            .map(|host| host.name.clone())
            .collect(),
        false => news.hosts.iter().cloned().collect(),
    };
    for host in hosts {
        let seen = world.inventory.seen(&host);
        let Some(facts) = seen.facts.filter(|_| seen.online) else {
            continue;
        };
        let deleted = facts.histories.iter().copied().filter(|vm| {
            let free = !world.holders.hold(*vm);
            free && world.escrow.is_forgotten(*vm) && world.inventory.hosts_with(*vm).is_empty()
        });
        for vm in deleted {
            attempts.look_again(Again::Host(host.clone()), TRY_AGAIN);
            if pause_over(
                &mut attempts.tried,
                format!("history/{host}/{vm}"),
                TRY_AGAIN,
            ) {
                // A host that hangs keeps nobody else waiting.
                let (world, host) = (Arc::clone(world), host.clone());
                tokio::spawn(async move { forget_history(&world, &host, vm).await });
            }
        }
    }
}

async fn forget_history(world: &World, host: &HostName, vm: VmId) {
    let asked = async { world.agents.of(host)?.delete_history(vm).await };
    match asked.await {
        Ok(()) => tracing::info!(%vm, %host, "the history of a deleted VM is gone"),
        Err(failure) => tracing::warn!(
            %vm, %host, what = failure.what, because = failure.because,
            "the history of a deleted VM stays"
        ),
    }
}

/// Guardians of hosts that were expelled lose every key that they open, whoever grants keys otherwise. A VM that runs keeps
/// its key until it stops.
async fn take_from_expelled(
    app: &App,
    vm: &VmObserved,
    expelled: &BTreeMap<GuardianId, HostName>,
    disputes: &Disputes<'_>,
    attempts: &mut Attempts,
) {
    if expelled.is_empty() {
        return;
    }
    let world = &app.world;
    let guardians = exposed(vm, expelled);
    let Some(from) = guardians.first().and_then(|first| expelled.get(first)) else {
        return;
    };
    let ready = answer(shown_state(world, vm), Request::Revoke) == Answer::Accept
        && vm.is_the_vm()
        && disputes.refusal(vm).is_none()
        && world.inventory.seen(&vm.host).online
        && !world.holders.hold(vm.id);
    if !ready {
        return;
    }
    attempts.look_again(Again::Vm(vm.id), TRY_AGAIN);
    if pause_over(
        &mut attempts.tried,
        format!("expelled/{}", vm.id),
        TRY_AGAIN,
    ) {
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

/// VMs that a host of their group cannot open, although it should and could be granted now.
fn lacking(world: &World, host: &HostRecord, vms: &Grantable) -> BTreeSet<VmId> {
    let now = time::OffsetDateTime::now_utc();
    let expired = host.guardian.not_after().is_none_or(|end| end < now);
    if expired || world.members_of(&host.group) > MANY_GUARDIANS {
        return BTreeSet::new();
    }
    let vms = match vms {
        Grantable::All => None,
        Grantable::These(vms) if vms.is_empty() => return BTreeSet::new(),
        Grantable::These(vms) => Some(vms.iter().copied().collect()),
    };
    let input = GrantInput {
        host: host.name.clone(),
        vms,
        automatic: true,
        expired: Vec::new(),
        refused: Vec::new(),
    };
    let plan = plan_grant(world, &input).unwrap_or_default();
    plan.into_iter()
        .filter(|planned| planned.decided.is_none())
        .map(|planned| planned.vm)
        // a VM that a job has made or moves is looked at when that has ended
        .filter(|vm| !world.holders.hold(*vm))
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
