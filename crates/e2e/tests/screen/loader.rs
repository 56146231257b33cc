//! A guest whose loader is signed by a key that its firmware does not trust: Debian's GRUB, which only Debian's shim lets
//! start, in the place of the shim.

use crate::screenshot;
use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, secure_boot};
use std::process::Stdio;

const BARRED: &str = "barred";
const CODE: &str = "LOADER_NOT_TRUSTED";

/// Puts one of the loaders on its disk into the place of what the firmware starts, while it is stopped.
fn put_loader(fleet: &Fleet, script: &str) -> Result<()> {
    let vm = fleet.vm(BARRED)?;
    let disk = text(&vm["disks"][0], "path")?;
    let edit = format!(
        "d={disk}; e=$d.raw@@1M; qemu-img convert -O raw $d $d.raw; {script}; \
         qemu-img convert -f raw -O qcow2 $d.raw $d.new; cat $d.new > $d; rm $d.raw $d.new"
    );
    fleet.exec("b", &["sh", "-ec", &edit])?.ok().map(drop)
}

const BAR: &str = "mcopy -i $e ::EFI/BOOT/BOOTX64.EFI $d.shim; mcopy -o -i $e $d.shim ::EFI/kept; rm $d.shim; \
    mcopy -i $e ::EFI/BOOT/grubx64.efi $d.grub; mcopy -o -i $e $d.grub ::EFI/BOOT/BOOTX64.EFI; rm $d.grub";
const CURE: &str =
    "mcopy -i $e ::EFI/kept $d.shim; mcopy -o -i $e $d.shim ::EFI/BOOT/BOOTX64.EFI; rm $d.shim";

/// The fix of its finding, once it has one.
fn found(fleet: &Fleet) -> Result<Option<String>> {
    let shown = fleet.vm(BARRED)?;
    let findings = shown["findings"].as_array().into_iter().flatten();
    let mut findings = findings.filter(|finding| finding["code"] == CODE);
    findings
        .next()
        .map(|finding| text(finding, "fix"))
        .transpose()
}

fn until_found(fleet: &Fleet) -> Result<String> {
    wait::until("the refused loader to be named", guest::BOOT, || {
        found(fleet)
    })
}

fn until_not_found(fleet: &Fleet) -> Result<()> {
    wait::until("the refused loader to be forgotten", seconds(30), || {
        Ok(found(fleet)?.is_none().then_some(()))
    })
}

/// Resets the paused VM, so that its firmware begins when it is resumed, and not while we look.
fn begin_anew(fleet: &Fleet) -> Result<()> {
    fleet.exec("b", &["virsh", "reset", BARRED])?.ok()?;
    until_not_found(fleet)
}

pub(crate) fn refused(fleet: &Fleet) -> Result<()> {
    let create = [
        "vm",
        "create",
        BARRED,
        "--image",
        "lab-guest",
        "--memory",
        "512M",
        "--host",
        "b",
    ];
    fleet.cli(&create)?.ok()?;
    put_loader(fleet, BAR)?;
    fleet.cli(&["vm", "start", BARRED])?.ok()?;
    let fix = until_found(fleet)?;
    ensure!(
        fix.ends_with("fleetward secure-boot status barred"),
        "{fix}"
    );
    let shown = fleet.cli(&["vm", "show", BARRED])?.ok()?.stdout;
    let named = format!("{CODE}: the firmware of VM barred does not trust the loader");
    ensure!(shown.contains(&named) && shown.contains(&fix), "{shown}");
    let check = ["vm", "migrate", BARRED, "--to", "a", "--check"];
    let checked = fleet.cli(&check)?.ok()?.stdout;
    ensure!(checked.contains(CODE), "{checked}");
    wait::until("the screen to say so", seconds(60), || {
        let picture = screenshot(fleet, BARRED)?;
        Ok(picture
            .firmware_says("BdsDxe: failed to load Boot000")
            .then_some(()))
    })?;

    // It is of this boot, and each boot is listened to.
    fleet.cli(&["vm", "pause", BARRED])?.ok()?;
    begin_anew(fleet)?;
    fleet.cli(&["vm", "resume", BARRED])?.ok()?;
    until_found(fleet)?;

    // With the variables of an older firmware the certificates are what may be missing.
    fleet.cli(&["vm", "stop", BARRED, "--force"])?.ok()?;
    until_not_found(fleet)?;
    secure_boot::make_old(fleet, "b", BARRED)?;
    fleet.cli(&["vm", "start", BARRED])?.ok()?;
    let fix = until_found(fleet)?;
    let commands: Vec<&str> = fix.split(", then ").collect();
    ensure!(commands.len() == 3, "{fix}");
    for command in commands {
        let mut words: Vec<&str> = command.split(' ').skip(1).collect();
        if words.contains(&"enroll") {
            words.push("--yes");
        }
        fleet.cli(&words)?.ok()?;
    }
    // For the next case; however far it has come, it prints all of it again once a console is open.
    fleet.cli(&["vm", "pause", BARRED])?.ok().map(drop)
}

/// Somebody watches the console from the beginning, so all of the firmware's text goes there.
pub(crate) fn refused_with_a_console(fleet: &Fleet) -> Result<()> {
    let mut console = fleet
        .cli_command()
        .args(["vm", "console", BARRED])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let opened = wait::until("the console to be open", seconds(20), || {
        let records = fleet.json(&["audit", "--vm", BARRED])?;
        let mut records = records.as_array().into_iter().flatten();
        Ok(records
            .any(|record| record["action"] == "open-console")
            .then_some(()))
    });
    let seen = opened.and_then(|()| {
        begin_anew(fleet)?;
        fleet.cli(&["vm", "resume", BARRED])?.ok()?;
        until_found(fleet)
    });
    // It may have ended.
    let _ = console.kill();
    let said = console.wait_with_output()?;
    let fix = seen.with_context(|| String::from_utf8_lossy(&said.stdout).into_owned())?;
    // The certificates are all there now, and were not the reason.
    ensure!(
        fix.ends_with("fleetward secure-boot status barred"),
        "{fix}"
    );
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    // All of it: nobody else reads there meanwhile.
    ensure!(
        said.contains("BdsDxe: failed to load Boot0001") && said.contains(": Access Denied"),
        "{said:?}"
    );

    fleet.cli(&["vm", "stop", BARRED, "--force"])?.ok()?;
    put_loader(fleet, CURE)?;
    fleet.cli(&["vm", "start", BARRED])?.ok()?;
    guest::booted(fleet, BARRED, 1)?;
    ensure!(found(fleet)?.is_none(), "its loader is trusted");
    fleet.cli(&["vm", "stop", BARRED, "--force"])?.ok()?;
    let delete = ["vm", "delete", BARRED, "--yes"];
    fleet.cli(&delete)?.ok().map(drop)
}
