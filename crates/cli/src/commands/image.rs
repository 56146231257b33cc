//! `fleetward image ...`

use super::Context;
use crate::args::{ImageCommand, ImageFormat};
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::progress::Task;
use crate::{messages, table};
use fleetward_api::controller::{ImageView, ImportQuery};
use fleetward_api::lists::LibraryQuery;
use fleetward_api::verbs::{ImageDelete, ImageImport, ImageList};
use fleetward_model::{ErrorCode, Failure, ImageName};
use futures_util::TryStreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio_util::io::ReaderStream;

const CHUNK: usize = 256 * 1024;

pub(super) async fn run(context: &Context, command: ImageCommand) -> Result<Exit, Stop> {
    let Context {
        controller, output, ..
    } = context;
    match command {
        ImageCommand::Import { name, file, format } => {
            let image = import(context, &name, &file, format).await?;
            output.success(&image, || {
                messages::image_imported(&image.name, &image.sha256)
            })?;
        }
        ImageCommand::List { rows } => {
            let query = LibraryQuery {
                after: rows.after,
                limit: None,
            };
            let images: Vec<ImageView> = controller.list::<ImageList, _>(query, rows.limit).await?;
            output.document(&images, || table::images(&images))?;
        }
        ImageCommand::Delete { name } => {
            confirm(context.yes, &messages::confirm_delete_image(&name))?;
            controller.call::<ImageDelete>([name.as_str()], &()).await?;
            output.success(&json!({ "deleted": name }), || {
                messages::image_deleted(&name)
            })?;
        }
    }
    Ok(Exit::Done)
}

/// Sends the file as it is read, and compares what arrived with what was sent.
async fn import(
    context: &Context,
    name: &ImageName,
    path: &Path,
    format: Option<ImageFormat>,
) -> Result<ImageView, Failure> {
    let unreadable = |error: io::Error| {
        Failure::new(
            ErrorCode::InvalidArgument,
            format!("cannot read {}", path.display()),
        )
        .because(error)
        .fix("name a readable file")
    };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let metadata = file.metadata().await.map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(io::Error::other("it is no regular file")));
    }
    let length = metadata.len();
    let sent = Arc::new(Sent::new(context.progress.task(name.as_str()), length));
    let observer = Arc::clone(&sent);
    let content =
        ReaderStream::with_capacity(file, CHUNK).inspect_ok(move |chunk| observer.observe(chunk));
    let format = format.map(|format| match format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
        ImageFormat::Iso => "iso",
    });

    let image = context
        .controller
        .upload::<ImageImport>(
            [name.as_str()],
            &ImportQuery {
                format: format.map(str::to_owned),
            },
            content,
            length,
        )
        .await?;
    let sha256 = sent.sha256();
    if sha256 != image.sha256 {
        return Err(Failure::new(
            ErrorCode::ImageInvalid,
            format!("image {name} arrived as another file than was sent"),
        )
        .because(format!("sent sha256 {sha256}, arrived {}", image.sha256))
        .fix(format!(
            "fleetward image delete {name}, and import it again"
        )));
    }
    Ok(image)
}

/// What has gone out so far.
struct Sent {
    task: Task,
    length: u64,
    state: Mutex<(u64, Sha256)>,
}

impl Sent {
    fn new(task: Task, length: u64) -> Self {
        Self {
            task,
            length,
            state: Mutex::default(),
        }
    }

    fn observe(&self, chunk: &[u8]) {
        let mut state = self.state.lock().expect("nothing panics while holding it");
        state.0 += chunk.len() as u64;
        state.1.update(chunk);
        self.task.upload(state.0, self.length);
    }

    fn sha256(&self) -> String {
        let state = self.state.lock().expect("nothing panics while holding it");
        hex::encode(state.1.clone().finalize())
    }
}
