//! Bulk requests: what the command does when the answer is cut off, when it is interrupted, and when it is refused.

use crate::fake::bulk::{Part, events, names, submitted, text};
use crate::fake::{BAD_JOB, ENDLESS_JOB, Fake, GOOD_JOB, interrupt, run, spawn};
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use fleetward_api::bulk::{
    BulkEntry, BulkEvent, BulkRequest, BulkSummary, NotBegun, Selection, Target,
};
use fleetward_model::{ErrorCode, VmName};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

/// A controller that restarts in the middle: the job of `web` has ended, that of `db` runs, of `idle` nothing is known.
#[test]
fn an_answer_that_is_cut_off_is_taken_up_again_without_asking_twice() {
    let asked: Arc<Mutex<Vec<BulkRequest>>> = Arc::default();
    let told = asked.clone();
    let answer = async move |Json(request): Json<BulkRequest>| {
        let all = names(&request.vms);
        let mut asked = told.lock().unwrap();
        asked.push(request.clone());
        let part = |name: &VmName| match name.as_str() {
            "web" => Part::Job(GOOD_JOB),
            "db" => Part::Job(BAD_JOB),
            _ => Part::Already,
        };
        let mut said = events(&request, &all, part);
        if asked.len() == 1 {
            let ended = |event: &BulkEvent| matches!(event, BulkEvent::Ended(_));
            let at = said.iter().position(ended).unwrap();
            said.truncate(at + 1);
            said.push(submitted(&name("db"), BAD_JOB));
        }
        text(&said)
    };
    let fake = Fake::with(Router::new().route("/v1/bulk", post(answer)));
    let start = ["vm", "start", "web", "db", "idle", "-o", "json"];
    let (code, stdout, stderr) = run(fake.fleetward(&start));
    assert_eq!(code, 3, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("one document");
    let outcomes = report["results"].as_array().unwrap().iter();
    let outcomes: Vec<_> = outcomes
        .map(|entry| entry["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["succeeded", "failed", "skipped"]);
    let asked = asked.lock().unwrap();
    let again = &asked[1];
    assert_eq!(again.vms, Selection::Named(vec![name("db"), name("idle")]));
    let jobs: Vec<_> = again
        .how
        .jobs
        .iter()
        .map(|s| (s.target.as_str(), s.job.to_string()))
        .collect();
    assert_eq!(jobs, [("db", BAD_JOB.to_owned())]);
}

#[test]
fn an_answer_that_lacks_only_its_summary_is_complete() {
    let answer = async |Json(request): Json<BulkRequest>| {
        let all = names(&request.vms);
        let mut said = events(&request, &all, |_| Part::Already);
        said.pop();
        text(&said)
    };
    let fake = Fake::with(Router::new().route("/v1/bulk", post(answer)));
    let (code, stdout, stderr) = run(fake.fleetward(&["vm", "start", "web", "db"]));
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.ends_with("0 succeeded, 0 failed, 2 skipped\n"),
        "{stdout}"
    );
}

#[test]
fn ctrl_c_stops_the_controller_and_tells_what_goes_on_and_what_was_not_begun() {
    let stopped = Arc::new(Notify::new());
    let told = stopped.clone();
    let answer = async move |Json(request): Json<BulkRequest>| {
        let all = names(&request.vms);
        // up to the first VM, whose job never ends
        let first = text(&events(&request, &all, |_| Part::Job(ENDLESS_JOB)));
        let [endless, web] = [&all[0], &all[1]].map(|name| Target::Vm(name.clone()));
        let last = text(&[
            BulkEvent::Ended(Box::new(BulkEntry::left(
                endless,
                ENDLESS_JOB.parse().unwrap(),
            ))),
            BulkEvent::Ended(Box::new(BulkEntry::not_begun(web, NotBegun::Interrupted))),
            BulkEvent::Summary(BulkSummary::default()),
        ]);
        let last = async move {
            told.notified().await;
            Ok::<_, Infallible>(last)
        };
        let first = stream::iter([Ok(first)]);
        Body::from_stream(first.chain(stream::once(last)))
    };
    let stop = async move || {
        stopped.notify_one();
        StatusCode::NO_CONTENT
    };
    let router = Router::new()
        .route("/v1/bulk", post(answer))
        .route("/v1/bulk/{bulk}/stop", post(stop));
    let fake = Fake::with(router);
    let mut child = spawn(&fake, &["vm", "start", "endless", "web"]);
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    // the first line of progress: it waits
    let first = stderr.next().unwrap().unwrap();
    assert_eq!(first, "endless: step 1/2 prepare");
    interrupt(&child);
    let last = stderr.map(Result::unwrap).last();
    let goes_on = format!("the job continues; follow it with: fleetward job watch {ENDLESS_JOB}");
    assert_eq!(last.as_ref(), Some(&goes_on));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = stdout.lines().collect();
    let expected = [
        format!("endless: {goes_on}"),
        "web: not begun: interrupted".to_owned(),
        "0 succeeded, 0 failed, 2 skipped".to_owned(),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_request_that_is_refused_as_a_whole_is_one_error_with_its_own_exit_code() {
    let refused = async || {
        let failure = json!({ "code": "ROLE_MISSING", "what": "eve has role viewer, that needs role operator" });
        (StatusCode::FORBIDDEN, Json(failure)).into_response()
    };
    let fake = Fake::with(Router::new().route("/v1/bulk", post(refused)));
    let (code, stdout, stderr) = run(fake.fleetward(&["vm", "stop", "web", "db"]));
    let expected = ErrorCode::RoleMissing.class().exit_code();
    assert_eq!((code, stdout.as_str()), (expected.into(), ""));
    assert!(stderr.starts_with("error[ROLE_MISSING]"), "{stderr}");
}
