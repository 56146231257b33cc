//! Who can open the VM's key: granted, revoked, a host's guardian rotated.

use crate::scenario::{Before, Ended, Scenario};
use crate::subject::{VM, clean, exists, running, shows_as, stopped, strings};
use anyhow::{Result, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::guest;
use fleetward_e2e::wait::{self, seconds};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        claim: "a_revocation_survives_kill_9_everywhere",
        kind: "guardian-revoke",
        victims: &["controller", "a/agent"],
        prepare: |fleet| {
            on_a(fleet)?;
            fleet.cli(&["guardian", "grant", VM, "--to", "b"])?.ok()?;
            Ok(Before::default())
        },
        command: |_| Ok(strings(&["guardian", "revoke", VM, "--from", "b", "--yes"])),
        fault: None,
        check: |fleet, _, ended| {
            ensure!(ended == Ended::Done, "nothing undoes a revocation");
            recipients(fleet, 1)?;
            let due = fleet.json(&["check", VM])?;
            ensure!(!due.to_string().contains("ROLL_DUE"), "not rolled: {due}");
            clean(fleet)
        },
        finally: None,
    },
    Scenario {
        claim: "a_grant_survives_kill_9_everywhere",
        kind: "guardian-grant",
        victims: &["controller", "a/agent"],
        prepare: |fleet| {
            on_a(fleet)?;
            fleet
                .cli(&["guardian", "revoke", VM, "--from", "b", "--yes"])?
                .ok()?;
            Ok(Before::default())
        },
        command: |_| Ok(strings(&["guardian", "grant", VM, "--to", "b"])),
        fault: None,
        check: |fleet, _, ended| {
            ensure!(ended == Ended::Done, "nothing undoes a grant");
            recipients(fleet, 2)?;
            clean(fleet)
        },
        finally: None,
    },
    Scenario {
        claim: "a_rotation_survives_kill_9_everywhere",
        kind: "guardian-rotate",
        victims: &["controller", "a/agent"],
        prepare: |fleet| {
            // The guest that runs already is as good as one that has just booted, and booting takes most of the time.
            let goes_on = exists(fleet)? && fleet.place(VM)? == ("running".into(), "a".into());
            if !goes_on {
                on_a(fleet)?;
            }
            let guest = Some(running(fleet)?);
            Ok(Before { guest })
        },
        command: |_| Ok(strings(&["guardian", "rotate", "--host", "a"])),
        fault: None,
        check: |fleet, before, _| {
            shows_as(fleet, "running")?;
            recipients(fleet, 2)?;
            if let Some(guest) = &before.guest {
                guest::goes_on(fleet, VM, guest)?;
            }
            clean(fleet)
        },
        finally: None,
    },
];

/// It is stopped, on host a.
fn on_a(fleet: &Fleet) -> Result<()> {
    stopped(fleet)?;
    if fleet.place(VM)?.1 != "a" {
        fleet.cli(&["guardian", "grant", VM, "--to", "a"])?.ok()?;
        fleet
            .cli(&["vm", "migrate", VM, "--to", "a", "--offline"])?
            .ok()?;
    }
    Ok(())
}

/// So many guardians can open the key; the fleet may still be bringing it in order after a restart.
fn recipients(fleet: &Fleet, wanted: usize) -> Result<()> {
    wait::until(
        &format!("{wanted} guardians to open {VM}"),
        seconds(60),
        || {
            let vm = fleet.vm(VM)?;
            let found = vm["tpm"]["guardians"].as_array().map_or(0, Vec::len);
            Ok((found == wanted).then_some(()))
        },
    )
}
