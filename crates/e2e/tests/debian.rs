//! A whole Debian, as people run one: set up by what it finds at its first boot, reached over the network, with a disk that
//! its TPM opens, wherever it runs and whatever became of the medium.
//!
//! Its image is made from Debian's packages, which takes minutes and a mirror of Debian, and its boots take more than a minute
//! each where the CPU is emulated. So this is a part of `make soak` (`FLEETWARD_E2E_SOAK=1`).

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and read files as they like"
)]

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, Said, run};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{residue, suite};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

const VM: &str = "web";
const ADDRESS: &str = "10.0.0.5";
/// In the file of values: for the guest, and for nobody else.
const SECRET: &str = "Geheim-4711-nur-fuer-den-Gast";
const USER_DATA: &str = "\
#cloud-config
manage_etc_hosts: true
write_files:
- path: /root/told
  permissions: '0600'
  content: '{{fleetward.name}} {{fleetward.secret}}'
";
/// From power-on to a login, with an emulated CPU on a machine that does other things, too.
const BOOT: Duration = seconds(400);

/// What an administrator does once, as root in the guest.
const ENROLL: &str = r#"set -eu
umask 077
head -c 32 /dev/urandom > /run/key
cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vdb /run/key
systemd-cryptenroll --unlock-key-file=/run/key --tpm2-device=auto --tpm2-pcrs=7 /dev/vdb
cryptsetup luksRemoveKey -q /dev/vdb /run/key
rm /run/key
echo 'vault /dev/vdb none tpm2-device=auto,nofail' >> /etc/crypttab
echo '/dev/mapper/vault /vault ext4 nofail 0 2' >> /etc/fstab
systemctl daemon-reload
systemctl start systemd-cryptsetup@vault
mkfs.ext4 -q /dev/mapper/vault
mkdir -p /vault
mount /vault
echo kept > /vault/file
sync
"#;

fn main() -> ExitCode {
    let cases: &[suite::Case] = match std::env::var_os("FLEETWARD_E2E_SOAK") {
        None => &[],
        Some(_) => &[
            (
                "a_debian_is_as_its_first_boots_medium_says",
                set_up_at_its_first_boot,
            ),
            (
                "a_secret_for_the_guest_is_in_no_file_of_controller_or_agents",
                secret_is_nowhere,
            ),
            (
                "a_disk_bound_to_the_tpm_opens_after_a_migration_and_a_boot_without_the_medium",
                disk_opens,
            ),
        ],
    };
    suite::run("e2e-debian", &["--hosts", "2"], cases)
}

fn set_up_at_its_first_boot(fleet: &Fleet) -> Result<()> {
    let import = ["image", "import", "lab-debian", "--name", fleet.name()];
    run(Command::new(fleet.program("fleetward-lab")).args(import))?.ok()?;
    let place = fleet.directory();
    for key in ["mine", "others"] {
        let file = place.join(key);
        let words = ["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"];
        run(Command::new("ssh-keygen").args(words).arg(file))?.ok()?;
    }
    let file = |name: &str| place.join(name).display().to_string();
    std::fs::write(place.join("user-data"), USER_DATA)?;
    std::fs::write(place.join("values"), format!("secret={SECRET}\n"))?;
    let (key, user_data, values) = (file("mine.pub"), file("user-data"), file("values"));
    let address = format!("{ADDRESS}/24");
    #[rustfmt::skip]
    let create = [
        "vm", "create", VM, "--image", "lab-debian", "--memory", "768M", "--host", "a", "--nic", "lan",
        "--add-disk", "32M", "--ssh-key", &key, "--user-data", &user_data, "--values", &values,
        "--address", &address, "--start",
    ];
    let created = fleet.cli(&create)?.ok()?;
    ensure!(!format!("{created:?}").contains(SECRET), "{created:?}");
    // What was given on the command line lies there, and must not be found as anybody else's.
    std::fs::remove_file(place.join("values"))?;

    // The key that was given opens it, and no other.
    answers(fleet)?;
    let refused = ssh(fleet, "others", "true")?;
    ensure!(
        refused.code == 255 && refused.stderr.contains("Permission denied"),
        "{refused:?}"
    );
    ensure!(inside(fleet, "hostname")? == VM);
    let link = inside(fleet, "ip -brief -4 address show scope global")?;
    ensure!(link.contains(&address), "{link}");
    ensure!(inside(fleet, "sudo cat /root/told")? == format!("{VM} {SECRET}"));
    has_secure_boot(fleet)?;
    told_by_its_agent(fleet)?;
    let drive = fleet.vm(VM)?["drives"][0].clone();
    ensure!(drive["holds"] == "first_boot", "{drive}");
    residue::none_anywhere(fleet, &["a", "b"])
}

fn secret_is_nowhere(fleet: &Fleet) -> Result<()> {
    // The guest has it on its disk, and its console may say it; the medium itself is in memory, in the host's namespace.
    let guests = ["volumes", "shared", "serial"];
    let mut looked = 0;
    let mut found = Vec::new();
    look_into(&fleet.directory(), &guests, &mut |path, content| {
        looked += 1;
        if content
            .windows(SECRET.len())
            .any(|w| w == SECRET.as_bytes())
        {
            found.push(path.to_owned());
        }
    })?;
    ensure!(looked > 50, "only {looked} files were looked into");
    ensure!(found.is_empty(), "it is in {found:?}");
    for job in ["vm-create", "vm-migrate"] {
        let jobs = fleet.json(&["job", "list", "--kind", job])?;
        ensure!(!jobs.to_string().contains(SECRET), "{jobs}");
    }
    // The search would find it where it is.
    let medium = fleet.exec(
        "a",
        &[
            "sh",
            "-c",
            &format!("grep -c {SECRET} /run/fleetward/seeds/*.iso"),
        ],
    )?;
    ensure!(medium.ok()?.stdout.trim() != "0", "it is not on the medium");
    Ok(())
}

fn disk_opens(fleet: &Fleet) -> Result<()> {
    inside(
        fleet,
        &format!("sudo bash -c '{}'", ENROLL.replace('\'', r"'\''")),
    )?;
    for host in ["a", "b"] {
        let edit = "sed -i '1i first_boot_grace = 1' /etc/fleetward/agent.toml";
        fleet.exec(host, &["sh", "-c", edit])?.ok()?;
    }
    let boot = boot_id(fleet)?;
    fleet.kill("b/agent")?;
    fleet.start("b/agent")?;
    wait::until("host b to be online", seconds(60), || {
        Ok((fleet.json(&["host", "show", "b"])?["state"] == "online").then_some(()))
    })?;
    fleet.cli(&["vm", "migrate", VM, "--to", "b"])?.ok()?;
    ensure!(boot_id(fleet)? == boot, "it has booted on the way");
    ensure!(inside(fleet, "sudo cat /vault/file")? == "kept");

    // Its agent answers there, too, so the medium goes.
    wait::until("the medium to go", seconds(120), || {
        let drive = fleet.vm(VM)?["drives"][0].clone();
        Ok((drive["path"].is_null() && drive["holds"].is_null()).then_some(()))
    })?;
    let media = "ls -A /run/fleetward/seeds";
    for host in ["a", "b"] {
        wait::until("the file to go", seconds(30), || {
            let left = fleet.exec(host, &["sh", "-c", media])?.ok()?.stdout;
            Ok(left.trim().is_empty().then_some(()))
        })?;
    }
    residue::none_anywhere(fleet, &["a", "b"])?;

    let restarted = fleet.json(&["vm", "restart", VM, "--deadline", "2m"])?;
    ensure!(
        restarted["results"][0]["outcome"] == "succeeded",
        "{restarted}"
    );
    answers(fleet)?;
    ensure!(boot_id(fleet)? != boot, "it has not booted");
    ensure!(
        inside(fleet, "sudo cat /vault/file")? == "kept",
        "nobody typed a password"
    );
    ensure!(inside(fleet, "hostname")? == VM);
    has_secure_boot(fleet)?;
    told_by_its_agent(fleet)?;
    fleet.cli(&["vm", "stop", VM])?.ok()?;
    fleet.cli(&["vm", "delete", VM, "--yes"])?.ok()?;
    residue::none_anywhere(fleet, &["a", "b"])
}

/// Logs in from the network of guests. Nothing of the machine's own configuration, keys or agent takes part.
fn ssh(fleet: &Fleet, key: &str, command: &str) -> Result<Said> {
    let key = fleet.directory().join(key).display().to_string();
    let login = format!("debian@{ADDRESS}");
    let mut words = vec!["ssh", "-F", "/dev/null", "-i", &key];
    for option in [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "ConnectTimeout=10",
    ] {
        words.extend(["-o", option]);
    }
    words.extend([login.as_str(), command]);
    fleet.exec("guests", &words)
}

/// What a command in the guest prints.
fn inside(fleet: &Fleet, command: &str) -> Result<String> {
    let said = ssh(fleet, "mine", command)?.ok();
    let said = said.with_context(|| format!("in the guest: {command}"))?;
    Ok(said.stdout.trim().to_owned())
}

fn answers(fleet: &Fleet) -> Result<()> {
    wait::until("a login", BOOT, || inside(fleet, "true").map(Some)).map(drop)
}

fn boot_id(fleet: &Fleet) -> Result<String> {
    inside(fleet, "cat /proc/sys/kernel/random/boot_id")
}

/// As the guest's kernel sees it: the UEFI variable has four bytes of attributes before its value.
fn has_secure_boot(fleet: &Fleet) -> Result<()> {
    let variable = inside(
        fleet,
        "od -An -tu1 -j4 /sys/firmware/efi/efivars/SecureBoot-*",
    )?;
    ensure!(variable == "1", "SecureBoot is {variable}");
    Ok(())
}

fn told_by_its_agent(fleet: &Fleet) -> Result<()> {
    wait::until("its agent's word", seconds(120), || {
        let vm = fleet.vm(VM)?;
        let guest = &vm["guest"];
        let os = guest["os"].as_str().unwrap_or_default().to_owned();
        let addresses = vm["nics"][0]["addresses"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        ensure!(
            guest["host_name"] == VM
                && os.starts_with("Debian")
                && addresses.contains(&json!(ADDRESS)),
            "{guest} {addresses:?}"
        );
        Ok(Some(()))
    })?;
    let listed = fleet.json(&["vm", "list"])?;
    let row = listed
        .as_array()
        .and_then(|vms| vms.iter().find(|vm| vm["name"] == VM));
    let row = row.map(Value::to_string).unwrap_or_default();
    ensure!(row.contains(ADDRESS), "{row}");
    Ok(())
}

/// Every plain file below, but for directories of those names.
fn look_into(directory: &Path, but: &[&str], look: &mut dyn FnMut(&Path, &[u8])) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let path = entry.path();
        let name = entry.file_name();
        if kind.is_dir() && !but.iter().any(|but| name == *but) {
            look_into(&path, but, look)?;
        } else if kind.is_file()
            && let Ok(content) = std::fs::read(&path)
        {
            // A file may go while it is read.
            look(&path, &content);
        }
    }
    Ok(())
}
