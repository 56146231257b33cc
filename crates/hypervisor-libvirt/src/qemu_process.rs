//! Running machines whose process, QEMU, was stopped: found in /proc, as the processes of TPMs are.
//!
//! Nobody asks QEMU a question for this: a question to one that hangs holds up everything else that is done with the domain.

use crate::tpm_process::{state_of, user_of};
use fleetward_model::VmId;
use fleetward_model::vm::QemuProcess;
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// The processes of domains that were stopped, by a signal or a debugger. `proc` is `/proc`, `user` QEMU's.
pub(crate) fn stopped(proc: &Path, user: u32) -> io::Result<HashMap<VmId, QemuProcess>> {
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
        if let Some(vm) = stopped_vm(proc, user, pid) {
            found.insert(vm, QemuProcess::Stopped { pid });
        }
    }
    Ok(found)
}

fn stopped_vm(proc: &Path, user: u32, pid: u32) -> Option<VmId> {
    let read = |file: &str| std::fs::read(proc.join(pid.to_string()).join(file)).ok();
    if !read("comm")?.starts_with(b"qemu") || !matches!(state_of(&read("stat")?)?, b'T' | b't') {
        return None;
    }
    let its = user_of(&read("status")?)?;
    if its != 0 && its != user {
        return None;
    }
    let command = read("cmdline")?;
    let mut words = command.split(|byte| *byte == 0);
    words.find(|word| *word == b"-uuid")?;
    std::str::from_utf8(words.next()?).ok()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests make files as they like")]
mod tests {
    use super::*;
    use std::fs;

    const VM: &str = "049ae0d7-a858-45f8-b29b-300739da764b";

    #[test]
    fn only_stopped_processes_of_qemus_user_that_are_a_domain_are_named() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: u32, name: &str, state: char, user: u32, command: &str| {
            let directory = proc.path().join(pid.to_string());
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("comm"), format!("{name}\n")).unwrap();
            fs::write(directory.join("cmdline"), command.replace(' ', "\0")).unwrap();
            let stat = format!("{pid} ({name}) {state} 1 1");
            fs::write(directory.join("stat"), stat).unwrap();
            let status = format!("Name:\t{name}\nUid:\t{user}\t{user}\t0\t0\n");
            fs::write(directory.join("status"), status).unwrap();
        };
        let own = format!("/usr/bin/qemu-system-x86_64 -name guest=web -uuid {VM} -display none");
        process(10, "qemu-system-x86", 'S', 64055, &own);
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
        assert_eq!(stopped(proc.path(), 64055).unwrap(), HashMap::new());
        process(15, "qemu-system-x86", 'T', 64055, &own);
        let expected = HashMap::from([(VM.parse().unwrap(), QemuProcess::Stopped { pid: 15 })]);
        assert_eq!(stopped(proc.path(), 64055).unwrap(), expected);
    }
}
