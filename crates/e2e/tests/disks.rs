//! Disks and drives: what `vm show` says is what the guest sees, while it runs, after its next start, and wherever it goes.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{residue, suite};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Runs, with one disk of its own host and one in the directory that both hosts share.
const VM: &str = "desk";
/// Lies in the shared directory, and is recovered.
const WEB: &str = "web";

fn main() -> ExitCode {
    suite::run(
        "e2e-disks",
        // The volumes of host b can be full.
        &["--hosts", "2", "--volume-size", "b=256M"],
        &[
            (
                "disks_come_grow_move_and_go_while_the_guest_runs",
                while_it_runs,
            ),
            (
                "disks_go_along_and_what_waits_waits_elsewhere_too",
                along_with_the_vm,
            ),
            (
                "a_template_has_all_disks_and_so_has_a_vm_made_from_it",
                template,
            ),
            ("an_ejected_drive_frees_its_image", drives),
            (
                "a_first_boots_medium_goes_along_and_goes_after_the_boot",
                seed,
            ),
            ("a_full_pool_costs_nothing", a_full_pool),
            ("a_recovered_vm_has_all_its_disks", recovered),
        ],
    )
}

fn while_it_runs(fleet: &Fleet) -> Result<()> {
    let create = "vm create desk --image lab-guest --memory 512M --host a --add-disk 32M,pool=shared --start";
    ok(fleet, create)?;
    let booted = guest::booted(fleet, VM, 1)?;
    ensure!(booted.disks == "vda:64M,vdb:32M", "{booted:?}");

    ok(fleet, "vm disk resize desk vdb 48M")?;
    sees(fleet, "vda:64M,vdb:48M")?;
    ok(fleet, "vm disk resize desk vda 80M")?;
    sees(fleet, "vda:80M,vdb:48M")?;
    for size in ["32M", "1", "49000001"] {
        cli(fleet, &format!("vm disk resize desk vdb {size}"))?.refused(2, "INVALID_ARGUMENT")?;
    }

    // A third disk moves the name of no other.
    ok(fleet, "vm disk add desk 24M")?;
    sees(fleet, "vda:80M,vdb:48M,vdc:24M")?;
    ok(fleet, "vm disk add desk 16M --bus scsi")?;
    sees(fleet, "sda:16M,vda:80M,vdb:48M,vdc:24M")?;

    let before = disk(fleet, "vdb")?;
    ensure!(text(&before, "pool")? == "shared", "{before}");
    ok(fleet, "vm disk move desk vdb --pool default")?;
    let after = disk(fleet, "vdb")?;
    ensure!(text(&after, "pool")? == "default", "{after}");
    ensure!(
        (&after["id"], &after["serial"]) == (&before["id"], &before["serial"]),
        "{before} became {after}"
    );
    sees(fleet, "sda:16M,vda:80M,vdb:48M,vdc:24M")?;

    cli(fleet, "vm disk remove desk vdc")?.refused(2, "CONFIRMATION_NEEDED")?;
    ok(fleet, "vm disk remove desk vdc --yes")?;
    sees(fleet, "sda:16M,vda:80M,vdb:48M")?;
    let kept = text(&disk(fleet, "sda")?, "path")?;
    let said = ok(fleet, "vm disk remove desk sda --keep --yes")?;
    ensure!(
        said.contains(&kept),
        "it does not say where {kept} is: {said}"
    );
    sees(fleet, "vda:80M,vdb:48M")?;
    fleet.exec("a", &["rm", &kept])?.ok()?;
    // It was the same boot all the time.
    guest::goes_on(fleet, VM, &booted)?;
    residue::none_anywhere(fleet, &["a", "b"])
}

fn along_with_the_vm(fleet: &Fleet) -> Result<()> {
    let before = newest(fleet)?;
    ok(fleet, "vm disk move desk vdb --pool shared")?;
    let result = fleet.json(&["vm", "disk", "add", VM, "8M", "--bus", "sata"])?;
    ensure!(result["next_start"] == json!(["disks"]), "{result}");
    let shown = disks(fleet)?;
    ensure!(shown[2]["presence"] == "comes", "{}", shown[2]);
    ensure!(fleet.vm(VM)?["pending"][0]["wanted"] == "sda");
    for host in ["b", "a"] {
        fleet.cli(&["vm", "migrate", VM, "--to", host])?.ok()?;
        same_disks(&shown, &disks(fleet)?)?;
        sees(fleet, "vda:80M,vdb:48M")?;
    }
    guest::goes_on(fleet, VM, &before)?;
    residue::none_anywhere(fleet, &["a", "b"])?;

    ok(fleet, "vm stop desk --force")?;
    // Everything again, of a machine that is off.
    ok(fleet, "vm disk resize desk vdb 56M")?;
    ok(fleet, "vm disk move desk vdb --pool default")?;
    ok(fleet, "vm disk add desk 12M")?;
    ok(fleet, "vm disk remove desk sda --yes")?;
    let shown = disks(fleet)?;
    ok(fleet, "vm migrate desk --to b --offline")?;
    same_disks(&shown, &disks(fleet)?)?;
    residue::none_anywhere(fleet, &["a", "b"])?;
    marks(fleet, "write", "b", &shown)?;

    for clone in ["vm clone desk twin", "vm clone desk twin --full --host a"] {
        ok(fleet, clone)?;
        copied_disks(fleet, "twin", &shown)?;
        ok(fleet, "vm delete twin --yes")?;
    }
    ok(fleet, "vm start desk")?;
    let now = guest::booted(fleet, VM, before.boots + 1)?;
    ensure!(now.disks == "vda:80M,vdb:56M,vdc:12M", "{now:?}");
    ensure!(now.unseal == "ok" && now.ek == before.ek, "{now:?}");
    residue::none_anywhere(fleet, &["a", "b"])
}

/// Of the VM as it runs; what is made from it lies on the other host.
fn template(fleet: &Fleet) -> Result<()> {
    let before = newest(fleet)?;
    let shown = disks(fleet)?;
    ok(fleet, "template create office --from desk")?;
    ok(fleet, "vm create made --template office --host a")?;
    ok(fleet, "template delete office --yes")?;
    copied_disks(fleet, "made", &shown)?;
    ok(fleet, "vm start made")?;
    let made = guest::booted(fleet, "made", before.boots + 1)?;
    ensure!(made.disks == before.disks, "{before:?} became {made:?}");
    guest::goes_on(fleet, VM, &before)?;
    residue::none_anywhere(fleet, &["a", "b"])?;
    ok(fleet, "vm stop made --force")?;
    ok(fleet, "vm delete made --yes")?;
    Ok(())
}

fn drives(fleet: &Fleet) -> Result<()> {
    let before = newest(fleet)?;
    for name in ["drivers", "tools"] {
        let path = fleet.directory().join(format!("{name}.iso"));
        std::fs::write(&path, medium(name))?;
        let path = path.display().to_string();
        fleet
            .cli(&["image", "import", name, &path, "--format", "iso"])?
            .ok()?;
    }
    // The machine has a drive only after its next start; its image goes along before that, too.
    let result = fleet.json(&["vm", "media", "insert", VM, "drivers"])?;
    ensure!(result["next_start"] == json!(["drives"]), "{result}");
    let used = cli(fleet, "image delete drivers --yes")?.refused(4, "IMAGE_IN_USE")?;
    let fix = "fix: fleetward vm media eject desk --drive ";
    ensure!(used.stderr.contains(fix), "{}", used.stderr);
    // So does the firmware's order, which waits as well.
    let result = fleet.json(&["vm", "set", VM, "--boot", "iso"])?;
    ensure!(result["next_start"] == json!(["boot"]), "{result}");
    ok(fleet, "vm migrate desk --to a")?;
    let vm = fleet.vm(VM)?;
    let waits = json!({"change": "boot", "now": "disk", "wanted": "iso"});
    let pending = vm["pending"].as_array().context("pending")?;
    ensure!(vm["boot"] == "disk" && pending.contains(&waits), "{vm}");
    ok(fleet, "vm stop desk --force")?;
    ok(fleet, "vm start desk")?;
    let now = guest::booted(fleet, VM, before.boots + 1)?;
    ensure!(now.disks == before.disks, "{before:?} became {now:?}");
    let vm = fleet.vm(VM)?;
    ensure!(
        vm["drives"][0]["image"] == "drivers" && vm["boot"] == "iso",
        "{vm}"
    );
    // The medium does not boot; the disk after it does, and its key opens as before.
    ensure!(now.unseal == "ok", "{now:?}");

    ok(fleet, "vm media insert desk tools")?;
    let vm = fleet.vm(VM)?;
    ensure!(
        vm["drives"][0]["image"] == "tools" && vm["pending"] == json!([]),
        "{vm}"
    );
    ok(fleet, "image delete drivers --yes")?;
    ok(fleet, "vm migrate desk --to b")?;
    ensure!(fleet.vm(VM)?["drives"][0]["image"] == "tools");
    ok(fleet, "vm media eject desk")?;
    let vm = fleet.vm(VM)?;
    ensure!(vm["drives"][0]["path"] == Value::Null, "{vm}");
    ok(fleet, "image delete tools --yes")?;
    guest::goes_on(fleet, VM, &now)?;
    Ok(())
}

fn a_full_pool(fleet: &Fleet) -> Result<()> {
    let before = newest(fleet)?;
    let shown = disks(fleet)?;
    cli(fleet, "vm disk add desk 65T")?.refused(2, "INVALID_ARGUMENT")?;
    cli(fleet, "vm disk add desk 1G --pool nowhere")?.refused(4, "POOL_MISSING")?;
    cli(fleet, "vm disk move desk vdb --pool nowhere")?.refused(4, "POOL_MISSING")?;
    ok(fleet, "vm disk move desk vdc --pool shared")?;
    let fill = "cd /var/lib/fleetward/volumes && fallocate -l $(($(df --output=avail -B1 . | tail -1) - 4000000)) .filler";
    fleet.exec("b", &["sh", "-c", fill])?.ok()?;
    for refused in [
        "vm disk add desk 8M",
        "vm disk resize desk vdb 64M",
        "vm disk move desk vdc --pool default",
    ] {
        cli(fleet, refused)?
            .refused(4, "NO_SPACE")
            .context(refused)?;
    }
    fleet
        .exec("b", &["rm", "/var/lib/fleetward/volumes/.filler"])?
        .ok()?;
    ok(fleet, "vm disk move desk vdc --pool default")?;
    same_disks(&shown, &disks(fleet)?)?;
    guest::goes_on(fleet, VM, &before)?;
    ok(fleet, "vm stop desk --force")?;
    ok(fleet, "vm delete desk --yes")?;
    residue::none_anywhere(fleet, &["a", "b"])
}

fn recovered(fleet: &Fleet) -> Result<()> {
    let create = "vm create web --image lab-guest --memory 512M --host a --pool shared --add-disk 16M --add-disk 8M,bus=scsi --start";
    ok(fleet, create)?;
    let before = guest::booted(fleet, WEB, 1)?;
    ensure!(before.disks == "sda:8M,vda:64M,vdb:16M", "{before:?}");
    wait::until("the controller's copy to be current", seconds(60), || {
        Ok((fleet.vm(WEB)?["escrow"]["current"] == true).then_some(()))
    })?;
    let shown = fleet.vm(WEB)?["disks"].clone();
    fleet.kill("a")?;
    wait::until("the host to be unreachable", seconds(60), || {
        let host = fleet.json(&["host", "show", "a"])?;
        Ok((host["state"] == "unreachable").then_some(()))
    })?;
    ok(fleet, "vm recover web --to b --yes")?;
    ok(fleet, "vm start web")?;
    let after = guest::booted(fleet, WEB, before.boots + 1)?;
    ensure!(after.unseal == "ok" && after.ek == before.ek, "{after:?}");
    ensure!(after.disks == before.disks, "{before:?} became {after:?}");
    let now = fleet.vm(WEB)?["disks"].clone();
    let (then, now) = (shown.as_array(), now.as_array());
    same_disks(then.context("disks")?, now.context("disks")?)?;
    fleet.start("a")?;
    wait::until("the lost copy to be ended", seconds(60), || {
        residue::none_anywhere(fleet, &["a", "b"]).map(Some)
    })?;
    ok(fleet, "vm stop web --force")?;
    ok(fleet, "vm delete web --yes")?;
    residue::none_anywhere(fleet, &["a", "b"])
}

/// A medium as far as it must look like one.
fn medium(name: &str) -> Vec<u8> {
    let mut bytes = vec![0; 20 * 2048];
    bytes[16 * 2048 + 1..16 * 2048 + 6].copy_from_slice(b"CD001");
    bytes[18 * 2048..18 * 2048 + name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// What a guest finds at its first boot: in its drive while it runs, on the host where it runs and on no other, until the
/// guest has booted, and a VM starts without it.
fn seed(fleet: &Fleet) -> Result<()> {
    let key = fleet.directory().join("id.pub");
    let line =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN1Mkbpxn3+P5aaVoz7Z79ixyeiEMPvVf4Z987ELO/He lab\n";
    std::fs::write(&key, line)?;
    let create = format!(
        "vm create first --image lab-guest --memory 512M --host a --ssh-key {}",
        key.display()
    );
    // As after a power cut: it was in memory.
    ok(fleet, &create)?;
    let path = text(&drive_of_first(fleet)?, "path")?;
    fleet.exec("a", &["rm", &path])?.ok()?;
    ok(fleet, "vm start first")?;
    let empty = drive_of_first(fleet)?;
    ensure!(empty["path"].is_null(), "the drive is {empty}");
    ok(fleet, "vm stop first --force")?;
    ok(fleet, "vm delete first --yes")?;

    ok(fleet, &format!("{create} --start"))?;
    let path = text(&drive_of_first(fleet)?, "path")?;
    let is_on =
        |host: &str| Ok::<_, anyhow::Error>(fleet.exec(host, &["test", "-s", &path])?.code == 0);
    ensure!(is_on("a")? && !is_on("b")?, "{path}");
    guest::booted(fleet, "first", 1)?;
    let edit = "sed -i '1i first_boot_grace = 1' /etc/fleetward/agent.toml";
    fleet.exec("b", &["sh", "-c", edit])?.ok()?;
    restart_agent(fleet, "b")?;
    let point = "agent.seed.ejected";
    fleet.holds().set(point)?;
    ok(fleet, "vm migrate first --to b")?;
    ensure!(!is_on("a")? && is_on("b")?, "{path} did not go along");
    let there = drive_of_first(fleet)?;
    ensure!(
        there["path"] == path.as_str() && there["holds"] == "first_boot",
        "the drive is {there}"
    );

    // Its agent answers. The host's is killed between the two things that it does then.
    wait::until("the medium to be ejected", seconds(90), || {
        Ok(fleet.holds().is_reached(point).then_some(()))
    })?;
    fleet.kill("b/agent")?;
    fleet.holds().release(point)?;
    ensure!(is_on("b")?, "it went before the agent was killed");
    restart_agent(fleet, "b")?;
    wait::until("the medium to go", seconds(60), || {
        Ok((!is_on("b")?).then_some(()))
    })?;
    wait::until("the drive to be shown as empty", seconds(30), || {
        let drive = drive_of_first(fleet)?;
        Ok((drive["path"].is_null() && drive["holds"].is_null()).then_some(()))
    })?;
    let shown = ok(fleet, "vm show first")?;
    ensure!(!shown.contains("first boot"), "{shown}");
    residue::none_anywhere(fleet, &["a", "b"])?;
    ok(fleet, "vm stop first --force")?;
    ok(fleet, "vm delete first --yes")?;
    Ok(())
}

fn drive_of_first(fleet: &Fleet) -> Result<Value> {
    Ok(fleet.vm("first")?["drives"][0].clone())
}

fn restart_agent(fleet: &Fleet, host: &str) -> Result<()> {
    fleet.kill(&format!("{host}/agent"))?;
    fleet.start(&format!("{host}/agent"))?;
    wait::until("the host to be online", seconds(60), || {
        Ok((fleet.json(&["host", "show", host])?["state"] == "online").then_some(()))
    })
}

fn cli(fleet: &Fleet, words: &str) -> Result<fleetward_e2e::fleet::Said> {
    let words: Vec<&str> = words.split(' ').collect();
    fleet.cli(&words)
}

/// Runs it; what it said.
fn ok(fleet: &Fleet, words: &str) -> Result<String> {
    let said = cli(fleet, words)?.ok().with_context(|| words.to_owned())?;
    Ok(format!("{}{}", said.stdout, said.stderr))
}

fn newest(fleet: &Fleet) -> Result<Tick> {
    guest::last(fleet, VM)?.context("it has said nothing")
}

/// Waits until the guest sees these disks and no others.
fn sees(fleet: &Fleet, disks: &str) -> Result<()> {
    let mut last = String::new();
    let seen = wait::until(&format!("the guest to see {disks}"), seconds(20), || {
        let tick = newest(fleet)?;
        last.clone_from(&tick.disks);
        Ok((tick.disks == disks).then_some(()))
    });
    seen.with_context(|| format!("it sees {last}"))
}

fn disks(fleet: &Fleet) -> Result<Vec<Value>> {
    let vm = fleet.vm(VM)?;
    Ok(vm["disks"].as_array().context("disks")?.clone())
}

fn disk(fleet: &Fleet, target: &str) -> Result<Value> {
    let found = disks(fleet)?;
    let found = found.into_iter().find(|disk| disk["target"] == target);
    found.with_context(|| format!("no disk {target}"))
}

/// The VM, which is off, has disks like those: with the same names, in the same order, with the same bytes.
fn copied_disks(fleet: &Fleet, vm: &str, source: &[Value]) -> Result<()> {
    let vm = fleet.vm(vm)?;
    let copies = vm["disks"].as_array().context("disks")?;
    let of = |disk: &Value| ["id", "target", "serial", "bus", "size"].map(|key| disk[key].clone());
    ensure!(
        copies.iter().map(of).eq(source.iter().map(of)),
        "{source:?} became {copies:?}"
    );
    marks(fleet, "read", &text(&vm, "host")?, copies)
}

/// Writes, into the disks of a VM that is off, bytes of which each disk has its own; or reads that they are there. The first
/// disk is the guest's.
fn marks(fleet: &Fleet, write_or_read: &str, host: &str, disks: &[Value]) -> Result<()> {
    for (byte, disk) in (0x51..).zip(disks).skip(1) {
        let path = text(disk, "path")?;
        let mark = format!("{write_or_read} -P {byte} 4M 64k");
        fleet.exec(host, &["qemu-io", "-c", &mark, &path])?.ok()?;
    }
    Ok(())
}

/// The same disks, wherever they lie now.
fn same_disks(before: &[Value], after: &[Value]) -> Result<()> {
    let of = |disk: &Value| {
        ["id", "target", "serial", "bus", "size", "pool", "presence"].map(|key| disk[key].clone())
    };
    ensure!(
        before.iter().map(of).eq(after.iter().map(of)),
        "{before:?} became {after:?}"
    );
    Ok(())
}
