//! A VM whose key is wrapped for as many guardians as a key protector takes: everything works as with two.

mod wrap;

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::residue;
use fleetward_e2e::suite::{self, Case};
use fleetward_e2e::wait::{self, seconds};
use std::process::ExitCode;

/// As many as a key protector takes.
const GUARDIANS: usize = 128;
const HOSTS: &[&str] = &["a", "b"];

fn main() -> ExitCode {
    if let Some(order) = wrap::Order::of_environment() {
        return wrap::carry_out(&order);
    }
    let mut cases: Vec<Case> = vec![
        ("a_vms_key_is_wrapped_for_128_guardians", wrapped),
        ("such_a_vm_is_migrated_live_and_back", migrated),
        ("such_a_vm_is_cloned_with_its_tpm", cloned),
        ("such_a_vm_has_a_whole_copy_at_the_controller", escrowed),
        ("such_a_vm_is_recovered_on_another_host", recovered),
    ];
    if std::env::var_os("FLEETWARD_E2E_SOAK").is_some() {
        cases.push(("such_a_vm_is_migrated_stopped", migrated_stopped));
    }
    suite::run("e2e-many", &["--hosts", "2"], &cases)
}

fn other(host: &str) -> &'static str {
    if host == "a" { "b" } else { "a" }
}

fn guardians(fleet: &Fleet, vm: &str) -> Result<usize> {
    let vm = fleet.vm(vm)?;
    Ok(vm["tpm"]["guardians"].as_array().map_or(0, Vec::len))
}

/// On that host, with all guardians.
fn is_whole(fleet: &Fleet, state: &str, host: &str) -> Result<()> {
    ensure!(fleet.place("web")? == (state.into(), host.into()));
    let count = guardians(fleet, "web")?;
    ensure!(count == GUARDIANS, "its key is wrapped for {count}");
    residue::none_anywhere(fleet, HOSTS)
}

fn wrapped(fleet: &Fleet) -> Result<()> {
    let words = [
        "vm",
        "create",
        "web",
        "--image",
        "lab-guest",
        "--memory",
        "512M",
        "--host",
        "a",
        "--pool",
        "shared",
        "--start",
    ];
    fleet.cli(&words)?.ok()?;
    guest::booted(fleet, "web", 1)?;
    let id = text(&fleet.vm("web")?, "id")?;
    wrap::Order {
        data: fleet.directory().join("controller"),
        host: "a".to_owned(),
        address: "10.77.0.11:7443".to_owned(),
        generation: fleet
            .directory()
            .join("nodes/a/disk/var/lib/fleetward/generations")
            .join(&id),
        vm: id,
        // a and b have it already
        more: GUARDIANS - 2,
    }
    .give(fleet)?;
    wait::until("the host to tell of all guardians", seconds(30), || {
        Ok((guardians(fleet, "web")? == GUARDIANS).then_some(()))
    })
}

fn migrated(fleet: &Fleet) -> Result<()> {
    let mut before = newest(fleet)?;
    for to in ["b", "a"] {
        fleet.cli(&["vm", "migrate", "web", "--to", to])?.ok()?;
        before = guest::goes_on(fleet, "web", &before)?;
        is_whole(fleet, "running", to)?;
    }
    Ok(())
}

fn migrated_stopped(fleet: &Fleet) -> Result<()> {
    let before = newest(fleet)?;
    let to = other(&fleet.place("web")?.1);
    fleet.cli(&["vm", "stop", "web"])?.ok()?;
    fleet
        .cli(&["vm", "migrate", "web", "--to", to, "--offline"])?
        .ok()?;
    is_whole(fleet, "stopped", to)?;
    fleet.cli(&["vm", "start", "web"])?.ok()?;
    unsealed(guest::booted(fleet, "web", before.boots + 1)?, &before)
}

fn cloned(fleet: &Fleet) -> Result<()> {
    let before = newest(fleet)?;
    let clone = ["vm", "clone", "web", "twin", "--tpm", "copy", "--full"];
    fleet.cli(&clone)?.ok()?;
    guest::goes_on(fleet, "web", &before)?;
    fleet.cli(&["vm", "start", "twin"])?.ok()?;
    unsealed(guest::booted(fleet, "twin", before.boots + 1)?, &before)?;
    fleet.cli(&["vm", "stop", "twin", "--force"])?.ok()?;
    fleet.cli(&["vm", "delete", "twin", "--yes"])?.ok()?;
    is_whole(fleet, "running", &fleet.place("web")?.1)
}

/// The controller has the TPM as it is.
fn escrowed(fleet: &Fleet) -> Result<()> {
    wait::until("the controller's copy to be current", seconds(60), || {
        Ok((fleet.vm("web")?["escrow"]["current"] == true).then_some(()))
    })
}

fn recovered(fleet: &Fleet) -> Result<()> {
    escrowed(fleet)?;
    let before = newest(fleet)?;
    let from = fleet.place("web")?.1;
    let to = other(&from);
    fleet.kill(&from)?;
    wait::until("its host to be unreachable", seconds(60), || {
        let shown = fleet.json(&["host", "show", &from])?;
        Ok((shown["state"] == "unreachable").then_some(()))
    })?;
    fleet
        .cli(&["vm", "recover", "web", "--to", to, "--yes"])?
        .ok()?;
    fleet.cli(&["vm", "start", "web"])?.ok()?;
    unsealed(guest::booted(fleet, "web", before.boots + 1)?, &before)?;
    fleet.start(&from)?;
    wait::until(
        "the copy on the lost host to be ended",
        seconds(120),
        || is_whole(fleet, "running", to).map(Some),
    )
}

fn newest(fleet: &Fleet) -> Result<Tick> {
    guest::last(fleet, "web")?.context("the guest has said nothing yet")
}

fn unsealed(now: Tick, before: &Tick) -> Result<()> {
    ensure!(
        now.unseal == "ok" && now.ek == before.ek,
        "{before:?} then {now:?}"
    );
    Ok(())
}
