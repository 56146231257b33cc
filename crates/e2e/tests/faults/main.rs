//! Faults during jobs: the link between hosts, libvirtd, a full disk, a dead host. What is there and does not answer is in
//! [`silence`].

mod silence;

use anyhow::{Context, Result, bail, ensure};
use fleetward_e2e::fleet::{Fleet, text};
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
                silence::stands_still,
            ),
            (
                "a_tpm_that_was_stopped_is_named_and_no_guest_stands_still_for_it",
                silence::tpm_stopped,
            ),
            (
                "a_tpm_that_runs_and_does_not_answer_is_named_and_the_guest_goes_on_where_it_was",
                silence::tpm_silent,
            ),
            (
                "a_tpm_that_has_died_is_named_and_comes_back_with_a_restart",
                silence::tpm_died,
            ),
            (
                "a_qemu_that_was_stopped_is_named_and_the_fix_lets_it_go_on",
                silence::qemu_stands_still,
            ),
            (
                "commands_for_a_vm_whose_qemu_was_stopped_end_in_time_and_hold_up_no_other_vm",
                silence::qemu_stopped,
            ),
            (
                "a_qemu_that_hangs_in_the_kernel_is_named_and_holds_up_nothing_else",
                silence::qemu_hangs,
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
