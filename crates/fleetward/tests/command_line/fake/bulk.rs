//! Bulk requests to the fake: the events that the controller would send, one VM after the other.

use super::{BAD_JOB, ENDLESS_JOB, GOOD_JOB, ended, futures_of, running};
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use fleetward_api::bulk::{
    BulkEntry, BulkEvent, BulkRequest, BulkSummary, Selection, Submitted, Target, VmAction,
};
use fleetward_api::controller::{JobState, JobView, Outcome};
use fleetward_model::{ErrorCode, Failure, VmName};
use serde_json::Value;

/// What a VM's part comes to.
pub(crate) enum Part {
    /// Its job ends as the fake's job of that id ends.
    Job(&'static str),
    Already,
    Refused(ErrorCode, String, &'static str),
}

fn part(name: &VmName) -> Part {
    match name.as_str() {
        "web" => Part::Job(GOOD_JOB),
        "db" => Part::Job(BAD_JOB),
        "endless" => Part::Job(ENDLESS_JOB),
        "idle" => Part::Already,
        "busy" => Part::Refused(
            ErrorCode::VmBusy,
            "cannot start busy".to_owned(),
            "job 7 works on it",
        ),
        _ => Part::Refused(ErrorCode::VmNotFound, format!("there is no VM {name}"), ""),
    }
}

pub(super) async fn bulk(axum::Json(request): axum::Json<BulkRequest>) -> Response {
    let names = names(&request.vms);
    lines(&events(&request, &names, part))
}

/// The names that were sent, each once.
pub(crate) fn names(vms: &Selection) -> Vec<VmName> {
    let (Selection::Named(names) | Selection::Planned(names)) = vms else {
        return Vec::new();
    };
    let mut names = names.clone();
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

fn begun(names: &[VmName]) -> Vec<BulkEvent> {
    let targets = names.iter().cloned().map(Target::Vm).collect();
    let bulk = "00000000-0000-4000-8000-00000000b001".parse().unwrap();
    vec![BulkEvent::Begun { bulk }, BulkEvent::Selected { targets }]
}

/// The whole answer; a VM whose job never ends is the last that is told of.
pub(crate) fn events(
    request: &BulkRequest,
    names: &[VmName],
    part: impl Fn(&VmName) -> Part,
) -> Vec<BulkEvent> {
    let mut events = begun(names);
    let mut summary = BulkSummary::default();
    for name in names {
        let of_one = of_one(&request.action, request.how.wait, name, part(name));
        let end = of_one.iter().find_map(|event| match event {
            BulkEvent::Ended(entry) => Some(entry.outcome),
            _ => None,
        });
        events.extend(of_one);
        match end {
            Some(outcome) => summary.count(outcome),
            None => return events,
        }
    }
    events.push(BulkEvent::Summary(summary));
    events
}

fn of_one(action: &VmAction, wait: bool, name: &VmName, part: Part) -> Vec<BulkEvent> {
    let target = Target::Vm(name.clone());
    let ended_with = |entry| BulkEvent::Ended(Box::new(entry));
    let id = match part {
        Part::Already => {
            let entry = BulkEntry::new(target, Outcome::Skipped, action.already());
            return vec![ended_with(entry)];
        }
        Part::Refused(code, what, because) => {
            let failure = Failure::new(code, what).because(because);
            return vec![ended_with(BulkEntry::failed(target, &failure, None))];
        }
        Part::Job(id) => id,
    };
    let job = id.parse().unwrap();
    let mut events = vec![
        submitted(name, id),
        BulkEvent::Progress {
            target: target.clone(),
            view: Box::new(view(running(id, "prepare", 0))),
        },
    ];
    if !wait {
        events.truncate(1);
        events.push(ended_with(BulkEntry::submitted(target, job)));
    } else if id != ENDLESS_JOB {
        let view = view(ended(id));
        events.push(ended_with(match &view.failure {
            Some(failure) if view.state != JobState::Done => {
                BulkEntry::failed(target, failure, Some(job))
            }
            _ => BulkEntry::done(target, action.done(&view), &view),
        }));
    }
    events
}

pub(crate) fn submitted(name: &VmName, job: &str) -> BulkEvent {
    BulkEvent::Submitted(Submitted {
        target: Target::Vm(name.clone()),
        job: job.parse().unwrap(),
    })
}

fn view(job: Value) -> JobView {
    serde_json::from_value(job).unwrap()
}

/// The lines of an answer. One without a summary stays open.
pub(crate) fn lines(events: &[BulkEvent]) -> Response {
    let text = text(events);
    match events.last() {
        Some(BulkEvent::Summary(_)) => text.into_response(),
        _ => Body::from_stream(futures_of(Bytes::from(text))).into_response(),
    }
}

pub(crate) fn text(events: &[BulkEvent]) -> String {
    let lines = events
        .iter()
        .map(|event| serde_json::to_string(event).unwrap());
    lines.map(|line| line + "\n").collect()
}
