//! The processes of running VMs' TPMs: swtpm, as libvirt starts it, one a VM.
//!
//! They are found among all processes by their user and by what they were started with, and not by libvirt's pid files: those
//! lie where swtpm's own user may write.

use fleetward_model::VmId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Where the kernel tells of processes.
pub(crate) const PROC: &str = "/proc";

/// A process of a TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) pid: u32,
    /// By a signal or a debugger: it answers nothing until it is continued.
    pub(crate) stopped: bool,
}

/// Where TPMs of VMs are, and whose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// `/proc`.
    pub(crate) proc: &'a Path,
    /// Below it are the states.
    pub(crate) states: &'a Path,
    /// swtpm's user: anybody may start a program of that name with these words.
    pub(crate) user: u32,
}

/// All of them, by their VMs.
pub(crate) fn all(place: &Place<'_>) -> io::Result<HashMap<VmId, Found>> {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir(place.proc)? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // What has ended since is none of them.
        if let Some((vm, process)) = of(place, pid) {
            found.insert(vm, process);
        }
    }
    Ok(found)
}

fn of(place: &Place<'_>, pid: u32) -> Option<(VmId, Found)> {
    let read = |file: &str| std::fs::read(place.proc.join(pid.to_string()).join(file)).ok();
    if read("comm")? != b"swtpm\n" {
        return None;
    }
    let status = read("status")?;
    let user = user_of(&status)?;
    if user != 0 && user != place.user {
        return None;
    }
    let vm = vm_of(&read("cmdline")?, place.states)?;
    let stopped = match state_of(&read("stat")?)? {
        b'T' | b't' => true,
        // It has ended, and only its parent has not noticed yet.
        b'Z' | b'X' => return None,
        // It ends as soon as the kernel lets it.
        _ if was_killed(&status) => return None,
        _ => false,
    };
    Some((vm, Found { pid, stopped }))
}

/// `--tpmstate dir=STATES/VM/tpm2,mode=0600`, and `backend-uri=dir://STATES/VM/tpm2` of a newer libvirt.
fn vm_of(command: &[u8], states: &Path) -> Option<VmId> {
    let mut words = command.split(|byte| *byte == 0);
    words.find(|word| *word == b"--tpmstate")?;
    let value = std::str::from_utf8(words.next()?).ok()?;
    let directories = value.split(',').filter_map(|option| option.split_once('='));
    directories
        .map(|(_, directory)| directory.strip_prefix("dir://").unwrap_or(directory))
        .find_map(|directory| {
            let below = Path::new(directory).strip_prefix(states).ok()?;
            below.to_str()?.strip_suffix("/tpm2")?.parse().ok()
        })
}

/// The user that it acts as: the second number (effective).
///
/// Source: proc(5), `/proc/pid/status`.
pub(crate) fn user_of(status: &[u8]) -> Option<u32> {
    let status = std::str::from_utf8(status).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Whether SIGKILL has been sent to it, or to its main thread.
///
/// Source: proc(5), `/proc/pid/status`: masks of pending signals, SIGKILL is number 9.
fn was_killed(status: &[u8]) -> bool {
    let lines = std::str::from_utf8(status).unwrap_or_default().lines();
    let masks = lines.filter_map(|line| {
        let mask = line
            .strip_prefix("SigPnd:")
            .or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    masks.fold(0, std::ops::BitOr::bitor) & (1 << 8) != 0
}

/// The letter after the name, which is in brackets and may hold any.
///
/// Source: proc(5), `/proc/pid/stat`.
pub(crate) fn state_of(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(end + 2).copied()
}

/// The process of that number, if it is still the VM's.
pub(crate) fn held(place: &Place<'_>, vm: VmId, pid: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // From here on the number is of this process, whatever becomes of it.
    let process = pidfd_open(number, PidfdFlags::empty())?;
    match of(place, pid) {
        Some((whose, _)) if whose == vm => Ok(process),
        Some(_) | None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Lets a process that was stopped go on, if it is still the VM's.
pub(crate) fn wake(place: &Place<'_>, vm: VmId, pid: u32) -> io::Result<()> {
    let process = held(place, vm, pid)?;
    Ok(pidfd_send_signal(&process, Signal::CONT)?)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests make files as they like")]
mod tests {
    use super::*;
    use std::fs;

    const VM: &str = "049ae0d7-a858-45f8-b29b-300739da764b";

    fn process(proc: &Path, pid: u32, name: &str, state: char, command: &[&str]) {
        let directory = proc.join(pid.to_string());
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("comm"), format!("{name}\n")).unwrap();
        fs::write(directory.join("cmdline"), command.join("\0")).unwrap();
        let stat = format!("{pid} ({name}) {state} 1 1");
        fs::write(directory.join("stat"), stat).unwrap();
        let user = match pid {
            16 => 1000,
            _ => 107,
        };
        let status = format!("Name:\t{name}\nUid:\t0\t{user}\t0\t0\n");
        fs::write(directory.join("status"), status).unwrap();
    }

    #[test]
    fn only_processes_that_hold_a_vms_state_are_its_tpm() {
        let proc = tempfile::tempdir().unwrap();
        let own = format!("dir=/states/{VM}/tpm2,mode=0600");
        let swtpm = |state: &str| ["swtpm", "socket", "--tpmstate", state].map(str::to_owned);
        let elsewhere = format!("dir=/pool/{VM}/tpm2");
        let deeper = format!("dir=/states/x/{VM}/tpm2");
        for (pid, name, state, directory) in [
            (10, "bash", 'S', own.as_str()),
            (11, "swtpm", 'Z', &own),
            (12, "swtpm", 'S', &elsewhere),
            (13, "swtpm", 'S', &deeper),
            (14, "swtpm", 'S', "dir=/states/nonsense/tpm2"),
            // Some other user's.
            (16, "swtpm", 'S', &own),
        ] {
            let command = swtpm(directory);
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            process(proc.path(), pid, name, state, &command);
        }
        fs::create_dir(proc.path().join("self")).unwrap();
        let states = Path::new("/states");
        let place = Place {
            proc: proc.path(),
            states,
            user: 107,
        };
        assert_eq!(all(&place).unwrap(), HashMap::new());

        let command = swtpm(&own);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        process(proc.path(), 15, "swtpm", 'T', &command);
        let found = Found {
            pid: 15,
            stopped: true,
        };
        let expected = HashMap::from([(VM.parse().unwrap(), found)]);
        assert_eq!(all(&place).unwrap(), expected);

        let uri = format!("swtpm\0--tpmstate\0backend-uri=dir:///states/{VM}/tpm2,mode=0600\0");
        assert_eq!(vm_of(uri.as_bytes(), states), VM.parse().ok());
    }

    #[test]
    fn a_process_that_was_killed_and_does_not_end_yet_is_no_tpm() {
        let status = |own, shared| {
            let text = format!("Name:\tswtpm\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\tffff\n");
            was_killed(text.as_bytes())
        };
        let (nothing, kill, term) = ("0000000000000000", "0000000000000100", "0000000000004000");
        assert!(status(kill, nothing) && status(nothing, kill));
        assert!(!status(nothing, nothing) && !status(term, term));
    }

    #[test]
    fn a_name_with_brackets_hides_no_state() {
        assert_eq!(state_of(b"7 (a) R (b) T 1"), Some(b'T'));
        assert_eq!(state_of(b"7 (a)"), None);
        assert_eq!(state_of(b""), None);
    }
}
