//! Long lists: the command asks page by page, and prints one document.

use crate::fake::{Fake, vm};
use axum::extract::Query;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

const VMS: usize = 1203;

fn all() -> Vec<Value> {
    (0..VMS)
        .map(|number| vm(&format!("vm-{number:04}"), "a"))
        .collect()
}

/// The queries that were sent.
type Queries = Arc<Mutex<Vec<HashMap<String, String>>>>;

/// Gives pages where it is asked for them, and keeps the queries.
fn fleet() -> (Fake, Queries) {
    let asked = Queries::default();
    let kept = asked.clone();
    let list = move |Query(query): Query<HashMap<String, String>>| {
        let follows = |vm: &Value| {
            let cursor = format!("{}/a", vm["name"].as_str().unwrap());
            query.get("after").is_none_or(|after| cursor > *after)
        };
        let limit = query.get("limit").map_or(VMS, |n| n.parse().unwrap());
        let page: Vec<Value> = all().into_iter().filter(follows).take(limit).collect();
        kept.lock().unwrap().push(query);
        async move { Json(page) }
    };
    let fake = Fake::with(Router::new().route("/v1/vms", get(list)));
    (fake, asked)
}

fn names(mut command: assert_cmd::Command) -> Vec<String> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("one array");
    rows.iter()
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_long_list_comes_in_pages_and_is_printed_as_one_array() {
    let (fake, asked) = fleet();
    let listed = names(fake.fleetward(&["vm", "list", "-o", "json"]));
    let expected: Vec<_> = (0..VMS).map(|number| format!("vm-{number:04}")).collect();
    assert_eq!(listed, expected);
    assert_eq!(asked.lock().unwrap().len(), 3, "pages of 500");
}

#[test]
fn a_limit_and_a_cursor_reach_the_controller() {
    let (fake, asked) = fleet();
    let arguments = [
        "vm",
        "list",
        "--limit",
        "2",
        "--after",
        "vm-0007/a",
        "--state",
        "running",
        "-o",
        "json",
    ];
    assert_eq!(names(fake.fleetward(&arguments)), ["vm-0008", "vm-0009"]);
    let query = &asked.lock().unwrap()[0];
    assert_eq!(
        (query["limit"].as_str(), query["state"].as_str()),
        ("2", "running")
    );
    let wrong = fake
        .fleetward(&["vm", "list", "--state", "asleep"])
        .output();
    assert_eq!(wrong.unwrap().status.code(), Some(2));
}

#[test]
fn a_controller_without_pages_is_listed_once() {
    for vms in [2, 500, 700] {
        let list = get(async move || Json(all()[..vms].to_vec()));
        let fake = Fake::with(Router::new().route("/v1/vms", list));
        let listed = names(fake.fleetward(&["vm", "list", "-o", "json"]));
        assert_eq!(listed.len(), vms);
    }
}

#[test]
fn every_label_reaches_the_controller() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = asked.clone();
    let list = move |Query(query): Query<Vec<(String, String)>>| {
        kept.lock().unwrap().push(query);
        async { Json(Vec::<Value>::new()) }
    };
    let fake = Fake::with(Router::new().route("/v1/vms", get(list)));
    let arguments = ["--label", "tier=front", "--label", "site=tokyo"];
    let arguments = [&["vm", "list", "-o", "json"][..], &arguments].concat();
    assert!(names(fake.fleetward(&arguments)).is_empty());
    let query = &asked.lock().unwrap()[0];
    let labels = query.iter().filter(|(key, _)| key == "label");
    let values: Vec<&str> = labels.map(|(_, value)| value.as_str()).collect();
    assert_eq!(values, ["tier=front", "site=tokyo"]);
}
