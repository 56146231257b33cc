//! Jobs on a stopped VM's TPM: enable, disable, roll, restore.

use crate::chain::Chain;
use crate::scenario::{Before, Ended, Scenario};
use crate::subject::{CREATE, VM, clean, exists, gone, shows_as, stopped, strings, unseals};
use anyhow::{Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest;

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
        prepare: |fleet| {
            with_tpm(fleet, true)?;
            let (guest, key) = (None, key(fleet)?);
            Ok(Before { guest, key })
        },
        command: |_| Ok(strings(&["tpm", "roll", VM])),
        fault: None,
        check: |fleet, before, ended| {
            has_tpm(fleet, true)?;
            let same = key(fleet)? == before.key;
            ensure!(
                same == (ended == Ended::Undone),
                "the roll is {ended:?}, and the key {}",
                if same { "the old one" } else { "a new one" }
            );
            Ok(())
        },
        finally: Some(it_starts),
    },
    Scenario {
        claim: "tpm_unlock_survives_kill_9_everywhere",
        kind: "tpm-unlock",
        victims: &["a/agent"],
        prepare: |fleet| with_tpm(fleet, true),
        command: |_| Ok(strings(&["tpm", "unlock", VM])),
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

pub(crate) const CHAINS: &[Chain] = &[Chain {
    claim: "a_roll_that_stops_and_restarts_the_guest_survives_kill_9_everywhere",
    kind: "tpm-roll",
    victims: &["a/agent", "controller"],
    prepare: |fleet| {
        // a VM of its own: what its guest seals is opened at the end
        gone(fleet)?;
        fleet.cli(CREATE)?.ok()?;
        let guest = Some(unseals(fleet, None)?);
        let key = key(fleet)?;
        Ok(Before { guest, key })
    },
    provoke: |fleet| {
        let roll = ["tpm", "roll", VM, "--stop-and-restart"];
        fleet.start_job(&roll).map(drop)
    },
    check: |fleet, before| {
        ensure!(key(fleet)? != before.key, "the key is the old one");
        shows_as(fleet, "running")?;
        let Some(guest) = &before.guest else {
            return Ok(());
        };
        let after = guest::booted(fleet, VM, guest.boots + 1)?;
        ensure!(
            after.unseal == "ok" && after.ek == guest.ek,
            "{guest:?} then {after:?}"
        );
        // A restore of that very TPM, from the history, is the same machine too.
        stopped(fleet)?;
        fleet.cli(&["tpm", "disable", VM, "--yes"])?.ok()?;
        fleet.cli(&["tpm", "restore", VM])?.ok()?;
        unseals(fleet, Some(&after))?;
        clean(fleet)
    },
}];

/// Which key its TPM is encrypted under.
fn key(fleet: &Fleet) -> Result<String> {
    text(&fleet.vm(VM)?["tpm"], "key_id")
}

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
