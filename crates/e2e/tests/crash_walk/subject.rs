//! The VM of a walk: its name, and how to bring it to the initial state of a scenario.

use anyhow::{Result, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::residue;
use fleetward_e2e::wait::{self, seconds};

/// The hosts of the lab.
pub(crate) const HOSTS: &[&str] = &["a", "b"];

/// Its name.
pub(crate) const VM: &str = "walk";

/// What creates it, stopped, on host a.
pub(crate) const CREATE: &[&str] = &[
    "vm",
    "create",
    VM,
    "--image",
    "lab-guest",
    "--memory",
    "512M",
    "--host",
    "a",
];

/// Makes a host's volumes, of which all are this VM's, unreadable even to their owner.
pub(crate) const LOCK_VOLUMES: &str = "chmod 000 /var/lib/fleetward/volumes/*";

pub(crate) fn exists(fleet: &Fleet) -> Result<bool> {
    let list = fleet.json(&["vm", "list"])?;
    Ok(list
        .as_array()
        .into_iter()
        .flatten()
        .any(|vm| vm["name"] == VM))
}

/// There is no such VM.
pub(crate) fn gone(fleet: &Fleet) -> Result<()> {
    if exists(fleet)? {
        fleet.cli(&["vm", "stop", VM, "--force"])?.ok()?;
        fleet.cli(&["vm", "delete", VM, "--yes"])?.ok()?;
    }
    Ok(())
}

/// It exists and is off.
pub(crate) fn stopped(fleet: &Fleet) -> Result<()> {
    if !exists(fleet)? {
        fleet.cli(CREATE)?.ok()?;
    }
    fleet.cli(&["vm", "stop", VM, "--force"])?.ok().map(drop)
}

/// It runs, and the guest has just said so.
pub(crate) fn running(fleet: &Fleet) -> Result<Tick> {
    if !exists(fleet)? {
        fleet.cli(CREATE)?.ok()?;
    }
    // The newest line may be of an earlier boot, or of an earlier VM of that name.
    let stale = guest::last(fleet, VM)?;
    fleet.cli(&["vm", "start", VM])?.ok()?;
    wait::until("the guest's next line", guest::BOOT, || {
        Ok(guest::last(fleet, VM)?.filter(|tick| Some(tick) != stale.as_ref()))
    })
}

/// Starts it; the guest boots once more, opens what it has sealed, and has the EK that it had `before`.
pub(crate) fn unseals(fleet: &Fleet, before: Option<&Tick>) -> Result<Tick> {
    unseals_in(fleet, VM, before)
}

/// The same of another VM.
pub(crate) fn unseals_in(fleet: &Fleet, vm: &str, before: Option<&Tick>) -> Result<Tick> {
    // The newest line may be of an earlier VM of that name, which has nothing to do with this one's boots.
    let stale = guest::last(fleet, vm)?;
    fleet.cli(&["vm", "start", vm])?.ok()?;
    let after = match before {
        Some(before) => guest::booted(fleet, vm, before.boots + 1)?,
        None => wait::until("the guest's next line", guest::BOOT, || {
            Ok(guest::last(fleet, vm)?.filter(|tick| Some(tick) != stale.as_ref()))
        })?,
    };
    ensure!(after.unseal == "ok", "{vm} cannot unseal: {after:?}");
    if let Some(before) = before {
        ensure!(
            after.ek == before.ek,
            "{vm} has another EK: {before:?} then {after:?}"
        );
    }
    Ok(after)
}

pub(crate) fn host_is(fleet: &Fleet, host: &str, state: &str) -> Result<()> {
    wait::until(&format!("host {host} to be {state}"), seconds(60), || {
        let shown = fleet.json(&["host", "show", host])?;
        Ok((shown["state"] == state).then_some(()))
    })
}

/// Waits until it shows in that state.
pub(crate) fn shows_as(fleet: &Fleet, state: &str) -> Result<()> {
    wait::until(&format!("{VM} to be {state}"), seconds(10), || {
        Ok((fleet.place(VM)?.0 == state).then_some(()))
    })
}

/// The host that does not have it.
pub(crate) fn other_host(fleet: &Fleet) -> Result<&'static str> {
    let (_, host) = fleet.place(VM)?;
    Ok(if host == "a" { "b" } else { "a" })
}

/// Waits until no residue is left: clean-up after a restart of an agent may take a moment.
pub(crate) fn clean(fleet: &Fleet) -> Result<()> {
    wait::until(
        "hosts to hold exactly what the fleet says",
        seconds(20),
        || residue::none_anywhere(fleet, HOSTS).map(Some),
    )
}

pub(crate) fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
