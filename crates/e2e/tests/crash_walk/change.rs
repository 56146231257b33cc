//! What is changed of a VM that stays where it is.

use crate::scenario::{Before, Ended, Fault, Scenario};
use crate::subject::{CREATE, VM, clean, exists, gone, running, stopped, strings};
use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::guest;
use serde_json::{Value, json};

/// Its other name.
const OTHER: &str = "walked";

/// Of a card that is added.
const MAC: &str = "52:54:00:77:77:77";

const WORDS: &str = "経理サーバー 🔒";

const SET: &[&str] = &[
    "vm",
    "set",
    VM,
    "--cpus",
    "2",
    "--memory",
    "640M",
    "--description",
    WORDS,
    "--label",
    "tier=front",
];

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        claim: "a_change_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: plain,
        command: |_| Ok(strings(SET)),
        fault: None,
        check: |fleet, _, ended| has_changed(fleet, VM, ended),
        finally: Some(it_starts),
    },
    Scenario {
        claim: "a_network_card_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: one_card,
        command: |_| Ok(strings(&["vm", "nic", "add", VM, "lan", "--mac", MAC])),
        fault: None,
        check: |fleet, _, ended| has_card(fleet, ended),
        finally: Some(it_starts),
    },
    Scenario {
        claim: "a_rename_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: plain,
        command: |_| Ok(strings(&["vm", "rename", VM, OTHER])),
        fault: None,
        check: |fleet, _, ended| has_one_name(fleet, if ended == Ended::Done { OTHER } else { VM }),
        finally: Some(it_starts),
    },
    Scenario {
        claim: "a_rename_that_fails_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: plain,
        command: |_| Ok(strings(&["vm", "rename", VM, OTHER])),
        fault: Some(Fault {
            at: "job.vm-change.change.before",
            strike: somebody_takes_the_name,
        }),
        check: |fleet, _, ended| {
            let taken = ["virsh", "-q", "undefine", OTHER];
            fleet.exec("a", &taken)?.ok()?;
            has_one_name(fleet, if ended == Ended::Done { OTHER } else { VM })
        },
        finally: None,
    },
    Scenario {
        claim: "a_change_with_a_tpm_survives_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: plain,
        command: |_| {
            let mut words = strings(SET);
            words.extend(strings(&["--tpm", "off"]));
            Ok(words)
        },
        fault: None,
        check: |fleet, _, ended| {
            let vm = fleet.vm(VM)?;
            let wanted = ended != Ended::Done;
            ensure!(vm["tpm"]["enabled"] == wanted, "{ended:?}: {vm}");
            has_changed(fleet, VM, ended)
        },
        finally: Some(it_starts),
    },
];

/// Walked by `make soak` alone.
pub(crate) const IN_SOAK: &[Scenario] = &[
    Scenario {
        claim: "a_boot_order_and_a_clock_survive_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: |fleet| {
            let before = plain(fleet)?;
            machine_as_made(fleet)?;
            Ok(before)
        },
        command: |_| Ok(strings(MACHINE)),
        fault: None,
        check: |fleet, _, ended| {
            let vm = fleet.vm(VM)?;
            let wanted = match ended {
                Ended::Done => ("network", "local"),
                Ended::Undone => ("disk", "utc"),
            };
            has_machine(&vm, wanted)?;
            in_line(&vm)?;
            clean(fleet)
        },
        finally: Some(it_starts),
    },
    Scenario {
        claim: "a_boot_order_and_a_clock_that_wait_survive_kill_9_everywhere",
        kind: "vm-change",
        victims: &["controller", "a/agent"],
        prepare: runs_as_made,
        command: |_| Ok(strings(MACHINE)),
        fault: None,
        check: |fleet, before, ended| {
            let vm = fleet.vm(VM)?;
            // The machine that runs keeps what it has.
            has_machine(&vm, ("disk", "utc"))?;
            let waits = match ended {
                Ended::Done => json!([
                    {"change": "boot", "now": "disk", "wanted": "network"},
                    {"change": "clock", "now": "utc", "wanted": "local"},
                ]),
                Ended::Undone => json!([]),
            };
            ensure!(
                vm["pending"] == waits && vm["findings"] == json!([]),
                "{ended:?}: {vm}"
            );
            let before = before.guest.as_ref().context("it ran")?;
            guest::goes_on(fleet, VM, before)?;
            clean(fleet)
        },
        // What waits would come with the next start, in a scenario that does not expect it.
        finally: Some(|fleet, _| machine_as_made(fleet)),
    },
];

const MACHINE: &[&str] = &["vm", "set", VM, "--boot", "network", "--clock", "local"];

fn machine_as_made(fleet: &Fleet) -> Result<()> {
    let back = ["vm", "set", VM, "--boot", "disk", "--clock", "utc"];
    fleet.cli(&back)?.ok().map(drop)
}

/// Runs on host a, with nothing that waits.
fn runs_as_made(fleet: &Fleet) -> Result<Before> {
    if is_elsewhere(fleet)? {
        gone(fleet)?;
    }
    let runs = exists(fleet)? && fleet.place(VM)?.0 == "running";
    if !runs {
        plain(fleet)?;
        running(fleet)?;
    }
    machine_as_made(fleet)?;
    in_line(&fleet.vm(VM)?)?;
    Ok(Before {
        guest: guest::last(fleet, VM)?,
        ..Before::default()
    })
}

fn is_elsewhere(fleet: &Fleet) -> Result<bool> {
    Ok(exists(fleet)? && fleet.place(VM)?.1 != "a")
}

fn has_machine(vm: &Value, (boot, clock): (&str, &str)) -> Result<()> {
    ensure!(vm["boot"] == boot && vm["clock"] == clock, "{vm}");
    Ok(())
}

/// Stopped on host a, under its name, as it was made.
fn plain(fleet: &Fleet) -> Result<Before> {
    let list = fleet.json(&["vm", "list"])?;
    let named = |name: &str| {
        list.as_array()
            .into_iter()
            .flatten()
            .any(|vm| vm["name"] == name)
    };
    if named(OTHER) {
        fleet.cli(&["vm", "rename", OTHER, VM])?.ok()?;
    }
    if is_elsewhere(fleet)? {
        gone(fleet)?;
    }
    if !exists(fleet)? {
        fleet.cli(CREATE)?.ok()?;
    }
    stopped(fleet)?;
    let back = [
        "vm",
        "set",
        VM,
        "--cpus",
        "1",
        "--memory",
        "512M",
        "--description",
        "",
        "--label",
        "tier-",
        "--tpm",
        "on",
    ];
    fleet.cli(&back)?.ok()?;
    Ok(Before::default())
}

/// As [`plain`], with the card that it was made with.
fn one_card(fleet: &Fleet) -> Result<Before> {
    let before = plain(fleet)?;
    let vm = fleet.vm(VM)?;
    let more = vm["nics"].as_array().into_iter().flatten().skip(1);
    for nic in more.filter_map(|nic| nic["id"].as_str()) {
        fleet.cli(&["vm", "nic", "remove", VM, nic])?.ok()?;
    }
    Ok(before)
}

/// The card is there once, in the specification and in the definition, or in neither.
fn has_card(fleet: &Fleet, ended: Ended) -> Result<()> {
    let vm = fleet.vm(VM)?;
    in_line(&vm)?;
    let macs = vm["nics"].as_array().into_iter().flatten();
    let of_ours = macs.filter(|nic| nic["mac"] == MAC).count();
    ensure!(
        of_ours == usize::from(ended == Ended::Done),
        "{ended:?}: {vm}"
    );
    clean(fleet)
}

/// All of it or nothing, in the specification and in the definition.
fn has_changed(fleet: &Fleet, name: &str, ended: Ended) -> Result<()> {
    let vm = fleet.vm(name)?;
    let (cpus, mib, words, labels) = match ended {
        Ended::Done => (2, 640, WORDS, json!({"tier": "front"})),
        Ended::Undone => (1, 512, "", json!({})),
    };
    let seen = (
        &vm["cpus"],
        &vm["memory_bytes"],
        &vm["description"],
        &vm["labels"],
    );
    let wanted = (json!(cpus), json!(mib << 20), json!(words), labels);
    ensure!(
        seen == (&wanted.0, &wanted.1, &wanted.2, &wanted.3),
        "{ended:?}: {vm}"
    );
    in_line(&vm)?;
    clean(fleet)
}

fn has_one_name(fleet: &Fleet, name: &str) -> Result<()> {
    let vm = fleet.vm(name)?;
    in_line(&vm)?;
    let id = vm["id"].as_str().unwrap_or_default();
    let domain = fleet.exec("a", &["virsh", "-q", "domname", id])?.ok()?;
    ensure!(
        domain.stdout.trim() == name,
        "its domain is {}",
        domain.stdout
    );
    clean(fleet)
}

/// Nothing waits, and the definition is what Fleetward says.
fn in_line(vm: &Value) -> Result<()> {
    let (pending, findings) = (&vm["pending"], &vm["findings"]);
    ensure!(*pending == json!([]) && *findings == json!([]), "{vm}");
    Ok(())
}

/// A domain that Fleetward did not make.
fn somebody_takes_the_name(fleet: &Fleet) -> Result<()> {
    let script = format!(
        "cat > /tmp/taken.xml <<'END'\n<domain type='qemu'><name>{OTHER}</name><memory unit='MiB'>64</memory>\
         <os><type arch='x86_64'>hvm</type></os></domain>\nEND\nvirsh -q define /tmp/taken.xml"
    );
    fleet.exec("a", &["sh", "-c", &script])?.ok().map(drop)
}

fn it_starts(fleet: &Fleet, _: &Before) -> Result<()> {
    fleet.cli(&["vm", "start", VM])?.ok()?;
    stopped(fleet)
}
