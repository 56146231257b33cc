//! What a job does next: a pure function of its record.

use crate::kind::AnyKind;
use crate::record::{Job, JobState, StepState};

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
            let open = job.steps.iter().position(|step| match step.state {
                StepState::Done => false,
                // a job that turned round again has its crossing step left as Undoing
                StepState::Pending
                | StepState::Running
                | StepState::Failed
                | StepState::Undoing
                | StepState::Undone => true,
            });
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
                .rposition(|(step, info)| match step.state {
                    StepState::Pending | StepState::Undone => false,
                    StepState::Running
                    | StepState::Done
                    | StepState::Failed
                    | StepState::Undoing => info.undoable,
                });
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
