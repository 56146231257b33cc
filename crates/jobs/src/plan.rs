//! What a job does next: a pure function of its record.

use crate::kind::AnyKind;
use crate::record::{Job, StepRecord, StepState};
use fleetward_model::job::JobState;

/// The next thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Run this step, for the first time or again.
    Run(usize),
    /// A cancel was asked for and can still be granted.
    TurnBack,
    /// Take this step back.
    Undo(usize),
    /// Record the end.
    Finish(JobState),
}

/// Decides from the record and whether a cancel has been asked for.
pub(crate) fn next(job: &Job, kind: &AnyKind, cancelled: bool) -> Next {
    match job.state {
        JobState::Pending | JobState::Running => {
            let half_way = |step: &StepRecord| {
                step.state == StepState::Owed && step.debtor.as_ref().is_some_and(|d| d.half_way)
            };
            if job.steps.iter().any(half_way) {
                return Next::Finish(JobState::Failed);
            }
            let open = job.steps.iter().position(|step| !step.state.is_behind());
            match open {
                None => Next::Finish(JobState::Done),
                Some(_) if cancelled && !job.past_return => Next::TurnBack,
                Some(step) => Next::Run(step),
            }
        }
        JobState::Undoing => {
            let infos = kind.step_infos();
            let left = job
                .steps
                .iter()
                .zip(&infos)
                .rposition(|(step, info)| step.state.is_to_undo() && info.undoable);
            left.map_or(Next::Finish(JobState::Undone), Next::Undo)
        }
        ended @ (JobState::Done | JobState::Undone | JobState::Failed) => Next::Finish(ended),
    }
}

/// Whether this program's steps are those the job was submitted with.
pub(crate) fn fits(job: &Job, kind: &AnyKind) -> bool {
    let known = kind.steps.iter().map(|step| step.info().name);
    job.steps.iter().map(|step| step.name.as_str()).eq(known)
}
