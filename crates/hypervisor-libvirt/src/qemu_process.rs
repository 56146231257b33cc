//! The processes of running machines, QEMU: found in /proc, as the processes of TPMs are, with what keeps one from answering.
//!
//! Nobody asks QEMU a question for this: a question to one that hangs holds up everything else that is done with the domain.

use crate::tpm_process::{state_of, user_of};
use fleetward_hypervisor::MachineSeen;
use fleetward_model::VmId;
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// The processes of domains. `proc` is `/proc`, `user` QEMU's.
pub(crate) fn all(proc: &Path, user: u32) -> io::Result<HashMap<VmId, MachineSeen>> {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir(proc)? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // What has ended since is none of them.
        if let Some((vm, seen)) = of(proc, user, pid) {
            found.insert(vm, seen);
        }
    }
    Ok(found)
}

fn of(proc: &Path, user: u32, pid: u32) -> Option<(VmId, MachineSeen)> {
    let read = |file: &str| std::fs::read(proc.join(pid.to_string()).join(file)).ok();
    if !read("comm")?.starts_with(b"qemu") {
        return None;
    }
    let status = read("status")?;
    let its = user_of(&status)?;
    if its != 0 && its != user {
        return None;
    }
    let command = read("cmdline")?;
    let mut words = command.split(|byte| *byte == 0);
    words.find(|word| *word == b"-uuid")?;
    let vm = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let state = state_of(&read("stat")?)?;
    let seen = MachineSeen {
        pid: Some(pid),
        stopped: matches!(state, b'T' | b't'),
        in_kernel: (state == b'D').then(|| waits_of(&status)).flatten(),
        unanswered: None,
    };
    Some((vm, seen))
}

/// How often the process's main thread, which answers libvirt, has begun to wait.
///
/// Source: proc(5), `/proc/pid/status`.
fn waits_of(status: &[u8]) -> Option<u64> {
    let status = std::str::from_utf8(status).ok()?;
    let mut lines = status.lines();
    let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    count.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests make files as they like")]
mod tests {
    use super::*;
    use std::fs;

    const VM: &str = "049ae0d7-a858-45f8-b29b-300739da764b";

    #[test]
    fn only_processes_of_qemus_user_that_are_a_domain_are_looked_at() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: u32, name: &str, state: char, user: u32, command: &str| {
            let directory = proc.path().join(pid.to_string());
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("comm"), format!("{name}\n")).unwrap();
            fs::write(directory.join("cmdline"), command.replace(' ', "\0")).unwrap();
            let stat = format!("{pid} ({name}) {state} 1 1");
            fs::write(directory.join("stat"), stat).unwrap();
            let status = format!(
                "Name:\t{name}\nUid:\t{user}\t{user}\t0\t0\nvoluntary_ctxt_switches:\t42\n\
                nonvoluntary_ctxt_switches:\t7\n"
            );
            fs::write(directory.join("status"), status).unwrap();
        };
        let own = format!("/usr/bin/qemu-system-x86_64 -name guest=web -uuid {VM} -display none");
        process(11, "bash", 'T', 64055, &own);
        process(12, "qemu-system-x86", 'T', 1000, &own);
        process(
            13,
            "qemu-system-x86",
            'T',
            64055,
            "qemu-system-x86_64 -uuid",
        );
        process(14, "qemu-img", 'T', 64055, "qemu-img convert");
        assert_eq!(all(proc.path(), 64055).unwrap(), HashMap::new());
        for (pid, state, stopped, in_kernel) in [
            (15, 'S', false, None),
            (16, 'T', true, None),
            (17, 't', true, None),
            (18, 'D', false, Some(42)),
        ] {
            process(pid, "qemu-system-x86", state, 64055, &own);
            let expected = MachineSeen {
                pid: Some(pid),
                stopped,
                in_kernel,
                unanswered: None,
            };
            assert_eq!(
                all(proc.path(), 64055).unwrap(),
                HashMap::from([(VM.parse().unwrap(), expected)])
            );
            fs::remove_dir_all(proc.path().join(pid.to_string())).unwrap();
        }
    }
}
