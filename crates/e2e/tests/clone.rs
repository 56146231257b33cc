//! Clones and templates of VMs with a TPM, running and stopped, on real hosts.

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, Said, text};
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::{residue, suite, wait};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::ExitCode;

/// The VM that is copied.
const GOLD: &str = "gold";

fn main() -> ExitCode {
    suite::run(
        "e2e-clone",
        &["--hosts", "2"],
        &[
            (
                "a_stopped_clone_with_a_copied_tpm_unseals_under_a_key_of_its_own",
                a_copy_unseals,
            ),
            (
                "a_clone_with_a_new_tpm_cannot_unseal_and_that_was_said_before",
                a_new_tpm_cannot_unseal,
            ),
            ("a_clone_without_a_tpm_has_none", without_a_tpm),
            (
                "a_running_vm_is_cloned_while_its_guest_goes_on",
                a_running_clone,
            ),
            ("a_clone_for_another_host_runs_there", on_another_host),
            (
                "linked_clones_outlive_their_source_and_leave_nothing",
                linked_clones,
            ),
            (
                "a_vm_that_was_cloned_while_it_ran_restarts_and_moves",
                cloned_while_it_ran,
            ),
            (
                "a_template_outlives_its_vm_and_every_deployment_has_its_own_ek",
                templates,
            ),
            ("what_cannot_be_cloned_is_refused", refusals),
        ],
    )
}

fn gold(fleet: &Fleet) -> Result<Tick> {
    let list = fleet.json(&["vm", "list"])?;
    let exists = list
        .as_array()
        .into_iter()
        .flatten()
        .any(|vm| vm["name"] == GOLD);
    if !exists {
        fleet
            .cli(&[
                "vm",
                "create",
                GOLD,
                "--image",
                "lab-guest",
                "--memory",
                "512M",
                "--host",
                "a",
            ])?
            .ok()?;
    }
    // The newest line may be of an earlier boot.
    let stale = guest::last(fleet, GOLD)?;
    fleet.cli(&["vm", "start", GOLD])?.ok()?;
    wait::until("the guest's next line", guest::BOOT, || {
        Ok(guest::last(fleet, GOLD)?.filter(|tick| Some(tick) != stale.as_ref()))
    })
}

fn stopped(fleet: &Fleet) -> Result<Tick> {
    let tick = gold(fleet)?;
    fleet.cli(&["vm", "stop", GOLD])?.ok()?;
    guest::last(fleet, GOLD)?
        .context("the guest has spoken")
        .map(|last| Tick {
            unseal: tick.unseal,
            ..last
        })
}

fn removed(fleet: &Fleet, vm: &str) -> Result<()> {
    fleet.cli(&["vm", "stop", vm, "--force"])?.ok()?;
    fleet.cli(&["vm", "delete", vm, "--yes"])?.ok()?;
    residue::none_anywhere(fleet, &["a", "b"])
}

fn started(fleet: &Fleet, vm: &str) -> Result<Tick> {
    fleet.cli(&["vm", "start", vm])?.ok()?;
    guest::booted(fleet, vm, 1)
}

fn mac(fleet: &Fleet, host: &str, vm: &str) -> Result<String> {
    let xml = fleet
        .exec(host, &["virsh", "dumpxml", "--inactive", vm])?
        .ok()?
        .stdout;
    let part = |from: &str, to: &str| {
        xml.split_once(from)
            .and_then(|(_, rest)| rest.split_once(to))
            .map(|(value, _)| value.to_owned())
    };
    let (mac, genid) = (part("<mac address='", "'"), part("<genid>", "</genid>"));
    Ok(format!(
        "{} {}",
        mac.context("a MAC")?,
        genid.context("a generation id")?
    ))
}

fn differ(a: &Value, b: &Value, key: &str) -> Result<()> {
    ensure!(
        a[key] != b[key] && !b[key].is_null(),
        "{key}: {} and {}",
        a[key],
        b[key]
    );
    Ok(())
}

fn warned(said: &Said, code: &str) -> Result<()> {
    let at = said.stderr.find(&format!("warning[{code}]"));
    let step = said.stderr.find("step ").unwrap_or(usize::MAX);
    ensure!(
        at.is_some_and(|at| at < step),
        "no warning {code} before the work: {}",
        said.stderr
    );
    Ok(())
}

fn a_copy_unseals(fleet: &Fleet) -> Result<()> {
    let before = stopped(fleet)?;
    let said = fleet
        .cli(&["vm", "clone", GOLD, "copy", "--tpm", "copy"])?
        .ok()?;
    warned(&said, "TPM_IDENTITY_TWICE")?;
    let (source, clone) = (fleet.vm(GOLD)?, fleet.vm("copy")?);
    differ(&source, &clone, "id")?;
    differ(&source["tpm"], &clone["tpm"], "key_id")?;
    ensure!(
        bases(&clone)?.len() == 1 && bases(&clone)? == bases(&source)?,
        "not linked: {source} {clone}"
    );
    ensure!(source["tpm"]["ek_certificate"] == clone["tpm"]["ek_certificate"]);
    ensure!(mac(fleet, "a", GOLD)? != mac(fleet, "a", "copy")?);
    let tick = started(fleet, "copy")?;
    ensure!(
        tick.unseal == "ok" && tick.ek == before.ek && tick.boots == before.boots + 1,
        "{before:?} then {tick:?}"
    );
    // Both at once, and the source is what it was.
    let again = gold(fleet)?;
    let again = guest::booted(fleet, GOLD, again.boots.max(before.boots + 1))?;
    ensure!(again.unseal == "ok" && again.ek == before.ek, "{again:?}");
    removed(fleet, "copy")
}

fn a_new_tpm_cannot_unseal(fleet: &Fleet) -> Result<()> {
    let before = stopped(fleet)?;
    let said = fleet.cli(&["vm", "clone", GOLD, "other"])?.ok()?;
    warned(&said, "TPM_IDENTITY_CHANGES")?;
    differ(
        &fleet.vm(GOLD)?["tpm"],
        &fleet.vm("other")?["tpm"],
        "ek_certificate",
    )?;
    let tick = started(fleet, "other")?;
    ensure!(
        tick.unseal == "failed" && tick.ek != before.ek,
        "{before:?} then {tick:?}"
    );
    removed(fleet, "other")
}

fn without_a_tpm(fleet: &Fleet) -> Result<()> {
    stopped(fleet)?;
    let said = fleet
        .cli(&["vm", "clone", GOLD, "bare", "--tpm", "none", "--full"])?
        .ok()?;
    warned(&said, "TPM_IDENTITY_CHANGES")?;
    let clone = fleet.vm("bare")?;
    ensure!(clone["tpm"]["enabled"] == false && clone["tpm"]["state_present"] == false);
    ensure!(bases(&clone)?.is_empty(), "not a full copy: {clone}");
    removed(fleet, "bare")
}

fn a_running_clone(fleet: &Fleet) -> Result<()> {
    running_clone(fleet, false)?;
    running_clone(fleet, true)
}

fn running_clone(fleet: &Fleet, full: bool) -> Result<()> {
    let before = gold(fleet)?;
    let mut command = vec!["vm", "clone", GOLD, "live", "--tpm", "copy"];
    if full {
        command.push("--full");
    }
    let job = fleet.start_job(&command)?;
    fleet.cli(&["job", "watch", &job])?.ok()?;
    let shown = fleet.json(&["job", "show", &job])?;
    ensure!(shown["result"]["linked"] == !full, "{shown}");
    ensure!(bases(&fleet.vm("live")?)?.is_empty() == full);
    let paused = shown["result"]["paused_ms"].as_u64().context("a pause")?;
    eprintln!("the guest stood still for {paused} ms");
    ensure!(paused < 1000, "the guest stood still for {paused} ms");
    let after = guest::goes_on(fleet, GOLD, &guest::last(fleet, GOLD)?.unwrap_or(before))?;
    let after = guest::goes_on(fleet, GOLD, &after)?;
    // One line a second: in no two lines that follow each other does more than a second and the pause lie.
    let ticks: Vec<Tick> = guest::ticks(fleet, GOLD)?
        .into_iter()
        .filter(|t| t.boots == after.boots)
        .collect();
    ensure!(
        ticks
            .windows(2)
            .all(|pair| pair[1].tick == pair[0].tick + 1),
        "a tick is missing"
    );
    ensure!(fleet.place(GOLD)?.0 == "running");
    let tick = started(fleet, "live")?;
    ensure!(
        tick.unseal == "ok" && tick.ek == after.ek && tick.boots == after.boots + 1,
        "{after:?} then {tick:?}"
    );
    removed(fleet, "live")
}

fn on_another_host(fleet: &Fleet) -> Result<()> {
    let before = gold(fleet)?;
    fleet
        .cli(&["vm", "clone", GOLD, "far", "--tpm", "copy", "--host", "b"])?
        .ok()?;
    ensure!(fleet.place("far")? == ("stopped".into(), "b".into()));
    let tick = started(fleet, "far")?;
    ensure!(
        tick.unseal == "ok" && tick.ek == before.ek,
        "{before:?} then {tick:?}"
    );
    guest::goes_on(fleet, GOLD, &guest::last(fleet, GOLD)?.context("ticks")?)?;
    removed(fleet, "far")
}

/// The files that a VM's one disk builds on.
fn bases(vm: &Value) -> Result<Vec<String>> {
    let bases = vm["disks"][0]["bases"].as_array().into_iter().flatten();
    bases
        .map(|base| Ok(base.as_str().context("a path")?.to_owned()))
        .collect()
}

/// What the VM's disk takes by itself.
fn taken(vm: &Value) -> Result<u64> {
    vm["disks"][0]["allocated"].as_u64().context("bytes")
}

fn linked_clones(fleet: &Fleet) -> Result<()> {
    let before = stopped(fleet)?;
    for name in ["one", "two"] {
        fleet
            .cli(&["vm", "clone", GOLD, name, "--tpm", "copy"])?
            .ok()?;
    }
    let (source, one, two) = (fleet.vm(GOLD)?, fleet.vm("one")?, fleet.vm("two")?);
    ensure!(
        bases(&one)? == bases(&two)? && bases(&one)? == bases(&source)?,
        "a VM that wrote nothing in between has one base for both: {source} {one} {two}"
    );
    ensure!(
        taken(&one)? < 2 << 20 && taken(&source)? < 2 << 20,
        "an overlay takes no room: {one}"
    );
    // The three of them write over the same base, at the same time.
    let unsealed = |vm: &str, boots: u64| -> Result<()> {
        let tick = guest::booted(fleet, vm, boots)?;
        ensure!(
            tick.unseal == "ok" && tick.ek == before.ek,
            "{vm}: {tick:?}"
        );
        Ok(())
    };
    fleet.cli(&["vm", "start", GOLD, "one", "two"])?.ok()?;
    for name in [GOLD, "one", "two"] {
        unsealed(name, before.boots + 1)?;
    }
    fleet.cli(&["vm", "stop", GOLD, "two"])?.ok()?;
    fleet.cli(&["vm", "delete", GOLD, "--yes"])?.ok()?;
    residue::none_anywhere(fleet, &["a", "b"])?;
    // A linked disk arrives in one piece, running or stopped, and the other clone keeps the base.
    fleet.cli(&["vm", "migrate", "one", "--to", "b"])?.ok()?;
    guest::goes_on(fleet, "one", &guest::last(fleet, "one")?.context("ticks")?)?;
    ensure!(bases(&fleet.vm("one")?)?.is_empty());
    residue::none_anywhere(fleet, &["a", "b"])?;
    fleet
        .cli(&["vm", "migrate", "two", "--to", "b", "--offline"])?
        .ok()?;
    ensure!(bases(&fleet.vm("two")?)?.is_empty());
    residue::none_anywhere(fleet, &["a", "b"])?;
    fleet.cli(&["vm", "start", "two"])?.ok()?;
    unsealed("two", before.boots + 2)?;
    removed(fleet, "one")?;
    removed(fleet, "two")
}

fn cloned_while_it_ran(fleet: &Fleet) -> Result<()> {
    let before = gold(fleet)?;
    for (number, name) in ["first", "second"].into_iter().enumerate() {
        fleet
            .cli(&["vm", "clone", GOLD, name, "--tpm", "none"])?
            .ok()?;
        ensure!(bases(&fleet.vm(GOLD)?)?.len() == number + 1, "a layer each");
        guest::goes_on(fleet, GOLD, &guest::last(fleet, GOLD)?.context("ticks")?)?;
    }
    // It moves as it runs, and leaves only what the clones build on.
    fleet.cli(&["vm", "migrate", GOLD, "--to", "b"])?.ok()?;
    guest::goes_on(fleet, GOLD, &guest::last(fleet, GOLD)?.context("ticks")?)?;
    residue::none_anywhere(fleet, &["a", "b"])?;
    fleet.cli(&["vm", "migrate", GOLD, "--to", "a"])?.ok()?;
    fleet
        .cli(&["vm", "clone", GOLD, "third", "--tpm", "none"])?
        .ok()?;
    fleet.cli(&["vm", "stop", GOLD])?.ok()?;
    // What the guest wrote after the clone is there: it counts its boots on its disk.
    fleet.cli(&["vm", "start", GOLD])?.ok()?;
    let again = guest::booted(fleet, GOLD, before.boots + 1)?;
    ensure!(again.unseal == "ok" && again.ek == before.ek, "{again:?}");
    for name in ["first", "second", "third"] {
        fleet.cli(&["vm", "delete", name, "--yes"])?.ok()?;
    }
    residue::none_anywhere(fleet, &["a", "b"])?;
    removed(fleet, GOLD)
}

fn templates(fleet: &Fleet) -> Result<()> {
    let before = gold(fleet)?;
    let said = fleet
        .cli(&["template", "create", "desk", "--from", GOLD])?
        .ok()?;
    warned(&said, "TPM_IDENTITY_CHANGES")?;
    ensure!(
        fleet.vm(GOLD)?["tpm"]["enabled"] == true,
        "the TPM was never off"
    );
    guest::goes_on(fleet, GOLD, &guest::last(fleet, GOLD)?.context("ticks")?)?;
    fleet
        .cli(&["template", "create", "desk", "--from", GOLD])?
        .refused(4, "NAME_TAKEN")?;
    removed(fleet, GOLD)?;
    let names: Vec<String> = (1..=20).map(|n| format!("desk-{n:02}")).collect();
    let said = fleet
        .cli(&["vm", "create", "first", "--template", "desk"])?
        .ok()?;
    warned(&said, "TPM_IDENTITY_CHANGES")?;
    let jobs = names
        .iter()
        .map(|name| fleet.start_job(&["vm", "create", name, "--template", "desk"]))
        .collect::<Result<Vec<_>>>()?;
    for job in &jobs {
        fleet.cli(&["job", "watch", job])?.ok()?;
    }
    let mut eks = BTreeSet::from([before.ek.clone()]);
    for name in names.iter().map(String::as_str).chain(["first"]) {
        let vm = fleet.vm(name)?;
        ensure!(
            eks.insert(text(&vm["tpm"], "ek_certificate")?),
            "{name} shares its EK certificate"
        );
    }
    let tick = started(fleet, "first")?;
    ensure!(
        tick.unseal == "failed" && tick.ek != before.ek,
        "{before:?} then {tick:?}"
    );
    fleet.cli(&["template", "delete", "desk", "--yes"])?.ok()?;
    fleet
        .cli(&["template", "show", "desk"])?
        .refused(5, "TEMPLATE_NOT_FOUND")?;
    fleet.cli(&["vm", "stop", "first", "--force"])?.ok()?;
    let mut delete = vec!["vm", "delete", "--yes", "first"];
    delete.extend(names.iter().map(String::as_str));
    fleet.cli(&delete)?.ok()?;
    residue::none_anywhere(fleet, &["a", "b"])
}

fn refusals(fleet: &Fleet) -> Result<()> {
    stopped(fleet)?;
    fleet
        .cli(&["vm", "clone", GOLD, GOLD])?
        .refused(4, "NAME_TAKEN")?;
    fleet
        .cli(&["vm", "clone", "nobody", "x"])?
        .refused(5, "VM_NOT_FOUND")?;
    fleet
        .cli(&["vm", "clone", GOLD, "x", "--host", "nowhere"])?
        .refused(5, "HOST_NOT_FOUND")?;
    fleet
        .cli(&["vm", "create", "x", "--template", "nothing"])?
        .refused(5, "TEMPLATE_NOT_FOUND")?;
    fleet
        .cli(&["vm", "clone", GOLD, "bare", "--tpm", "none"])?
        .ok()?;
    fleet
        .cli(&["vm", "clone", "bare", "x", "--tpm", "copy"])?
        .refused(4, "VM_HAS_NO_TPM")?;
    removed(fleet, "bare")
}
