//! What is in the packages, without installing them.

use crate::{Packages, output, same};
use anyhow::{Context, Result, ensure};
use fleetward_agent::Config;
use fleetward_e2e::fleet::{program_directory, run};
use fleetward_e2e::suite::trial;
use libtest_mimic::Trial;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The files beside manual pages, and their modes.
const CONTROLLER: &[(&str, &str)] = &[
    ("etc/fleetward/controller.env", "-rw-r--r--"),
    ("usr/bin/fleetward", "-rwxr-xr-x"),
    (
        "usr/lib/systemd/system/fleetward-controller.service",
        "-rw-r--r--",
    ),
    ("usr/lib/sysusers.d/fleetward.conf", "-rw-r--r--"),
    (
        "usr/share/bash-completion/completions/fleetward",
        "-rw-r--r--",
    ),
    ("usr/share/doc/fleetward/changelog.Debian.gz", "-rw-r--r--"),
    ("usr/share/doc/fleetward/changelog.gz", "-rw-r--r--"),
    ("usr/share/doc/fleetward/copyright", "-rw-r--r--"),
    ("usr/share/doc/fleetward/third-party.gz", "-rw-r--r--"),
    (
        "usr/share/fish/vendor_completions.d/fleetward.fish",
        "-rw-r--r--",
    ),
    ("usr/share/lintian/overrides/fleetward", "-rw-r--r--"),
    ("usr/share/zsh/vendor-completions/_fleetward", "-rw-r--r--"),
];
const AGENT: &[(&str, &str)] = &[
    (
        "etc/apparmor.d/abstractions/libvirt-qemu.d/fleetward",
        "-rw-r--r--",
    ),
    ("etc/fleetward/agent.toml", "-rw-r--r--"),
    ("usr/bin/fleetward-agent", "-rwxr-xr-x"),
    (
        "usr/lib/systemd/system/fleetward-agent.service",
        "-rw-r--r--",
    ),
    (
        "usr/share/bash-completion/completions/fleetward-agent",
        "-rw-r--r--",
    ),
    (
        "usr/share/doc/fleetward-agent/changelog.Debian.gz",
        "-rw-r--r--",
    ),
    ("usr/share/doc/fleetward-agent/changelog.gz", "-rw-r--r--"),
    ("usr/share/doc/fleetward-agent/copyright", "-rw-r--r--"),
    (
        "usr/share/doc/fleetward-agent/examples/guardian-key.conf",
        "-rw-r--r--",
    ),
    ("usr/share/doc/fleetward-agent/third-party.gz", "-rw-r--r--"),
    (
        "usr/share/fish/vendor_completions.d/fleetward-agent.fish",
        "-rw-r--r--",
    ),
    ("usr/share/lintian/overrides/fleetward-agent", "-rw-r--r--"),
    (
        "usr/share/zsh/vendor-completions/_fleetward-agent",
        "-rw-r--r--",
    ),
];
const MAN: &str = "usr/share/man/man1/";

/// What systemd's own judgement may be at most, in tenths: 0 is closed, 100 open.
const EXPOSURES: [(&str, u32); 2] = [("fleetward-controller", 15), ("fleetward-agent", 48)];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("packages_hold_these_files_of_root", files),
        trial("what_administrators_change_is_theirs", conffiles),
        trial("the_controller_needs_no_hypervisor", dependencies),
        trial("units_are_valid_and_closed", units),
        trial("maintainer_scripts_are_sound", scripts),
        trial("lintian_finds_nothing", lintian),
        trial("the_settings_that_are_shown_are_valid", settings),
        trial("the_licences_of_others_come_along", licences),
        trial("an_agent_that_has_not_joined_says_so_and_ends", not_joined),
    ]
}

fn files() -> Result<()> {
    let packages = Packages::get()?;
    for ((name, package), wanted) in packages.both().into_iter().zip([CONTROLLER, AGENT]) {
        let listed = output(Command::new("dpkg-deb").arg("-c").arg(package))?;
        let mut found = BTreeMap::new();
        for line in listed.lines() {
            let mut words = line.split_whitespace();
            let (mode, owner) = (words.next(), words.next());
            let path = words.nth(3).context("a path")?.trim_start_matches("./");
            ensure!(owner == Some("0/0") || owner == Some("root/root"), "{line}");
            let mode = mode.context("a mode")?;
            if mode.starts_with('d') {
                same(path, mode, "drwxr-xr-x")?;
            } else {
                found.insert(path.to_owned(), mode.to_owned());
            }
        }
        let page = format!("{MAN}{name}.1.gz");
        ensure!(found.contains_key(&page), "{name}: no {page}");
        found.retain(|path, mode| !(path.starts_with(MAN) && mode == "-rw-r--r--"));
        let wanted = wanted.iter().map(|(p, m)| ((*p).into(), (*m).into()));
        let wanted: BTreeMap<String, String> = wanted.collect();
        ensure!(found == wanted, "{name}: {found:#?}, not {wanted:#?}");
    }
    Ok(())
}

fn conffiles() -> Result<()> {
    let packages = Packages::get()?;
    let wanted = [
        "/etc/fleetward/controller.env",
        "/etc/apparmor.d/abstractions/libvirt-qemu.d/fleetward\n/etc/fleetward/agent.toml",
    ];
    for ((name, package), wanted) in packages.both().into_iter().zip(wanted) {
        let mut list = Command::new("dpkg-deb");
        let found = output(list.arg("-I").arg(package).arg("conffiles"))?;
        let mut found: Vec<&str> = found.lines().collect();
        found.sort_unstable();
        same(name, &found.join("\n"), wanted)?;
    }
    Ok(())
}

fn dependencies() -> Result<()> {
    let packages = Packages::get()?;
    let depends = |package: &Path| {
        let mut ask = Command::new("dpkg-deb");
        output(ask.arg("-f").arg(package).args(["Depends", "Pre-Depends"]))
    };
    let controller = depends(&packages.controller)?;
    for word in ["libvirt", "qemu", "swtpm"] {
        ensure!(!controller.contains(word), "{controller}");
    }
    ensure!(controller.contains("libc6 (>= "), "{controller}");
    let agent = depends(&packages.agent)?;
    for word in ["libvirt0", "swtpm-tools", "qemu-system-x86", "ovmf"] {
        ensure!(agent.contains(word), "{word}: {agent}");
    }
    Ok(())
}

/// A package's files, unpacked.
fn unpacked(package: &Path) -> Result<TempDir> {
    let place = tempfile::tempdir()?;
    run(Command::new("dpkg-deb")
        .arg("-R")
        .arg(package)
        .arg(place.path()))?
    .ok()?;
    Ok(place)
}

fn units() -> Result<()> {
    let packages = Packages::get()?;
    for ((_, package), (unit, exposure)) in packages.both().into_iter().zip(EXPOSURES) {
        let place = unpacked(package)?;
        let file = format!("usr/lib/systemd/system/{unit}.service");
        let text = fs::read_to_string(place.path().join(file))?;
        // Its program is here and not where it will be installed.
        let bin = place.path().join("usr/bin/");
        let here = text.replace("/usr/bin/", &format!("{}/", bin.display()));
        let copy = place.path().join(format!("{unit}.service"));
        fs::write(&copy, here)?;
        let mut verify = Command::new("systemd-analyze");
        let said = run(verify.args(["verify", "--man=no"]).arg(&copy))?;
        // Units of this machine have complaints of their own.
        let own: Vec<&str> = said.stderr.lines().filter(|l| l.contains(unit)).collect();
        ensure!(own.is_empty(), "{own:#?}");
        let mut judge = Command::new("systemd-analyze");
        judge.args(["security", "--offline=yes", "--no-pager"]);
        let judged = run(judge.arg(format!("--threshold={exposure}")).arg(&copy))?;
        ensure!(judged.code == 0, "{}{}", judged.stdout, judged.stderr);
    }
    Ok(())
}

fn scripts() -> Result<()> {
    let packages = Packages::get()?;
    for (name, package) in packages.both() {
        let place = unpacked(package)?;
        let mut seen = 0;
        for script in ["config", "preinst", "postinst", "prerm", "postrm"] {
            let path = place.path().join("DEBIAN").join(script);
            if !path.exists() {
                continue;
            }
            seen += 1;
            run(Command::new("sh").arg("-n").arg(&path))?.ok()?;
            let mut check = Command::new("shellcheck");
            // debconf's functions are in a file of another package.
            check.args(["--shell=sh", "--severity=style", "--exclude=SC1091"]);
            let said = run(check.arg(&path))?;
            ensure!(said.code == 0, "{name}: {script}: {}", said.stdout);
        }
        ensure!(seen == 3, "{name}: {seen} scripts");
    }
    Ok(())
}

fn lintian() -> Result<()> {
    let packages = Packages::get()?;
    let mut check = Command::new("lintian");
    check.args(["--allow-root", "--fail-on=error,warning"]);
    let said = run(check.args([&packages.controller, &packages.agent]))?;
    ensure!(said.code == 0, "{}{}", said.stdout, said.stderr);
    Ok(())
}

fn settings() -> Result<()> {
    let place = unpacked(&Packages::get()?.agent)?;
    let file = place.path().join("etc/fleetward/agent.toml");
    Config::load(&file)?;
    // What is shown as a comment is valid, too, when it is taken.
    let text = fs::read_to_string(&file)?;
    let taken: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(shown) if !shown.starts_with(' ') => shown,
            _ => line,
        })
        .collect();
    let copy = place.path().join("taken.toml");
    fs::write(&copy, taken.join("\n"))?;
    let config = Config::load(&copy)?;
    ensure!(config.advertise.is_some() && config.networks.len() == 1);
    let defaults = Config::default();
    ensure!(config.pools == defaults.pools && config.memory_reserve == defaults.memory_reserve);
    Ok(())
}

fn licences() -> Result<()> {
    let packages = Packages::get()?;
    for ((name, package), library) in packages.both().into_iter().zip(["rusqlite", "virt"]) {
        let place = unpacked(package)?;
        let file = format!("usr/share/doc/{name}/third-party.gz");
        let text = output(Command::new("zcat").arg(place.path().join(file)))?;
        for word in [library, "aws-lc-sys", "tokio"] {
            let title = format!("\n{word} ");
            ensure!(text.contains(&title), "{name}: nothing of {word}");
        }
        ensure!(!text.contains("\nfleetward-"), "{name}: our own is there");
    }
    Ok(())
}

fn not_joined() -> Result<()> {
    let place = tempfile::tempdir()?;
    let config: PathBuf = place.path().join("agent.toml");
    fs::write(
        &config,
        format!("data_dir = {:?}\n", place.path().join("data")),
    )?;
    let mut agent = Command::new(program_directory()?.join("fleetward-agent"));
    let said = run(agent.arg("--config").arg(&config).arg("run"))?;
    ensure!(said.code == 78, "{}: {}", said.code, said.stderr);
    ensure!(
        said.stderr.contains("fleetward-agent join"),
        "{}",
        said.stderr
    );
    Ok(())
}
