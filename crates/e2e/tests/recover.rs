//! A host is lost, for good or for a time: its VMs are rebuilt on other hosts, and each VM never exists twice.

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{lan, residue, suite};
use serde_json::{Value, json};
use std::process::ExitCode;

const HOSTS: &[&str] = &["a", "b"];

fn main() -> ExitCode {
    suite::run(
        "e2e-recover",
        &["--hosts", "2"],
        &[
            (
                "a_vm_that_still_runs_on_a_silent_host_is_not_rebuilt",
                silent_but_running,
            ),
            (
                "a_vm_of_a_lost_host_is_rebuilt_and_unseals",
                lost_and_rebuilt,
            ),
            ("the_copy_on_the_host_that_comes_back_is_ended", back_again),
            (
                "without_its_disk_nothing_is_rebuilt_and_with_a_copy_it_is",
                from_a_copied_disk,
            ),
            ("what_cannot_be_recovered_is_refused", refused),
            (
                "a_host_that_is_installed_anew_joins_under_its_name_and_its_vm_comes_back",
                installed_anew,
            ),
        ],
    )
}

/// The cards of the VM that is rebuilt: one that is reached, one whose cable is out.
const CARDS: &[&str] = &[
    "--nic",
    "lan,mac=52:54:00:0a:0b:0c,filter=clean-traffic",
    "--nic",
    "lan,model=e1000e,link=down",
];

fn create(fleet: &Fleet, name: &str, pool: &str, more: &[&str]) -> Result<()> {
    let words = [
        "vm",
        "create",
        name,
        "--image",
        "lab-guest",
        "--memory",
        "512M",
        "--host",
        "a",
        "--pool",
        pool,
    ];
    fleet.cli(&[&words[..], more].concat())?.ok().map(drop)
}

/// What `vm show` says of the VM's cards, but for what its guest says of them.
fn cards(fleet: &Fleet, vm: &str) -> Result<Vec<Value>> {
    let vm = fleet.vm(vm)?;
    ensure!(
        vm["pending"] == json!([]) && vm["findings"] == json!([]),
        "{vm}"
    );
    let mut nics = vm["nics"].as_array().context("cards")?.clone();
    for nic in nics.iter_mut().filter_map(Value::as_object_mut) {
        nic.remove("addresses");
    }
    Ok(nics)
}

fn host_is(fleet: &Fleet, host: &str, state: &str) -> Result<()> {
    wait::until(&format!("host {host} to be {state}"), seconds(60), || {
        let shown = fleet.json(&["host", "show", host])?;
        Ok((shown["state"] == state).then_some(()))
    })
}

/// The controller has the TPM as it is.
fn escrow_is_current(fleet: &Fleet, vm: &str) -> Result<()> {
    wait::until("the controller's copy to be current", seconds(60), || {
        Ok((fleet.vm(vm)?["escrow"]["current"] == true).then_some(()))
    })
}

fn started(fleet: &Fleet, vm: &str, boots: u64) -> Result<Tick> {
    fleet.cli(&["vm", "start", vm])?.ok()?;
    guest::booted(fleet, vm, boots)
}

/// The agent is gone, the VM is not: its disk, which the other host shares, says so.
fn silent_but_running(fleet: &Fleet) -> Result<()> {
    create(fleet, "web", "shared", CARDS)?;
    let before = started(fleet, "web", 1)?;
    escrow_is_current(fleet, "web")?;
    fleet
        .cli(&["vm", "recover", "web", "--to", "b", "--yes"])?
        .refused(4, "VM_NOT_LOST")?;
    fleet.kill("a/agent")?;
    host_is(fleet, "a", "unreachable")?;
    fleet
        .cli(&["vm", "recover", "web", "--to", "b", "--yes"])?
        .refused(4, "VM_NOT_LOST")?;
    fleet.start("a/agent")?;
    host_is(fleet, "a", "online")?;
    guest::goes_on(fleet, "web", &before)?;
    residue::none_anywhere(fleet, HOSTS)
}

fn lost_and_rebuilt(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, "web", 1)?;
    let (nics, address) = (cards(fleet, "web")?, lan::address_of(fleet, "web")?);
    lan::reached(fleet, &address, true)?;
    escrow_is_current(fleet, "web")?;
    fleet.kill("a")?;
    host_is(fleet, "a", "unreachable")?;
    let asked = fleet.cli(&["vm", "recover", "web", "--to", "b"])?;
    ensure!(
        asked.code == 2 && asked.stderr.contains("must be powered off"),
        "not told what it takes: {asked:?}"
    );
    let said = fleet.json(&["vm", "recover", "web", "--to", "b", "--yes"])?;
    ensure!(said["version"].is_u64(), "of which version? {said}");
    ensure!(fleet.place("web")? == ("stopped".into(), "b".into()));
    let after = started(fleet, "web", before.boots + 1)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek,
        "{before:?} then {after:?}"
    );
    let rebuilt = cards(fleet, "web")?;
    ensure!(
        rebuilt == nics && nics.len() == 2,
        "{nics:?} became {rebuilt:?}"
    );
    lan::reached(fleet, &address, true)
}

/// Killed in the middle of it, too.
fn back_again(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, "web", 2)?;
    let holds = fleet.holds();
    for (point, victim) in [
        ("job.vm-supersede.end-copy.after", "controller"),
        ("job.vm-supersede.clean-up.before", "a/agent"),
    ] {
        holds.set(point)?;
        if point.contains("end-copy") {
            fleet.start("a")?;
        }
        wait::until(&format!("{point} to be reached"), seconds(120), || {
            Ok(holds.is_reached(point).then_some(()))
        })?;
        fleet.kill(victim)?;
        holds.release(point)?;
        if victim == "controller" {
            // the next point is to be held already when the job goes on
            holds.set("job.vm-supersede.clean-up.before")?;
        }
        fleet.start(victim)?;
    }
    wait::until(
        "host a to have no copy of it any more",
        seconds(120),
        || {
            let there = fleet.exec("a", &["virsh", "-q", "list", "--all", "--name"])?;
            Ok((there.code == 0 && there.stdout.trim().is_empty()).then_some(()))
        },
    )?;
    wait::until("hosts to hold what the fleet says", seconds(30), || {
        residue::none_anywhere(fleet, HOSTS).map(Some)
    })?;
    let kept = fleet.exec(
        "a",
        &[
            "sh",
            "-c",
            "find / -xdev -path '*history*' -name tpm2-00.permall | wc -l",
        ],
    )?;
    ensure!(
        kept.ok()?.stdout.trim() != "0",
        "the old copy's TPM was not kept"
    );
    guest::goes_on(fleet, "web", &before)?;
    fleet.cli(&["vm", "migrate", "web", "--to", "a"])?.ok()?;
    guest::goes_on(fleet, "web", &before)?;
    lan::reached(fleet, &lan::address_of(fleet, "web")?, true)?;
    fleet.cli(&["vm", "stop", "web", "--force"])?.ok()?;
    fleet.cli(&["vm", "delete", "web", "--yes"])?.ok().map(drop)
}

fn from_a_copied_disk(fleet: &Fleet) -> Result<()> {
    create(fleet, "local", "default", &[])?;
    let before = started(fleet, "local", 1)?;
    fleet.cli(&["vm", "stop", "local", "--force"])?.ok()?;
    escrow_is_current(fleet, "local")?;
    let disk = text(&fleet.vm("local")?["disks"][0], "path")?;
    let name = disk.rsplit('/').next().context("a file name")?;
    let backup = format!("/var/lib/fleetward-shared/backup-{name}");
    fleet.exec("a", &["cp", &disk, &backup])?.ok()?;
    fleet.kill("a")?;
    host_is(fleet, "a", "unreachable")?;
    fleet
        .cli(&["vm", "recover", "local", "--to", "b", "--yes"])?
        .refused(4, "DISK_MISSING")?;
    ensure!(
        fleet.place("local")?.1 == "a",
        "something was rebuilt without its disk"
    );
    fleet.exec("b", &["mv", &backup, &disk])?.ok()?;
    fleet
        .cli(&["vm", "recover", "local", "--to", "b", "--yes"])?
        .ok()?;
    let after = started(fleet, "local", before.boots + 1)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek,
        "{before:?} then {after:?}"
    );
    fleet.start("a")?;
    host_is(fleet, "a", "online")?;
    wait::until(
        "host a to have no copy of it any more",
        seconds(120),
        || {
            let there = fleet.exec("a", &["virsh", "-q", "list", "--all", "--name"])?;
            Ok((there.code == 0 && there.stdout.trim().is_empty()).then_some(()))
        },
    )?;
    // what is on the lost host's own disk is nobody's to delete
    fleet.exec("a", &["test", "-e", &disk])?.ok()?;
    guest::goes_on(fleet, "local", &after).map(drop)
}

fn refused(fleet: &Fleet) -> Result<()> {
    fleet
        .cli(&["vm", "recover", "nobody", "--to", "b", "--yes"])?
        .refused(5, "VM_NOT_FOUND")?;
    fleet
        .cli(&["vm", "recover", "local", "--to", "a", "--yes"])?
        .refused(4, "VM_NOT_LOST")?;
    fleet.kill("b/agent")?;
    host_is(fleet, "b", "unreachable")?;
    fleet
        .cli(&[
            "vm",
            "recover",
            "local",
            "--to",
            "a",
            "--version",
            "99",
            "--yes",
        ])?
        .refused(5, "TPM_VERSION_NOT_FOUND")?;
    fleet
        .cli(&["vm", "recover", "local", "--to", "nowhere", "--yes"])?
        .refused(5, "HOST_NOT_FOUND")?;
    fleet.start("b/agent")?;
    host_is(fleet, "b", "online")
}

/// Guardian, definitions, TPM states: all gone, and only the shared disk is left.
fn installed_anew(fleet: &Fleet) -> Result<()> {
    create(fleet, "home", "shared", &[])?;
    let before = started(fleet, "home", 1)?;
    fleet.cli(&["vm", "stop", "home", "--force"])?.ok()?;
    escrow_is_current(fleet, "home")?;
    fleet
        .cli(&["host", "token", "a", "--reinstalled"])?
        .refused(4, "ALREADY_JOINED")?;
    fleet.kill("a/agent")?;
    let wipe =
        "virsh -q undefine home --nvram --tpm && find /var/lib/fleetward -mindepth 1 -delete";
    fleet.exec("a", &["sh", "-c", wipe])?.ok()?;
    host_is(fleet, "a", "unreachable")?;
    fleet
        .cli(&["host", "token", "a"])?
        .refused(4, "ALREADY_JOINED")?;
    let token = fleet.json(&["host", "token", "a", "--reinstalled"])?;
    let agent = fleet.program("fleetward-agent");
    let agent = agent.to_str().context("a path")?;
    fleet
        .exec(
            "a",
            &[
                "sh",
                "-c",
                &format!("printf %s \"$0\" | {agent} join"),
                &text(&token, "token")?,
            ],
        )?
        .ok()?;
    fleet.start("a/agent")?;
    host_is(fleet, "a", "online")?;
    let shown = fleet.json(&["host", "show", "a"])?;
    ensure!(
        shown["warnings"]
            .to_string()
            .contains("fleetward vm recover home"),
        "nobody says that a VM is nowhere: {shown}"
    );
    // The new guardian cannot open it, and nobody who could is asked: another host takes it first.
    fleet
        .cli(&["vm", "recover", "home", "--to", "a", "--yes"])?
        .refused(4, "KEY_NOT_GRANTED")?;
    fleet
        .cli(&["vm", "recover", "home", "--to", "b", "--yes"])?
        .ok()?;
    let after = started(fleet, "home", before.boots + 1)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek,
        "{before:?} then {after:?}"
    );
    fleet.cli(&["vm", "migrate", "home", "--to", "a"])?.ok()?;
    guest::goes_on(fleet, "home", &after)?;
    fleet.cli(&["audit", "--verify"])?.ok().map(drop)
}
