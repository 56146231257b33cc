//! Converts internal records to the API's types.

use crate::admission::{Disputes, shown_state};
use crate::app::App;
use crate::debts;
use crate::ek;
use crate::escrow::keeper;
use crate::hosts::HostRecord;
use crate::remarks;
use crate::tokens::TokenRecord;
use crate::unseen::noticed;
use crate::web_server::Console;
use crate::work;
use crate::world::World;
use fleetward_api::controller::{
    ClaimView, DebtView, EscrowView, HostView, JobState, JobView, LastSeen, ProgressView, StepView,
    VmView,
};
use fleetward_jobs::{Debt, Job, Owed, StepState};
use fleetward_model::change;
use fleetward_model::host::HostState;
use fleetward_model::network::NicObserved;
use fleetward_model::vm::{VmObserved, VmState};
use fleetward_model::{Failure, Names};
use time::OffsetDateTime;

/// A VM, with the job that holds it, and with what several hosts say of it, if it is one of `disputes`.
pub(super) fn vm(disputes: &Disputes<'_>, vm: &VmObserved) -> VmView {
    let world = disputes.world();
    let holder = world.holders.of(vm.id);
    let state = shown_state(world, vm);
    let silent_since = world.inventory.last_seen(&vm.host).unwrap_or(vm.observed);
    let spec = vm.metadata.as_ref().map(|metadata| &metadata.spec);
    let (escrow, escrow_age) = match escrow(world, vm) {
        Some((escrow, age)) => (Some(escrow), age),
        None => (None, None),
    };
    VmView {
        name: vm.name.clone(),
        id: vm.id,
        host: vm.host.clone(),
        group: spec.map(|spec| spec.group.clone()),
        host_state: world.hosts.find(&vm.host).map(|host| world.state_of(&host)),
        state,
        claims: match disputes.has(vm.id) {
            true => claims(world, vm),
            false => Vec::new(),
        },
        last_seen: (state == VmState::Unknown).then_some(LastSeen {
            state: vm.state,
            at: silent_since,
        }),
        state_since: Some(match state {
            VmState::Unknown => silent_since,
            VmState::Running
            | VmState::Stopped
            | VmState::Saved
            | VmState::Paused
            | VmState::Migrating
            | VmState::Failed => world.inventory.state_since(vm),
        }),
        reason: vm.reason.clone(),
        managed: vm.is_managed(),
        newer: vm.newer.clone(),
        cpus: vm.cpus,
        memory_bytes: vm.memory,
        firmware: vm.firmware,
        settings: vm.settings,
        disks: vm.disks.clone(),
        nics: nics(vm),
        drives: vm.drives.clone(),
        tpm: vm.tpm.clone(),
        ek: ek::standing_of(world, vm),
        escrow,
        escrow_age,
        description: spec
            .map(|spec| spec.description.clone())
            .unwrap_or_default(),
        autostart: spec.is_some_and(|spec| spec.autostart),
        after_boot: vm.noted.after_boot.clone(),
        restart_on_crash: spec.is_some_and(|spec| spec.restart_on_crash),
        crashes: vm.noted.crashes.clone(),
        secure_boot: vm.noted.secure_boot.clone(),
        guest: (state != VmState::Unknown)
            .then(|| vm.noted.guest.clone())
            .flatten(),
        pending: change::pending(vm),
        domain_name: vm.domain_name.clone(),
        findings: noticed(world, vm, state).collect(),
        labels: spec.map(|spec| spec.labels.clone()).unwrap_or_default(),
        profile: spec.map(|spec| spec.profile),
        job: holder.map(|(holder, _)| holder.job),
        created: spec.map(|spec| spec.created),
        observed: vm.observed,
        usage: None,
    }
}

/// What each of several hosts says of it.
fn claims(world: &World, vm: &VmObserved) -> Vec<ClaimView> {
    let newest = world.escrow.newest(vm.id);
    let known = newest.and_then(|newest| newest.ek_sha256);
    let claims = world.inventory.claims(vm.id).into_iter();
    let view = claims.map(|claim| ClaimView {
        host: claim.host.clone(),
        name: claim.name.clone(),
        state: claim
            .state
            .shown(world.inventory.online(&claim.host), false),
        managed: claim.is_managed(),
        tpm_known: claim
            .tpm
            .ek_certificate
            .as_ref()
            .zip(known.as_ref())
            .map(|(its, known)| its == known),
        tpm_state_present: claim.tpm.enabled.then_some(claim.tpm.state_present),
        ek_certificate: claim.tpm.ek_certificate.clone(),
        observed: claim.observed,
    });
    view.collect()
}

/// Its network cards, with the addresses that its guest has told or its host has seen.
fn nics(vm: &VmObserved) -> Vec<NicObserved> {
    let spec = vm.metadata.as_ref().map(|metadata| &metadata.spec);
    let mut nics: Vec<NicObserved> = match &vm.nics {
        Some(nics) => nics.clone(),
        None => spec
            .iter()
            .flat_map(|spec| &spec.nics)
            .map(NicObserved::from)
            .collect(),
    };
    let guest = vm.noted.guest.as_ref();
    for nic in nics.iter_mut().filter(|nic| nic.addresses.is_empty()) {
        let known = guest.map_or(&[][..], |guest| guest.addresses(&nic.mac));
        nic.addresses = known.iter().map(ToString::to_string).collect();
    }
    nics
}

/// The controller's copy of a VM's TPM, and for how long it may have been behind. None without a TPM.
fn escrow(world: &World, vm: &VmObserved) -> Option<(EscrowView, Option<u64>)> {
    if !vm.tpm.enabled || vm.metadata.is_none() {
        return None;
    }
    let newest = world.escrow.newest(vm.id);
    let current = newest.is_some() && !keeper::is_behind(world, vm);
    let certain = newest.as_ref().map(|newest| match current {
        // as new as the host's last word
        true => {
            let heard = world.inventory.seen(&vm.host).last_seen;
            newest.made.max(heard.unwrap_or(vm.observed))
        }
        false => newest.made,
    });
    let age = certain.map(|at| {
        let age = OffsetDateTime::now_utc() - at;
        u64::try_from(age.whole_seconds()).unwrap_or(0)
    });
    let view = EscrowView {
        version: newest.as_ref().map(|newest| newest.version),
        made: newest.map(|newest| newest.made),
        current,
        failure: world.escrow.missed(vm.id),
    };
    Some((view, age))
}

/// A host of the fleet.
pub(super) fn host(world: &World, record: &HostRecord) -> HostView {
    let seen = world.inventory.seen(&record.name);
    let owed = world.debts.of(record.name.as_str());
    HostView {
        name: record.name.clone(),
        group: record.group.clone(),
        state: world.state_of(record),
        address: Some(record.address.clone()),
        last_seen: seen.last_seen,
        vms: world.inventory.count_on(&record.name) as u32,
        facts: seen.facts.map(|facts| (*facts).clone()),
        warnings: remarks::texts(world, record),
        debts: owed.iter().map(debt).collect(),
        certificate: record.certificate.clone(),
        usage: None,
    }
}

fn debt(debt: &Debt) -> DebtView {
    DebtView {
        job: debt.job,
        kind: debt.kind.clone(),
        step: debt.step.clone(),
        undo: debt.owed == Owed::Undo,
        vm: debts::vm_of(debt),
        since: debt.since,
        failure: debt.failure.clone(),
    }
}

/// A host that has a token and has not joined.
pub(super) fn invited(token: TokenRecord) -> HostView {
    HostView {
        name: token.host,
        group: token.group,
        state: HostState::Invited,
        address: None,
        facts: None,
        last_seen: None,
        vms: 0,
        warnings: Vec::new(),
        debts: Vec::new(),
        certificate: None,
        usage: None,
    }
}

/// A job. Whoever is told that it has ended finds its VM free: the memory of holders follows the store a moment later, so it
/// is told here, before anybody else is.
pub(super) fn job(world: &World, job: Job) -> JobView {
    if job.state.has_ended() {
        world.release(job.id);
    }
    let failure = job
        .failure
        .as_ref()
        .map(|failure| named(world, &job, failure));
    let warnings = work::warnings_of(&job);
    JobView {
        id: job.id,
        target: work::about_job(&job).target,
        state: job.state,
        created_by: job.created_by.clone(),
        created: job.created_at,
        ended: job.ended_at,
        current: job.current_step().map(|step| step.name.clone()),
        progress: job.progress.as_ref().map(|progress| ProgressView {
            done: progress.done_bytes.unwrap_or(0),
            total: progress.total_bytes.unwrap_or(0),
            text: progress.text.clone().unwrap_or_default(),
        }),
        waiting: job.waiting.as_ref().map(|waiting| waiting.reason.clone()),
        waiting_code: job
            .waiting
            .as_ref()
            .and_then(|_| Some(job.current_step()?.failure.as_ref()?.code)),
        held_up: held_up(&job),
        cancellable: matches!(job.state, JobState::Pending | JobState::Running) && !job.past_return,
        result: (job.state == JobState::Done)
            .then(|| work::report_of(&job))
            .flatten(),
        steps: job
            .steps
            .into_iter()
            .map(|step| StepView {
                name: step.name,
                state: step_state(step.state).to_owned(),
                attempts: step.attempts,
                started: step.started_at,
                ended: step.ended_at,
                owed_by: step.debtor.map(|debtor| debtor.key),
            })
            .collect(),
        kind: job.kind,
        warnings,
        failure,
    }
}

/// The failure of a job with the names that the job knows: agents know a VM by its id.
fn named(world: &World, job: &Job, failure: &Failure) -> Failure {
    let about = work::about_job(job);
    let mut names = Names::default().job(job.id);
    if let Some(host) = about.host {
        names = names.host(host);
    }
    let Some(vm) = about.vm else {
        return failure.clone().about(&names);
    };
    // The target of a clone is what it makes, and not the VM that is copied.
    let seen = world.inventory.vm(vm);
    let name = seen.map_or(about.target, |seen| seen.name.to_string());
    let mut failure = failure.clone().about(&names.vm(&name));
    if let Some(restore) = world.escrow.cure(vm, &name, failure.code) {
        failure.fix = restore;
    }
    for text in [&mut failure.what, &mut failure.because, &mut failure.fix] {
        *text = text.replace(&vm.to_string(), &name);
    }
    failure
}

/// Longer than a host's agent takes to start again, and shorter than people wait for a command.
const SOON: time::Duration = time::Duration::seconds(15);

fn held_up(job: &Job) -> bool {
    let only_there = job.past_return || job.state == fleetward_jobs::JobState::Undoing;
    let waits = job.waiting.as_ref();
    waits.is_some_and(|waiting| {
        waiting.lasting || only_there && OffsetDateTime::now_utc() - waiting.since >= SOON
    })
}

const fn step_state(state: StepState) -> &'static str {
    match state {
        StepState::Pending => "pending",
        StepState::Running => "running",
        StepState::Done => "done",
        StepState::Failed => "failed",
        StepState::Undoing => "undoing",
        StepState::Undone => "undone",
        StepState::Skipped => "skipped",
        StepState::Owed => "owed",
    }
}

/// The numbers of `GET /v1/status`.
pub(super) fn status(app: &App) -> fleetward_api::controller::Status {
    let (world, now) = (&app.world, OffsetDateTime::now_utc());
    let hosts = world.hosts.all();
    let online = hosts
        .iter()
        .filter(|host| world.inventory.seen(&host.name).online);
    fleetward_api::controller::Status {
        trust: app.world.trust,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        fleet: world.fleet.id(),
        authority: world.fleet.trust().fingerprint().to_string(),
        authority_ends: Some(world.fleet.ends()),
        hosts_online: online.count() as u32,
        hosts: hosts.len() as u32,
        vms: world.inventory.managed() as u32,
        jobs_running: world.holders.count() as u32,
        console: app.console.as_ref().map(Console::view),
        findings: remarks::of_controller(world, now),
    }
}
