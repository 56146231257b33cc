//! The clock that the controller, the agents, and commands on a lab's hosts see: the machine's, moved by an offset that can
//! change while they run.
//!
//! libfaketime stands between a program and the C library and reads the offset from a file. Clocks that only measure how long
//! something takes stay as they are, and so do the times of files. libvirtd, QEMU and the guests keep the machine's clock.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::files::LabFiles;

/// Where Debian's package `faketime` puts the library, below the directory of the machine's architecture.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// Makes the clock of a new lab movable.
pub(crate) fn make_movable(files: &LabFiles) -> Result<()> {
    library()?;
    set(&files.clock(), "+0")
}

/// Moves the clocks of all, or of those hosts' agents alone: `+31d`, `-2h`, `+0`.
pub(crate) fn move_to(files: &LabFiles, offset: &str, hosts: &[&str], all: bool) -> Result<()> {
    if !files.clock().exists() {
        bail!(
            "the clock of this lab cannot be moved\n  fix: fleetward-lab up --movable-clock, for a new lab"
        );
    }
    let number = offset.trim_end_matches(['s', 'm', 'h', 'd', 'y']);
    let sign = number.starts_with(['+', '-']);
    if !sign || number[1..].parse::<u32>().is_err() || offset.len() - number.len() > 1 {
        bail!("{offset} is not an offset such as +31d, -2h, +90m or +0");
    }
    if all {
        set(&files.clock(), offset)?;
    }
    hosts
        .iter()
        .try_for_each(|host| set(&files.clock_of(host), offset))
}

/// What the controller, or the agent of a host, needs in its environment.
pub(crate) fn environment(
    files: &LabFiles,
    host: Option<&str>,
) -> Result<Vec<(&'static str, PathBuf)>> {
    let fleet = files.clock();
    if !fleet.exists() {
        return Ok(Vec::new());
    }
    let clock = match host {
        None => fleet,
        Some(host) => {
            let own = files.clock_of(host);
            if !own.exists() {
                let offset = std::fs::read_to_string(&fleet)?;
                set(&own, &offset)?;
            }
            own
        }
    };
    Ok(vec![
        ("LD_PRELOAD", library()?),
        ("FAKETIME_TIMESTAMP_FILE", clock),
        ("FAKETIME_CACHE_DURATION", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("NO_FAKE_STAT", "1".into()),
    ])
}

fn set(clock: &Path, offset: &str) -> Result<()> {
    fleetward_durable::replace(clock, offset.as_bytes(), fleetward_durable::Access::PUBLIC)
        .with_context(|| format!("write {}", clock.display()))
}

fn library() -> Result<PathBuf> {
    let machine = Path::new("/usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let library = machine.join(LIBRARY);
    match fs::exists(&library) {
        Ok(true) => Ok(library),
        _ => bail!(
            "there is no {}\n  fix: apt-get install faketime",
            library.display()
        ),
    }
}
