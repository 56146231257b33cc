//! A stopped VM's TPM: switched on and off, its key replaced, brought back.

use crate::scenario::{Before, Ended, Scenario};
use crate::subject::{CREATE, VM, clean, exists, gone, stopped, strings};
use anyhow::{Result, ensure};
use fleetward_e2e::fleet::Fleet;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        claim: "tpm_enable_survives_kill_9_everywhere",
        kind: "tpm-enable",
        victims: &["controller", "a/agent"],
        prepare: |fleet| with_tpm(fleet, false),
        command: |_| Ok(strings(&["tpm", "enable", VM, "--yes"])),
        fault: None,
        check: |fleet, _, ended| has_tpm(fleet, ended == Ended::Done),
        finally: Some(it_starts),
    },
    Scenario {
        claim: "tpm_disable_survives_kill_9_everywhere",
        kind: "tpm-disable",
        victims: &["controller", "a/agent"],
        prepare: |fleet| with_tpm(fleet, true),
        command: |_| Ok(strings(&["tpm", "disable", VM, "--yes"])),
        fault: None,
        check: |fleet, _, ended| has_tpm(fleet, ended != Ended::Done),
        finally: Some(it_starts),
    },
    Scenario {
        claim: "tpm_roll_survives_kill_9_everywhere",
        kind: "tpm-roll",
        victims: &["controller", "a/agent"],
        prepare: |fleet| with_tpm(fleet, true),
        command: |_| Ok(strings(&["tpm", "roll", VM])),
        fault: None,
        check: |fleet, _, _| has_tpm(fleet, true),
        finally: Some(it_starts),
    },
    Scenario {
        claim: "tpm_restore_survives_kill_9_everywhere",
        kind: "tpm-restore",
        victims: &["controller", "a/agent"],
        prepare: |fleet| {
            with_tpm(fleet, true)?;
            with_tpm(fleet, false)
        },
        command: |_| Ok(strings(&["tpm", "restore", VM])),
        fault: None,
        check: |fleet, _, ended| has_tpm(fleet, ended == Ended::Done),
        finally: Some(it_starts),
    },
];

/// Stopped on host a, with a TPM or without.
fn with_tpm(fleet: &Fleet, tpm: bool) -> Result<Before> {
    if exists(fleet)? && fleet.place(VM)?.1 != "a" {
        gone(fleet)?;
    }
    if !exists(fleet)? {
        fleet.cli(CREATE)?.ok()?;
    }
    stopped(fleet)?;
    let change = if tpm { "enable" } else { "disable" };
    fleet.cli(&["tpm", change, VM, "--yes"])?.ok()?;
    Ok(Before::default())
}

fn has_tpm(fleet: &Fleet, wanted: bool) -> Result<()> {
    let vm = fleet.json(&["vm", "show", VM])?;
    let (enabled, present) = (&vm["tpm"]["enabled"], &vm["tpm"]["state_present"]);
    ensure!(
        *enabled == wanted && *present == wanted,
        "its TPM is enabled: {enabled}, there: {present}; both should be {wanted}"
    );
    clean(fleet)
}

fn it_starts(fleet: &Fleet, _: &Before) -> Result<()> {
    fleet.cli(&["vm", "start", VM])?.ok()?;
    stopped(fleet)
}
