//! TPMs in bulk: VMs by name and by what they have in common, a host that is away, what is asked and what is said.

use crate::fake::{Fake, vm};
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

const GOOD: &str = "00000000-0000-4000-8000-000000000011";
const HELD_UP: &str = "00000000-0000-4000-8000-000000000012";

/// `bare` has no TPM; `web`'s host answers, `db`'s does not; `held` is worked on by a job of kind `tpm-disable`. What was
/// asked for is kept, as `VERB NAME`.
fn fleet() -> (Fake, Arc<Mutex<Vec<String>>>) {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = asked.clone();
    let change = move |Path((name, verb)): Path<(String, String)>| {
        told.lock().unwrap().push(format!("{verb} {name}"));
        async move {
            let job = if name == "db" { HELD_UP } else { GOOD };
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
        .route("/v1/tpm-plans", post(plan))
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

/// What the controller says of each: the rules are its own, and tested with it.
async fn plan(Json(request): Json<Value>) -> Json<Value> {
    let named = request["names"].as_array().unwrap();
    let change = request["change"].as_str().unwrap().to_owned();
    let meant = |vm: &Value| match named.is_empty() {
        true => request["host"].is_null() || vm["host"] == request["host"],
        false => named.contains(&vm["name"]),
    };
    let vms: Vec<Value> = vms().into_iter().filter(meant).collect();
    let plans: Vec<Value> = vms
        .iter()
        .map(|vm| planned(&change, vm, named.is_empty()))
        .collect();
    let with_tpm = vms.iter().filter(|vm| vm["tpm"]["enabled"] == true);
    let lose: Vec<_> = with_tpm.map(|vm| vm["name"].clone()).collect();
    let about = match change.as_str() {
        "disable" => Some("tpm_is_lost"),
        "restore" if !request["version"].is_null() => Some("tpm_is_replaced"),
        _ => None,
    };
    let question = about
        .filter(|_| !lose.is_empty())
        .map(|about| json!({ "about": about, "vms": lose }));
    Json(json!({ "vms": plans, "question": question }))
}

fn planned(change: &str, vm: &Value, chosen: bool) -> Value {
    let name = vm["name"].as_str().unwrap();
    let (would, code, message) = match name {
        "bare" => ("nothing", None, "nothing to do: has no TPM".to_owned()),
        "db" => (
            "fail",
            Some("HOST_UNREACHABLE"),
            "host b of VM db does not answer".to_owned(),
        ),
        "held" if change == "roll" => (
            "fail",
            Some("VM_BUSY"),
            format!("job {HELD_UP} works on VM held"),
        ),
        "held" => ("nothing", None, "a job is already doing that".to_owned()),
        _ => (
            "change",
            None,
            "would lose its TPM on host a; the TPM is kept".to_owned(),
        ),
    };
    let spared = chosen && change == "roll" && name == "bare";
    json!({ "vm": name, "would": would, "code": code, "message": message, "spared": spared })
}

fn view(job: &str, state: &str) -> Value {
    let held_up = job == HELD_UP && state == "running";
    let step = |name: &str, attempts: u32| json!({ "name": name, "state": "running", "attempts": attempts, "started": null, "ended": null });
    json!({
        "id": job, "kind": "tpm-disable", "target": "db", "state": state, "created_by": "local:0",
        "created": "2026-11-23T08:00:00Z", "ended": null, "current": "set-aside-tpm",
        "waiting": held_up.then_some("host b does not answer"), "waiting_code": held_up.then_some("HOST_UNREACHABLE"),
        "cancellable": false, "failure": null, "result": null, "progress": null,
        "steps": [step("detach-tpm", 1), step("set-aside-tpm", 3)],
    })
}

/// A good job ends. The other is past the point of no return, waits, and its stream stays open.
async fn events(Path(job): Path<String>) -> axum::response::Response {
    use futures_util::StreamExt;
    let first = [view(&job, "running").to_string(), "\n".to_owned()].concat();
    if job == GOOD {
        return format!("{first}{}\n", view(&job, "done")).into_response();
    }
    let line = async move { Ok::<_, std::convert::Infallible>(first) };
    let open = futures_util::stream::once(line).chain(futures_util::stream::pending());
    axum::body::Body::from_stream(open).into_response()
}

fn run(mut command: assert_cmd::Command) -> (i32, String, String) {
    let output = command
        .timeout(std::time::Duration::from_secs(30))
        .output()
        .unwrap();
    (
        output.status.code().expect("it ended by itself"),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_host_that_died_past_the_point_of_no_return_holds_up_nobody() {
    let (fake, asked) = fleet();
    // One at a time: without giving up on db, web would never have its turn.
    let bulk = [
        "tpm",
        "disable",
        "--yes",
        "--parallel",
        "1",
        "-o",
        "json",
        "db",
        "web",
    ];
    let (code, stdout, _) = run(fake.fleetward(&bulk));
    assert_eq!(code, 3, "{stdout}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let [db, web] = [&report["results"][0], &report["results"][1]];
    assert_eq!(
        (&db["outcome"], &db["code"]),
        (&json!("failed"), &json!("HOST_UNREACHABLE"))
    );
    assert_eq!(db["job"], HELD_UP);
    let message = db["message"].as_str().unwrap();
    let true_words =
        format!("the job continues when the host is back: fleetward job watch {HELD_UP}");
    assert!(message.contains(&true_words), "{message}");
    assert_eq!(web["outcome"], "succeeded");
    assert_eq!(*asked.lock().unwrap(), ["disable db", "disable web"]);
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
    let router = Router::new()
        .route(
            "/v1/tpm-plans",
            post(async || Json(json!({ "vms": [planned("disable", &vms().remove(3), true)], "question": null }))),
        )
        .route(
            "/v1/vms/{vm}/tpm/{verb}",
            post(async || {
                let failure = json!({ "code": "VM_BUSY", "what": "job 7 works on VM web", "because": "", "fix": "wait" });
                (StatusCode::CONFLICT, Json(failure))
            }),
        );
    let one = Fake::with(router);
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
