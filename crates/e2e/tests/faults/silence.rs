//! Processes of a VM that are there and do not answer, or have died: its TPM's, and QEMU.

use crate::{FAST, HOSTS, ended, limit_speed, running, undone, unharmed};
use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::freezer::{Freezer, Frozen, Process};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, residue};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Not before bytes flow does QEMU at the destination listen.
fn bytes_flow(fleet: &Fleet, job: &str) -> Result<()> {
    wait::until("bytes to flow", seconds(30), || {
        let job = fleet.json(&["job", "show", job])?;
        let done = job["progress"]["done"].as_u64().unwrap_or_default();
        Ok((done > 0).then_some(()))
    })
}

/// The TPM's process hangs where the guest is to arrive: the guest pauses for the switch-over, and waits.
pub(super) fn stands_still(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    let swtpm = |signal: &str| {
        let kill = format!("kill -{signal} $(cat /run/libvirt/qemu/swtpm/*storm*.pid)");
        fleet.exec("b", &["sh", "-c", &kill])
    };
    limit_speed(fleet, "8")?;
    let job = fleet.start_job(&["vm", "migrate", "storm", "--to", "b"])?;
    bytes_flow(fleet, &job)?;
    swtpm("STOP")?.ok()?;
    let source =
        || Ok::<_, anyhow::Error>(fleet.exec("a", &["virsh", "domstate", "storm"])?.stdout);
    wait::until("the guest to pause", seconds(60), || {
        Ok(source()?.starts_with("paused").then_some(()))
    })?;
    wait::until("the guest to go on", seconds(60), || {
        Ok(source()?.starts_with("running").then_some(()))
    })?;
    // Not needed, as libvirt ends what does not answer after half a minute. It may be gone already.
    let _ = swtpm("CONT");
    let _ = limit_speed(fleet, FAST);
    let job = ended(fleet, &job)?;
    undone(fleet, &job, "MIGRATION_FAILED")?;
    let because = text(&job["failure"], "because")?;
    ensure!(because.contains("stood still"), "{because}");
    unharmed(fleet, &before)
}

/// Sends a signal to the TPM's process of storm, on host a.
fn signal_tpm(fleet: &Fleet, signal: &str) -> Result<()> {
    let kill = format!("kill -{signal} $(cat /run/libvirt/qemu/swtpm/*storm*.pid)");
    fleet.exec("a", &["sh", "-ec", &kill])?.ok().map(drop)
}

/// What `vm show` says of that process: `stopped`, `gone`, or nothing.
fn tpm_process_is(fleet: &Fleet, expected: Option<&str>) -> Result<()> {
    wait::until(
        &format!("the TPM's process to show as {expected:?}"),
        seconds(20),
        || {
            let vm = fleet.vm("storm")?;
            Ok((vm["tpm"]["process"]["state"].as_str() == expected).then_some(()))
        },
    )
}

/// The fix that a refused move names.
fn fix_of_refused_move(fleet: &Fleet) -> Result<String> {
    fleet
        .cli(&["vm", "migrate", "storm", "--to", "b", "--check"])?
        .refused(4, "TPM_NOT_ANSWERING")?;
    let said = fleet
        .cli(&["vm", "migrate", "storm", "--to", "b"])?
        .refused(4, "TPM_NOT_ANSWERING")?;
    let fix = said
        .stderr
        .lines()
        .find_map(|line| line.trim().strip_prefix("fix: "));
    Ok(fix.with_context(|| said.stderr.clone())?.to_owned())
}

/// The TPM's process is stopped where the guest runs: before it moves, and while it does.
pub(super) fn tpm_stopped(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    signal_tpm(fleet, "STOP")?;
    tpm_process_is(fleet, Some("stopped"))?;
    let fix = fix_of_refused_move(fleet)?;
    let command = fix
        .strip_prefix("on host a: ")
        .with_context(|| fix.clone())?;
    fleet.exec("a", &["sh", "-ec", command])?.ok()?;
    tpm_process_is(fleet, None)?;
    unharmed(fleet, &before)?;

    limit_speed(fleet, "8")?;
    let job = fleet.start_job(&["vm", "migrate", "storm", "--to", "b"])?;
    bytes_flow(fleet, &job)?;
    signal_tpm(fleet, "STOP")?;
    limit_speed(fleet, FAST)?;
    let job = ended(fleet, &job)?;
    undone(fleet, &job, "MIGRATION_FAILED")?;
    let because = text(&job["failure"], "because")?;
    ensure!(because.contains("was stopped on this host"), "{because}");
    tpm_process_is(fleet, None)?;
    unharmed(fleet, &before)
}

/// The TPM's process hangs at the switch-over where the guest runs: frozen, so that nothing can let it go on.
pub(super) fn tpm_silent(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    // At the destination there will be another.
    let swtpm = Process::swtpm(fleet, "storm")?;
    limit_speed(fleet, "8")?;
    let job = fleet.start_job(&["vm", "migrate", "storm", "--to", "b"])?;
    bytes_flow(fleet, &job)?;
    let frozen = swtpm.freeze()?;
    limit_speed(fleet, FAST)?;
    let source =
        || Ok::<_, anyhow::Error>(fleet.exec("a", &["virsh", "domstate", "storm"])?.stdout);
    wait::until("the guest to pause", seconds(60), || {
        Ok(source()?.starts_with("paused").then_some(()))
    })?;
    let begin = Instant::now();
    wait::until("the guest to go on", seconds(60), || {
        Ok(source()?.starts_with("running").then_some(()))
    })?;
    eprintln!("it stood still for {:.1} s", begin.elapsed().as_secs_f32());
    let job = ended(fleet, &job)?;
    undone(fleet, &job, "TPM_NOT_ANSWERING")?;
    let because = text(&job["failure"], "because")?;
    ensure!(because.contains("(swtpm, "), "{because}");
    // The guest asks its TPM again by itself.
    wait::until("a move to be refused", seconds(30), || {
        let said = fleet.cli(&["vm", "migrate", "storm", "--to", "b"])?;
        said.refused(4, "TPM_NOT_ANSWERING").map(Some)
    })?;
    frozen.thaw()?;
    unharmed(fleet, &before)?;
    fleet.cli(&["vm", "migrate", "storm", "--to", "b"])?.ok()?;
    unharmed(fleet, &before)
}

/// What is said of the QEMU of storm, which runs by what libvirt says.
fn finding_of_qemu(fleet: &Fleet) -> Result<Option<Value>> {
    let vm = fleet.vm("storm")?;
    ensure!(vm["state"] == "running", "{vm}");
    let mut all = vm["findings"].as_array().into_iter().flatten();
    Ok(all.find(|one| one["code"] == "QEMU_NOT_ANSWERING").cloned())
}

pub(super) fn qemu_stands_still(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    let on_a = |script: &str| {
        let script = format!("pid=$(cat /run/libvirt/qemu/storm.pid); {script}");
        fleet.exec("a", &["sh", "-ec", &script])?.ok()
    };
    let named = |expected: bool| {
        wait::until("what QEMU does to be said", seconds(40), || {
            let found = finding_of_qemu(fleet)?;
            Ok((found.is_some() == expected).then_some(found))
        })
    };
    on_a("kill -STOP $pid")?;
    let found = named(true)?.unwrap_or_default();
    fleet
        .cli(&["vm", "migrate", "storm", "--to", "b"])?
        .refused(4, "QEMU_NOT_ANSWERING")?;
    let fix = text(&found, "fix")?;
    let fix = fix
        .strip_prefix("on host a: ")
        .with_context(|| fix.clone())?;
    on_a(fix)?;
    named(false)?;
    unharmed(fleet, &before)
}

/// How long a command may take that a VM's QEMU would have to answer, and does not.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);

/// The same, for what one wants of such a VM, and of the others.
pub(super) fn qemu_stopped(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    let stop = "kill -STOP $(cat /run/libvirt/qemu/storm.pid)";
    fleet.exec("a", &["sh", "-ec", stop])?.ok()?;
    wait::until("its QEMU to be named", seconds(40), || {
        finding_of_qemu(fleet)
    })?;
    for words in [
        "vm stop storm",
        "vm restart storm",
        "vm pause storm",
        "vm migrate storm --to b",
        "vm screenshot storm --out /tmp/storm.png",
        "vm keys storm ctrl-alt-del",
        "vm clone storm copy",
        "tpm roll storm --stop-and-restart",
    ] {
        let command: Vec<&str> = words.split(' ').collect();
        let begin = Instant::now();
        let said = fleet.cli(&command)?;
        let took = begin.elapsed();
        said.refused(4, "QEMU_NOT_ANSWERING").context(words)?;
        ensure!(took < REFUSED_WITHIN, "{words} was refused after {took:?}");
    }
    let begin = Instant::now();
    another_vm(fleet, || Ok(()))?;
    eprintln!("another VM took {:.1} s", begin.elapsed().as_secs_f32());
    is_online(fleet)?;
    let begin = Instant::now();
    fleet.cli(&["vm", "stop", "storm", "--force"])?.ok()?;
    let took = begin.elapsed();
    ensure!(took < seconds(60), "its power was cut after {took:?}");
    ensure!(fleet.place("storm")?.0 == "stopped");
    fleet.cli(&["vm", "start", "storm"])?.ok()?;
    let after = guest::booted(fleet, "storm", before.boots + 1)?;
    ensure!(after.unseal == "ok" && after.ek == before.ek, "{after:?}");
    residue::none_anywhere(fleet, HOSTS)
}

/// Its storage is gone, and somebody asks libvirt about it: libvirt waits for its QEMU, and all who ask wait for libvirt.
pub(super) fn qemu_hangs(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    let whole = |vm: &Value| {
        let disk = vm["disks"][0]["path"].clone();
        let parts = ["nics", "drives", "firmware", "tpm"].map(|part| vm[part].clone());
        (disk, parts)
    };
    let vm = fleet.vm("storm")?;
    let frozen = Process::qemu(fleet, "storm")?.freeze()?;
    let ask = "virsh dommemstat storm > /dev/null 2>&1 &";
    fleet.exec("a", &["sh", "-c", ask])?.ok()?;
    let begin = Instant::now();
    let found = wait::until("the hang to be said", seconds(30), || {
        is_online(fleet)?;
        finding_of_qemu(fleet)
    })?;
    eprintln!("said after {:.1} s", begin.elapsed().as_secs_f32());
    let what = text(&found, "what")?;
    let why = match frozen.freezer {
        Freezer::First => "waits in the kernel",
        Freezer::Second => "does not answer libvirt",
    };
    ensure!(
        what.contains(why) && what.contains("as they were at"),
        "{what}"
    );
    let now = fleet.vm("storm")?;
    ensure!(whole(&now) == whole(&vm), "{vm} is shown as {now}");
    fleet
        .cli(&["vm", "migrate", "storm", "--to", "b"])?
        .refused(4, "QEMU_NOT_ANSWERING")?;
    is_online(fleet)?;
    if std::env::var_os("FLEETWARD_E2E_SOAK").is_some() {
        return power_is_cut(fleet, frozen, &before);
    }
    frozen.thaw()?;
    wait::until("nothing to be said", seconds(30), || {
        Ok(finding_of_qemu(fleet)?.is_none().then_some(()))
    })?;
    unharmed(fleet, &before)
}

/// The host still reports: a hung VM is not taken for a lost host.
fn is_online(fleet: &Fleet) -> Result<()> {
    let host = fleet.json(&["host", "show", "a"])?;
    ensure!(host["state"] == "online", "{host}");
    Ok(())
}

/// Another VM of the host comes and goes as if nothing were.
fn another_vm(fleet: &Fleet, meanwhile: impl Fn() -> Result<()>) -> Result<()> {
    let create = "vm create other --image lab-guest --memory 512M --host a --start";
    let create: Vec<&str> = create.split(' ').collect();
    fleet.cli(&create)?.ok()?;
    meanwhile()?;
    fleet.cli(&["vm", "stop", "other", "--force"])?.ok()?;
    fleet
        .cli(&["vm", "delete", "other", "--yes"])?
        .ok()
        .map(drop)
}

/// A process in the kernel does not end. It has ended by itself when it leaves the kernel.
fn power_is_cut(fleet: &Fleet, frozen: Frozen, before: &guest::Tick) -> Result<()> {
    let begin = Instant::now();
    another_vm(fleet, || guest::booted(fleet, "other", 1).map(drop))?;
    eprintln!("another VM took {:.1} s", begin.elapsed().as_secs_f32());
    let begin = Instant::now();
    let said = fleet.cli(&["vm", "stop", "storm", "--force"])?;
    let took = begin.elapsed();
    match frozen.freezer {
        Freezer::First => said.clone().refused(4, "QEMU_NOT_ANSWERING")?,
        Freezer::Second => said.clone().ok()?,
    };
    ensure!(took < seconds(90), "it took {took:?}: {said:?}");
    is_online(fleet)?;
    frozen.thaw()?;
    wait::until("its power to be cut", seconds(60), || {
        Ok((fleet.place("storm")?.0 == "stopped").then_some(()))
    })?;
    fleet.cli(&["vm", "start", "storm"])?.ok()?;
    let after = guest::booted(fleet, "storm", before.boots + 1)?;
    ensure!(after.unseal == "ok" && after.ek == before.ek, "{after:?}");
    residue::none_anywhere(fleet, HOSTS)
}

pub(super) fn tpm_died(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    signal_tpm(fleet, "KILL")?;
    tpm_process_is(fleet, Some("gone"))?;
    let fix = fix_of_refused_move(fleet)?;
    ensure!(fix == "fleetward vm restart storm --force", "{fix}");
    fleet.cli(&["vm", "restart", "storm", "--force"])?.ok()?;
    let after = guest::booted(fleet, "storm", before.boots + 1)?;
    ensure!(after.unseal == "ok" && after.ek == before.ek, "{after:?}");
    tpm_process_is(fleet, None)?;
    residue::none_anywhere(fleet, HOSTS)
}
