//! Guardians by hand, as Hyper-V administrators know it: a fleet that grants nothing by itself, PFX files carried over.

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, Said, text};
use fleetward_e2e::{guest, residue, suite};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

const HOSTS: [&str; 2] = ["a", "b"];

fn main() -> ExitCode {
    suite::run(
        "e2e-guardians",
        &["--hosts", "2", "--trust", "manual"],
        &[
            ("manual_trust_refuses_and_says_both_cures", refused),
            (
                "a_wrong_password_or_half_a_guardian_imports_nothing",
                nothing_by_halves,
            ),
            (
                "after_export_copy_and_import_the_vm_moves_and_comes_back",
                carried_over,
            ),
            (
                "the_other_way_round_needs_the_other_guardian",
                other_way_round,
            ),
            ("a_guardian_goes_once_nothing_needs_it", removed),
            ("the_mode_is_remembered_by_the_controller", remembered),
        ],
    )
}

fn agent(fleet: &Fleet, host: &str, arguments: &[&str]) -> Result<Said> {
    let config = fleet
        .directory()
        .join(format!("nodes/{host}/disk/etc/fleetward/agent.toml"));
    let program = fleet.program("fleetward-agent");
    let mut command = vec![
        program.to_str().context("path")?,
        "--config",
        config.to_str().context("path")?,
        "guardian",
    ];
    command.extend(arguments);
    fleet.exec(host, &command)
}

fn guardians(fleet: &Fleet, host: &str) -> Result<Vec<Value>> {
    let listed = agent(fleet, host, &["list", "-o", "json"])?.ok()?.json()?;
    listed.as_array().cloned().context("a list")
}

/// The host's own guardian: the first of its list.
fn own(fleet: &Fleet, host: &str) -> Result<String> {
    let all = guardians(fleet, host)?;
    text(all.first().context("a guardian")?, "guardian")
}

/// Exports the own guardian of `host`; directory and password file.
fn exported(fleet: &Fleet, host: &str) -> Result<(PathBuf, PathBuf)> {
    let directory = fleet.directory().join(format!("carried-from-{host}"));
    let password = directory.join("password");
    if !directory.exists() {
        std::fs::create_dir(&directory)?;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700))?;
        std::fs::write(&password, "a password of some length\n")?;
        let id = own(fleet, host)?;
        let (out, file) = (path(&directory)?, path(&password)?);
        agent(
            fleet,
            host,
            &["export-pfx", &id, "--out", &out, "--password-file", &file],
        )?
        .ok()?;
    }
    Ok((directory, password))
}

fn path(path: &std::path::Path) -> Result<String> {
    Ok(path.to_str().context("path")?.to_owned())
}

fn import(fleet: &Fleet, from: &str, to: &str) -> Result<Said> {
    let (directory, password) = exported(fleet, from)?;
    let [signing, encryption] =
        ["VMSigning.pfx", "VMEncryption.pfx"].map(|name| path(&directory.join(name)));
    agent(
        fleet,
        to,
        &[
            "import-pfx",
            &signing?,
            &encryption?,
            "--password-file",
            &path(&password)?,
        ],
    )
}

fn create(fleet: &Fleet, name: &str, host: &str) -> Result<()> {
    let arguments = [
        "vm",
        "create",
        name,
        "--image",
        "lab-guest",
        "--memory",
        "512M",
        "--host",
        host,
        "--start",
    ];
    fleet.cli(&arguments)?.ok()?;
    Ok(())
}

fn guardians_of(vm: &Value) -> Vec<&str> {
    let list = vm["tpm"]["guardians"].as_array();
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn refused(fleet: &Fleet) -> Result<()> {
    ensure!(fleet.json(&["status"])?["trust"] == "manual");
    create(fleet, "desk1", "a")?;
    let before = guest::booted(fleet, "desk1", 1)?;
    let vm = fleet.vm("desk1")?;
    ensure!(guardians_of(&vm) == [own(fleet, "a")?], "{vm}");
    let said = fleet
        .cli(&["vm", "migrate", "desk1", "--to", "b"])?
        .refused(4, "KEY_NOT_GRANTED")?;
    for cure in [
        "10698",
        "guardian grant --all --to b",
        "export-pfx",
        "import-pfx",
    ] {
        ensure!(said.stderr.contains(cure), "no {cure} in {}", said.stderr);
    }
    ensure!(fleet.vm("desk1")?["tpm"] == vm["tpm"]);
    ensure!(fleet.place("desk1")? == ("running".into(), "a".into()));
    guest::goes_on(fleet, "desk1", &before)?;
    Ok(())
}

fn nothing_by_halves(fleet: &Fleet) -> Result<()> {
    let (directory, password) = exported(fleet, "a")?;
    let signing = path(&directory.join("VMSigning.pfx"))?;
    let encryption = path(&directory.join("VMEncryption.pfx"))?;
    let wrong = path(&directory.join("wrong"))?;
    std::fs::write(&wrong, "another password\n")?;
    let right = path(&password)?;
    agent(
        fleet,
        "b",
        &[
            "import-pfx",
            &signing,
            &encryption,
            "--password-file",
            &wrong,
        ],
    )?
    .refused(4, "PFX_WRONG_PASSWORD")?;
    agent(
        fleet,
        "b",
        &["import-pfx", &signing, "--password-file", &right],
    )?
    .refused(4, "PFX_INCOMPLETE")?;
    let short = directory.join("short.pfx");
    let whole = std::fs::read(&encryption)?;
    std::fs::write(&short, &whole[..whole.len() - 7])?;
    agent(
        fleet,
        "b",
        &[
            "import-pfx",
            &signing,
            &path(&short)?,
            "--password-file",
            &right,
        ],
    )?
    .refused(4, "PFX_TRUNCATED")?;
    ensure!(guardians(fleet, "b")?.len() == 2, "only its own is there");
    Ok(())
}

fn carried_over(fleet: &Fleet) -> Result<()> {
    import(fleet, "a", "b")?.ok()?;
    let before = guest::booted(fleet, "desk1", 1)?;
    fleet.cli(&["vm", "migrate", "desk1", "--to", "b"])?.ok()?;
    ensure!(fleet.place("desk1")? == ("running".into(), "b".into()));
    guest::goes_on(fleet, "desk1", &before)?;
    let vm = fleet.vm("desk1")?;
    ensure!(vm["tpm"]["owner"] == own(fleet, "a")?.as_str(), "{vm}");
    ensure!(
        guardians_of(&vm).contains(&own(fleet, "b")?.as_str()),
        "the host's own guardian is not beside the imported one: {vm}"
    );
    let before = guest::booted(fleet, "desk1", 1)?;
    fleet.cli(&["vm", "migrate", "desk1", "--to", "a"])?.ok()?;
    ensure!(fleet.place("desk1")? == ("running".into(), "a".into()));
    guest::goes_on(fleet, "desk1", &before)?;
    residue::none_anywhere(fleet, &HOSTS)
}

fn other_way_round(fleet: &Fleet) -> Result<()> {
    create(fleet, "desk2", "b")?;
    let before = guest::booted(fleet, "desk2", 1)?;
    fleet
        .cli(&["vm", "migrate", "desk2", "--to", "a"])?
        .refused(4, "KEY_NOT_GRANTED")?;
    import(fleet, "b", "a")?.ok()?;
    fleet.cli(&["vm", "migrate", "desk2", "--to", "a"])?.ok()?;
    guest::goes_on(fleet, "desk2", &before)?;
    residue::none_anywhere(fleet, &HOSTS)
}

fn removed(fleet: &Fleet) -> Result<()> {
    agent(fleet, "a", &["remove", &own(fleet, "a")?, "--yes"])?.refused(4, "GUARDIAN_IN_USE")?;
    // The own guardian was put beside when the VM arrived, so the imported one may go.
    agent(fleet, "a", &["remove", &own(fleet, "b")?, "--yes"])?.ok()?;
    fleet.cli(&["vm", "stop", "desk2", "--force"])?.ok()?;
    fleet.cli(&["vm", "start", "desk2"])?.ok()?;
    let tick = guest::booted(fleet, "desk2", 2)?;
    ensure!(tick.unseal == "ok", "{tick:?}");
    fleet.cli(&["audit", "--verify"])?.ok()?;
    Ok(())
}

fn remembered(fleet: &Fleet) -> Result<()> {
    fleet.kill("controller")?;
    fleet.start("controller")?;
    ensure!(fleet.json(&["status"])?["trust"] == "manual");
    Ok(())
}
