//! What each kind of job says of itself: its target, its VM, what it takes of a host, its report. Lists, placement and
//! admission read it here; nobody looks into a job's record by the name of its kind.

use super::Reservation;
use fleetward_api::verbs::Access;
use fleetward_jobs::{Job, JobKind, StepState};
use fleetward_model::admission::Request;
use fleetward_model::role::Role;
use fleetward_model::{HostName, VmId};
use serde::{Deserialize, Serialize};
use std::any::TypeId;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A kind of job of this controller.
pub(crate) trait FleetJob: JobKind {
    /// What a job that is done tells; [`NoReport`] where there is nothing beyond that.
    type Report: Serialize + ToSchema + 'static;

    /// The request of a person that it carries out on its VM: what else can be asked of the VM meanwhile follows from it.
    const REQUEST: Option<Request> = None;

    /// Who may call the verb that makes such a job, and so may cancel one.
    const ACCESS: Access;

    /// Steps whose output may hold a warning.
    const WARNING_STEPS: &'static [&'static str] = &[];

    /// What it is about, for lists.
    fn target(input: &Self::Input) -> String;

    /// The host that it works on, or brings a VM to.
    fn host(input: &Self::Input) -> &HostName;

    /// The VM that it works on.
    fn vm(_input: &Self::Input) -> Option<VmId> {
        None
    }

    /// What it will take of a host while it is under way.
    fn reservation(_input: &Self::Input) -> Option<Reservation> {
        None
    }

    /// What it has to tell, from its record; none where the record does not hold it.
    fn report(_input: &Self::Input, _job: &Job) -> Option<Self::Report> {
        None
    }
}

/// The report of a kind that has nothing to tell.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NoReport {}

/// What a job is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    pub(crate) target: String,
    pub(crate) host: Option<HostName>,
    pub(crate) vm: Option<VmId>,
    pub(crate) request: Option<Request>,
    pub(crate) reservation: Option<Reservation>,
}

impl About {
    pub(super) fn of<K: FleetJob>(input: &K::Input) -> Self {
        Self {
            target: K::target(input),
            host: Some(K::host(input).clone()),
            vm: K::vm(input),
            request: K::REQUEST,
            reservation: K::reservation(input),
        }
    }
}

/// A kind with its types forgotten.
pub(super) struct Description {
    name: &'static str,
    about: fn(&Job) -> Option<About>,
    report: fn(&Job) -> Option<serde_json::Value>,
    schema: fn() -> Option<ReportSchema>,
    warning_steps: &'static [&'static str],
    access: Access,
}

impl Description {
    pub(super) const fn of<K: FleetJob>() -> Self {
        Self {
            name: K::NAME,
            about: about::<K>,
            report: report::<K>,
            schema: schema::<K>,
            warning_steps: K::WARNING_STEPS,
            access: K::ACCESS,
        }
    }
}

impl Description {
    const fn role(&self) -> Role {
        match self.access {
            Access::Role(role) => role,
            // No person made it.
            Access::JoinToken | Access::Password => Role::Admin,
        }
    }
}

/// What a job is about; nothing of a kind that this version does not know.
pub(crate) fn about_job(job: &Job) -> About {
    let about = of(job).and_then(|kind| (kind.about)(job));
    about.unwrap_or_default()
}

/// The role that may cancel a job: that of its own verb. Of a kind that this version does not know, an administrator's.
pub(crate) fn role_of(job: &Job) -> Role {
    of(job).map_or(Role::Admin, |kind| kind.role())
}

/// What a job that is done reports.
pub(crate) fn report_of(job: &Job) -> Option<serde_json::Value> {
    of(job).and_then(|kind| (kind.report)(job))
}

/// A type of report in the words of OpenAPI.
pub(crate) struct ReportSchema {
    /// Its own name; the last of `schemas` is the report's.
    pub(crate) name: String,
    /// It, and what it refers to.
    pub(crate) schemas: Vec<(String, RefOr<Schema>)>,
}

/// What jobs of each kind report; kinds that have nothing to tell are left out.
pub(crate) fn report_schemas() -> impl Iterator<Item = (&'static str, ReportSchema)> {
    let kinds = super::DESCRIPTIONS.iter();
    kinds.filter_map(|kind| Some((kind.name, (kind.schema)()?)))
}

fn schema<K: FleetJob>() -> Option<ReportSchema> {
    if TypeId::of::<K::Report>() == TypeId::of::<NoReport>() {
        return None;
    }
    let name = K::Report::name().into_owned();
    let mut schemas = Vec::new();
    K::Report::schemas(&mut schemas);
    schemas.push((name.clone(), K::Report::schema()));
    Some(ReportSchema { name, schemas })
}

/// What went less well than the job's end says, step by step.
pub(crate) fn warnings_of(job: &Job) -> Vec<String> {
    let steps = of(job).map_or(&[][..], |kind| kind.warning_steps);
    let outputs = steps.iter().filter_map(|step| job.output::<Warned>(step));
    let warnings = outputs.filter_map(|output| output.warning);
    warnings.chain(left_over(job)).collect()
}

/// What was left out or is owed because a host is away.
fn left_over(job: &Job) -> impl Iterator<Item = String> {
    job.steps.iter().filter_map(|step| {
        if let Some(forgone) = &step.forgone {
            return Some(forgone.clone());
        }
        let owed = step.state == StepState::Owed;
        let debtor = step.debtor.as_ref().filter(|_| owed)?;
        Some(format!(
            "host {0} is away; step {1} is cleared up when it is back: fleetward host show {0}",
            debtor.key, step.name
        ))
    })
}

/// The part of a step's output that is a warning of its job.
#[derive(Deserialize)]
struct Warned {
    warning: Option<String>,
}

fn of(job: &Job) -> Option<&'static Description> {
    super::DESCRIPTIONS
        .iter()
        .find(|kind| kind.name == job.kind)
}

fn input<K: JobKind>(job: &Job) -> Option<K::Input> {
    serde_json::from_value(job.input.clone()).ok()
}

fn about<K: FleetJob>(job: &Job) -> Option<About> {
    Some(About::of::<K>(&input::<K>(job)?))
}

fn report<K: FleetJob>(job: &Job) -> Option<serde_json::Value> {
    let report = K::report(&input::<K>(job)?, job)?;
    serde_json::to_value(report).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who cancels a job of which kind. A kind that is new belongs into one of the lines.
    #[test]
    fn a_job_is_cancelled_by_whom_its_own_verb_lets_in() {
        let of_operators = [
            "vm-create",
            "vm-start",
            "vm-stop",
            "vm-restart",
            "vm-pause",
            "vm-resume",
            "vm-delete",
            "vm-migrate",
            "vm-migrate-stopped",
            "host-drain",
            "tpm-enable",
            "tpm-disable",
            "tpm-restore",
            "tpm-roll",
            "tpm-unlock",
            "secure-boot-enroll",
            "secure-boot-restore",
            "vm-change",
            "vm-clone",
            "template-create",
            "vm-recover",
            "vm-supersede",
        ];
        let of_keepers = [
            "guardian-grant",
            "guardian-rewrap",
            "guardian-revoke",
            "guardian-rotate",
            "guardian-settle",
        ];
        let expected = |name: &str| {
            let roles = [
                (Role::Operator, &of_operators[..]),
                (Role::Keeper, &of_keepers),
            ];
            roles
                .into_iter()
                .find(|(_, kinds)| kinds.contains(&name))
                .map(|(role, _)| role)
        };
        for kind in super::super::DESCRIPTIONS {
            let role = kind.role();
            assert_eq!(Some(role), expected(kind.name), "{}", kind.name);
            assert!(!Role::Viewer.allows(role), "a viewer cancels nothing");
            assert!(Role::Admin.allows(role));
            let keeper = role == Role::Keeper;
            assert_eq!(Role::Keeper.allows(role), keeper, "{}", kind.name);
            assert_eq!(Role::Operator.allows(role), !keeper, "{}", kind.name);
        }
        assert_eq!(
            super::super::DESCRIPTIONS.len(),
            of_operators.len() + of_keepers.len()
        );
    }
}
