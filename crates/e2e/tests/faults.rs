//! What breaks around a job: the link between hosts, libvirtd, a full disk, a dead host.

use anyhow::{Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, residue, suite};
use std::process::ExitCode;

const HOSTS: &[&str] = &["a", "b", "c"];

fn main() -> ExitCode {
    suite::run(
        "e2e-faults",
        &["--hosts", "3", "--volume-size", "c=48M"],
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
            ("a_cancelled_migration_leaves_the_vm_where_it_was", cancel),
            ("a_dead_host_shows_as_unreachable_and_comes_back", dead_host),
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

fn ended(fleet: &Fleet, job: &str) -> Result<String> {
    wait::until(&format!("job {job} to end"), seconds(120), || {
        let state = text(&fleet.json(&["job", "show", job])?, "state")?;
        Ok(matches!(state.as_str(), "done" | "undone" | "failed").then_some(state))
    })
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

/// Runs a migration to b, and `harm` once QEMU's memory stream is under way.
fn during_migration(fleet: &Fleet, harm: impl Fn() -> Result<()>) -> Result<String> {
    let holds = fleet.holds();
    let point = "agent.migrate-live.begin";
    holds.set(point)?;
    let job = fleet.start_job(&["vm", "migrate", "storm", "--to", "b"])?;
    wait::until("the migration to begin", seconds(30), || {
        Ok(holds.is_reached(point).then_some(()))
    })?;
    holds.release(point)?;
    wait::until("the destination to receive", seconds(20), || {
        let list = fleet.exec("b", &["virsh", "-q", "list"])?;
        Ok(list.stdout.contains("storm").then_some(()))
    })?;
    harm()?;
    Ok(job)
}

fn link_cut(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    let job = during_migration(fleet, || {
        fleet
            .lab("partition", &["a", "--from", "b"])?
            .ok()
            .map(drop)
    })?;
    // The controller still reaches both hosts; the source finds out by itself and the VM goes on there.
    let state = ended(fleet, &job);
    fleet.lab("heal", &["a"])?.ok()?;
    let state = state?;
    eprintln!("the job was {state}");
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
    let job = during_migration(fleet, || fleet.kill(victim))?;
    fleet.start(victim)?;
    eprintln!("the job was {}", ended(fleet, &job)?);
    unharmed(fleet, &before)
}

fn disk_full(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    fleet
        .exec(
            "c",
            &[
                "sh",
                "-c",
                "dd if=/dev/zero of=/var/lib/fleetward/volumes/.filler bs=1M 2>/dev/null; true",
            ],
        )?
        .ok()?;
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
    fleet
        .exec("c", &["rm", "-f", "/var/lib/fleetward/volumes/.filler"])?
        .ok()?;
    unharmed(fleet, &before)
}

fn cancel(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    let job = during_migration(fleet, || Ok(()))?;
    let said = fleet.cli(&["job", "cancel", &job])?;
    ensure!(
        said.code == 0 || said.stderr.contains("JOB_NOT_CANCELLABLE"),
        "{said:?}"
    );
    let state = ended(fleet, &job)?;
    ensure!(
        said.code != 0 || matches!(state.as_str(), "undone" | "done"),
        "{state}"
    );
    unharmed(fleet, &before)
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
