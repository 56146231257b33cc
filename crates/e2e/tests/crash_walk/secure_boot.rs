//! Jobs on the certificates in a stopped VM's UEFI variables: enrol, restore.
//!
//! Only the agent is killed here, which writes definition and file; the controller is killed at every point of both by its own test
//! `crash`.

use crate::scenario::{Before, Ended, Scenario};
use crate::subject::{CREATE, VM, clean, gone, stopped, strings};
use anyhow::{Result, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::secure_boot;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        claim: "secure_boot_enroll_survives_kill_9_everywhere",
        kind: "secure-boot-enroll",
        victims: &["a/agent"],
        prepare: |fleet| {
            if !secure_boot::found(fleet, VM)?["former_kept"]
                .as_bool()
                .unwrap_or(false)
            {
                gone(fleet)?;
                fleet.cli(CREATE)?.ok()?;
                secure_boot::make_old(fleet, "a", VM)?;
            }
            stopped(fleet)?;
            fleet.cli(&["secure-boot", "restore", VM, "--yes"])?;
            trusts(fleet, false)?;
            Ok(Before::default())
        },
        command: |_| Ok(strings(&["secure-boot", "enroll", VM, "--yes"])),
        fault: None,
        check: |fleet, _, ended| trusts(fleet, ended == Ended::Done),
        finally: None,
    },
    Scenario {
        claim: "secure_boot_restore_survives_kill_9_everywhere",
        kind: "secure-boot-restore",
        victims: &["a/agent"],
        prepare: |fleet| {
            fleet.cli(&["secure-boot", "enroll", VM, "--yes"])?.ok()?;
            trusts(fleet, true)?;
            Ok(Before::default())
        },
        command: |_| Ok(strings(&["secure-boot", "restore", VM, "--yes"])),
        fault: None,
        check: |fleet, _, ended| trusts(fleet, ended != Ended::Done),
        finally: Some(|fleet, _| gone(fleet)),
    },
];

/// Whether it trusts the certificates of 2023, and what it trusted before is kept just then.
fn trusts(fleet: &Fleet, new: bool) -> Result<()> {
    let found = secure_boot::found(fleet, VM)?;
    let state = if new { "ok" } else { "update_available" };
    let kept = found["former_kept"].as_bool().unwrap_or(false);
    ensure!(found["state"] == state && kept == new, "{new}: {found}");
    clean(fleet)
}
