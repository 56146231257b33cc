//! An attacker who has the files cannot open anything; an administrator with the guardian's key can open everything.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetward_e2e::fleet::{Fleet, run, text};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, suite};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let mut cases: Vec<suite::Case> = vec![
        (
            "tpm_state_copied_away_does_not_open_without_the_key",
            copied_state_is_useless,
        ),
        (
            "the_emergency_recipe_opens_key_protector_and_tpm_state",
            emergency_recipe,
        ),
        (
            "a_vm_whose_protector_does_not_open_is_not_started_and_gets_no_new_tpm",
            unreadable_protector,
        ),
    ];
    if std::env::var_os("FLEETWARD_E2E_SOAK").is_some() {
        cases.push((
            "after_thirty_starts_and_all_that_fails_only_running_vms_have_secrets_and_the_key_is_nowhere",
            thirty_starts,
        ));
    }
    suite::run("e2e-keys", &["--hosts", "2"], &cases)
}

/// A directory outside the lab, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("fleetward-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn state_file(id: &str) -> String {
    format!("/var/lib/libvirt/swtpm/{id}/tpm2/tpm2-00.permall")
}

/// Copies a file out of a host.
fn fetch(fleet: &Fleet, host: &str, path: &str, to: &Path) -> Result<()> {
    let said = fleet.exec(host, &["base64", "-w0", path])?.ok()?;
    fs::write(to, STANDARD.decode(said.stdout.trim())?)?;
    Ok(())
}

/// Whether stock swtpm loads the state in `directory` with that key text.
fn swtpm_opens(directory: &Path, key: &str) -> Result<bool> {
    let password = directory.join("password");
    fs::write(&password, key)?;
    // The state is only decrypted when the TPM starts: `startup-clear` starts it at once, and swtpm ends when that fails.
    let (control, server) = (directory.join("ctrl"), directory.join("server"));
    let mut swtpm = Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
        .arg("--tpmstate")
        .arg(format!("dir={}", directory.display()))
        .arg("--key")
        .arg(format!("pwdfile={},mode=aes-256-cbc", password.display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", control.display()))
        .arg("--server")
        .arg(format!("type=unixio,path={}", server.display()))
        .spawn()
        .context("swtpm")?;
    let opened = wait::until("swtpm to answer or to end", seconds(30), || {
        if swtpm.try_wait()?.is_some() {
            return Ok(Some(false));
        }
        Ok(answers(&control).then_some(true))
    });
    // It may have ended by itself.
    let _ = swtpm.kill();
    swtpm.wait()?;
    let opened = opened?;
    fs::remove_file(&password)?;
    Ok(opened)
}

/// Whether swtpm answers on its control channel, which it does once it has read its state: `CMD_GET_CAPABILITY` of its
/// protocol (swtpm_ioctls(3)), whose answer begins with a result of 0.
fn answers(control: &Path) -> bool {
    let ask = || -> std::io::Result<[u8; 4]> {
        let mut channel = UnixStream::connect(control)?;
        channel.set_read_timeout(Some(seconds(5)))?;
        channel.write_all(&1_u32.to_be_bytes())?;
        let mut result = [0xff; 4];
        channel.read_exact(&mut result)?;
        Ok(result)
    };
    ask().is_ok_and(|result| result == [0; 4])
}

fn copied_state_is_useless(fleet: &Fleet) -> Result<()> {
    fleet
        .cli(&[
            "vm",
            "create",
            "vault",
            "--image",
            "lab-guest",
            "--memory",
            "512M",
            "--host",
            "a",
            "--start",
        ])?
        .ok()?;
    guest::booted(fleet, "vault", 1)?;
    let id = text(&fleet.vm("vault")?, "id")?;
    let scratch = Scratch::new("copied")?;
    fetch(
        fleet,
        "a",
        &state_file(&id),
        &scratch.path("tpm2-00.permall"),
    )?;
    ensure!(
        !swtpm_opens(&scratch.0, "some other passphrase")?,
        "the state opened with a wrong key"
    );
    Ok(())
}

/// Follows docs/emergency-recovery.md, then looks for the key it found everywhere it must not be.
fn emergency_recipe(fleet: &Fleet) -> Result<()> {
    let scratch = Scratch::new("recipe")?;
    let key = key_by_the_recipe(fleet, "vault", &scratch)?;
    // The state opens with stock swtpm and that key.
    let id = text(&fleet.vm("vault")?, "id")?;
    let state = scratch.path("state");
    fs::create_dir(&state)?;
    fetch(fleet, "a", &state_file(&id), &state.join("tpm2-00.permall"))?;
    ensure!(
        swtpm_opens(&state, &key)?,
        "the state does not open with the recovered key"
    );

    the_key_is_nowhere(fleet, &STANDARD.decode(&key)?)
}

/// The TPM's key of a VM on host a, which owns it, as base64: what an administrator gets with OpenSSL.
fn key_by_the_recipe(fleet: &Fleet, name: &str, scratch: &Scratch) -> Result<String> {
    let vm = fleet.vm(name)?;
    let id = text(&vm, "id")?;

    // The private key, exported on the host by root with a password.
    let guardian = text(&vm["tpm"], "owner")?;
    fleet.exec("a", &["sh", "-c", "rm -rf /run/export && mkdir /run/export && umask 077 && printf %s 'correct horse' > /run/export/password"])?.ok()?;
    fleet
        .exec(
            "a",
            &[
                "fleetward-agent",
                "guardian",
                "export-pfx",
                &guardian,
                "--out",
                "/run/export",
                "--password-file",
                "/run/export/password",
            ],
        )?
        .ok()?;
    for pfx in ["VMSigning.pfx", "VMEncryption.pfx"] {
        fetch(
            fleet,
            "a",
            &format!("/run/export/{pfx}"),
            &scratch.path(pfx),
        )?;
    }
    // The key protector, from the domain's metadata.
    let xml = fleet.exec("a", &["virsh", "dumpxml", name])?.ok()?.stdout;
    let (_, rest) = xml
        .split_once(":key_protector>")
        .context("no key protector in the domain")?;
    let (protector, _) = rest.split_once("</").context("unclosed key protector")?;
    fs::write(
        scratch.path("protector.der"),
        STANDARD.decode(protector.split_whitespace().collect::<String>())?,
    )?;

    let openssl = |arguments: &str| -> Result<()> {
        run(Command::new("openssl")
            .current_dir(&scratch.0)
            .args(arguments.split_whitespace()))?
        .ok()
        .map(drop)
    };
    fs::write(scratch.path("password"), "correct horse")?;
    openssl("pkcs12 -in VMSigning.pfx -passin file:password -nokeys -out owner.pem")?;
    openssl("pkcs12 -in VMEncryption.pfx -passin file:password -nodes -out guardian.pem")?;
    openssl(
        "cms -verify -inform DER -in protector.der -CAfile owner.pem -purpose any -binary -outform DER -out enveloped.der",
    )?;
    openssl(
        "cms -decrypt -inform DER -in enveloped.der -recip guardian.pem -inkey guardian.pem -binary -out record.json",
    )?;
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(scratch.path("record.json"))?)?;
    let key = text(&record, "tpm_key")?;
    ensure!(STANDARD.decode(&key)?.len() == 32, "not a 32-byte key");
    ensure!(
        text(&record, "vm_id").or_else(|_| text(&record, "vm"))? == id,
        "the record is of another VM: {id}"
    );
    Ok(key)
}

/// Searches the lab's files, command lines, environments and logs while the VM runs.
fn the_key_is_nowhere(fleet: &Fleet, key: &[u8]) -> Result<()> {
    let forms = [
        key.to_vec(),
        hex::encode(key).into_bytes(),
        hex::encode_upper(key).into_bytes(),
        STANDARD.encode(key).into_bytes(),
    ];
    let mut found = Vec::new();
    let mut looked = 0;
    let mut look = |path: &Path| {
        // Sockets, devices and files that vanish while we look have no content to search.
        let Ok(content) = fs::read(path) else { return };
        looked += 1;
        for form in &forms {
            if contains(&content, form) {
                found.push(path.to_owned());
            }
        }
    };
    for file in files_below(&fleet.directory()) {
        look(&file);
    }
    for process in fs::read_dir("/proc")?.flatten() {
        if process
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|b| b.is_ascii_digit())
        {
            look(&process.path().join("cmdline"));
            look(&process.path().join("environ"));
        }
    }
    // The hosts' private mounts are seen from inside.
    for host in ["a", "b"] {
        let pattern = format!("{}|{}", STANDARD.encode(key), hex::encode(key));
        let said = fleet.exec(
            host,
            &[
                "grep",
                "-rlaiE",
                "--exclude-dir=export",
                &pattern,
                "/run",
                "/var/lib/fleetward",
                "/var/lib/libvirt",
                "/etc/libvirt",
                "/etc/fleetward",
                "/var/log",
            ],
        )?;
        found.extend(said.stdout.lines().map(PathBuf::from));
    }
    // Those of them that are in memory only, byte by byte: as an archive, since none of their files has another way out.
    for host in ["a", "b"] {
        let archive = "tar -cf - --exclude=/run/export /run /dev/shm 2>/dev/null | base64 -w0";
        let said = fleet.exec(host, &["sh", "-c", archive])?.ok()?;
        let content = STANDARD.decode(said.stdout.trim())?;
        ensure!(
            contains(&content, b"run/fleetward"),
            "nothing of host {host} in the archive"
        );
        if forms.iter().any(|form| contains(&content, form)) {
            found.push(PathBuf::from(format!("/run or /dev/shm of host {host}")));
        }
    }
    ensure!(looked > 50, "only {looked} files were searched");
    ensure!(found.is_empty(), "the TPM key lies in {found:?}");
    Ok(())
}

fn contains(content: &[u8], wanted: &[u8]) -> bool {
    content.windows(wanted.len()).any(|window| window == wanted)
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(t) if t.is_dir() => todo.push(entry.path()),
                Ok(t) if t.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

fn unreadable_protector(fleet: &Fleet) -> Result<()> {
    fleet.cli(&["vm", "stop", "vault", "--force"])?.ok()?;
    let id = text(&fleet.vm("vault")?, "id")?;
    let digest = |fleet: &Fleet| -> Result<String> {
        Ok(fleet
            .exec("a", &["sha256sum", &state_file(&id)])?
            .ok()?
            .stdout)
    };
    let before = digest(fleet)?;
    // The state gone: refused, and no new TPM appears in its place.
    let file = state_file(&id);
    fleet
        .exec("a", &["mv", &file, "/var/lib/fleetward/aside"])?
        .ok()?;
    fleet
        .cli(&["vm", "start", "vault"])?
        .refused(4, "TPM_STATE_MISSING")?;
    ensure!(
        fleet.exec("a", &["test", "-e", &file])?.code != 0,
        "a new TPM was made"
    );
    fleet
        .exec("a", &["mv", "/var/lib/fleetward/aside", &file])?
        .ok()?;
    ensure!(digest(fleet)? == before);
    fleet.cli(&["vm", "start", "vault"])?.ok()?;
    let tick = guest::booted(fleet, "vault", 2)?;
    ensure!(tick.unseal == "ok", "{tick:?}");
    Ok(())
}

const WORN: &str = "worn";

/// Its key is used in every way in which that can end, and it fails in between.
fn thirty_starts(fleet: &Fleet) -> Result<()> {
    let create = [
        "vm",
        "create",
        WORN,
        "--image",
        "lab-guest",
        "--memory",
        "512M",
    ];
    fleet.cli(&[&create[..], &["--host", "a"]].concat())?.ok()?;
    for count in 1..=30 {
        fleet.cli(&["vm", "start", WORN])?.ok()?;
        fleet.cli(&["vm", "stop", WORN, "--force"])?.ok()?;
        if count % 10 == 0 {
            start_fails(fleet)?;
        }
    }
    fleet.cli(&["vm", "start", WORN])?.ok()?;
    guest::booted(fleet, WORN, 1)?;
    migration_fails(fleet)?;
    migration_is_cancelled(fleet)?;
    agent_is_killed(fleet)?;
    fleet.cli(&["vm", "migrate", WORN, "--to", "b"])?.ok()?;
    only_running_vms_have_secrets(fleet)?;
    fleet.cli(&["vm", "migrate", WORN, "--to", "a"])?.ok()?;
    only_running_vms_have_secrets(fleet)?;
    let scratch = Scratch::new("worn")?;
    let key = key_by_the_recipe(fleet, WORN, &scratch)?;
    the_key_is_nowhere(fleet, &STANDARD.decode(&key)?)?;
    fleet.cli(&["vm", "stop", WORN, "--force"])?.ok()?;
    only_running_vms_have_secrets(fleet)?;
    the_key_is_nowhere(fleet, &STANDARD.decode(&key)?)
}

/// After its secret is loaded: swtpm does nothing.
fn start_fails(fleet: &Fleet) -> Result<()> {
    let swtpm = "$(readlink -f $(command -v swtpm))";
    let harm = format!("mount --bind /bin/false {swtpm}");
    fleet.exec("a", &["sh", "-ec", &harm])?.ok()?;
    let said = fleet.cli(&["vm", "start", WORN]);
    let cure = format!("umount {swtpm}");
    fleet.exec("a", &["sh", "-ec", &cure])?.ok()?;
    let said = said?;
    ensure!(said.code != 0, "it started without swtpm: {said:?}");
    only_running_vms_have_secrets(fleet)
}

/// After its secret is loaded at the destination: there is no place for its UEFI variables.
fn migration_fails(fleet: &Fleet) -> Result<()> {
    let (there, away) = ("/var/lib/libvirt/qemu/nvram", "/var/lib/libvirt/qemu/away");
    fleet.exec("b", &["mv", there, away])?.ok()?;
    let said = fleet.cli(&["vm", "migrate", WORN, "--to", "b"]);
    let cure = format!("rm -rf {there}; mv {away} {there}");
    fleet.exec("b", &["sh", "-ec", &cure])?.ok()?;
    let said = said?;
    ensure!(said.code != 0, "it moved: {said:?}");
    only_running_vms_have_secrets(fleet)
}

fn slow_migration(fleet: &Fleet) -> Result<String> {
    let slow = ["virsh", "migrate-setspeed", WORN, "1"];
    fleet.exec("a", &slow)?.ok()?;
    let job = fleet.start_job(&["vm", "migrate", WORN, "--to", "b"])?;
    wait::until("the destination to receive", seconds(60), || {
        let list = fleet.exec("b", &["virsh", "-q", "list"])?;
        Ok(list.stdout.contains(WORN).then_some(()))
    })?;
    Ok(job)
}

/// The job has ended, and the VM may be moved as fast as ever.
fn after(fleet: &Fleet, job: &str) -> Result<()> {
    wait::until("the job to end", seconds(120), || {
        let state = text(&fleet.json(&["job", "show", job])?, "state")?;
        Ok(matches!(state.as_str(), "done" | "undone" | "failed").then_some(()))
    })?;
    if fleet.place(WORN)?.1 == "b" {
        fleet.cli(&["vm", "migrate", WORN, "--to", "a"])?.ok()?;
    }
    wait::until("the limit to be lifted", seconds(30), || {
        let fast = fleet.exec("a", &["virsh", "migrate-setspeed", WORN, "10000"])?;
        Ok((fast.code == 0).then_some(()))
    })?;
    only_running_vms_have_secrets(fleet)
}

fn migration_is_cancelled(fleet: &Fleet) -> Result<()> {
    let job = slow_migration(fleet)?;
    fleet.cli(&["job", "cancel", &job])?.ok()?;
    after(fleet, &job)
}

fn agent_is_killed(fleet: &Fleet) -> Result<()> {
    for host in ["a", "b"] {
        let job = slow_migration(fleet)?;
        fleet.kill(&format!("{host}/agent"))?;
        fleet.start(&format!("{host}/agent"))?;
        let _ = fleet.exec("a", &["virsh", "migrate-setspeed", WORN, "10000"]);
        after(fleet, &job)?;
    }
    Ok(())
}

/// As libvirt says, and not as Fleetward does.
fn only_running_vms_have_secrets(fleet: &Fleet) -> Result<()> {
    let look = "virsh -q secret-list | awk '$1 ~ /-/ {print $1}' | sort > /run/secrets; \
        virsh -q list --uuid | sed '/^$/d' | sort > /run/running; diff /run/secrets /run/running";
    for host in ["a", "b"] {
        wait::until(
            &format!("only running VMs to have secrets on {host}"),
            seconds(30),
            || {
                let said = fleet.exec(host, &["sh", "-c", look])?;
                Ok((said.code == 0).then_some(()))
            },
        )?;
    }
    Ok(())
}
