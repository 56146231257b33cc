//! Disks and drives of a domain: what one is, and what is changed about them while the domain exists.
//!
//! Devices are named by their target, which never changes: `vda` stays `vda` when another disk comes or goes.

use fleetward_model::spec::{DiskSpec, DriveSpec};
use std::path::PathBuf;

/// A disk with its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskDevice {
    pub spec: DiskSpec,
    /// Always qcow2.
    pub path: PathBuf,
}

/// A drive with its medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveDevice {
    pub spec: DriveSpec,
    /// The medium's file, raw; none: the drive is empty.
    pub path: Option<PathBuf>,
}

/// A change of one disk or drive. Each can be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageChange {
    /// A disk that the domain may have already. A running domain that cannot take it now has it at its next start.
    AddDisk(DiskDevice),
    /// The disk of that target goes; its volume stays. A running guest must let go of it.
    RemoveDisk { target: String },
    /// An existing drive is left as it is. A running domain has it at its next start.
    AddDrive(DriveDevice),
    /// The drive of that target goes; a running domain has it, empty, until it stops.
    RemoveDrive { target: String },
    /// The drive of that target has this medium, at once; none: it is empty.
    SetMedium {
        target: String,
        path: Option<PathBuf>,
        /// The domain starts without it where the file is missing.
        optional: bool,
    },
}

/// How far a disk of a running domain has moved to another volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MoveState {
    /// It does not move: it never began, it has ended, or it was broken off.
    Still,
    /// Bytes.
    Copying { done: u64, total: u64 },
    /// Both volumes hold the same, and each write goes to both.
    Mirrored,
}
