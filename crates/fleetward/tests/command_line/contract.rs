//! Exit codes, the form of errors, tables and JSON.

use crate::fake::{Fake, fleetward, vm};
use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};
use std::io::Read;
use std::process::Stdio;

fn code_and_stderr(mut command: assert_cmd::Command) -> (i32, String) {
    let output = command.output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn stdout(mut command: assert_cmd::Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_controller_that_is_not_there_is_exit_6() {
    let (code, stderr) = code_and_stderr(fleetward(&[
        "--socket",
        "/nowhere/controller.sock",
        "vm",
        "list",
    ]));
    assert_eq!(code, 6);
    assert!(
        stderr.starts_with("error[CONTROLLER_UNREACHABLE]: "),
        "{stderr}"
    );
    assert!(
        stderr.contains("\n  because: ") && stderr.contains("\n  fix: "),
        "{stderr}"
    );
}

#[test]
fn an_unknown_error_code_is_exit_5_and_a_known_one_is_explained_without_a_controller() {
    let (code, stderr) = code_and_stderr(fleetward(&["explain", "NO_SUCH_CODE"]));
    assert_eq!((code, stderr.lines().count()), (5, 2), "{stderr}");
    let known: Value = serde_json::from_str(&stdout(fleetward(&[
        "explain",
        "key_not_granted",
        "-o",
        "json",
    ])))
    .unwrap();
    assert_eq!(known["exit_code"], 4);
    assert!(known["summary"].as_str().unwrap().contains("10698"));
}

#[test]
fn what_cannot_be_parsed_is_exit_2() {
    for arguments in [
        &["vm", "frobnicate"][..],
        &["vm", "create"],
        &["vm", "create", "../etc"],
        &["vm", "create", "web", "--memory", "much"],
        &["vm", "create", "web", "--label", "no-equals-sign"],
        &["host", "token", "a", "--ttl", "soon"],
        &["vm", "list", "-o", "xml"],
        &["vm", "clone", "web"],
    ] {
        let (code, stderr) = code_and_stderr(fleetward(arguments));
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
    }
}

#[test]
fn destroying_needs_yes_where_nobody_can_be_asked() {
    let fake = Fake::start();
    let (code, stderr) = code_and_stderr(fake.fleetward(&["vm", "delete", "web"]));
    assert_eq!(code, 2);
    assert!(stderr.starts_with("error[CONFIRMATION_NEEDED]"), "{stderr}");
    let (code, _) = code_and_stderr(fake.fleetward(&["vm", "delete", "web", "--yes"]));
    assert_eq!(code, 0);
}

#[test]
fn an_unknown_vm_is_exit_5_with_an_empty_stdout() {
    let fake = Fake::start();
    let output = fake
        .fleetward(&["vm", "show", "ghost", "-o", "json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(output.stdout.is_empty());
}

#[test]
fn vm_list_is_an_aligned_table() {
    let fake = Fake::start();
    insta::assert_snapshot!("vm_list", stdout(fake.fleetward(&["vm", "list"])));
}

#[test]
fn usage_is_a_table_of_its_own_with_dashes_for_what_is_not_known() {
    let usage = json!({
        "at": "2026-11-23T09:00:00Z", "cpu_percent": 12.3, "memory_bytes": 2_040_109_466_u64,
        "disk_read_bytes_per_second": 1_048_576, "disk_written_bytes_per_second": 524_288,
        "disk_requests_per_second": 40, "net_received_bytes_per_second": 3000, "net_sent_bytes_per_second": 72,
    });
    let list = async move |uri: axum::http::Uri| {
        assert!(
            uri.query().unwrap_or_default().contains("usage=true"),
            "{uri}"
        );
        let mut web = vm("web", "a");
        web["usage"] = usage.clone();
        let mut db = vm("db", "b");
        db["usage"] = json!({ "at": "2026-11-23T09:00:00Z", "memory_bytes": 1024 });
        axum::Json(json!([web, db, vm("idle", "b")]))
    };
    let fake = Fake::with(Router::new().route("/v1/vms", get(list)));
    let shown = stdout(fake.fleetward(&["vm", "list", "--usage"]));
    insta::assert_snapshot!("vm_list_usage", shown);
}

#[test]
fn a_recovery_from_an_outdated_copy_warns_and_goes_on_when_that_was_answered() {
    let fake = Fake::start();
    let words = ["vm", "recover", "web", "--to", "b"];
    let asked = fake.fleetward(&words).output().unwrap();
    assert_eq!(asked.status.code(), Some(2), "asks before anything");
    let output = fake
        .fleetward(&[words.as_slice(), &["--yes"]].concat())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("warning[ESCROW_OUTDATED]"), "{said}");
    assert!(said.contains("the newest copy is version 3"), "{said}");
}

#[test]
fn vm_show_says_how_old_the_copy_of_the_tpm_is() {
    let fake = Fake::start();
    let shown = stdout(fake.fleetward(&["vm", "show", "web", "-o", "table"]));
    let row = shown
        .lines()
        .find(|line| line.starts_with("Controller's copy"));
    let row = row.unwrap_or_else(|| panic!("no row: {shown}"));
    assert!(row.contains("version 7 of 2026-11-23 08:59:00Z"), "{row}");
    assert!(row.ends_with(", age 3 s"), "{row}");
}

#[test]
fn vm_show_has_the_keys_that_scripts_rely_on() {
    let fake = Fake::start();
    let vm: Value = serde_json::from_str(&stdout(
        fake.fleetward(&["vm", "show", "web", "-o", "json"]),
    ))
    .unwrap();
    for key in [
        "name",
        "id",
        "host",
        "state",
        "cpus",
        "memory_bytes",
        "firmware",
        "disks",
        "tpm",
        "labels",
        "profile",
    ] {
        assert!(vm.get(key).is_some(), "{key}");
    }
    assert_eq!(vm["firmware"]["type"], "uefi");
    for key in [
        "enabled",
        "version",
        "model",
        "state_present",
        "key_id",
        "owner",
        "guardians",
        "ek_certificate",
    ] {
        assert!(vm["tpm"].get(key).is_some(), "tpm.{key}");
    }
    assert_eq!(vm["memory_bytes"], 4_294_967_296_u64);
    insta::assert_snapshot!("vm_show", stdout(fake.fleetward(&["vm", "show", "web"])));
}

#[test]
fn guardian_list_has_a_row_for_each_certificate() {
    let fake = Fake::start();
    let rows: Value =
        serde_json::from_str(&stdout(fake.fleetward(&["guardian", "list", "-o", "json"]))).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    for key in [
        "guardian",
        "role",
        "serial",
        "sha1",
        "sha256",
        "subject",
        "not_after",
        "days_left",
        "has_private_key",
        "host",
        "vms",
    ] {
        assert!(rows[0].get(key).is_some(), "{key}");
    }
    insta::assert_snapshot!(
        "guardian_list",
        stdout(fake.fleetward(&["guardian", "list"]))
    );
    let certutil = stdout(fake.fleetward(&["guardian", "list", "--format", "certutil"]));
    insta::assert_snapshot!("guardian_list_certutil", certutil);
    let other_host = ["guardian", "list", "--format", "certutil", "--host", "zz"];
    assert_eq!(stdout(fake.fleetward(&other_host)).lines().count(), 2);
    let json = stdout(fake.fleetward(&["guardian", "list", "--format", "json"]));
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), rows);
    let one = stdout(fake.fleetward(&["guardian", "show", "abab"]));
    assert!(one.contains("on that host"), "{one}");
}

#[test]
fn yaml_says_the_same_as_json() {
    let fake = Fake::start();
    let yaml = stdout(fake.fleetward(&["vm", "list", "-o", "yaml"]));
    assert!(yaml.contains("- name: web"), "{yaml}");
}

#[test]
fn the_matrix_shows_yes_here_and_the_reason_for_no() {
    let fake = Fake::start();
    insta::assert_snapshot!("check", stdout(fake.fleetward(&["check"])));
}

#[test]
fn counts_by_host_name_what_keeps_vms_where_they_are() {
    let fake = Fake::start();
    let counts = stdout(fake.fleetward(&["check", "--by-host"]));
    insta::assert_snapshot!("check_by_host", counts);
    for wrong in [
        &["check", "web", "--by-host"][..],
        &["check", "--group", "x"],
    ] {
        assert_eq!(code_and_stderr(fake.fleetward(wrong)).0, 2, "{wrong:?}");
    }
}

#[test]
fn a_move_that_cannot_be_is_exit_4_with_the_finding() {
    let fake = Fake::start();
    for arguments in [
        &["vm", "migrate", "web", "--to", "c", "--check"][..],
        &["check", "web", "--to", "c"],
    ] {
        let output = fake.fleetward(arguments).output().unwrap();
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert_eq!(output.status.code(), Some(4), "{stderr}");
        assert!(
            stderr.starts_with("error[KEY_NOT_GRANTED]: web cannot move from a to c\n  because: "),
            "{stderr}"
        );
        assert!(stdout.contains("use a host of the group"), "{stdout}");
    }
    let good = stdout(fake.fleetward(&["check", "web", "--to", "b"]));
    assert_eq!(good, "web can move to b\n");
}

#[test]
fn an_image_that_arrives_altered_is_noticed() {
    let fake = Fake::start();
    let file = fake.directory().join("disk.raw");
    std::fs::write(&file, vec![7; 300_000]).unwrap();
    let file = file.to_str().unwrap();
    let good = stdout(fake.fleetward(&["image", "import", "good", file]));
    assert!(good.starts_with("good imported, sha256 "), "{good}");
    let (code, stderr) = code_and_stderr(fake.fleetward(&["image", "import", "altered", file]));
    assert_eq!(code, 4);
    assert!(stderr.contains("error[IMAGE_INVALID]"), "{stderr}");
    let (code, _) = code_and_stderr(fake.fleetward(&["image", "import", "good", "/nowhere/disk"]));
    assert_eq!(code, 2);
}

#[test]
fn a_broken_audit_chain_fails_and_names_every_record_and_host() {
    let fake = Fake::start();
    let output = fake.fleetward(&["audit", "--verify"]).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    for found in [
        "record 3 of host a",
        "record 9 of host b",
        "chain of c: not",
    ] {
        assert!(stdout.contains(found), "{found}: {stdout}");
    }
    assert!(!stdout.contains("intact"), "{stdout}");
    let (code, stderr) = code_and_stderr(fake.fleetward(&["audit", "--verify"]));
    assert_eq!(code, 1);
    assert!(
        stderr.contains("error[AUDIT_BROKEN]") && stderr.contains("record 3"),
        "{stderr}"
    );
}

#[test]
fn an_audit_trail_that_was_not_compared_everywhere_is_not_called_intact() {
    use axum::{Json, Router, routing::get};
    // An older controller says intact all the same.
    for intact in [false, true] {
        let verdict = serde_json::json!({ "intact": intact, "records": 7, "broken": null, "not_compared": ["b"] });
        let answer = get(async move || Json(verdict.clone()));
        let fake = Fake::with(Router::new().route("/v1/audit/verify", answer));
        let output = fake.fleetward(&["audit", "--verify"]).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(6), "{said}");
        assert!(said.contains("error[HOST_UNREACHABLE]"), "{said}");
        assert!(
            said.contains("not compared") && said.contains(": b"),
            "{said}"
        );
        assert!(!said.contains("intact"), "{said}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let program = assert_cmd::cargo::cargo_bin("fleetward");
    let mut child = std::process::Command::new(program)
        .arg("explain")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(stderr, "");
}
