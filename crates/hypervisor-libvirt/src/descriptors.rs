//! Copies of sockets that another process has open (`pidfd_getfd`).
//!
//! It needs `CAP_SYS_PTRACE`, which root has unless its unit takes it away.

use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::io;
use std::os::fd::OwnedFd;

/// Descriptors of a process that are looked at.
const MOST: usize = 4096;

/// Copies of all its sockets; `process` is a descriptor of the process with the number `pid`. Those that are closed meanwhile
/// are left out.
pub(crate) fn sockets(process: &OwnedFd, pid: u32) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for descriptor in std::fs::read_dir(format!("/proc/{pid}/fd"))?.take(MOST) {
        let descriptor = descriptor?;
        let target = std::fs::read_link(descriptor.path());
        if !target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:")) {
            continue;
        }
        let name = descriptor.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Ok(copy) = pidfd_getfd(process, number, PidfdGetfdFlags::empty()) {
            found.push(copy);
        }
    }
    Ok(found)
}
