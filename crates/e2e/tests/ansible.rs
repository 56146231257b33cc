//! The Ansible collection, by the real `ansible-playbook`, against a lab: with an API token over TLS, and over the socket.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, Said, text};
use fleetward_e2e::{guest, suite};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

/// The play of the user guide.
const DESKTOPS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../ansible/examples/desktops.yml"
);

fn main() -> ExitCode {
    let cases: &[suite::Case] = &[
        (
            "in_check_mode_a_play_tells_what_it_would_do_and_does_nothing",
            check_mode,
        ),
        (
            "the_play_of_the_guide_changes_nothing_the_second_time",
            twice,
        ),
        ("a_vm_becomes_what_the_task_says_and_the_rest_stays", change),
        (
            "what_the_controller_refuses_fails_the_task_with_its_code_and_fix",
            refusals,
        ),
        ("a_vm_that_is_to_be_absent_goes_once", absent),
    ];
    suite::run("e2e-ansible", &["--hosts", "2", "--console"], cases)
}

/// A directory for the collection, plays and the token, in the lab's own.
fn place(fleet: &Fleet) -> Result<PathBuf> {
    let place = fleet.directory().join("ansible");
    let collections = place.join("ansible_collections/fleetward");
    if !collections.exists() {
        fs::create_dir_all(&collections)?;
        let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../ansible");
        std::os::unix::fs::symlink(own.canonicalize()?, collections.join("fleet"))?;
        let out = place.to_str().context("a path of text")?;
        fleet
            .cli(&[
                "token", "create", "ansible", "--role", "operator", "--out", out,
            ])?
            .ok()?;
    }
    Ok(place)
}

/// Runs a play on the controller's machine; with a token, or else over the socket.
fn play(fleet: &Fleet, play: &str, token: bool, more: &[&str]) -> Result<Said> {
    let place = place(fleet)?;
    let at = |name: &str| place.join(name).display().to_string();
    let mut set = vec![
        format!("ANSIBLE_COLLECTIONS_PATH={}", place.display()),
        format!("ANSIBLE_HOME={}", at("home")),
        format!("ANSIBLE_LOCAL_TEMP={}", at("temp")),
        "ANSIBLE_STDOUT_CALLBACK=json".to_owned(),
        "LC_ALL=C.UTF-8".to_owned(),
    ];
    if token {
        let status = fleet.json(&["status"])?;
        set.push(format!(
            "FLEETWARD_CONTROLLER={}",
            text(&status["console"], "url")?
        ));
        set.push(format!("FLEETWARD_TOKEN_FILE={}", at("ansible.token")));
        set.push(format!("FLEETWARD_CA={}", at("console-ca.pem")));
    }
    let mut command = vec!["env"];
    command.extend(set.iter().map(String::as_str));
    command.extend(["ansible-playbook", "-i", "localhost,", "-c", "local", play]);
    command.extend(more);
    fleet.exec("controller", &command)
}

/// What it said: the counts of localhost, and the result of each task by its name.
fn outcome(said: &Said) -> Result<(Value, Vec<(String, Value)>)> {
    let whole = said.json()?;
    let tasks = whole["plays"][0]["tasks"].as_array().context("tasks")?;
    let tasks = tasks.iter().map(|task| {
        let name = task["task"]["name"].as_str().unwrap_or_default().to_owned();
        (name, task["hosts"]["localhost"].clone())
    });
    Ok((whole["stats"]["localhost"].clone(), tasks.collect()))
}

/// A play of one task.
fn task(fleet: &Fleet, body: &str, token: bool, more: &[&str]) -> Result<Value> {
    let file = place(fleet)?.join("task.yml");
    let play_of_one = format!(
        "- hosts: localhost\n  gather_facts: false\n  tasks:\n    - name: it\n      {}\n",
        body.trim().replace('\n', "\n      ")
    );
    fs::write(&file, play_of_one)?;
    let said = play(fleet, file.to_str().context("text")?, token, more)?;
    let (_, tasks) = outcome(&said).with_context(|| format!("{}\n{}", said.stdout, said.stderr))?;
    let (_, result) = tasks.into_iter().next().context("a task")?;
    Ok(result)
}

fn names(fleet: &Fleet) -> Result<Vec<String>> {
    let vms = fleet.json(&["vm", "list"])?;
    vms.as_array()
        .context("a list")?
        .iter()
        .map(|vm| text(vm, "name"))
        .collect()
}

fn check_mode(fleet: &Fleet) -> Result<()> {
    let said = play(
        fleet,
        DESKTOPS,
        true,
        &["--check", "--diff", "--limit", "localhost"],
    )?;
    let (stats, _) = outcome(&said).with_context(|| said.stderr.clone())?;
    ensure!(names(fleet)?.is_empty(), "check mode made VMs: {stats}");
    let one = "fleetward.fleet.vm:\n  name: desk-9\n  image: lab-guest\n  memory: 256M";
    let result = task(fleet, one, true, &["--check", "--diff"])?;
    ensure!(result["changed"] == true, "{result}");
    ensure!(result["diff"]["before"]["state"] == "absent", "{result}");
    ensure!(
        result["diff"]["after"]["memory_bytes"] == 256 << 20,
        "{result}"
    );
    // The controller is asked, so what could not be done is refused.
    let result = task(fleet, &one.replace("lab-guest", "none"), true, &["--check"])?;
    ensure!(result["code"] == "IMAGE_NOT_FOUND", "{result}");
    ensure!(names(fleet)?.is_empty(), "check mode made VMs");
    Ok(())
}

fn twice(fleet: &Fleet) -> Result<()> {
    let old = "vm create desk-old --image lab-guest --memory 256M --no-tpm --label role=desktop";
    fleet.cli(&old.split(' ').collect::<Vec<_>>())?.ok()?;
    let said = play(fleet, DESKTOPS, true, &[])?;
    let (stats, _) = outcome(&said).with_context(|| format!("{}{}", said.stdout, said.stderr))?;
    ensure!(
        stats["failures"] == 0 && stats["changed"] == 3,
        "{}",
        said.stdout
    );
    for name in ["desk-1", "desk-2", "desk-old"] {
        let vm = fleet.vm(name)?;
        ensure!(
            vm["tpm"]["enabled"] == true && vm["labels"]["role"] == "desktop",
            "{vm}"
        );
    }
    guest::booted(fleet, "desk-1", 1)?;
    let again = play(fleet, DESKTOPS, true, &[])?;
    let (stats, tasks) = outcome(&again)?;
    ensure!(stats["failures"] == 0 && stats["changed"] == 0, "{tasks:?}");
    Ok(())
}

fn change(fleet: &Fleet) -> Result<()> {
    let wanted = "fleetward.fleet.vm:\n  name: desk-2\n  memory: 300M\n  autostart: true\n  labels: {owner: kim}";
    // Over the socket, as on the controller's own machine.
    let told = task(fleet, wanted, false, &["--check", "--diff"])?;
    ensure!(told["changed"] == true, "{told}");
    ensure!(
        told["diff"]["before"]["memory_bytes"] == 256 << 20,
        "{told}"
    );
    ensure!(told["diff"]["after"]["memory_bytes"] == 300 << 20, "{told}");
    ensure!(
        fleet.vm("desk-2")?["memory_bytes"] == 256 << 20,
        "check mode changed it"
    );
    let done = task(fleet, wanted, false, &[])?;
    ensure!(done["changed"] == true, "{done}");
    let vm = fleet.vm("desk-2")?;
    ensure!(
        vm["memory_bytes"] == 300 << 20 && vm["autostart"] == true,
        "{vm}"
    );
    ensure!(
        vm["labels"]["owner"] == "kim" && vm["labels"]["role"] == "desktop",
        "{vm}"
    );
    ensure!(vm["description"] == "made by a play", "{vm}");
    ensure!(
        task(fleet, wanted, false, &[])?["changed"] == false,
        "a second time"
    );
    let purge = format!("{wanted}\n  purge_labels: true");
    ensure!(
        task(fleet, &purge, false, &[])?["changed"] == true,
        "a label goes"
    );
    ensure!(
        fleet.vm("desk-2")?["labels"]["role"].is_null(),
        "it is gone"
    );

    let stop = "fleetward.fleet.vm:\n  name: desk-1\n  state: stopped\n  force_stop: true";
    ensure!(task(fleet, stop, true, &[])?["changed"] == true, "stopped");
    ensure!(fleet.place("desk-1")?.0 == "stopped", "it is");
    ensure!(
        task(fleet, stop, true, &[])?["changed"] == false,
        "a second time"
    );
    let off = "fleetward.fleet.tpm:\n  name: desk-1\n  state: disabled";
    ensure!(
        task(fleet, off, true, &[])?["changed"] == true,
        "switched off"
    );
    ensure!(fleet.vm("desk-1")?["tpm"]["enabled"] == false, "it is");
    ensure!(
        task(fleet, off, true, &[])?["changed"] == false,
        "a second time"
    );
    Ok(())
}

fn refusals(fleet: &Fleet) -> Result<()> {
    let result = task(fleet, "fleetward.fleet.tpm:\n  name: nobody", true, &[])?;
    ensure!(
        result["failed"] == true && result["code"] == "VM_NOT_FOUND",
        "{result}"
    );
    let host = "fleetward.fleet.vm:\n  name: x\n  image: lab-guest\n  host: nowhere";
    let result = task(fleet, host, true, &[])?;
    ensure!(result["code"] == "HOST_NOT_FOUND", "{result}");
    ensure!(
        text(&result, "msg")?.starts_with("error[HOST_NOT_FOUND]: "),
        "{result}"
    );
    ensure!(result["fix"] == "fleetward host list", "{result}");
    let info = task(fleet, "fleetward.fleet.host_info: {}", true, &[])?;
    let hosts = info["hosts"].as_array().context("hosts")?;
    ensure!(hosts.len() == 2 && hosts[0]["state"] == "online", "{info}");
    let none = task(
        fleet,
        "fleetward.fleet.host_info:\n  name: nowhere",
        true,
        &[],
    )?;
    ensure!(
        none["hosts"].as_array().is_some_and(Vec::is_empty),
        "{none}"
    );
    // A token that was never made, and a server that nobody vouches for.
    let bad = place(fleet)?.join("bad.token");
    fs::write(&bad, "fwt1.AAAA.AAAA\n")?;
    let info = format!("fleetward.fleet.vm_info:\n  token_file: {}", bad.display());
    let result = task(fleet, &info, true, &[])?;
    ensure!(result["code"] == "CREDENTIALS_REFUSED", "{result}");
    let foreign = format!("fleetward.fleet.vm_info:\n  ca_path: {}", DESKTOPS);
    let result = task(fleet, &foreign, true, &[])?;
    ensure!(result["failed"] == true, "{result}");
    let secret = fs::read_to_string(place(fleet)?.join("ansible.token"))?;
    ensure!(
        !result.to_string().contains(secret.trim()),
        "the token is shown"
    );
    Ok(())
}

fn absent(fleet: &Fleet) -> Result<()> {
    for (name, changed) in [
        ("desk-1", true),
        ("desk-1", false),
        ("desk-2", true),
        ("desk-old", true),
    ] {
        let body = format!("fleetward.fleet.vm:\n  name: {name}\n  state: absent");
        let checked = task(fleet, &body, true, &["--check"])?;
        ensure!(checked["changed"] == changed, "{name}: {checked}");
        let result = task(fleet, &body, true, &[])?;
        ensure!(result["changed"] == changed, "{name}: {result}");
    }
    ensure!(names(fleet)?.is_empty(), "they are gone");
    Ok(())
}
