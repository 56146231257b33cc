//! Conversion of disks of other makers, of archives and of compressed files to what is taken as an image.
//!
//! Everything here reads bytes that a stranger may have made. An implementation reads them in a confinement of its own:
//! unprivileged, without a network, with nothing in sight but the one input and the one output, within limits.

use async_trait::async_trait;
use std::path::{Path, PathBuf};

/// One file to be converted.
#[derive(Debug, Clone, Copy)]
pub struct Conversion<'a> {
    /// The file, in `directory`. It may be changed and removed.
    pub source: &'a Path,
    /// A directory for this conversion alone, which only root may enter. Its owner removes it afterwards, however the
    /// conversion ends.
    pub directory: &'a Path,
    /// The format that it must have, one of [`FORMATS`](fleetward_model::foreign::FORMATS); none: any.
    pub wanted: Option<&'a str>,
    /// Which of an archive's disks, by the name that the archive gives it.
    pub disk: Option<&'a str>,
}

/// What became of it: a file without anything below it, that is to be inspected like any image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// In the conversion's directory.
    pub path: PathBuf,
    /// What was found, from outside to inside: `["xz", "vhdx"]`.
    pub found: Vec<&'static str>,
}

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversionProgress {
    /// `unpack` or `convert`.
    pub step: &'static str,
    /// Of what is read or written, in tenths of a per cent; 1,000 is the end.
    pub permille: u32,
}

/// Why a file was not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConversionError {
    /// Damaged, or nothing that can be converted.
    #[error("{0}")]
    Unusable(String),
    /// Its content is, wholly or partly, in other files.
    #[error("{0}")]
    NeedsOthers(String),
    /// Which of its disks is meant was not said, or there is none of that name.
    #[error("it holds {}", .0.join(", "))]
    SeveralDisks(Vec<String>),
    /// It would take more memory, time or room than a conversion may.
    #[error("{0}")]
    OverLimits(String),
    #[error("not enough space in {0}")]
    NoSpace(PathBuf),
    /// This host cannot convert now: a program is missing, or the confinement cannot be made.
    #[error("{0}")]
    Unable(String),
    #[error("{attempt} {path}")]
    File {
        attempt: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Converts foreign files on this host.
#[async_trait]
pub trait Converter: Send + Sync + 'static {
    /// Whether this host can convert: tries the confinement.
    ///
    /// # Errors
    /// `Unable`.
    async fn ready(&self) -> Result<(), ConversionError>;

    /// Converts one file. Dropping the future ends all processes that it started.
    ///
    /// # Errors
    /// See [`ConversionError`]. Files may remain in the directory.
    async fn convert(
        &self,
        conversion: Conversion<'_>,
        progress: &(dyn Fn(ConversionProgress) + Send + Sync),
    ) -> Result<Converted, ConversionError>;
}
