//! Jobs on a VM's key: grant, revoke, rotate a host's guardian.

use crate::chain::Chain;
use crate::scenario::{Before, Ended, Scenario};
use crate::subject::{VM, clean, exists, host_is, running, shows_as, stopped, strings};
use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
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
            let key = own_guardian(fleet, "a")?;
            Ok(Before { guest, key })
        },
        command: |_| Ok(strings(&["guardian", "rotate", "--host", "a"])),
        fault: None,
        check: |fleet, before, _| {
            shows_as(fleet, "running")?;
            exchanged(fleet, &before.key)?;
            if let Some(guest) = &before.guest {
                guest::goes_on(fleet, VM, guest)?;
            }
            clean(fleet)
        },
        finally: None,
    },
];

pub(crate) const CHAINS: &[Chain] = &[Chain {
    claim: "what_is_left_of_a_rotation_survives_kill_9_everywhere",
    kind: "guardian-settle",
    victims: &["b/agent", "controller"],
    // A VM on a host that is away while the other one's guardian is exchanged.
    prepare: |fleet| {
        stopped(fleet)?;
        if fleet.place(VM)?.1 != "b" {
            fleet
                .cli(&["vm", "migrate", VM, "--to", "b", "--offline"])?
                .ok()?;
        }
        recipients(fleet, 2)?;
        let key = own_guardian(fleet, "a")?;
        fleet.kill("b/agent")?;
        host_is(fleet, "b", "unreachable")?;
        // VMs that could not be done make it exit with 3
        fleet.cli(&["guardian", "rotate", "--host", "a"])?;
        ensure!(own_guardian(fleet, "a")? != key, "nothing was rotated");
        ensure!(
            guardians(fleet)?.contains(&key),
            "a host that does not answer was settled"
        );
        Ok(Before { guest: None, key })
    },
    provoke: |fleet| fleet.start("b/agent"),
    check: |fleet, before| {
        exchanged(fleet, &before.key)?;
        clean(fleet)
    },
}];

fn guardians(fleet: &Fleet) -> Result<Vec<String>> {
    let vm = fleet.vm(VM)?;
    let ids = vm["tpm"]["guardians"].as_array().into_iter().flatten();
    Ok(ids
        .filter_map(|id| id.as_str().map(str::to_owned))
        .collect())
}

/// The guardian that a host has of its own now.
fn own_guardian(fleet: &Fleet, host: &str) -> Result<String> {
    let shown = fleet.json(&["host", "show", host])?;
    let all = shown["facts"]["guardians"].as_array().into_iter().flatten();
    let own = all.into_iter().find(|guardian| guardian["own"] == true);
    text(own.context("a host without a guardian")?, "id")
}

/// Both hosts' guardians open the key, and the one that host a had before does not.
fn exchanged(fleet: &Fleet, former: &str) -> Result<()> {
    wait::until(
        "the successor, and not the former guardian, to open the key",
        seconds(60),
        || {
            let (own, other) = (own_guardian(fleet, "a")?, own_guardian(fleet, "b")?);
            let found = guardians(fleet)?;
            let whole =
                own != former && found.len() == 2 && found.contains(&own) && found.contains(&other);
            Ok(whole.then_some(()))
        },
    )
}

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
