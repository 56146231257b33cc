//! A host loses its power and comes back, and so do its VMs; guests are stopped, paused, restarted and copied with the help of
//! their agents.

use anyhow::{Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest;
use fleetward_e2e::suite;
use fleetward_e2e::wait::{self, seconds};
use serde_json::Value;
use std::process::ExitCode;

/// VMs at once that come back, as agent.toml says by default.
const PARALLEL: usize = 2;

fn main() -> ExitCode {
    suite::run(
        "e2e-power",
        &["--hosts", "2"],
        &[
            (
                "a_guest_agent_is_heard_and_shuts_its_guest_down",
                through_the_agent,
            ),
            ("a_running_vm_is_copied_with_its_disks_in_order", copied),
            ("a_vm_is_paused_resumed_and_restarted", paused_and_restarted),
            ("a_guest_that_crashes_is_started_again", crashed),
            (
                "after_a_power_cut_all_come_back_but_what_was_rebuilt_elsewhere",
                comes_back,
            ),
            (
                "without_a_controller_the_configured_rule_holds",
                without_a_controller,
            ),
        ],
    )
}

/// VMs that come back with host a.
fn number() -> usize {
    match std::env::var_os("FLEETWARD_E2E_SOAK") {
        Some(_) => 10,
        None => 3,
    }
}

fn name(n: usize) -> String {
    format!("back-{n}")
}

fn create(fleet: &Fleet, name: &str, more: &[&str]) -> Result<()> {
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
    ];
    fleet.cli(&[&words, more].concat())?.ok().map(drop)
}

/// The guest's agent has been heard.
fn heard(fleet: &Fleet, vm: &str) -> Result<Value> {
    wait::until(&format!("the agent of {vm}"), seconds(60), || {
        let guest = fleet.vm(vm)?["guest"].clone();
        Ok((guest["agent"] == true).then_some(guest))
    })
}

fn said(fleet: &Fleet, vm: &str, note: &str) -> Result<usize> {
    let said = fleet.lab("serial", &[vm])?.ok()?;
    Ok(said
        .stdout
        .lines()
        .filter(|line| line.contains(note))
        .count())
}

fn through_the_agent(fleet: &Fleet) -> Result<()> {
    create(fleet, "one", &["--start"])?;
    guest::booted(fleet, "one", 1)?;
    let guest = heard(fleet, "one")?;
    ensure!(
        guest["host_name"] == "lab-guest" && guest["os"] == "Fleetward lab guest",
        "{guest}"
    );
    let stopped = fleet.json(&["vm", "stop", "one"])?;
    let message = text(&stopped["results"][0], "message")?;
    ensure!(message == "stopped, by its guest agent", "{message}");
    ensure!(said(fleet, "one", "guest agent, going down")? == 1);
    ensure!(
        fleet.vm("one")?["guest"].is_null(),
        "a stopped VM has no guest"
    );
    fleet.cli(&["vm", "start", "one"])?.ok()?;
    let again = guest::booted(fleet, "one", 2)?;
    ensure!(again.unseal == "ok", "{again:?}");
    Ok(())
}

fn copied(fleet: &Fleet) -> Result<()> {
    heard(fleet, "one")?;
    let before = guest::booted(fleet, "one", 2)?;
    fleet.cli(&["vm", "clone", "one", "copy"])?.ok()?;
    guest::goes_on(fleet, "one", &before)?;
    for note in ["disks frozen", "disks thawed"] {
        let times = said(fleet, "one", note)?;
        ensure!(times == 1, "{note} {times} times");
    }
    fleet
        .cli(&["vm", "delete", "copy", "--yes"])?
        .ok()
        .map(drop)
}

fn paused_and_restarted(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, "one", 2)?;
    fleet.cli(&["vm", "pause", "one"])?.ok()?;
    ensure!(fleet.place("one")?.0 == "paused");
    fleet.cli(&["vm", "pause", "one"])?.ok()?;
    fleet
        .cli(&["vm", "restart", "one"])?
        .refused(4, "VM_STATE_WRONG")?;
    fleet.cli(&["vm", "resume", "one"])?.ok()?;
    guest::goes_on(fleet, "one", &before)?;
    let words = ["vm", "set", "one", "--memory", "600M"];
    fleet.cli(&words)?.ok()?;
    ensure!(fleet.vm("one")?["pending"] != serde_json::json!([]));
    fleet.cli(&["vm", "restart", "one"])?.ok()?;
    let after = guest::booted(fleet, "one", 3)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek,
        "{before:?} then {after:?}"
    );
    ensure!(fleet.vm("one")?["pending"] == serde_json::json!([]));
    Ok(())
}

fn crashed(fleet: &Fleet) -> Result<()> {
    let words = ["vm", "set", "one", "--restart-on-crash", "on"];
    fleet.cli(&words)?.ok()?;
    let kill = "kill -9 $(cat /run/libvirt/qemu/one.pid)";
    fleet.exec("a", &["sh", "-c", kill])?.ok()?;
    let after = guest::booted(fleet, "one", 4)?;
    ensure!(after.unseal == "ok", "{after:?}");
    let shown = fleet.vm("one")?;
    ensure!(shown["crashes"]["count"] == 1, "{shown}");
    fleet.cli(&["vm", "stop", "one", "--force"])?.ok()?;
    fleet.cli(&["vm", "delete", "one", "--yes"])?.ok().map(drop)
}

fn host_is(fleet: &Fleet, state: &str) -> Result<()> {
    wait::until(&format!("host a to be {state}"), seconds(60), || {
        Ok((fleet.json(&["host", "show", "a"])?["state"] == state).then_some(()))
    })
}

fn all_booted(fleet: &Fleet, boots: u64) -> Result<()> {
    for n in 1..=number() {
        let tick = guest::booted(fleet, &name(n), boots)?;
        ensure!(tick.unseal == "ok", "{}: {tick:?}", name(n));
    }
    Ok(())
}

fn comes_back(fleet: &Fleet) -> Result<()> {
    for n in 1..=number() {
        create(fleet, &name(n), &["--autostart", "--start"])?;
    }
    create(fleet, "moved", &["--autostart", "--pool", "shared"])?;
    create(fleet, "plain", &[])?;
    all_booted(fleet, 1)?;
    wait::until("the controller's copy of moved", seconds(60), || {
        Ok((fleet.vm("moved")?["escrow"]["current"] == true).then_some(()))
    })?;
    fleet.kill("a")?;
    host_is(fleet, "unreachable")?;
    fleet
        .cli(&["vm", "recover", "moved", "--to", "b", "--yes"])?
        .ok()?;
    fleet.start("a")?;
    all_booted(fleet, 2)?;
    wait::until("host a to tell of its boot", seconds(60), || {
        let boot = fleet.json(&["host", "show", "a"])?["facts"]["boot"].clone();
        let off = boot["off"].as_array().map_or(&[][..], Vec::as_slice);
        let why = off.iter().find(|off| off["vm"] == "moved");
        let told = why.is_some_and(|off| {
            off["because"]
                .to_string()
                .contains("rebuilt on another host")
        });
        ensure!(told && boot["started"] == number(), "{boot}");
        Ok(Some(()))
    })?;
    ensure!(fleet.place("moved")? == ("stopped".into(), "b".into()));
    ensure!(fleet.place("plain")? == ("stopped".into(), "a".into()));
    throttled(fleet)
}

/// Never more of the jobs at once than agent.toml says.
fn throttled(fleet: &Fleet) -> Result<()> {
    let jobs = fleet.json(&["job", "list", "--kind", "vm-start"])?;
    let jobs: Vec<&Value> = jobs.as_array().into_iter().flatten().collect();
    let mut times = Vec::new();
    for job in jobs.iter().filter(|job| job["created_by"] == "autostart") {
        times.push((text(job, "created")?, text(job, "ended")?));
    }
    ensure!(times.len() == number(), "{} jobs", times.len());
    for (at, _) in &times {
        let at_once = times.iter().filter(|(from, to)| from <= at && at < to);
        let at_once = at_once.count();
        ensure!(at_once <= PARALLEL, "{at_once} at once: {times:?}");
    }
    Ok(())
}

fn configure(fleet: &Fleet, line: &str) -> Result<()> {
    let edit = format!("sed -i '1i {line}' /etc/fleetward/agent.toml");
    fleet.exec("a", &["sh", "-c", &edit])?.ok().map(drop)
}

/// Names of domains that run on host a.
fn running(fleet: &Fleet) -> Result<Vec<String>> {
    let said = fleet.exec("a", &["virsh", "-q", "list", "--name"])?.ok()?;
    let lines = said.stdout.lines().map(str::trim);
    Ok(lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect())
}

fn without_a_controller(fleet: &Fleet) -> Result<()> {
    configure(fleet, "autostart_patience = 3")?;
    fleet.kill("controller")?;
    fleet.kill("a")?;
    fleet.start("a")?;
    wait::until("the agent to say that it waits", seconds(60), || {
        let log = fleet.agent_log("a")?;
        Ok(log
            .contains("the controller does not answer, so VMs")
            .then_some(()))
    })?;
    let left = running(fleet)?;
    ensure!(left.is_empty(), "{left:?}");
    // Comes later, and so do the VMs.
    fleet.start("controller")?;
    wait::until("all to run", seconds(120), || {
        Ok((running(fleet)?.len() == number()).then_some(()))
    })?;
    fleet.kill("controller")?;
    configure(fleet, "autostart_without_controller = true")?;
    fleet.kill("a")?;
    fleet.start("a")?;
    wait::until("all to run without a controller", seconds(120), || {
        Ok((running(fleet)?.len() == number()).then_some(()))
    })?;
    fleet.start("controller")?;
    for n in 1..=number() {
        wait::until(&format!("{} to be shown", name(n)), seconds(60), || {
            Ok((fleet.place(&name(n))? == ("running".into(), "a".into())).then_some(()))
        })?;
    }
    // At least the second boot; those in between may have been too short to count.
    for n in 1..=number() {
        let stale = guest::last(fleet, &name(n))?;
        let tick = wait::until("a line of this boot", guest::BOOT, || {
            Ok(guest::last(fleet, &name(n))?.filter(|tick| Some(tick) != stale.as_ref()))
        })?;
        ensure!(tick.unseal == "ok", "{tick:?}");
    }
    fleet.cli(&["audit", "--verify"])?.ok().map(drop)
}
