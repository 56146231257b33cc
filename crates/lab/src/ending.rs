//! How a lab ends: its process 1s are killed, the kernel ends all that hangs on them, and then we look whether
//! that is really so. Works from the record and, where that is missing, from the processes themselves.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::files::LabFiles;
use crate::node;
use crate::process::{all_processes, wait_until};
use crate::record::{LabRecord, boot_id};

/// What is still there after `down`; empty when all is well.
#[derive(Debug, Clone, Default)]
pub struct Leftovers(pub Vec<String>);

/// The namespaces every node has of its own.
const NAMESPACES: [&str; 5] = ["pid", "net", "mnt", "uts", "ipc"];

/// Ends the process 1s of a lab, whoever wrote them down or did not, and removes its directory.
pub(crate) fn clear(files: &LabFiles) -> Result<Leftovers> {
    // A record that cannot be read is no reason to leave processes running.
    let record = LabRecord::load(files)
        .ok()
        .flatten()
        .filter(|r| r.boot_id == boot_id());
    let mut processes = record.map(|r| r.processes()).unwrap_or_default();
    processes.retain(|p| p.is_alive());
    processes.extend(node::find_strays(files));
    let namespaces: Vec<String> = processes
        .iter()
        .flat_map(|p| NAMESPACES.into_iter().filter_map(|kind| p.namespace(kind)))
        .collect();
    for process in &processes {
        process.kill()?;
    }
    // A launcher may have made one more between the look and its end.
    for process in node::find_strays(files) {
        process.kill()?;
    }
    // The kernel lets go of a dead host's loop device and namespaces a moment later.
    let _ = wait_until(Duration::from_secs(10), || {
        look_for_leftovers(files, &namespaces).0.is_empty()
    });
    let leftovers = look_for_leftovers(files, &namespaces);
    match fs::remove_dir_all(files.root()) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("remove {}", files.root().display()));
        }
    }
    Ok(leftovers)
}

/// Processes, namespaces, mounts and loop devices that belong to the lab. Links live in its namespaces.
fn look_for_leftovers(files: &LabFiles, namespaces: &[String]) -> Leftovers {
    let mut found = Vec::new();
    for process in node::find_strays(files) {
        found.push(format!("process {}", process.pid));
    }
    for (process, arguments) in all_processes() {
        let inside = NAMESPACES
            .into_iter()
            .filter_map(|kind| process.namespace(kind))
            .find(|n| namespaces.contains(n));
        if let Some(namespace) = inside {
            found.push(format!(
                "process {} ({}) in {namespace}",
                process.pid,
                arguments.join(" ")
            ));
        }
    }
    let root = files.root().to_string_lossy();
    let below = format!("{root}/");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
        if mount == root || mount.starts_with(&below) {
            found.push(format!("mount {mount}"));
        }
    }
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if file.starts_with(&below) {
            found.push(format!(
                "loop device {}",
                device.file_name().to_string_lossy()
            ));
        }
    }
    Leftovers(found)
}
