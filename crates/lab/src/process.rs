//! Identifies a process by its number and start time, so that a number that the kernel has reused is never taken for
//! one of ours.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One particular process of this boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// In clock ticks since boot, field 22 of proc(5) `stat`.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now, if it is not already dead. A process whose first thread has ended is alive as
    /// long as another has not: it holds its sockets open, and answers on them.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command name stands in brackets and may itself contain brackets and blanks.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        let (state, started) = (*fields.first()?, fields.get(19)?.parse().ok()?);
        let threads: u32 = fields.get(17)?.parse().ok()?;
        let ended = matches!(state, "Z" | "X") && threads <= 1;
        (!ended).then_some(Self { pid, started })
    }

    /// The one that asks.
    pub(crate) fn own() -> Option<Self> {
        Self::of(std::process::id().try_into().ok()?)
    }

    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// SIGKILL, and waits until the process is gone; doing it to a dead process is no error.
    pub fn kill(self) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("kill process {}", self.pid)),
        }
        wait_until(Duration::from_secs(20), || !self.is_alive())
            .with_context(|| format!("process {} survives SIGKILL", self.pid))
    }

    /// The identity of one of its namespaces (`pid`, `net`, `mnt`, ...), such as `pid:[4026532201]`.
    pub fn namespace(self, kind: &str) -> Option<String> {
        let link = fs::read_link(format!("/proc/{}/ns/{kind}", self.pid)).ok()?;
        Some(link.to_string_lossy().into_owned())
    }
}

/// All live processes with their argument vectors; those without one (kernel threads) are left out.
pub(crate) fn all_processes() -> Vec<(ProcessId, Vec<String>)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let arguments = arguments_of(pid)?;
            Some((ProcessId::of(pid)?, arguments))
        })
        .collect()
}

/// Polls `done` until it holds or the time is over.
pub(crate) fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            bail!("still not so after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether the process was started from a program of this name.
pub(crate) fn is_program(arguments: &[String], name: &str) -> bool {
    arguments
        .first()
        .and_then(|a| Path::new(a).file_name())
        .is_some_and(|file| file == name)
}

fn arguments_of(pid: i32) -> Option<Vec<String>> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments: Vec<String> = raw
        .split(|b| *b == 0)
        .map(|a| String::from_utf8_lossy(a).into_owned())
        .collect();
    arguments
        .first()
        .is_some_and(|a| !a.is_empty())
        .then_some(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_recognised_until_it_ends() {
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let id = ProcessId::of(child.id() as i32).unwrap();
        assert!(id.is_alive());
        let impostor = ProcessId {
            started: id.started + 1,
            ..id
        };
        assert!(!impostor.is_alive());
        impostor.kill().unwrap();
        assert!(
            id.is_alive(),
            "another identity with the same number must not be killed"
        );
        id.kill().unwrap();
        assert!(!id.is_alive());
        child.wait().unwrap();
    }

    #[test]
    fn a_process_lives_on_when_only_its_first_thread_has_ended() {
        const SCRIPT: &str = "import ctypes, threading, time; \
            threading.Thread(target=time.sleep, args=(60,)).start(); \
            ctypes.CDLL(None).syscall(ctypes.c_long(60), 0)";
        let mut child = std::process::Command::new("/usr/bin/python3")
            .args(["-c", SCRIPT])
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let first_thread_ended = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains(") Z ")
        };
        wait_until(Duration::from_secs(20), first_thread_ended).unwrap();
        let id = ProcessId::of(pid).expect("the other thread lives");
        id.kill().unwrap();
        assert!(!id.is_alive());
        child.wait().unwrap();
    }
}
