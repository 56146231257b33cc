//! Guardians by hand, as Hyper-V administrators do it: a fleet with manual trust, and PFX files that are carried
//! between hosts.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use anyhow::{Context, Result, ensure};
use fleetward_agent::audit::AuditLog;
use fleetward_agent::keyring::{Keyring, Purpose};
use fleetward_e2e::fleet::{Fleet, Said, text};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, residue, suite};
use fleetward_model::HostName;
use fleetward_protector_open::LocalGuardian;
use fleetward_protector_open::local_guardian::LIFETIME;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;

const HOSTS: [&str; 2] = ["a", "b"];

fn main() -> ExitCode {
    suite::run(
        "e2e-guardians",
        &["--hosts", "2", "--trust", "manual"],
        &[
            (
                "a_grant_of_all_moves_no_private_key_and_the_vm_moves",
                granted_to_all,
            ),
            (
                "with_manual_trust_a_new_key_is_for_the_vms_own_host_alone",
                new_keys_stay_at_home,
            ),
            ("manual_trust_refuses_and_says_both_cures", refused),
            (
                "a_wrong_password_or_a_broken_file_imports_nothing",
                nothing_by_halves,
            ),
            (
                "a_legacy_export_opens_with_stock_openssl_and_windows_forms_import",
                every_form_by_hand,
            ),
            (
                "an_export_that_cannot_be_finished_leaves_nothing",
                export_whole_or_not,
            ),
            (
                "a_damaged_protector_hides_nothing_from_the_list_and_stops_a_removal",
                damaged_protector,
            ),
            (
                "half_a_guardian_waits_and_opens_nothing_until_the_other_comes",
                one_half_alone,
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
            ("an_expired_guardian_still_opens", expired),
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

fn delete(fleet: &Fleet, names: &[&str]) -> Result<()> {
    let command = [&["vm", "delete", "--yes"], names].concat();
    fleet.cli(&command)?.ok().map(drop)
}

/// The guardians whose private keys a host holds, and the files they lie in.
fn private_keys(fleet: &Fleet, host: &str) -> Result<(Vec<String>, Vec<String>)> {
    let rows = guardians(fleet, host)?;
    let held = rows.iter().filter(|row| row["has_private_key"] == true);
    let mut ids = held
        .map(|row| text(row, "guardian"))
        .collect::<Result<Vec<_>>>()?;
    ids.dedup();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(guardian_store(fleet, host))? {
        files.push(entry?.file_name().to_string_lossy().into_owned());
    }
    files.sort();
    Ok((ids, files))
}

/// The short way: only wrappings change.
fn granted_to_all(fleet: &Fleet) -> Result<()> {
    create(fleet, "short", "a")?;
    let before = guest::booted(fleet, "short", 1)?;
    fleet
        .cli(&["vm", "migrate", "short", "--to", "b"])?
        .refused(4, "KEY_NOT_GRANTED")?;
    let keys = private_keys(fleet, "b")?;
    ensure!(keys.0 == [own(fleet, "b")?], "{keys:?}");
    let said = fleet.json(&["guardian", "grant", "--all", "--to", "b"])?;
    ensure!(
        said["summary"]["succeeded"] == 1 && said["summary"]["failed"] == 0,
        "{said}"
    );
    let vm = fleet.vm("short")?;
    let mut wrapped = guardians_of(&vm);
    wrapped.sort_unstable();
    let mut wanted = [own(fleet, "a")?, own(fleet, "b")?];
    wanted.sort();
    ensure!(wrapped == wanted, "{vm}");
    fleet.cli(&["vm", "migrate", "short", "--to", "b"])?.ok()?;
    ensure!(fleet.place("short")? == ("running".into(), "b".into()));
    guest::goes_on(fleet, "short", &before)?;
    ensure!(private_keys(fleet, "b")? == keys, "a private key has moved");
    fleet.cli(&["vm", "stop", "short", "--force"])?.ok()?;
    delete(fleet, &["short"])
}

fn new_keys_stay_at_home(fleet: &Fleet) -> Result<()> {
    let words = "vm create bare --image lab-guest --memory 512M --host a --no-tpm";
    let words: Vec<_> = words.split(' ').collect();
    fleet.cli(&words)?.ok()?;
    fleet.cli(&["tpm", "enable", "bare"])?.ok()?;
    let (a, b) = (own(fleet, "a")?, own(fleet, "b")?);
    let vm = fleet.vm("bare")?;
    ensure!(guardians_of(&vm) == [a.as_str()], "tpm enable: {vm}");
    for tpm in ["new", "copy"] {
        let name = format!("bare-{tpm}");
        fleet
            .cli(&["vm", "clone", "bare", &name, "--tpm", tpm])?
            .ok()?;
        let vm = fleet.vm(&name)?;
        ensure!(guardians_of(&vm) == [a.as_str()], "clone {tpm}: {vm}");
    }
    // One for another host is for that one too, which was named.
    fleet
        .cli(&[
            "vm", "clone", "bare", "bare-b", "--tpm", "new", "--host", "b",
        ])?
        .ok()?;
    let vm = fleet.vm("bare-b")?;
    let wrapped = guardians_of(&vm);
    ensure!(
        vm["host"] == "b" && wrapped.len() == 2 && wrapped.contains(&b.as_str()),
        "{vm}"
    );
    delete(fleet, &["bare", "bare-new", "bare-copy", "bare-b"])
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
    for (name, code) in broken(&directory)? {
        let file = path(&directory.join(name))?;
        // Also beside a half that is good.
        for files in [&[file.as_str()][..], &[&signing, &file]] {
            let command = [&["import-pfx"], files, &["--password-file", &right]].concat();
            agent(fleet, "b", &command)?
                .refused(4, code)
                .with_context(|| name.to_owned())?;
        }
    }
    ensure!(guardians(fleet, "b")?.len() == 2, "only its own is there");
    Ok(())
}

/// Files that are no half of a guardian, each with the code that says why; made of the exported encryption half.
fn broken(directory: &std::path::Path) -> Result<Vec<(&'static str, &'static str)>> {
    let openssl = |arguments: &str| -> Result<()> {
        let mut command = Command::new("/usr/bin/openssl");
        command.args(arguments.split(' ')).current_dir(directory);
        fleetward_e2e::fleet::run(&mut command)?
            .ok()
            .with_context(|| arguments.to_owned())?;
        Ok(())
    };
    let export =
        |options: &str| openssl(&format!("pkcs12 -export -passout file:password {options}"));
    openssl("pkcs12 -in VMEncryption.pfx -passin file:password -nodes -out half.pem")?;
    openssl("pkey -in half.pem -out half.key")?;
    export("-in half.pem -nomac -out nomac.pfx")?;
    export("-in half.pem -nokeys -out nokey.pfx")?;
    export("-in half.key -inkey half.key -nocerts -out nocert.pfx")?;
    openssl(
        "req -x509 -newkey rsa:1024 -nodes -keyout weak.key -out weak.crt -subj /CN=weak -days 30",
    )?;
    export("-in weak.crt -inkey weak.key -out weak.pfx")?;
    let whole = std::fs::read(directory.join("VMEncryption.pfx"))?;
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    std::fs::write(directory.join("flipped.pfx"), flipped)?;
    std::fs::write(directory.join("large.pfx"), vec![0x30; 50 * 1024 * 1024])?;
    // 100,000 rounds in DER, and as many bytes for 8,388,607.
    let (ours, bomb) = (
        [0x02, 0x03, 0x01, 0x86, 0xa0],
        [0x02, 0x03, 0x7f, 0xff, 0xff],
    );
    let mut rounds = whole.clone();
    for at in 0..rounds.len() - ours.len() {
        if rounds[at..at + ours.len()] == ours {
            rounds[at..at + ours.len()].copy_from_slice(&bomb);
        }
    }
    ensure!(
        rounds != whole,
        "the file does not say how many rounds it asks for"
    );
    std::fs::write(directory.join("rounds.pfx"), rounds)?;
    Ok(vec![
        ("nomac.pfx", "PFX_NO_MAC"),
        ("nokey.pfx", "PFX_NO_KEY"),
        ("nocert.pfx", "PFX_NO_CERTIFICATE"),
        ("weak.pfx", "PFX_WEAK_KEY"),
        ("flipped.pfx", "PFX_DAMAGED"),
        ("large.pfx", "PFX_TOO_LARGE"),
        ("rounds.pfx", "PFX_TOO_MANY_ITERATIONS"),
    ])
}

/// The exported guardian of host a as older Windows has it, and imported on host b in every form.
fn every_form_by_hand(fleet: &Fleet) -> Result<()> {
    let (modern, password) = exported(fleet, "a")?;
    let directory = fleet.directory().join("carried-legacy");
    std::fs::create_dir_all(&directory)?;
    std::fs::copy(&password, directory.join("password"))?;
    let (id, password) = (own(fleet, "a")?, path(&password)?);
    let out = path(&directory)?;
    let export = [
        "export-pfx",
        &id,
        "--out",
        &out,
        "--legacy",
        "--password-file",
        &password,
    ];
    agent(fleet, "a", &export)?.ok()?;
    let openssl = |arguments: &str| -> Result<Said> {
        let mut command = Command::new("/usr/bin/openssl");
        command.args(arguments.split(' ')).current_dir(&directory);
        fleetward_e2e::fleet::run(&mut command)?
            .ok()
            .with_context(|| arguments.to_owned())
    };
    let halves = ["VMSigning", "VMEncryption"];
    for half in halves {
        let told = openssl(&format!(
            "pkcs12 -in {half}.pfx -passin file:password -legacy -nodes -info -out {half}.pem"
        ))?;
        ensure!(
            told.stderr.contains("pbeWithSHA1And3-KeyTripleDES-CBC"),
            "{}",
            told.stderr
        );
        // The same key as in the other export.
        let other = path(&modern.join(format!("{half}.pfx")))?;
        openssl(&format!(
            "pkcs12 -in {other} -passin file:password -nodes -out {half}-modern.pem"
        ))?;
        let public = |file: &str| openssl(&format!("pkey -in {file} -pubout"));
        let (ours, theirs) = (
            public(&format!("{half}.pem"))?,
            public(&format!("{half}-modern.pem"))?,
        );
        ensure!(ours.stdout == theirs.stdout && ours.stdout.contains("PUBLIC KEY"));
    }
    openssl(
        "req -x509 -newkey rsa:1024 -nodes -keyout ca.key -out ca.pem -subj /CN=weak -days 30",
    )?;
    for form in [
        "",
        "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-RC2-40 -macalg sha1",
        "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1",
        "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-RC2-40 -macalg sha1 -certfile ca.pem",
        "-keypbe AES-256-CBC -certpbe AES-256-CBC -macalg sha256 -certfile ca.pem",
    ] {
        for half in halves {
            let command = format!(
                "pkcs12 -export -in {half}.pem -passout file:password -out form-{half}.pfx {form}"
            );
            openssl(command.trim_end())?;
        }
        let [signing, encryption] =
            halves.map(|half| path(&directory.join(format!("form-{half}.pfx"))));
        let (signing, encryption) = (signing?, encryption?);
        let import = [
            "import-pfx",
            &signing,
            &encryption,
            "--password-file",
            &password,
        ];
        agent(fleet, "b", &import)?
            .ok()
            .with_context(|| form.to_owned())?;
        let rows = guardians(fleet, "b")?;
        ensure!(
            rows.len() == 4 && rows[2]["guardian"] == id.as_str(),
            "{form}: {rows:?}"
        );
        agent(fleet, "b", &["remove", &id, "--yes"])?.ok()?;
        ensure!(guardians(fleet, "b")?.len() == 2, "{form}");
    }
    Ok(())
}

/// A full disk, and a file of one name in the way.
fn export_whole_or_not(fleet: &Fleet) -> Result<()> {
    let (_, password) = exported(fleet, "a")?;
    let (id, password) = (own(fleet, "a")?, path(&password)?);
    let names = |directory: &std::path::Path| -> Result<Vec<String>> {
        let entries = std::fs::read_dir(directory)?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    let out = fleet.directory().join("in-the-way");
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("VMEncryption.pfx"), "the only copy of something")?;
    let export = |out: &str| {
        let export = [
            "export-pfx",
            &id,
            "--out",
            out,
            "--password-file",
            &password,
        ];
        agent(fleet, "a", &export)
    };
    export(&path(&out)?)?.refused(4, "NAME_TAKEN")?;
    ensure!(names(&out)? == ["VMEncryption.pfx"]);
    std::fs::remove_file(out.join("VMEncryption.pfx"))?;
    export(&path(&out)?)?.ok()?;
    ensure!(names(&out)?.len() == 2);

    // Room for one file and a half.
    let size = std::fs::metadata(out.join("VMSigning.pfx"))?.len();
    let pages = size.div_ceil(4096) * 2 - 1;
    let full = fleet.directory().join("full");
    std::fs::create_dir_all(&full)?;
    let size = format!("size={}k", pages * 4);
    // In the host's own view of the file systems.
    let full = path(&full)?;
    fleet
        .exec(
            "a",
            &["/usr/bin/mount", "-t", "tmpfs", "-o", &size, "tmpfs", &full],
        )?
        .ok()?;
    let said = export(&full).and_then(|said| said.refused(4, "NO_SPACE"));
    let left = fleet.exec("a", &["/usr/bin/ls", "-A", &full]);
    fleet.exec("a", &["/usr/bin/umount", &full])?.ok()?;
    said?;
    let left = left?.ok()?.stdout;
    ensure!(left.trim().is_empty(), "{left} is left");
    Ok(())
}

fn damaged_protector(fleet: &Fleet) -> Result<()> {
    import(fleet, "a", "b")?.ok()?;
    let id = own(fleet, "a")?;
    let vms = guardian_store(fleet, "b").with_file_name("vms");
    let damaged = vms.join("00000000-0000-4000-8000-000000000000");
    std::fs::create_dir_all(&damaged)?;
    std::fs::write(damaged.join("protector.der"), "no key protector")?;
    for format in ["json", "yaml", "certutil", "table"] {
        let listed = agent(fleet, "b", &["list", "-o", format])?.ok()?;
        ensure!(
            listed.stderr.contains("00000000-0000-4000-8000"),
            "{}",
            listed.stderr
        );
        ensure!(!listed.stdout.is_empty());
    }
    ensure!(guardians(fleet, "b")?.len() == 4);
    let refused = agent(fleet, "b", &["remove", &id, "--yes"])?.refused(4, "CHECK_UNAVAILABLE")?;
    ensure!(
        refused.stderr.contains("00000000-0000-4000-8000"),
        "{}",
        refused.stderr
    );
    ensure!(guardians(fleet, "b")?.len() == 4);
    std::fs::remove_dir_all(&damaged)?;
    agent(fleet, "b", &["remove", &id, "--yes"])?.ok()?;
    Ok(())
}

/// The certificates that `host` lists as halves, by what they are for.
fn waiting(fleet: &Fleet, host: &str) -> Result<Vec<String>> {
    let rows = guardians(fleet, host)?;
    let rows = rows.iter().filter(|row| row["standing"] == "waiting");
    rows.map(|row| {
        ensure!(row["guardian"].is_null() && row["vms"] == serde_json::json!([]));
        text(row, "role")
    })
    .collect()
}

fn one_half_alone(fleet: &Fleet) -> Result<()> {
    let (directory, password) = exported(fleet, "a")?;
    let password = path(&password)?;
    let import = |name: &str| -> Result<Said> {
        let file = path(&directory.join(name))?;
        agent(
            fleet,
            "b",
            &["import-pfx", &file, "--password-file", &password],
        )?
        .ok()
    };
    for _ in 0..2 {
        let said = import("VMEncryption.pfx")?;
        ensure!(said.stdout.contains("signing half"), "{}", said.stdout);
        ensure!(waiting(fleet, "b")? == ["encryption"]);
    }
    // The encryption half alone has the key that would open it.
    fleet
        .cli(&["vm", "migrate", "desk1", "--to", "b"])?
        .refused(4, "KEY_NOT_GRANTED")?;
    let rows = guardians(fleet, "b")?;
    let serial = text(rows.last().context("a half")?, "serial")?;
    agent(fleet, "b", &["remove", &serial])?.refused(2, "CONFIRMATION_NEEDED")?;
    agent(fleet, "b", &["remove", &serial, "--yes"])?.ok()?;
    ensure!(waiting(fleet, "b")?.is_empty());

    import("VMSigning.pfx")?;
    ensure!(waiting(fleet, "b")? == ["signing"]);
    import("VMEncryption.pfx")?;
    ensure!(waiting(fleet, "b")?.is_empty());
    let rows = guardians(fleet, "b")?;
    ensure!(
        rows.len() == 4 && rows[2]["standing"] == "imported",
        "{rows:?}"
    );
    ensure!(rows[2]["guardian"] == own(fleet, "a")?.as_str());
    let store = guardian_store(fleet, "b");
    for entry in std::fs::read_dir(&store)? {
        let name = entry?.file_name();
        ensure!(
            !name.to_string_lossy().ends_with(".half"),
            "{name:?} is left"
        );
    }
    let id = own(fleet, "a")?;
    agent(fleet, "b", &["remove", &id, "--yes"])?.ok()?;
    Ok(())
}

fn guardian_store(fleet: &Fleet, host: &str) -> PathBuf {
    let disk = fleet.directory().join(format!("nodes/{host}/disk"));
    disk.join("var/lib/fleetward/guardians")
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

/// Gives host `a` a guardian that ends in seconds, seals a VM to it, lets it end, and starts the VM all the same.
fn expired(fleet: &Fleet) -> Result<()> {
    let host: HostName = "a".parse().context("name")?;
    let store = guardian_store(fleet, "a");
    let lasts = Duration::from_secs(12);
    let ends = OffsetDateTime::now_utc() + lasts;
    let guardian = LocalGuardian::generate(&host, ends - LIFETIME)?;
    let log = store.parent().context("data")?.join("audit.log");
    let keyring = Keyring::open(&store, host.clone(), Arc::new(AuditLog::new(log, host)))?;
    let purpose = Purpose {
        actor: "local:0".into(),
        reason: "a guardian that ends soon".into(),
        job: None,
    };
    keyring
        .replace_own(&guardian, &purpose)
        .map_err(|trouble| trouble.failure)?;
    let create = [
        "vm",
        "create",
        "late",
        "--image",
        "lab-guest",
        "--memory",
        "512M",
    ];
    fleet.cli(&[&create[..], &["--host", "a"]].concat())?.ok()?;
    let vm = fleet.vm("late")?;
    ensure!(vm["tpm"]["owner"] == guardian.id().as_str(), "{vm}");
    let left = ends - OffsetDateTime::now_utc();
    ensure!(left.is_positive(), "the VM was sealed too late");
    std::thread::sleep(left.unsigned_abs() + Duration::from_secs(1));

    let rows = guardians(fleet, "a")?;
    ensure!(rows[0]["guardian"] == guardian.id().as_str(), "{rows:?}");
    ensure!(rows[0]["days_left"].as_i64().is_some_and(|days| days <= 0));
    fleet.cli(&["vm", "start", "late"])?.ok()?;
    let tick = guest::booted(fleet, "late", 1)?;
    ensure!(tick.unseal == "ok", "{tick:?}");
    // Nothing new is sealed with it, until there is a successor.
    let create = [
        "vm",
        "create",
        "later",
        "--image",
        "lab-guest",
        "--memory",
        "512M",
    ];
    let create = [&create[..], &["--host", "a"]].concat();
    fleet.cli(&create)?.refused(4, "GUARDIAN_EXPIRED")?;
    wait::until("the end to be known", seconds(60), || {
        let dry = ["guardian", "rotate", "--expiring", "30d", "--dry-run"];
        let found = fleet.json(&dry)?;
        Ok((found["hosts"] == serde_json::json!(["a"])).then_some(()))
    })?;
    let said = fleet.json(&["guardian", "rotate", "--expiring", "30d"])?;
    let reports = said.as_array().context("no list of reports")?;
    ensure!(
        reports.len() == 1 && said[0]["host"] == "a" && said[0]["outcome"] == "succeeded",
        "{said}"
    );
    ensure!(own(fleet, "a")? != guardian.id().as_str(), "not rotated");
    fleet.cli(&create)?.ok()?;
    // It still opens, retired as it is.
    fleet.cli(&["vm", "stop", "late", "--force"])?.ok()?;
    fleet.cli(&["vm", "start", "late"])?.ok()?;
    let tick = guest::booted(fleet, "late", 2)?;
    ensure!(tick.unseal == "ok", "{tick:?}");
    Ok(())
}
