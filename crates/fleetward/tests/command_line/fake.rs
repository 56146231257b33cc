//! A controller that says what the tests need said: two VMs, two hosts, and jobs with a fixed course.

pub(crate) mod bulk;
pub(crate) mod rotations;

use assert_cmd::Command;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::process::{Child, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Jobs are told apart by their last digit.
pub(crate) const GOOD_JOB: &str = "00000000-0000-4000-8000-000000000001";
pub(crate) const BAD_JOB: &str = "00000000-0000-4000-8000-000000000002";
pub(crate) const ENDLESS_JOB: &str = "00000000-0000-4000-8000-000000000003";
pub(crate) const GRANT_JOB: &str = "00000000-0000-4000-8000-000000000004";
/// Of two VMs, one of which does not exist.
pub(crate) const GRANT_OF_TWO_JOB: &str = "00000000-0000-4000-8000-000000000006";
pub(crate) const ROTATE_JOB: &str = "00000000-0000-4000-8000-000000000005";

/// A running fake. Ends with the test's process; its socket goes with the directory.
pub(crate) struct Fake {
    directory: TempDir,
}

impl Fake {
    pub(crate) fn start() -> Self {
        Self::with(router())
    }

    /// One that answers what `router` says.
    pub(crate) fn with(router: Router) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("controller.sock");
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        Self { directory }
    }

    /// The program, told to talk to this fake.
    pub(crate) fn fleetward(&self, arguments: &[&str]) -> Command {
        let mut command = fleetward(arguments);
        command.env(
            "FLEETWARD_SOCKET",
            self.directory.path().join("controller.sock"),
        );
        command
    }

    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}

/// The program, without anything of the surroundings it could take notice of.
/// Runs it to its end: exit code, stdout, stderr.
pub(crate) fn run(mut command: Command) -> (i32, String, String) {
    let output = command.timeout(Duration::from_secs(30)).output().unwrap();
    (
        output.status.code().expect("it ended by itself"),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Starts it against `fake`, its output piped.
pub(crate) fn spawn(fake: &Fake, arguments: &[&str]) -> Child {
    std::process::Command::new(assert_cmd::cargo::cargo_bin("fleetward"))
        .args(arguments)
        .env("FLEETWARD_SOCKET", fake.directory().join("controller.sock"))
        .env_remove("FLEETWARD_CONTROLLER")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Ctrl-C.
pub(crate) fn interrupt(child: &Child) {
    let sent = std::process::Command::new("/bin/kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

pub(crate) fn fleetward(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("fleetward").unwrap();
    for variable in ["CONTROLLER", "CERT", "KEY", "CA"] {
        command.env_remove(format!("FLEETWARD_{variable}"));
    }
    command.env("COLUMNS", "100").args(arguments);
    command
}

fn router() -> Router {
    Router::new()
        .route("/v1/vms", get(async || axum::Json(json!([vm("web", "a"), vm("db", "b")]))))
        .route("/v1/vms/{vm}", get(show_vm).delete(async |vm| request("delete", vm)))
        .route("/v1/vms/{vm}/start", post(async |vm| request("start", vm)))
        .route("/v1/vms/{vm}/migrate", post(async |vm| request("migrate", vm)))
        .route("/v1/vms/{vm}/recover", post(recover))
        .route("/v1/bulk", post(bulk::bulk))
        .route("/v1/guardian-rotations/expiring", post(rotations::expiring))
        .route("/v1/hosts", get(async || axum::Json(hosts())))
        .route("/v1/guardian-grants", post(grant))
        .route("/v1/guardian-rotations", post(rotate))
        .route("/v1/jobs", get(async || axum::Json(json!([ended(GOOD_JOB), granting()]))))
        .route("/v1/jobs/{job}", get(async || axum::Json(granting())))
        .route("/v1/jobs/{job}/events", get(events))
        .route("/v1/status", get(async || axum::Json(status())))
        .route("/v1/check", get(check))
        .route("/v1/check/hosts", get(check_hosts))
        .route("/v1/guardians", get(async || axum::Json(guardians())))
        .route("/v1/images/{image}", put(import))
        .route("/v1/audit/verify", get(async || {
            axum::Json(json!({
                "intact": false, "records": 7, "broken": "record 3 of host a was changed",
                "breaks": [
                    { "chain": "a", "kept_by": "a", "seq": 3, "what": "record 3 of host a was changed" },
                    { "chain": "b", "kept_by": "controller", "seq": 9, "what": "record 9 of host b is missing" },
                ],
                "not_compared": ["c"],
            }))
        }))
}

async fn show_vm(Path(name): Path<String>) -> Response {
    match name.as_str() {
        "web" | "db" => axum::Json(vm(&name, "a")).into_response(),
        _ => no_vm(&name),
    }
}

/// What a request for a job answers: by the VM's name.
fn request(verb: &str, Path(name): Path<String>) -> Response {
    match name.as_str() {
        "web" => accepted(Some(GOOD_JOB)),
        "db" => accepted(Some(BAD_JOB)),
        "endless" => accepted(Some(ENDLESS_JOB)),
        "idle" => accepted(None),
        "busy" => failure(
            StatusCode::CONFLICT,
            &json!({ "code": "VM_BUSY", "what": format!("cannot {verb} busy"), "because": "job 7 works on it", "fix": "wait" }),
        ),
        _ => no_vm(&name),
    }
}

/// Has a copy that is not of the last state.
async fn recover(axum::Json(body): axum::Json<Value>) -> Response {
    match body["outdated"].as_bool() {
        Some(true) => accepted(Some(GOOD_JOB)),
        _ => failure(
            StatusCode::CONFLICT,
            &json!({ "code": "ESCROW_OUTDATED", "what": "the newest copy is version 3", "because": "of the guest", "fix": "ask" }),
        ),
    }
}

fn accepted(job: Option<&str>) -> Response {
    (StatusCode::ACCEPTED, axum::Json(json!({ "job": job }))).into_response()
}

fn failure(status: StatusCode, body: &Value) -> Response {
    (status, axum::Json(body.clone())).into_response()
}

fn no_vm(name: &str) -> Response {
    failure(
        StatusCode::NOT_FOUND,
        &json!({ "code": "VM_NOT_FOUND", "what": format!("there is no VM {name}"), "fix": "fleetward vm list" }),
    )
}

async fn events(Path(job): Path<String>) -> Response {
    let mut states = vec![
        running(&job, "prepare", 0),
        running(&job, "copy", 20),
        running(&job, "copy", 60),
    ];
    if job != ENDLESS_JOB {
        states.push(ended(&job));
    }
    let mut body: String = states.iter().map(|state| format!("{state}\n")).collect();
    body.push('\n');
    if job == ENDLESS_JOB {
        let open = axum::body::Bytes::from(body);
        let stream = futures_of(open);
        return Body::from_stream(stream).into_response();
    }
    body.into_response()
}

/// The text, and then silence.
fn futures_of(
    first: Bytes,
) -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    use futures_util::StreamExt;
    futures_util::stream::once(async { Ok(first) }).chain(futures_util::stream::pending())
}

fn running(job: &str, step: &str, percent: u64) -> Value {
    json!({
        "id": job, "kind": "vm-start", "target": "web", "state": "running", "created_by": "local:0",
        "created": "2026-11-23T08:00:00Z", "ended": null, "current": step, "waiting": null,
        "cancellable": true, "failure": null, "result": null,
        "progress": (percent > 0).then(|| json!({ "done": percent, "total": 100, "text": "" })),
        "steps": [step_of("prepare"), step_of("copy")],
    })
}

/// A host joins, and is granted what its group has.
fn granting() -> Value {
    let mut view = running(GRANT_JOB, "grant", 0);
    view["kind"] = json!("guardian-grant");
    view["target"] = json!("c");
    view["created_by"] = json!("keeper");
    view["progress"] = json!({ "done": 0, "total": 0, "text": "24 of 40 VMs" });
    view
}

/// `a` and `down` end soon, `b` does not, `mute` has never reported, `new` has not joined.
pub(crate) fn hosts() -> Value {
    let host = |name: &str, state: &str, days: Option<i64>, warnings: &[&str]| {
        let facts = days.map(|days| {
            let end = time::OffsetDateTime::now_utc() + time::Duration::days(days);
            let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
            let certificate = |role: &str| {
                json!({ "role": role, "serial": "1", "sha1": "1", "sha256": "1", "subject": "CN=Shielded VM",
                        "not_before": "2026-11-23T08:00:00Z", "not_after": end, "der_base64": "" })
            };
            json!({
                "host": name, "group": "default", "accelerator": "kvm", "cpus": 4, "arch": "x86_64", "cpu_model": "fake",
                "versions": { "libvirt": "11.3.0", "qemu": "10.0.2", "swtpm": "0.10.1", "agent": "fake" },
                "memory": 8_589_934_592_u64, "memory_available": 4_294_967_296_u64, "machines": [], "secure_boot": true,
                "pools": [], "clock": "2026-11-23T08:00:00Z", "tpm_pool": 4, "warnings": [],
                "guardians": [{ "id": "ab".repeat(32), "host": name, "own": true, "has_private_key": true,
                                "certificates": [certificate("signing"), certificate("encryption")] }],
            })
        });
        json!({ "name": name, "group": "default", "state": state, "address": null, "facts": facts,
                "last_seen": null, "vms": 0, "warnings": warnings })
    };
    json!([
        host(
            "a",
            "online",
            Some(100),
            &["its guardian expires in 100 days: fleetward guardian rotate --host a"]
        ),
        host("b", "online", Some(3000), &[]),
        host("down", "unreachable", Some(10), &[]),
        host("mute", "unreachable", None, &[]),
        host("new", "invited", None, &[]),
    ])
}

/// What a grant answers: by the first VM's name.
async fn grant(axum::Json(request): axum::Json<Value>) -> Response {
    let refused = json!({ "vm": "ghost", "outcome": "failed", "code": "VM_NOT_FOUND", "message": "there is no VM ghost" });
    let planned = json!({ "vm": "db", "outcome": "succeeded", "message": "its key is wrapped for host b too" });
    let (job, plan) = match request["vms"][0].as_str() {
        Some("ghost") => (Value::Null, json!([refused])),
        _ if request["vms"][1] == "ghost" => (json!(GRANT_OF_TWO_JOB), json!([refused, planned])),
        _ => (json!(GRANT_JOB), json!([planned])),
    };
    axum::Json(json!({ "job": job, "guardian": "ab".repeat(32), "host": "b", "plan": plan }))
        .into_response()
}

async fn rotate(axum::Json(request): axum::Json<Value>) -> Response {
    match request["host"].as_str() {
        Some("a") => accepted(Some(ROTATE_JOB)),
        _ => failure(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({ "code": "HOST_UNREACHABLE", "what": "the guardian of host down cannot be rotated",
                     "because": "the host does not answer", "fix": "wait" }),
        ),
    }
}

fn step_of(name: &str) -> Value {
    json!({ "name": name, "state": "running", "attempts": 1, "started": null, "ended": null })
}

fn ended(job: &str) -> Value {
    let mut view = running(job, "copy", 0);
    view["ended"] = json!("2026-11-23T08:00:02.5Z");
    view["current"] = Value::Null;
    view["progress"] = Value::Null;
    if job == GRANT_JOB {
        view["state"] = json!("done");
        view["result"] = json!({
            "host": "b", "summary": { "succeeded": 0, "failed": 1, "skipped": 0 },
            "results": [{ "vm": "db", "outcome": "failed", "code": "HOST_UNREACHABLE", "message": "host a does not answer" }],
        });
    } else if job == GRANT_OF_TWO_JOB {
        view = ended(GRANT_JOB);
        view["id"] = json!(job);
        let results = view["result"]["results"].as_array_mut().unwrap();
        results.push(json!({ "vm": "ghost", "outcome": "failed", "code": "VM_NOT_FOUND", "message": "there is no VM ghost" }));
        view["result"]["summary"]["failed"] = json!(2);
    } else if job == ROTATE_JOB {
        view["state"] = json!("done");
        view["result"] = json!({
            "host": "a", "summary": { "succeeded": 2, "failed": 0, "skipped": 0 }, "results": [],
            "guardian": "ab".repeat(32), "retired": [], "still_needed_by": 0,
        });
    } else if job == BAD_JOB {
        view["state"] = json!("undone");
        view["failure"] = json!({
            "code": "NO_SPACE", "what": "cannot copy the disk of db to b", "because": "2 GiB free, 4 GiB needed", "fix": "free some space"
        });
    } else {
        view["state"] = json!("done");
        view["result"] = json!({ "downtime_ms": 207 });
    }
    view
}

pub(crate) fn vm(name: &str, host: &str) -> Value {
    json!({
        "name": name, "id": "6f1c1f0e-5b0a-4c58-9a51-2f7ad1f0c001", "host": host, "group": "default", "state": "running",
        "reason": "booted", "managed": true, "cpus": 2, "memory_bytes": 4_294_967_296_u64,
        "firmware": { "type": "uefi", "secure_boot": true },
        "disks": [{ "target": "vda", "bus": "virtio", "pool": "default", "pool_id": "p", "path": "/p/v.qcow2",
                    "format": "qcow2", "size": 68_719_476_736_u64, "allocated": 1_048_576 }],
        "tpm": { "enabled": name == "web", "version": "2.0", "model": "tpm-crb", "state_present": true,
                 "key_id": null, "owner": null, "guardians": [], "ek_certificate": null },
        "escrow": { "version": 7, "made": "2026-11-23T08:59:00Z", "current": name == "web", "failure": null },
        "escrow_age": 3,
        "labels": { "tier": "front" }, "profile": "linux", "job": null,
        "created": "2026-11-23T08:00:00Z", "observed": "2026-11-23T09:00:00Z",
    })
}

async fn check_hosts() -> Response {
    let counts = json!([
        { "host": "a", "group": "default", "online": true, "vms": 12, "can_start": 12, "can_move": 9,
          "in_the_way": [{ "code": "KEY_NOT_GRANTED", "vms": 2 }, { "code": "NO_HOST_FITS", "vms": 1 }],
          "remarks": [{ "code": "AUTHORITY_ENDS", "vms": 12 }, { "code": "SECURE_BOOT_OUTDATED", "vms": 4 }],
          "warnings": ["its guardian store is not sealed"] },
        { "host": "b", "group": "default", "online": false, "vms": 0, "can_start": 0, "can_move": 0, "in_the_way": [] },
    ]);
    axum::Json(counts).into_response()
}

fn status() -> Value {
    json!({ "version": "0", "fleet": "f", "authority": "a", "hosts": 3, "hosts_online": 3, "vms": 2, "jobs_running": 0 })
}

async fn check(Query(query): Query<HashMap<String, String>>) -> Response {
    let view = |vm: &str, to: &str, code: Option<&str>| {
        let findings = code.map(|code| {
            json!({ "code": code, "what": format!("the TPM key of {vm} is not wrapped for {to}"), "fix": "use a host of the group", "blocking": true })
        });
        json!({ "vm": vm, "from": "a", "to": to, "possible": code.is_none(), "code": code,
                "findings": Vec::from_iter(findings) })
    };
    let mut all = vec![
        view("web", "a", None),
        view("web", "b", None),
        view("web", "c", Some("KEY_NOT_GRANTED")),
    ];
    if !query.contains_key("vm") && !query.contains_key("to") {
        // another VM, of which there is less to say
        all.push(view("db", "a", None));
        all.push(view("db", "b", None));
        let soon = json!({ "code": "GUARDIAN_EXPIRES_SOON", "what": "the guardian of host b expires in 100 days",
                           "fix": "fleetward guardian rotate --host b", "blocking": false });
        for to_b in all.iter_mut().filter(|view| view["to"] == "b") {
            to_b["findings"] = json!([soon]);
        }
    }
    let wanted = |view: &Value, key: &str| {
        query
            .get(key)
            .is_none_or(|value| view[key] == value.as_str())
    };
    all.retain(|view| wanted(view, "vm") && wanted(view, "to"));
    axum::Json(all).into_response()
}

fn guardians() -> Value {
    let row = |role: &str, digit: &str| {
        json!({
            "guardian": "ab".repeat(32), "role": role, "serial": digit.repeat(8), "sha1": digit.repeat(40),
            "sha256": digit.repeat(64), "subject": "CN=Shielded VM", "issuer": "CN=Shielded VM",
            "not_before": "2026-11-23T00:00:00Z", "not_after": "2036-11-23T00:00:00Z",
            "days_left": 3652, "has_private_key": true, "host": "a", "vms": ["web"],
        })
    };
    json!([row("signing", "1"), row("encryption", "2")])
}

async fn import(Path(name): Path<String>, body: Bytes) -> Response {
    let sha256 = match name.as_str() {
        "altered" => "0".repeat(64),
        _ => hex::encode(Sha256::digest(&body)),
    };
    axum::Json(json!({
        "name": name, "format": "raw", "size_bytes": body.len(), "virtual_size_bytes": body.len(),
        "sha256": sha256, "imported": "2026-11-23T08:00:00Z",
    }))
    .into_response()
}
