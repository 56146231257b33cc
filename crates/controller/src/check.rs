//! Collects the facts for the pure rules of `model::preflight`.

use crate::admission::claimants;
use crate::agents::Detail;
use crate::unseen::Unseen;
use crate::world::{HostFactsNow, World};
use fleetward_api::agent::{CanOpen, IncomingAnswer, Question};
use fleetward_api::controller::CheckView;
use fleetward_model::admission::disputed;
use fleetward_model::preflight::{Facts, Incoming, Mode, Opening, check};
use fleetward_model::vm::{Custody, VmObserved};
use fleetward_model::{Failure, HostName};
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
    let checked = judge(world, mode, vm, &source, &destination, at_home, incoming);
    let claimants = claimants(world, vm.id);
    let dispute = (!claimants.is_empty()).then(|| disputed(&vm.name, &claimants));
    let judged = home.detail.as_ref().and_then(|d| d.tpm_state.as_ref());
    let unseen = Unseen::of(world, vm, judged, dispute);
    Ok(unseen.add(mode, checked, destination.online()))
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
        id: Some(vm.id),
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
