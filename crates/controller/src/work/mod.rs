//! The kinds of jobs, one file each, and what they share.
//!
//! Steps hold only the [`World`]. They act through requests to agents, which carry the job's id and generation.

mod guardian_grant;
mod guardian_revoke;
mod guardian_rotate;
mod host_drain;
mod take_escrow;
mod template_create;
mod tpm;
mod vm_clone;
mod vm_create;
mod vm_delete;
mod vm_migrate;
mod vm_power;
mod vm_recover;

pub(crate) use guardian_grant::{GrantInput, GuardianGrant, GuardianRewrap, plan as plan_grant};
pub(crate) use guardian_revoke::{GuardianRevoke, RevokeInput};
pub(crate) use guardian_rotate::{
    GuardianRotate, GuardianSettle, RotateInput, depending, may_rotate,
};
pub(crate) use host_drain::{DrainInput, HostDrain};
pub(crate) use take_escrow::TakeEscrow;
pub(crate) use template_create::{TemplateCreate, TemplateInput};
pub(crate) use tpm::{TpmDisable, TpmEnable, TpmInput, TpmRestore, TpmRoll};
pub(crate) use vm_clone::{CloneInput, VmClone};
pub(crate) use vm_create::{CreateInput, VmCreate};
pub(crate) use vm_delete::{DeleteInput, VmDelete};
pub(crate) use vm_migrate::{MigrateInput, VmMigrate, VmMigrateStopped};
pub(crate) use vm_power::{StartInput, StopInput, VmStart, VmStop};
pub(crate) use vm_recover::{RecoverInput, SupersedeInput, VmRecover, VmSupersede};

use crate::world::World;
use fleetward_api::controller::{Outcome, VmOutcome};
use fleetward_jobs::{Data, Job, Registry};
use fleetward_model::{ByteSize, HostName, PoolName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every kind of job.
pub(crate) fn registry(world: &Arc<World>) -> Registry {
    Registry::new()
        .with(VmCreate(world.clone()))
        .with(VmStart(world.clone()))
        .with(VmStop(world.clone()))
        .with(VmDelete(world.clone()))
        .with(VmMigrate(world.clone()))
        .with(VmMigrateStopped(world.clone()))
        .with(HostDrain(world.clone()))
        .with(GuardianGrant(world.clone()))
        .with(GuardianRewrap(world.clone()))
        .with(GuardianRevoke(world.clone()))
        .with(GuardianRotate(world.clone()))
        .with(GuardianSettle(world.clone()))
        .with(TpmEnable(world.clone()))
        .with(TpmDisable(world.clone()))
        .with(TpmRestore(world.clone()))
        .with(TpmRoll(world.clone()))
        .with(VmClone(world.clone()))
        .with(TemplateCreate(world.clone()))
        .with(VmRecover(world.clone()))
        .with(VmSupersede(world.clone()))
}

/// Input of a job on one VM at one host.
pub(crate) trait OnVm: Data {
    fn vm(&self) -> VmId;
    fn host(&self) -> &HostName;

    /// False: it had memory before the job began, which no undo may throw away.
    fn was_stopped(&self) -> bool {
        true
    }
}

/// The locks of a job on one VM.
pub(crate) fn vm_locks(vm: VmId, name: &VmName) -> Vec<String> {
    vec![format!("vm/{vm}"), format!("vm-name/{name}")]
}

/// What a creation under way will take of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reservation {
    pub(crate) host: HostName,
    pub(crate) memory: ByteSize,
    pub(crate) space: BTreeMap<PoolName, ByteSize>,
}

/// What a job is about, for lists.
pub(crate) fn target(job: &Job) -> String {
    let text = |key: &str| {
        job.input
            .get(key)
            .and_then(|v| v.as_str())
            .map(str::to_owned)
    };
    text("name").or_else(|| text("host")).unwrap_or_default()
}

/// What went less well than the job's end says, step by step.
pub(crate) fn warnings(job: &Job) -> Vec<String> {
    let outputs = job.steps.iter().filter_map(|step| step.output.as_ref());
    let warnings = outputs.filter_map(|output| output.get("warning")?.as_str());
    warnings.map(str::to_owned).collect()
}

/// What an ended job reports.
pub(crate) fn result(job: &Job) -> Option<serde_json::Value> {
    use fleetward_jobs::JobKind;
    match job.kind.as_str() {
        VmCreate::NAME => vm_create::result(job),
        VmMigrate::NAME | VmMigrateStopped::NAME => vm_migrate::result(job),
        TpmEnable::NAME | TpmDisable::NAME | TpmRestore::NAME | TpmRoll::NAME => tpm::result(job),
        VmClone::NAME => vm_clone::result(job),
        TemplateCreate::NAME => template_create::result(job),
        VmRecover::NAME => vm_recover::result(job),
        HostDrain::NAME => host_drain::result(job),
        GuardianGrant::NAME => guardian_grant::result(job),
        GuardianRevoke::NAME => guardian_revoke::result(job),
        GuardianRotate::NAME | GuardianSettle::NAME => guardian_rotate::result(job),
        _ => None,
    }
}

/// What became of several VMs, as a job keeps it: its record is one value in the store, so beyond some size VMs are only
/// counted, those that went well first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Outcomes {
    results: Vec<VmOutcome>,
    summary: BTreeMap<Outcome, usize>,
    /// Counted, and not among the results.
    #[serde(default)]
    not_listed: usize,
}

/// Bytes of results; a step's output has at most 64 KiB.
const RESULTS_BUDGET: usize = 56 * 1024;

impl Outcomes {
    fn of(all: Vec<VmOutcome>) -> Self {
        let mut summary = BTreeMap::from([
            (Outcome::Succeeded, 0),
            (Outcome::Failed, 0),
            (Outcome::Skipped, 0),
        ]);
        for one in &all {
            *summary.entry(one.outcome).or_default() += 1;
        }
        let size = |one: &VmOutcome| serde_json::to_string(one).map_or(0, |text| text.len() + 1);
        let mut left = RESULTS_BUDGET;
        let mut listed = vec![false; all.len()];
        for which in [Outcome::Failed, Outcome::Skipped, Outcome::Succeeded] {
            for (one, listed) in all.iter().zip(&mut listed) {
                if one.outcome == which {
                    let rest = left.checked_sub(size(one));
                    *listed = rest.is_some();
                    left = rest.unwrap_or(0);
                }
            }
        }
        let not_listed = listed.iter().filter(|listed| !**listed).count();
        let results = all.into_iter().zip(listed);
        Self {
            results: results
                .filter_map(|(one, keep)| keep.then_some(one))
                .collect(),
            summary,
            not_listed,
        }
    }

    /// Of a step of an ended job; a record of an earlier version lists all of them.
    fn recorded(job: &Job, step: &str) -> Option<Self> {
        job.output(step)
            .or_else(|| job.output::<Vec<VmOutcome>>(step).map(Self::of))
    }

    /// The report of a bulk command.
    fn report(self, host: Option<&serde_json::Value>) -> serde_json::Value {
        let mut report =
            serde_json::json!({ "host": host, "results": self.results, "summary": self.summary });
        if self.not_listed > 0 {
            report["not_listed"] = serde_json::json!(self.not_listed);
        }
        report
    }
}

/// The VM a job works on.
pub(crate) fn vm_of(job: &Job) -> Option<VmId> {
    job.resources
        .iter()
        .find_map(|r| r.strip_prefix("vm/")?.parse().ok())
}

/// The reservation of a creation.
pub(crate) fn reservation_of(job: &Job) -> Option<Reservation> {
    use fleetward_jobs::JobKind;
    if job.kind != VmCreate::NAME {
        return None;
    }
    let input: CreateInput = serde_json::from_value(job.input.clone()).ok()?;
    Some(input.reservation)
}
