//! Faults during jobs: the link between hosts, libvirtd, a full disk, a dead host.

use anyhow::{Context, Result, bail, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::freezer::{Freezer, Frozen, Process};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, residue, suite};
use serde_json::Value;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const HOSTS: &[&str] = &["a", "b", "c"];

fn main() -> ExitCode {
    suite::run(
        "e2e-faults",
        &["--hosts", "3", "--volume-size", "c=48M", "--movable-clock"],
        &[
            (
                "a_link_cut_during_migration_leaves_the_vm_where_it_was",
                link_cut,
            ),
            (
                "libvirtd_killed_at_the_source_during_migration_loses_no_vm",
                libvirtd_at_source,
            ),
            (
                "libvirtd_killed_at_the_destination_during_migration_loses_no_vm",
                libvirtd_at_destination,
            ),
            (
                "a_full_disk_at_the_destination_is_refused_and_nothing_is_left",
                disk_full,
            ),
            (
                "a_disk_that_fills_up_during_the_copy_undoes_the_migration",
                disk_fills_up,
            ),
            (
                "a_cancelled_migration_leaves_the_vm_where_it_was_and_its_sockets_were_for_nobody_else",
                cancel,
            ),
            (
                "a_guest_that_stands_still_at_the_switch_over_goes_on_by_itself",
                stands_still,
            ),
            (
                "a_tpm_that_was_stopped_is_named_and_no_guest_stands_still_for_it",
                tpm_stopped,
            ),
            (
                "a_tpm_that_runs_and_does_not_answer_is_named_and_the_guest_goes_on_where_it_was",
                tpm_silent,
            ),
            (
                "a_tpm_that_has_died_is_named_and_comes_back_with_a_restart",
                tpm_died,
            ),
            (
                "a_qemu_that_was_stopped_is_named_and_the_fix_lets_it_go_on",
                qemu_stands_still,
            ),
            (
                "commands_for_a_vm_whose_qemu_was_stopped_end_in_time_and_hold_up_no_other_vm",
                qemu_stopped,
            ),
            (
                "a_qemu_that_hangs_in_the_kernel_is_named_and_holds_up_nothing_else",
                qemu_hangs,
            ),
            (
                "saved_memory_is_gone_on_with_and_nothing_changes_under_it",
                saved,
            ),
            ("a_dead_host_shows_as_unreachable_and_comes_back", dead_host),
            (
                "a_host_whose_clock_is_in_another_decade_is_named_and_nothing_of_its_vms_changes",
                host_of_another_decade,
            ),
            (
                "a_destination_that_dies_in_a_live_migration_holds_nothing_up_and_owes_its_remains_a_month_later",
                destination_dies,
            ),
        ],
    )
}

/// The running VM of these cases, on host a.
fn running(fleet: &Fleet) -> Result<guest::Tick> {
    if fleet.vm("storm").is_err() {
        fleet
            .cli(&[
                "vm",
                "create",
                "storm",
                "--image",
                "lab-guest",
                "--memory",
                "512M",
                "--host",
                "a",
                "--start",
            ])?
            .ok()?;
    }
    guest::booted(fleet, "storm", 1)?;
    if fleet.place("storm")?.1 != "a" {
        fleet.cli(&["vm", "migrate", "storm", "--to", "a"])?.ok()?;
    }
    guest::booted(fleet, "storm", 1)
}

/// The job as it is shown after its end.
fn ended(fleet: &Fleet, job: &str) -> Result<Value> {
    wait::until(&format!("job {job} to end"), seconds(120), || {
        let job = fleet.json(&["job", "show", job])?;
        let state = text(&job, "state")?;
        Ok(matches!(state.as_str(), "done" | "undone" | "failed").then_some(job))
    })
}

/// The job was taken back for that reason, and the VM is where it was.
fn undone(fleet: &Fleet, job: &Value, code: &str) -> Result<()> {
    ensure!(
        job["state"] == "undone" && job["failure"]["code"] == code,
        "not undone with {code}: {job}"
    );
    ensure!(fleet.place("storm")?.1 == "a", "undone, and not on host a");
    Ok(())
}

/// The guest goes on in exactly one place, and nothing is left anywhere.
fn unharmed(fleet: &Fleet, before: &guest::Tick) -> Result<()> {
    wait::until("storm to show as running", seconds(20), || {
        Ok((fleet.place("storm")?.0 == "running").then_some(()))
    })?;
    guest::goes_on(fleet, "storm", before)?;
    wait::until("nothing to be left over", seconds(20), || {
        residue::none_anywhere(fleet, HOSTS).map(Some)
    })
}

/// Mebibytes a second: disk and memory of the guest take at least half a minute.
const SLOW: &str = "1";
/// As good as no limit.
const FAST: &str = "10000";

fn limit_speed(fleet: &Fleet, speed: &str) -> Result<()> {
    let limit = ["virsh", "migrate-setspeed", "storm", speed];
    fleet.exec("a", &limit)?.ok().map(drop)
}

/// Starts a migration from a to `to`, and does `harm` while it is under way for certain; the job after its end.
fn during_migration(fleet: &Fleet, to: &str, harm: impl Fn(&str) -> Result<()>) -> Result<Value> {
    limit_speed(fleet, SLOW)?;
    let job = fleet.start_job(&["vm", "migrate", "storm", "--to", to])?;
    let harmed = wait::until("the destination to receive", seconds(30), || {
        let list = fleet.exec(to, &["virsh", "-q", "list"])?;
        Ok(list.stdout.contains("storm").then_some(()))
    })
    .and_then(|()| harm(&job));
    // Where the job goes on, it need not go on slowly. The VM, or the host's libvirtd, may be away by now.
    let _ = limit_speed(fleet, FAST);
    harmed?;
    let job = ended(fleet, &job)?;
    // libvirt keeps the limit for the next one, and may have been too busy with this one to change it.
    if fleet.place("storm")?.1 == "a" {
        wait::until("the limit to be lifted", seconds(30), || {
            Ok(limit_speed(fleet, FAST).ok())
        })?;
    }
    Ok(job)
}

fn link_cut(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    // The controller still reaches both hosts; the source finds out by itself and the VM goes on there.
    let job = during_migration(fleet, "b", |_| {
        let cut = fleet.lab("partition", &["a", "--from", "b"])?;
        cut.ok().map(drop)
    });
    fleet.lab("heal", &["a"])?.ok()?;
    undone(fleet, &job?, "LINK_LOST")?;
    unharmed(fleet, &before)?;
    fleet.cli(&["vm", "migrate", "storm", "--to", "b"])?.ok()?;
    unharmed(fleet, &before)
}

fn libvirtd_at_source(fleet: &Fleet) -> Result<()> {
    libvirtd_killed(fleet, "a/libvirtd")
}

fn libvirtd_at_destination(fleet: &Fleet) -> Result<()> {
    libvirtd_killed(fleet, "b/libvirtd")
}

fn libvirtd_killed(fleet: &Fleet, victim: &str) -> Result<()> {
    let before = running(fleet)?;
    let job = during_migration(fleet, "b", |_| {
        fleet.kill(victim)?;
        fleet.start(victim)
    })?;
    // Tried again until it succeeds, or taken back: either is right, and must be true.
    let host = match text(&job, "state")?.as_str() {
        "done" => "b",
        "undone" => "a",
        other => bail!("the job is {other}: {job}"),
    };
    unharmed(fleet, &before)?;
    let place = fleet.place("storm")?;
    ensure!(place.1 == host, "the VM is {place:?} after {job}");
    Ok(())
}

const FILLER: &str = "/var/lib/fleetward/volumes/.filler";

/// Writes to host c's volumes until its file system is full.
fn fill(fleet: &Fleet) -> Result<()> {
    let fill = format!("dd if=/dev/zero of={FILLER} bs=64K 2>/dev/null; sync; true");
    fleet.exec("c", &["sh", "-c", &fill])?.ok().map(drop)
}

fn disk_fills_up(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    let job = during_migration(fleet, "c", |_| fill(fleet))?;
    undone(fleet, &job, "NO_SPACE")?;
    // Before the filler goes: its room is not what made the clean-up possible.
    unharmed(fleet, &before)?;
    empty(fleet)?;
    fleet.cli(&["vm", "migrate", "storm", "--to", "c"])?.ok()?;
    unharmed(fleet, &before)
}

/// Removes the filler, and waits until host c has told of its room.
fn empty(fleet: &Fleet) -> Result<()> {
    fleet.exec("c", &["rm", FILLER])?.ok()?;
    wait::until("the host to report its room", seconds(15), || {
        let said = fleet.cli(&["vm", "migrate", "storm", "--to", "c", "--check"])?;
        Ok((said.code == 0).then_some(()))
    })
}

fn disk_full(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    fill(fleet)?;
    wait::until("the host to report its full pool", seconds(15), || {
        let said = fleet.cli(&["vm", "migrate", "storm", "--to", "c", "--check"])?;
        Ok((said.code == 4).then_some(()))
    })?;
    fleet
        .cli(&["vm", "migrate", "storm", "--to", "c"])?
        .refused(4, "NO_SPACE")?;
    fleet
        .cli(&[
            "vm",
            "create",
            "nospace",
            "--image",
            "lab-guest",
            "--memory",
            "512M",
            "--host",
            "c",
        ])?
        .refused(4, "NO_SPACE")?;
    empty(fleet)?;
    unharmed(fleet, &before)
}

fn cancel(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    let job = during_migration(fleet, "b", |job| {
        for host in ["a", "b"] {
            closed_to_group_kvm(fleet, host)?;
        }
        fleet.cli(&["job", "cancel", job])?.ok().map(drop)
    })?;
    undone(fleet, &job, "CANCELLED")?;
    unharmed(fleet, &before)
}

/// A process of group kvm, which whoever uses virtual machines may have, can write to no socket of a migration.
fn closed_to_group_kvm(fleet: &Fleet, host: &str) -> Result<()> {
    // At the destination QEMU makes them, one after the other.
    let sockets = wait::until("the sockets of the migration", seconds(30), || {
        let find = "find /run/fleetward/mig -type s 2>/dev/null";
        let found = fleet.exec(host, &["sh", "-c", find])?.stdout;
        let both = found.contains("/memory.sock") && found.contains("/disk.sock");
        Ok(both.then_some(found))
    })?;
    ensure!(
        host == "b" || sockets.contains("/libvirt.sock"),
        "no way to the other libvirt: {sockets}"
    );
    for socket in sockets.lines() {
        let as_member = ["setpriv", "--reuid=65534", "--regid=kvm", "--clear-groups"];
        let writes = ["test", "-w", socket];
        let can = |who: &[&str]| {
            Ok::<_, anyhow::Error>(fleet.exec(host, &[who, &writes].concat())?.code == 0)
        };
        ensure!(can(&[])?, "root cannot write to {socket}");
        ensure!(
            !can(&as_member)?,
            "a process of group kvm can write to {socket} on host {host}"
        );
    }
    Ok(())
}

/// The TPM's process hangs where the guest is to arrive: the guest pauses for the switch-over, and waits.
fn stands_still(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    let swtpm = |signal: &str| {
        let kill = format!("kill -{signal} $(cat /run/libvirt/qemu/swtpm/*storm*.pid)");
        fleet.exec("b", &["sh", "-c", &kill])
    };
    limit_speed(fleet, "8")?;
    let job = fleet.start_job(&["vm", "migrate", "storm", "--to", "b"])?;
    // Not before bytes flow: QEMU at the destination would not even begin to listen.
    wait::until("bytes to flow", seconds(30), || {
        let job = fleet.json(&["job", "show", &job])?;
        let done = job["progress"]["done"].as_u64().unwrap_or_default();
        Ok((done > 0).then_some(()))
    })?;
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
fn tpm_stopped(fleet: &Fleet) -> Result<()> {
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
    wait::until("bytes to flow", seconds(30), || {
        let job = fleet.json(&["job", "show", &job])?;
        let done = job["progress"]["done"].as_u64().unwrap_or_default();
        Ok((done > 0).then_some(()))
    })?;
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
fn tpm_silent(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    // At the destination there will be another.
    let swtpm = Process::swtpm(fleet, "storm")?;
    limit_speed(fleet, "8")?;
    let job = fleet.start_job(&["vm", "migrate", "storm", "--to", "b"])?;
    wait::until("bytes to flow", seconds(30), || {
        let job = fleet.json(&["job", "show", &job])?;
        let done = job["progress"]["done"].as_u64().unwrap_or_default();
        Ok((done > 0).then_some(()))
    })?;
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

fn qemu_stands_still(fleet: &Fleet) -> Result<()> {
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
fn qemu_stopped(fleet: &Fleet) -> Result<()> {
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
fn qemu_hangs(fleet: &Fleet) -> Result<()> {
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

fn tpm_died(fleet: &Fleet) -> Result<()> {
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

/// What libvirt-guests does to a VM when its host is shut down.
fn save(fleet: &Fleet) -> Result<()> {
    fleet.exec("a", &["virsh", "managedsave", "storm"])?.ok()?;
    wait::until("storm to show as saved", seconds(20), || {
        Ok((fleet.place("storm")?.0 == "saved").then_some(()))
    })
}

fn saved(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    save(fleet)?;
    let under_it: [&[&str]; 7] = [
        &["tpm", "roll", "storm"],
        &["tpm", "disable", "storm", "--yes"],
        &["vm", "clone", "storm", "copy"],
        &["vm", "migrate", "storm", "--to", "b", "--offline"],
        &["vm", "set", "storm", "--memory", "768M"],
        &["vm", "delete", "storm", "--yes"],
        &["vm", "stop", "storm"],
    ];
    for command in under_it {
        let said = fleet.cli(command)?.refused(4, "VM_STATE_WRONG")?;
        ensure!(
            said.stderr.contains("saved") && said.stderr.contains("fleetward vm start storm"),
            "{}",
            said.stderr
        );
    }
    fleet.cli(&["vm", "start", "storm"])?.ok()?;
    unharmed(fleet, &before)?;
    // Given up, as if its power were cut; then it boots.
    save(fleet)?;
    fleet.cli(&["vm", "stop", "storm", "--force"])?.ok()?;
    ensure!(fleet.place("storm")?.0 == "stopped");
    fleet.cli(&["vm", "start", "storm"])?.ok()?;
    guest::booted(fleet, "storm", before.boots + 1).map(drop)
}

/// One host's clock is years off, and its agent is started under it: nobody can speak to it until the clock is set.
fn host_of_another_decade(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    let agents_files = || {
        let list =
            "cd /var/lib/fleetward && find . -path ./volumes -prune -o -type f -print | sort";
        Ok::<_, anyhow::Error>(fleet.exec("a", &["sh", "-c", list])?.ok()?.stdout)
    };
    let files = agents_files()?;
    let year = |ahead: i32| format!("{}-", OffsetDateTime::now_utc().year() + ahead);
    for (offset, ahead) in [("-16y", -16), ("+14y", 14)] {
        let spoken = fleet.agent_log("a")?.len();
        fleet.lab("clock", &[offset, "--host", "a"])?.ok()?;
        fleet.kill("a/agent")?;
        // It would wait until the host is online.
        let mut start = Command::new(fleet.program("fleetward-lab"))
            .args(["start", "--name", fleet.name(), "a/agent"])
            .stderr(Stdio::null())
            .spawn()?;
        let told = wait::until("the clocks to be named", seconds(60), || {
            let host = fleet.json(&["host", "show", "a"])?;
            let warnings = host["warnings"].to_string();
            let named = warnings.contains("CLOCKS_APART") && host["state"] == "unreachable";
            Ok(named.then_some(warnings))
        })?;
        ensure!(
            told.contains(&year(0)) && !told.contains("rejoin"),
            "{told}"
        );
        // The host itself knows both times.
        wait::until("the agent to say so", seconds(30), || {
            let log = fleet.agent_log("a")?;
            let mut lines = log[spoken..].lines();
            let said =
                lines.any(|line| line.contains("CLOCKS_APART") && line.contains(&year(ahead)));
            Ok(said.then_some(()))
        })?;
        start.kill()?;
        start.wait()?;
        ensure!(
            agents_files()? == files,
            "{files} became {}",
            agents_files()?
        );
        let now = guest::last(fleet, "storm")?.context("it says nothing")?;
        guest::goes_on(fleet, "storm", &now)?;
    }
    fleet.lab("clock", &["+0", "--host", "a"])?.ok()?;
    wait::until("host a to be back", seconds(60), || {
        let host = fleet.json(&["host", "show", "a"])?;
        let apart = host["warnings"].to_string().contains("CLOCKS_APART");
        Ok((host["state"] == "online" && !apart).then_some(()))
    })?;
    unharmed(fleet, &before)?;
    fleet.cli(&["vm", "migrate", "storm", "--to", "b"])?.ok()?;
    unharmed(fleet, &before)
}

/// From the host's death to the end of the command.
const SOON: Duration = Duration::from_secs(30);

/// The VM is used as if nothing had happened while the host is away; its remains go when it is back, and nothing else.
fn destination_dies(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    limit_speed(fleet, SLOW)?;
    let mut command = fleet.cli_command();
    command.args(["vm", "migrate", "storm", "--to", "b"]);
    let migrate = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    wait::until("the destination to receive", seconds(30), || {
        let list = fleet.exec("b", &["virsh", "-q", "list"])?;
        Ok(list.stdout.contains("storm").then_some(()))
    })?;
    fleet.kill("b")?;
    let died = Instant::now();
    let said = migrate.wait_with_output()?;
    let took = died.elapsed();
    eprintln!(
        "the command ended {:.1} s after the host's death",
        took.as_secs_f32()
    );
    let stderr = String::from_utf8_lossy(&said.stderr);
    // The source sees its link break, the controller sees the host fall silent: whichever is first gives the reason.
    let reason = match said.status.code() {
        Some(1) => "error[MIGRATION_FAILED]",
        Some(6) => "error[HOST_UNREACHABLE]",
        other => anyhow::bail!("exit {other:?}: {stderr}"),
    };
    ensure!(stderr.contains(reason), "{stderr}");
    ensure!(took < SOON, "the command ended after {took:?}");
    let _ = limit_speed(fleet, FAST);

    // It runs where it was, and is free.
    ensure!(fleet.place("storm")? == ("running".into(), "a".into()));
    guest::goes_on(fleet, "storm", &before)?;
    let owed = fleet.json(&["host", "show", "b"])?;
    ensure!(
        owed["state"] == "unreachable" && owed["debts"][0]["step"] == "prepare-incoming",
        "what does it owe? {owed}"
    );
    fleet.cli(&["vm", "migrate", "storm", "--to", "c"])?.ok()?;
    let there = guest::goes_on(fleet, "storm", &before)?;

    // A month passes; the controller may have dropped its record of the job meanwhile.
    fleet.lab("clock", &["+31d"])?.ok()?;
    for host in ["a", "c"] {
        wait::until("the month to have passed", seconds(30), || {
            let host = fleet.json(&["host", "show", host])?;
            let clock = OffsetDateTime::parse(&text(&host["facts"], "clock")?, &Rfc3339)?;
            let passed = clock - OffsetDateTime::now_utc() > time::Duration::days(30);
            Ok((passed && host["state"] == "online").then_some(()))
        })?;
    }
    fleet.start("b")?;
    wait::until("host b to have paid", seconds(60), || {
        let host = fleet.json(&["host", "show", "b"])?;
        let paid = host["state"] == "online" && host["debts"].as_array().is_some_and(Vec::is_empty);
        Ok(paid.then_some(()))
    })?;
    wait::until("nothing to be left over", seconds(20), || {
        residue::none_anywhere(fleet, HOSTS).map(Some)
    })?;
    guest::goes_on(fleet, "storm", &there)?;
    fleet.cli(&["vm", "migrate", "storm", "--to", "b"])?.ok()?;
    guest::goes_on(fleet, "storm", &there)?;
    fleet.cli(&["audit", "--verify"])?.ok().map(drop)
}

fn dead_host(fleet: &Fleet) -> Result<()> {
    running(fleet)?;
    fleet.kill("b")?;
    wait::until("host b to show as unreachable", seconds(20), || {
        Ok((fleet.json(&["host", "show", "b"])?["state"] == "unreachable").then_some(()))
    })?;
    fleet
        .cli(&["vm", "migrate", "storm", "--to", "b"])?
        .refused(4, "HOST_UNREACHABLE")
        .or_else(|_| {
            fleet
                .cli(&["vm", "migrate", "storm", "--to", "b"])?
                .refused(6, "HOST_UNREACHABLE")
        })?;
    fleet.start("b")?;
    wait::until("host b to come back", seconds(60), || {
        Ok((fleet.json(&["host", "show", "b"])?["state"] == "online").then_some(()))
    })?;
    fleet.cli(&["vm", "migrate", "storm", "--to", "b"])?.ok()?;
    residue::none_anywhere(fleet, HOSTS)
}
