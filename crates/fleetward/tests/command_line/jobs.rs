//! Waiting for jobs: progress, results of one and of many, leaving with Ctrl-C.

use crate::fake::{BAD_JOB, ENDLESS_JOB, Fake, GOOD_JOB, interrupt, run, spawn};
use serde_json::Value;
use std::io::{BufRead, BufReader};

#[test]
fn progress_is_plain_lines_where_stderr_is_no_terminal() {
    let fake = Fake::start();
    let (code, stdout, stderr) = run(fake.fleetward(&["vm", "start", "web"]));
    assert_eq!((code, stdout.as_str()), (0, "web: started\n"));
    assert_eq!(
        stderr,
        "web: step 1/2 prepare\nweb: step 2/2 copy, 0 %\nweb: step 2/2 copy, 50 %\n"
    );
}

#[test]
fn quiet_says_nothing_of_success() {
    let fake = Fake::start();
    assert_eq!(
        run(fake.fleetward(&["-q", "vm", "start", "web"])),
        (0, String::new(), String::new())
    );
}

#[test]
fn no_wait_prints_the_job() {
    let fake = Fake::start();
    let (code, stdout, _) = run(fake.fleetward(&["vm", "start", "web", "--no-wait"]));
    assert_eq!((code, stdout.trim()), (0, GOOD_JOB));
    let (_, stdout, _) =
        run(fake.fleetward(&["vm", "start", "web", "db", "--no-wait", "-o", "json"]));
    let jobs: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(jobs[1]["job"], BAD_JOB);
}

#[test]
fn a_single_failure_is_told_in_full_with_its_own_exit_code() {
    let fake = Fake::start();
    let (code, stdout, stderr) = run(fake.fleetward(&["-q", "vm", "start", "db"]));
    assert_eq!((code, stdout.as_str()), (4, ""));
    assert_eq!(
        stderr,
        "error[NO_SPACE]: cannot copy the disk of db to b\n  because: 2 GiB free, 4 GiB needed\n  fix: free some space\n"
    );
}

#[test]
fn of_several_each_has_its_line_and_some_failures_are_exit_3() {
    let fake = Fake::start();
    let names = ["vm", "start", "web", "db", "busy", "idle", "ghost", "web"];
    let (code, stdout, _) = run(fake.fleetward(&names));
    assert_eq!(code, 3);
    let mut lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.pop(), Some("1 succeeded, 3 failed, 1 skipped"));
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "busy: VM_BUSY: cannot start busy: job 7 works on it",
            "db: NO_SPACE: cannot copy the disk of db to b: 2 GiB free, 4 GiB needed",
            "ghost: VM_NOT_FOUND: there is no VM ghost",
            "idle: runs already",
            "web: started",
        ]
    );
}

#[test]
fn json_of_several_is_one_document_in_the_order_of_the_names() {
    let fake = Fake::start();
    let (code, stdout, _) = run(fake.fleetward(&[
        "vm", "migrate", "db", "web", "idle", "--to", "b", "-o", "json",
    ]));
    assert_eq!(code, 3);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let of = |index: usize| {
        (
            &report["results"][index]["vm"],
            &report["results"][index]["outcome"],
        )
    };
    assert_eq!(of(0), (&"db".into(), &"failed".into()));
    assert_eq!(of(1), (&"web".into(), &"succeeded".into()));
    assert_eq!(of(2), (&"idle".into(), &"skipped".into()));
    assert_eq!(report["results"][0]["code"], "NO_SPACE");
    assert_eq!(
        report["results"][1]["message"],
        "moved to b, downtime 207 ms"
    );
    assert_eq!(report["summary"]["failed"], 1);
}

#[test]
fn a_job_is_found_by_the_beginning_of_its_id() {
    let fake = Fake::start();
    let (code, _, stderr) = run(fake.fleetward(&["job", "watch", "ffff"]));
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.starts_with("error[JOB_NOT_FOUND]"), "{stderr}");
}

#[test]
fn ctrl_c_leaves_the_job_running_and_says_how_to_follow_it() {
    let fake = Fake::start();
    let mut child = spawn(&fake, &["vm", "start", "endless"]);
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    // The first line of progress: it waits.
    let first = stderr.next().unwrap().unwrap();
    assert_eq!(first, "endless: step 1/2 prepare");
    interrupt(&child);
    let rest: Vec<String> = stderr.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(
        rest.last().unwrap(),
        &format!("the job continues; follow it with: fleetward job watch {ENDLESS_JOB}")
    );
}
