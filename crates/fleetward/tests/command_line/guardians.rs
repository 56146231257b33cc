//! Grants and rotations: what is said of one, of several, and of those that fail.

use crate::fake::{Fake, GRANT_JOB, ROTATE_JOB};
use serde_json::{Value, json};

fn run(fake: &Fake, arguments: &[&str]) -> (i32, String, String) {
    let output = fake.fleetward(arguments).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_single_grant_that_fails_is_an_error_with_its_own_exit_code() {
    let fake = Fake::start();
    let (code, stdout, stderr) = run(&fake, &["-q", "guardian", "grant", "db", "--to", "b"]);
    assert_eq!((code, stdout.as_str()), (6, ""));
    let first: Vec<_> = stderr.lines().take(2).collect();
    assert_eq!(
        first,
        [
            "error[HOST_UNREACHABLE]: the TPM key of VM db is not granted to b",
            "  because: host a does not answer",
        ]
    );
    assert!(stderr.contains("\n  fix: "), "{stderr}");
    let (code, stdout, stderr) = run(&fake, &["guardian", "grant", "ghost", "--to", "b"]);
    assert_eq!((code, stdout.as_str()), (5, ""));
    assert!(stderr.starts_with("error[VM_NOT_FOUND]: "), "{stderr}");
}

#[test]
fn of_several_grants_each_has_its_line_and_some_failures_are_exit_3() {
    let fake = Fake::start();
    let (code, stdout, _) = run(&fake, &["guardian", "grant", "db", "ghost", "--to", "b"]);
    assert_eq!(code, 3);
    assert_eq!(
        stdout,
        "db: HOST_UNREACHABLE: host a does not answer\nghost: VM_NOT_FOUND: there is no VM ghost\n\
         0 succeeded, 2 failed, 0 skipped\n"
    );
}

#[test]
fn every_guardian_that_expires_is_rotated_although_one_host_is_away() {
    let fake = Fake::start();
    let rotate = ["guardian", "rotate", "--expiring", "180d"];
    let (code, stdout, _) = run(&fake, &rotate);
    assert_eq!(code, 3, "{stdout}");
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{stdout}");
    assert!(lines[0].starts_with("mute: HOST_UNREACHABLE: the guardian of host mute is unknown"));
    // the one that ends first comes first, and does not keep the other from its turn
    assert!(lines[1].starts_with("down: HOST_UNREACHABLE: "), "{stdout}");
    assert!(
        lines[2].starts_with("host a has a new guardian"),
        "{stdout}"
    );
    assert_eq!(lines[3], "1 succeeded, 2 failed, 0 skipped");

    let (code, stdout, _) = run(&fake, &[&rotate[..], &["-o", "json"]].concat());
    assert_eq!(code, 3);
    let reports = parsed(&stdout);
    let ends: Vec<_> = reports
        .as_array()
        .unwrap()
        .iter()
        .map(|report| (&report["host"], &report["outcome"], &report["code"]))
        .collect();
    assert_eq!(
        ends,
        [
            (&json!("mute"), &json!("failed"), &json!("HOST_UNREACHABLE")),
            (&json!("down"), &json!("failed"), &json!("HOST_UNREACHABLE")),
            (&json!("a"), &json!("succeeded"), &Value::Null),
        ]
    );
    assert_eq!(reports[2]["summary"]["succeeded"], 2);

    let (code, stdout, _) = run(&fake, &[&rotate[..], &["--no-wait", "-o", "json"]].concat());
    assert_eq!(code, 3);
    assert_eq!(
        parsed(&stdout)[2]["job"],
        ROTATE_JOB,
        "one document: {stdout}"
    );
}

#[test]
fn a_dry_run_names_what_expires_and_what_nothing_is_known_of() {
    let fake = Fake::start();
    let rotate = ["guardian", "rotate", "--expiring", "180d", "--dry-run"];
    let (code, stdout, stderr) = run(&fake, &rotate);
    assert_eq!((code, stdout.as_str()), (0, "down\na\n"));
    assert!(stderr.contains("guardian of host mute"), "{stderr}");
    let (_, stdout, _) = run(&fake, &[&rotate[..], &["-o", "json"]].concat());
    assert_eq!(
        parsed(&stdout),
        json!({ "hosts": ["down", "a"], "unknown": ["mute"] })
    );
    // one host, named
    let (code, _, stderr) = run(&fake, &["guardian", "rotate", "--host", "down"]);
    assert_eq!(code, 6);
    assert!(stderr.starts_with("error[HOST_UNREACHABLE]"), "{stderr}");
}

#[test]
fn a_hosts_warnings_stand_below_the_list() {
    let fake = Fake::start();
    let (_, stdout, _) = run(&fake, &["host", "list"]);
    assert!(
        stdout.ends_with(
            "\n\na: its guardian expires in 100 days: fleetward guardian rotate --host a\n"
        ),
        "{stdout}"
    );
}

#[test]
fn a_running_job_shows_how_many_vms_are_done() {
    let fake = Fake::start();
    let (_, stdout, _) = run(&fake, &["job", "list"]);
    let rows: Vec<_> = stdout.lines().collect();
    assert!(rows[0].contains("PROGRESS"), "{stdout}");
    let row = rows
        .iter()
        .find(|row| row.contains("guardian-grant"))
        .unwrap();
    assert!(row.contains("24 of 40 VMs"), "{stdout}");
    let (_, stdout, _) = run(&fake, &["job", "show", GRANT_JOB]);
    let progress = stdout.lines().find(|line| line.starts_with("Progress"));
    assert!(
        progress.is_some_and(|line| line.ends_with("24 of 40 VMs")),
        "{stdout}"
    );
}
