//! A VM changes its host: live, stopped, and live with a fault on the way.

use crate::scenario::{Before, Ended, Fault, Scenario};
use crate::subject::{LOCK_VOLUMES, VM, clean, other_host, running, shows_as, stopped, strings};
use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::guest;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        claim: "a_live_migration_survives_kill_9_everywhere",
        kind: "vm-migrate",
        victims: &["controller", "a/agent", "b/agent"],
        prepare: a_running_guest,
        command: migrate_live,
        fault: None,
        check: the_guest_goes_on,
        finally: None,
    },
    Scenario {
        claim: "a_live_migration_that_fails_survives_kill_9_everywhere",
        kind: "vm-migrate",
        victims: &["controller", "a/agent", "b/agent"],
        prepare: a_running_guest,
        command: migrate_live,
        fault: Some(Fault {
            at: "job.vm-migrate.migrate-live.before",
            strike: make_the_arriving_disk_unwritable,
        }),
        check: the_guest_goes_on,
        finally: None,
    },
    Scenario {
        claim: "a_stopped_migration_survives_kill_9_everywhere",
        kind: "vm-migrate-stopped",
        victims: &["controller", "a/agent", "b/agent"],
        prepare: a_guest_that_stopped,
        command: |fleet| {
            let to = other_host(fleet)?;
            Ok(strings(&["vm", "migrate", VM, "--to", to, "--offline"]))
        },
        fault: None,
        check: |fleet, _, _| {
            shows_as(fleet, "stopped")?;
            clean(fleet)
        },
        finally: Some(the_guest_boots_once_more),
    },
];

fn a_running_guest(fleet: &Fleet) -> Result<Before> {
    let guest = Some(running(fleet)?);
    Ok(Before {
        guest,
        ..Before::default()
    })
}

fn migrate_live(fleet: &Fleet) -> Result<Vec<String>> {
    let to = other_host(fleet)?;
    Ok(strings(&["vm", "migrate", VM, "--to", to]))
}

/// The guest never stops, whatever was killed, and runs in exactly one place.
fn the_guest_goes_on(fleet: &Fleet, before: &Before, _: Ended) -> Result<()> {
    shows_as(fleet, "running")?;
    let before = before.guest.as_ref().context("it ran")?;
    guest::goes_on(fleet, VM, before)?;
    clean(fleet)
}

/// The destination's QEMU is given the empty file, and its owner may not write it.
fn make_the_arriving_disk_unwritable(fleet: &Fleet) -> Result<()> {
    let to = other_host(fleet)?;
    fleet.exec(to, &["sh", "-c", LOCK_VOLUMES])?.ok().map(drop)
}

fn a_guest_that_stopped(fleet: &Fleet) -> Result<Before> {
    if fleet.place(VM).is_ok_and(|(state, _)| state == "stopped") {
        let guest = guest::last(fleet, VM)?;
        return Ok(Before {
            guest,
            ..Before::default()
        });
    }
    let guest = Some(running(fleet)?);
    stopped(fleet)?;
    Ok(Before {
        guest,
        ..Before::default()
    })
}

fn the_guest_boots_once_more(fleet: &Fleet, before: &Before) -> Result<()> {
    let before = before.guest.as_ref().context("it ran once")?;
    fleet.cli(&["vm", "start", VM])?.ok()?;
    let after = guest::booted(fleet, VM, before.boots + 1)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek,
        "{before:?} then {after:?}"
    );
    Ok(())
}
