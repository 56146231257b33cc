//! The main job: a VM with an encrypted TPM is created, started and migrated, one command each.

use anyhow::{Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, residue, suite};
use serde_json::Value;
use std::process::ExitCode;

fn main() -> ExitCode {
    suite::run(
        "e2e-main",
        &["--hosts", "4", "--group", "d=other"],
        &[
            (
                "a_vm_is_created_with_an_encrypted_tpm_and_boots_under_secure_boot",
                create_and_boot,
            ),
            ("a_running_vm_moves_and_its_tpm_with_it", migrate_once),
            (
                "a_host_of_another_group_refuses_and_nothing_changes",
                other_group_refuses,
            ),
            ("ten_moves_in_a_row_never_stop_the_guest", ten_moves),
            (
                "a_stopped_vm_moves_and_unseals_after_its_next_boot",
                move_stopped,
            ),
            (
                "disks_in_a_shared_directory_are_not_copied",
                shared_directory,
            ),
            (
                "what_virsh_does_behind_our_back_shows_within_two_seconds",
                behind_our_back,
            ),
            ("a_vm_that_is_deleted_leaves_nothing", delete),
            ("the_windows_11_profile_gets_every_requirement", windows_11),
            ("a_lost_database_is_rebuilt_from_the_hosts", rebuild),
        ],
    )
}

fn create_and_boot(fleet: &Fleet) -> Result<()> {
    fleet
        .cli(&[
            "vm",
            "create",
            "desk1",
            "--image",
            "lab-guest",
            "--memory",
            "512M",
            "--host",
            "a",
            "--label",
            "team=lab",
            "--start",
        ])?
        .ok()?;
    let vm = fleet.vm("desk1")?;
    ensure!(vm["state"] == "running" && vm["host"] == "a", "{vm}");
    ensure!(
        vm["firmware"]["type"] == "uefi" && vm["firmware"]["secure_boot"] == true,
        "{vm}"
    );
    ensure!(
        vm["tpm"]["enabled"] == true && vm["tpm"]["state_present"] == true,
        "{vm}"
    );
    ensure!(
        vm["tpm"]["version"] == "2.0" && vm["tpm"]["model"] == "tpm-crb",
        "{vm}"
    );
    ensure!(vm["labels"]["team"] == "lab", "{vm}");
    let tick = guest::booted(fleet, "desk1", 1)?;
    ensure!(tick.unseal == "ok", "{tick:?}");
    ensure!(
        vm["tpm"]["ek_certificate"] == tick.ek.as_str(),
        "the guest's EK certificate is not the one on record: {tick:?} {vm}"
    );
    Ok(())
}

fn migrate_once(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, "desk1", 1)?;
    let said = fleet.cli(&["vm", "migrate", "desk1", "--to", "b"])?.ok()?;
    ensure!(
        said.stdout.contains("downtime") || said.stderr.contains("downtime"),
        "no downtime in {said:?}"
    );
    ensure!(fleet.place("desk1")? == ("running".into(), "b".into()));
    guest::goes_on(fleet, "desk1", &before)?;
    residue::none_anywhere(fleet, &["a", "b", "c", "d"])
}

fn other_group_refuses(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, "desk1", 1)?;
    let vm = fleet.vm("desk1")?;
    let said = fleet
        .cli(&["vm", "migrate", "desk1", "--to", "d"])?
        .refused(4, "KEY_NOT_GRANTED")?;
    ensure!(said.stderr.contains("10698"), "{}", said.stderr);
    fleet
        .cli(&["vm", "migrate", "desk1", "--to", "d", "--check"])?
        .refused(4, "KEY_NOT_GRANTED")?;
    let counts = fleet.json(&["check", "--by-host"])?;
    let of = |host: &str| {
        let mut rows = counts.as_array().into_iter().flatten();
        let row = rows.find(|row| row["host"] == host).cloned();
        row.unwrap_or_default()
    };
    let (b, d) = (of("b"), of("d"));
    ensure!(
        b["vms"] == 1 && b["can_start"] == 1 && b["can_move"] == 1 && d["vms"] == 0,
        "{counts}"
    );
    let after = fleet.vm("desk1")?;
    ensure!(
        vm["tpm"] == after["tpm"] && after["host"] == "b" && after["state"] == "running",
        "{vm}\n{after}"
    );
    guest::goes_on(fleet, "desk1", &before)?;
    residue::none_anywhere(fleet, &["b", "d"])
}

fn ten_moves(fleet: &Fleet) -> Result<()> {
    fleet.cli(&["vm", "migrate", "desk1", "--to", "a"])?.ok()?;
    let first = guest::booted(fleet, "desk1", 1)?;
    let mut before = first.clone();
    for (round, host) in ["b", "c", "a"].iter().cycle().take(10).enumerate() {
        let result = fleet.json(&["vm", "migrate", "desk1", "--to", host])?;
        let downtime = downtime(&result);
        ensure!(
            downtime.is_some_and(|ms| ms < 10_000),
            "move {round} reports no downtime: {result}"
        );
        eprintln!(
            "move {} to {host}: downtime {} ms",
            round + 1,
            downtime.unwrap_or_default()
        );
        before = guest::goes_on(fleet, "desk1", &before)?;
    }
    let ticks = guest::ticks(fleet, "desk1")?;
    let moved: Vec<_> = ticks.iter().filter(|t| t.tick >= first.tick).collect();
    ensure!(
        moved.windows(2).all(|w| w[1].tick == w[0].tick + 1),
        "a tick is missing or was said twice: {moved:?}"
    );
    residue::none_anywhere(fleet, &["a", "b", "c", "d"])
}

/// The first `downtime_ms` anywhere in the answer.
fn downtime(value: &Value) -> Option<u64> {
    match value {
        Value::Object(map) => map
            .get("downtime_ms")
            .and_then(Value::as_u64)
            .or_else(|| map.values().find_map(downtime)),
        Value::Array(list) => list.iter().find_map(downtime),
        _ => None,
    }
}

fn move_stopped(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, "desk1", 1)?;
    fleet.cli(&["vm", "stop", "desk1"])?.ok()?;
    let (state, from) = fleet.place("desk1")?;
    ensure!(state == "stopped", "{state}");
    let to = if from == "b" { "c" } else { "b" };
    fleet
        .cli(&["vm", "migrate", "desk1", "--to", to])?
        .refused(4, "VM_NOT_RUNNING")?;
    what_qemus_user_plants_is_not_read(fleet, &from, to)?;
    fleet
        .cli(&["vm", "migrate", "desk1", "--to", to, "--offline"])?
        .ok()?;
    ensure!(fleet.place("desk1")? == ("stopped".into(), to.into()));
    residue::none_anywhere(fleet, &["a", "b", "c", "d"])?;
    fleet.cli(&["vm", "start", "desk1"])?.ok()?;
    let after = guest::booted(fleet, "desk1", before.boots + 1)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek && after.pcr7 == before.pcr7,
        "{before:?} {after:?}"
    );
    Ok(())
}

/// QEMU's user, as a guest that broke out, leads root from the UEFI variables to its passwords.
fn what_qemus_user_plants_is_not_read(fleet: &Fleet, host: &str, to: &str) -> Result<()> {
    let id = text(&fleet.vm("desk1")?, "id")?;
    let place = format!("/var/lib/libvirt/qemu/nvram/{id}_VARS.fd");
    let as_qemu = |script: String| {
        let user = ["setpriv", "--reuid", "libvirt-qemu", "--regid", "kvm"];
        let command = [&user[..], &["--clear-groups", "sh", "-ec", &script]].concat();
        fleet.exec(host, &command)
    };
    let secret = || fleet.exec(host, &["stat", "-c", "%U %G %a %h", "/etc/shadow"]);
    let before = secret()?.ok()?.stdout;
    as_qemu(format!(
        "mv {place} {place}.kept; ln -s /etc/shadow {place}"
    ))?
    .ok()?;
    fleet
        .cli(&["vm", "migrate", "desk1", "--to", to, "--offline"])?
        .refused(1, "FILE_UNEXPECTED")?;
    as_qemu(format!("rm {place}; mkfifo {place}"))?.ok()?;
    fleet
        .cli(&["vm", "migrate", "desk1", "--to", to, "--offline"])?
        .refused(1, "FILE_UNEXPECTED")?;
    as_qemu(format!("rm {place}; mv {place}.kept {place}"))?.ok()?;
    ensure!(
        secret()?.ok()?.stdout == before,
        "root's file was given away"
    );
    Ok(())
}

fn shared_directory(fleet: &Fleet) -> Result<()> {
    fleet
        .cli(&[
            "vm",
            "create",
            "shared1",
            "--image",
            "lab-guest",
            "--memory",
            "512M",
            "--host",
            "a",
            "--pool",
            "shared",
            "--start",
        ])?
        .ok()?;
    let before = guest::booted(fleet, "shared1", 1)?;
    let path = text(&fleet.vm("shared1")?["disks"][0], "path")?;
    let inode = |host: &str| -> Result<String> {
        Ok(fleet.exec(host, &["stat", "-c", "%i", &path])?.ok()?.stdout)
    };
    let inode_before = inode("a")?;
    fleet
        .cli(&["vm", "migrate", "shared1", "--to", "b"])?
        .ok()?;
    guest::goes_on(fleet, "shared1", &before)?;
    ensure!(inode("b")? == inode_before, "the disk was copied");
    residue::none_anywhere(fleet, &["a", "b"])?;
    fleet.cli(&["vm", "stop", "shared1", "--force"])?.ok()?;
    fleet.cli(&["vm", "delete", "shared1", "--yes"])?.ok()?;
    residue::none_anywhere(fleet, &["a", "b"])
}

fn behind_our_back(fleet: &Fleet) -> Result<()> {
    fleet
        .cli(&[
            "vm",
            "create",
            "plain1",
            "--disk",
            "16M",
            "--memory",
            "128M",
            "--no-tpm",
            "--no-secure-boot",
            "--host",
            "a",
        ])?
        .ok()?;
    for (command, state) in [("start", "running"), ("destroy", "stopped")] {
        fleet.exec("a", &["virsh", command, "plain1"])?.ok()?;
        wait::until(&format!("plain1 to show as {state}"), seconds(2), || {
            Ok((fleet.place("plain1")?.0 == state).then_some(()))
        })?;
    }
    fleet.cli(&["vm", "delete", "plain1", "--yes"])?.ok()?;
    of_somebody_else(fleet)
}

/// A domain that Fleetward did not make is shown under its own name, whatever that is, and left alone.
fn of_somebody_else(fleet: &Fleet) -> Result<()> {
    const NAME: &str = "経理サーバー 01";
    let define = format!(
        "echo \"<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>\" |
         virsh define /dev/stdin"
    );
    fleet.exec("a", &["sh", "-ec", &define])?.ok()?;
    let shown = format!("'{NAME}'");
    let line = wait::until("the domain to be listed", seconds(10), || {
        let list = fleet.cli(&["vm", "list"])?.ok()?.stdout;
        Ok(list
            .lines()
            .find(|line| line.contains(&shown))
            .map(str::to_owned))
    })?;
    ensure!(line.contains("(not managed)"), "{line}");
    let name = line.split_whitespace().next().unwrap_or_default();
    let sheet = fleet.cli(&["vm", "show", name])?.ok()?.stdout;
    ensure!(sheet.contains(NAME), "{sheet}");
    for command in [&["start", name][..], &["delete", name, "--yes"]] {
        fleet
            .cli(&[&["vm"], command].concat())?
            .refused(4, "VM_NOT_MANAGED")?;
    }
    fleet
        .exec("a", &["virsh", "undefine", NAME])?
        .ok()
        .map(drop)
}

fn delete(fleet: &Fleet) -> Result<()> {
    fleet
        .cli(&["vm", "delete", "desk1", "--yes"])?
        .refused(4, "VM_RUNNING")?;
    fleet.cli(&["vm", "stop", "desk1", "--force"])?.ok()?;
    fleet
        .cli(&["vm", "delete", "desk1"])?
        .refused(2, "CONFIRMATION_NEEDED")?;
    fleet.cli(&["vm", "delete", "desk1", "--yes"])?.ok()?;
    fleet
        .cli(&["vm", "show", "desk1"])?
        .refused(5, "VM_NOT_FOUND")?;
    residue::none_anywhere(fleet, &["a", "b", "c", "d"])
}

fn windows_11(fleet: &Fleet) -> Result<()> {
    let profile = [
        "vm",
        "create",
        "win1",
        "--profile",
        "windows-11",
        "--disk",
        "64G",
        "--host",
        "a",
    ];
    fleet
        .cli(&[&profile[..], &["--no-tpm"]].concat())?
        .refused(4, "PROFILE_REFUSES")?;
    fleet
        .cli(&[&profile[..], &["--memory", "2G"]].concat())?
        .refused(4, "PROFILE_REFUSES")?;
    fleet.cli(&profile)?.ok()?;
    let vm = fleet.vm("win1")?;
    ensure!(
        vm["cpus"] == 2
            && vm["memory_bytes"] == 4_u64 << 30
            && vm["disks"][0]["size"] == 64_u64 << 30,
        "{vm}"
    );
    let xml = fleet.exec("a", &["virsh", "dumpxml", "win1"])?.ok()?.stdout;
    // Enlightenments are KVM's: QEMU's own translation has none to offer.
    let enlightened = xml.contains("<domain type='kvm'").then_some("<hyperv");
    let wanted = [
        "tpm-crb",
        "<encryption secret=",
        "localtime",
        "enrolled-keys",
        "e1000e",
        "bus='sata'",
    ];
    for wanted in wanted.into_iter().chain(enlightened) {
        ensure!(xml.contains(wanted), "no {wanted} in {xml}");
    }
    fleet.cli(&["vm", "delete", "win1", "--yes"])?.ok()?;
    residue::none_anywhere(fleet, &["a"])
}

fn rebuild(fleet: &Fleet) -> Result<()> {
    fleet
        .cli(&[
            "vm",
            "create",
            "keep1",
            "--image",
            "lab-guest",
            "--memory",
            "512M",
            "--host",
            "b",
        ])?
        .ok()?;
    // What its TPM counts is known once a copy of it was taken, and then it is part of the comparison.
    let before = wait::until("the TPM of keep1 to be tried", seconds(20), || {
        Ok(Some(fleet.vm("keep1")?).filter(|vm| vm["tpm"]["lockout"].is_object()))
    })?;
    fleet.cli(&["controller", "rebuild", "--yes"])?.ok()?;
    let after = wait::until("keep1 to be known again", seconds(20), || {
        Ok(fleet.vm("keep1").ok())
    })?;
    for key in ["id", "name", "host", "labels", "profile", "tpm", "disks"] {
        ensure!(before[key] == after[key], "{key}: {before} then {after}");
    }
    fleet.cli(&["vm", "delete", "keep1", "--yes"])?.ok()?;
    Ok(())
}
