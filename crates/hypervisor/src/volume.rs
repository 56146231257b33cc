//! Disk files: made, grown, inspected and removed; never anything but files that we made.
//!
//! A volume stands alone, or is an *overlay*: it holds what was written to it, and the rest is in the *base* below it, a
//! volume of the same directory. Several overlays may share a base, so a base is *frozen*: nobody may write to it again.

use crate::Result;
use async_trait::async_trait;
use fleetward_model::ByteSize;
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

/// Most volumes that one may build on: every read may have to go through all of them.
pub const MAX_BASES: usize = 16;

/// Disk files on this host.
#[async_trait]
pub trait Volumes: Send + Sync + 'static {
    /// What the file is. `format` is what it must be; none probes among qcow2, raw and iso, for imports only.
    ///
    /// # Errors
    /// `BadImage` for anything that is not a disk of that format, has a backing or data file, or is encrypted.
    async fn inspect(&self, path: &Path, format: Option<&str>) -> Result<VolumeInfo>;

    /// A new empty qcow2 volume, readable by QEMU. An existing one of that size is left alone.
    async fn create_empty(&self, path: &Path, size: ByteSize) -> Result<()>;

    /// A full copy of an image as qcow2, grown to `size`; made beside it and renamed, so that no half volume shows.
    async fn create_from_image(
        &self,
        image: &Path,
        image_format: &str,
        path: &Path,
        size: ByteSize,
    ) -> Result<()>;

    /// A volume of ours, overlay or not, whose whole chain is what it should be.
    ///
    /// # Errors
    /// As [`inspect`](Self::inspect) and [`bases`](Self::bases).
    async fn inspect_volume(&self, path: &Path) -> Result<VolumeInfo>;

    /// A full copy of another volume and all that it builds on; made beside its place and renamed. An existing one of the
    /// same size is left alone.
    ///
    /// # Errors
    /// `Program` where QEMU has the source open.
    async fn copy(&self, source: &Path, path: &Path) -> Result<()>;

    /// The volumes that one builds on, nearest first, from their headers alone; none for one that stands alone.
    ///
    /// # Errors
    /// `BadImage` where one refers to anything but a volume of its own directory, or to more than [`MAX_BASES`].
    async fn bases(&self, path: &Path) -> Result<Vec<PathBuf>>;

    /// A new overlay over `base`, in the same directory and of the same size. Whoever writes to the base from then on
    /// destroys it: see [`freeze`](Self::freeze). An existing overlay over that base is left alone.
    async fn create_overlay(&self, base: &Path, path: &Path) -> Result<()>;

    /// Whether an overlay holds nothing of its own, so that it shows exactly what its base shows.
    async fn is_unwritten(&self, path: &Path) -> Result<bool>;

    /// Makes the volume one that QEMU may read and never write, for good.
    async fn freeze(&self, path: &Path) -> Result<()>;

    /// Whether it is frozen.
    async fn is_frozen(&self, path: &Path) -> Result<bool>;

    /// Gives a file that was received to QEMU (owner, mode).
    async fn adopt(&self, path: &Path) -> Result<()>;

    /// Whether a QEMU has the file open, on whatever host the file system passes locks on from: by the locks it holds.
    async fn in_use(&self, path: &Path) -> Result<bool>;

    /// Removes it; a missing one is fine. Bases that nobody needs any more go with it; a frozen volume that others build
    /// on stays, and goes with the last of them.
    async fn delete(&self, path: &Path) -> Result<()>;
}
