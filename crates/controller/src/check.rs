//! Collects the facts for the pure rules of `model::preflight`.

use crate::admission::claimants;
use crate::agents::Detail;
use crate::debts::unpaid;
use crate::ek;
use crate::world::{HostFactsNow, World};
use fleetward_api::agent::{CanOpen, IncomingAnswer, Question, TpmStateJudged};
use fleetward_api::controller::CheckView;
use fleetward_model::admission::disputed;
use fleetward_model::error::Finding;
use fleetward_model::preflight::{Facts, Incoming, Mode, Opening, check};
use fleetward_model::vm::{Custody, VmObserved};
use fleetward_model::{ErrorCode, Failure, HostName, Names};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;
use time::OffsetDateTime;

/// Checks at once; each is a question to a host.
const CHECKS_AT_ONCE: usize = 16;

/// What a VM's own host says of it, asked once for all destinations.
#[derive(Debug, Clone)]
pub(crate) struct AtHome {
    pub(crate) vm: VmObserved,
    pub(crate) detail: Option<Detail>,
    /// For the destination's answer; dropped with the check.
    custody: Option<Custody>,
}

impl AtHome {
    /// Asks the VM's host; without an answer, what was last seen has to do.
    pub(crate) async fn ask(world: &World, vm: &VmObserved) -> Self {
        let host = &vm.host;
        let answer = match world.agents.of(host) {
            Ok(agent) if world.inventory.seen(host).online => {
                agent.custody(vm.id).await.ok().flatten()
            }
            _ => None,
        };
        let (detail, custody) = answer.unzip();
        let vm = detail
            .as_ref()
            .map_or_else(|| vm.clone(), |detail| detail.vm.clone());
        Self {
            vm,
            detail,
            custody: custody.flatten(),
        }
    }
}

/// Checks one VM against one host; on its own host, whether it can start.
pub(crate) async fn against(
    world: &World,
    home: &AtHome,
    to: &HostName,
    offline: bool,
) -> Result<CheckView, Failure> {
    let vm = &home.vm;
    let source = HostFactsNow::of(world, &vm.host)?;
    let destination = HostFactsNow::of(world, to)?;
    let mode = match (offline, vm.host == *to) {
        (_, true) => Mode::Start,
        (true, false) => Mode::Stopped,
        (false, false) => Mode::Live,
    };
    let incoming = match (&vm.metadata, mode) {
        (Some(metadata), Mode::Live | Mode::Stopped) if destination.online() => {
            let cpu_xml = home
                .detail
                .as_ref()
                .and_then(|detail| detail.cpu_xml.clone());
            let flash = home.detail.as_ref().and_then(|detail| detail.flash.clone());
            let custody = home.custody.clone().unwrap_or_default();
            let question = Question {
                metadata: metadata.clone().with_custody(custody),
                cpu_xml,
                flash,
            };
            let answered = async { world.agents.of(to)?.ask(&question).await };
            match answered.await {
                Ok(answer) => Some(incoming(answer)),
                Err(error) => {
                    tracing::info!(host = %to, vm = %vm.name, error = %error.what, "a check could not be made");
                    None
                }
            }
        }
        _ => None,
    };
    let at_home = home
        .detail
        .as_ref()
        .map(|detail| opening(detail.can_open.clone()));
    let mut checked = judge(world, mode, vm, &source, &destination, at_home, incoming);
    // The rules do not know which copies there are.
    for finding in &mut checked.findings {
        if let Some(cure) = world.escrow.cure(vm.id, vm.name.as_str(), finding.code) {
            finding.fix = cure;
        }
    }
    if let Some(finding) = world.fleet.finding(OffsetDateTime::now_utc()) {
        checked.findings.push(finding);
    }
    let claimants = claimants(world, vm.id);
    if !claimants.is_empty() {
        return Ok(in_the_way(checked, disputed(&vm.name, &claimants)));
    }
    let judged = home.detail.as_ref().and_then(|d| d.tpm_state.as_ref());
    let checked = match state_refused(world, vm, judged) {
        Some(failure) if !checked.findings.iter().any(|f| f.code == failure.code) => {
            in_the_way(checked, failure)
        }
        Some(_) | None => checked,
    };
    let checked = match ek::finding(world, vm, mode != Mode::Start) {
        Some(finding) => with(checked, finding),
        None => checked,
    };
    Ok(match unpaid(&world.debts, to, Some(vm.id)) {
        // What the host still has of the VM, of a job that ended without it.
        Some(failure) if destination.online() => in_the_way(checked, failure),
        _ => checked,
    })
}

/// What is wrong with the TPM state of a VM that stands still: as its host says now, and whether it opens as the host said
/// when a copy of it was asked for. A former version of the agent says the one thing only then, too.
fn state_refused(
    world: &World,
    vm: &VmObserved,
    judged: Option<&TpmStateJudged>,
) -> Option<Failure> {
    if !vm.state.stands_still() {
        return None;
    }
    let missed = || world.escrow.missed(vm.id);
    let failure = match judged {
        Some(TpmStateJudged::Opened) => None,
        Some(TpmStateJudged::Refused { failure }) => Some(failure.clone()),
        Some(TpmStateJudged::Untried) => {
            missed().filter(|missed| missed.code == ErrorCode::TpmStateUnreadable)
        }
        None => missed().filter(|missed| {
            let of_state = matches!(
                missed.code,
                ErrorCode::TpmStateDamaged
                    | ErrorCode::TpmStateOutdated
                    | ErrorCode::TpmStateUnreadable
            );
            of_state && world.escrow.lacks(vm).is_some()
        }),
    }?;
    let fix = world.escrow.cure(vm.id, vm.name.as_str(), failure.code);
    let fix = fix.unwrap_or_else(|| failure.fix.clone());
    Some(failure.about(&Names::default().vm(&vm.name)).fix(fix))
}

/// The same, but for something that the rules do not see.
pub(crate) fn in_the_way(checked: CheckView, failure: Failure) -> CheckView {
    let what = format!("{}: {}", failure.what, failure.because);
    let finding = Finding::blocking(failure.code, what, failure.fix);
    with(checked, finding)
}

fn with(mut checked: CheckView, finding: Finding) -> CheckView {
    if finding.blocking {
        checked.possible = false;
        checked.code = checked.code.or(Some(finding.code));
    }
    checked.findings.push(finding);
    checked
}

/// What the rules say to facts that were collected.
pub(crate) fn judge(
    world: &World,
    mode: Mode,
    vm: &VmObserved,
    source: &HostFactsNow,
    destination: &HostFactsNow,
    source_opening: Option<Opening>,
    incoming: Option<Incoming>,
) -> CheckView {
    let (from, to) = (source.side(vm.id), destination.side(vm.id));
    let to_name = to.name.clone();
    let findings = check(&Facts {
        mode,
        now: OffsetDateTime::now_utc(),
        trust: world.trust,
        vm,
        tpm_written: world.tpm_writer(vm),
        members: destination.members(),
        source: from,
        destination: to,
        source_opening,
        incoming,
    });
    let code = findings
        .iter()
        .find(|finding| finding.blocking)
        .map(|finding| finding.code);
    CheckView {
        vm: vm.name.clone(),
        from: vm.host.clone(),
        to: to_name,
        possible: code.is_none(),
        code,
        findings,
    }
}

/// Checks VMs against hosts, in the order given. With `as_it_is`, stopped VMs are checked for a move while stopped.
pub(crate) async fn matrix(
    world: &Arc<World>,
    vms: Vec<Arc<VmObserved>>,
    hosts: Vec<HostName>,
    offline: bool,
    as_it_is: bool,
) -> Result<Vec<CheckView>, Failure> {
    let asked = vms.into_iter().map(|vm| {
        let world = Arc::clone(world);
        async move { Arc::new(AtHome::ask(&world, &vm).await) }
    });
    let homes: Vec<_> = stream::iter(asked).buffered(CHECKS_AT_ONCE).collect().await;
    let mut checks = Vec::new();
    for home in homes {
        let offline = offline || as_it_is && home.vm.state.stands_still();
        for host in &hosts {
            let (world, home, host) = (Arc::clone(world), Arc::clone(&home), host.clone());
            checks.push(async move { against(&world, &home, &host, offline).await });
        }
    }
    stream::iter(checks)
        .buffered(CHECKS_AT_ONCE)
        .try_collect()
        .await
}

fn incoming(answer: IncomingAnswer) -> Incoming {
    Incoming {
        uuid_taken: answer.uuid_taken,
        name_taken: answer.name_taken,
        cpu_problem: answer.cpu_problem,
        flash_problem: answer.flash_problem,
        opening: opening(answer.can_open),
    }
}

fn opening(can_open: CanOpen) -> Opening {
    match can_open {
        CanOpen::NoTpm => Opening::NoTpm,
        CanOpen::Yes => Opening::Yes,
        CanOpen::NotGranted => Opening::NotGranted,
        CanOpen::Unreadable { because } => Opening::Unreadable(because),
    }
}
