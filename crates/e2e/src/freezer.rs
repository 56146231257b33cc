//! Has a process of a VM stand still as if the kernel held it: frozen by a control group, from outside the lab's host.

#![allow(
    clippy::disallowed_methods,
    reason = "control groups are files of the kernel"
)]

use crate::fleet::{Fleet, text};
use crate::wait::{self, seconds};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// What freezes. Of a frozen process both say the same, but to whom looks from outside they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freezer {
    /// Version 1: the process waits in the kernel (`D`), and no signal ends it.
    First,
    /// Version 2: the process looks as if it slept, and SIGKILL ends it.
    Second,
}

/// The first directory that is a group of its freezer is used; `FLEETWARD_E2E_FREEZER`, 1 or 2, says of which version.
const PLACES: [(Freezer, &str); 3] = [
    (Freezer::First, "/sys/fs/cgroup/freezer"),
    (Freezer::Second, "/sys/fs/cgroup/unified"),
    (Freezer::Second, "/sys/fs/cgroup"),
];

/// A frozen process, until this is dropped.
pub struct Frozen {
    pub freezer: Freezer,
    group: PathBuf,
    /// The group in which it was before.
    home: PathBuf,
    pid: String,
}

impl Freezer {
    /// Where its groups are, on this machine.
    fn find() -> Result<(Self, &'static Path)> {
        let wanted = std::env::var("FLEETWARD_E2E_FREEZER").ok();
        let is_there = |(freezer, place): &(Self, &str)| {
            let file = match freezer {
                Self::First => "tasks",
                Self::Second => "cgroup.controllers",
            };
            let chosen = match wanted.as_deref() {
                None => true,
                Some(version) => (version == "2") == (*freezer == Self::Second),
            };
            chosen && Path::new(place).join(file).exists()
        };
        let found = PLACES.into_iter().find(is_there);
        let (freezer, place) = found.context("this machine has no freezer of control groups")?;
        Ok((freezer, Path::new(place)))
    }

    const fn frozen(self) -> &'static str {
        match self {
            Self::First => "FROZEN",
            Self::Second => "1",
        }
    }

    const fn thawed(self) -> &'static str {
        match self {
            Self::First => "THAWED",
            Self::Second => "0",
        }
    }

    /// The group of a process, as a path below where the groups are.
    fn group_of(self, pid: &str) -> Result<String> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let group = groups.lines().find_map(|line| {
            let (number, rest) = line.split_once(':')?;
            let (controllers, group) = rest.split_once(':')?;
            match self {
                Self::First => controllers.split(',').any(|name| name == "freezer"),
                Self::Second => number == "0",
            }
            .then_some(group)
        });
        let group = group.with_context(|| format!("process {pid} has no group: {groups}"))?;
        Ok(group.trim_start_matches('/').to_owned())
    }
}

/// Says of the name and the arguments of a process whether it is the one.
type IsIt<'a> = dyn Fn(&[u8], &[&[u8]]) -> bool + 'a;

/// A process that can be frozen.
pub struct Process {
    /// Its number on this machine.
    pid: String,
    /// The name of its group.
    group: String,
}

impl Process {
    /// The QEMU of a VM, while there is one.
    pub fn qemu(fleet: &Fleet, vm: &str) -> Result<Self> {
        let id = text(&fleet.vm(vm)?, "id")?;
        Self::find(fleet, vm, &|name: &[u8], words: &[&[u8]]| {
            let mut words = words.iter().skip_while(|word| **word != b"-uuid");
            name.starts_with(b"qemu") && words.nth(1) == Some(&id.as_bytes())
        })
    }

    /// The swtpm of a VM, while there is one: not during a move.
    pub fn swtpm(fleet: &Fleet, vm: &str) -> Result<Self> {
        let state = format!("/{}/tpm2", text(&fleet.vm(vm)?, "id")?);
        Self::find(fleet, vm, &|name: &[u8], words: &[&[u8]]| {
            let mut words = words.iter().skip_while(|word| **word != b"--tpmstate");
            let directory = words.nth(1).map(|word| String::from_utf8_lossy(word));
            name == b"swtpm\n" && directory.is_some_and(|directory| directory.contains(&state))
        })
    }

    /// The one process with such a name and such arguments.
    fn find(fleet: &Fleet, vm: &str, is_it: &IsIt<'_>) -> Result<Self> {
        Ok(Self {
            pid: process_of(vm, is_it)?,
            group: format!("{}-{vm}", fleet.name()),
        })
    }

    pub fn freeze(self) -> Result<Frozen> {
        let (freezer, place) = Freezer::find()?;
        let frozen = Frozen {
            freezer,
            home: place.join(freezer.group_of(&self.pid)?),
            group: place.join(self.group),
            pid: self.pid,
        };
        fs::create_dir_all(&frozen.group)?;
        fs::write(frozen.group.join("cgroup.procs"), &frozen.pid)?;
        frozen.set(freezer.frozen())?;
        Ok(frozen)
    }
}

impl Frozen {
    /// Asks for a state, and waits until the kernel says that all of the process is in it.
    fn set(&self, state: &str) -> Result<()> {
        let (file, said, expected) = match self.freezer {
            Freezer::First => ("freezer.state", "freezer.state", state.to_owned()),
            Freezer::Second => ("cgroup.freeze", "cgroup.events", format!("frozen {state}")),
        };
        fs::write(self.group.join(file), state)?;
        wait::until(&format!("the process to be {state}"), seconds(10), || {
            let said = fs::read_to_string(self.group.join(said))?;
            Ok(said.lines().any(|line| line == expected).then_some(()))
        })
    }

    /// Lets it go on.
    pub fn thaw(self) -> Result<()> {
        self.set(self.freezer.thawed())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have ended since.
        let _ = self.set(self.freezer.thawed());
        let _ = fs::write(self.home.join("cgroup.procs"), &self.pid);
        let _ = fs::remove_dir(&self.group);
    }
}

/// The number of that process on this machine.
fn process_of(vm: &str, is_it: &IsIt<'_>) -> Result<String> {
    let looks_like_it = |pid: &str| {
        let read = |file: &str| fs::read(Path::new("/proc").join(pid).join(file)).ok();
        let (name, command) = (read("comm")?, read("cmdline")?);
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        Some(is_it(&name, &words))
    };
    let all = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<String> = all
        .filter(|name| looks_like_it(name) == Some(true))
        .collect();
    let pid = found
        .pop()
        .with_context(|| format!("no such process of VM {vm}"))?;
    ensure!(
        found.is_empty(),
        "several such processes of VM {vm}: {pid}, {found:?}"
    );
    Ok(pid)
}
