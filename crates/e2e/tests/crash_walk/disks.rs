//! Disks of a VM that runs: they come, move and go, and a crash leaves the disk before or the disk after, whole.

use crate::scenario::{Before, Ended, Scenario};
use crate::subject::{VM, clean, exists, gone, running, stopped, strings};
use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest;
use serde_json::{Value, json};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        claim: "a_disk_that_comes_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: |fleet| runs_with(fleet, 1),
        command: |_| Ok(strings(&["vm", "disk", "add", VM, "8M"])),
        fault: None,
        check: |fleet, before, ended| {
            let number = if ended == Ended::Done { 2 } else { 1 };
            has(fleet, before, number, "default")
        },
        finally: None,
    },
    Scenario {
        claim: "a_disk_that_moves_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: |fleet| runs_with(fleet, 2),
        command: |_| {
            Ok(strings(&[
                "vm", "disk", "move", VM, "vda", "--pool", "shared",
            ]))
        },
        fault: None,
        check: |fleet, before, ended| {
            let pool = if ended == Ended::Done {
                "shared"
            } else {
                "default"
            };
            has(fleet, before, 2, pool)
        },
        finally: None,
    },
    Scenario {
        claim: "a_disk_that_goes_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: |fleet| runs_with(fleet, 2),
        command: |_| Ok(strings(&["vm", "disk", "remove", VM, "vdb", "--yes"])),
        fault: None,
        check: |fleet, before, ended| {
            let number = if ended == Ended::Done { 1 } else { 2 };
            has(fleet, before, number, "default")
        },
        finally: None,
    },
    Scenario {
        claim: "a_medium_that_comes_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: empty_drive,
        command: |_| Ok(strings(&["vm", "media", "insert", VM, MEDIUM])),
        fault: None,
        check: has_medium,
        finally: Some(|fleet, _| {
            fleet.cli(&["vm", "stop", VM, "--force"])?.ok()?;
            fleet.cli(&["vm", "delete", VM, "--yes"])?.ok()?;
            let delete = ["image", "delete", MEDIUM, "--yes"];
            fleet.cli(&delete)?.ok().map(drop)
        }),
    },
];

/// Walked by `make soak` alone.
pub(crate) const IN_SOAK: &[Scenario] = &[
    Scenario {
        claim: "a_disk_that_grows_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: |fleet| {
            runs_with(fleet, 1)?;
            runs_with(fleet, 2)
        },
        command: |_| Ok(strings(GROW)),
        fault: None,
        check: |fleet, before, ended| {
            has_grown(fleet, ended)?;
            let names = match ended {
                Ended::Done => "vda:64M,vdb:16M",
                Ended::Undone => "vda:64M,vdb:8M",
            };
            goes_on_with(fleet, before, names)
        },
        finally: None,
    },
    Scenario {
        claim: "a_disk_that_grows_while_its_vm_is_off_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: off_with_a_new_disk,
        command: |_| Ok(strings(GROW)),
        fault: None,
        check: |fleet, _, ended| {
            has_grown(fleet, ended)?;
            clean(fleet)
        },
        finally: Some(|fleet, _| {
            fleet.cli(GROW)?.ok()?;
            let now = running(fleet)?;
            ensure!(now.disks == "vda:64M,vdb:16M", "{now:?}");
            gone(fleet)
        }),
    },
];

const GROW: &[&str] = &["vm", "disk", "resize", VM, "vdb", "16M"];

/// Off on host a, with a second disk of 8 MiB.
fn off_with_a_new_disk(fleet: &Fleet) -> Result<Before> {
    if exists(fleet)? && fleet.place(VM)?.1 != "a" {
        gone(fleet)?;
    }
    stopped(fleet)?;
    if disks(fleet)?.len() > 1 {
        let remove = ["vm", "disk", "remove", VM, "vdb", "--yes"];
        fleet.cli(&remove)?.ok()?;
    }
    fleet.cli(&["vm", "disk", "add", VM, "8M"])?.ok()?;
    Ok(Before::default())
}

/// The second disk is as long in the specification, in its volume and in the machine.
fn has_grown(fleet: &Fleet, ended: Ended) -> Result<()> {
    let mib = match ended {
        Ended::Done => 16,
        Ended::Undone => 8,
    };
    let vm = fleet.vm(VM)?;
    ensure!(
        vm["pending"] == json!([]) && vm["findings"] == json!([]),
        "{vm}"
    );
    let disk = &vm["disks"][1];
    ensure!(disk["size"] == json!(mib << 20), "{ended:?}: {vm}");
    let path = text(disk, "path")?;
    // A machine that runs has the lock of its volume.
    let info = ["qemu-img", "info", "-U", "--output", "json", &path];
    let volume = fleet.exec("a", &info)?.ok()?.json()?;
    ensure!(
        volume["virtual-size"] == json!(mib << 20),
        "{ended:?}: {volume}"
    );
    Ok(())
}

/// An image that is put into a drive.
const MEDIUM: &str = "medium";

/// Runs on host a, with one drive that is empty.
fn empty_drive(fleet: &Fleet) -> Result<Before> {
    let images = fleet.json(&["image", "list"])?;
    let mut images = images.as_array().into_iter().flatten();
    if !images.any(|image| image["name"] == MEDIUM) {
        let mut content = vec![0; 20 * 2048];
        content[16 * 2048 + 1..16 * 2048 + 6].copy_from_slice(b"CD001");
        let path = fleet.directory().join("medium.iso");
        std::fs::write(&path, content)?;
        let path = path.display().to_string();
        fleet
            .cli(&["image", "import", MEDIUM, &path, "--format", "iso"])?
            .ok()?;
    }
    let before = runs_with(fleet, 1)?;
    if fleet.vm(VM)?["drives"] != json!([]) {
        fleet.cli(&["vm", "media", "eject", VM])?.ok()?;
        return Ok(before);
    }
    // A machine that runs has its first drive after its next start.
    fleet.cli(&["vm", "media", "add", VM])?.ok()?;
    fleet.cli(&["vm", "stop", VM, "--force"])?.ok()?;
    fleet.cli(&["vm", "start", VM])?.ok()?;
    let boots = before.guest.as_ref().context("it ran")?.boots;
    Ok(Before {
        guest: Some(guest::booted(fleet, VM, boots + 1)?),
        ..before
    })
}

/// The medium is in the drive, in the specification, the definition and the machine, or in none of them.
fn has_medium(fleet: &Fleet, before: &Before, ended: Ended) -> Result<()> {
    let vm = fleet.vm(VM)?;
    let image = match ended {
        Ended::Done => json!(MEDIUM),
        Ended::Undone => Value::Null,
    };
    ensure!(vm["drives"][0]["image"] == image, "{ended:?}: {vm}");
    has(fleet, before, 1, "default")
}

/// Runs on host a with so many disks in that host's own pool.
fn runs_with(fleet: &Fleet, number: usize) -> Result<Before> {
    if exists(fleet)? && fleet.place(VM)? != ("running".into(), "a".into()) {
        gone(fleet)?;
    }
    if !exists(fleet)? {
        running(fleet)?;
    }
    let disks = disks(fleet)?;
    if disks[0]["pool"] != "default" {
        let back = ["vm", "disk", "move", VM, "vda", "--pool", "default"];
        fleet.cli(&back)?.ok()?;
    }
    if number > disks.len() {
        fleet.cli(&["vm", "disk", "add", VM, "8M"])?.ok()?;
    }
    if number < disks.len() {
        fleet
            .cli(&["vm", "disk", "remove", VM, "vdb", "--yes"])?
            .ok()?;
    }
    Ok(Before {
        guest: guest::last(fleet, VM)?,
        ..Before::default()
    })
}

/// What is shown is what the guest has, in the boot that it was in, and nothing else lies on any host.
fn has(fleet: &Fleet, before: &Before, number: usize, pool: &str) -> Result<()> {
    let vm = fleet.vm(VM)?;
    let shown = disks(fleet)?;
    ensure!(shown.len() == number && shown[0]["pool"] == pool, "{vm}");
    ensure!(
        vm["pending"] == json!([]) && vm["findings"] == json!([]),
        "{vm}"
    );
    let names = if number == 2 {
        "vda:64M,vdb:8M"
    } else {
        "vda:64M"
    };
    goes_on_with(fleet, before, names)
}

/// The guest sees these disks, in the boot that it was in, and nothing else lies on any host.
fn goes_on_with(fleet: &Fleet, before: &Before, names: &str) -> Result<()> {
    let before = before.guest.as_ref().context("it ran")?;
    let now = guest::goes_on(fleet, VM, before)?;
    let now = fleetward_e2e::wait::until(
        "the guest's disks",
        fleetward_e2e::wait::seconds(10),
        || Ok(guest::last(fleet, VM)?.filter(|tick| tick.disks == names)),
    )
    .with_context(|| format!("{now:?}"))?;
    ensure!(now.unseal == "ok", "{now:?}");
    clean(fleet)
}

fn disks(fleet: &Fleet) -> Result<Vec<Value>> {
    let vm = fleet.vm(VM)?;
    Ok(vm["disks"].as_array().context("disks")?.clone())
}
