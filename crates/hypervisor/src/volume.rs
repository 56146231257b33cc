//! Disk files: creating, growing, inspecting and removing them. Only files that Fleetward made are ever changed.
//!
//! A volume is independent, or it is an *overlay*: it holds what was written to it, and its *base*, a volume in the
//! same directory, holds the rest. Several overlays can share a base, so a base is *frozen*: it can never be written
//! again.

use crate::Result;
use async_trait::async_trait;
use fleetward_model::ByteSize;
use fleetward_model::host::DiskIo;
use std::path::{Path, PathBuf};

/// A disk file, inspected without trusting it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// `qcow2` or `raw`.
    pub format: String,
    pub virtual_size: ByteSize,
    pub allocated: ByteSize,
    /// The volumes it builds on, nearest first.
    pub bases: Vec<PathBuf>,
}

/// Largest number of bases: a read may have to go through all of them.
pub const MAX_BASES: usize = 16;

/// Disk files on this host.
#[async_trait]
pub trait Volumes: Send + Sync + 'static {
    /// Inspects the file. `format` is the required format; none detects qcow2, raw or iso, for imports only.
    ///
    /// # Errors
    /// `BadImage` for anything that is not a disk of that format, has a backing or data file, or is encrypted.
    async fn inspect(&self, path: &Path, format: Option<&str>) -> Result<VolumeInfo>;

    /// Makes an empty qcow2 volume that QEMU can read. An existing one of that size is unchanged.
    async fn create_empty(&self, path: &Path, size: ByteSize) -> Result<()>;

    /// Makes a full qcow2 copy of an image, grown to `size`. It is written under another name and renamed, so an
    /// incomplete volume is never visible.
    async fn create_from_image(
        &self,
        image: &Path,
        image_format: &str,
        path: &Path,
        size: ByteSize,
    ) -> Result<()>;

    /// Makes a volume that nobody has open larger; one of that size or larger is left alone.
    async fn grow(&self, path: &Path, size: ByteSize) -> Result<()>;

    /// How QEMU can read and write volumes of a directory: tried there, and remembered.
    async fn disk_io(&self, directory: &Path) -> DiskIo;

    /// Inspects a volume that Fleetward made, and its whole chain of bases.
    ///
    /// # Errors
    /// As [`inspect`](Self::inspect) and [`bases`](Self::bases).
    async fn inspect_volume(&self, path: &Path) -> Result<VolumeInfo>;

    /// Makes a full copy of another volume including its bases. It is written under another name and renamed. An
    /// existing one of the same size is unchanged.
    ///
    /// # Errors
    /// `Program` where QEMU has the source open.
    async fn copy(&self, source: &Path, path: &Path) -> Result<()>;

    /// The bases of a volume, nearest first, read from the headers; empty for an independent volume.
    ///
    /// # Errors
    /// `BadImage` where one refers to anything but a volume of its own directory, or to more than [`MAX_BASES`].
    async fn bases(&self, path: &Path) -> Result<Vec<PathBuf>>;

    /// A new overlay over `base`, in the same directory and of the same size. A later write to the base destroys the
    /// overlay: see [`freeze`](Self::freeze). An existing overlay over that base is unchanged.
    async fn create_overlay(&self, base: &Path, path: &Path) -> Result<()>;

    /// Whether the overlay is empty, so that its content equals that of its base.
    async fn is_unwritten(&self, path: &Path) -> Result<bool>;

    /// Makes the volume permanently read-only for QEMU.
    async fn freeze(&self, path: &Path) -> Result<()>;

    /// Whether it is frozen.
    async fn is_frozen(&self, path: &Path) -> Result<bool>;

    /// The user and the group that the hypervisor's processes run as: files of VMs belong to them.
    fn owner(&self) -> (u32, u32);

    /// Sets owner and mode of a received file for QEMU.
    async fn adopt(&self, path: &Path) -> Result<()>;

    /// Whether a QEMU has the file open, judged by its locks; covers all hosts between which the file system shares
    /// locks.
    async fn in_use(&self, path: &Path) -> Result<bool>;

    /// Removes the volume; a missing one is no error. Also removes bases that no volume needs any longer. A frozen
    /// volume that others build on stays, and is removed with the last of them.
    async fn delete(&self, path: &Path) -> Result<()>;
}
