//! `secure-boot-enroll` and `secure-boot-restore`: the certificates in the UEFI variables of an existing VM.
//!
//! ```text
//!  enroll:   stop | enroll   ‖ escrow, restart
//!  restore:  stop            ‖ restore, escrow, restart
//! ```
//! Like the jobs of a TPM, they are submitted one for each VM, and never cut a guest's power.

use super::tpm::switch::{PATIENCE, ask, of_the_vms_own_host};
use super::tpm::{ShutDown, StartAgain, TpmInput};
use super::{FleetJob, NoReport, TakeEscrow, vm_locks};
use crate::world::World;
use fleetward_api::agent::operation;
use fleetward_api::tpm::VersionReason;
use fleetward_api::verbs::{self, Access, Verb};
use fleetward_jobs::{
    Absence, JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::admission::{CertificateChange, Request};
use fleetward_model::{HostName, VmId};
use std::sync::Arc;
use std::time::Duration;

/// Adds Microsoft's certificates of 2023.
pub(crate) struct SecureBootEnroll(pub(crate) Arc<World>);
/// Brings back what was trusted before.
pub(crate) struct SecureBootRestore(pub(crate) Arc<World>);

impl JobKind for SecureBootEnroll {
    const NAME: &'static str = "secure-boot-enroll";
    type Input = TpmInput;

    fn locks(input: &TpmInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<TpmInput> {
        let world = &self.0;
        Steps::new()
            .step(ShutDown(world.clone()))
            .step(Enroll(world.clone()))
            .forward(TakeEscrow::new(world.clone(), VersionReason::Redefined))
            .forward(StartAgain(world.clone()))
    }
}

impl FleetJob for SecureBootEnroll {
    type Report = NoReport;
    const ACCESS: Access = <verbs::SecureBootEnroll as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(request(CertificateChange::Enroll));
    const WARNING_STEPS: &'static [&'static str] =
        &[TakeEscrow::<TpmInput>::NAME, StartAgain::NAME];

    fn target(input: &TpmInput) -> String {
        input.name.to_string()
    }

    fn host(input: &TpmInput) -> &HostName {
        &input.host
    }

    fn vm(input: &TpmInput) -> Option<VmId> {
        Some(input.vm)
    }
}

impl JobKind for SecureBootRestore {
    const NAME: &'static str = "secure-boot-restore";
    type Input = TpmInput;

    fn locks(input: &TpmInput) -> Vec<String> {
        vm_locks(input.vm, &input.name)
    }

    fn steps(&self) -> Steps<TpmInput> {
        let world = &self.0;
        Steps::new()
            .step(ShutDown(world.clone()))
            .check(Restore(world.clone()))
            .forward(TakeEscrow::new(world.clone(), VersionReason::Redefined))
            .forward(StartAgain(world.clone()))
    }
}

impl FleetJob for SecureBootRestore {
    type Report = NoReport;
    const ACCESS: Access = <verbs::SecureBootRestore as Verb>::ACCESS;
    const REQUEST: Option<Request> = Some(request(CertificateChange::Restore));
    const WARNING_STEPS: &'static [&'static str] =
        &[TakeEscrow::<TpmInput>::NAME, StartAgain::NAME];

    fn target(input: &TpmInput) -> String {
        input.name.to_string()
    }

    fn host(input: &TpmInput) -> &HostName {
        &input.host
    }

    fn vm(input: &TpmInput) -> Option<VmId> {
        Some(input.vm)
    }
}

const fn request(change: CertificateChange) -> Request {
    Request::Certificates {
        change,
        restart: true,
    }
}

struct Enroll(Arc<World>);

#[async_trait]
impl Step<TpmInput> for Enroll {
    const NAME: &'static str = "enroll";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = ();

    async fn run(&self, cx: &StepContext<TpmInput>) -> Result<(), StepError> {
        ask(&self.0, cx, operation::EnrollCertificates {}).await
    }
}

#[async_trait]
impl UndoStep<TpmInput> for Enroll {
    fn undo_absence(&self, cx: &StepContext<TpmInput>) -> Absence {
        of_the_vms_own_host(cx)
    }

    async fn undo(&self, cx: &StepContext<TpmInput>) -> Result<(), StepError> {
        ask(
            &self.0,
            cx,
            operation::RestoreCertificates { of_this_job: true },
        )
        .await
    }
}

/// One operation, which is done or not: after it the certificates that were enrolled are not known any more, so a job that is
/// cancelled later goes on.
struct Restore(Arc<World>);

#[async_trait]
impl Step<TpmInput> for Restore {
    const NAME: &'static str = "restore";
    const RETRY_FOR: Duration = PATIENCE;
    type Output = ();

    async fn run(&self, cx: &StepContext<TpmInput>) -> Result<(), StepError> {
        ask(
            &self.0,
            cx,
            operation::RestoreCertificates { of_this_job: false },
        )
        .await
    }
}
