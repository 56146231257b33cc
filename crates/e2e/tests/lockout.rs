//! What a TPM counts as a wrong guess, with the swtpm of the machine and with a newer one: what the guest prints is what
//! the docs say ("Forced stops and the TPM's lockout").
//!
//! A boot each, and some of them three times, so this is a part of `make soak` (`FLEETWARD_E2E_SOAK=1`).

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{former, residue, suite};
use std::path::Path;
use std::process::{Command, ExitCode};

const VM: &str = "desk";
const COPY: &str = "copy";
const HOSTS: &[&str] = &["a", "b"];
/// As many wrong guesses lock a TPM of libtpms.
const LIMIT: u64 = 3;

fn main() -> ExitCode {
    let cases: &[suite::Case] = match std::env::var_os("FLEETWARD_E2E_SOAK") {
        None => &[],
        Some(_) => &[
            (
                "three_forced_stops_count_nothing_with_the_machines_swtpm",
                forced_stops,
            ),
            (
                "three_kills_of_qemu_lock_a_tpm_of_swtpm_0_7_and_unlock_opens_it",
                killed_machines_swtpm,
            ),
            (
                "three_power_cuts_of_a_host_lock_a_tpm_and_unlock_opens_it",
                power_cuts,
            ),
            (
                "a_copy_of_a_running_vm_counts_one_and_its_source_nothing",
                copied,
            ),
            ("a_recovery_counts_one", recovered),
            ("a_tpm_goes_on_under_a_newer_swtpm", newer_begins),
            (
                "with_a_newer_swtpm_forced_stops_count_nothing",
                forced_stops,
            ),
            (
                "with_a_newer_swtpm_a_kill_of_qemu_counts_nothing",
                killed_newer_swtpm,
            ),
            (
                "with_a_newer_swtpm_a_copy_of_a_running_vm_counts_one",
                copied,
            ),
            (
                "with_a_newer_swtpm_power_cuts_lock_all_the_same",
                power_cuts_newer,
            ),
        ],
    };
    suite::run("e2e-lockout", &["--hosts", "2"], cases)
}

/// The VM runs on host a, and its TPM counts nothing.
fn running(fleet: &Fleet) -> Result<Tick> {
    if fleet.vm(VM).is_err() {
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
            "--pool",
            "shared",
        ];
        fleet.cli(&create)?.ok()?;
    }
    if fleet.place(VM)?.0 != "running" {
        return start(fleet, VM);
    }
    guest::last(fleet, VM)?.context("it runs and says nothing")
}

/// Boots it; the first line that it prints of this boot.
fn start(fleet: &Fleet, vm: &str) -> Result<Tick> {
    let before = guest::last(fleet, vm)?.map_or(0, |tick| tick.boots);
    fleet.cli(&["vm", "start", vm])?.ok()?;
    guest::booted(fleet, vm, before + 1)
}

/// The guest uses an object with a password; whether its TPM let it.
fn uses_a_password(fleet: &Fleet, vm: &str) -> Result<bool> {
    let answers = || {
        let said = fleet.lab("serial", &[vm])?.ok()?.stdout;
        let count = |answer| said.matches(answer).count();
        Ok::<_, anyhow::Error>((count("NOTE password=ok"), count("NOTE password=")))
    };
    let (opened, asked) = answers()?;
    fleet.cli(&["vm", "keys", vm, "password", "enter"])?.ok()?;
    wait::until("the guest to use a password", seconds(30), || {
        let (now_opened, now_asked) = answers()?;
        Ok((now_asked > asked).then_some(now_opened > opened))
    })
}

fn counted(tick: &Tick) -> Result<u64> {
    ensure!(tick.unseal == "ok", "{tick:?}");
    tick.lockout.parse().with_context(|| format!("{tick:?}"))
}

/// What the fleet says of a stopped VM's TPM.
fn shown(fleet: &Fleet, vm: &str, expected: u64) -> Result<()> {
    wait::until(&format!("{expected} to be shown"), seconds(40), || {
        let status = fleet.json(&["tpm", "status", vm])?;
        Ok((status[0]["tpm"]["lockout"]["counted"] == expected).then_some(()))
    })
}

fn forced_stops(fleet: &Fleet) -> Result<()> {
    running(fleet)?;
    for round in 1..=LIMIT {
        ensure!(uses_a_password(fleet, VM)?, "round {round}");
        fleet.cli(&["vm", "stop", VM, "--force"])?.ok()?;
        let tick = start(fleet, VM)?;
        ensure!(counted(&tick)? == 0, "round {round}: {tick:?}");
    }
    ensure!(uses_a_password(fleet, VM)?);
    residue::none_anywhere(fleet, HOSTS)
}

fn kill_qemu(fleet: &Fleet) -> Result<()> {
    let kill = format!("kill -9 $(cat /run/libvirt/qemu/{VM}.pid)");
    fleet.exec("a", &["sh", "-ec", &kill])?.ok()?;
    stopped(fleet)
}

fn stopped(fleet: &Fleet) -> Result<()> {
    wait::until("the VM to be seen as stopped", seconds(60), || {
        Ok((fleet.place(VM)?.0 == "stopped").then_some(()))
    })
}

/// Ends the VM so often that its TPM is locked, and opens that again.
fn locks(fleet: &Fleet, end: fn(&Fleet) -> Result<()>) -> Result<()> {
    ensure!(counted(&running(fleet)?)? == 0);
    for round in 1..=LIMIT {
        ensure!(uses_a_password(fleet, VM)?, "round {round}");
        end(fleet)?;
        let tick = start(fleet, VM)?;
        ensure!(counted(&tick)? == round, "round {round}: {tick:?}");
    }
    ensure!(!uses_a_password(fleet, VM)?, "it is not locked");
    fleet.cli(&["vm", "stop", VM])?.ok()?;
    shown(fleet, VM, LIMIT)?;
    let said = fleet.cli(&["tpm", "status", VM])?.ok()?.stdout;
    ensure!(said.contains("3 of 3: locked"), "{said}");
    fleet.cli(&["tpm", "unlock", VM])?.ok()?;
    shown(fleet, VM, 0)?;
    let tick = start(fleet, VM)?;
    ensure!(counted(&tick)? == 0, "{tick:?}");
    ensure!(uses_a_password(fleet, VM)?, "it is still locked");
    residue::none_anywhere(fleet, HOSTS)
}

fn killed_machines_swtpm(fleet: &Fleet) -> Result<()> {
    let version = version(fleet)?;
    ensure!(
        version.starts_with("0.7."),
        "this machine's swtpm is {version}: what counts is another thing"
    );
    locks(fleet, kill_qemu)
}

fn power_cut(fleet: &Fleet) -> Result<()> {
    fleet.kill("a")?;
    fleet.start("a")?;
    wait::until("host a to be back", seconds(60), || {
        let host = fleet.json(&["host", "show", "a"])?;
        Ok((host["state"] == "online").then_some(()))
    })?;
    stopped(fleet)
}

fn power_cuts(fleet: &Fleet) -> Result<()> {
    locks(fleet, power_cut)
}

fn copied(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    ensure!(uses_a_password(fleet, VM)?);
    fleet
        .cli(&["vm", "clone", VM, COPY, "--tpm", "copy"])?
        .ok()?;
    let tick = start(fleet, COPY)?;
    ensure!(counted(&tick)? == 1, "{tick:?}");
    fleet.cli(&["vm", "stop", COPY])?.ok()?;
    fleet.cli(&["vm", "delete", COPY, "--yes"])?.ok()?;

    let now = guest::goes_on(fleet, VM, &before)?;
    ensure!(counted(&now)? == counted(&before)?, "{before:?} {now:?}");
    fleet.cli(&["vm", "stop", VM])?.ok()?;
    let tick = start(fleet, VM)?;
    ensure!(counted(&tick)? == counted(&before)?, "{before:?} {tick:?}");
    residue::none_anywhere(fleet, HOSTS)
}

/// The host of a running VM is lost, and the VM is rebuilt on another from its disk in a shared directory and its copies.
fn recovered(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    ensure!(uses_a_password(fleet, VM)?);
    // swtpm writes soon after the guest's use, and the copy follows.
    std::thread::sleep(seconds(5));
    wait::until("the controller's copy to be current", seconds(60), || {
        Ok((fleet.vm(VM)?["escrow"]["current"] == true).then_some(()))
    })?;
    fleet.kill("a")?;
    wait::until("host a to be missed", seconds(60), || {
        let host = fleet.json(&["host", "show", "a"])?;
        Ok((host["state"] == "unreachable").then_some(()))
    })?;
    fleet
        .cli(&["vm", "recover", VM, "--to", "b", "--yes"])?
        .ok()?;
    let tick = start(fleet, VM)?;
    ensure!(counted(&tick)? == counted(&before)? + 1, "{tick:?}");
    fleet.start("a")?;
    wait::until("the copy on host a to be gone", seconds(60), || {
        let domains = fleet
            .exec("a", &["virsh", "list", "--all", "--name"])?
            .ok()?;
        Ok((!domains.stdout.lines().any(|name| name == VM)).then_some(()))
    })?;
    fleet.cli(&["vm", "stop", VM])?.ok()?;
    fleet.cli(&["tpm", "unlock", VM])?.ok()?;
    fleet
        .cli(&["vm", "migrate", VM, "--to", "a", "--offline"])?
        .ok()?;
    residue::none_anywhere(fleet, HOSTS)
}

/// The version of the swtpm that host a reports.
fn version(fleet: &Fleet) -> Result<String> {
    let said = fleet.exec("a", &["swtpm", "--version"])?.ok()?.stdout;
    let version = said
        .split("version ")
        .nth(1)
        .and_then(|v| v.split(',').next());
    Ok(version.with_context(|| said.clone())?.to_owned())
}

/// Both hosts get Debian unstable's swtpm in the place of their own, until their next power cut.
fn install_newer(fleet: &Fleet, hosts: &[&str]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directory = former::target_directory()?.join("newer-swtpm");
    let fetched = Command::new(root.join("scripts/newer-swtpm"))
        .arg(&directory)
        .status()?;
    ensure!(fetched.success(), "scripts/newer-swtpm: {fetched}");
    let directory = directory
        .to_str()
        .context("a directory with a plain name")?;
    let mount = format!(
        "mount --bind {directory}/lib /usr/local/src
         for program in {directory}/bin/*; do mount --bind $program /usr/bin/${{program##*/}}; done"
    );
    for host in hosts {
        fleet.exec(host, &["sh", "-ec", &mount])?.ok()?;
        for daemon in ["libvirtd", "agent"] {
            fleet.kill(&format!("{host}/{daemon}"))?;
            fleet.start(&format!("{host}/{daemon}"))?;
        }
        wait::until("the newer swtpm to be reported", seconds(60), || {
            let host = fleet.json(&["host", "show", host])?;
            let reported = host.to_string().contains("0.10.");
            Ok((host["state"] == "online" && reported).then_some(()))
        })?;
    }
    Ok(())
}

fn newer_begins(fleet: &Fleet) -> Result<()> {
    if fleet.vm(VM).is_ok_and(|vm| vm["state"] == "running") {
        fleet.cli(&["vm", "stop", VM])?.ok()?;
    }
    let before = guest::last(fleet, VM)?;
    install_newer(fleet, HOSTS)?;
    let tick = running(fleet)?;
    ensure!(counted(&tick)? == 0, "{tick:?}");
    if let Some(before) = before {
        ensure!(
            before.ek == tick.ek && before.pcr7 == tick.pcr7,
            "{before:?} {tick:?}"
        );
    }
    let fresh = [
        "vm",
        "create",
        "fresh",
        "--image",
        "lab-guest",
        "--memory",
        "512M",
    ];
    fleet
        .cli(&[&fresh[..], &["--host", "b", "--start"]].concat())?
        .ok()?;
    let tick = guest::booted(fleet, "fresh", 1)?;
    fleet.cli(&["vm", "migrate", "fresh", "--to", "a"])?.ok()?;
    guest::goes_on(fleet, "fresh", &tick)?;
    fleet.cli(&["vm", "stop", "fresh", "--force"])?.ok()?;
    fleet.cli(&["vm", "delete", "fresh", "--yes"])?.ok()?;
    residue::none_anywhere(fleet, HOSTS)
}

fn killed_newer_swtpm(fleet: &Fleet) -> Result<()> {
    running(fleet)?;
    for round in 1..=LIMIT {
        ensure!(uses_a_password(fleet, VM)?, "round {round}");
        kill_qemu(fleet)?;
        let tick = start(fleet, VM)?;
        ensure!(counted(&tick)? == 0, "round {round}: {tick:?}");
    }
    residue::none_anywhere(fleet, HOSTS)
}

fn power_cuts_newer(fleet: &Fleet) -> Result<()> {
    locks(fleet, |fleet| {
        power_cut(fleet)?;
        install_newer(fleet, &["a"])
    })
}
