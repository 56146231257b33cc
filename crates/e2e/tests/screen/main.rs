//! The screen of a VM: what it shows from the firmware to the guest, that keys reach the guest, and that viewers stay through
//! a migration.

mod loader;
mod picture;
mod viewer;

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, run, text};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, suite};
use picture::Picture;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitCode, Stdio};
use viewer::Viewer;

const VM: &str = "desk";

/// What the lab guest shows in the first line of its screen.
const SHOWN: &str = "FLEETWARD-GUEST tick=";

fn main() -> ExitCode {
    suite::run(
        "e2e-screen",
        &["--hosts", "2"],
        &[
            (
                "screenshots_show_the_firmware_and_then_the_guest",
                firmware_then_guest,
            ),
            ("what_is_typed_reaches_the_guest", typing),
            ("viewers_stay_through_a_migration", viewers_stay),
            (
                "the_end_of_the_vm_ends_its_screen_and_says_so",
                end_of_the_vm,
            ),
            (
                "a_loader_that_the_firmware_does_not_trust_is_named_and_seen",
                loader::refused,
            ),
            (
                "a_console_that_is_open_while_the_firmware_refuses_hides_nothing",
                loader::refused_with_a_console,
            ),
            ("only_operators_see_a_screen", roles),
            ("every_use_is_in_the_audit_log", audited),
        ],
    )
}

fn screenshot(fleet: &Fleet, vm: &str) -> Result<Picture> {
    let taken = fleet
        .cli_command()
        .args(["vm", "screenshot", vm, "--out", "-"])
        .output()?;
    let stderr = String::from_utf8_lossy(&taken.stderr);
    ensure!(taken.status.success(), "{stderr}");
    Picture::read(&taken.stdout)
}

fn firmware_then_guest(fleet: &Fleet) -> Result<()> {
    let create = [
        "vm",
        "create",
        VM,
        "--image",
        "lab-guest",
        "--memory",
        "512M",
        "--host",
        "a",
    ];
    fleet.cli(&create)?.ok()?;
    fleet
        .cli(&["vm", "screenshot", VM])?
        .refused(4, "VM_NOT_RUNNING")?;
    fleet.cli(&["vm", "start", VM])?.ok()?;
    // The firmware's logo, in the middle, has many colours on a white ground; a text screen has two.
    let firmware = wait::until("the firmware's logo", guest::BOOT, || {
        let picture = screenshot(fleet, VM)?;
        Ok(picture.has_logo().then_some(picture))
    })?;
    ensure!(
        firmware.colours() > 50 && firmware.black() > 0.5,
        "{} colours, {} black",
        firmware.colours(),
        firmware.black()
    );
    guest::booted(fleet, VM, 1)?;
    let shown = wait::until("the guest's text", guest::BOOT, || {
        let picture = screenshot(fleet, VM)?;
        Ok(is_guest(&picture).then_some(picture))
    })?;
    ensure!(
        !shown.has_logo() && shown.colours() < 10,
        "{} colours",
        shown.colours()
    );
    // It is the present moment that is shown: the guest counts.
    let digits = |picture: &Picture| picture.line(0, SHOWN.len() + 6);
    wait::until("the next number", seconds(30), || {
        let later = screenshot(fleet, VM)?;
        Ok((is_guest(&later) && digits(&later) != digits(&shown)).then_some(()))
    })?;
    Ok(())
}

/// Whether the first line begins as the lab guest's: equal characters have equal glyphs, and others others.
fn is_guest(picture: &Picture) -> bool {
    let glyphs = picture.line(0, SHOWN.len());
    let characters: Vec<char> = SHOWN.chars().collect();
    characters.iter().enumerate().all(|(i, one)| {
        let others = characters.iter().enumerate();
        let mut others = others.filter(|(j, _)| *j != i);
        others.all(|(j, other)| (one == other) == (glyphs[i] == glyphs[j]))
    })
}

/// Waits until the guest has printed that line as typed.
fn typed(fleet: &Fleet, line: &str) -> Result<()> {
    let wanted = format!("FLEETWARD-GUEST-NOTE typed={line}");
    wait::until(&wanted, seconds(30), || {
        let said = fleet.lab("serial", &[VM])?.ok()?.stdout;
        Ok(said
            .lines()
            .any(|said| said.trim_end().ends_with(&wanted))
            .then_some(()))
    })
}

fn typing(fleet: &Fleet) -> Result<()> {
    let line = "Hello, World! ~/$x|\"q\" {[(<a-b>)]} 100%";
    let result = fleet.json(&["vm", "keys", VM, line, "enter"])?;
    ensure!(result["keystrokes"] == line.len() + 1, "{result}");
    typed(fleet, line)?;
    fleet.cli(&["vm", "keys", VM, "--text", "enter"])?.ok()?;
    fleet
        .cli(&["vm", "keys", VM, "x", "backspace", "shift-a", "enter"])?
        .ok()?;
    typed(fleet, "enterA")?;
    // A password is in nobody's list of processes.
    let mut child = fleet
        .cli_command()
        .args(["vm", "keys", VM, "--stdin"])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("a piped child has an input")?;
    std::io::Write::write_all(&mut stdin, b"s3cret of desk\n")?;
    drop(stdin);
    ensure!(child.wait()?.success(), "typing from standard input failed");
    typed(fleet, "s3cret of desk")?;
    // Refused as a whole: the part that could be typed is not.
    fleet
        .cli(&["vm", "keys", VM, "not typed", "pä", "enter"])?
        .refused(2, "INVALID_ARGUMENT")?;
    fleet.cli(&["vm", "keys", VM, "enter"])?.ok()?;
    typed(fleet, "")
}

/// `fleetward vm screen`, until dropped.
struct Offered {
    child: Child,
    address: String,
}

impl Offered {
    fn start(fleet: &Fleet) -> Result<Self> {
        let mut child = fleet
            .cli_command()
            .args(["vm", "screen", VM])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("a piped child has an output")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address)?;
        ensure!(address.starts_with("127.0.0.1:"), "{address:?}");
        Ok(Self {
            child,
            address: address.trim().to_owned(),
        })
    }

    /// Its exit code, and what it said on standard error, once it has ended by itself.
    fn ended(mut self) -> Result<(Option<i32>, String)> {
        let status = wait::until("vm screen to end", seconds(20), || {
            Ok(self.child.try_wait()?)
        })?;
        let mut said = String::new();
        let mut stderr = self
            .child
            .stderr
            .take()
            .context("a piped child has an output")?;
        stderr.read_to_string(&mut said)?;
        Ok((status.code(), said))
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn viewers_stay(fleet: &Fleet) -> Result<()> {
    let before = guest::last(fleet, VM)?.context("it has said nothing")?;
    let offered = Offered::start(fleet)?;
    let mut first = Viewer::connect(&offered.address, false)?;
    // One that asks to be alone does not end the others.
    let mut second = Viewer::connect(&offered.address, true)?;
    let digits = |picture: &Picture| picture.line(0, SHOWN.len() + 6);
    let mut seen = Vec::new();
    for (name, viewer) in [("first", &mut first), ("second", &mut second)] {
        seen.push(viewer.until(&format!("the guest, for the {name}"), seconds(30), is_guest)?);
    }
    for host in ["b", "a"] {
        fleet.cli(&["vm", "migrate", VM, "--to", host])?.ok()?;
        ensure!(fleet.place(VM)?.1 == host);
        for viewer in [&mut first, &mut second] {
            let what = format!("the guest's next number on host {host}");
            let last = seen.remove(0);
            let now = viewer.until(&what, seconds(60), |now| {
                is_guest(now) && digits(now) != digits(&last)
            })?;
            seen.push(now);
        }
        let line = format!("to{host}");
        let keysyms = line.chars().map(u32::from).chain([0xff0d]);
        second.press(&keysyms.collect::<Vec<_>>())?;
        typed(fleet, &line)?;
    }
    guest::goes_on(fleet, VM, &before)?;
    Ok(())
}

fn end_of_the_vm(fleet: &Fleet) -> Result<()> {
    fleet
        .cli(&["vm", "screen", VM, "--listen", "0.0.0.0:0"])?
        .refused(2, "INVALID_ARGUMENT")?;
    let offered = Offered::start(fleet)?;
    let mut viewer = Viewer::connect(&offered.address, false)?;
    viewer.until("the guest", seconds(30), is_guest)?;
    fleet.cli(&["vm", "stop", VM, "--force"])?.ok()?;
    viewer.closed()?;
    let (code, said) = offered.ended()?;
    ensure!(code == Some(0), "exit {code:?}: {said}");
    ensure!(said.contains("the screen has ended: VM desk"), "{said}");
    fleet
        .cli(&["vm", "screen", VM])?
        .refused(4, "VM_NOT_RUNNING")?;
    fleet
        .cli(&["vm", "keys", VM, "enter"])?
        .refused(4, "VM_NOT_RUNNING")
        .map(drop)
}

fn roles(fleet: &Fleet) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("fleetward-roles-{}", std::process::id()));
    let out = directory.to_string_lossy().into_owned();
    let create = [
        "admin", "create", "looker", "--role", "viewer", "--out", &out,
    ];
    fleet.cli(&create)?.ok()?;
    let url = format!(
        "https://{}",
        fleet.variable("FLEETWARD_LAB_CONTROLLER_ADDRESS")?
    );
    let program = fleet.program("fleetward").to_string_lossy().into_owned();
    let (cert, ca) = (format!("{out}/looker.pem"), format!("{out}/fleet-ca.pem"));
    let remote = [&program, "--controller", &url, "--cert", &cert, "--ca", &ca];
    let mut result = fleet
        .exec("a", &[&remote[..], &["vm", "show", VM]].concat())?
        .ok()
        .map(drop);
    for command in [
        &["vm", "screen", VM][..],
        &["vm", "screenshot", VM, "--out", "-"],
        &["vm", "keys", VM, "enter"],
    ] {
        let refused = fleet.exec("a", &[&remote[..], command].concat())?;
        result = result.and(refused.refused(1, "ROLE_MISSING").map(drop));
    }
    run(std::process::Command::new("rm").args(["-r", &out]))?.ok()?;
    result
}

fn audited(fleet: &Fleet) -> Result<()> {
    let records = fleet.json(&["audit", "--vm", VM])?;
    let records: Vec<&Value> = records.as_array().into_iter().flatten().collect();
    let count = |action: &str| {
        records
            .iter()
            .filter(|record| record["action"] == action)
            .count()
    };
    for action in ["take-screenshot", "type-keys", "open-screen"] {
        ensure!(count(action) > 0, "no {action}: {records:?}");
    }
    // Each viewer on each host, and each is closed.
    ensure!(count("open-screen") >= 7, "{records:?}");
    ensure!(count("open-screen") == count("close-screen"), "{records:?}");
    let opened = records
        .iter()
        .find(|record| record["action"] == "open-screen");
    let opened = opened.context("counted above")?;
    ensure!(text(opened, "actor")? == "local:0", "{opened}");
    ensure!(text(opened, "reason")? == "VM desk on host a", "{opened}");
    // Who typed is recorded; what was typed is not, and is not logged either.
    let everything = serde_json::to_string(&records)?;
    ensure!(!everything.contains("s3cret"), "{everything}");
    let logs = fleet.directory();
    let found = run(std::process::Command::new("grep")
        .args(["-rlaI", "--include=*.log", "s3cret"])
        .arg(&logs))?;
    let elsewhere: Vec<&str> = found
        .stdout
        .lines()
        .filter(|file| !file.ends_with(&format!("{VM}.log")))
        .collect();
    ensure!(elsewhere.is_empty(), "{elsewhere:?}");
    Ok(())
}
