//! Answers questions of preflight that facts do not answer: whether this VM could come to this host, and whether its
//! key protector opens.

use crate::failure::chain;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::flash;
use crate::host::Host;
use crate::observe;
use crate::tpm_judge;
use fleetward_api::agent::{CanOpen, IncomingAnswer, Question, VmDetail};
use fleetward_hypervisor::{CpuVerdict, DomainState};
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure, VmId};

/// Answers a question about a VM that may come here.
pub(crate) async fn answer(host: &Host, question: &Question) -> Result<IncomingAnswer> {
    let spec = &question.metadata.spec;
    let domains = host.hypervisor.list().await.ok();
    let taken = |by: &dyn Fn(&fleetward_hypervisor::DomainObserved) -> bool| {
        domains.as_ref().map(|domains| domains.iter().any(by))
    };
    let cpu_problem = match &question.cpu_xml {
        None => None,
        Some(cpu) => match host.hypervisor.check_cpu(cpu).await {
            Ok(CpuVerdict::Compatible) => None,
            Ok(CpuVerdict::Incompatible(missing)) => Some(missing),
            Err(error) => Some(format!("it could not be found out: {}", chain(&error))),
        },
    };
    let flash_problem = question.flash.as_ref().and_then(flash::problem);
    Ok(IncomingAnswer {
        uuid_taken: taken(&|domain| domain.id == spec.id),
        name_taken: taken(&|domain| domain.name == spec.name && domain.id != spec.id),
        cpu_problem,
        flash_problem,
        can_open: can_open(host, &question.metadata),
    })
}

/// One VM with what only its host knows.
pub(crate) async fn detail(host: &Host, vm: VmId) -> Result<VmDetail> {
    let observed = observe::observe(host, vm)
        .await?
        .ok_or_else(|| not_here(host, vm))?;
    let domain = host
        .hypervisor
        .inspect(vm)
        .await
        .attempt(|| format!("looking at VM {vm}"))?;
    let can_open = match &observed.metadata {
        Some(metadata) if domain.tpm => can_open(host, metadata),
        Some(_) | None => CanOpen::NoTpm,
    };
    let tpm_state = match &observed.metadata {
        Some(metadata) if domain.tpm && observed.state.stands_still() => {
            tpm_judge::unasked(host, vm, metadata).await
        }
        Some(_) | None => None,
    };
    let tpm_states = match domain.tpm {
        true => host.record(vm).tpm_states()?.all(),
        false => Vec::new(),
    };
    let runs = matches!(domain.state, DomainState::Running);
    Ok(VmDetail {
        vm: observed,
        flash: domain
            .loader
            .filter(|_| runs)
            .as_deref()
            .and_then(flash::of),
        cpu_xml: domain.cpu_xml,
        can_open,
        tpm_state,
        tpm_states,
    })
}

pub(crate) fn not_here(host: &Host, vm: VmId) -> Trouble {
    Failure::new(ErrorCode::VmNotFound, format!("VM {vm}"))
        .because(format!("host {} has no such VM", host.member.host))
        .into()
}

fn can_open(host: &Host, metadata: &VmMetadata) -> CanOpen {
    if !metadata.spec.tpm {
        return CanOpen::NoTpm;
    }
    host.keyring
        .can_open(metadata.key_protector.as_deref(), metadata.spec.id)
}
