//! Where root acts by name: what the agent's crates may not call outside `durable`, except in the places listed here.
//!
//! A call by path follows links, waits for pipes and believes what it finds. In a directory that QEMU, swtpm or a user may
//! write, that is `durable`'s `SharedDirectory`'s work (decision 0045). Each exception says why nobody else makes names there.

use crate::layering::source_files;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// The code that runs as root beside foreign processes.
const PLACES: &[&str] = &[
    "agent/src",
    "fleetward-agent/src",
    "hypervisor-libvirt/src",
    "link/src/local.rs",
    "link/src/tunnel",
];

/// Calls that take a path and open it, look through a link at its end, or give it away.
const BY_PATH: &[&str] = &[
    "fs::read(",
    "fs::read_to_string(",
    "fs::metadata(",
    "fs::canonicalize(",
    "fs::copy(",
    "File::open(",
    "OpenOptions::",
    " chown(",
    "::chown(",
    "lchown(",
    "UnixStream::connect(",
];

/// Files that call them all the same.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("agent/src/audit.rs", OWN),
    ("agent/src/config.rs", "the administrator's configuration"),
    (
        "agent/src/confinement.rs",
        "AppArmor's rules, which are root's",
    ),
    ("agent/src/conversions.rs", OWN),
    (
        "agent/src/flash.rs",
        "the size of the firmware: nothing is opened",
    ),
    ("agent/src/keyring/sealing.rs", OWN),
    ("agent/src/keyring/store.rs", OWN),
    ("agent/src/load/machine.rs", KERNEL),
    ("agent/src/membership.rs", OWN),
    ("agent/src/networks.rs", KERNEL),
    (
        "agent/src/observe.rs",
        "sizes of disks for people to see: nothing is opened",
    ),
    ("agent/src/tpm_pool.rs", OWN),
    (
        "fleetward-agent/src/typed_secret.rs",
        "a password or a token may come through a pipe",
    ),
    ("fleetward-agent/src/main.rs", KERNEL),
    (
        "hypervisor-libvirt/src/accelerator.rs",
        "a directory of ours, and Debian's firmware",
    ),
    ("hypervisor-libvirt/src/conversion/look.rs", OWN),
    ("hypervisor-libvirt/src/conversion/unpack.rs", OWN),
    ("hypervisor-libvirt/src/conversion/work.rs", OWN),
    ("hypervisor-libvirt/src/disk_io.rs", KERNEL),
    (
        "hypervisor-libvirt/src/ek_certificate.rs",
        "the socket of the agent that started this program",
    ),
    ("hypervisor-libvirt/src/facts.rs", KERNEL),
    (
        "hypervisor-libvirt/src/owner.rs",
        "libvirt's configuration, which is root's",
    ),
    ("hypervisor-libvirt/src/qemu_process.rs", KERNEL),
    ("hypervisor-libvirt/src/tpm_command.rs", OWN),
    ("hypervisor-libvirt/src/tpm_end.rs", KERNEL),
    (
        "hypervisor-libvirt/src/tpm_library.rs",
        "files of the kernel, and whether programs and libraries of the system are still the same",
    ),
    ("hypervisor-libvirt/src/tpm_process.rs", KERNEL),
    ("hypervisor-libvirt/src/tpm_questions.rs", KERNEL),
    ("link/src/local.rs", "by the descriptor that durable gives"),
];
const OWN: &str = "a directory of the agent's own, which nobody else may write";
const KERNEL: &str = "files of the kernel";

/// Calls by path that are in no list, and exceptions that nothing needs any more.
pub(crate) fn violations() -> Result<Vec<String>> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut found, mut needed) = (Vec::new(), BTreeSet::new());
    for place in PLACES {
        let place = crates.join(place);
        let files = if place.is_dir() {
            source_files(&place)?
        } else {
            vec![place]
        };
        for file in files {
            let name = file.strip_prefix(&crates).unwrap_or(&file);
            let name = name.to_string_lossy().into_owned();
            // Modules of tests alone.
            if name.ends_with("/tests.rs")
                || name.contains("/tests/")
                || name.ends_with("/former.rs")
            {
                continue;
            }
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            for (number, call) in by_path(&text) {
                if EXCEPTIONS.iter().any(|(excepted, _)| *excepted == name) {
                    needed.insert(name.clone());
                } else {
                    found.push(format!(
                        "crates/{name}:{number}: {call}...) by path, as root: use durable's open_expected, read_expected or \
                         SharedDirectory (decision 0045)"
                    ));
                }
            }
        }
    }
    let unneeded = EXCEPTIONS
        .iter()
        .filter(|(name, _)| !needed.contains(*name));
    found.extend(unneeded.map(|(name, _)| format!("crates/{name}: needs no exception any more")));
    Ok(found)
}

/// Numbers of the lines with such a call. Comments do not count, nor do tests, which stand last.
fn by_path(text: &str) -> impl Iterator<Item = (usize, &'static str)> {
    let tests = text
        .find("\n#[cfg(test)]\nmod tests {")
        .unwrap_or(text.len());
    let code = text[..tests].lines().enumerate();
    code.filter(|(_, line)| !line.trim_start().starts_with("//"))
        .filter_map(|(at, line)| {
            let call = BY_PATH.iter().find(|call| line.contains(**call))?;
            Some((at + 1, call.trim_start()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_by_path_is_found_and_one_by_descriptor_is_not() {
        let text = "// std::fs::read(path)\nlet a = std::fs::read(path);\nfchown(file, uid, gid)?;\n chown(path)\n\
                    #[cfg(test)]\nmod tests { std::fs::read(path) }\n";
        let found: Vec<_> = by_path(text).collect();
        assert_eq!(found, [(2, "fs::read("), (4, "chown(")]);
    }

    #[test]
    fn nothing_that_runs_as_root_acts_by_path_unlisted() {
        assert_eq!(violations().expect("the sources can be read"), [""; 0]);
    }
}
