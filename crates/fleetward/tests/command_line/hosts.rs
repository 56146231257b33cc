//! Hosts that are emptied and that leave: what stays behind is told.

use crate::fake::{Fake, hosts, run, vm};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

/// The guardian of host `a`, see [`hosts`].
fn guardian() -> String {
    "ab".repeat(32)
}

/// Host `a` of the fleet, with these VMs in it.
fn fleet(vms: Value) -> Fake {
    let host = hosts()[0].clone();
    let show = move || {
        let host = host.clone();
        async move { Json(host) }
    };
    let list = move || {
        let vms = vms.clone();
        async move { Json(vms) }
    };
    let drain = async || Json(json!({ "job": null, "plan": [] }));
    let router = Router::new()
        .route(
            "/v1/hosts/{host}",
            get(show).delete(async || StatusCode::NO_CONTENT),
        )
        .route("/v1/hosts/{host}/drain", post(drain))
        .route("/v1/vms", get(list));
    Fake::with(router)
}

#[test]
fn a_drained_host_is_not_called_empty_while_what_is_not_ours_runs_on_it() {
    let mut foreign = vm("x-------01-cc038b7e", "a");
    foreign["managed"] = json!(false);
    foreign["domain_name"] = json!("経理\u{1b}サーバー 01");
    let drain = ["host", "drain", "a"];
    let (code, out, err) = run(fleet(json!([foreign])).fleetward(&drain));
    assert_eq!(code, 0, "{err}");
    let said = format!("{out}{err}");
    assert!(
        !said.contains("is empty") && !said.contains('\u{1b}'),
        "{said}"
    );
    assert!(
        said.contains("'経理\\u{1b}サーバー 01' (running)"),
        "{said}"
    );
    let (_, out, err) = run(fleet(json!([])).fleetward(&drain));
    assert!(format!("{out}{err}").contains("a is empty"), "{out}{err}");
}

#[test]
fn a_host_that_leaves_tells_which_keys_its_guardian_still_opens() {
    let mut web = vm("web", "b");
    web["tpm"]["guardians"] = json!([guardian()]);
    let mut db = vm("db", "b");
    db["tpm"]["guardians"] = json!([]);
    let fake = fleet(json!([web, db]));
    let (code, _, err) = run(fake.fleetward(&["host", "remove", "a", "--yes"]));
    assert_eq!(code, 0, "{err}");
    let fix = format!(
        "fix: fleetward guardian revoke web --from {}",
        &guardian()[..12]
    );
    assert!(err.contains(&fix) && !err.contains("revoke db"), "{err}");
    let remove = ["host", "remove", "a", "--yes", "-o", "json"];
    let (_, out, _) = run(fake.fleetward(&remove));
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["still_open"][guardian()], json!(["web"]));
}

/// Of a host's warnings, of a guest's name, and of an error.
#[test]
fn what_hosts_and_guests_say_is_printed_without_what_a_terminal_obeys() {
    const EVIL: &str =
        "web\u{1b}[2J\u{9b}1m\u{202e}txt\u{2066}\nerror[FALSE]: gone\n  fix: rm -rf /";
    let harmless = |said: &str| {
        let obeyed = |c: char| c.is_control() && c != '\n' || "\u{202e}\u{2066}".contains(c);
        assert!(!said.contains(obeyed), "{said:?}");
        for line in said.lines() {
            assert!(!line.trim_start().starts_with("error[FALSE]"), "{said}");
            assert!(!line.trim_start().starts_with("fix: rm"), "{said}");
        }
    };
    let mut host = hosts()[0].clone();
    host["warnings"] = json!([EVIL]);
    let mut guest = vm("web", "a");
    guest["domain_name"] = json!(EVIL);
    guest["guest"] = json!({"agent": true, "host_name": EVIL, "os": EVIL, "nics": []});
    let shown = host.clone();
    let all = host.clone();
    let failure = json!({"code": "VM_BUSY", "what": EVIL, "because": EVIL, "fix": "wait"});
    let router = Router::new()
        .route("/v1/hosts", get(async move || Json(json!([all]))))
        .route("/v1/hosts/{host}", get(async move || Json(shown)))
        .route(
            "/v1/vms",
            get({
                let guest = guest.clone();
                async move || Json(json!([guest]))
            }),
        )
        .route("/v1/vms/{vm}", get(async move || Json(guest)))
        .route(
            "/v1/vms/{vm}/start",
            post(async move || (StatusCode::CONFLICT, Json(failure))),
        );
    let fake = Fake::with(router);
    for command in [
        &["host", "show", "a"][..],
        &["host", "list"],
        &["vm", "show", "web"],
        &["vm", "list"],
        &["vm", "start", "web"],
    ] {
        let (_, out, err) = run(fake.fleetward(command));
        assert!(
            out.contains("web") || err.contains("web"),
            "{command:?} {out} {err}"
        );
        harmless(&out);
        harmless(&err);
    }
    let (_, out, _) = run(fake.fleetward(&["host", "show", "a", "-o", "json"]));
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        document["warnings"], host["warnings"],
        "programs get it as it is"
    );
    assert!(!out.contains('\u{1b}'));
}
