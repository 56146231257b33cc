//! The cache of images: each file is named after its SHA-256, and is complete and verified.

use crate::failure::{HypervisorResult, Result, Trouble};
use bytes::Bytes;
use fleetward_durable::{self as durable, Access, Draft};
use fleetward_hypervisor::Volumes;
use fleetward_model::{ErrorCode, Failure};
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// Largest image taken, in bytes.
pub(crate) const MAX_IMAGE: u64 = 1 << 40;

/// Formats an image may have.
const FORMATS: [&str; 3] = ["qcow2", "raw", "iso"];

/// The cache.
#[derive(Clone)]
pub(crate) struct Images {
    directory: PathBuf,
    volumes: Arc<dyn Volumes>,
}

/// An image that is present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub path: PathBuf,
    /// `qcow2` or `raw`; an installer medium is raw.
    pub format: &'static str,
}

impl Images {
    pub(crate) fn new(directory: PathBuf, volumes: Arc<dyn Volumes>) -> Self {
        Self { directory, volumes }
    }

    /// The image of that SHA-256, if it is here.
    pub(crate) fn find(&self, sha256: &str) -> Option<Image> {
        if !is_sha256(sha256) {
            return None;
        }
        FORMATS.into_iter().find_map(|format| {
            let path = self.directory.join(format!("{sha256}.{format}"));
            path.is_file().then_some(Image {
                path,
                format: if format == "qcow2" { "qcow2" } else { "raw" },
            })
        })
    }

    /// The same, or the refusal.
    pub(crate) fn require(&self, name: &str, sha256: &str) -> Result<Image> {
        self.find(sha256).ok_or_else(|| {
            Failure::new(ErrorCode::ImageNotFound, format!("image {name}"))
                .because("it has not been sent to this host")
                .into()
        })
    }

    /// Takes an image as it comes; nothing stays when it is too large, not what it says, or no disk.
    pub(crate) async fn receive<E: std::error::Error>(
        &self,
        sha256: &str,
        format: &str,
        length: Option<u64>,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<()> {
        let what = || format!("image {}", sha256.chars().take(12).collect::<String>());
        if !is_sha256(sha256) {
            return Err(Trouble::refuse(
                ErrorCode::InvalidArgument,
                what(),
                "its name is not a SHA-256 of 64 lower-case hex digits",
            ));
        }
        let Some(format) = FORMATS.into_iter().find(|known| *known == format) else {
            return Err(Trouble::refuse(
                ErrorCode::InvalidArgument,
                what(),
                "the format is one of qcow2, raw, iso",
            ));
        };
        if self.find(sha256).is_some() {
            return Ok(());
        }
        if length.is_some_and(|length| length > MAX_IMAGE) {
            return Err(too_large(&what()));
        }
        self.require_space(length.unwrap_or(0), &what())?;

        let draft = Draft::within(&self.directory, Access::PUBLIC)
            .map_err(|error| Trouble::file(what(), &self.directory, &error))?;
        let digest = receive_file(&draft, &what(), body).await?;
        if digest != sha256 {
            return Err(Trouble::refuse(
                ErrorCode::ImageInvalid,
                what(),
                format!("what arrived has SHA-256 {digest}"),
            ));
        }
        let disk_format = if format == "qcow2" { "qcow2" } else { "raw" };
        self.volumes
            .inspect(draft.path(), Some(disk_format))
            .await
            .attempt(what)?;
        let path = self.directory.join(format!("{sha256}.{format}"));
        let placed = durable::background::put(draft, &path).await;
        placed.map_err(|error| Trouble::file(what(), &path, &error))
    }

    /// Removes an image; a missing one is fine.
    pub(crate) fn remove(&self, sha256: &str) -> Result<()> {
        while let Some(image) = self.find(sha256) {
            durable::remove(&image.path)
                .map_err(|error| Trouble::file("the image", &image.path, &error))?;
        }
        Ok(())
    }

    /// Removes images that an agent of an earlier release left half received. What this release leaves, [`Layout::sweep`]
    /// removes.
    ///
    /// [`Layout::sweep`]: crate::layout::Layout::sweep
    pub(crate) fn clean(&self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.path().extension().is_some_and(|e| e == "part")
                && let Err(error) = durable::remove(&entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove half an image");
            }
        }
    }

    fn require_space(&self, needed: u64, what: &str) -> Result<()> {
        let available = nix::sys::statvfs::statvfs(&self.directory)
            .map(|s| s.blocks_available().saturating_mul(s.fragment_size()))
            .map_err(|e| Trouble::file(what, &self.directory, &e.into()))?;
        if available < needed {
            return Err(Trouble::refuse(
                ErrorCode::NoSpace,
                what,
                format!(
                    "{needed} bytes are needed, {available} are available in {}",
                    self.directory.display()
                ),
            ));
        }
        Ok(())
    }
}

async fn receive_file<E: std::error::Error>(
    draft: &Draft,
    what: &str,
    body: impl Stream<Item = Result<Bytes, E>>,
) -> Result<String> {
    let trouble = |error: &std::io::Error| Trouble::file(what, draft.path(), error);
    let file = draft.file().try_clone().map_err(|error| trouble(&error))?;
    let mut file = tokio::fs::File::from_std(file);
    let mut digest = Sha256::new();
    let mut total = 0u64;
    let mut body = std::pin::pin!(body);
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| {
            Trouble::passing(Failure::new(ErrorCode::LinkLost, what).because(error.to_string()))
        })?;
        total += chunk.len() as u64;
        if total > MAX_IMAGE {
            return Err(too_large(what));
        }
        digest.update(&chunk);
        file.write_all(&chunk)
            .await
            .map_err(|error| trouble(&error))?;
    }
    file.flush().await.map_err(|error| trouble(&error))?;
    Ok(hex::encode(digest.finalize()))
}

fn too_large(what: &str) -> Trouble {
    Trouble::refuse(
        ErrorCode::TooLarge,
        what,
        format!("an image has at most {MAX_IMAGE} bytes"),
    )
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
