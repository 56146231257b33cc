//! A disk of a running domain that grows, or moves to another volume: QEMU's mirror, then the switch to the copy.
//!
//! ```text
//!   begin ── copying ── mirrored ── finish: the domain goes on over the new volume only
//!              └───────────┴── abort, or the domain ends: it goes on over its present one
//! ```
//! QEMU copies by itself when the process that asked for it dies. libvirt forgets the job when the domain ends, and the
//! definition has the present volume until it is changed.

use crate::binding::{block_copy, block_job, block_job_abort};
use crate::disk_xml::mirror_element;
use crate::domain_edit::{child, devices, parse};
use crate::host::{failed, observe_state, wrong_state};
use crate::said;
use crate::storage_edit::find;
use fleetward_hypervisor::{DomainState, Error, MoveState, Result};
use fleetward_model::host::DiskIo;
use fleetward_model::{ByteSize, VmId};
use std::path::Path;
use virt::domain::Domain;
use virt::error::ErrorNumber;

/// See [`fleetward_hypervisor::Hypervisor::grow_disk`].
pub(crate) fn grow(domain: &Domain, id: VmId, target: &str, size: ByteSize) -> Result<()> {
    require_process(domain, id, "have a disk made larger")?;
    let found = domain
        .get_block_info(target, 0)
        .map_err(failed("tell a disk's size"))?;
    if found.capacity >= size.bytes() {
        return Ok(());
    }
    let flags = virt_sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES;
    match domain.block_resize(target, size.bytes(), flags) {
        Ok(_) => Ok(()),
        Err(error) if said::of_full_disk(&error) => Err(Error::NoSpace {
            path: target.into(),
        }),
        Err(error) => Err(failed("make a disk larger")(error)),
    }
}

pub(crate) fn begin(
    domain: &Domain,
    id: VmId,
    target: &str,
    path: &Path,
    io: DiskIo,
) -> Result<()> {
    require_process(domain, id, "have a disk moved")?;
    let flags =
        virt_sys::VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | virt_sys::VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB;
    match block_copy(domain, target, &mirror_element(path, io), flags) {
        Ok(()) => Ok(()),
        Err(error) if said::of_full_disk(&error) => Err(Error::NoSpace { path: path.into() }),
        Err(error) => Err(failed("begin to move a disk")(error)),
    }
}

pub(crate) fn state(domain: &Domain, target: &str) -> Result<MoveState> {
    if !domain.is_active().map_err(failed("look at the domain"))? {
        return Ok(MoveState::Still);
    }
    let xml = domain
        .get_xml_desc(0)
        .map_err(failed("read the running domain"))?;
    let Ok(document) = parse(&xml) else {
        return Ok(MoveState::Still);
    };
    let mirror = devices(document.root_element())
        .ok()
        .and_then(|devices| find(devices, target))
        .and_then(|disk| child(disk, "mirror"));
    let Some(mirror) = mirror else {
        return Ok(MoveState::Still);
    };
    if mirror.attribute("ready") == Some("yes") {
        return Ok(MoveState::Mirrored);
    }
    let figures = match block_job(domain, target) {
        Ok(figures) => figures.unwrap_or_default(),
        Err(error) => return Err(failed("see how far a disk has moved")(error)),
    };
    Ok(MoveState::Copying {
        done: figures.done,
        total: figures.total,
    })
}

pub(crate) fn finish(domain: &Domain, target: &str) -> Result<()> {
    block_job_abort(domain, target, virt_sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        .map_err(failed("switch a disk to its new volume"))
}

pub(crate) fn abort(domain: &Domain, target: &str) -> Result<()> {
    if state(domain, target)? == MoveState::Still {
        return Ok(());
    }
    match block_job_abort(domain, target, 0) {
        // It ended since we looked.
        Err(error)
            if matches!(
                error.code(),
                ErrorNumber::OperationInvalid | ErrorNumber::InvalidArg
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(failed("end the move of a disk")(error)),
        Ok(()) => Ok(()),
    }
}

fn require_process(domain: &Domain, id: VmId, attempt: &'static str) -> Result<()> {
    match observe_state(domain)? {
        DomainState::Running | DomainState::Paused { incoming: false } => Ok(()),
        state @ (DomainState::Stopped(_) | DomainState::Paused { incoming: true }) => {
            Err(wrong_state(id, state, attempt))
        }
    }
}
