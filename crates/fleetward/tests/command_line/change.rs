//! `vm set` and `vm rename`: what is asked of the controller, and what is said of the answer.

use crate::fake::{Fake, fleetward, vm};
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const JOB: &str = "00000000-0000-4000-8000-000000000001";

/// `web` takes what is asked; `idle` is as wanted. What was asked is kept.
fn fleet() -> (Fake, Arc<Mutex<Vec<Value>>>) {
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let told = asked.clone();
    let change = move |Path(name): Path<String>, Json(body): Json<Value>| {
        let dry = body["dry_run"] == true;
        told.lock().unwrap().push(body);
        async move {
            let steps = json!([
                {"change": "cpus", "from": 2, "to": 4, "effect": "next_start"},
                {"change": "label", "key": "tier", "from": "front", "to": null, "effect": "now"},
            ]);
            match name.as_str() {
                "web" if dry => (StatusCode::OK, Json(json!({"job": null, "steps": steps}))),
                "web" => (StatusCode::ACCEPTED, Json(json!({"job": JOB, "steps": steps}))),
                "idle" => (StatusCode::OK, Json(json!({"job": null, "steps": []}))),
                _ => (
                    StatusCode::CONFLICT,
                    Json(json!({"code": "VM_RUNNING", "what": format!("VM {name} stays as it is"),
                        "because": "it runs", "fix": format!("fleetward vm stop {name}, and try again")})),
                ),
            }
            .into_response()
        }
    };
    let show = async |Path(name): Path<String>| {
        let mut shown = vm(&name, "a");
        shown["description"] = json!("経理\n\u{1b}[31mred");
        shown["autostart"] = json!(true);
        shown["pending"] = json!([
            {"change": "cpus", "now": 2, "wanted": 4},
            {"change": "memory", "now": 4_294_967_296_u64, "wanted": 8_589_934_592_u64},
        ]);
        shown["domain_name"] = json!("evil");
        shown["findings"] = json!([{"code": "NAME_DIFFERS", "what": "on host a the domain of VM web is named evil",
            "fix": "while the VM is stopped: fleetward vm rename web web", "blocking": false}]);
        Json(shown)
    };
    let ended = async || {
        let view = json!({
            "id": JOB, "kind": "vm-change", "target": "web", "state": "done", "created_by": "local:0",
            "created": "2026-11-26T02:00:00Z", "ended": "2026-11-26T02:00:01Z", "current": null, "waiting": null,
            "cancellable": false, "failure": null, "progress": null, "steps": [],
            "result": {"vm": "web", "host": "a", "now": ["labels"], "next_start": ["cpus"]},
        });
        format!("{view}\n")
    };
    let router = Router::new()
        .route("/v1/vms/{vm}", get(show).patch(change))
        .route("/v1/jobs/{job}/events", get(ended));
    (Fake::with(router), asked)
}

fn said(fake: &Fake, arguments: &[&str]) -> String {
    let output = fake.fleetward(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn vm_set_asks_for_what_was_named_and_says_what_waits() {
    let (fake, asked) = fleet();
    let text = said(
        &fake,
        &[
            "vm",
            "set",
            "web",
            "--cpus",
            "4",
            "--memory",
            "8G",
            "--description",
            "経理 🔒",
            "--label",
            "a=b=c",
            "--label",
            "tier-",
            "--autostart",
            "on",
            "--tpm",
            "off",
        ],
    );
    assert_eq!(text, "web changed: labels; at its next start: cpus\n");
    let expected = json!({
        "cpus": 4, "memory_bytes": 8_589_934_592_u64, "description": "経理 🔒",
        "labels": {"a": "b=c", "tier": null}, "autostart": true, "tpm": false, "dry_run": false,
    });
    assert_eq!(asked.lock().unwrap()[0], expected);
    let text = said(&fake, &["vm", "set", "web", "--cpus", "4", "-o", "json"]);
    let result: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["next_start"], json!(["cpus"]));
    assert_eq!(
        asked.lock().unwrap()[1],
        json!({"cpus": 4, "dry_run": false})
    );
    let text = said(
        &fake,
        &["vm", "set", "web", "--description", "", "--no-wait"],
    );
    assert_eq!(text.trim(), JOB);
    assert_eq!(asked.lock().unwrap()[2]["description"], "");
}

#[test]
fn a_dry_run_says_when_each_change_takes_effect() {
    let (fake, asked) = fleet();
    let text = said(&fake, &["vm", "set", "web", "--cpus", "4", "--dry-run"]);
    assert_eq!(
        text,
        "web: CPUs 2 -> 4, at its next start\nweb: no label tier, now\n"
    );
    assert_eq!(asked.lock().unwrap()[0]["dry_run"], true);
    let text = said(&fake, &["vm", "set", "idle", "--cpus", "2"]);
    assert_eq!(text, "idle: it is as wanted already\n");
}

#[test]
fn vm_rename_asks_for_a_name_and_a_refusal_has_exit_code_4() {
    let (fake, asked) = fleet();
    said(&fake, &["vm", "rename", "web", "net"]);
    assert_eq!(
        asked.lock().unwrap()[0],
        json!({"name": "net", "dry_run": false})
    );
    let output = fake
        .fleetward(&["vm", "rename", "runs", "net"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.starts_with("error[VM_RUNNING]: "), "{stderr}");
    assert!(stderr.contains("fix: fleetward vm stop runs"), "{stderr}");
}

#[test]
fn what_no_vm_can_have_is_exit_code_2() {
    for arguments in [
        &["vm", "set"][..],
        &["vm", "set", "web", "--cpus", "0"],
        &["vm", "set", "web", "--cpus", "some"],
        &["vm", "set", "web", "--memory", "1"],
        &["vm", "set", "web", "--label", "no-sign"],
        &["vm", "set", "web", "--label", "=x"],
        &["vm", "set", "web", "--autostart", "maybe"],
        &["vm", "rename", "web"],
        &["vm", "rename", "web", "../etc"],
    ] {
        let output = fleetward(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    }
}

#[test]
fn vm_show_tells_what_waits_and_what_differs() {
    let (fake, _) = fleet();
    let text = said(&fake, &["vm", "show", "web"]);
    for line in [
        "2 (4 at its next start)",
        "4 GiB (8 GiB at its next start)",
        "経理  [31mred",
        "NAME_DIFFERS: on host a the domain of VM web is named evil",
        "fix: while the VM is stopped: fleetward vm rename web web",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "nothing that a terminal obeys");
    let text = said(&fake, &["vm", "show", "web", "-o", "json"]);
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(shown["pending"][0]["wanted"], 4);
    assert_eq!(shown["autostart"], true);
}
