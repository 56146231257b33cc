//! Access to VMs' keys: a new host is granted automatically, a revoked one loses access, a guardian is rotated while
//! VMs run. Also the matrix, the metrics and the audit log.

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, suite};
use serde_json::Value;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    suite::run(
        "e2e-grants",
        &["--hosts", "2"],
        &[
            (
                "a_host_that_joins_is_granted_every_vm_of_its_group_and_takes_one",
                third_host,
            ),
            (
                "a_guardian_is_rotated_while_its_vm_runs_and_moves",
                rotate_while_running,
            ),
            (
                "a_grant_by_a_host_that_is_not_the_owner_keeps_everybody",
                nobody_is_lost,
            ),
            (
                "a_revoked_host_is_refused_until_it_is_granted_by_name",
                revoke_and_grant,
            ),
            (
                "a_revoked_key_is_rolled_when_the_vm_stops_or_at_once",
                rolled_after_revocation,
            ),
            (
                "a_revoked_host_stays_out_of_a_new_tpm_and_of_one_brought_back",
                stays_out,
            ),
            ("the_matrix_of_forty_vms_is_there_within_a_second", matrix),
            ("an_audit_record_that_is_tampered_with_is_named", tampered),
        ],
    )
}

fn create(fleet: &Fleet, name: &str, host: &str, more: &[&str]) -> Result<()> {
    let mut words = vec![
        "vm",
        "create",
        name,
        "--image",
        "lab-guest",
        "--memory",
        "512M",
        "--host",
        host,
    ];
    words.extend(more);
    fleet.cli(&words)?.ok().map(drop)
}

fn guardians(fleet: &Fleet, vm: &str) -> Result<Vec<String>> {
    let vm = fleet.vm(vm)?;
    let found = vm["tpm"]["guardians"].as_array().into_iter().flatten();
    Ok(found.filter_map(Value::as_str).map(str::to_owned).collect())
}

/// The id of a host's own guardian.
fn own(fleet: &Fleet, host: &str) -> Result<String> {
    let shown = fleet.json(&["host", "show", host])?;
    shown["facts"]["guardians"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|g| g["own"] == true)
        .and_then(|g| g["id"].as_str().map(str::to_owned))
        .context("no own guardian")
}

fn third_host(fleet: &Fleet) -> Result<()> {
    create(fleet, "web", "a", &["--start"])?;
    create(fleet, "spare", "b", &[])?;
    fleet.lab("up", &["--hosts", "3"])?.ok()?;
    let c = own(fleet, "c")?;
    for vm in ["web", "spare"] {
        wait::until(&format!("{vm} to be granted to c"), seconds(20), || {
            Ok(guardians(fleet, vm)?.contains(&c).then_some(()))
        })?;
    }
    let jobs = fleet.json(&["job", "list"])?;
    let by_itself = jobs.as_array().into_iter().flatten();
    ensure!(
        by_itself
            .filter(|j| j["kind"] == "guardian-grant" && j["created_by"] == "keeper")
            .count()
            >= 1,
        "no grant of the fleet's own: {jobs}"
    );
    let before = guest::booted(fleet, "web", 1)?;
    fleet.cli(&["vm", "migrate", "web", "--to", "c"])?.ok()?;
    guest::goes_on(fleet, "web", &before).map(drop)
}

fn rotate_while_running(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, "web", 1)?;
    let former = own(fleet, "c")?;
    let said = fleet.json(&["guardian", "rotate", "--host", "c"])?;
    let report = &said[0];
    ensure!(
        report["summary"]["failed"] == 0 && report["still_needed_by"] == 0,
        "{said}"
    );
    let successor = report["guardian"].as_str().context("no successor")?;
    ensure!(successor != former);
    for vm in ["web", "spare"] {
        let granted = guardians(fleet, vm)?;
        ensure!(
            granted.iter().any(|g| g == successor) && !granted.contains(&former),
            "{vm}: {granted:?}"
        );
    }
    guest::goes_on(fleet, "web", &before)?;
    fleet.cli(&["vm", "migrate", "web", "--to", "a"])?.ok()?;
    fleet.cli(&["vm", "migrate", "web", "--to", "c"])?.ok()?;
    guest::goes_on(fleet, "web", &before)?;
    let rows = fleet.json(&["guardian", "list", "--host", "c"])?;
    let rows = rows.as_array().context("no list")?;
    ensure!(
        rows.iter()
            .any(|r| r["guardian"] == former.as_str() && r["has_private_key"] == true),
        "the former pair must stay able to open"
    );
    Ok(())
}

/// `web` is on host c; its key protector was made by host a.
fn nobody_is_lost(fleet: &Fleet) -> Result<()> {
    let before = guardians(fleet, "web")?;
    ensure!(before.len() == 3, "{before:?}");
    fleet
        .cli(&["guardian", "revoke", "web", "--from", "b", "--yes"])?
        .ok()?;
    fleet
        .cli(&["guardian", "grant", "web", "--to", "b"])?
        .ok()?;
    let mut after = guardians(fleet, "web")?;
    let mut wanted = before;
    after.sort();
    wanted.sort();
    ensure!(after == wanted, "{wanted:?} then {after:?}");
    Ok(())
}

fn revoke_and_grant(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, "web", 1)?;
    let said = fleet.json(&["guardian", "revoke", "web", "--from", "b", "--yes"])?;
    ensure!(
        said["rolled"] == false && said["code"] == "VM_RUNNING",
        "a running VM's key cannot be rolled: {said}"
    );
    fleet
        .cli(&["vm", "migrate", "web", "--to", "b"])?
        .refused(4, "KEY_NOT_GRANTED")?;
    fleet
        .cli(&["guardian", "revoke", "web", "--from", "c", "--yes"])?
        .refused(4, "GUARDIAN_IN_USE")?;
    // the fleet does not grant again by itself what was taken away by name
    fleet.kill("b/agent")?;
    fleet.start("b/agent")?;
    let b = own(fleet, "b")?;
    wait::until("b to be online", seconds(20), || {
        let shown = fleet.json(&["host", "show", "b"])?;
        Ok((shown["state"] == "online").then_some(()))
    })?;
    std::thread::sleep(seconds(2));
    ensure!(!guardians(fleet, "web")?.contains(&b));
    let dry = fleet.json(&["guardian", "grant", "web", "--to", "b", "--dry-run"])?;
    ensure!(dry["summary"]["succeeded"] == 1, "{dry}");
    fleet
        .cli(&["guardian", "grant", "web", "--to", "b"])?
        .ok()?;
    fleet.cli(&["vm", "migrate", "web", "--to", "b"])?.ok()?;
    guest::goes_on(fleet, "web", &before).map(drop)
}

/// `web` runs on host b, and a and c can open its key.
fn rolled_after_revocation(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, "web", 1)?;
    let key = |fleet: &Fleet| Ok::<_, anyhow::Error>(fleet.vm("web")?["tpm"]["key_id"].clone());
    let (first, b) = (key(fleet)?, own(fleet, "b")?);
    let said = fleet.json(&["guardian", "revoke", "web", "--from", "a", "--yes"])?;
    ensure!(said["rolled"] == false, "{said}");
    ensure!(key(fleet)? == first, "a running VM's key was rolled");
    let checked = fleet.json(&["check", "web", "--to", "c"])?;
    ensure!(
        checked.to_string().contains("ROLL_DUE"),
        "nobody says that a roll is due: {checked}"
    );
    fleet.cli(&["vm", "stop", "web"])?.ok()?;
    let second = wait::until("web to have a new key", seconds(60), || {
        let vm = fleet.vm("web")?;
        let rolled = vm["tpm"]["key_id"] != first && vm["job"].is_null();
        Ok(rolled.then(|| vm["tpm"]["key_id"].clone()))
    })?;
    let said = fleet.json(&["guardian", "revoke", "web", "--from", "c", "--yes"])?;
    ensure!(said["rolled"] == true, "{said}");
    ensure!(key(fleet)? != second, "the key is the same");
    let left = guardians(fleet, "web")?;
    ensure!(left == [b], "these can open it: {left:?}");
    // and it is still the same TPM
    fleet.cli(&["vm", "start", "web"])?.ok()?;
    let after = guest::booted(fleet, "web", before.boots + 1)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek,
        "{before:?} then {after:?}"
    );
    Ok(())
}

/// `spare` is stopped on host b, and a, b and c can open its key.
fn stays_out(fleet: &Fleet) -> Result<()> {
    let [a, b, c] = ["a", "b", "c"].map(|host| own(fleet, host));
    let (a, mut wanted) = (a?, vec![b?, c?]);
    wanted.sort();
    let history = fleet.json(&["tpm", "history", "spare"])?;
    let first = history[0]["version"].to_string();
    let key = |fleet: &Fleet| Ok::<_, anyhow::Error>(fleet.vm("spare")?["tpm"]["key_id"].clone());
    let oldest = key(fleet)?;
    fleet.cli(&["tpm", "roll", "spare"])?.ok()?;
    ensure!(guardians(fleet, "spare")?.contains(&a));
    let said = fleet.json(&["guardian", "revoke", "spare", "--from", "a", "--yes"])?;
    ensure!(said["rolled"] == true, "{said}");

    fleet.cli(&["tpm", "disable", "spare", "--yes"])?.ok()?;
    fleet.cli(&["tpm", "enable", "spare", "--yes"])?.ok()?;
    let mut wrapped = guardians(fleet, "spare")?;
    wrapped.sort();
    ensure!(wrapped == wanted, "a new TPM is for {wrapped:?}");

    // A version from before the revocation, and from before the key that it names.
    let restore = ["tpm", "restore", "spare", "--version", &first, "--yes"];
    fleet.cli(&restore)?.ok()?;
    wait::until("the key that a knows to be replaced", seconds(60), || {
        let vm = fleet.vm("spare")?;
        let wrapped = guardians(fleet, "spare")?;
        let rolled = vm["tpm"]["key_id"] != oldest && !wrapped.contains(&a);
        Ok((rolled && vm["job"].is_null()).then_some(()))
    })?;
    fleet.cli(&["vm", "start", "spare"])?.ok()?;
    guest::booted(fleet, "spare", 1)?;
    fleet.cli(&["vm", "stop", "spare", "--force"])?.ok()?;
    Ok(())
}

fn matrix(fleet: &Fleet) -> Result<()> {
    fleet.lab("up", &["--hosts", "5"])?.ok()?;
    for n in 0..38 {
        create(fleet, &format!("m{n}"), ["a", "b"][n % 2], &[])?;
    }
    let begun = Instant::now();
    let checks = fleet.json(&["check"])?;
    let took = begun.elapsed();
    let checks = checks.as_array().context("no list")?;
    ensure!(checks.len() == 200, "{} answers", checks.len());
    // It was taken away from a by name, so that nothing but a person grants it again.
    let no = checks
        .iter()
        .find(|c| c["vm"] == "web" && c["to"] == "a")
        .context("web is not checked against a")?;
    ensure!(
        no["possible"] == false && no["code"] == "KEY_NOT_GRANTED",
        "{no}"
    );
    let why = "the key of VM web was revoked from host a by name";
    ensure!(no["findings"].to_string().contains(why), "{no}");
    let table = fleet.cli(&["check"])?.ok()?.stdout;
    let explained = table.lines().filter(|line| line.contains(why)).count();
    ensure!(
        explained == 1 && table.contains("fix: fleetward guardian grant web --to a"),
        "{table}"
    );
    eprintln!("matrix of 40 VMs x 5 hosts: {took:?}");
    ensure!(took < seconds(1), "it took {took:?}");
    Ok(())
}

/// Changes the host's log with a program, and gives it back afterwards.
fn with_log(fleet: &Fleet, change: &str, code: &str) -> Result<()> {
    let log = "/var/lib/fleetward/audit.log";
    let script = format!("cp -p {log} {log}.kept && {change} {log}");
    fleet.exec("a", &["sh", "-c", &script])?.ok()?;
    let said = fleet.cli(&["audit", "--verify", "-o", "json"])?;
    let restore = format!("cat {log}.kept > {log} && rm {log}.kept");
    fleet.exec("a", &["sh", "-c", &restore])?.ok()?;
    ensure!(said.code == 1, "{change} was not found: {}", said.stdout);
    let verdict = said.json()?;
    let found = verdict["breaks"].as_array().into_iter().flatten();
    ensure!(
        found
            .filter(|b| b["chain"] == "a" && b["what"].as_str().unwrap_or("").contains(code))
            .count()
            == 1,
        "{change}: {verdict}"
    );
    Ok(())
}

fn tampered(fleet: &Fleet) -> Result<()> {
    // enough records on a, also where this case runs alone
    for at in 0..4 {
        let name = format!("audited{at}");
        let create = [
            "vm", "create", &name, "--disk", "16M", "--memory", "64M", "--host", "a",
        ];
        fleet.cli(&create)?.ok()?;
    }
    fleet.cli(&["audit", "--verify"])?.ok()?;
    with_log(
        fleet,
        "sed -i '3s/\"actor\":\"[a-z:0-9]*/\"actor\":\"nobody/'",
        "record 3",
    )?;
    with_log(fleet, "sed -i 4d", "record 3 of host a comes record 5")?;
    with_log(fleet, "sed -i '2{h;d};3{G}'", "comes record")?;
    with_log(fleet, "sed -i '$d'", "missing at the end")?;
    // A byte that is no text, in the middle and in the last record.
    with_log(
        fleet,
        "LC_ALL=C sed -i '3s/\\(\"reason\":\"\\)./\\1\\xff/'",
        "record 2 of host a comes record 4",
    )?;
    with_log(
        fleet,
        "LC_ALL=C sed -i '$s/\\(\"reason\":\"\\)./\\1\\xff/'",
        "is no audit record",
    )?;
    fleet.cli(&["audit", "--verify"])?.ok()?;
    not_asked(fleet)
}

/// A host that is off is named, and nobody says intact.
fn not_asked(fleet: &Fleet) -> Result<()> {
    fleet.kill("b/agent")?;
    wait::until("host b to be unreachable", seconds(60), || {
        let host = fleet.json(&["host", "show", "b"])?;
        Ok((host["state"] == "unreachable").then_some(()))
    })?;
    let said = fleet.cli(&["audit", "--verify"])?;
    let text = format!("{}{}", said.stdout, said.stderr);
    ensure!(
        said.code == 6 && text.contains("host b") && !text.contains("intact"),
        "{said:?}"
    );
    fleet.start("b/agent")?;
    wait::until("host b to be back", seconds(60), || {
        let host = fleet.json(&["host", "show", "b"])?;
        Ok((host["state"] == "online").then_some(()))
    })?;
    fleet.cli(&["audit", "--verify"])?.ok().map(drop)
}
