//! The image library: disk images and installer media, in files.
//!
//! ```text
//!   DATA/images/<sha256>        content
//!   DATA/images/<name>.json     what is known of it: the name's existence is this file's
//!   DATA/images/.draft.*.new    arriving; removed at the next start
//! ```
//! An image is inspected before it gets a name: a disk that refers to other files would make a host read files of the
//! image author's choice.

use crate::image_format::{self, Looked, MAX_IMAGE};
use bytes::Bytes;
use fleetward_api::controller::{ImageSource, ImageView, ImportStage, ImportView};
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

/// All images.
#[derive(Debug)]
pub(crate) struct Images {
    dir: PathBuf,
    known: RwLock<BTreeMap<ImageName, ImageView>>,
    turns: Mutex<BTreeMap<(HostName, String), Turn>>,
    imports: Mutex<BTreeMap<ImageName, Arc<Mutex<ImportView>>>>,
}

/// A file that has arrived and has no name yet. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Arrived {
    draft: Draft,
    size: u64,
    sha256: String,
}

impl Arrived {
    pub(crate) fn path(&self) -> &Path {
        self.draft.path()
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Hex.
    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }
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
            imports: Mutex::default(),
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

    /// Takes a file as it arrives; `told` hears how many bytes there are.
    pub(crate) async fn receive<E: std::fmt::Display>(
        &self,
        content: impl Stream<Item = Result<Bytes, E>>,
        told: impl Fn(u64),
    ) -> Result<Arrived, Failure> {
        let draft = Draft::within(&self.dir, Access::PRIVATE).map_err(not_stored)?;
        let (size, sha256) = receive(&draft, content, told).await?;
        Ok(Arrived {
            draft,
            size,
            sha256,
        })
    }

    /// The image of that name where it came of the same file; refused where it is another one.
    pub(crate) fn same(
        &self,
        name: &ImageName,
        file: &Arrived,
    ) -> Result<Option<ImageView>, Failure> {
        let Ok(known) = self.of(name) else {
            return Ok(None);
        };
        let source = known.source.as_ref().map(|source| &source.sha256);
        if known.sha256 == file.sha256 || source == Some(&file.sha256) {
            return Ok(Some(known));
        }
        let what = format!("there is another image {name}");
        Err(Failure::new(ErrorCode::NameTaken, what).fix(format!(
            "choose another name, or first: fleetward image delete {name}"
        )))
    }

    /// Whether a host must convert the file first.
    pub(crate) async fn is_foreign(
        &self,
        file: &Arrived,
        wanted: Option<&'static str>,
    ) -> Result<bool, Failure> {
        let path = file.path().to_owned();
        let found = tokio::task::spawn_blocking(move || image_format::is_foreign(&path, wanted));
        let found = found.await.expect("looking at an image does not panic");
        found.map_err(|error| {
            Failure::new(ErrorCode::Internal, "the image cannot be read").because(error)
        })
    }

    /// Makes what arrived an image. The same content under the same name is no error.
    pub(crate) async fn keep(
        &self,
        name: &ImageName,
        wanted: Option<&'static str>,
        content: Arrived,
        source: Option<ImageSource>,
        now: OffsetDateTime,
    ) -> Result<ImageView, Failure> {
        let path = content.path().to_owned();
        let looked = tokio::task::spawn_blocking(move || image_format::look(&path, wanted))
            .await
            .expect("looking at an image does not panic");
        let Looked {
            format,
            virtual_size,
        } = looked.map_err(|error| not_an_image(name, error))?;
        let image = ImageView {
            name: name.clone(),
            format: format.to_owned(),
            size_bytes: content.size,
            virtual_size_bytes: virtual_size,
            sha256: content.sha256.clone(),
            imported: now,
            source,
        };
        // Another request may have been faster while this one was converted.
        if let Some(known) = self.same(name, &content)? {
            return Ok(known);
        }
        let kept = self.put(content.draft, &image).await;
        kept.map_err(|error| write_failure(name, &error))?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(name.clone(), image.clone());
        Ok(image)
    }

    /// Begins to tell of an import, until what is returned is dropped.
    pub(crate) fn begin(&self, name: &ImageName) -> UnderWay<'_> {
        let told = Arc::new(Mutex::new(ImportView {
            stage: ImportStage::Receiving,
            host: None,
            done: 0,
            total: 0,
        }));
        let mut imports = self.imports.lock().unwrap_or_else(PoisonError::into_inner);
        imports.insert(name.clone(), told.clone());
        UnderWay {
            images: self,
            name: name.clone(),
            told,
        }
    }

    /// How far an import is.
    pub(crate) fn under_way(&self, name: &ImageName) -> Result<ImportView, Failure> {
        let imports = self.imports.lock().unwrap_or_else(PoisonError::into_inner);
        let told = imports.get(name).ok_or_else(|| {
            let what = format!("no import of image {name} is under way");
            Failure::new(ErrorCode::ImageNotFound, what)
        })?;
        Ok(told.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn put(&self, arrived: Draft, image: &ImageView) -> io::Result<()> {
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
        let (size, sha256) = receive(&draft, content, |_| {}).await?;
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

/// An import that is under way, for those who ask how far it is.
#[derive(Debug)]
pub(crate) struct UnderWay<'a> {
    images: &'a Images,
    name: ImageName,
    told: Arc<Mutex<ImportView>>,
}

impl UnderWay<'_> {
    pub(crate) fn name(&self) -> &ImageName {
        &self.name
    }

    pub(crate) fn tell(&self, stage: ImportStage, host: Option<&HostName>, done: u64, total: u64) {
        self.teller(stage, host.cloned())(done, total);
    }

    /// Tells of one stage, from wherever it is called.
    pub(crate) fn teller(
        &self,
        stage: ImportStage,
        host: Option<HostName>,
    ) -> impl Fn(u64, u64) + Send + Sync + use<> {
        let told = self.told.clone();
        move |done, total| {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = ImportView {
                stage,
                host: host.clone(),
                done,
                total,
            };
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let imports = &self.images.imports;
        let mut imports = imports.lock().unwrap_or_else(PoisonError::into_inner);
        // A later import of the same name has taken its place.
        if imports
            .get(&self.name)
            .is_some_and(|told| Arc::ptr_eq(told, &self.told))
        {
            imports.remove(&self.name);
        }
    }
}

pub(crate) fn not_an_image(name: &ImageName, error: image_format::Refusal) -> Failure {
    let code = match error {
        image_format::Refusal::UnknownFormat(_) => ErrorCode::InvalidArgument,
        image_format::Refusal::Read(_) => ErrorCode::Internal,
        _ => ErrorCode::ImageInvalid,
    };
    Failure::new(code, format!("image {name} cannot be imported")).because(error)
}

/// Writes the content; gives its size and SHA-256 in hex.
async fn receive<E: std::fmt::Display>(
    draft: &Draft,
    content: impl Stream<Item = Result<Bytes, E>>,
    told: impl Fn(u64),
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
        told(size);
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
