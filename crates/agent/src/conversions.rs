//! Conversions of images for the controller: the file comes in, progress goes out, and then the disk.
//!
//! ```text
//!   data_dir/conversions/<uuid>/    one conversion: the file that came, and what is made of it
//! ```
//! A conversion lives as long as its one request: when the connection ends, its processes are killed and its directory is
//! removed. What a crash leaves, the next start removes; the processes die with the agent. What formats there are, and
//! how they are read, is the [`Converter`]'s.

use crate::failure::{Result, Trouble, chain};
use bytes::Bytes;
use fleetward_api::agent::{ConversionLine, ConverterState};
use fleetward_durable::{self as durable, Access};
use fleetward_hypervisor::{Conversion, ConversionError, Converted, Converter};
use fleetward_model::{ErrorCode, Failure};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

/// Largest file taken, bytes.
const MAX_FILE: u64 = 1 << 40;
/// Room that must be there beside the file and as much again for the disk, bytes.
const RESERVE: u64 = 1 << 30;
/// Shortest time between two lines of progress, and the longest.
const PACE: Duration = Duration::from_millis(300);
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Bytes of a piece of the disk, and how many pieces wait for the network.
const PIECE: usize = 256 << 10;
const WAITING: usize = 4;

const WHAT: &str = "the conversion of an image";

/// The conversions of this host.
pub(crate) struct Conversions {
    directory: PathBuf,
    converter: Arc<dyn Converter>,
    busy: Arc<AtomicU32>,
}

impl Conversions {
    pub(crate) fn new(directory: PathBuf, converter: Arc<dyn Converter>) -> Self {
        Self {
            directory,
            converter,
            busy: Arc::default(),
        }
    }

    /// Whether an image can be converted here now.
    pub(crate) async fn state(&self) -> ConverterState {
        let unable = match (self.converter.ready().await, self.room()) {
            (Err(error), _) => Some(chain(&error)),
            (_, Err(trouble)) => Some(trouble.failure.because),
            (Ok(()), Ok(_)) => None,
        };
        ConverterState {
            unable,
            room: self.room().unwrap_or_default(),
            busy: self.busy.load(Ordering::Relaxed),
        }
    }

    /// Takes a file in, and gives the answer's body: lines, then the disk.
    pub(crate) async fn convert<E: std::error::Error>(
        &self,
        wanted: Option<String>,
        disk: Option<String>,
        length: Option<u64>,
        body: impl Stream<Item = std::result::Result<Bytes, E>>,
    ) -> Result<BoxStream<'static, std::result::Result<Bytes, Infallible>>> {
        if length.is_some_and(|length| length > MAX_FILE) {
            return Err(too_large());
        }
        if let Some(length) = length {
            let (needed, room) = (length.saturating_mul(2), self.room()?);
            if room < needed {
                return Err(Trouble::refuse(
                    ErrorCode::NoSpace,
                    WHAT,
                    format!(
                        "{needed} bytes are needed, {room} can be used in {}",
                        self.directory.display()
                    ),
                ));
            }
        }
        let place = Place::make(&self.directory, self.busy.clone())?;
        receive(&place.source(), body).await?;
        let (out, answer) = mpsc::channel(WAITING);
        let converter = self.converter.clone();
        let work = tokio::spawn(async move {
            // Nobody hears it when this fails: the connection is gone, and this task with it.
            let _ = answer_with(&place, &*converter, wanted, disk, &out).await;
        });
        let work = AbortOnDropHandle::new(work);
        let answer =
            futures_util::stream::unfold((answer, work), |(mut answer, work)| async move {
                let piece = answer.recv().await?;
                Some((Ok(piece), (answer, work)))
            });
        Ok(answer.boxed())
    }

    fn room(&self) -> Result<u64> {
        let found = nix::sys::statvfs::statvfs(&self.directory)
            .map_err(|error| Trouble::file(WHAT, &self.directory, &error.into()))?;
        let available = found
            .blocks_available()
            .saturating_mul(found.fragment_size());
        Ok(available.saturating_sub(RESERVE))
    }
}

/// The directory of one conversion. Dropping it removes all that is in it.
struct Place {
    directory: PathBuf,
    busy: Arc<AtomicU32>,
}

impl Place {
    fn make(conversions: &Path, busy: Arc<AtomicU32>) -> Result<Self> {
        let directory = conversions.join(uuid::Uuid::new_v4().to_string());
        durable::make_new_directory(&directory, 0o700)
            .map_err(|error| Trouble::file(WHAT, &directory, &error))?;
        busy.fetch_add(1, Ordering::Relaxed);
        Ok(Self { directory, busy })
    }

    fn source(&self) -> PathBuf {
        self.directory.join("source")
    }

    /// Removes the files. One that is open stays readable.
    fn empty(&self) {
        if let Err(error) = durable::remove_tree(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "files of a conversion stay until the next start");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.busy.fetch_sub(1, Ordering::Relaxed);
        self.empty();
    }
}

async fn receive<E: std::error::Error>(
    path: &Path,
    body: impl Stream<Item = std::result::Result<Bytes, E>>,
) -> Result<()> {
    let trouble = |error: std::io::Error| Trouble::file(WHAT, path, &error);
    durable::create(path, b"", Access::PRIVATE).map_err(trouble)?;
    let file = std::fs::OpenOptions::new().write(true).open(path);
    let mut file = tokio::fs::File::from_std(file.map_err(trouble)?);
    let (mut body, mut total) = (std::pin::pin!(body), 0u64);
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| {
            Trouble::passing(Failure::new(ErrorCode::LinkLost, WHAT).because(chain(&error)))
        })?;
        total += piece.len() as u64;
        if total > MAX_FILE {
            return Err(too_large());
        }
        file.write_all(&piece).await.map_err(trouble)?;
    }
    file.flush().await.map_err(trouble)
}

/// Sends the lines and the disk. Fails when nobody listens.
async fn answer_with(
    place: &Place,
    converter: &dyn Converter,
    wanted: Option<String>,
    disk: Option<String>,
    out: &mpsc::Sender<Bytes>,
) -> std::result::Result<(), mpsc::error::SendError<Bytes>> {
    let (told, mut progress) = watch::channel(ConversionLine::Progress {
        step: "wait".to_owned(),
        permille: 0,
    });
    let tell = |now: fleetward_hypervisor::ConversionProgress| {
        told.send_replace(ConversionLine::Progress {
            step: now.step.to_owned(),
            permille: now.permille,
        });
    };
    let source = place.source();
    let conversion = Conversion {
        source: &source,
        directory: &place.directory,
        wanted: wanted.as_deref(),
        disk: disk.as_deref(),
    };
    let mut work = std::pin::pin!(converter.convert(conversion, &tell));
    let mut next = tokio::time::Instant::now();
    let converted = loop {
        let news = async {
            tokio::time::sleep_until(next).await;
            let _ = tokio::time::timeout(SIGN_OF_LIFE, progress.changed()).await;
        };
        tokio::select! {
            converted = &mut work => break converted,
            () = news => {}
        }
        // A line that finds no room is followed by a newer one; the conversion does not wait for it.
        let now = progress.borrow_and_update().clone();
        let _ = out.try_send(line(&now));
        next = tokio::time::Instant::now() + PACE;
    };
    let opened = match converted {
        Ok(converted) => open(converted).await,
        Err(error) => Err(trouble(&error)),
    };
    // Whoever has the whole answer finds nothing of the conversion any more.
    place.empty();
    let (mut file, size, found) = match opened {
        Ok(opened) => opened,
        Err(trouble) => {
            let failure = trouble.failure;
            return out.send(line(&ConversionLine::Failed { failure })).await;
        }
    };
    out.send(line(&ConversionLine::Done { size, found }))
        .await?;
    let mut left = size;
    while left > 0 {
        let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
        // A file that cannot be read ends the answer early, which its reader notices.
        if let Err(error) = file.read_exact(&mut piece).await {
            tracing::warn!(%error, "a converted image cannot be read");
            return Ok(());
        }
        left -= piece.len() as u64;
        out.send(piece.into()).await?;
    }
    Ok(())
}

async fn open(converted: Converted) -> Result<(tokio::fs::File, u64, Vec<String>)> {
    let Converted { path, found } = converted;
    let trouble = |error: std::io::Error| Trouble::file(WHAT, &path, &error);
    let file = tokio::fs::File::open(&path).await.map_err(trouble)?;
    let size = file.metadata().await.map_err(trouble)?.len();
    Ok((file, size, found.into_iter().map(str::to_owned).collect()))
}

fn line(line: &ConversionLine) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("wire types are JSON");
    text.push(b'\n');
    text.into()
}

fn too_large() -> Trouble {
    Trouble::refuse(
        ErrorCode::TooLarge,
        WHAT,
        format!("a file to convert has at most {MAX_FILE} bytes"),
    )
}

fn trouble(error: &ConversionError) -> Trouble {
    let code = match error {
        ConversionError::Unusable(_) => ErrorCode::ImageInvalid,
        ConversionError::NeedsOthers(_) => ErrorCode::ImageNeedsOtherFiles,
        ConversionError::SeveralDisks(_) => ErrorCode::ImageSeveralDisks,
        ConversionError::OverLimits(_) => ErrorCode::ImageOverLimits,
        ConversionError::NoSpace(_) => ErrorCode::NoSpace,
        ConversionError::Unable(_) => ErrorCode::NoConverter,
        ConversionError::File { source, .. } if durable::is_full(source) => ErrorCode::NoSpace,
        ConversionError::File { .. } => ErrorCode::Internal,
    };
    Trouble::refuse(code, WHAT, chain(error))
}
