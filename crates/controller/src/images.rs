//! The image library: disk images and installer media, in files.
//!
//! ```text
//!   DATA/images/<sha256>        content
//!   DATA/images/<name>.json     what is known of it: the name's existence is this file's
//!   DATA/images/.draft.*.new    arriving; removed at the next start
//! ```
//! An image is inspected before it gets a name: a disk that refers to other files would make a host read files of the
//! image author's choice.

use crate::image_format::{self, Looked};
use bytes::Bytes;
use fleetward_api::controller::ImageView;
use fleetward_durable::{self as durable, Access, Draft};
use fleetward_model::{ErrorCode, Failure, HostName, ImageName};
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;

/// Largest image, bytes.
const MAX_IMAGE: u64 = 2 << 40;

/// All images.
#[derive(Debug)]
pub(crate) struct Images {
    dir: PathBuf,
    known: RwLock<BTreeMap<ImageName, ImageView>>,
    turns: Mutex<BTreeMap<(HostName, String), Turn>>,
}

/// Held while an image is sent to a host.
type Turn = Arc<tokio::sync::Mutex<()>>;

impl Images {
    pub(crate) async fn open(data: &Path) -> io::Result<Self> {
        let dir = data.join("images");
        durable::background::make_directory(&dir, 0o700).await?;
        durable::background::sweep(&dir).await?;
        let mut known = BTreeMap::new();
        let mut files = tokio::fs::read_dir(&dir).await?;
        while let Some(file) = files.next_entry().await? {
            let path = file.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match serde_json::from_slice::<ImageView>(&tokio::fs::read(&path).await?) {
                Ok(image) => {
                    known.insert(image.name.clone(), image);
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "not an image's record")
                }
            }
        }
        Ok(Self {
            dir,
            known: RwLock::new(known),
            turns: Mutex::default(),
        })
    }

    pub(crate) fn all(&self) -> Vec<ImageView> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    pub(crate) fn of(&self, name: &ImageName) -> Result<ImageView, Failure> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let missing = || Failure::new(ErrorCode::ImageNotFound, format!("no image {name}"));
        known.get(name).cloned().ok_or_else(missing)
    }

    /// Where the content of an image lies.
    pub(crate) fn file(&self, sha256: &str) -> PathBuf {
        self.dir.join(sha256)
    }

    /// The turn of sending one image to one host: twenty VMs made at once need it sent once.
    pub(crate) fn turn(&self, host: &HostName, sha256: &str) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (host.clone(), sha256.to_owned());
        turns.entry(key).or_default().clone()
    }

    /// Takes an image as it arrives. The same content under the same name is no error.
    pub(crate) async fn import<E: std::fmt::Display>(
        &self,
        name: &ImageName,
        format: Option<&str>,
        content: impl Stream<Item = Result<Bytes, E>>,
        now: OffsetDateTime,
    ) -> Result<ImageView, Failure> {
        let draft = Draft::within(&self.dir, Access::PRIVATE).map_err(not_stored)?;
        let (size, sha256) = receive(&draft, content).await?;
        let path = draft.path().to_owned();
        let format = format.map(str::to_owned);
        let looked =
            tokio::task::spawn_blocking(move || image_format::look(&path, format.as_deref()))
                .await
                .expect("looking at an image does not panic");
        let Looked {
            format,
            virtual_size,
        } = looked.map_err(|error| {
            let code = match error {
                image_format::Refusal::UnknownFormat(_) => ErrorCode::InvalidArgument,
                image_format::Refusal::Read(_) => ErrorCode::Internal,
                _ => ErrorCode::ImageInvalid,
            };
            Failure::new(code, format!("image {name} cannot be imported")).because(error)
        })?;
        let image = ImageView {
            name: name.clone(),
            format: format.to_owned(),
            size_bytes: size,
            virtual_size_bytes: virtual_size,
            sha256,
            imported: now,
        };
        if let Ok(known) = self.of(name) {
            if known.sha256 == image.sha256 {
                return Ok(known);
            }
            let what = format!("there is another image {name}");
            return Err(Failure::new(ErrorCode::NameTaken, what).fix(format!(
                "choose another name, or first: fleetward image delete {name}"
            )));
        }
        let kept = self.keep(draft, &image).await;
        kept.map_err(|error| write_failure(name, &error))?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(name.clone(), image.clone());
        Ok(image)
    }

    async fn keep(&self, arrived: Draft, image: &ImageView) -> io::Result<()> {
        durable::background::put(arrived, &self.file(&image.sha256)).await?;
        let json = serde_json::to_vec_pretty(image)?;
        durable::background::replace(&self.record(&image.name), json, Access::PRIVATE).await
    }

    /// Whether an image has that content.
    pub(crate) fn holds(&self, sha256: &str) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().any(|image| image.sha256 == sha256)
    }

    /// Takes content that gets no name here, a template's: its size and SHA-256. It is looked at as an image is.
    pub(crate) async fn take_content<E: std::fmt::Display>(
        &self,
        format: &str,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(u64, String), Failure> {
        let draft = Draft::within(&self.dir, Access::PRIVATE).map_err(not_stored)?;
        let (size, sha256) = receive(&draft, content).await?;
        let (path, format) = (draft.path().to_owned(), format.to_owned());
        let looked =
            tokio::task::spawn_blocking(move || image_format::look(&path, Some(format.as_str())));
        let looked = looked.await.expect("looking at an image does not panic");
        looked.map_err(|error| {
            Failure::new(
                ErrorCode::ImageInvalid,
                "a template's content cannot be used",
            )
            .because(error)
        })?;
        let kept = durable::background::put(draft, &self.file(&sha256)).await;
        kept.map_err(|error| {
            Failure::new(ErrorCode::Internal, "a template's content cannot be kept").because(error)
        })?;
        Ok((size, sha256))
    }

    /// Removes a name, and the content when no other name has it and nobody else `needs` it. True when the content went.
    pub(crate) async fn delete(
        &self,
        name: &ImageName,
        needs: impl Fn(&str) -> bool,
    ) -> Result<bool, Failure> {
        let image = self.of(name)?;
        let failed = |error: io::Error| write_failure(name, &error);
        durable::background::remove(&self.record(name))
            .await
            .map_err(failed)?;
        let still_used = {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.remove(name);
            known.values().any(|other| other.sha256 == image.sha256) || needs(&image.sha256)
        };
        if !still_used {
            durable::background::remove(&self.file(&image.sha256))
                .await
                .map_err(failed)?;
        }
        Ok(!still_used)
    }

    fn record(&self, name: &ImageName) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }
}

/// Writes the content; gives its size and SHA-256 in hex.
async fn receive<E: std::fmt::Display>(
    draft: &Draft,
    content: impl Stream<Item = Result<Bytes, E>>,
) -> Result<(u64, String), Failure> {
    let file = draft.file().try_clone().map_err(not_stored)?;
    let mut file = tokio::fs::File::from_std(file);
    let mut content = std::pin::pin!(content);
    let (mut size, mut digest) = (0u64, Sha256::new());
    while let Some(piece) = content.next().await {
        let piece = piece.map_err(|error| {
            Failure::new(ErrorCode::InvalidRequest, "the image did not arrive whole").because(error)
        })?;
        size += piece.len() as u64;
        if size > MAX_IMAGE {
            return Err(Failure::new(
                ErrorCode::TooLarge,
                format!("an image has at most {MAX_IMAGE} bytes"),
            ));
        }
        digest.update(&piece);
        file.write_all(&piece).await.map_err(not_stored)?;
    }
    file.flush().await.map_err(not_stored)?;
    Ok((size, hex::encode(digest.finalize())))
}

fn not_stored(error: io::Error) -> Failure {
    let code = if durable::is_full(&error) {
        ErrorCode::NoSpace
    } else {
        ErrorCode::Internal
    };
    Failure::new(code, "the controller cannot store the image").because(error)
}

fn write_failure(name: &ImageName, error: &io::Error) -> Failure {
    Failure::new(
        ErrorCode::Internal,
        format!("the files of image {name} cannot be changed"),
    )
    .because(error)
}
