//! Clones and templates. The source VM is unharmed and keeps running in all of them.

use crate::scenario::{Before, Ended, Scenario};
use crate::subject::{
    VM, clean, exists, gone, running, shows_as, stopped, strings, unseals, unseals_in,
};
use anyhow::{Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest;

/// The clone's name.
const TWIN: &str = "twin";

/// The template's name.
const TEMPLATE: &str = "walked";

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        claim: "a_clone_of_a_stopped_vm_survives_kill_9_everywhere",
        kind: "vm-clone",
        victims: &["controller", "a/agent"],
        prepare: stopped_on_a,
        command: |_| Ok(strings(&["vm", "clone", VM, TWIN, "--tpm", "copy"])),
        fault: None,
        check: |fleet, _, ended| {
            shows_as(fleet, "stopped")?;
            twin_is_there(fleet, ended)?;
            clean(fleet)
        },
        finally: Some(the_twin_unseals),
    },
    Scenario {
        claim: "a_clone_of_a_running_vm_survives_kill_9_everywhere",
        kind: "vm-clone",
        victims: &["controller", "a/agent"],
        prepare: running_on_a,
        command: |_| Ok(strings(&["vm", "clone", VM, TWIN, "--tpm", "copy"])),
        fault: None,
        check: |fleet, _, ended| {
            goes_on(fleet)?;
            twin_is_there(fleet, ended)?;
            clean(fleet)
        },
        finally: None,
    },
    Scenario {
        claim: "a_template_of_a_running_vm_survives_kill_9_everywhere",
        kind: "template-create",
        victims: &["controller", "a/agent"],
        prepare: running_on_a,
        command: |_| Ok(strings(&["template", "create", TEMPLATE, "--from", VM])),
        fault: None,
        check: |fleet, _, ended| {
            goes_on(fleet)?;
            ensure!(
                has_template(fleet)? == (ended == Ended::Done),
                "the job is {ended:?}, but the template says otherwise"
            );
            clean(fleet)
        },
        finally: Some(|fleet, _| cleared(fleet)),
    },
];

fn listed(fleet: &Fleet, command: &[&str], name: &str) -> Result<bool> {
    let list = fleet.json(command)?;
    Ok(list
        .as_array()
        .into_iter()
        .flatten()
        .any(|x| x["name"] == name))
}

fn has_template(fleet: &Fleet) -> Result<bool> {
    listed(fleet, &["template", "list"], TEMPLATE)
}

fn twin_is_there(fleet: &Fleet, ended: Ended) -> Result<()> {
    ensure!(
        listed(fleet, &["vm", "list"], TWIN)? == (ended == Ended::Done),
        "the job is {ended:?}, but the clone says otherwise"
    );
    Ok(())
}

/// What the VM has sealed opens in its clone too: the same TPM, in a machine of its own.
fn the_twin_unseals(fleet: &Fleet, _: &Before) -> Result<()> {
    let sealed = unseals(fleet, None)?;
    fleet.cli(&["vm", "stop", VM, "--force"])?.ok()?;
    fleet
        .cli(&["vm", "clone", VM, TWIN, "--tpm", "copy"])?
        .ok()?;
    unseals_in(fleet, TWIN, Some(&sealed))?;
    fleet.cli(&["vm", "stop", TWIN, "--force"])?.ok()?;
    cleared(fleet)
}

/// Neither clone nor template is there.
fn cleared(fleet: &Fleet) -> Result<()> {
    if listed(fleet, &["vm", "list"], TWIN)? {
        fleet.cli(&["vm", "delete", TWIN, "--yes"])?.ok()?;
    }
    if has_template(fleet)? {
        fleet
            .cli(&["template", "delete", TEMPLATE, "--yes"])?
            .ok()?;
    }
    Ok(())
}

fn on_a(fleet: &Fleet) -> Result<()> {
    // An earlier scenario may have left it without the TPM that is copied here.
    if exists(fleet)? && fleet.vm(VM)?["tpm"]["enabled"] != true {
        gone(fleet)?;
    }
    cleared(fleet)?;
    if exists(fleet)? && fleet.place(VM)?.1 != "a" {
        crate::subject::gone(fleet)?;
    }
    Ok(())
}

fn stopped_on_a(fleet: &Fleet) -> Result<Before> {
    on_a(fleet)?;
    stopped(fleet)?;
    written(fleet)?;
    Ok(Before::default())
}

/// A linked clone of a VM that has written nothing since the last one leaves its disk alone. So something is written, between
/// the partition table and the first partition, where the guest keeps nothing.
fn written(fleet: &Fleet) -> Result<()> {
    let vm = fleet.vm(VM)?;
    let disk = text(&vm["disks"][0], "path")?;
    let write = ["qemu-io", "-f", "qcow2", "-c", "write 512k 64k", &disk];
    fleet.exec("a", &write)?.ok().map(drop)
}

fn running_on_a(fleet: &Fleet) -> Result<Before> {
    on_a(fleet)?;
    running(fleet)?;
    Ok(Before::default())
}

fn goes_on(fleet: &Fleet) -> Result<()> {
    shows_as(fleet, "running")?;
    if let Some(tick) = guest::last(fleet, VM)? {
        guest::goes_on(fleet, VM, &tick)?;
    }
    Ok(())
}
