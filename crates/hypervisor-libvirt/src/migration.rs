//! Live migration: peer to peer between two libvirtds, over Unix sockets that the agents forward.
//!
//! ```text
//!  running --perform--> running --switch-over--> paused --finish, confirm--> stopped (migrated), still defined
//!     ^                    |                        |
//!     +---- any failure ---+------ any failure -----+
//! ```
//! At the destination the copy changes from *arriving* to *paused*, and stays paused until it is resumed there.
//!
//! Observed with libvirt 11.3 and QEMU 10.0; the crash recovery above this crate relies on it:
//! - The source's libvirtd conducts the migration. If the process that requested it dies, it continues as long as the
//!   forwarded sockets exist. Here the forwarder dies with that process, so in practice the migration fails.
//! - When the sockets break during perform, the domain keeps running at the source. The destination's copy and its TPM
//!   state disappear; the UEFI variables file and the volumes stay there.
//! - When they break after the switch-over, before libvirt at the source knows the result, the domain keeps running at
//!   the source *and* a paused, persistent copy stays at the destination. A paused copy proves nothing.
//! - When the source's libvirtd dies in the switch-over, the domain stays paused ("migrating") there, without a job,
//!   after libvirtd's return. It can be resumed there, or destroyed there and resumed at the destination; never both.
//! - When libvirtd restarts, it forgets why a domain stopped, and every ephemeral secret.
//! - After success the source keeps definition, UEFI variables, TPM state and volumes.

use crate::binding::{Connection, JobStats, abort_job, job_stats};
use crate::connection::Libvirt;
use crate::domain_edit;
use crate::host::{domain, failed, observe_state, resume, wrong_state};
use crate::said;
use crate::storage_edit;
use fleetward_hypervisor::{
    DomainState, Error, MigrationDisks, MigrationOutcome, MigrationProgress, MigrationRequest,
    Result, StopReason,
};
use fleetward_model::VmId;
use fleetward_model::error::chain;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use virt::domain::{Domain, MigrateParameters};
use virt::error::ErrorNumber;

/// How often progress is looked up.
const PACE: Duration = Duration::from_millis(250);
/// How long an abandoned migration may take to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// A migration that takes longer is not going to end.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// See [`fleetward_hypervisor::Hypervisor::migrate`]. When the future is dropped the migration goes on.
pub(crate) async fn migrate(
    libvirt: &Libvirt,
    id: VmId,
    request: &MigrationRequest,
    progress: watch::Sender<MigrationProgress>,
    cancel: CancellationToken,
) -> Result<MigrationOutcome> {
    let request = request.clone();
    let perform = libvirt.call_alone(LIMIT, move |connection| perform(connection, id, &request));
    tokio::pin!(perform);
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let result = loop {
        tokio::select! {
            result = &mut perform => break result,
            _ = ticks.tick() => watch_once(libvirt, id, &progress, &cancel).await,
        }
    };
    match result {
        Ok((outcome, figures)) => {
            // A small guest is gone before the first look.
            progress.send_replace(progress_of(&figures));
            Ok(outcome)
        }
        Err(Error::Migration(_) | Error::MigrationFull(_)) if cancel.is_cancelled() => {
            Err(Error::Cancelled)
        }
        Err(error) => Err(error),
    }
}

/// One look at a migration under way: progress, and the abort when it is wanted. Errors pass: the next look follows,
/// and the migration's own result counts.
async fn watch_once(
    libvirt: &Libvirt,
    id: VmId,
    progress: &watch::Sender<MigrationProgress>,
    cancel: &CancellationToken,
) {
    let abort = cancel.is_cancelled();
    let seen = libvirt
        .call(move |connection| {
            let domain = domain(connection, id)?;
            let stats = job_stats(&domain, false).map_err(failed("see progress"))?;
            if abort && stats.outgoing {
                abort_job(&domain).map_err(failed("abort"))?;
            }
            Ok(stats)
        })
        .await;
    match seen {
        Ok(stats) if stats.outgoing => {
            progress.send_replace(progress_of(&stats));
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(vm = %id, error = %chain(&error), "no progress to be seen"),
    }
}

/// The migration itself; blocks until it has ended one way or the other.
fn perform(
    connection: &Connection,
    id: VmId,
    request: &MigrationRequest,
) -> Result<(MigrationOutcome, JobStats)> {
    let domain = domain(connection, id)?;
    let state = observe_state(&domain)?;
    if state != DomainState::Running {
        return Err(wrong_state(id, state, "migrate"));
    }
    let (parameters, flags) = parameters(&domain, request)?;
    let destination = format!(
        "qemu+unix:///system?socket={}",
        percent_encoded(&request.libvirt_socket)
    );
    let started = Instant::now();
    match domain.migrate_to_uri3(Some(&destination), parameters, flags) {
        Ok(()) => Ok(outcome(&domain, started.elapsed())),
        Err(error) => {
            if !connection.is_alive().unwrap_or(false) {
                return Err(Error::Unavailable(said::cause(error)));
            }
            match observe_state(&domain)? {
                // It went, and only the report of it failed.
                DomainState::Stopped(StopReason::Migrated) => {
                    Ok(outcome(&domain, started.elapsed()))
                }
                DomainState::Running | DomainState::Paused { .. } | DomainState::Stopped(_) => {
                    let full = said::of_full_disk(&error);
                    let cause = said::cause(error);
                    Err(if full {
                        Error::MigrationFull(cause)
                    } else {
                        Error::Migration(cause)
                    })
                }
            }
        }
    }
}

fn parameters(domain: &Domain, request: &MigrationRequest) -> Result<(MigrateParameters, u32)> {
    let definition = |flags| {
        let xml = domain
            .get_xml_desc(flags)
            .map_err(failed("read the domain's definition"))?;
        domain_edit::with_metadata(&xml, &request.arriving)
            .and_then(|xml| domain_edit::without_bases(&xml))
            .and_then(|xml| domain_edit::with_nic_places(&xml, &request.nic_places))
            .and_then(|xml| storage_edit::with_io(&xml, &request.disk_io))
            .map_err(|because| Error::Migration(because.into()))
    };
    let running = definition(virt_sys::VIR_DOMAIN_XML_MIGRATABLE)?;
    // What waits for the next start, and edits by hand, are only in the definition that does not run. Its passwords go along.
    let at_next_start =
        definition(virt_sys::VIR_DOMAIN_XML_INACTIVE | virt_sys::VIR_DOMAIN_XML_SECURE)?;
    let mut flags = virt_sys::VIR_MIGRATE_LIVE
        | virt_sys::VIR_MIGRATE_PEER2PEER
        | virt_sys::VIR_MIGRATE_PERSIST_DEST
        | virt_sys::VIR_MIGRATE_PAUSED
        | virt_sys::VIR_MIGRATE_ABORT_ON_ERROR
        | virt_sys::VIR_MIGRATE_AUTO_CONVERGE;
    let mut parameters = MigrateParameters {
        uri: Some(socket_uri(&request.memory_socket)),
        dest_xml: Some(running),
        persist_xml: Some(at_next_start),
        ..MigrateParameters::default()
    };
    match &request.disks {
        // libvirt knows shared directories only by their file system's type; the agents have compared the marker
        // file in the directory itself.
        MigrationDisks::Shared => flags |= virt_sys::VIR_MIGRATE_UNSAFE,
        MigrationDisks::Copy(targets) if targets.is_empty() => {}
        MigrationDisks::Copy(targets) => {
            flags |= virt_sys::VIR_MIGRATE_NON_SHARED_DISK;
            parameters.migrate_disks = targets.clone();
            parameters.disks_uri = Some(socket_uri(&request.disk_socket));
        }
    }
    Ok((parameters, flags))
}

/// What libvirt kept of the finished job; the clock's own figure where it kept nothing.
fn outcome(domain: &Domain, elapsed: Duration) -> (MigrationOutcome, JobStats) {
    let stats = job_stats(domain, true).unwrap_or_default();
    let elapsed = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let outcome = MigrationOutcome {
        total_ms: stats.elapsed_ms.unwrap_or(elapsed),
        downtime_ms: stats.downtime_ms,
        transferred: stats.data_done,
    };
    (outcome, stats)
}

fn progress_of(stats: &JobStats) -> MigrationProgress {
    MigrationProgress {
        memory_done: stats.memory_done,
        memory_total: stats.memory_total,
        disk_done: stats.disk_done,
        disk_total: stats.disk_total,
    }
}

/// See [`fleetward_hypervisor::Hypervisor::abort_leftover_migration`].
pub(crate) async fn abort_leftover(libvirt: &Libvirt, id: VmId) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let settled = libvirt
            .call_alone(PATIENCE, move |connection| abort_once(connection, id))
            .await?;
        if settled {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Migration(
                "the migration that was left behind does not end".into(),
            ));
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Whether nothing is left of a migration.
fn abort_once(connection: &Connection, id: VmId) -> Result<bool> {
    let domain = match domain(connection, id) {
        Ok(domain) => domain,
        Err(Error::NoDomain(_)) => return Ok(true),
        Err(error) => return Err(error),
    };
    match job_stats(&domain, false) {
        Ok(stats) if stats.outgoing => match abort_job(&domain) {
            // No job any more: look again.
            Err(error) if error.code() != ErrorNumber::OperationInvalid => {
                Err(failed("abort the migration")(error))
            }
            _ => Ok(false),
        },
        Ok(_) => {
            let (state, reason) = domain.get_state().map_err(failed("see the state"))?;
            let left_behind = state == virt_sys::VIR_DOMAIN_PAUSED
                && reason as virt_sys::virDomainPausedReason
                    == virt_sys::VIR_DOMAIN_PAUSED_MIGRATION;
            if left_behind {
                resume(&domain, id)?;
            }
            Ok(true)
        }
        // Not running, or arriving here.
        Err(error)
            if matches!(
                error.code(),
                ErrorNumber::OperationInvalid | ErrorNumber::OperationUnsupported
            ) =>
        {
            Ok(true)
        }
        Err(error) => Err(failed("look for a migration")(error)),
    }
}

/// Whether a domain that is paused for migration is the copy that arrives. The source's is not: libvirt tells a
/// migration's figures only there.
pub(crate) fn arrives(domain: &Domain) -> bool {
    job_stats(domain, false).is_err_and(|error| error.code() == ErrorNumber::OperationUnsupported)
}

fn socket_uri(path: &Path) -> String {
    format!("unix://{}", percent_encoded(path))
}

/// Everything but what stands for itself in any part of a URI.
fn percent_encoded(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("writing to memory");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_stay_one_argument_of_the_uri() {
        let path = Path::new("/run/fleetward/a b&c/x.sock");
        assert_eq!(socket_uri(path), "unix:///run/fleetward/a%20b%26c/x.sock");
    }
}
