//! One node of a lab, which looks like a machine to its programs. This module makes and ends its namespaces; it does
//! not know what runs inside.
//!
//! ```text
//!  lab command -> node-launch: new namespaces, starts process 1 in them, prints its number, ends
//!                   `-> node-init (process 1): mounts, host name, `ready`, then collects the dead for ever
//!  lab command -> nsenter -> node-spawn: starts one daemon detached and ends; process 1 inherits the daemon
//! ```
//!
//! Process 1 must collect dead processes: libvirt waits up to 40 s for a QEMU that is dead but not collected.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{sethostname, setsid};

use crate::files::{LabFiles, NodeFiles, inside};
use crate::process::{ProcessId, all_processes, is_program, wait_until};
use crate::programs::{Programs, run, tool};

/// Directories of which every node has its own, and whether it starts with the machine's (empty) subdirectories
/// and their owners: packages made those for QEMU's and swtpm's users.
const PRIVATE: [(&str, bool); 7] = [
    ("/etc/fleetward", false),
    ("/etc/libvirt", true),
    ("/var/cache/libvirt", true),
    ("/var/lib/fleetward", false),
    ("/var/lib/libvirt", true),
    ("/var/lib/swtpm-localca", true),
    ("/var/log", true),
];

/// Where programs of a node are looked for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Switches a node on and waits until its world stands. What was on its disk is still there; /run is empty.
pub(crate) fn power_on(
    programs: &Programs,
    files: &LabFiles,
    name: &str,
    volume_bytes: Option<u64>,
) -> Result<ProcessId> {
    let node = files.node(name);
    make_disk(&node, volume_bytes)?;
    let _ = fs::remove_file(node.ready());
    let log = File::create(node.log("node"))?;
    let output = Command::new(programs.lab())
        .arg("node-launch")
        .arg(files.root())
        .arg(name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .env_clear()
        .env("PATH", PATH)
        .output()
        .context("start fleetward-lab node-launch")?;
    let said = || fs::read_to_string(node.log("node")).unwrap_or_default();
    let pid = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
    let Some(init) = pid.and_then(ProcessId::of) else {
        bail!("node {name} does not start: {}", said().trim());
    };
    wait_until(Duration::from_secs(20), || {
        node.ready().exists() || !init.is_alive()
    })?;
    if !node.ready().exists() {
        bail!("node {name} does not start: {}", said().trim());
    }
    Ok(init)
}

/// A command that will run inside the node; its arguments follow.
pub(crate) fn enter(init: ProcessId) -> Result<Command> {
    if !init.is_alive() {
        bail!("the node is switched off");
    }
    let mut command = Command::new(tool("nsenter")?);
    command
        .args([
            "-t",
            &init.pid.to_string(),
            "-m",
            "-u",
            "-n",
            "-i",
            "-p",
            "--",
        ])
        .env_clear()
        .env("PATH", PATH);
    for kept in ["TERM", "LANG", "RUST_LOG", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    Ok(command)
}

/// Starts a daemon inside the node, detached from the caller, its output appended to `log`.
pub(crate) fn spawn(
    programs: &Programs,
    init: ProcessId,
    log: &Path,
    program: &Path,
    arguments: &[&str],
    environment: &[(&str, PathBuf)],
) -> Result<()> {
    let mut command = enter(init)?;
    command
        .arg(programs.lab())
        .arg("node-spawn")
        .arg(log)
        .arg(program)
        .args(arguments);
    for (name, value) in environment {
        command.env(name, value);
    }
    run(&mut command).map(drop)
}

/// The process of a program inside the node.
pub(crate) fn find(init: ProcessId, program: &str) -> Option<ProcessId> {
    let namespace = init.namespace("pid")?;
    all_processes()
        .into_iter()
        .filter(|(id, arguments)| is_program(arguments, program) && *id != init)
        .map(|(id, _)| id)
        .find(|id| id.namespace("pid").as_deref() == Some(&namespace))
}

/// Whether somebody in the node accepts connections on this TCP port.
pub(crate) fn listens(init: ProcessId, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(format!("/proc/{}/net/{table}", init.pid));
        text.unwrap_or_default().lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(&suffix))
                && fields.nth(1) == Some(LISTEN)
        })
    })
}

/// Process 1s and launchers of this lab, found without its record.
pub(crate) fn find_strays(files: &LabFiles) -> Vec<ProcessId> {
    let root = files.root().to_string_lossy();
    all_processes()
        .into_iter()
        .filter(|(_, a)| {
            is_program(a, "fleetward-lab")
                && a.get(1)
                    .is_some_and(|verb| verb == "node-init" || verb == "node-launch")
                && a.get(2).is_some_and(|dir| *dir == root)
        })
        .map(|(id, _)| id)
        .collect()
}

// ---- the hidden commands of fleetward-lab ------------------------------------------------------------------

/// `fleetward-lab node-launch LAB NAME`: must be the only thread of its process.
pub fn launch_main(lab: &Path, name: &str) -> Result<()> {
    setsid().context("leave the caller's session")?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("make namespaces (this needs root)")?;
    let own = std::env::current_exe()?;
    let log = OpenOptions::new()
        .append(true)
        .open(LabFiles::new(lab).node(name).log("node"))?;
    let child = Command::new(own)
        .arg("node-init")
        .arg(lab)
        .arg(name)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start process 1")?;
    println!("{}", child.id());
    Ok(())
}

/// `fleetward-lab node-init LAB NAME`: process 1 of a node. Ends only by SIGKILL, and everything with it.
pub fn init_main(lab: &Path, name: &str) -> Result<()> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let files = LabFiles::new(lab);
    let node = files.node(name);
    make_world(&files, &node, name)?;
    // Blocked before anybody can become our child, so that no death goes unnoticed.
    children.thread_block()?;
    fs::write(node.ready(), name)?;
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => break,
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error).context("collect the dead"),
            }
        }
        children.wait()?;
    }
}

/// `fleetward-lab node-spawn LOG PROGRAM ARGUMENTS...`: runs inside the node.
pub fn spawn_main(log: &Path, program: &str, arguments: &[String]) -> Result<()> {
    setsid().context("start a session")?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    Ok(())
}

// ---- the world of a node -----------------------------------------------------------------------------------

fn make_disk(node: &NodeFiles, volume_bytes: Option<u64>) -> Result<()> {
    for (directory, like_machine) in PRIVATE {
        // The place to mount on; packages make most of them.
        fs::create_dir_all(directory).with_context(|| format!("make {directory}"))?;
        let own = node.private(directory);
        if own.exists() {
            continue;
        }
        fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
        if like_machine {
            copy_directories(Path::new(directory), &own, 2)?;
        }
    }
    let log = node.private("/var/log");
    fs::create_dir_all(log.join("fleetward-serial"))?;
    fs::create_dir_all(node.private(inside::VOLUMES))?;
    fs::create_dir_all(inside::SHARED)?;
    let limited = node.limited_volumes();
    if let (Some(bytes), false) = (volume_bytes, limited.exists()) {
        File::create(&limited)?.set_len(bytes)?;
        run(Command::new(tool("mkfs.ext4")?)
            .args(["-q", "-F", "-m", "0"])
            .arg(&limited))?;
    }
    Ok(())
}

fn copy_directories(from: &Path, to: &Path, depth: u8) -> Result<()> {
    let like = fs::metadata(from)?;
    chown(to, Some(like.uid()), Some(like.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(like.mode() & 0o7777))?;
    if depth == 0 {
        return Ok(());
    }
    for entry in fs::read_dir(from)?.flatten() {
        if entry.file_type()?.is_dir() {
            let below = to.join(entry.file_name());
            fs::create_dir_all(&below)?;
            copy_directories(&entry.path(), &below, depth - 1)?;
        }
    }
    Ok(())
}

fn make_world(files: &LabFiles, node: &NodeFiles, name: &str) -> Result<()> {
    sethostname(name).context("set the host name")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")?;
    mount_new("proc", "/proc", None)?;
    mount_new("sysfs", "/sys", None)?;
    for (directory, _) in PRIVATE {
        bind(&node.private(directory), directory)?;
    }
    bind(&files.shared_volumes(), inside::SHARED)?;
    bind(&files.serial(), inside::SERIAL)?;
    bind(&files.hosts(), "/etc/hosts")?;
    let limited = node.limited_volumes();
    if limited.exists() {
        run(Command::new(tool("mount")?)
            .args(["-o", "loop"])
            .arg(&limited)
            .arg(inside::VOLUMES))?;
        let _ = fs::remove_dir(Path::new(inside::VOLUMES).join("lost+found"));
    }
    // Every boot of a machine has an id of its own, and so has every boot of a node.
    let boot_id = node.boot_id();
    fs::write(&boot_id, format!("{}\n", uuid::Uuid::new_v4()))?;
    bind(&boot_id, "/proc/sys/kernel/random/boot_id")?;
    mount_new("tmpfs", "/dev/shm", Some("mode=1777"))?;
    mount_new("tmpfs", "/run", Some("mode=755"))?;
    fs::create_dir("/run/lock")?;
    fs::set_permissions("/run/lock", fs::Permissions::from_mode(0o1777))?;
    Ok(())
}

fn mount_new(kind: &str, target: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mount {kind} on {target}"))
}

fn bind(source: &Path, target: &str) -> Result<()> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("mount {} on {target}", source.display()))
}
