//! `vm-recover` rebuilds a VM of a lost host on another host; `vm-supersede` ends its old copy when the lost host is
//! back.
//!
//! ```text
//!  vm-recover:    see-lost, rebuild ‖ supersede, commit, escrow
//!  vm-supersede:  end-copy ‖ clean-up, settle
//! ```
//! The old copies are recorded as superseded before the new copy becomes the VM, so the two never count at the same
//! time. A superseded copy is not shown, and [`crate::keeper`] ends it when its host answers. The controller cannot
//! know that a silent host is off; the administrator confirms it with this request.

use super::custody::ProtectorDigest;
use super::place_images;
use super::{FleetJob, NoReport, OnVm, Reservation, TakeEscrow, vm_locks};
use crate::debts::{about, removal};
use crate::inventory::Superseded;
use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_api::reports::RecoverReport;
use fleetward_api::tpm::{TpmVersion, VersionReason};
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, Job, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::Request;
use fleetward_model::vm::{Custody, Transit, TransitSide, VmObserved, VmState, VmSummary};
use fleetward_model::{ErrorCode, Failure, HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;

/// The new host is waited for this long before the job turns back.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is rebuilt from what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RecoverInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) to: HostName,
    pub(crate) metadata: Box<VmSummary>,
    /// Of the version, or as it was wrapped anew since; none without a TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) protector: Option<ProtectorDigest>,
    /// None for a VM without a TPM.
    pub(crate) version: Option<TpmVersion>,
    /// The version is not of the state that the lost host last reported.
    #[serde(default)]
    pub(crate) outdated: bool,
    /// Hosts that may have a copy, none of which answers.
    pub(crate) lost: Vec<HostName>,
    /// What it takes of the new host; none in a record of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reservation: Option<Reservation>,
}

impl OnVm for RecoverInput {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn host(&self) -> &HostName {
        &self.to
    }
}

/// The kind.
pub(crate) struct VmRecover(pub(crate) Arc<World>);

impl JobKind for VmRecover {
    const NAME: &'static str = "vm-recover";
    type Input = RecoverInput;

    fn locks(input: &RecoverInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<RecoverInput> {
        let world = &self.0;
        Steps::new()
            .check(SeeLost(world.clone()))
            .step(Rebuild(world.clone()))
            .forward(Supersede(world.clone()))
            .forward(Commit(world.clone()))
            .forward(TakeEscrow::new(world.clone(), VersionReason::Recovered))
    }
}

impl FleetJob for VmRecover {
    type Report = RecoverReport;
    const ACCESS: Access = <verbs::VmRecover as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(Request::Recover);
    const WARNING_STEPS: &'static [&'static str] = &[TakeEscrow::<RecoverInput>::NAME];

    fn target(input: &RecoverInput) -> String {
        input.name.to_string()
    }

    fn host(input: &RecoverInput) -> &HostName {
        &input.to
    }

    fn vm(input: &RecoverInput) -> Option<VmId> {
        Some(input.vm)
    }

    fn reservation(input: &RecoverInput) -> Option<Reservation> {
        input.reservation.clone()
    }

    fn report(input: &RecoverInput, _job: &Job) -> Option<RecoverReport> {
        let version = input.version.as_ref();
        Some(RecoverReport {
            vm: input.name.clone(),
            from: input.lost.clone(),
            to: input.to.clone(),
            version: version.map(|version| version.version),
            outdated: input.outdated,
            made: version.map(|version| version.made),
        })
    }
}

struct SeeLost(Arc<World>);

#[async_trait]
impl Step<RecoverInput> for SeeLost {
    const NAME: &'static str = "see-lost";
    type Output = ();

    async fn run(&self, cx: &StepContext<RecoverInput>) -> Result<(), StepError> {
        Ok(see_lost(&self.0, cx.input())?)
    }
}

/// A host that was lost when the job was asked for may be back.
fn see_lost(world: &World, input: &RecoverInput) -> Result<(), Failure> {
    let back = input
        .lost
        .iter()
        .find(|host| world.inventory.seen(host).answers);
    match back {
        None => Ok(()),
        Some(host) => {
            let what = format!("VM {} is not lost", input.name);
            Err(Failure::new(ErrorCode::VmNotLost, what)
                .because(format!("host {host} is back"))
                .fix(format!("fleetward vm show {}", input.name)))
        }
    }
}

struct Rebuild(Arc<World>);

#[async_trait]
impl Step<RecoverInput> for Rebuild {
    const NAME: &'static str = "rebuild";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = ();

    async fn run(&self, cx: &StepContext<RecoverInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        let (custody, bundle) = match &input.version {
            Some(version) => {
                let mut bundle = world.escrow.bundle(input.vm, version.version).await?;
                // Twice it would be too much for one request, and the host does not look here.
                bundle.metadata.key_protector = None;
                let wanted = input.protector.as_ref().map(ProtectorDigest::as_str);
                let custody = Custody {
                    key_protector: Some(world.escrow.protector(version, wanted).await?),
                    ek_certificate: bundle.ek_certificate.clone(),
                    former_certificates: bundle.metadata.former_certificates.take(),
                };
                (custody, Some(Box::new(bundle)))
            }
            None => (Custody::default(), None),
        };
        let metadata = Box::new((*input.metadata).clone().with_custody(custody));
        let operation = operation::RebuildIncoming {
            metadata,
            bundle,
            former_states: world.escrow.states(input.vm),
        };
        let agent = world.agents.of(&input.to)?;
        let images = place_images::of_media(input.metadata.spec.media());
        place_images::place(world, cx, &input.to, &images).await?;
        agent.run(cx, input.vm, operation).await?;
        // The last moment at which there is a way back.
        Ok(see_lost(world, input)?)
    }
}

#[async_trait]
impl UndoStep<RecoverInput> for Rebuild {
    /// A rebuilt copy is marked as incoming before anything else of it is there, and never starts; its removal leaves the
    /// disks.
    fn undo_absence(&self, cx: &StepContext<RecoverInput>) -> Absence {
        removal(&cx.input().to, cx.input().vm)
    }

    async fn undo(&self, cx: &StepContext<RecoverInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        let operation = operation::AbandonIncoming {
            spec: input.metadata.spec.clone(),
            disks: Vec::new(),
        };
        let agent = world.agents.of(&input.to)?;
        agent.run(cx, input.vm, operation).await.map(drop)
    }
}

struct Supersede(Arc<World>);

#[async_trait]
impl Step<RecoverInput> for Supersede {
    const NAME: &'static str = "supersede";
    type Output = ();

    async fn run(&self, cx: &StepContext<RecoverInput>) -> Result<(), StepError> {
        let input = cx.input();
        let copies = input.lost.iter().map(|host| Superseded {
            host: host.clone(),
            spec: input.metadata.spec.clone(),
        });
        let known = self.0.inventory.vm(input.vm);
        let written = self.0.inventory.supersede(copies.collect()).await;
        written.map_err(|error| StepError::retryable(crate::store_failure(&error)))?;
        // Should the new host die too, the VM is still known, and can be rebuilt once more.
        if let Some(known) = known.filter(|vm| vm.host != input.to) {
            let arriving = VmObserved {
                host: input.to.clone(),
                state: VmState::Stopped,
                metadata: Some(VmSummary {
                    transit: Some(Transit {
                        job: cx.job(),
                        side: TransitSide::Incoming,
                    }),
                    ..(*input.metadata).clone()
                }),
                observed: OffsetDateTime::now_utc(),
                ..(*known).clone()
            };
            let inventory = &self.0.inventory;
            inventory.observe(&input.to, input.vm, Some(arriving));
        }
        // A host that was expelled does not return, so there is no copy that would have to be ended.
        for host in &input.lost {
            if self.0.hosts.find(host).is_none() {
                let forgotten = self.0.inventory.forget_copy(host, input.vm).await;
                forgotten.map_err(|error| StepError::retryable(crate::store_failure(&error)))?;
            }
        }
        Ok(())
    }
}

struct Commit(Arc<World>);

#[async_trait]
impl Step<RecoverInput> for Commit {
    const NAME: &'static str = "commit";
    type Output = ();

    /// The copy stays marked as incoming until its host is back. The VM can be rebuilt on a third host meanwhile: this one is
    /// superseded then, and the debt removes it instead.
    fn absence(&self, cx: &StepContext<RecoverInput>) -> Absence {
        Absence::Owe(about(&cx.input().to, cx.input().vm).half_way())
    }

    async fn run(&self, cx: &StepContext<RecoverInput>) -> Result<(), StepError> {
        let (world, input) = (&self.0, cx.input());
        let agent = world.agents.of(&input.to)?;
        if cx.pays_debt() && world.inventory.is_superseded(&input.to, input.vm) {
            let operation = operation::AbandonIncoming {
                spec: input.metadata.spec.clone(),
                disks: Vec::new(),
            };
            return match agent.run(cx, input.vm, operation).await {
                // committed before its host died: the copy is ended like any other that was superseded
                Err(error) if error.failure.code == ErrorCode::VmStateWrong => Ok(()),
                done => done,
            };
        }
        let operation = operation::CommitIncoming { live: false };
        agent.run(cx, input.vm, operation).await?;
        world.refresh(&input.to, input.vm).await;
        Ok(())
    }
}

/// Which copy is ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SupersedeInput {
    pub(crate) vm: VmId,
    pub(crate) name: VmName,
    pub(crate) copy: Superseded,
}

/// The kind.
pub(crate) struct VmSupersede(pub(crate) Arc<World>);

impl JobKind for VmSupersede {
    const NAME: &'static str = "vm-supersede";
    type Input = SupersedeInput;

    fn locks(input: &SupersedeInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<SupersedeInput> {
        let world = &self.0;
        Steps::new()
            .check(EndCopy(world.clone()))
            .forward(CleanUp(world.clone()))
            .forward(Settle(world.clone()))
    }
}

impl FleetJob for VmSupersede {
    type Report = NoReport;
    const ACCESS: Access = <verbs::VmRecover as Verb>::ACCESS;

    fn target(input: &SupersedeInput) -> String {
        input.name.to_string()
    }

    fn host(input: &SupersedeInput) -> &HostName {
        &input.copy.host
    }

    fn vm(input: &SupersedeInput) -> Option<VmId> {
        Some(input.vm)
    }
}

struct EndCopy(Arc<World>);

#[async_trait]
impl Step<SupersedeInput> for EndCopy {
    const NAME: &'static str = "end-copy";
    type Output = ();

    async fn run(&self, cx: &StepContext<SupersedeInput>) -> Result<(), StepError> {
        let SupersedeInput { vm, copy, .. } = cx.input();
        let agent = self.0.agents.of(&copy.host)?;
        agent.run(cx, *vm, operation::Supersede {}).await.map(drop)
    }
}

struct CleanUp(Arc<World>);

#[async_trait]
impl Step<SupersedeInput> for CleanUp {
    const NAME: &'static str = "clean-up";
    type Output = ();

    /// The copy is marked as departed and never starts.
    fn absence(&self, cx: &StepContext<SupersedeInput>) -> Absence {
        removal(&cx.input().copy.host, cx.input().vm)
    }

    async fn run(&self, cx: &StepContext<SupersedeInput>) -> Result<(), StepError> {
        let SupersedeInput { vm, copy, .. } = cx.input();
        let operation = operation::CleanUpDeparted {
            spec: copy.spec.clone(),
            disks: Vec::new(),
        };
        let agent = self.0.agents.of(&copy.host)?;
        agent.run(cx, *vm, operation).await.map(drop)
    }
}

/// The host is like any other again; what it says of the VM counts.
struct Settle(Arc<World>);

#[async_trait]
impl Step<SupersedeInput> for Settle {
    const NAME: &'static str = "settle";
    type Output = ();

    async fn run(&self, cx: &StepContext<SupersedeInput>) -> Result<(), StepError> {
        let (world, SupersedeInput { vm, copy, .. }) = (&self.0, cx.input());
        let inventory = &world.inventory;
        inventory.observe(&copy.host, *vm, None);
        let settled = async {
            inventory.flush(OffsetDateTime::now_utc()).await?;
            inventory.settle(&copy.host, *vm).await
        };
        settled
            .await
            .map_err(|error| StepError::retryable(crate::store_failure(&error)))
    }
}
