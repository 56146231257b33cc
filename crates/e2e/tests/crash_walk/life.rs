//! A VM's life on one host: created, started, stopped, deleted.

use crate::scenario::{Before, Ended, Fault, Scenario};
use crate::subject::{CREATE, LOCK_VOLUMES, VM, clean, exists, gone, shows_as, stopped, strings};
use anyhow::{Result, ensure};
use fleetward_e2e::fleet::Fleet;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        claim: "create_survives_kill_9_everywhere",
        kind: "vm-create",
        victims: &["controller", "a/agent"],
        prepare: nothing,
        command: create_and_start,
        fault: None,
        check: created_or_not,
        finally: None,
    },
    Scenario {
        claim: "create_that_fails_at_its_start_survives_kill_9_everywhere",
        kind: "vm-create",
        victims: &["controller", "a/agent"],
        prepare: nothing,
        command: create_and_start,
        fault: Some(Fault {
            at: "job.vm-create.start.before",
            strike: make_the_disk_unreadable,
        }),
        check: created_or_not,
        finally: None,
    },
    Scenario {
        claim: "start_survives_kill_9_everywhere",
        kind: "vm-start",
        victims: &["controller", "a/agent"],
        prepare: a_stopped_vm,
        command: |_| Ok(strings(&["vm", "start", VM])),
        fault: None,
        check: |fleet, _, ended| {
            shows_as(
                fleet,
                if ended == Ended::Done {
                    "running"
                } else {
                    "stopped"
                },
            )?;
            clean(fleet)
        },
        finally: None,
    },
    Scenario {
        claim: "stop_survives_kill_9_everywhere",
        kind: "vm-stop",
        victims: &["controller", "a/agent"],
        prepare: |fleet| {
            stopped(fleet)?;
            fleet.cli(&["vm", "start", VM])?.ok()?;
            Ok(Before::default())
        },
        command: |_| Ok(strings(&["vm", "stop", VM, "--force"])),
        fault: None,
        check: |fleet, _, ended| {
            shows_as(
                fleet,
                if ended == Ended::Done {
                    "stopped"
                } else {
                    "running"
                },
            )?;
            clean(fleet)
        },
        finally: None,
    },
    // Of a guest that has not come far: what is walked is the job, and its TPM's state is read at each stop.
    Scenario {
        claim: "restart_survives_kill_9_everywhere",
        kind: "vm-restart",
        victims: &["controller", "a/agent"],
        prepare: a_started_vm,
        command: |_| Ok(strings(&["vm", "restart", VM, "--force"])),
        fault: None,
        check: |fleet, _, ended| {
            ensure!(ended == Ended::Done, "a restart is not taken back");
            shows_as(fleet, "running")?;
            clean(fleet)
        },
        finally: None,
    },
    Scenario {
        claim: "pause_survives_kill_9_everywhere",
        kind: "vm-pause",
        victims: &["controller", "a/agent"],
        prepare: a_started_vm,
        command: |_| Ok(strings(&["vm", "pause", VM])),
        fault: None,
        check: |fleet, _, ended| paused_or(fleet, ended, "paused", "running"),
        finally: None,
    },
    Scenario {
        claim: "resume_survives_kill_9_everywhere",
        kind: "vm-resume",
        victims: &["controller", "a/agent"],
        prepare: |fleet| {
            let before = a_started_vm(fleet)?;
            fleet.cli(&["vm", "pause", VM])?.ok()?;
            Ok(before)
        },
        command: |_| Ok(strings(&["vm", "resume", VM])),
        fault: None,
        check: |fleet, _, ended| paused_or(fleet, ended, "running", "paused"),
        finally: None,
    },
    Scenario {
        claim: "delete_survives_kill_9_everywhere",
        kind: "vm-delete",
        victims: &["controller", "a/agent"],
        prepare: a_stopped_vm_on_a,
        command: |_| Ok(strings(&["vm", "delete", VM, "--yes"])),
        fault: None,
        check: |fleet, _, ended| {
            ensure!(
                exists(fleet)? == (ended == Ended::Undone),
                "deleted and still there, or undone and gone"
            );
            clean(fleet)
        },
        finally: None,
    },
];

fn nothing(fleet: &Fleet) -> Result<Before> {
    gone(fleet)?;
    Ok(Before::default())
}

fn a_stopped_vm(fleet: &Fleet) -> Result<Before> {
    stopped(fleet)?;
    Ok(Before::default())
}

/// Running, from whatever state; the guest is not waited for.
fn a_started_vm(fleet: &Fleet) -> Result<Before> {
    if !exists(fleet)? {
        stopped(fleet)?;
    }
    fleet.cli(&["vm", "start", VM])?.ok()?;
    Ok(Before::default())
}

fn paused_or(fleet: &Fleet, ended: Ended, done: &str, undone: &str) -> Result<()> {
    let state = if ended == Ended::Done { done } else { undone };
    shows_as(fleet, state)?;
    clean(fleet)
}

/// The victim `a/agent` must be the VM's own.
fn a_stopped_vm_on_a(fleet: &Fleet) -> Result<Before> {
    if exists(fleet)? && fleet.place(VM)?.1 != "a" {
        gone(fleet)?;
    }
    a_stopped_vm(fleet)
}

fn create_and_start(_: &Fleet) -> Result<Vec<String>> {
    Ok(strings(&[CREATE, &["--start"]].concat()))
}

fn created_or_not(fleet: &Fleet, _: &Before, ended: Ended) -> Result<()> {
    ensure!(
        exists(fleet)? == (ended == Ended::Done),
        "the job is {ended:?}, but the VM says otherwise"
    );
    if ended == Ended::Done {
        shows_as(fleet, "running")?;
    }
    clean(fleet)
}

/// QEMU is given the file, and its owner may not read it.
fn make_the_disk_unreadable(fleet: &Fleet) -> Result<()> {
    fleet.exec("a", &["sh", "-c", LOCK_VOLUMES])?.ok().map(drop)
}
