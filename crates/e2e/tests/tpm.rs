//! TPMs of existing VMs: enable, disable, restore and roll, for one VM and for many, on real hosts.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, run, text};
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{residue, secure_boot, suite};
use serde_json::Value;
use std::path::Path;
use std::process::{ExitCode, Stdio};

const VM: &str = "desk";
const HOSTS: &[&str] = &["a", "b"];
/// VMs of the bulk case.
const MANY: usize = 40;

fn main() -> ExitCode {
    suite::run(
        "e2e-tpm",
        &["--hosts", "2"],
        &[
            (
                "a_vm_made_without_a_tpm_gets_one_before_its_first_power_on",
                enabled_before_first_start,
            ),
            (
                "its_ek_certificate_is_listed_and_openssl_follows_it_to_the_fleets_root",
                listed_and_revoked,
            ),
            (
                "enrolled_certificates_close_what_pcr_7_sealed_and_the_former_ones_open_it",
                enrolled,
            ),
            (
                "a_disabled_tpm_is_brought_back_and_unseals",
                disabled_and_restored,
            ),
            ("a_rolled_tpm_unseals_under_its_new_key", rolled),
            (
                "a_qemu_that_is_killed_counts_is_shown_and_cleared",
                unlocked,
            ),
            (
                "a_running_vm_is_refused_and_stays_as_it_is",
                running_refused,
            ),
            (
                "a_damaged_tpm_is_named_never_kept_and_brought_back_by_the_fix_that_is_shown",
                damaged,
            ),
            (
                "a_new_tpm_in_place_of_an_old_one_is_told_to_lose_its_secrets",
                enabled_anew,
            ),
            (
                "a_guest_that_does_not_shut_down_in_time_runs_on_with_its_tpm",
                deaf_guest,
            ),
            (
                "a_host_killed_during_a_bulk_enable_costs_only_its_own_vms",
                bulk_with_a_power_cut,
            ),
            (
                "a_host_killed_during_a_bulk_disable_of_all_holds_up_nobody",
                bulk_disable_with_a_power_cut,
            ),
        ],
    )
}

fn enabled_before_first_start(fleet: &Fleet) -> Result<()> {
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
        "--no-tpm",
    ];
    fleet.cli(&create)?.ok()?;
    let new = secure_boot::found(fleet, VM)?;
    let trusted = new["certificates"].as_array().map_or(0, Vec::len);
    ensure!(new["state"] == "ok" && trusted == 7, "a new VM: {new}");
    secure_boot::make_old(fleet, "a", VM)?;
    let would = fleet.cli(&["tpm", "enable", VM, "--dry-run"])?.ok()?;
    ensure!(would.stdout.contains("would get a TPM"), "{}", would.stdout);
    ensure!(tpm(fleet)?["enabled"] == false, "a dry run did something");
    fleet.cli(&["tpm", "enable", VM])?.ok()?;
    let again = fleet.cli(&["tpm", "enable", VM])?.ok()?;
    ensure!(again.stdout.contains("already"), "{}", again.stdout);
    fleet.cli(&["vm", "start", VM])?.ok()?;
    let tick = guest::booted(fleet, VM, 1)?;
    ensure!(tick.unseal == "ok", "{tick:?}");
    ensure!(
        tpm(fleet)?["ek_certificate"] == tick.ek,
        "another EK: {tick:?}"
    );
    let history = fleet.json(&["tpm", "history", VM])?;
    ensure!(
        history.as_array().is_some_and(|list| !list.is_empty()),
        "no version was kept: {history}"
    );
    Ok(())
}

/// What a verifier outside the fleet does, with the files that an administrator publishes. The VM goes on when its TPM's
/// certificate is revoked, as every case after this one shows.
fn listed_and_revoked(fleet: &Fleet) -> Result<()> {
    let sha256 = text(&tpm(fleet)?, "ek_certificate")?;
    wait::until("the certificate to be listed", seconds(30), || {
        let listed = fleet.json(&["ek", "list", "--vm", VM])?;
        Ok((listed[0]["sha256"] == sha256).then_some(()))
    })?;
    let listed = &fleet.json(&["ek", "list", "--vm", VM])?[0];
    ensure!(
        listed["standing"] == "fleet" && listed["issuer_host"] == "a",
        "{listed}"
    );
    let directory = tempfile::tempdir()?;
    let file = |name: &str| directory.path().join(name).display().to_string();
    let put = |name: &str, words: &[&str]| -> Result<()> {
        let said = fleet.cli(words)?.ok()?.stdout;
        Ok(std::fs::write(file(name), said)?)
    };
    put("tpm.pem", &["ek", "show", &sha256, "--pem"])?;
    put("ek.pem", &["ek", "authorities", "--pem"])?;
    let verified = || -> Result<String> {
        fleet.cli(&["ek", "crl", "--out", &file("ek.crl")])?.ok()?;
        let output = std::process::Command::new("openssl")
            .args(["verify", "-crl_check_all", "-extended_crl"])
            .args(["-CAfile", &file("ek.pem"), "-CRLfile", &file("ek.crl")])
            .arg(file("tpm.pem"))
            .output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    let said = verified()?;
    ensure!(said.trim_end().ends_with(": OK"), "{said}");
    published(fleet, directory.path())?;
    let revoke = ["ek", "revoke", &sha256, "--reason", "a test"];
    let asked = fleet.cli(&revoke)?;
    ensure!(asked.code == 2, "not asked: {asked:?}");
    let done = fleet.cli(&[&revoke[..], &["--yes"]].concat())?.ok()?;
    ensure!(done.stdout.contains(VM), "{}", done.stdout);
    let said = verified()?;
    ensure!(said.contains("certificate revoked"), "{said}");
    let shown = fleet.cli(&["vm", "show", VM])?.ok()?.stdout;
    ensure!(shown.contains("EK_REVOKED"), "{shown}");
    Ok(())
}

/// What the VM's certificate says is published is what `ek publish` writes, under the names that it says.
fn published(fleet: &Fleet, directory: &Path) -> Result<()> {
    let file = |name: &str| directory.join(name).display().to_string();
    let openssl = |line: String| -> Result<String> {
        let mut command = std::process::Command::new("openssl");
        run(command.args(line.split(' '))).and_then(|ran| Ok(ran.ok()?.stdout))
    };
    fleet.cli(&["ek", "publish", "--out", &file("www")])?.ok()?;
    let told = openssl(format!("x509 -in {} -noout -text", file("tpm.pem")))?;
    let place = "URI:http://pki.lab.example/fleetward/";
    let named = |label: &str| -> Result<String> {
        let mut lines = told.lines().map(str::trim);
        let line = lines.find_map(|line| line.strip_prefix(label)?.strip_prefix(place));
        // OpenSSL puts more behind the address of a list.
        let name = line.and_then(|line| line.split_whitespace().next());
        Ok(name
            .with_context(|| format!("no {label}{place} in {told}"))?
            .to_owned())
    };
    let (issuer, list) = (named("CA Issuers - ")?, named("")?);
    for (name, pem) in [("ek-root.cer", "root.pem"), (&issuer, "issuer.pem")] {
        let der = file(&format!("www/{name}"));
        openssl(format!("x509 -inform DER -in {der} -out {}", file(pem)))?;
    }
    openssl(format!(
        "verify -CAfile {} -untrusted {} {}",
        file("root.pem"),
        file("issuer.pem"),
        file("tpm.pem")
    ))?;
    openssl(format!(
        "crl -inform DER -in {} -noout -CAfile {}",
        file(&format!("www/{list}")),
        file("root.pem")
    ))
    .map(drop)
}

/// The guest has sealed its secret to PCR 7 as certificates of 2011 make it. Restored, the VM is left stopped: the next case
/// starts it, and sees that the secret opens.
fn enrolled(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, VM, 1)?;
    let warned = fleet.json(&["host", "show", "a"])?["warnings"].to_string();
    ensure!(warned.contains("secure-boot enroll"), "{warned}");
    let enroll = ["secure-boot", "enroll", VM];
    fleet
        .cli(&[&enroll[..], &["--yes"]].concat())?
        .refused(4, "VM_RUNNING")?;
    let restart = [&enroll[..], &["--stop-and-restart"]].concat();
    let told = "manage-bde -protectors -disable C: -RebootCount 1";
    let would = fleet.cli(&[&restart[..], &["--dry-run"]].concat())?.ok()?;
    ensure!(would.stdout.contains(told), "{}", would.stdout);
    let asked = fleet.cli(&restart)?;
    ensure!(
        asked.code == 2 && asked.stderr.contains(told),
        "not asked: {asked:?}"
    );
    fleet.cli(&[&restart[..], &["--yes"]].concat())?.ok()?;
    let tick = guest::booted(fleet, VM, before.boots + 1)?;
    ensure!(
        tick.unseal == "failed" && tick.pcr7 != before.pcr7 && tick.ek == before.ek,
        "{before:?} then {tick:?}"
    );
    let found = secure_boot::found(fleet, VM)?;
    ensure!(
        found["state"] == "ok" && found["former_kept"] == true,
        "{found}"
    );
    // An object with a password was used: an end of the TPM that is not orderly would count as a wrong guess.
    fleet.cli(&["vm", "keys", VM, "password", "enter"])?.ok()?;
    wait::until("an object with a password to open", seconds(30), || {
        let said = fleet.lab("serial", &[VM])?.ok()?.stdout;
        Ok(said.contains("NOTE password=ok").then_some(()))
    })?;
    fleet.cli(&["vm", "stop", VM, "--force"])?.ok()?;
    // What it trusted before moves with it.
    let soak = std::env::var_os("FLEETWARD_E2E_SOAK").is_some();
    for host in ["b", "a"].into_iter().filter(|_| soak) {
        let migrate = ["vm", "migrate", VM, "--to", host, "--offline"];
        fleet.cli(&migrate)?.ok()?;
    }
    fleet.cli(&["secure-boot", "restore", VM, "--yes"])?.ok()?;
    let found = secure_boot::found(fleet, VM)?;
    ensure!(found["state"] == "update_available", "{found}");
    fleet
        .cli(&["secure-boot", "restore", VM, "--yes"])?
        .refused(4, "SECURE_BOOT_NOTHING_KEPT")
        .map(drop)
}

fn disabled_and_restored(fleet: &Fleet) -> Result<()> {
    stop(fleet)?;
    let asked = fleet.cli(&["tpm", "disable", VM])?;
    ensure!(
        asked.code == 2 && asked.stderr.contains("BitLocker"),
        "not asked: {asked:?}"
    );
    fleet.cli(&["tpm", "disable", VM, "--yes"])?.ok()?;
    let off = tpm(fleet)?;
    ensure!(
        off["enabled"] == false && off["state_present"] == false,
        "{off}"
    );
    fleet.cli(&["tpm", "restore", VM])?.ok()?;
    let tick = start(fleet)?;
    ensure!(
        tick.unseal == "ok" && tick.lockout == "0",
        "its former certificates are back, and a forced stop did not count: {tick:?}"
    );
    residue::none_anywhere(fleet, HOSTS)
}

fn rolled(fleet: &Fleet) -> Result<()> {
    let before = guest::booted(fleet, VM, 1)?;
    let key = tpm(fleet)?["key_id"].clone();
    fleet
        .cli(&["tpm", "roll", VM, "--stop-and-restart"])?
        .ok()?;
    let tick = guest::booted(fleet, VM, before.boots + 1)?;
    ensure!(tick.unseal == "ok" && tick.ek == before.ek, "{tick:?}");
    let now = tpm(fleet)?["key_id"].clone();
    ensure!(key != now, "the key is still {key}");
    Ok(())
}

/// QEMU dies under a guest that has used a password: its TPM counts that as a wrong guess.
fn unlocked(fleet: &Fleet) -> Result<()> {
    let before = guest::last(fleet, VM)?.expect("it runs");
    let opened = || {
        let said = fleet.lab("serial", &[VM])?.ok()?.stdout;
        Ok::<_, anyhow::Error>(said.matches("NOTE password=ok").count())
    };
    let former = opened()?;
    fleet.cli(&["vm", "keys", VM, "password", "enter"])?.ok()?;
    wait::until("an object with a password to open", seconds(30), || {
        Ok((opened()? > former).then_some(()))
    })?;
    let kill = "kill -9 $(cat /run/libvirt/qemu/desk.pid)";
    fleet.exec("a", &["sh", "-ec", kill])?.ok()?;
    let counted = |expected: u64| {
        wait::until("the lockout to show", seconds(30), || {
            let status = fleet.json(&["tpm", "status", VM])?;
            let counted = status[0]["tpm"]["lockout"]["counted"].as_u64();
            Ok((counted == Some(expected)).then_some(()))
        })
    };
    counted(1)?;
    let said = fleet.cli(&["tpm", "status", VM])?.ok()?.stdout;
    ensure!(said.contains("1 of "), "{said}");
    fleet.cli(&["tpm", "unlock", VM])?.ok()?;
    counted(0)?;
    let history = fleet.json(&["tpm", "history", VM])?.to_string();
    ensure!(history.contains("\"unlocked\""), "{history}");
    let tick = start(fleet)?;
    ensure!(
        tick.unseal == "ok" && tick.lockout == "0" && tick.ek == before.ek,
        "{tick:?}"
    );
    residue::none_anywhere(fleet, HOSTS)
}

fn running_refused(fleet: &Fleet) -> Result<()> {
    for change in ["disable", "roll"] {
        fleet
            .cli(&["tpm", change, VM, "--yes"])?
            .refused(4, "VM_RUNNING")?;
    }
    let before = guest::last(fleet, VM)?.expect("it runs");
    guest::goes_on(fleet, VM, &before).map(drop)
}

/// What a power cut, a full disk or a bad sector makes of the state: none, empty, cut, other bytes, one from before.
fn damaged(fleet: &Fleet) -> Result<()> {
    let id = text(&fleet.vm(VM)?, "id")?;
    let state = format!("/var/lib/libvirt/swtpm/{id}/tpm2/tpm2-00.permall");
    let on_a = |script: &str| fleet.exec("a", &["sh", "-ec", script])?.ok();
    let current = || {
        wait::until("the newest state to be kept", seconds(30), || {
            Ok((fleet.vm(VM)?["escrow"]["current"] == true).then_some(()))
        })
    };
    // One that the host has seen: what was written and replaced between two looks is not known as one from before.
    current()?;
    on_a(&format!("cp -p {state} /var/lib/fleetward/older"))?;
    stop(fleet)?;
    let versions = || {
        let history = fleet.json(&["tpm", "history", VM])?;
        let numbers = history.as_array().into_iter().flatten();
        Ok::<_, anyhow::Error>(
            numbers
                .filter_map(|v| v["version"].as_u64())
                .collect::<Vec<_>>(),
        )
    };
    current()?;
    let kept = versions()?;
    let newest = kept.iter().max().copied().unwrap_or_default().to_string();
    on_a(&format!("cp -p {state} /var/lib/fleetward/whole"))?;
    let in_place = || Ok::<_, anyhow::Error>(on_a(&format!("sha256sum {state} || true"))?.stdout);
    for (damage, code) in [
        ("rm $s", "TPM_STATE_MISSING"),
        ("cp -p /var/lib/fleetward/older $s.x", "TPM_STATE_OUTDATED"),
        (": > $s.x", "TPM_STATE_DAMAGED"),
        ("truncate -s 3000 $s.x", "TPM_STATE_DAMAGED"),
        (
            "printf '\\377\\377' | dd of=$s.x bs=1 seek=3000 conv=notrunc 2>&1",
            "TPM_STATE_UNREADABLE",
        ),
        ("chmod 0 $s.x", "TPM_STATE_UNREADABLE"),
        ("chown 12345 $s.x", "TPM_STATE_UNREADABLE"),
    ] {
        on_a(&format!(
            "s={state}; cp -p /var/lib/fleetward/whole $s.x; mv $s.x $s
             cp -p $s $s.x; {damage}; if [ -e $s ]; then mv $s.x $s; else rm $s.x; fi"
        ))?;
        let before = in_place()?;
        for command in [
            &["vm", "start", VM][..],
            &["vm", "migrate", VM, "--to", "b", "--offline"],
            &["vm", "clone", VM, "copy", "--tpm", "copy"],
            &["tpm", "roll", VM],
        ] {
            let said = fleet.cli(command)?.refused(4, code)?;
            let fix = format!("fix: fleetward tpm restore {VM} --version {newest}");
            ensure!(said.stderr.contains(&fix), "{}", said.stderr);
        }
        ensure!(in_place()? == before, "{code}: the state was changed");
        ensure!(fleet.vm("copy").is_err(), "{code}: a clone is left");
    }
    // Of the last one the host has told the controller, which asked for a copy.
    wait::until("why there is no copy to show", seconds(30), || {
        let failure = &fleet.vm(VM)?["escrow"]["failure"];
        Ok((failure["code"] == "TPM_STATE_UNREADABLE").then_some(()))
    })?;
    ensure!(versions()? == kept, "a damaged state was kept");
    let restore = ["tpm", "restore", VM, "--version", &newest, "--yes"];
    fleet.cli(&restore)?.ok()?;
    let tick = start(fleet)?;
    ensure!(tick.unseal == "ok", "{tick:?}");
    residue::none_anywhere(fleet, HOSTS)
}

fn enabled_anew(fleet: &Fleet) -> Result<()> {
    let key = tpm(fleet)?["key_id"].clone();
    let before = guest::booted(fleet, VM, 1)?;
    let off = fleet.cli(&["tpm", "disable", VM, "--stop-and-restart", "--yes"])?;
    let said = off.ok()?.stderr;
    ensure!(said.contains("BitLocker"), "not told: {said}");
    let without = guest::booted(fleet, VM, before.boots + 1)?;
    ensure!(
        without.ek == "none" && without.unseal == "failed",
        "{without:?}"
    );
    let asked = fleet.cli(&["tpm", "enable", VM])?;
    ensure!(
        asked.code == 2
            && asked
                .stderr
                .contains("cannot open what the former one sealed"),
        "not told: {asked:?}"
    );
    fleet
        .cli(&["tpm", "enable", VM, "--yes"])?
        .refused(4, "VM_RUNNING")?;
    let on = ["tpm", "enable", VM, "--stop-and-restart", "--yes"];
    fleet.cli(&on)?.ok()?;
    let tick = guest::booted(fleet, VM, without.boots + 1)?;
    ensure!(tick.unseal == "failed", "{tick:?}");
    // The way back is open all the same: by the version that unsealed.
    let history = fleet.json(&["tpm", "history", VM])?;
    let kept = history
        .as_array()
        .into_iter()
        .flatten()
        .filter(|version| version["key_id"] == key)
        .filter_map(|version| version["version"].as_u64())
        .next_back();
    let Some(version) = kept else {
        anyhow::bail!("no version of before: {history}");
    };
    let version = version.to_string();
    let restore = [
        "tpm",
        "restore",
        VM,
        "--stop-and-restart",
        "--version",
        &version,
    ];
    fleet.cli(&restore)?.refused(2, "CONFIRMATION_NEEDED")?;
    fleet.cli(&[&restore[..], &["--yes"]].concat())?.ok()?;
    let tick = guest::booted(fleet, VM, tick.boots + 1)?;
    ensure!(tick.unseal == "ok", "{tick:?}");
    stop(fleet)
}

/// One that sits in its firmware, which knows of no power button.
fn deaf_guest(fleet: &Fleet) -> Result<()> {
    let create = [
        "vm",
        "create",
        "deaf",
        "--disk",
        "16M",
        "--memory",
        "64M",
        "--host",
        "a",
        "--start",
        "--label",
        "ears=none",
    ];
    fleet.cli(&create)?.ok()?;
    let process = || -> Result<String> {
        let find =
            "cat /run/libvirt/qemu/deaf.pid /var/run/libvirt/qemu/deaf.pid 2>/dev/null | head -n 1";
        let found = fleet.exec("a", &["sh", "-c", find])?.ok()?.stdout;
        ensure!(!found.trim().is_empty(), "no process");
        Ok(found)
    };
    let before = (process()?, fleet.vm("deaf")?["tpm"].clone());
    ensure!(before.1["enabled"] == true, "{}", before.1);
    let alone = ["tpm", "disable", "deaf", "--yes"];
    let chosen = ["tpm", "roll", "--label", "ears=none"];
    let how = ["--stop-and-restart", "--deadline", "5s"];
    fleet
        .cli(&[&alone[..], &how].concat())?
        .refused(1, "SHUTDOWN_TIMED_OUT")?;
    let bulk = fleet.cli(&[&chosen[..], &how].concat())?;
    ensure!(
        bulk.code == 3
            && bulk.stdout.contains("deaf: SHUTDOWN_TIMED_OUT")
            && bulk.stdout.contains("0 succeeded, 1 failed, 0 skipped"),
        "{bulk:?}"
    );
    let vm = fleet.vm("deaf")?;
    ensure!(vm["state"] == "running", "{vm}");
    for same in ["enabled", "state_present", "key_id", "ek_certificate"] {
        ensure!(vm["tpm"][same] == before.1[same], "{same}: {}", vm["tpm"]);
    }
    ensure!(process()? == before.0, "its power was cut");
    fleet.cli(&["vm", "stop", "deaf", "--force"])?.ok()?;
    fleet
        .cli(&["vm", "delete", "deaf", "--yes"])?
        .ok()
        .map(drop)
}

fn bulk_with_a_power_cut(fleet: &Fleet) -> Result<()> {
    for at in 0..MANY {
        let (name, host) = (format!("small{at}"), HOSTS[at % 2]);
        let create = [
            "vm", "create", &name, "--disk", "16M", "--memory", "64M", "--host", host, "--no-tpm",
            "--label", "bulk=yes",
        ];
        fleet.cli(&create)?.ok()?;
    }
    let enable = ["tpm", "enable", "--label", "bulk=yes", "-o", "json"];
    let bulk = fleet
        .cli_command()
        .args(enable)
        .args(["--parallel", "8"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    wait::until("some to be done", seconds(120), || {
        let (done, _) = counted(fleet)?;
        Ok((done >= 6).then_some(()))
    })?;
    fleet.kill("b")?;
    let output = bulk.wait_with_output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        output.status.code() == Some(3),
        "{:?}: {report}",
        output.status
    );
    let results = report["results"].as_array().cloned().unwrap_or_default();
    ensure!(results.len() == MANY, "{report}");
    for result in &results {
        let name = result["vm"].as_str().unwrap_or_default();
        let vm = fleet.json(&["vm", "show", name])?;
        if vm["host"] == "a" {
            ensure!(result["outcome"] == "succeeded", "{result}");
        }
        if result["outcome"] == "succeeded" {
            ensure!(vm["tpm"]["enabled"] == true, "not true: {result}");
        }
    }
    fleet.start("b")?;
    no_jobs(fleet)?;
    // What was reported as failed is as if it had never been asked for, as b itself says.
    let host = fleet.json(&["host", "show", "b"])?;
    ensure!(host["state"] == "online", "{host}");
    for result in results.iter().filter(|r| r["outcome"] == "failed") {
        let vm = fleet.vm(result["vm"].as_str().unwrap_or_default())?;
        let tpm = &vm["tpm"];
        ensure!(
            vm["host"] == "b" && tpm["enabled"] == false && tpm["state_present"] == false,
            "{result} and yet {vm}"
        );
    }
    fleet.cli(&enable)?.ok()?;
    let (done, all) = counted(fleet)?;
    ensure!((done, all) == (MANY, MANY), "{done} of {all}");
    wait::until("no residue", seconds(20), || {
        residue::none_anywhere(fleet, HOSTS).map(Some)
    })
}

/// Whatever b was doing when its power went, even past the point of no return, the VMs of a have their turn.
fn bulk_disable_with_a_power_cut(fleet: &Fleet) -> Result<()> {
    let bulk = fleet
        .cli_command()
        .args(["tpm", "disable", "--all", "--yes", "-o", "json"])
        .args(["--parallel", "6"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    wait::until("some to be done", seconds(120), || {
        let (on, _) = counted(fleet)?;
        Ok((on + 6 <= MANY).then_some(()))
    })?;
    fleet.kill("b")?;
    let output = bulk.wait_with_output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let code = output.status.code();
    ensure!(code == Some(3), "{code:?}: {report}");
    let results = report["results"].as_array().cloned().unwrap_or_default();
    ensure!(results.len() > MANY, "not all: {report}");
    for result in &results {
        let vm = fleet.vm(result["vm"].as_str().unwrap_or_default())?;
        match result["outcome"].as_str() {
            Some("succeeded" | "skipped") => {
                ensure!(vm["tpm"]["enabled"] == false, "not true: {result}");
            }
            _ => ensure!(
                vm["host"] == "b" && result["code"] == "HOST_UNREACHABLE",
                "{result}"
            ),
        }
    }
    fleet.start("b")?;
    no_jobs(fleet)?;
    let rest = fleet
        .cli(&["tpm", "disable", "--host", "b", "--yes"])?
        .ok()?;
    ensure!(rest.stdout.contains(" 0 failed"), "{}", rest.stdout);
    ensure!(!rest.stdout.contains(VM), "{VM} is on a: {}", rest.stdout);
    let found = counted(fleet)?;
    ensure!(found == (0, MANY), "{found:?}");
    // Nothing is lost: a whole version of each is with the controller.
    for at in [0, 1, MANY - 2, MANY - 1] {
        let name = format!("small{at}");
        fleet.cli(&["tpm", "restore", &name])?.ok()?;
        ensure!(fleet.vm(&name)?["tpm"]["state_present"] == true, "{name}");
    }
    Ok(())
}

fn no_jobs(fleet: &Fleet) -> Result<()> {
    wait::until("every job to have ended", seconds(180), || {
        let jobs = fleet.json(&["job", "list", "--active"])?;
        Ok(jobs.as_array().is_some_and(Vec::is_empty).then_some(()))
    })
}

/// How many of the many have a TPM, and how many there are.
fn counted(fleet: &Fleet) -> Result<(usize, usize)> {
    let vms = fleet.json(&["vm", "list", "--label", "bulk=yes"])?;
    let vms = vms.as_array().cloned().unwrap_or_default();
    let with = |vm: &&Value| vm["tpm"]["enabled"] == true && vm["tpm"]["state_present"] == true;
    Ok((vms.iter().filter(with).count(), vms.len()))
}

fn tpm(fleet: &Fleet) -> Result<Value> {
    Ok(fleet.vm(VM)?["tpm"].clone())
}

fn stop(fleet: &Fleet) -> Result<()> {
    fleet.cli(&["vm", "stop", VM])?.ok().map(drop)
}

/// Starts it; the first line of the new boot.
fn start(fleet: &Fleet) -> Result<Tick> {
    let before = guest::last(fleet, VM)?.map_or(0, |tick| tick.boots);
    fleet.cli(&["vm", "start", VM])?.ok()?;
    guest::booted(fleet, VM, before + 1)
}
