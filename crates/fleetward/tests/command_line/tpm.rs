//! TPMs in bulk: VMs by name and by what they have in common, a host that is away, what is asked and what is said.

use crate::fake::bulk::{self, Part, lines};
use crate::fake::{Fake, GOOD_JOB, run, vm};
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use fleetward_api::bulk::{
    BulkEvent, BulkRequest, BulkSummary, Plan, Selection, Target, VmAction, Would,
};
use fleetward_model::{ErrorCode, Failure, VmName};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

const HELD_UP: &str = "00000000-0000-4000-8000-000000000012";

/// `bare` has no TPM; `web`'s host answers, `db`'s does not; `held` is worked on by a job of kind `tpm-disable`. What was
/// asked for is kept, as `VERB NAME`.
fn fleet() -> (Fake, Arc<Mutex<Vec<String>>>) {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (told, told_in_bulk) = (asked.clone(), asked.clone());
    let change = move |Path((name, verb)): Path<(String, String)>| {
        told.lock().unwrap().push(format!("{verb} {name}"));
        async move {
            let job = if name == "db" { HELD_UP } else { GOOD_JOB };
            (StatusCode::ACCEPTED, Json(json!({ "job": job }))).into_response()
        }
    };
    let show = async |Path(name): Path<String>| {
        let found = vms().into_iter().find(|vm| vm["name"] == name.as_str());
        Json(found.unwrap())
    };
    let list = async |Query(query): Query<HashMap<String, String>>| {
        let on = |vm: &Value| {
            query
                .get("host")
                .is_none_or(|host| vm["host"] == host.as_str())
        };
        Json(vms().into_iter().filter(on).collect::<Vec<_>>())
    };
    let router = Router::new()
        .route("/v1/vms", get(list))
        .route("/v1/vms/{vm}", get(show))
        .route(
            "/v1/bulk",
            post(async move |Json(request): Json<BulkRequest>| {
                lines(&answer(&request, &told_in_bulk))
            }),
        )
        .route("/v1/vms/{vm}/tpm/{verb}", post(change))
        .route("/v1/jobs/{job}/events", get(events));
    (Fake::with(router), asked)
}

fn vms() -> Vec<Value> {
    let of = |name: &str, host: &str, tpm: bool, job: Option<&str>| {
        let mut vm = vm(name, host);
        vm["state"] = json!("stopped");
        vm["tpm"]["enabled"] = json!(tpm);
        vm["job"] = json!(job);
        vm
    };
    vec![
        of("bare", "a", false, None),
        of("db", "b", true, None),
        of("held", "a", true, Some(HELD_UP)),
        of("web", "a", true, None),
    ]
}

/// What the controller says of each, and does: the rules are its own, and tested with it.
fn answer(request: &BulkRequest, asked: &Mutex<Vec<String>>) -> Vec<BulkEvent> {
    let change = word(&request.action);
    let meant: Vec<Value> = match &request.vms {
        Selection::Named(names) | Selection::Planned(names) => {
            let named = |vm: &Value| names.iter().any(|name| vm["name"] == name.as_str());
            vms().into_iter().filter(named).collect()
        }
        Selection::All => vms(),
        Selection::Matching(wanted) => {
            let host = wanted.host.as_ref().unwrap().as_str();
            vms().into_iter().filter(|vm| vm["host"] == host).collect()
        }
    };
    if request.dry_run {
        let plans = meant.iter().map(|vm| planned(change, request, vm));
        let summary = BulkEvent::Summary(BulkSummary::default());
        return plans.map(BulkEvent::Planned).chain([summary]).collect();
    }
    let names: Vec<VmName> = meant
        .iter()
        .map(|vm| text(vm, "name").parse().unwrap())
        .collect();
    bulk::events(request, &names, |name| match name.as_str() {
        "bare" if change == "roll" => Part::Already,
        name => {
            asked.lock().unwrap().push(format!("{change} {name}"));
            match name {
                "db" => Part::Refused(
                    ErrorCode::HostUnreachable,
                    "tpm-disable of db is begun and not done".to_owned(),
                    "host b does not answer; the job continues when the host is back",
                ),
                _ => Part::Job(GOOD_JOB),
            }
        }
    })
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

fn word(action: &VmAction) -> &'static str {
    match action {
        VmAction::TpmEnable(_) => "enable",
        VmAction::TpmDisable(_) => "disable",
        VmAction::TpmRestore(_) => "restore",
        VmAction::TpmRoll(_) => "roll",
        VmAction::TpmUnlock(_) => "unlock",
        other => panic!("{other:?}"),
    }
}

fn planned(change: &str, request: &BulkRequest, vm: &Value) -> Plan {
    let (would, failure, message) = match text(vm, "name") {
        "bare" if change != "restore" => (Would::Nothing, None, "nothing to do: has no TPM"),
        "db" => {
            let what = "host b of VM db does not answer";
            (
                Would::Fail,
                Some(Failure::new(ErrorCode::HostUnreachable, what)),
                what,
            )
        }
        "held" if change == "roll" => {
            let what = "a job works on VM held";
            (
                Would::Fail,
                Some(Failure::new(ErrorCode::VmBusy, what)),
                what,
            )
        }
        "held" => (Would::Nothing, None, "a job is already doing that"),
        _ => (
            Would::Change,
            None,
            "would lose its TPM on host a; the TPM is kept",
        ),
    };
    let has_tpm = vm["tpm"]["enabled"] == true;
    Plan {
        target: Target::Vm(text(vm, "name").parse().unwrap()),
        would,
        message: message.to_owned(),
        failure,
        expires: None,
        question: request.action.question().filter(|_| has_tpm),
    }
}

fn view(job: &str, state: &str) -> Value {
    let held_up = job == HELD_UP && state == "running";
    let step = |name: &str, attempts: u32| json!({ "name": name, "state": "running", "attempts": attempts, "started": null, "ended": null });
    json!({
        "id": job, "kind": "tpm-disable", "target": "db", "state": state, "created_by": "local:0",
        "created": "2026-11-23T08:00:00Z", "ended": null, "current": "set-aside-tpm",
        "waiting": held_up.then_some("host b does not answer"), "waiting_code": held_up.then_some("HOST_UNREACHABLE"),
        "held_up": held_up, "cancellable": false, "failure": null, "result": null, "progress": null,
        "steps": [step("detach-tpm", 1), step("set-aside-tpm", 3)],
    })
}

/// A good job ends. The other is past the point of no return, waits, and its stream stays open.
async fn events(Path(job): Path<String>) -> axum::response::Response {
    use futures_util::StreamExt;
    let first = [view(&job, "running").to_string(), "\n".to_owned()].concat();
    if job == GOOD_JOB {
        return format!("{first}{}\n", view(&job, "done")).into_response();
    }
    let line = async move { Ok::<_, std::convert::Infallible>(first) };
    let open = futures_util::stream::once(line).chain(futures_util::stream::pending());
    axum::body::Body::from_stream(open).into_response()
}

#[test]
fn of_several_the_one_whose_host_died_is_told_with_what_becomes_of_it() {
    let (fake, asked) = fleet();
    let bulk = ["tpm", "disable", "--yes", "-o", "json", "db", "web"];
    let (code, stdout, _) = run(fake.fleetward(&bulk));
    assert_eq!(code, 3, "{stdout}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let [db, web] = [&report["results"][0], &report["results"][1]];
    assert_eq!(
        (&db["outcome"], &db["code"]),
        (&json!("failed"), &json!("HOST_UNREACHABLE"))
    );
    let message = text(db, "message");
    assert!(
        message.contains("the job continues when the host is back"),
        "{message}"
    );
    assert_eq!(web["outcome"], "succeeded");
    assert_eq!(*asked.lock().unwrap(), ["disable db", "disable web"]);
}

#[test]
fn a_single_vm_whose_host_died_past_the_point_of_no_return_is_not_waited_for() {
    let (fake, _) = fleet();
    let (code, _, stderr) = run(fake.fleetward(&["tpm", "disable", "--yes", "db"]));
    assert_eq!(code, 6, "{stderr}");
    let words = format!("the job continues when the host is back: fleetward job watch {HELD_UP}");
    assert!(stderr.contains(&words), "{stderr}");
}

#[test]
fn a_roll_of_all_skips_vms_without_a_tpm_and_ends_well() {
    let (fake, asked) = fleet();
    let (code, stdout, stderr) = run(fake.fleetward(&["tpm", "roll", "--host", "a"]));
    assert!(stdout.contains("bare: has no TPM"), "{stdout}");
    assert!(!asked.lock().unwrap().contains(&"roll bare".to_owned()));
    assert_eq!(code, 0, "{stdout}{stderr}");
}

#[test]
fn a_selector_that_fits_one_vm_is_a_bulk_all_the_same() {
    let answer = async |Json(request): Json<BulkRequest>| {
        let web = vms().remove(3);
        lines(&match request.dry_run {
            true => vec![
                BulkEvent::Planned(planned("disable", &request, &web)),
                BulkEvent::Summary(BulkSummary::default()),
            ],
            false => {
                let names = ["web".parse().unwrap()];
                bulk::events(&request, &names, |_| {
                    let what = "job 7 works on VM web";
                    Part::Refused(ErrorCode::VmBusy, what.to_owned(), "")
                })
            }
        })
    };
    let one = Fake::with(Router::new().route("/v1/bulk", post(answer)));
    let (code, stdout, _) = run(one.fleetward(&["tpm", "disable", "--all", "--yes"]));
    assert_eq!(code, 3, "{stdout}");
    assert_eq!(
        stdout,
        "web: VM_BUSY: job 7 works on VM web\n0 succeeded, 1 failed, 0 skipped\n"
    );
    let (code, _, stderr) = run(one.fleetward(&["tpm", "roll", "--all", "--no-wait"]));
    assert_eq!(code, 3, "{stderr}");
}

#[test]
fn a_dry_run_prints_what_the_controller_says_and_asks_for_nothing() {
    let (fake, asked) = fleet();
    let (code, stdout, _) = run(fake.fleetward(&["tpm", "disable", "--all", "--dry-run"]));
    assert_eq!(code, 0);
    for line in [
        "bare: nothing to do: has no TPM",
        "db: HOST_UNREACHABLE: host b of VM db does not answer",
        "held: a job is already doing that",
        "web: would lose its TPM on host a; the TPM is kept",
        "nothing was changed: 1 would be changed, 1 would fail, 2 need nothing",
    ] {
        assert!(stdout.lines().any(|l| l == line), "{line}: {stdout}");
    }
    let (_, stdout, _) = run(fake.fleetward(&["tpm", "roll", "--all", "--dry-run", "-o", "json"]));
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let held = &report["results"][2];
    assert_eq!(
        (&held["code"], &held["would"]),
        (&json!("VM_BUSY"), &json!("fail"))
    );
    assert_eq!(
        report["summary"]["skipped"], 4,
        "nothing was done: {report}"
    );
    assert!(
        asked.lock().unwrap().is_empty(),
        "a dry run asked for something"
    );
}

#[test]
fn a_retention_beyond_reason_is_refused_before_a_controller_starts() {
    let nowhere = tempfile::tempdir().unwrap();
    let data = nowhere.path().join("data");
    for (option, value) in [("--tpm-days", "9999999"), ("--tpm-versions", "0")] {
        let run_it = [
            "controller",
            "run",
            "--data",
            data.to_str().unwrap(),
            option,
            value,
        ];
        let (code, _, stderr) = run(crate::fake::fleetward(&run_it));
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(option), "{stderr}");
        assert!(!data.exists());
    }
}

#[test]
fn what_is_lost_is_said_also_where_yes_has_answered() {
    let (fake, asked) = fleet();
    let (code, _, stderr) = run(fake.fleetward(&["tpm", "disable", "web"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("BitLocker"), "{stderr}");
    assert!(asked.lock().unwrap().is_empty());
    let (code, _, stderr) = run(fake.fleetward(&["tpm", "disable", "web", "--yes"]));
    assert_eq!(code, 0);
    assert!(
        stderr.contains("BitLocker asks for its recovery key"),
        "{stderr}"
    );
}

#[test]
fn a_restore_in_place_of_a_tpm_that_is_there_asks_first() {
    let (fake, asked) = fleet();
    let restore = ["tpm", "restore", "web", "--version", "3"];
    let (code, _, stderr) = run(fake.fleetward(&restore));
    assert_eq!(code, 2, "{stderr}");
    assert!(
        stderr.contains("error[CONFIRMATION_NEEDED]") && stderr.contains("has a TPM now"),
        "{stderr}"
    );
    assert!(asked.lock().unwrap().is_empty());
    let (code, _, stderr) = run(fake.fleetward(&[&restore[..], &["--yes"]].concat()));
    assert_eq!(code, 0, "{stderr}");
    // where there is none, nothing is lost and nothing is asked
    let bare = run(fake.fleetward(&["tpm", "restore", "bare", "--version", "3"]));
    assert_eq!(bare.0, 0, "{}", bare.2);
}
