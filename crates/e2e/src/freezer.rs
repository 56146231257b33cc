//! Has a QEMU wait in the kernel, as when its storage is gone: its process is frozen from outside the lab's host.

#![allow(
    clippy::disallowed_methods,
    reason = "control groups are files of the kernel"
)]

use crate::fleet::{Fleet, text};
use crate::wait::{self, seconds};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// A frozen process, until this is dropped.
pub struct Frozen {
    group: PathBuf,
    pid: String,
}

const GROUPS: &str = "/sys/fs/cgroup/freezer";

impl Frozen {
    /// Freezes the QEMU of a VM; none where the machine has no freezer of control groups in version 1, with which a frozen
    /// process is one that nothing interrupts.
    pub fn qemu(fleet: &Fleet, vm: &str) -> Result<Option<Self>> {
        let own = Path::new(GROUPS);
        if !own.join("cgroup.procs").exists() {
            return Ok(None);
        }
        let pid = process_of(&text(&fleet.vm(vm)?, "id")?)?;
        let group = own.join(format!("{}-{vm}", fleet.name()));
        fs::create_dir_all(&group)?;
        let frozen = Self { group, pid };
        fs::write(frozen.group.join("cgroup.procs"), &frozen.pid)?;
        frozen.set("FROZEN")?;
        Ok(Some(frozen))
    }

    fn set(&self, state: &str) -> Result<()> {
        let file = self.group.join("freezer.state");
        fs::write(&file, state)?;
        wait::until(&format!("the process to be {state}"), seconds(10), || {
            Ok((fs::read_to_string(&file)?.trim() == state).then_some(()))
        })
    }

    /// Lets it go on.
    pub fn thaw(self) -> Result<()> {
        self.set("THAWED")
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.group.join("freezer.state"), "THAWED");
        // It may have ended since.
        let _ = fs::write(Path::new(GROUPS).join("cgroup.procs"), &self.pid);
        let _ = fs::remove_dir(&self.group);
    }
}

/// The QEMU of the VM with that id, by its number on this machine.
fn process_of(id: &str) -> Result<String> {
    let is_it = |pid: &str| {
        let read = |file: &str| fs::read(Path::new("/proc").join(pid).join(file)).ok();
        let command = read("cmdline")?;
        let mut words = command.split(|byte| *byte == 0);
        words.find(|word| *word == b"-uuid")?;
        Some(read("comm")?.starts_with(b"qemu") && words.next()? == id.as_bytes())
    };
    let all = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<String> = all.filter(|name| is_it(name) == Some(true)).collect();
    let pid = found.pop().with_context(|| format!("no QEMU of VM {id}"))?;
    ensure!(
        found.is_empty(),
        "several QEMUs of VM {id}: {pid}, {found:?}"
    );
    Ok(pid)
}
