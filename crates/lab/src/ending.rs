//! Ends a lab: kills its process 1s, whereupon the kernel ends everything in their namespaces, and then verifies that
//! nothing is left. Works from the record or, if that is missing, from the processes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::files::LabFiles;
use crate::node;
use crate::process::{ProcessId, all_processes, wait_until};
use crate::record::{LabRecord, boot_id};

/// What is still there after `down`; empty when all is well.
#[derive(Debug, Clone, Default)]
pub struct Leftovers(pub Vec<String>);

/// The namespaces every node has of its own.
const NAMESPACES: [&str; 5] = ["pid", "net", "mnt", "uts", "ipc"];

/// Ends the process 1s of a lab, recorded or not, and removes its directory.
pub(crate) fn clear(files: &LabFiles) -> Result<Leftovers> {
    // A record that cannot be read is no reason to leave processes running.
    let record = LabRecord::load(files)
        .ok()
        .flatten()
        .filter(|r| r.boot_id == boot_id());
    let mut processes = record.map(|r| r.processes()).unwrap_or_default();
    processes.retain(|p| p.is_alive());
    processes.extend(node::find_strays(files));
    let members = members_of(&processes);
    for process in &processes {
        process.kill()?;
    }
    // A launcher may have made one more between the look and its end.
    for process in node::find_strays(files) {
        process.kill()?;
    }
    // The kernel lets go of a dead host's loop device and namespaces a moment later.
    let _ = wait_until(Duration::from_secs(10), || {
        look_for_leftovers(files, &members).0.is_empty()
    });
    let leftovers = look_for_leftovers(files, &members);
    match fs::remove_dir_all(files.root()) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("remove {}", files.root().display()));
        }
    }
    Ok(leftovers)
}

/// Everybody in the namespaces of these process 1s. A namespace lives as long as one of them does. To be asked
/// before they are killed: the kernel gives a dead namespace's number to the next one, which may be another lab's.
fn members_of(processes: &[ProcessId]) -> Vec<(ProcessId, String)> {
    let namespaces = |process: &ProcessId| -> Vec<String> {
        NAMESPACES
            .into_iter()
            .filter_map(|kind| process.namespace(kind))
            .collect()
    };
    // A launcher may still be in those it was started from: ours. Process 1 would tell too, but not everywhere may root
    // look at it.
    let machine = ProcessId::own().map(|p| namespaces(&p)).unwrap_or_default();
    let mut ours: Vec<String> = processes.iter().flat_map(namespaces).collect();
    ours.retain(|namespace| !machine.contains(namespace));
    all_processes()
        .into_iter()
        .filter(|(process, _)| namespaces(process).iter().any(|n| ours.contains(n)))
        .map(|(process, arguments)| (process, arguments.join(" ")))
        .collect()
}

/// Processes (and with them namespaces), mounts and loop devices of the lab. Links live in its namespaces.
fn look_for_leftovers(files: &LabFiles, members: &[(ProcessId, String)]) -> Leftovers {
    let mut found = Vec::new();
    for process in node::find_strays(files) {
        found.push(format!("process {}", process.pid));
    }
    for (process, arguments) in members.iter().filter(|(process, _)| process.is_alive()) {
        found.push(format!("process {} ({arguments})", process.pid));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_that_has_not_left_our_namespaces_brings_nobody_with_it() {
        let mut launcher = std::process::Command::new("/bin/sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let id = ProcessId::of(launcher.id().try_into().unwrap()).unwrap();
        let members = members_of(&[id]);
        id.kill().unwrap();
        launcher.wait().unwrap();
        assert!(members.is_empty(), "{members:?}");
    }
}
