//! When a job that is followed counts as over, and what it says then. The rules are the same for one job that the command
//! line follows and for the many of a bulk request.
//!
//! ```text
//!   running ──► done                              success
//!      │  └───► held up, past the point of no return: goes forward when its host is back
//!      └──────► undoing ──► undone                failure
//!                 └───────► waiting: goes back when its host is back
//! ```

use crate::controller::{JobState, JobView};
use fleetward_model::error::Class;
use fleetward_model::{ErrorCode, Failure, JobId};

/// Attempts of a step after which its host is away, and not only restarting.
const ATTEMPTS: u32 = 3;

/// How far a job is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Ended,
    /// Or standing still until a host is back or somebody acts.
    HeldUp,
    /// Or waiting for what only the return of its host can bring. Of many jobs, such a one does not hold up the others.
    Stuck,
}

impl Until {
    pub fn is_reached(self, view: &JobView) -> bool {
        let stuck = (view.state == JobState::Undoing && view.waiting.is_some()) || is_held_up(view);
        view.state.has_ended()
            || match self {
                Self::Ended => false,
                Self::HeldUp => view.held_up,
                Self::Stuck => stuck || view.held_up,
            }
    }
}

/// What a job that was followed until [`Until::Stuck`] came to.
///
/// # Errors
/// What it failed with, or waits for; it goes on by itself then.
pub fn outcome(view: JobView) -> Result<JobView, Failure> {
    match view.state {
        JobState::Done => Ok(view),
        JobState::Undoing => {
            let because = format!(
                "{}; job {} undoes its steps as soon as it can",
                view.waiting
                    .as_deref()
                    .unwrap_or("its host does not answer"),
                view.id
            );
            Err(failure_of(view).because(because))
        }
        JobState::Running if is_held_up(&view) => Err(held_up(&view)),
        JobState::Pending | JobState::Running | JobState::Undone | JobState::Failed => {
            Err(failure_of(view))
        }
    }
}

/// Past the point of no return, and its step keeps failing.
fn is_held_up(view: &JobView) -> bool {
    let attempts = view
        .steps
        .iter()
        .find(|step| Some(&step.name) == view.current.as_ref())
        .map_or(0, |step| step.attempts);
    view.state == JobState::Running
        && !view.cancellable
        && view.waiting.is_some()
        && attempts >= ATTEMPTS
}

/// What is said of a job that stands still and goes on by itself later.
pub fn held_up(view: &JobView) -> Failure {
    let (id, code) = (
        view.id,
        view.waiting_code.unwrap_or(ErrorCode::HostUnreachable),
    );
    let waiting = view.waiting.as_deref().unwrap_or_default();
    let what = format!("{} of {} is begun and not done", view.kind, view.target);
    let failure = Failure::new(code, what);
    if view.held_up && code.class() != Class::Unreachable {
        return failure
            .because(format!("{waiting}; it does not pass by itself"))
            .fix(format!(
                "remove the cause, and it goes on within a minute: fleetward job show {id}; or give it up: fleetward job give-up {id}"
            ));
    }
    let until = match code {
        ErrorCode::HostUnreachable => "when the host is back",
        _ => "until it succeeds",
    };
    failure
        .because(format!(
            "{waiting}; the job continues {until}: fleetward job watch {id}"
        ))
        .fix(goes_on(id))
}

/// Said of a job that nobody follows any longer.
pub fn goes_on(job: JobId) -> String {
    format!("the job continues; follow it with: fleetward job watch {job}")
}

/// What a job that did not end well has to say.
pub fn failure_of(job: JobView) -> Failure {
    job.failure.unwrap_or_else(|| {
        let what = format!(
            "job {} of {} ended as {}",
            job.id,
            job.target,
            job.state.into_str()
        );
        Failure::new(ErrorCode::Internal, what).because("it does not say why")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(state: &str, more: Value) -> JobView {
        let mut job = json!({
            "id": uuid::Uuid::nil(), "kind": "tpm-disable", "target": "db", "state": state, "created_by": "local:0",
            "created": "2026-11-23T08:00:00Z", "ended": null, "current": "set-aside-tpm", "cancellable": false,
            "steps": [{ "name": "set-aside-tpm", "state": "running", "attempts": 3, "started": null, "ended": null }],
        });
        for (key, value) in more.as_object().expect("an object") {
            job[key] = value.clone();
        }
        serde_json::from_value(job).expect("a job")
    }

    #[test]
    fn a_job_that_only_the_return_of_its_host_ends_holds_up_no_others() {
        let away =
            json!({ "waiting": "host b does not answer", "waiting_code": "HOST_UNREACHABLE" });
        let cancellable = json!({ "waiting": "host b does not answer", "cancellable": true });
        let held_up = json!({ "waiting": "no space", "waiting_code": "NO_SPACE", "held_up": true });
        // ended, held up, stuck
        let table = [
            ("pending", json!({}), [false, false, false]),
            ("running", json!({}), [false, false, false]),
            ("running", cancellable, [false, false, false]),
            ("running", away.clone(), [false, false, true]),
            ("running", held_up, [false, true, true]),
            ("undoing", json!({}), [false, false, false]),
            ("undoing", away, [false, false, true]),
            ("done", json!({}), [true, true, true]),
            ("undone", json!({}), [true, true, true]),
            ("failed", json!({}), [true, true, true]),
        ];
        for (state, more, expected) in table {
            let view = job(state, more);
            let reached =
                [Until::Ended, Until::HeldUp, Until::Stuck].map(|until| until.is_reached(&view));
            assert_eq!(reached, expected, "{view:?}");
        }
    }

    #[test]
    fn a_job_that_stands_still_says_whether_it_goes_on_or_back() {
        let away =
            json!({ "waiting": "host b does not answer", "waiting_code": "HOST_UNREACHABLE" });
        let forward = outcome(job("running", away.clone())).expect_err("not done");
        assert_eq!(forward.code, ErrorCode::HostUnreachable);
        assert!(
            forward
                .because
                .contains("the job continues when the host is back"),
            "{forward}"
        );
        let back = outcome(job("undoing", away)).expect_err("not done");
        assert!(
            back.because.contains("undoes its steps as soon as it can"),
            "{back}"
        );
        assert!(outcome(job("done", json!({}))).is_ok());
    }
}
