//! The points of a job that are walked: a selection by name, so that `make test` is short and `make soak` covers all.
//!
//! ```text
//!   job.<kind>.<step>.{before,after,recorded}         the controller, on the way forward
//!   job.<kind>.<step>.undo.{before,after,recorded}    the controller, on the way back
//!   agent.<operation>.{begin,end}                     an agent
//! ```
//! Points of other kinds of jobs are background work and never this scenario's, but for [`asked_for_by`] its own.

use crate::scenario::Way;
use anyhow::{Result, ensure};

/// The agents' own points that `make test` walks too: between the halves of what must never be halved.
const ALWAYS: &[&str] = &[
    "agent.commit-tpm.replaced",
    // the domain has its new name, the specification the old one
    "agent.change-vm.renamed",
    // a linked clone: overlays made; the source writes to them; the definition says so, and nothing is frozen yet
    "agent.copy-vm.overlaid",
    "agent.copy-vm.switched",
    "agent.copy-vm.written",
];

/// Kinds of jobs that a job of this kind asks for and waits for: their points are walked with it.
pub(crate) fn asked_for_by(kind: &str) -> &'static [&'static str] {
    match kind {
        "guardian-grant" => &["guardian-rewrap"],
        _ => &[],
    }
}

/// Operations on agents that follow a job of this kind, when a lost host is back: they are of another kind of job, and an
/// agent's points do not say of which.
fn of_another_kind(kind: &str, point: &str) -> bool {
    let others: &[&str] = match kind {
        // of vm-supersede
        "vm-recover" => &["agent.supersede.", "agent.clean-up-departed."],
        _ => &[],
    };
    others.iter().any(|other| point.starts_with(other))
}

/// How much is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// `make test`: before and after every step of the controller. Before a step nothing is under way on an agent, so
    /// there only the controller is killed.
    Test,
    /// `make soak` (`FLEETWARD_E2E_SOAK=1`): also between a step's end and its record, and at the agents' own points, and
    /// every process everywhere.
    Soak,
}

impl Depth {
    pub(crate) fn of_environment() -> Self {
        if std::env::var_os("FLEETWARD_E2E_SOAK").is_some() {
            Self::Soak
        } else {
            Self::Test
        }
    }

    /// Whether a scenario of the kind `kind` that goes `way` visits `point`.
    pub(crate) fn visits(self, point: &str, kind: &str, way: Way) -> bool {
        if point.starts_with("agent.") {
            return !of_another_kind(kind, point)
                && (self == Self::Soak || ALWAYS.contains(&point));
        }
        let of = |kind: &str| {
            let rest = point.strip_prefix("job.")?.strip_prefix(kind)?;
            rest.strip_prefix('.')
        };
        let others = || asked_for_by(kind).iter().find_map(|kind| of(kind));
        let step_and_place = of(kind).or_else(others);
        let Some((_step, place)) = step_and_place.and_then(|p| p.split_once('.')) else {
            return false;
        };
        let place = match (way, place.strip_prefix("undo.")) {
            (Way::Forward, None) => place,
            (Way::Back, Some(place)) => place,
            (Way::Forward, Some(_)) | (Way::Back, None) => return false,
        };
        match place {
            "before" | "after" => true,
            _ => self == Self::Soak,
        }
    }

    /// Whether `victim` is killed at `point`: at an agent's own points no controller, and see [`Depth::Test`].
    pub(crate) fn kills(self, victim: &str, point: &str) -> bool {
        match victim {
            "controller" => !point.starts_with("agent."),
            _ => self == Self::Soak || !point.ends_with(".before"),
        }
    }
}

/// The claim of this file.
pub(crate) fn test_and_soak_visit_what_they_should() -> Result<()> {
    let (forward, back) = (Way::Forward, Way::Back);
    let table = [
        // point, way, in test, in soak
        ("job.vm-start.start.before", forward, true, true),
        ("job.vm-start.start.after", forward, true, true),
        ("job.vm-start.start.recorded", forward, false, true),
        ("job.vm-start.start.undo.before", forward, false, false),
        ("job.vm-start.start.before", back, false, false),
        ("job.vm-start.start.undo.before", back, true, true),
        ("job.vm-start.start.undo.after", back, true, true),
        ("job.vm-start.start.undo.recorded", back, false, true),
        ("agent.start.begin", forward, false, true),
        ("agent.stop.end", back, false, true),
        ("agent.copy-vm.switched", forward, true, true),
        ("job.vm-start-all.start.before", forward, false, false),
        ("job.vm-stop.stop.before", forward, false, false),
        ("controller.tick", forward, false, false),
    ];
    for (point, way, in_test, in_soak) in table {
        let found = [Depth::Test, Depth::Soak].map(|d| d.visits(point, "vm-start", way));
        ensure!(
            found == [in_test, in_soak],
            "{point} {way:?}: test and soak visit it: {found:?}"
        );
    }
    let visits = |point, kind| Depth::Test.visits(point, kind, forward);
    ensure!(visits("job.guardian-rewrap.rewrap.after", "guardian-grant"));
    ensure!(!visits(
        "job.guardian-rewrap.rewrap.after",
        "guardian-rotate"
    ));
    ensure!(visits("agent.commit-tpm.replaced", "tpm-roll"));
    let soak = |kind| Depth::Soak.visits("agent.supersede.begin", kind, forward);
    ensure!(soak("vm-supersede") && !soak("vm-recover"));
    let table = [
        // victim, point, in test, in soak
        ("controller", "job.vm-start.start.before", true, true),
        ("controller", "job.vm-start.start.after", true, true),
        ("controller", "agent.start.begin", false, false),
        ("a/agent", "agent.start.begin", true, true),
        ("a/agent", "job.vm-start.start.after", true, true),
        ("a/agent", "job.vm-start.start.before", false, true),
        ("a/agent", "job.vm-start.start.undo.before", false, true),
    ];
    for (victim, point, in_test, in_soak) in table {
        let found = [Depth::Test, Depth::Soak].map(|d| d.kills(victim, point));
        ensure!(
            found == [in_test, in_soak],
            "{victim} at {point}: test and soak kill it: {found:?}"
        );
    }
    Ok(())
}
