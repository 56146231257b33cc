//! The lab itself, without a fleet on it: what other tests rely on when they kill, cut and restart.

#![allow(clippy::unwrap_used)] // a panic here is a failed claim
#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

const LAB: &str = env!("CARGO_BIN_EXE_fleetward-lab");

/// A lab of its own in a directory of its own; down when dropped.
struct OwnLab {
    base: tempfile::TempDir,
    name: &'static str,
}

impl OwnLab {
    /// `None` where a lab cannot be: not root, or packages are missing.
    fn new(name: &'static str) -> Option<Self> {
        let able = nix::unistd::geteuid().is_root() && Path::new("/usr/sbin/libvirtd").exists();
        if !able {
            eprintln!("skipped: needs root and libvirtd (scripts/install-packages)");
            return None;
        }
        Some(Self {
            base: tempfile::tempdir().unwrap(),
            name,
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(LAB);
        command
            .args(arguments)
            .env("FLEETWARD_LAB_DIR", self.base.path())
            .env("FLEETWARD_LAB", self.name)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        format!("{out}{err}")
    }

    fn up(&self, hosts: &str) -> String {
        self.ok(&["up", "--no-fleet", "--accelerator", "tcg", "--hosts", hosts])
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        self.run(&["exec", from, "--", "busybox", "ping", "-c1", "-W1", to])
            .status
            .success()
    }

    /// Process 1s of this lab, by its directory in their arguments.
    fn processes(&self) -> usize {
        let root = self.base.path().join(self.name);
        let root = root.to_str().unwrap();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .filter(|line| line.split(|b| *b == 0).any(|word| word == root.as_bytes()))
            .count()
    }
}

impl Drop for OwnLab {
    fn drop(&mut self) {
        let _ = self.run(&["down"]);
    }
}

#[test]
fn hosts_are_machines_of_their_own_and_down_leaves_nothing() {
    let Some(lab) = OwnLab::new("own") else {
        return;
    };
    lab.up("2");
    assert_eq!(lab.ok(&["exec", "a", "--", "hostname"]).trim(), "a");
    assert_eq!(
        lab.run(&["exec", "b", "--", "sh", "-c", "exit 7"])
            .status
            .code(),
        Some(7)
    );
    lab.ok(&[
        "exec",
        "a",
        "--",
        "touch",
        "/var/lib/fleetward/volumes/x",
        "/var/lib/fleetward-shared/y",
    ]);
    assert!(
        !lab.run(&[
            "exec",
            "b",
            "--",
            "test",
            "-e",
            "/var/lib/fleetward/volumes/x"
        ])
        .status
        .success()
    );
    lab.ok(&[
        "exec",
        "b",
        "--",
        "test",
        "-e",
        "/var/lib/fleetward-shared/y",
    ]);
    let uuid = |host| {
        lab.ok(&[
            "exec",
            host,
            "--",
            "grep",
            "host_uuid",
            "/etc/libvirt/libvirtd.conf",
        ])
    };
    assert_ne!(uuid("a"), uuid("b"), "libvirt would refuse to migrate");

    assert!(lab.up("2").contains("is up already"));
    assert!(lab.up("3").contains("hosts added: 1"));
    assert!(lab.reaches("a", "c"));
    lab.ok(&["down"]);
    assert_eq!(lab.processes(), 0);
    assert!(!lab.base.path().join("own").exists());
    lab.ok(&["down"]);
}

#[test]
fn a_power_cut_ends_everything_and_keeps_the_disk() {
    let Some(lab) = OwnLab::new("power") else {
        return;
    };
    lab.up("2");
    // As a machine keeps its card: b goes on with what it has learnt, and finds a at once when it is back.
    assert!(lab.reaches("b", "a"));
    let card = || lab.ok(&["exec", "a", "--", "cat", "/sys/class/net/eth0/address"]);
    let before = card();
    lab.ok(&[
        "exec",
        "a",
        "--",
        "touch",
        "/run/gone",
        "/var/lib/libvirt/kept",
    ]);
    lab.ok(&["kill", "a"]);
    assert!(!lab.run(&["exec", "a", "--", "true"]).status.success());
    lab.ok(&["start", "a"]);
    assert_eq!(card(), before);
    assert!(lab.reaches("b", "a"));
    lab.ok(&["exec", "a", "--", "test", "-e", "/var/lib/libvirt/kept"]);
    assert!(
        !lab.run(&["exec", "a", "--", "test", "-e", "/run/gone"])
            .status
            .success()
    );
    lab.ok(&["exec", "a", "--", "virsh", "-q", "list"]);

    lab.ok(&["kill", "a/libvirtd"]);
    assert!(
        !lab.run(&["exec", "a", "--", "virsh", "-q", "list"])
            .status
            .success()
    );
    lab.ok(&["start", "a/libvirtd"]);
    lab.ok(&["exec", "a", "--", "virsh", "-q", "list"]);
}

#[test]
fn cuts_concern_whom_they_name_and_heal() {
    let Some(lab) = OwnLab::new("cuts") else {
        return;
    };
    lab.up("3");
    lab.ok(&["partition", "a", "--from", "b"]);
    assert!(!lab.reaches("a", "b") && !lab.reaches("b", "a"));
    assert!(lab.reaches("a", "c") && lab.reaches("b", "c"));
    lab.ok(&["heal", "b"]);
    assert!(lab.reaches("a", "b") && lab.reaches("b", "a"));
    lab.ok(&["partition", "c"]);
    assert!(!lab.reaches("a", "c") && !lab.reaches("c", "b") && lab.reaches("a", "b"));
    lab.ok(&["heal", "c"]);
    assert!(lab.reaches("a", "c"));
}

#[test]
fn a_crashed_up_is_cleaned_by_the_next_and_by_down() {
    let Some(lab) = OwnLab::new("crash") else {
        return;
    };
    // The image must be there, or the crash comes before anything was started.
    lab.ok(&["image", "build"]);
    for delay in [60, 120, 180] {
        let mut up = lab
            .command(&["up", "--no-fleet", "--accelerator", "tcg", "--hosts", "6"])
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(delay));
        up.kill().unwrap();
        up.wait().unwrap();
        lab.ok(&["down"]);
        assert_eq!(lab.processes(), 0, "after a crash at {delay} ms");
    }
    lab.up("2");
    // Worse than a crash: nobody remembers what was started.
    std::fs::remove_file(lab.base.path().join("crash/lab.json")).unwrap();
    assert!(lab.up("1").contains("cleaning up"));
    assert_eq!(lab.processes(), 2, "the switch and one host");
}

#[test]
fn a_small_volume_is_really_small_and_survives_a_power_cut() {
    let Some(lab) = OwnLab::new("small") else {
        return;
    };
    lab.ok(&[
        "up",
        "--no-fleet",
        "--accelerator",
        "tcg",
        "--hosts",
        "1",
        "--volume-size",
        "a=16M",
    ]);
    let fill = [
        "exec",
        "a",
        "--",
        "dd",
        "if=/dev/zero",
        "of=/var/lib/fleetward/volumes/big",
        "bs=1M",
        "count=32",
    ];
    assert!(!lab.run(&fill).status.success());
    lab.ok(&["kill", "a"]);
    lab.ok(&["start", "a"]);
    lab.ok(&[
        "exec",
        "a",
        "--",
        "test",
        "-s",
        "/var/lib/fleetward/volumes/big",
    ]);
    lab.ok(&["down"]);
    let loops = Command::new("/usr/sbin/losetup")
        .args(["-a"])
        .output()
        .unwrap();
    let loops = String::from_utf8_lossy(&loops.stdout).into_owned();
    assert!(
        !loops.contains(lab.base.path().to_str().unwrap()),
        "{loops}"
    );
}
