//! Copies of a running domain's disks, made with libvirt's backup job in push mode.
//!
//! QEMU copies a block before the guest overwrites it, so the files hold the content at the beginning of the job. The
//! structure of the domain's own disks never changes: a crash cannot leave an overlay.
//!
//! Observed with libvirt 11.3 and QEMU 10.0: a job can begin while the domain is paused; it continues when the process
//! that requested it dies; libvirt leaves the file to root.

use crate::binding::{JobStats, abort_job, begin_backup, job_stats};
use crate::connection::Libvirt;
use crate::host::{domain, failed, observe_state, wrong_state};
use crate::overlay::DiskFiles;
use crate::said;
use fleetward_hypervisor::{CopyState, DomainState, Error, Result};
use fleetward_model::VmId;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use virt::domain::Domain;
use virt::error::ErrorNumber;

const BACKUP: DiskFiles = DiskFiles {
    root: ("domainbackup", Some(("mode", "push"))),
    disk: ("type", "file"),
    file: "target",
};

/// How often an ending job is looked at.
const PACE: Duration = Duration::from_millis(50);
/// How long an aborted job may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn begin(domain: &Domain, id: VmId, disks: &[(String, PathBuf)]) -> Result<()> {
    match observe_state(domain)? {
        DomainState::Running | DomainState::Paused { incoming: false } => {}
        state => return Err(wrong_state(id, state, "have its disks copied")),
    }
    begin_backup(domain, &BACKUP.xml(disks)).map_err(|error| {
        if said::of_full_disk(&error) {
            let path = disks.first().map(|(_, path)| path.clone());
            return Error::NoSpace {
                path: path.unwrap_or_default(),
            };
        }
        failed("begin to copy the domain's disks")(error)
    })
}

pub(crate) fn state(domain: &Domain) -> Result<CopyState> {
    if let Some(stats) = current(domain)? {
        return Ok(CopyState::Running {
            done: stats.disk_done,
            total: stats.disk_total,
        });
    }
    let last = match job_stats(domain, true) {
        Ok(stats) => stats,
        // It is off, and the copy ended with it.
        Err(error) if error.code() == ErrorNumber::OperationInvalid => return Ok(CopyState::None),
        Err(error) => return Err(failed("see how the copy ended")(error)),
    };
    Ok(match (last.backup, last.success) {
        (false, _) => CopyState::None,
        (true, Some(true) | None) => CopyState::Done,
        (true, Some(false)) => match last.error {
            Some(because) if said::words_of_full_disk(&because) => CopyState::Full(because),
            Some(because) => CopyState::Failed(because),
            None => CopyState::Failed("libvirt does not say why".into()),
        },
    })
}

/// The copy under way.
fn current(domain: &Domain) -> Result<Option<JobStats>> {
    match job_stats(domain, false) {
        Ok(stats) => Ok(stats.backup.then_some(stats)),
        Err(error)
            if matches!(
                error.code(),
                ErrorNumber::OperationInvalid | ErrorNumber::OperationUnsupported
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed("look for a copy")(error)),
    }
}

/// See [`fleetward_hypervisor::Hypervisor::abort_copy`].
pub(crate) async fn abort(libvirt: &Libvirt, id: VmId) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ended = libvirt
            .call(move |connection| {
                let domain = match domain(connection, id) {
                    Ok(domain) => domain,
                    Err(Error::NoDomain(_)) => return Ok(true),
                    Err(error) => return Err(error),
                };
                if current(&domain)?.is_none() {
                    return Ok(true);
                }
                match abort_job(&domain) {
                    // Ended since we looked.
                    Err(error) if error.code() != ErrorNumber::OperationInvalid => {
                        Err(failed("end the copy")(error))
                    }
                    _ => Ok(false),
                }
            })
            .await?;
        if ended {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Libvirt {
                attempt: "end the copy",
                source: "it does not end".into(),
            });
        }
        tokio::time::sleep(PACE).await;
    }
}
