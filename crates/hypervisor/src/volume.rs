//! Disk files: made, grown, inspected and removed; never anything but files that we made.

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
    pub backing_file: Option<PathBuf>,
}

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

    /// A full copy of another volume; made beside its place and renamed. An existing one of the same size is left alone.
    ///
    /// # Errors
    /// `Program` where QEMU has the source open.
    async fn copy(&self, source: &Path, path: &Path) -> Result<()>;

    /// Gives a file that was received to QEMU (owner, mode).
    async fn adopt(&self, path: &Path) -> Result<()>;

    /// Whether a QEMU has the file open, on whatever host the file system passes locks on from: by the locks it holds.
    async fn in_use(&self, path: &Path) -> Result<bool>;

    /// Removes it; a missing one is fine.
    async fn delete(&self, path: &Path) -> Result<()>;
}
