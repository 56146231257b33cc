//! One way to change a VM, and what an administrator wrote into its definition by hand stays through everything.

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, residue, suite};
use serde_json::{Value, json};
use std::process::ExitCode;

const VM: &str = "desk";

/// In front of what, which text, and what libvirt makes of it.
const BY_HAND: &[(&str, &str, &str)] = &[
    (
        "</devices>",
        "<sound model=\"ich9\"/>",
        "<sound model='ich9'>",
    ),
    (
        "<os ",
        "<cputune><shares>777</shares></cputune>",
        "<shares>777</shares>",
    ),
    (
        "</metadata>",
        "<x:other xmlns:x=\"urn:other\"><x:kept>1</x:kept></x:other>",
        "<x:kept>1</x:kept>",
    ),
];

fn main() -> ExitCode {
    suite::run(
        "e2e-change",
        &["--hosts", "2"],
        &[
            (
                "a_running_vm_takes_its_new_size_at_its_next_start",
                size_at_the_next_start,
            ),
            ("an_edit_by_hand_stays_through_everything", edit_stays),
            ("a_renamed_domain_goes_on_and_is_brought_in_line", renamed),
        ],
    )
}

fn size_at_the_next_start(fleet: &Fleet) -> Result<()> {
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
        "--description",
        "経理",
        "--start",
    ];
    fleet.cli(&create)?.ok()?;
    ensure!(fleet.vm(VM)?["description"] == "経理");
    let before = guest::booted(fleet, VM, 1)?;
    let set = [
        "vm",
        "set",
        VM,
        "--cpus",
        "2",
        "--memory",
        "640M",
        "--label",
        "tier=front",
        "--autostart",
        "on",
        "-o",
        "json",
    ];
    let result = fleet.cli(&set)?.ok()?.json()?;
    ensure!(
        result["next_start"] == json!(["cpus", "memory"]),
        "{result}"
    );
    let vm = fleet.vm(VM)?;
    ensure!(vm["cpus"] == 1 && vm["autostart"] == true, "{vm}");
    ensure!(vm["labels"] == json!({"tier": "front"}), "{vm}");
    let waits = json!([
        {"change": "cpus", "now": 1, "wanted": 2},
        {"change": "memory", "now": 512 << 20, "wanted": 640 << 20},
    ]);
    ensure!(
        vm["pending"] == waits && vm["findings"] == json!([]),
        "{vm}"
    );
    guest::goes_on(fleet, VM, &before)?;
    fleet
        .cli(&["vm", "rename", VM, "other"])?
        .refused(4, "VM_RUNNING")?;
    // What waits goes along with a live migration, and so does an edit by hand.
    let by_hand = ["virsh", "-q", "desc", VM, "--config"];
    fleet
        .exec("a", &[&by_hand[..], &["written by hand"]].concat())?
        .ok()?;
    for host in ["b", "a"] {
        fleet.cli(&["vm", "migrate", VM, "--to", host])?.ok()?;
        let vm = fleet.vm(VM)?;
        ensure!(vm["host"] == host && vm["pending"] == waits, "{vm}");
        let kept = fleet.exec(host, &by_hand)?.ok()?.stdout;
        ensure!(kept.trim() == "written by hand", "{kept}");
    }
    guest::goes_on(fleet, VM, &before)?;
    fleet.cli(&["vm", "stop", VM])?.ok()?;
    fleet.cli(&["vm", "start", VM])?.ok()?;
    let after = guest::booted(fleet, VM, before.boots + 1)?;
    ensure!(after.unseal == "ok" && after.ek == before.ek, "{after:?}");
    let vm = fleet.vm(VM)?;
    ensure!(vm["cpus"] == 2 && vm["memory_bytes"] == 640 << 20, "{vm}");
    ensure!(vm["pending"] == json!([]), "{vm}");
    Ok(())
}

fn edit_stays(fleet: &Fleet) -> Result<()> {
    let before = guest::last(fleet, VM)?.context("it has said nothing")?;
    fleet.cli(&["vm", "stop", VM])?.ok()?;
    edit_by_hand(fleet)?;
    let vm = wait::until("the edit to show", seconds(10), || {
        let vm = fleet.vm(VM)?;
        Ok((vm["findings"] != json!([])).then_some(vm))
    })?;
    ensure!(vm["findings"][0]["code"] == "DEFINITION_EDITED", "{vm}");
    for command in [
        &["vm", "set", VM, "--cpus", "1"][..],
        &["tpm", "roll", VM],
        &["guardian", "revoke", VM, "--from", "b", "--yes"],
        &["guardian", "grant", VM, "--to", "b"],
        &["tpm", "disable", VM, "--yes"],
        &["tpm", "restore", VM],
        &["vm", "clone", VM, "twin"],
        &["vm", "migrate", VM, "--to", "b", "--offline"],
    ] {
        fleet.cli(command)?.ok()?;
        let host = fleet.place(VM)?.1;
        let xml = definition(fleet, &host)?;
        for (_, _, kept) in BY_HAND {
            ensure!(xml.contains(kept), "{command:?} took {kept}: {xml}");
        }
        ensure!(
            xml.contains(">614400</memory>"),
            "{command:?} took the memory: {xml}"
        );
    }
    ensure!(fleet.place(VM)?.1 == "b", "it did not move");
    fleet.cli(&["vm", "delete", "twin", "--yes"])?.ok()?;
    fleet.cli(&["vm", "start", VM])?.ok()?;
    let after = guest::booted(fleet, VM, before.boots + 1)?;
    ensure!(after.unseal == "ok" && after.ek == before.ek, "{after:?}");
    fleet.cli(&["vm", "stop", VM])?.ok()?;
    // Asked for, it is brought in line.
    fleet.cli(&["vm", "set", VM, "--memory", "640M"])?.ok()?;
    let vm = fleet.vm(VM)?;
    ensure!(vm["findings"] == json!([]), "{vm}");
    residue::none_anywhere(fleet, &["a", "b"])
}

fn renamed(fleet: &Fleet) -> Result<()> {
    fleet
        .exec("b", &["virsh", "-q", "domrename", VM, "evil"])?
        .ok()?;
    let vm = wait::until("the rename to show", seconds(10), || {
        let vm: Value = fleet.vm(VM)?;
        Ok((vm["domain_name"] == "evil").then_some(vm))
    })?;
    ensure!(vm["name"] == VM, "silently renamed: {vm}");
    ensure!(vm["findings"][0]["code"] == "NAME_DIFFERS", "{vm}");
    fleet.cli(&["tpm", "roll", "evil"])?.ok()?;
    fleet.cli(&["vm", "set", VM, "--cpus", "2"])?.ok()?;
    fleet.cli(&["vm", "rename", VM, "net"])?.ok()?;
    let vm = fleet.vm("net")?;
    ensure!(vm["findings"] == json!([]), "{vm}");
    let names = fleet
        .exec("b", &["virsh", "-q", "list", "--all", "--name"])?
        .ok()?;
    ensure!(
        names.stdout.split_whitespace().eq(["net"]),
        "{}",
        names.stdout
    );
    fleet.cli(&["vm", "start", "net"])?.ok()?;
    fleet.cli(&["vm", "stop", "net", "--force"])?.ok()?;
    fleet.cli(&["vm", "delete", "net", "--yes"])?.ok()?;
    residue::none_anywhere(fleet, &["a", "b"])
}

fn edit_by_hand(fleet: &Fleet) -> Result<()> {
    let mut xml = definition(fleet, "a")?;
    for (place, text, _) in BY_HAND {
        let at = xml.find(place).context("a place to edit")?;
        xml.insert_str(at, text);
    }
    let memory = xml.find("<memory").context("a memory")?;
    let end = xml.find("</currentMemory>").context("its end")?;
    let by_hand = "<memory unit='MiB'>600</memory><currentMemory unit='MiB'>600";
    xml.replace_range(memory..end, by_hand);
    let script =
        format!("cat > /tmp/edited.xml <<'END'\n{xml}\nEND\nvirsh -q define /tmp/edited.xml");
    fleet.exec("a", &["sh", "-c", &script])?.ok().map(drop)
}

fn definition(fleet: &Fleet, host: &str) -> Result<String> {
    let dump = ["virsh", "dumpxml", "--inactive", "--security-info", VM];
    Ok(fleet.exec(host, &dump)?.ok()?.stdout)
}
