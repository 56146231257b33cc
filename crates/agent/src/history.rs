//! TPMs that were removed from VMs of this host but are kept: `history/<vm>/<time>/`, each with its state and, if
//! there are any, its key protector and EK certificate.
//!
//! Commands restore from the controller's copy; this history is the last resort when only the host is left. The
//! retention rule is the controller's (`model::retention`), but that nothing goes for its age. Deleting the VM deletes the history on the
//! host that has it then; hosts that had it before report what they keep, and the controller asks them to remove it.

use crate::failure::{Result, Trouble};
use crate::host::Host;
use crate::keyring::Purpose;
use fleetward_durable::{self as durable, Access};
use fleetward_hypervisor::Error as HypervisorError;
use fleetward_model::retention::{Candidate, Retention, TpmIdentity};
use fleetward_model::{ErrorCode, VmId};
use fleetward_protector::KeyProtector;
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

const STATE: &str = "tpm2-00.permall";
const PROTECTOR: &str = "protector.der";
const EK_CERTIFICATE: &str = "ek.der";

/// What is kept of a TPM.
pub(crate) struct Kept<'a> {
    pub(crate) state: &'a [u8],
    pub(crate) protector: Option<&'a [u8]>,
    pub(crate) ek_certificate: Option<&'a [u8]>,
}

/// How many stay. Nothing goes for its age: nobody confirms this host's clock.
const RETENTION: Retention = Retention {
    versions: 10,
    days: u32::MAX,
};

/// Keeps a TPM in the directory of all histories; it is on the disk when this returns. What that makes superfluous goes.
pub(crate) fn keep(history: &Path, vm: VmId, kept: &Kept<'_>) -> io::Result<()> {
    keep_at(history, vm, kept, OffsetDateTime::now_utc())
}

/// `now` is the time of a clock that may be wrong.
fn keep_at(history: &Path, vm: VmId, kept: &Kept<'_>, now: OffsetDateTime) -> io::Result<()> {
    durable::make_directory(&of(history, vm), 0o700)?;
    // The newest is the last by its name, under a clock that was set back, too.
    let last = times(history, vm)?.into_iter().map(|(made, _)| made).max();
    let made = last.map_or(now, |last| now.max(last + Duration::microseconds(1)));
    let time = made.format(&Rfc3339).map_err(io::Error::other)?;
    let directory = of(history, vm).join(time);
    durable::make_directory(&directory, 0o700)?;
    durable::replace(&directory.join(STATE), kept.state, Access::PRIVATE)?;
    let more = [
        (PROTECTOR, kept.protector),
        (EK_CERTIFICATE, kept.ek_certificate),
    ];
    for (name, content) in more {
        if let Some(content) = content {
            durable::replace(&directory.join(name), content, Access::PRIVATE)?;
        }
    }
    // A version too many does no harm.
    if let Err(error) = apply_retention(history, vm, made) {
        tracing::warn!(%vm, %error, "old versions stay in the history");
    }
    Ok(())
}

/// Removes all that was kept of a VM that was deleted for good.
pub(crate) fn forget(history: &Path, vm: VmId) -> io::Result<()> {
    durable::remove_tree(&of(history, vm))
}

/// The same for a VM that has left this host before it was deleted, asked for by the controller.
pub(crate) async fn forget_former(host: &Host, vm: VmId) -> Result<()> {
    let here = |because: &str| {
        let what = format!("the history of VM {vm} stays");
        Trouble::refuse(ErrorCode::VmStateWrong, what, because)
    };
    if host.operations.is_busy(vm) || host.record(vm).transit()?.is_some() {
        return Err(here("an operation works on it"));
    }
    match host.hypervisor.inspect(vm).await {
        Err(HypervisorError::NoDomain(_)) => {}
        Ok(_) => return Err(here("the VM is on this host")),
        Err(error) => return Err(Trouble::hypervisor(format!("looking at VM {vm}"), &error)),
    }
    let directory = host.layout.history();
    if !of(&directory, vm).exists() {
        return Ok(());
    }
    let purpose = Purpose {
        actor: "controller".into(),
        reason: "the VM was deleted for good after it had left this host".into(),
        job: None,
    };
    host.keyring.record_removal(vm, &purpose)?;
    forget(&directory, vm)
        .map_err(|error| Trouble::file(format!("the history of VM {vm}"), &directory, &error))
}

/// The VMs of which something is kept. What cannot be read is not reported, and so it stays.
pub(crate) fn vms(history: &Path) -> Vec<VmId> {
    let entries = std::fs::read_dir(history).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut vms: Vec<VmId> = named.collect();
    vms.sort();
    vms
}

fn of(history: &Path, vm: VmId) -> PathBuf {
    history.join(vm.to_string())
}

/// All versions with their times. What nobody here has made is left alone.
fn times(history: &Path, vm: VmId) -> io::Result<Vec<(OffsetDateTime, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(of(history, vm))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(Ok(made)) = name.map(|name| OffsetDateTime::parse(name, &Rfc3339)) {
            found.push((made, path));
        }
    }
    Ok(found)
}

fn apply_retention(history: &Path, vm: VmId, now: OffsetDateTime) -> io::Result<()> {
    let mut versions = Vec::new();
    for (made, path) in times(history, vm)? {
        versions.push((candidate(&path, made)?, path));
    }
    versions.sort_by_key(|(candidate, _)| candidate.made);
    let candidates: Vec<_> = versions.iter().map(|(c, _)| c.clone()).collect();
    for at in RETENTION.superfluous(&candidates, now) {
        durable::remove_tree(&versions[at].1)?;
    }
    Ok(())
}

fn candidate(path: &Path, made: OffsetDateTime) -> io::Result<Candidate> {
    let protector = durable::read(&path.join(PROTECTOR))?;
    let key = protector
        .and_then(|der| KeyProtector::from_der(&der).ok())
        .map(|protector| protector.inspect().binding.key_id);
    let certificate = durable::read(&path.join(EK_CERTIFICATE))?;
    let tpm = match (certificate, key) {
        (Some(der), _) => TpmIdentity::Certificate(hex::encode(Sha256::digest(der))),
        (None, Some(key)) => TpmIdentity::Key(key),
        (None, None) => TpmIdentity::Unknown,
    };
    Ok(Candidate {
        tpm,
        key,
        made,
        written: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const VM: VmId = VmId(Uuid::from_u128(7));

    fn kept(history: &Path) -> Vec<u8> {
        let mut states: Vec<u8> = std::fs::read_dir(of(history, VM))
            .expect("a directory")
            .map(|entry| std::fs::read(entry.expect("entry").path().join(STATE)).expect("state")[0])
            .collect();
        states.sort_unstable();
        states
    }

    #[test]
    fn a_clock_of_another_decade_removes_nothing_and_the_last_one_stays_the_last() {
        let dir = tempfile::tempdir().expect("directory");
        let now = time::macros::datetime!(2026-11-28 12:00 UTC);
        let years = Duration::days(14 * 365);
        let keep_one = |state: u8, at: OffsetDateTime| {
            let one = Kept {
                state: &[state],
                protector: None,
                ek_certificate: Some(b"ek"),
            };
            keep_at(dir.path(), VM, &one, at).expect("kept");
        };
        for state in 1..=9 {
            keep_one(state, now);
        }
        keep_one(10, now + years);
        assert_eq!(kept(dir.path()), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        // Right again, then behind: each is the newest when it is kept, and the oldest goes.
        keep_one(11, now);
        keep_one(12, now - years);
        assert_eq!(kept(dir.path()), [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }

    #[test]
    fn many_versions_of_a_new_tpm_leave_the_last_one_of_the_former() {
        let dir = tempfile::tempdir().expect("directory");
        let history = dir.path();
        let keep_one = |state: u8, ek: &[u8]| {
            let one = Kept {
                state: &[state],
                protector: None,
                ek_certificate: Some(ek),
            };
            keep(history, VM, &one).expect("kept");
        };
        keep_one(1, b"former");
        keep_one(2, b"former");
        for state in 3..=20 {
            keep_one(state, b"new");
        }
        let mut expected = vec![2];
        expected.extend(11..=20);
        assert_eq!(kept(history), expected);
        std::fs::create_dir(history.join("notes")).expect("somebody's directory");
        assert_eq!(vms(history), [VM]);
        forget(history, VM).expect("gone");
        assert_eq!(vms(history), []);
        forget(history, VM).expect("twice");
        assert!(!of(history, VM).exists());
    }
}
