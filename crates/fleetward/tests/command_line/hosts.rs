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
